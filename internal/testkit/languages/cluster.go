package languages

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"slices"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/oracle"
)

// Packet is the first packet of a connection.
type Packet = oracle.Packet

// Places says where a cluster's ends are, each by one address of each family.
type Places struct {
	Nodes [2][]netip.Addr
	Pods  [][]netip.Addr // the first half on the first node
	World [][]netip.Addr
	Bare  bool // there are no services, and no labels of nodes that policies ask for
}

// Anywhere are places that nobody has to reach.
func Anywhere() Places {
	at := func(i int, formats ...string) (out []netip.Addr) {
		for _, f := range formats {
			out = append(out, netip.MustParseAddr(fmt.Sprintf(f, i)))
		}
		return out
	}
	var p Places
	for i := range 2 {
		p.Nodes[i] = at(1+i, "192.168.7.%d", "fd07::%d")
	}
	for i := range 6 {
		p.Pods = append(p.Pods, at(2+i%3, fmt.Sprintf("10.244.%d.%%d", 1+i/3), fmt.Sprintf("fd10:244:0:%d::%%d", 1+i/3)))
	}
	for i := range 3 {
		p.World = append(p.World, at(1+60*i, "198.51.100.%d", "2001:db8::%d"))
	}
	return p
}

// NodeName is the name of the cluster's first or second node.
func NodeName(i int) string { return fmt.Sprintf("node%d", 1+i) }

// Cluster is a random cluster of two nodes.
type Cluster struct {
	dice
	Places
	Pods       []*model.Pod
	nodes      []*model.Node
	Namespaces []*model.Namespace
	Accounts   []*model.ServiceAccount
	backends   []*model.Backends

	netpolCount int // NetworkPolicies that several languages have made: their names differ
}

// New makes the cluster of a seed.
func New(seed uint64, at Places) *Cluster {
	d := newDice(seed)
	c := &Cluster{dice: d, Places: at}
	for _, ns := range namespaces() {
		labels := d.labels(nsWords()[1:])
		labels["kubernetes.io/metadata.name"] = ns // as the API server puts it
		c.Namespaces = append(c.Namespaces, &model.Namespace{Name: ns, Labels: labels})
		c.Accounts = append(c.Accounts, &model.ServiceAccount{Namespace: ns, Name: "robot", Labels: d.labels(accountWords())})
	}
	for i, addrs := range at.Nodes {
		n := &model.Node{Name: NodeName(i), Labels: d.labels(nodeWords()), Addrs: addrs}
		if at.Bare {
			n.Labels = nil
		}
		c.nodes = append(c.nodes, n)
	}
	for i, addrs := range at.Pods {
		pod := &model.Pod{
			PodRef: model.PodRef{Namespace: pick(d, namespaces()...), Name: fmt.Sprintf("pod%d", i)}, Node: NodeName(i * 2 / len(at.Pods)),
			Labels: d.labels(podWords()), Account: pick(d, "robot", "default"), Addrs: addrs,
		}
		if d.once(3, 4) {
			pod.Ports = append(pod.Ports, model.Port{Name: "http", Protocol: "tcp", Port: pick[uint16](d, 80, 81)})
		}
		if d.once(1, 2) {
			pod.Ports = append(pod.Ports, model.Port{Name: "dns", Protocol: "udp", Port: 53})
		}
		c.Pods = append(c.Pods, pod)
	}
	if at.Bare {
		return c
	}
	for _, f := range netset.Families() {
		slice := func(ns, service string, of ...[]netip.Addr) {
			b := &model.Backends{Namespace: ns, Name: service + "-" + f.String(), Service: service, Family: f, Ports: []model.Port{{Protocol: "tcp", Port: 80}}}
			for _, addrs := range of {
				b.Backends = append(b.Backends, model.Backend{Addr: netset.First(addrs, f), Ready: true})
			}
			c.backends = append(c.backends, b)
		}
		slice("a", "svc", at.Pods[1], at.Pods[4])
		slice("default", "kubernetes", at.Nodes[1])
	}
	return c
}

