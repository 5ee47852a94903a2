package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
	"weft/internal/selector"
)

// builder makes the rules of a set for one endpoint and direction.
type builder struct {
	e      *Engine
	l      *local
	d      plan.Direction
	tiers  []model.Tier
	peers  []*peerSet      // acquired on the way
	labels selector.Labels // of the endpoint, as the policy sees it whose rule is made
}

// build returns the rules that policies, in the order in which they are asked, make for the endpoint.
func (b *builder) build(mine []asked) []plan.PolicyRule {
	mine = slices.DeleteFunc(slices.Clone(mine), func(p asked) bool { return p.section(b.d) == nil })
	for _, p := range mine {
		if !slices.Contains(b.tiers, p.tier) {
			b.tiers = append(b.tiers, p.tier)
		}
	}
	var out []plan.PolicyRule
	for i, t := range b.tiers {
		n := 0
		for n < len(mine) && mine[n].tier == t {
			n++
		}
		out = append(out, b.tier(mine[:n], i+1)...)
		mine = mine[n:]
	}
	return out
}

// tier returns the rules of one tier's policies, and what is said at its end.
func (b *builder) tier(ps []asked, level int) []plan.PolicyRule {
	var out []plan.PolicyRule
	var isolating, staged []string
	for _, p := range ps {
		if p.section(b.d).Isolates && !p.tier.Pass && isSubject(p.labels, p.subject) {
			if p.Staged {
				staged = append(staged, p.Ref.String())
			} else {
				isolating = append(isolating, p.Ref.String())
			}
		}
	}
	for len(ps) > 0 {
		n := 1
		for n < len(ps) && ps[0].Set && ps[n].Set && ps[n].Order == ps[0].Order && ps[n].Tie == ps[0].Tie {
			n++
		}
		out = append(out, b.group(ps[:n], level)...)
		ps = ps[n:]
	}
	for i, names := range [][]string{staged, isolating} {
		if len(names) == 0 {
			continue
		}
		who := slices.Compact(names)
		out = append(out, plan.PolicyRule{
			ID: idOf("end", b.d.String(), fmt.Sprint(i), strings.Join(who, "\n")), Origin: "selected by " + strings.Join(who, " and ") + ", none allows",
			Level: level, Verdict: model.VerdictDeny, L4: []plan.L4{{Proto: model.ProtoAny}}, Staged: i == 0,
		})
	}
	return out
}

// group returns the rules of policies among which order means nothing, or of a single ordered one.
func (b *builder) group(ps []asked, level int) []plan.PolicyRule {
	var out []plan.PolicyRule
	for _, p := range ps {
		for _, r := range p.rules[b.d] {
			out = append(out, b.rule(p, r, level)...)
		}
	}
	if ps[0].Set {
		slices.SortStableFunc(out, func(x, y plan.PolicyRule) int {
			return cmp.Or(cmp.Compare(decides(x), decides(y)), cmp.Compare(place(x), place(y)))
		})
	}
	return out
}

// decides is 0 of rules that are only noted.
func decides(r plan.PolicyRule) int {
	if r.Staged || r.Verdict == model.VerdictLog {
		return 0
	}
	return 1
}

// place is where a rule stands in a group: deny, reject, allow, pass.
func place(r plan.PolicyRule) int {
	switch r.Verdict {
	case model.VerdictDeny:
		return 1
	case model.VerdictReject:
		return 2
	case model.VerdictAllow:
		return 3
	}
	return 4
}

// rule returns what a rule is for this endpoint: none, one, or several with one ID where its ports are of several kinds.
func (b *builder) rule(p asked, r *rule, level int) []plan.PolicyRule {
	subject := p.subject
	if r.subject != nil {
		subject = r.subject
	}
	allows := r.Verdict == model.VerdictAllow || r.Verdict == model.VerdictPass
	if !isSubject(p.labels, subject) || r.Unsupported != "" && allows {
		return nil
	}
	base := plan.PolicyRule{
		ID: r.id, Origin: r.origin, Level: level, Verdict: r.Verdict, Family: r.Family, Hosts: r.Hosts, Staged: p.Staged,
	}
	if r.Log != nil {
		base.Log, base.Label = true, r.Log.Prefix
	}
	if r.Verdict == model.VerdictPass {
		base.PassTo = b.passTo(level, r.PassTo)
	}
	b.labels = p.labels
	family, ok := b.local(r)
	if !ok || family != 0 && base.Family != 0 && family != base.Family {
		return nil
	}
	base.Family = cmp.Or(base.Family, family)
	var out []plan.PolicyRule
	for _, v := range b.variants(r) {
		x := base
		x.L4, x.SrcPorts = v.l4, v.src
		if x.Peers, ok = b.peerID(r, v.port); !ok {
			continue
		}
		out = append(out, x)
	}
	return out
}

