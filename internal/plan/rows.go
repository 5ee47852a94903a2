package plan

import (
	"fmt"
	"net/netip"
	"strings"

	"weft/internal/model"
)

// By is the intent object that caused a row; every row embeds it.
type By struct{ model.Key }

// Owner implements Row.
func (b By) Owner() model.Key { return b.Key }

// text joins the non-empty words of a row's line.
func text(words ...string) string {
	out := words[:0]
	for _, w := range words {
		if w != "" {
			out = append(out, w)
		}
	}
	return strings.Join(out, " ")
}

func opt[T comparable](name string, v T) string {
	var zero T
	if v == zero {
		return ""
	}
	return fmt.Sprintf("%s %v", name, v)
}

func flag(name string, on bool) string {
	if on {
		return name
	}
	return ""
}

func list[T any](name string, vs []T) string {
	if len(vs) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString(name)
	for i, v := range vs {
		b.WriteString(map[bool]string{true: " ", false: ","}[i == 0])
		fmt.Fprint(&b, v)
	}
	return b.String()
}

// Sysctl is one value below /proc/sys of the host's network namespace.
type Sysctl struct {
	By
	Path  string // "net/ipv4/ip_forward"
	Value string
}

// Key implements Row.
func (s *Sysctl) Key() Key { return Key{KindSysctl, s.Path} }

func (s *Sysctl) String() string { return s.Path + " = " + s.Value }

// OverlayName is the name of the node's VXLAN device.
const OverlayName = "weft-vxlan"

// Overlay is the node's VXLAN device in collect-metadata ("external") mode. Packets rarely pass it:
// the BPF programs put the header on and take it off; it is there for its UDP socket's GRO,
// for what BPF cannot decapsulate, and as the device of routes from the host to remote pods.
type Overlay struct {
	By
	Name string // "weft-vxlan"
	MAC  model.MAC
	MTU  int // of the inner packet, bytes
	Port uint16
}

// Key implements Row.
func (o *Overlay) Key() Key { return Key{KindOverlay, o.Name} }

func (o *Overlay) String() string {
	return fmt.Sprintf("%s vxlan external dstport %d mac %s mtu %d", o.Name, o.Port, o.MAC, o.MTU)
}

// Rule is a policy-routing rule "from all lookup <table>" that must exist, whoever made it.
type Rule struct {
	By
	Family   string // "IPv4" or "IPv6"
	Priority int
	Table    int
}

// Key implements Row.
func (r *Rule) Key() Key { return Key{KindRule, fmt.Sprintf("%s/%d", r.Family, r.Priority)} }

func (r *Rule) String() string {
	return fmt.Sprintf("%s %d: from all lookup %d", r.Family, r.Priority, r.Table)
}

// RouteMTU is a route inside a pod that exists for its MTU alone: the path to that prefix is narrower.
type RouteMTU struct {
	Dst netip.Prefix
	MTU int
}

// String returns "prefix mtu n".
func (r RouteMTU) String() string { return fmt.Sprintf("%s mtu %d", r.Dst, r.MTU) }

// PodLink is a veth (or netkit) pair with everything that is inside the pod: addresses as /32 and /128,
// default routes through netset.Gateway, and permanent neighbours. The host side bears the alias
// "weft:<endpoint id>"; removing it removes all of it.
type PodLink struct {
	By
	HostIf string
	Netns  string // path
	IfName string // inside
	MAC    model.MAC
	MTU    int
	Addrs  []netip.Addr
	Narrow []RouteMTU // destinations with a smaller MTU than the link's, sorted
	// Netkit: a link that is yet to be made is a netkit pair, where the kernel has that. One that is there stays what it is.
	Netkit bool
	// Ingress is shaped on the host side's egress queue, Egress inside the pod.
	Ingress, Egress model.Rate
}

// Key implements Row.
func (l *PodLink) Key() Key { return Key{KindPodLink, l.HostIf} }

func (l *PodLink) String() string {
	return text(l.HostIf, "peer", l.IfName, "netns", l.Netns, "id", l.By.Name, "mac", l.MAC.String(), fmt.Sprintf("mtu %d", l.MTU),
		list("addr", l.Addrs), list("narrow", l.Narrow), rate("ingress", l.Ingress), rate("egress", l.Egress), flag("netkit", l.Netkit))
}

func rate(name string, r model.Rate) string {
	if r.Bits == 0 {
		return ""
	}
	return text(fmt.Sprintf("%s %s", name, r), opt("burst", r.Burst))
}

// Neighbour is a permanent neighbour entry of the host.
type Neighbour struct {
	By
	Dev  string
	Addr netip.Addr
	MAC  model.MAC
}

// Key implements Row.
func (n *Neighbour) Key() Key { return Key{KindNeighbour, n.Dev + "/" + n.Addr.String()} }

func (n *Neighbour) String() string { return fmt.Sprintf("%s dev %s lladdr %s", n.Addr, n.Dev, n.MAC) }

// Route is a route of the host's main table with our protocol number.
type Route struct {
	By
	Dst netip.Prefix
	Dev string
	Via netip.Addr // zero: on link. Always installed with "onlink", so that it outlives a lost connected route
	Src netip.Addr // preferred source; zero: the kernel's choice
	MTU int        // 0: the device's
}

// Key implements Row.
func (r *Route) Key() Key { return Key{KindRoute, r.Dst.String()} }

func (r *Route) String() string {
	via, src := "", ""
	if r.Via.IsValid() {
		via = "via " + r.Via.String()
	}
	if r.Src.IsValid() {
		src = "src " + r.Src.String()
	}
	return text(r.Dst.String(), via, "dev", r.Dev, src, opt("mtu", r.MTU))
}