// Again makes the cluster draw as another seed has it.
func (c *Cluster) Again(seed uint64) {
	c.dice, c.netpolCount = newDice(seed), 0
}

// namespaces are those that pods are in.
func namespaces() []string { return []string{"a", "b"} }

// word is a label's key with the values that it has.
type word struct {
	key    string
	values []string
}

func podWords() []word {
	return []word{{"app", []string{"web", "db", "api"}}, {"track", []string{"x", "y"}}}
}

func nsWords() []word {
	return []word{{"kubernetes.io/metadata.name", namespaces()}, {"env", []string{"prod", "test"}}, {"team", []string{"red", "blue"}}}
}

func nodeWords() []word    { return []word{{"zone", []string{"z1", "z2"}}} }
func accountWords() []word { return []word{{"role", []string{"reader", "writer"}}} }

// objects is everything but policies.
func (c *Cluster) objects() Objects {
	out := Objects{}
	add(out, c.Pods)
	add(out, c.nodes)
	add(out, c.Namespaces)
	add(out, c.Accounts)
	add(out, c.backends)
	return out
}

func add[T model.Object](o Objects, xs []T) {
	for _, x := range xs {
		o[x.Key()] = x
	}
}

// Endpoint is the interface of a pod, "weft1" of the first one of a node.
func Endpoint(p *model.Pod) *model.Endpoint {
	var i int
	_, _ = fmt.Sscanf(p.Name, "pod%d", &i)
	return &model.Endpoint{
		ID: p.Name, Pod: p.PodRef, Netns: "x", IfName: "eth0", HostIf: fmt.Sprintf("weft%d", 1+i%3), MAC: model.GatewayMAC, Addrs: p.Addrs,
	}
}

// Objects is a snapshot.
type Objects map[model.Key]model.Object

// Get implements model.Snapshot.
func (o Objects) Get(k model.Key) model.Object {
	if x, ok := o[k]; ok {
		return x
	}
	return nil
}

// All implements model.Snapshot.
func (o Objects) All(kind model.Kind) iter.Seq[model.Object] {
	return func(yield func(model.Object) bool) {
		for _, k := range o.keys(func(k model.Key) bool { return k.Kind == kind }) {
			if !yield(o[k]) {
				return
			}
		}
	}
}

// Keys are the keys of all objects, sorted.
func (o Objects) Keys() []model.Key { return o.keys(func(model.Key) bool { return true }) }

func (o Objects) keys(want func(model.Key) bool) []model.Key {
	var out []model.Key
	for k := range o {
		if want(k) {
			out = append(out, k)
		}
	}
	slices.SortFunc(out, func(a, b model.Key) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name)) })
	return out
}

// String is what a person needs to follow a decision.
func (c *Cluster) String() string {
	var out string
	for _, ns := range c.Namespaces {
		out += fmt.Sprintln("namespace", ns.Name, ns.Labels)
	}
	for _, a := range c.Accounts {
		out += fmt.Sprintln("account", a.Namespace, a.Name, a.Labels)
	}
	for _, n := range c.nodes {
		out += fmt.Sprintln("node", n.Name, n.Labels, n.Addrs)
	}
	for _, p := range c.Pods {
		out += fmt.Sprintln("pod", p.PodRef, "on", p.Node, p.Labels, p.Account, p.Addrs, p.Ports)
	}
	return out
}

// end is one end of a packet: a pod, a node, or somebody of the world.
type end struct {
	addr netip.Addr
	pod  *model.Pod
	node *model.Node
}

func (c *Cluster) end(a netip.Addr) end {
	for _, p := range c.Pods {
		if slices.Contains(p.Addrs, a) {
			return end{addr: a, pod: p}
		}
	}
	for _, n := range c.nodes {
		if slices.Contains(n.Addrs, a) {
			return end{addr: a, node: n}
		}
	}
	return end{addr: a}
}

