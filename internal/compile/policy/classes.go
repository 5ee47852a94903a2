package policy

import (
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
	"weft/internal/selector"
)

// holder is whoever has addresses: a pod or a node.
type holder struct {
	key     model.Key
	pod     *model.Pod      // nil of a node, and of an endpoint whose pod is not known
	node    *model.Node     // nil of a pod
	addrs   []netip.Addr    // those that rows of this holder are for
	classes placed          // of addrs
	view    selector.Labels // nil: to be made again
	local   *local          // of a pod of this node, nil while it has no endpoint
}

// local is an endpoint of this node, which is under policy: a pod's interface, or the node itself.
type local struct {
	key             model.Key
	endpoint        *model.Endpoint // nil of the node itself
	holder          *holder         // nil while the pod is not known
	addrs           []netip.Addr
	ingress, egress *set                // nil: none, everything is allowed
	host            *model.HostEndpoint // of the node itself: what policies see of it, too; nil: it has none
	own             []*policy           // of host
	policies        bool                // some policy may select it: without labels it must stay closed
}

// class is an identity: addresses that no policy can tell apart.
type class struct {
	id     plan.ID
	name   string            // what the identity is a hash of
	labels []selector.Labels // an address is seen under each of these
	ns     string            // namespace of pods
	member bool              // of the cluster
	prefix netip.Prefix      // longest one of the policies' that it is in; zero: none
	refs   int               // addresses and networks that have it
	in     map[plan.ID]*peerSet
}

// unique reports whether a key tells nearly every pod apart, so that identities leave it out unless a policy uses it.
func unique(key string) bool {
	switch key {
	case "pod-template-hash", "controller-revision-hash", "pod-template-generation", "statefulset.kubernetes.io/pod-name",
		"apps.kubernetes.io/pod-index", "controller-uid", "job-name", "batch.kubernetes.io/controller-uid", "batch.kubernetes.io/job-name",
		"batch.kubernetes.io/job-completion-index", selector.Name, selector.Node:
		return true
	}
	return strings.HasPrefix(key, selector.Port) || strings.HasPrefix(key, selector.Service)
}

// labels are what selectors see of a holder. They are made again when something that they are made of has changed: see refresh.
func (h *holder) labels(s model.Snapshot, node string) selector.Labels {
	switch {
	case h.view != nil:
	case h.pod != nil:
		h.view = model.LabelsOf(s, h.pod)
	case h.node.Name == node:
		h.view = model.NodeLabels{Node: h.node, Kind: selector.KindHost}
	default:
		h.view = model.NodeLabels{Node: h.node, Kind: selector.KindRemoteNode}
	}
	return h.view
}

func (e *Engine) takePod(k model.Key) {
	h, pod := e.pods[k], model.Get[*model.Pod](e.snap, k)
	if pod != nil && pod.HostNetwork {
		pod = nil // its addresses are its node's
	}
	if pod == nil {
		if h != nil {
			e.ports.count(e, h.pod.Ports, -1)
			e.drop(h)
			delete(e.pods, k)
			delete(e.byNS[namespaceOf(k)], h)
			h.local = nil
			for l := range e.ofPod[k] {
				l.holder = nil
				e.todo.locals[l] = true
			}
		}
		return
	}
	if h == nil {
		h = &holder{key: k}
		e.pods[k] = h
		if e.byNS[pod.Namespace] == nil {
			e.byNS[pod.Namespace] = map[*holder]bool{}
		}
		e.byNS[pod.Namespace][h] = true
		for l := range e.ofPod[k] {
			l.holder, h.local = h, newer(h.local, l)
			e.todo.locals[l] = true
		}
	}
	e.ports.count(e, pod.Ports, 1)
	if h.pod != nil {
		e.ports.count(e, h.pod.Ports, -1)
	}
	h.pod = pod
	e.refresh(h)
}

func namespaceOf(k model.Key) string {
	ns, _, _ := strings.Cut(k.Name, "/")
	return ns
}