// Masquerade makes what pods send to other destinations than Except leave under the node's address.
type Masquerade struct {
	By
	Sources []netip.Prefix // pod prefixes of this node, sorted
	Except  []netip.Prefix // destinations, sorted, both families
}

// Key implements Row: there is one.
func (m *Masquerade) Key() Key { return Key{KindMasquerade, "pods"} }

func (m *Masquerade) String() string {
	return text("masquerade", list("from", m.Sources), list("except to", m.Except), "fully-random")
}

// HostPort sends a port of the node to a pod.
type HostPort struct {
	By
	HostIP   netip.Addr // zero: every local address of the pod address's family
	Protocol string     // "tcp", "udp" or "sctp"
	Port     uint16
	Pod      netip.AddrPort
}

// Key implements Row.
func (h *HostPort) Key() Key {
	return Key{KindHostPort, fmt.Sprintf("%s/%s/%d", h.host(), h.Protocol, h.Port)}
}

func (h *HostPort) host() string {
	switch {
	case h.HostIP.IsValid() && !h.HostIP.IsUnspecified():
		return h.HostIP.String()
	case h.Pod.Addr().Is4():
		return "0.0.0.0"
	}
	return "::"
}

func (h *HostPort) String() string {
	return fmt.Sprintf("%s %s port %d -> %s", h.Protocol, h.host(), h.Port, h.Pod)
}

// Settings are the constants of this node that the BPF programs read.
type Settings struct {
	By
	GatewayMAC model.MAC
	VNI        uint32
	Port       uint16       // VXLAN
	Overlay    string       // device name, "" where no peer is tunnelled
	Underlay   string       // device name
	Addrs      []netip.Addr // own underlay addresses: the outer source, and what an outer destination must be
	// Tracked: flows that the host's stack delivers to or from pods may have been translated (host ports,
	// kube-proxy), so their replies must pass the stack too. Off, the fast path saves a lookup.
	Tracked bool
	// Policed: policy is enforced. A pod without a Guard row is closed then, and Keep says that a connection once allowed
	// stays so, whatever policies say later.
	Policed bool
	Keep    bool
	Probe   uint16 // UDP port on which nodes measure paths, which the node's own policy does not speak of; 0: none
}

// Key implements Row: there is one.
func (s *Settings) Key() Key { return Key{KindSettings, "node"} }

func (s *Settings) String() string {
	return text("gateway", s.GatewayMAC.String(), fmt.Sprintf("vni %d port %d", s.VNI, s.Port), opt("overlay", s.Overlay),
		opt("underlay", s.Underlay), list("addr", s.Addrs), flag("tracked", s.Tracked),
		flag("policed", s.Policed), flag("keep", s.Keep), opt("probe", s.Probe))
}

// Role says which programs belong on a device of the host.
type Role string

// The roles of devices. Pod links get theirs from Local rows.
const (
	RoleUnderlay Role = "underlay" // from_net at ingress, to_net at egress
	RoleOverlay  Role = "overlay"  // from_overlay at ingress, to_overlay at egress
	RoleHost     Role = "host"     // as RoleUnderlay, on another device of the host, where policy guards the node itself
)

// Hook attaches the programs of a role to a device that is not a pod's.
type Hook struct {
	By
	Dev  string
	Role Role
}

// Key implements Row.
func (h *Hook) Key() Key { return Key{KindHook, h.Dev} }

func (h *Hook) String() string { return h.Dev + " as " + string(h.Role) }

// Remote is a prefix that lives on another node.
type Remote struct {
	By
	Prefix  netip.Prefix
	Via     netip.Addr // the node's underlay address
	Tunnel  bool       // VXLAN; else straight to Via on the underlay's device
	OnLink  bool       // Via is in a subnet of that device: a tunnelled packet needs no route lookup either
	VTEPMAC model.MAC  // inner destination of tunnelled packets
	MTU     int        // largest inner packet, bytes; what is larger goes through the stack for an ICMP error
}

// Key implements Row.
func (r *Remote) Key() Key { return Key{KindRemote, r.Prefix.String()} }

func (r *Remote) String() string {
	how := "direct"
	if r.Tunnel {
		how = text("tunnel mac", r.VTEPMAC.String(), flag("onlink", r.OnLink))
	}
	return fmt.Sprintf("%s via %s %s mtu %d", r.Prefix, r.Via, how, r.MTU)
}

// Local is a pod of this node: its programs on the host side of its link, its addresses, and what it may send from.
type Local struct {
	By
	HostIf string
	MAC    model.MAC
	Addrs  []netip.Addr
	Shaped bool // ingress is shaped: deliver through the host side's queue, not straight into the pod
}

// Key implements Row.
func (l *Local) Key() Key { return Key{KindLocal, l.HostIf} }

func (l *Local) String() string {
	return text(l.HostIf, "id", l.By.Name, "mac", l.MAC.String(), list("addr", l.Addrs), flag("shaped", l.Shaped))
}

// Problem says why an intent object, though valid by itself, leads to nothing: no driver applies it,
// its status is always Error, and so it is seen where people look.
type Problem struct {
	By
	Name   string // unique for the owner
	Reason string // a sentence that names the object and the field
}

// Key implements Row.
func (p *Problem) Key() Key { return Key{KindProblem, p.By.String() + "/" + p.Name} }

func (p *Problem) String() string { return p.Name + ": " + p.Reason }
