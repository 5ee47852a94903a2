package policy

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
	"weft/internal/selector"
)

// prefixes are the prefixes of all policies and address sets, each with how often it is used.
type prefixes struct {
	users   map[netip.Prefix]int
	lengths map[netset.Family][]int             // in use, longest first
	count   map[int]int                         // of prefixes, by family and length
	sets    map[netip.Prefix]map[model.Key]bool // address sets that have it
	labels  map[model.Key]model.SetLabels       // of address sets
	nets    map[model.Key][]netip.Prefix        // of address sets
	world   map[netip.Prefix]*class             // identity of what is in it and nobody's
}

func newPrefixes() *prefixes {
	return &prefixes{
		users: map[netip.Prefix]int{}, lengths: map[netset.Family][]int{}, count: map[int]int{}, sets: map[netip.Prefix]map[model.Key]bool{},
		labels: map[model.Key]model.SetLabels{}, nets: map[model.Key][]netip.Prefix{}, world: map[netip.Prefix]*class{},
	}
}

// add counts users of a prefix, and says whether it came or went.
func (n *prefixes) add(p netip.Prefix, users int) bool {
	before := n.users[p]
	n.users[p] += users
	if (before > 0) == (n.users[p] > 0) {
		return false
	}
	f := netset.OfPrefix(p)
	at := int(f)<<8 | p.Bits()
	if n.users[p] > 0 {
		n.count[at]++
	} else {
		n.count[at]--
		delete(n.users, p)
	}
	var lengths []int
	for k, c := range n.count {
		if c > 0 && k>>8 == int(f) {
			lengths = append(lengths, k&0xff)
		}
	}
	slices.SortFunc(lengths, func(a, b int) int { return cmp.Compare(b, a) })
	n.lengths[f] = lengths
	return true
}

// longest returns the longest prefix that an address is in, or the zero prefix.
func (n *prefixes) longest(a netip.Addr) netip.Prefix {
	for _, bits := range n.lengths[netset.Of(a)] {
		if p, err := a.Prefix(bits); err == nil && n.users[p] > 0 {
			return p
		}
	}
	return netip.Prefix{}
}

// covering yields the prefixes that p is in, itself included.
func (n *prefixes) covering(p netip.Prefix) iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		for _, bits := range n.lengths[netset.OfPrefix(p)] {
			if bits > p.Bits() {
				continue
			}
			if q, err := p.Addr().Prefix(bits); err == nil && n.users[q] > 0 && !yield(q) {
				return
			}
		}
	}
}

func (e *Engine) addNetworks(ps []netip.Prefix, n int) {
	for _, p := range ps {
		if p = p.Masked(); e.networks.add(p, n) {
			e.todo.networks[p] = true
		}
	}
}

// world gives what is in a prefix of policies, and nobody's, its class.
func (e *Engine) world(p netip.Prefix) {
	n := e.networks
	have := n.world[p]
	var c *class
	if n.users[p] > 0 {
		var services []string
		if p.IsSingleIP() {
			services = e.servicesOf(p.Addr())
		}
		c = e.class("world in "+p.String()+words(services), selector.Map{selector.Kind: selector.KindWorld}, nil, p, services)
	}
	if have == c {
		return
	}
	e.dirty[ownKey(plan.KindAddress, p.String())] = true
	if c == nil {
		delete(n.world, p)
	} else {
		c.refs++
		n.world[p] = c
	}
	if have != nil {
		e.unref(have)
	}
}

// few prefixes are compared one by one.
const few = 16

// within marks the holders that have an address in one of the prefixes.
func (e *Engine) within(ps map[netip.Prefix]bool) {
	maps.DeleteFunc(ps, func(p netip.Prefix, _ bool) bool { return !e.inhabited(p) })
	if len(ps) == 0 {
		return
	}
	for _, m := range []map[model.Key]*holder{e.pods, e.nodes} {
		for _, h := range m {
			if slices.ContainsFunc(h.addrs, func(a netip.Addr) bool {
				if len(ps) > few {
					c := h.classes.at(a)
					return c == nil || c.prefix != e.networks.longest(a)
				}
				for p := range ps {
					if p.Contains(a) {
						return true
					}
				}
				return false
			}) {
				e.todo.holders[h] = true
			}
		}
	}
}

// blockOf is the block of addresses that an address is counted in.
func blockOf(a netip.Addr) netip.Prefix {
	bits := 48
	if netset.Of(a) == netset.V4 {
		bits = 16
	}
	p, _ := a.Prefix(bits) // no address is shorter
	return p
}

// inhabited reports whether a holder may have an address in a prefix. Most prefixes of policies are outside of the cluster, and
// looking through all holders for each is what a change must not cost.
func (e *Engine) inhabited(p netip.Prefix) bool {
	if p.IsSingleIP() {
		return e.held[p.Addr()] > 0
	}
	if block := blockOf(p.Addr()); p.Bits() >= block.Bits() {
		return e.blocks[block] > 0
	}
	for block := range e.blocks {
		if p.Overlaps(block) {
			return true
		}
	}
	return false
}