func (e *Engine) takeNode(k model.Key) {
	h, n := e.nodes[k], model.Get[*model.Node](e.snap, k)
	e.todo.hosts = e.todo.hosts || k.Name == e.node
	if n == nil {
		if h != nil {
			e.drop(h)
			delete(e.nodes, k)
			if h.local != nil {
				e.forget(h.local)
			}
		}
		return
	}
	if h == nil {
		h = &holder{key: k}
		e.nodes[k] = h
		if n.Name == e.node {
			h.local = &local{key: k, holder: h}
			e.locals[k] = h.local
		}
	}
	h.node = n
	if l := h.local; l != nil {
		e.unplace(l)
		l.addrs = n.Addrs
		for _, a := range l.addrs {
			e.at[a] = l
		}
	}
	e.refresh(h)
}

func (e *Engine) takeEndpoint(k model.Key) {
	ep, l := model.Get[*model.Endpoint](e.snap, k), e.locals[k]
	if ep == nil {
		if l != nil {
			e.part(l)
			e.forget(l)
		}
		return
	}
	if l == nil {
		l = &local{key: k}
		e.locals[k] = l
	} else {
		e.part(l)
	}
	e.unplace(l)
	l.endpoint, l.addrs = ep, ep.Addrs
	for _, a := range l.addrs {
		e.at[a] = l
	}
	pod := l.pod()
	if e.ofPod[pod] == nil {
		e.ofPod[pod] = map[*local]bool{}
	}
	e.ofPod[pod][l] = true
	if h := e.pods[pod]; h != nil {
		l.holder, h.local = h, newer(h.local, l)
		e.todo.holders[h] = true
		e.dirty[h.key] = true // its addresses are the endpoint's
	}
	e.todo.locals[l] = true
	e.dirty[k] = true
}

func (l *local) pod() model.Key { return model.PodKey(l.endpoint.Pod.Namespace, l.endpoint.Pod.Name) }

// newer is the endpoint that a pod's addresses are taken from. Two sandboxes of one pod may exist for a while; which
// one it is must not depend on which came first.
func newer(a, b *local) *local {
	if a == nil || a.key.Name < b.key.Name {
		return b
	}
	return a
}

// part takes an endpoint from its pod.
func (e *Engine) part(l *local) {
	pod := l.pod()
	delete(e.ofPod[pod], l)
	if len(e.ofPod[pod]) == 0 {
		delete(e.ofPod, pod)
	}
	h := l.holder
	if h == nil {
		return
	}
	l.holder = nil
	if h.local == l {
		h.local = nil
		for other := range e.ofPod[pod] {
			h.local = newer(h.local, other)
		}
	}
	e.todo.holders[h] = true
	e.dirty[h.key] = true // its addresses are its own again
}

// unplace takes an endpoint from its addresses.
func (e *Engine) unplace(l *local) {
	for _, a := range l.addrs {
		if e.at[a] == l {
			delete(e.at, a)
		}
	}
}

// views are what policies see of an endpoint as their subject: its labels, and those of its host endpoint, each with the services that
// it is behind.
func (l *local) views(e *Engine) []selector.Labels {
	with := func(labels selector.Labels) selector.Labels {
		return model.WithServices{Labels: labels, Services: func(name string) bool {
			return slices.ContainsFunc(l.addrs, func(a netip.Addr) bool { return e.backends[a][name] > 0 })
		}}
	}
	out := []selector.Labels{with(l.holder.labels(e.snap, e.node))}
	if l.host != nil {
		out = append(out, with(l.host.Labels))
	}
	return out
}

// forget ends an endpoint.
func (e *Engine) forget(l *local) {
	e.unplace(l)
	e.release(l.ingress)
	e.release(l.egress)
	delete(e.locals, l.key)
	delete(e.todo.locals, l)
	e.dirty[l.key] = true
}