// at is the name of the node that the end is on, or is.
func (e end) at() string {
	switch {
	case e.pod != nil:
		return e.pod.Node
	case e.node != nil:
		return e.node.Name
	}
	return ""
}

func (e end) world() bool { return e.pod == nil && e.node == nil }

// namespaceOf is the labels of a pod's namespace.
func (c *Cluster) namespaceOf(p *model.Pod) map[string]string {
	i := slices.IndexFunc(c.Namespaces, func(n *model.Namespace) bool { return n.Name == p.Namespace })
	return c.Namespaces[i].Labels
}

// behind says whether an address is a backend of a service.
func (c *Cluster) behind(ns, service string, a netip.Addr) bool {
	return slices.ContainsFunc(c.backends, func(b *model.Backends) bool {
		return b.Namespace == ns && b.Service == service && slices.ContainsFunc(b.Backends, func(x model.Backend) bool { return x.Addr == a })
	})
}

// side is one side of a packet: the end whose policies are asked, and the other one.
type side struct {
	*Cluster
	Packet
	self, other end
	in          bool // self receives
}

// own says that a node sends to a pod of its own, which hardly any policy is about.
func (s *side) own() bool { return s.in && s.FromHost }

// names says whether the destination has a port of the name at the packet's port.
func (s *side) names(name string) bool {
	dst := s.other
	if s.in {
		dst = s.self
	}
	return dst.pod != nil && slices.ContainsFunc(dst.pod.Ports, func(p model.Port) bool {
		return p.Name == name && p.Port == s.DstPort && protocols()[p.Protocol] == s.Proto
	})
}

func protocols() map[string]int {
	return map[string]int{"tcp": model.ProtoTCP, "udp": model.ProtoUDP, "sctp": model.ProtoSCTP}
}

// ported says whether the packet has ports.
func (s *side) ported() bool {
	return s.Proto == model.ProtoTCP || s.Proto == model.ProtoUDP || s.Proto == model.ProtoSCTP
}

// Packet draws a packet that the first node decides about.
func (c *Cluster) Packet() Packet {
	f := pick(c.dice, netset.Families()...)
	var here, all []netip.Addr
	for i, addrs := range c.Places.Pods {
		a := netset.First(addrs, f)
		all = append(all, a)
		if c.Pods[i].Node == NodeName(0) {
			here = append(here, a)
		}
	}
	local := here
	for _, addrs := range slices.Concat(c.Nodes[:], c.World) {
		all = append(all, netset.First(addrs, f))
	}
	if c.once(1, 8) {
		local = []netip.Addr{netset.First(c.Nodes[0], f)}
	}
	p := Packet{Src: pick(c.dice, local...), Dst: pick(c.dice, all...), SrcPort: pick[uint16](c.dice, 1000, 2000, 40000), DstPort: pick(c.dice, portNumbers()...)}
	if c.once(1, 2) {
		p.Src, p.Dst = p.Dst, p.Src
	}
	if p.Src == p.Dst { // never asked
		p.Dst = netset.First(c.World[0], f)
	}
	p.FromHost = p.Src == netset.First(c.Nodes[0], f) && slices.Contains(here, p.Dst)
	p.Proto = pick(c.dice, model.ProtoTCP, model.ProtoTCP, model.ProtoTCP, model.ProtoTCP, model.ProtoUDP, model.ProtoUDP, model.ProtoSCTP, model.ProtoICMP, 47)
	switch {
	case p.Proto == model.ProtoICMP && f == netset.V6:
		p.Proto, p.SrcPort, p.DstPort = model.ProtoICMPv6, 0, pick[uint16](c.dice, 128<<8, 200<<8)
	case p.Proto == model.ProtoICMP:
		p.SrcPort, p.DstPort = 0, pick[uint16](c.dice, 8<<8, 13<<8)
	case p.Proto == 47:
		p.SrcPort, p.DstPort = 0, 0
	}
	return p
}

// portNumbers are those that policies and packets are about.
func portNumbers() []uint16 { return []uint16{53, 80, 81, 443, 8080} }