// rows of a prefix. An address that somebody has, has that one's identity.
func (n *prefixes) rows(e *Engine, by plan.By) []plan.Row {
	p, err := netip.ParsePrefix(by.Name)
	c := n.world[p]
	if err != nil || c == nil || p.IsSingleIP() && e.held[p.Addr()] > 0 {
		return nil
	}
	return []plan.Row{&plan.Address{By: by, Prefix: p, Identity: c.id}}
}

// takeAddressSet takes in a named set of prefixes: an address set, or the addresses of a host endpoint.
func (e *Engine) takeAddressSet(k model.Key) {
	n := e.networks
	for _, p := range n.nets[k] {
		delete(n.sets[p], k)
		if len(n.sets[p]) == 0 {
			delete(n.sets, p)
		}
	}
	old := n.nets[k]
	delete(n.nets, k)
	delete(n.labels, k)
	if nets, labels := namedNets(e.snap, k); nets != nil {
		n.labels[k] = labels
		for _, p := range nets {
			p = p.Masked()
			n.nets[k] = append(n.nets[k], p)
			if n.sets[p] == nil {
				n.sets[p] = map[model.Key]bool{}
			}
			n.sets[p][k] = true
		}
		e.addNetworks(n.nets[k], 1)
	}
	e.addNetworks(old, -1)
	changed := append(old, n.nets[k]...)
	for _, c := range e.classes {
		if c.prefix.IsValid() && (len(changed) > few || inAny(changed, c.prefix)) {
			e.todo.classes[c] = true
		}
	}
}

// namedNets are the prefixes that a key stands for as the other side of rules, with their labels.
func namedNets(s model.Snapshot, k model.Key) (nets []netip.Prefix, labels model.SetLabels) {
	if set := model.Get[*model.AddressSet](s, k); set != nil {
		return set.Nets, model.SetLabelsOf(s, set)
	}
	if h := model.Get[*model.HostEndpoint](s, k); h != nil {
		for _, a := range h.Addrs {
			nets = append(nets, netset.Host(a))
		}
		labels.Own = h.Labels
	}
	return nets, labels
}

// takeBackends takes in which addresses are behind which service.
func (e *Engine) takeBackends(k model.Key) {
	count := func(b *model.Backends, n int) {
		svc := b.Namespace + "/" + b.Service
		for _, x := range b.Backends {
			if e.backends[x.Addr] == nil {
				e.backends[x.Addr] = map[string]int{}
			}
			before := e.backends[x.Addr][svc]
			e.backends[x.Addr][svc] += n
			if e.backends[x.Addr][svc] == 0 {
				delete(e.backends[x.Addr], svc)
			}
			if (before > 0) == (e.backends[x.Addr][svc] > 0) {
				continue
			}
			if l := e.at[x.Addr]; l != nil {
				e.lookAgain(l) // policies may select the backends of a service
			}
			if e.special[selector.Service+svc] > 0 {
				e.behind(x.Addr, n)
			}
		}
	}
	old := e.slices[k]
	for _, b := range []*model.Backends{old, model.Get[*model.Backends](e.snap, k)} {
		if b != nil && e.ports.behind[b.Namespace+"/"+b.Service] > 0 {
			e.ports.version++
			e.todo.ports = true
		}
	}
	if b := model.Get[*model.Backends](e.snap, k); b != nil {
		e.slices[k] = b
		count(b, 1)
	} else {
		delete(e.slices, k)
	}
	if old != nil {
		count(old, -1)
	}
}

// behind is for an address that began, or ceased, to be a backend of a service that policies ask for.
func (e *Engine) behind(a netip.Addr, n int) {
	p := netset.Host(a)
	e.networks.add(p, n)
	e.todo.networks[p] = true
}

// serviceKey is for a key that policies began, or ceased, to ask for.
func (e *Engine) serviceKey(key string) {
	svc, ok := strings.CutPrefix(key, selector.Service)
	if !ok {
		return
	}
	n := -1
	if e.special[key] > 0 {
		n = 1
	}
	for a, services := range e.backends {
		if services[svc] > 0 {
			e.behind(a, n)
		}
	}
}

// takeService takes in a service's own addresses, and whether anybody translates them.
func (e *Engine) takeService(k model.Key) {
	if k.Kind == model.KindFeature {
		if on := model.Translated(e.snap); on != e.foreign {
			e.foreign = on
			for s := range e.services {
				e.dirty[s] = true
			}
		}
		return
	}
	delete(e.services, k)
	if s := model.Get[*model.Service](e.snap, k); s != nil {
		e.services[k] = s.Addrs
	}
	e.dirty[k] = true
}
