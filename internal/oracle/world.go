package oracle

import (
	"net/netip"
	"slices"
	"strconv"

	"weft/internal/model"
	"weft/internal/plan"
	"weft/internal/selector"
)

// Who has an address, and what is known of him: all that the evaluator asks about, and decides nothing.

// end is one side of a packet. An address is seen under several sets of labels: its pod's or node's, and those of each
// address set and service that it belongs to.
type end struct {
	addr    netip.Addr
	all     []netip.Addr // of its pod or node
	labels  []selector.Labels
	member  bool                // of the cluster: a pod or a node
	policed bool                // it can be the subject of policies on this node
	host    *model.HostEndpoint // of this node's device; nil: it has none, or this is no node
}

type world struct {
	s    model.Snapshot
	node string
	dev  string
}

func (w world) end(a netip.Addr) end {
	e := end{addr: a}
	for pod := range model.All[*model.Pod](w.s, model.KindPod) {
		if !pod.HostNetwork && slices.Contains(pod.Addrs, a) && !e.member {
			e.labels, e.all = append(e.labels, model.LabelsOf(w.s, pod)), pod.Addrs
			e.member, e.policed = true, pod.Node == w.node
		}
	}
	for n := range model.All[*model.Node](w.s, model.KindNode) {
		if slices.Contains(n.Addrs, a) && !e.member {
			kind := map[bool]string{true: selector.KindHost, false: selector.KindRemoteNode}[n.Name == w.node]
			e.labels = append(e.labels, model.NodeLabels{Node: n, Kind: kind})
			e.all = n.Addrs
			e.member, e.policed = true, n.Name == w.node
			if e.policed {
				e.host, e.policed = w.hostEndpoint(n)
			}
		}
	}
	if !e.member {
		e.labels = append(e.labels, selector.Map{selector.Kind: selector.KindWorld})
	}
	for set := range model.All[*model.AddressSet](w.s, model.KindAddressSet) {
		if within(set.Nets, a) {
			e.labels = append(e.labels, model.SetLabelsOf(w.s, set))
		}
	}
	for h := range model.All[*model.HostEndpoint](w.s, model.KindHostEndpoint) {
		if slices.Contains(h.Addrs, a) {
			e.labels = append(e.labels, h.Labels)
		}
	}
	for b := range model.All[*model.Backends](w.s, model.KindBackends) {
		if slices.ContainsFunc(b.Backends, func(x model.Backend) bool { return x.Addr == a }) {
			e.labels = append(e.labels, selector.Map{selector.Service + b.Namespace + "/" + b.Service: ""})
		}
	}
	return e
}

// own is an end as the subject of policies: under its own labels alone, with the services that its addresses are behind.
func (w world) own(e end, addrs []netip.Addr) end {
	e.labels = []selector.Labels{model.WithServices{Labels: e.labels[0], Services: func(name string) bool {
		for b := range model.All[*model.Backends](w.s, model.KindBackends) {
			if b.Namespace+"/"+b.Service == name && slices.ContainsFunc(b.Backends, func(x model.Backend) bool { return slices.Contains(addrs, x.Addr) }) {
				return true
			}
		}
		return false
	}}}
	return e
}

// hostEndpoint is that of the device by which the packet goes. On another device than those between nodes, only a host
// endpoint makes a node the subject of policies.
func (w world) hostEndpoint(n *model.Node) (h *model.HostEndpoint, policed bool) {
	hs := model.HostEndpointsOf(w.s, w.node)
	if w.dev == "" {
		return hs.OnUnderlay(w.s, n), true
	}
	if w.dev == plan.OverlayName {
		return hs.On(w.dev, nil), true
	}
	d := model.Get[*model.Device](w.s, model.Key{Kind: model.KindDevice, Name: w.dev})
	if h = hs.On(d.Name, d.Hosts()); h == nil || !d.Reached() {
		return nil, false
	}
	return h, true
}

func within(nets []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(nets, func(p netip.Prefix) bool { return p.Contains(a) })
}

func (e end) is(x *selector.Expr) bool {
	return slices.ContainsFunc(e.labels, x.Match)
}

func named(names []string, p Packet, dst end) bool {
	protocol := map[int]string{model.ProtoTCP: "tcp", model.ProtoUDP: "udp", model.ProtoSCTP: "sctp"}[p.Proto]
	return slices.ContainsFunc(names, func(n string) bool {
		return slices.ContainsFunc(dst.labels, func(l selector.Labels) bool {
			v, ok := l.Get(selector.Port + protocol + "/" + n)
			return ok && v == strconv.Itoa(int(p.DstPort))
		})
	})
}

// behind says whether the packet goes to a backend of a service, at the backend's port.
func (w world) behind(svc string, p Packet) bool {
	for b := range model.All[*model.Backends](w.s, model.KindBackends) {
		if b.Namespace+"/"+b.Service == svc && slices.ContainsFunc(b.Backends, func(x model.Backend) bool { return x.Addr == p.Dst }) &&
			slices.ContainsFunc(b.Ports, func(o model.Port) bool { return o.Protocol == plan.ProtoName(p.Proto) && o.Port == p.DstPort }) {
			return true
		}
	}
	return false
}
