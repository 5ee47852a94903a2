package route

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
)

// compileNode returns the rows of this node as a whole.
func (l local) compileNode(s model.Snapshot) []plan.Row {
	by := plan.By{Key: model.ConfigKey()}
	if l.missing != "" {
		return []plan.Row{&plan.Problem{By: by, Name: "node", Reason: l.missing}}
	}
	prefixes := own(l.cfg, l.node)
	if len(prefixes) == 0 {
		return []plan.Row{&plan.Problem{By: by, Name: "addresses", Reason: fmt.Sprintf(
			"node %s: spec.podCIDRs is empty and no ipam.pools entry names it: pods cannot get addresses", l.node.Name)}}
	}
	rows := []plan.Row{
		&plan.Sysctl{By: by, Path: "net/ipv4/ip_forward", Value: "1"},
		&plan.Sysctl{By: by, Path: "net/ipv6/conf/all/forwarding", Value: "1"},
		&plan.Hook{By: by, Dev: l.underlay.Name, Role: plan.RoleUnderlay},
	}
	for _, f := range netset.Families() {
		rows = append(rows, &plan.Rule{By: by, Family: f.String(), Priority: mainPriority, Table: mainTable})
	}
	set := &plan.Settings{
		By: by, GatewayMAC: model.GatewayMAC, VNI: l.cfg.Backend.VNI, Port: l.cfg.Backend.Port,
		Underlay: l.underlay.Name, Addrs: l.node.Addrs, Tracked: tracked(s),
		Policed: !l.cfg.Policy.Disabled, Keep: l.cfg.Policy.Established == "keep", Probe: l.cfg.Backend.ProbePort,
	}
	if l.cfg.Backend.Type == "vxlan" {
		set.Overlay = plan.OverlayName
		rows = append(rows,
			&plan.Overlay{By: by, Name: plan.OverlayName, MAC: model.GatewayMAC, MTU: l.underlay.MTU - overhead(l.node.Addrs[0]), Port: l.cfg.Backend.Port},
			&plan.Hook{By: by, Dev: plan.OverlayName, Role: plan.RoleOverlay})
	}
	rows = append(rows, set)
	if !l.cfg.Masquerade.Disabled {
		rows = append(rows, &plan.Masquerade{By: by, Sources: prefixes, Except: l.except(s)})
	}
	return rows
}

// tracked reports whether the host's stack may translate what it delivers.
func tracked(s model.Snapshot) bool {
	if model.Translated(s) {
		return true
	}
	for e := range model.All[*model.Endpoint](s, model.KindEndpoint) {
		if len(e.HostPorts) > 0 {
			return true
		}
	}
	return false
}

// except lists the destinations that see pods' own addresses.
func (l local) except(s model.Snapshot) []netip.Prefix {
	out := slices.Clone(l.cfg.Masquerade.NonMasqueradeCIDRs)
	if !l.cfg.Masquerade.MasqLinkLocal {
		out = append(out, netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("fe80::/10"))
	}
	out = append(out, netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("ff00::/8"))
	out = append(out, l.cfg.ClusterCIDRs...)
	for n := range model.All[*model.Node](s, model.KindNode) {
		if len(l.cfg.ClusterCIDRs) == 0 {
			out = append(out, own(l.cfg, n)...)
		}
		for _, a := range n.Addrs {
			out = append(out, netset.Host(a))
		}
	}
	return netset.Minimal(out)
}

// compilePeer returns the rows that lead to another node's pods and to the node itself.
func (l local) compilePeer(s model.Snapshot, n *model.Node) []plan.Row {
	by := plan.By{Key: n.Key()}
	p, ok := l.peer(s, n)
	if !ok {
		return []plan.Row{&plan.Problem{By: by, Name: "address", Reason: fmt.Sprintf(
			"node %s: has no address of a family that this node (%v) has: %v", n.Name, l.node.Addrs, n.Addrs)}}
	}
	vtep := n.VTEPMAC
	if vtep.IsZero() {
		vtep = model.GatewayMAC
	}
	var rows []plan.Row
	remote := func(dst netip.Prefix) bool {
		via := p.via
		if !p.tunnel {
			if via = nextHop(n, dst); !via.IsValid() {
				rows = append(rows, &plan.Problem{By: by, Name: dst.String(), Reason: fmt.Sprintf(
					"node %s: a direct route to %s needs an %s address of the node, it has %v", n.Name, dst, netset.OfPrefix(dst), n.Addrs)})
				return false
			}
		}
		r := &plan.Remote{By: by, Prefix: dst, Via: via, Tunnel: p.tunnel, MTU: p.mtu}
		if p.tunnel {
			r.VTEPMAC, r.OnLink = vtep, l.sameSubnet(via)
		}
		rows = append(rows, r)
		return true
	}
	for _, dst := range own(l.cfg, n) {
		if mine := l.clash(dst); mine.IsValid() {
			rows = append(rows, &plan.Problem{By: by, Name: dst.String(), Reason: fmt.Sprintf(
				"node %s: pod CIDR %s overlaps %s of this node; it is not routed", n.Name, dst, mine)})
			continue
		}
		if remote(dst) {
			rows = append(rows, l.route(by, n, dst, p))
		}
	}
	for _, a := range n.Addrs {
		remote(netset.Host(a))
	}
	return rows
}