// passTo is the level at which Pass goes on: the next, or the first one of at least an order.
func (b *builder) passTo(level int, order float64) int {
	if order == 0 {
		return level + 1
	}
	for i, t := range b.tiers {
		if i+1 > level && t.Order >= order {
			return i + 1
		}
	}
	return len(b.tiers) + 1
}

// local says whether the rule's own side is this endpoint, and if only with one family's address, with which.
func (b *builder) local(r *rule) (netset.Family, bool) {
	if len(r.local) == 0 {
		return 0, true
	}
	labels := []selector.Labels{b.labels}
	var fits []netset.Family
	for _, a := range b.l.addrs {
		c := &class{member: true, prefix: netset.Host(a)}
		if !slices.ContainsFunc(r.local, func(p *peer) bool { return !p.matches(c, labels) }) {
			fits = append(fits, netset.Of(a))
		}
	}
	switch {
	case len(fits) == 0:
		return 0, false
	case len(fits) == len(b.l.addrs):
		return 0, true
	}
	return fits[0], true
}

// peerID returns the peer set of a rule as the endpoint sees it, narrowed to the peers of which a port has a name; 0 is
// anything, and false says that nobody can be in it.
func (b *builder) peerID(r *rule, port namedPort) (plan.ID, bool) {
	peers := r.peers
	if peers == nil {
		if port == (namedPort{}) {
			return 0, true
		}
		peers = []*peer{{}}
	}
	var seen []*peer
	for _, p := range peers {
		if p = p.seenBy(b.labels); p == nil {
			continue
		}
		seen = append(seen, port.narrow(*p))
	}
	if len(seen) == 0 {
		return 0, false
	}
	s := b.e.acquire(seen)
	b.peers = append(b.peers, s)
	return s.id, true
}

// narrow returns the peer of which the names are as they must be. An address may be selected by the labels of a set that it is in and
// have the port by those of its pod, so that both are asked apart.
func (n namedPort) narrow(p peer) *peer {
	if n.key != "" {
		has := selector.Equal(n.key, n.value)
		if p.Select == nil {
			p.Select = has
		} else {
			p.grouped, p.group = true, []*peer{{Peer: model.Peer{Select: has}, grouped: p.grouped, group: p.group}}
		}
	}
	for key := range strings.Lines(n.not) {
		p.NotSelect = union(p.NotSelect, selector.Equal(strings.TrimSuffix(key, "\n"), n.value))
	}
	return &p
}

// union is what one of two expressions selects; a may be nil, for nothing.
func union(a, b *selector.Expr) *selector.Expr {
	if a == nil {
		return b
	}
	return selector.AnyOf(a, b)
}

// variant is one kind of ports of a rule.
type variant struct {
	l4   []plan.L4
	src  *model.PortRange // nil: all
	port namedPort
}

// namedPort is a number of a port with the name by which peers must have it, "" if none, and those by which they must not, each with
// a line's end.
type namedPort struct{ key, value, not string }

// variants returns the kinds of ports that a rule is about. A rule that is about no port at all has none.
func (b *builder) variants(r *rule) []variant {
	if r.L4 == nil {
		return []variant{{l4: []plan.L4{{Proto: model.ProtoAny}}}}
	}
	var out []variant
	add := func(v variant) {
		if len(v.l4) == 0 {
			return
		}
		for i := range out {
			if samePorts(out[i].src, v.src) && out[i].port == v.port {
				out[i].l4 = append(out[i].l4, v.l4...)
				return
			}
		}
		out = append(out, v)
	}
	for _, l := range r.L4 {
		if l.Service != "" {
			add(variant{l4: b.servicePorts(l, r.Verdict)})
			continue
		}
		for _, proto := range protocols(l) {
			for _, src := range sources(l) {
				for _, v := range b.destinations(l, proto) {
					v.src = src
					add(v)
				}
			}
		}
	}
	for i := range out {
		out[i].l4 = tidy(out[i].l4)
	}
	return out
}

// protocols are those that a description of ports is about: ProtoAny, or numbers.
func protocols(l model.L4) []int {
	ported := l.Ports != nil || l.Named != nil || l.NotPorts != nil || l.NotNamed != nil || l.SrcPorts != nil || l.NotSrcPorts != nil
	var all []int
	switch {
	case l.Proto != model.ProtoAny:
		all = []int{l.Proto}
	case ported:
		all = []int{model.ProtoTCP, model.ProtoUDP, model.ProtoSCTP}
	case len(l.NotProto) == 0:
		return []int{model.ProtoAny}
	default:
		for p := range 256 {
			all = append(all, p)
		}
	}
	return slices.DeleteFunc(all, func(p int) bool { return slices.Contains(l.NotProto, p) })
}