// drop takes a holder's addresses away.
func (e *Engine) drop(h *holder) {
	for _, x := range h.classes {
		e.unref(x.class)
		e.hold(x.addr, -1)
	}
	h.classes = nil
	delete(e.todo.holders, h)
	e.dirty[h.key] = true
}

// hold counts the holders of an address: what nobody holds has the identity of its network.
func (e *Engine) hold(a netip.Addr, n int) {
	if e.held[a] += n; e.held[a] == 0 {
		delete(e.held, a)
	}
	block := blockOf(a)
	if e.blocks[block] += n; e.blocks[block] == 0 {
		delete(e.blocks, block)
	}
	if p := netset.Host(a); e.networks.world[p] != nil {
		e.dirty[ownKey(plan.KindAddress, p.String())] = true
	}
}

// addresses are those of a holder that policies are about. A pod of this node has them from its endpoint, long before the
// cluster is told.
func (h *holder) addresses() []netip.Addr {
	if h.node != nil {
		return h.node.Addrs
	}
	if h.local == nil {
		return h.pod.Addrs
	}
	out := slices.Clone(h.local.addrs)
	for _, a := range h.pod.Addrs {
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// classify gives every address of a holder its class.
func (e *Engine) classify(h *holder) {
	labels := h.labels(e.snap, e.node)
	want := h.addresses()
	changed := !slices.Equal(want, h.addrs)
	h.addrs = want
	h.classes = slices.DeleteFunc(h.classes, func(x placement) bool {
		if slices.Contains(want, x.addr) {
			return false
		}
		e.unref(x.class)
		e.hold(x.addr, -1)
		return true
	})
	base := h.base(e, labels)
	for _, a := range want {
		services, prefix := e.servicesOf(a), e.networks.longest(a)
		name := base + words(services)
		if prefix.IsValid() {
			name += " in " + prefix.String()
		}
		c := e.class(name, labels, h, prefix, services)
		if have := h.classes.at(a); have != c {
			c.refs++
			if have != nil {
				e.unref(have)
			} else {
				e.hold(a, 1)
			}
			h.classes.put(a, c)
			changed = true
		}
	}
	if changed {
		e.dirty[h.key] = true
		if h.local != nil {
			e.dirty[h.local.key] = true
			e.lookAgain(h.local)
		}
	}
}

// base is what distinguishes the holder's addresses from others, but for what each address has of its own.
func (h *holder) base(e *Engine, labels selector.Labels) string {
	b := make([]byte, 0, 128)
	var own map[string]string
	if h.pod != nil {
		b = append(append(append(append(b, "pod ns="...), h.pod.Namespace...), " sa="...), h.pod.Account...)
		own = h.pod.Labels
	} else {
		kind, _ := labels.Get(selector.Kind)
		b = append(append(append(b, kind...), ' '), h.node.Name...)
		own = h.node.Labels
	}
	keys := e.keys[:0]
	for k := range own {
		if !unique(k) || e.special[k] > 0 {
			keys = append(keys, k)
		}
	}
	for k := range e.special {
		if _, mine := own[k]; !mine && !strings.HasPrefix(k, selector.Service) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		if v, ok := labels.Get(k); ok {
			b = strconv.AppendQuote(append(append(append(b, ' '), k...), '='), v)
		}
	}
	e.keys = keys
	return string(b)
}

// servicesOf returns the services that an address is a backend of, as far as policies ask.
func (e *Engine) servicesOf(a netip.Addr) []string {
	var out []string
	for svc := range e.backends[a] {
		if e.special[selector.Service+svc] > 0 {
			out = append(out, svc)
		}
	}
	slices.Sort(out)
	return out
}

// class returns the class of that name, making it if it is new. Holder is nil of the world.
func (e *Engine) class(name string, labels selector.Labels, h *holder, prefix netip.Prefix, services []string) *class {
	id := idOf("identity", name)
	if h == nil && !prefix.IsValid() {
		id = plan.IdentityWorld
	}
	if c := e.classes[id]; c != nil {
		c.labels[0] = labels // those of the namespace may be others than when it was made
		return c
	}
	c := &class{id: id, name: name, member: h != nil, prefix: prefix, labels: []selector.Labels{labels}, in: map[plan.ID]*peerSet{}}
	if h != nil && h.pod != nil {
		c.ns = h.pod.Namespace
	}
	e.classes[id] = c
	if e.inNS[c.ns] == nil {
		e.inNS[c.ns] = map[*class]bool{}
	}
	e.inNS[c.ns][c] = true
	e.dirty[ownKey(plan.KindIdentity, id.String())] = true
	e.todo.classes[c] = true
	for _, svc := range services {
		c.labels = append(c.labels, selector.Map{selector.Service + svc: ""})
	}
	return c
}

func words(services []string) string {
	out := ""
	for _, svc := range services {
		out += " " + selector.Service + svc
	}
	return out
}

func (e *Engine) unref(c *class) {
	if c.refs--; c.refs > 0 {
		return
	}
	for id, ps := range c.in {
		delete(ps.members, c)
		e.dirty[ownKey(plan.KindPeerSet, id.String())] = true
	}
	delete(e.classes, c.id)
	delete(e.inNS[c.ns], c)
	delete(e.todo.classes, c)
	e.dirty[ownKey(plan.KindIdentity, c.id.String())] = true
}

// views are the labels under which a class is seen: its own, and those of the address sets that it is in.
func (e *Engine) views(c *class) []selector.Labels {
	if !c.prefix.IsValid() {
		return c.labels
	}
	out := slices.Clone(c.labels)
	for p := range e.networks.covering(c.prefix) {
		for set := range e.networks.sets[p] {
			out = append(out, e.networks.labels[set])
		}
	}
	return out
}

// compare works out which peer sets a class is in.
func (e *Engine) compare(c *class) {
	if e.classes[c.id] != c {
		return
	}
	views := e.views(c)
	now := map[plan.ID]*peerSet{}
	for _, v := range views {
		e.peers.find(v, func(p *peer) {
			if now[p.set.id] == nil && p.matches(c, views) {
				now[p.set.id] = p.set
			}
		})
	}
	for id, ps := range c.in {
		if now[id] == nil {
			delete(ps.members, c)
			e.dirty[ownKey(plan.KindPeerSet, id.String())] = true
		}
	}
	for id, ps := range now {
		if c.in[id] == nil {
			ps.members[c] = true
			e.dirty[ownKey(plan.KindPeerSet, id.String())] = true
		}
	}
	c.in = now
}

func (c *class) rows(by plan.By) []plan.Row {
	if c == nil {
		return nil
	}
	return []plan.Row{&plan.Identity{By: by, ID: c.id, Text: c.name}}
}

// rows of a holder are for the addresses that no endpoint of this node has the rows for.
func (h *holder) rows(by plan.By) []plan.Row {
	if h == nil {
		return nil
	}
	var out []plan.Row
	for _, a := range h.addrs {
		if h.node == nil && h.local != nil && slices.Contains(h.local.addrs, a) {
			continue
		}
		if c := h.classes.at(a); c != nil {
			out = append(out, &plan.Address{By: by, Prefix: netset.Host(a), Identity: c.id})
		}
	}
	return out
}

// idOf hashes what it is given. Half of SHA-256's first half: of a million IDs, two are equal in one of 37 million clusters.
func idOf(kind string, parts ...string) plan.ID {
	h := sha256.New()
	h.Write([]byte(kind))
	for _, p := range parts {
		h.Write([]byte{0})
		h.Write([]byte(p))
	}
	id := plan.ID(binary.BigEndian.Uint64(h.Sum(nil)))
	if id <= plan.IdentityWorld {
		id += 2
	}
	return id
}

func parseID(s string) plan.ID {
	v, err := strconv.ParseUint(s, 16, 64)
	if err != nil {
		return 0
	}
	return plan.ID(v)
}