// nextHop is the node's address that a direct route to dst goes through.
func nextHop(n *model.Node, dst netip.Prefix) netip.Addr {
	return netset.First(n.Addrs, netset.OfPrefix(dst))
}

// clash returns the prefix of this node that dst overlaps.
func (l local) clash(dst netip.Prefix) netip.Prefix {
	for _, mine := range own(l.cfg, l.node) {
		if mine.Overlaps(dst) {
			return mine
		}
	}
	return netip.Prefix{}
}

// route is the host's own way to a peer's pods. In tunnel mode it leads to the overlay device.
func (l local) route(by plan.By, n *model.Node, dst netip.Prefix, p peer) *plan.Route {
	r := &plan.Route{By: by, Dst: dst, Src: netset.First(l.node.Addrs, netset.OfPrefix(dst)), MTU: p.mtu}
	if p.tunnel {
		r.Dev = plan.OverlayName
		return r
	}
	r.Dev, r.Via = l.underlay.Name, nextHop(n, dst)
	if p.mtu >= l.underlay.MTU {
		r.MTU = 0
	}
	return r
}

// compileEndpoint returns the rows of one pod interface.
func (l local) compileEndpoint(s model.Snapshot, e *model.Endpoint, narrow []plan.RouteMTU) []plan.Row {
	by := plan.By{Key: e.Key()}
	link := &plan.PodLink{
		By: by, HostIf: e.HostIf, Netns: e.Netns, IfName: e.IfName, MAC: e.MAC, MTU: l.linkMTU(),
		Addrs: e.Addrs, Narrow: narrow, Ingress: e.Ingress, Egress: e.Egress, Netkit: l.cfg.Link == model.LinkNetkit,
	}
	if pod := model.Get[*model.Pod](s, model.PodKey(e.Pod.Namespace, e.Pod.Name)); pod != nil && (e.Pod.UID == "" || pod.UID == "" || e.Pod.UID == pod.UID) {
		if pod.Ingress != nil {
			link.Ingress = *pod.Ingress
		}
		if pod.Egress != nil {
			link.Egress = *pod.Egress
		}
	}
	rows := []plan.Row{link, &plan.Local{By: by, HostIf: e.HostIf, MAC: e.MAC, Addrs: e.Addrs, Shaped: link.Ingress.Bits != 0}}
	for _, a := range e.Addrs {
		rows = append(rows,
			&plan.Neighbour{By: by, Dev: e.HostIf, Addr: a, MAC: e.MAC},
			&plan.Route{By: by, Dst: netset.Host(a), Dev: e.HostIf, Src: netset.First(l.node.Addrs, netset.Of(a))})
	}
	if f := netset.FamiliesOf(e.Addrs); len(e.HostPorts) > 0 && f[0] == netset.V4 {
		// The host's own 127.0.0.1 reaches a host port by leaving through the pod's link.
		rows = append(rows, &plan.Sysctl{By: by, Path: "net/ipv4/conf/" + e.HostIf + "/route_localnet", Value: "1"})
	}
	for _, h := range e.HostPorts {
		for _, a := range e.Addrs {
			if h.HostIP.IsValid() && !h.HostIP.IsUnspecified() && netset.Of(h.HostIP) != netset.Of(a) {
				continue
			}
			row := &plan.HostPort{By: by, Protocol: h.Protocol, Port: h.Port, Pod: netip.AddrPortFrom(a, h.PodPort)}
			if !h.HostIP.IsUnspecified() {
				row.HostIP = h.HostIP
			}
			rows = append(rows, row)
		}
	}
	return rows
}

// narrow lists the destinations whose path is narrower than the pods' links.
func (l local) narrow(s model.Snapshot) []plan.RouteMTU {
	var out []plan.RouteMTU
	limit := l.linkMTU()
	for n := range model.All[*model.Node](s, model.KindNode) {
		if n.Name == l.node.Name {
			continue
		}
		p, ok := l.peer(s, n)
		if !ok || p.mtu >= limit {
			continue
		}
		for _, dst := range own(l.cfg, n) {
			if !l.clash(dst).IsValid() {
				out = append(out, plan.RouteMTU{Dst: dst, MTU: p.mtu})
			}
		}
		for _, a := range n.Addrs {
			out = append(out, plan.RouteMTU{Dst: netset.Host(a), MTU: p.mtu})
		}
	}
	slices.SortFunc(out, func(a, b plan.RouteMTU) int {
		return cmp.Or(netset.ComparePrefix(a.Dst, b.Dst), cmp.Compare(a.MTU, b.MTU))
	})
	return out
}