func samePorts(a, b *model.PortRange) bool { return a == b || a != nil && b != nil && *a == *b }

// sources are the source ports as ranges that do not overlap; nil is all of them.
func sources(l model.L4) []*model.PortRange {
	if l.SrcPorts == nil && len(l.NotSrcPorts) == 0 {
		return []*model.PortRange{nil}
	}
	want := l.SrcPorts
	if want == nil {
		want = []model.PortRange{{First: 0, Last: 65535}}
	}
	var out []*model.PortRange
	for _, r := range subtract(merge(want), merge(l.NotSrcPorts)) {
		if r == (model.PortRange{First: 0, Last: 65535}) {
			return []*model.PortRange{nil}
		}
		out = append(out, &r)
	}
	return out
}

// destinations returns the destination ports of one protocol.
func (b *builder) destinations(l model.L4, proto int) []variant {
	if proto == model.ProtoAny || l.Ports == nil && l.Named == nil && len(l.NotPorts) == 0 && len(l.NotNamed) == 0 {
		return []variant{{l4: []plan.L4{{Proto: proto}}}}
	}
	not := slices.Clone(l.NotPorts)
	except := map[string]string{} // by number: the names by which peers may have it that must not
	for _, name := range l.NotNamed {
		if b.d == plan.Ingress {
			not = append(not, b.ownPort(proto, name)...)
			continue
		}
		key := selector.Port + plan.ProtoName(proto) + "/" + name
		for _, value := range b.e.ports.values(key) {
			except[value] += key + "\n"
		}
	}
	var out []variant
	add := func(want []model.PortRange, port namedPort) {
		want = subtract(merge(want), merge(not))
		var some []model.PortRange // that are not open to all peers
		for _, value := range slices.Sorted(maps.Keys(except)) {
			r := number(value)
			some = append(some, r)
			if rest := subtract([]model.PortRange{r}, want); len(rest) == 0 {
				out = append(out, variant{l4: portPrefixes(proto, []model.PortRange{r}), port: namedPort{port.key, value, except[value]}})
			}
		}
		out = append(out, variant{l4: portPrefixes(proto, subtract(want, merge(some))), port: port})
	}
	want := slices.Clone(l.Ports)
	if l.Ports == nil && l.Named == nil {
		want = []model.PortRange{{First: 0, Last: 65535}}
	}
	for _, name := range l.Named {
		if b.d == plan.Ingress {
			want = append(want, b.ownPort(proto, name)...)
			continue
		}
		key := selector.Port + plan.ProtoName(proto) + "/" + name
		for _, value := range b.e.ports.values(key) {
			add([]model.PortRange{number(value)}, namedPort{key: key, value: value})
		}
	}
	add(want, namedPort{})
	return out
}

// number is the port of a named port's value.
func number(value string) model.PortRange {
	n, _ := strconv.ParseUint(value, 10, 16)
	return model.PortRange{First: uint16(n), Last: uint16(n)}
}

// servicePorts returns the ports of a service's backends; the rule's peers are those backends. Where they do not all have the
// same ports, a rule that allows matches nothing, and one that denies all of them.
func (b *builder) servicePorts(l model.L4, v model.Verdict) []plan.L4 {
	var all []plan.L4
	differ := false
	for _, s := range b.e.slices {
		if s.Namespace+"/"+s.Service != l.Service {
			continue
		}
		var mine []plan.L4
		for _, o := range s.Ports {
			for _, proto := range []int{model.ProtoTCP, model.ProtoUDP, model.ProtoSCTP} {
				if plan.ProtoName(proto) == o.Protocol && (l.Proto == model.ProtoAny || l.Proto == proto) {
					mine = append(mine, plan.L4{Proto: proto, Port: o.Port, Bits: 16})
				}
			}
		}
		mine = tidy(mine)
		differ = differ || all != nil && !slices.Equal(all, mine)
		all = tidy(append(all, mine...))
	}
	if differ && (v == model.VerdictAllow || v == model.VerdictPass) || b.d == plan.Ingress {
		return nil
	}
	return all
}

// ownPort returns the number of a named port of the endpoint itself.
func (b *builder) ownPort(proto int, name string) []model.PortRange {
	v, ok := b.labels.Get(selector.Port + plan.ProtoName(proto) + "/" + name)
	n, err := strconv.ParseUint(v, 10, 16)
	if !ok || err != nil {
		return nil
	}
	return []model.PortRange{{First: uint16(n), Last: uint16(n)}}
}
