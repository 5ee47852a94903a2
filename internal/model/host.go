package model

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	"weft/internal/selector"
)

// HostEndpoint is an interface of a node that policies select (Calico): what the node's own processes send and get by it.
type HostEndpoint struct {
	Ref       Ref
	Node      string
	Interface string       // "*": every one that no other host endpoint is for; "": the one that has one of Addrs
	Addrs     []netip.Addr // by which rules of policies know it
	Labels    selector.Map
	Ports     []Port
	Profiles  []string // with none, what no policy decides is denied
}

// Key implements Object.
func (h *HostEndpoint) Key() Key { return Key{KindHostEndpoint, h.Ref.path()} }

// Validate implements Object.
func (h *HostEndpoint) Validate() error {
	if h.Node == "" {
		return fmt.Errorf("%s: spec.node is missing", h.Ref)
	}
	return nil
}

// HostEndpoints are those of a node, in the order of their names.
type HostEndpoints []*HostEndpoint

// HostEndpointsOf returns the host endpoints of a node.
func HostEndpointsOf(s Snapshot, node string) HostEndpoints {
	var hs HostEndpoints
	for h := range All[*HostEndpoint](s, KindHostEndpoint) {
		if h.Node == node {
			hs = append(hs, h)
		}
	}
	slices.SortFunc(hs, func(a, b *HostEndpoint) int { return strings.Compare(a.Ref.Name, b.Ref.Name) })
	return hs
}

// On returns the host endpoint that a device with these addresses belongs to, nil: none. Of several the first counts, but one for all
// interfaces is only for those that no other is for. Of another node the names of devices are not known: "".
func (hs HostEndpoints) On(dev string, addrs []netip.Addr) *HostEndpoint {
	for _, h := range hs {
		byAddr := h.Interface == "" || h.Interface != "*" && dev == ""
		if h.Interface == dev && dev != "" || byAddr && slices.ContainsFunc(h.Addrs, func(a netip.Addr) bool { return slices.Contains(addrs, a) }) {
			return h
		}
	}
	if i := slices.IndexFunc(hs, func(h *HostEndpoint) bool { return h.Interface == "*" }); i >= 0 {
		return hs[i]
	}
	return nil
}

// OnUnderlay is On for the device by which a node reaches others.
func (hs HostEndpoints) OnUnderlay(s Snapshot, n *Node) *HostEndpoint {
	if d := UnderlayOf(s, n); d != nil {
		return hs.On(d.Name, append(d.Hosts(), n.Addrs...))
	}
	return hs.On("", n.Addrs)
}

// Policies returns the policies that a host endpoint has without an object: failsafe ports, which are asked before all others; the
// profile projectcalico-default-allow; and at the end, that what no profile allows is denied.
func (h *HostEndpoint) Policies() []*Policy {
	end := ProfilePolicy(h.Ref)
	end.Subject, end.Tie = h.itself(), ""
	allow := ProfilePolicy(Ref{Group: h.Ref.Group, Kind: "Profile", Name: "projectcalico-default-allow"})
	allow.Ingress.Rules = []Rule{{Field: "spec.ingress[0]", Verdict: VerdictAllow}}
	allow.Egress.Rules = []Rule{{Field: "spec.egress[0]", Verdict: VerdictAllow}}
	return []*Policy{h.failsafes(), allow, end}
}

// itself selects the host endpoint.
func (h *HostEndpoint) itself() *selector.Expr {
	return selector.AllOf(selector.Equal(selector.Kind, selector.KindHostEndpoint), selector.Equal(selector.Name, h.Ref.Name))
}

// ProfilePolicy is the policy that a profile is for the host endpoints that name it: asked after all tiers, where what no
// profile allows is denied.
func ProfilePolicy(ref Ref) *Policy {
	return &Policy{
		Ref: ref, Tier: TierRef{Name: "profiles", Order: math.Inf(1)}, Tie: ref.Name, Order: math.Inf(1),
		Subject: selector.AllOf(selector.Equal(selector.Kind, selector.KindHostEndpoint), selector.Exists(selector.Profile+ref.Name)),
		Ingress: &Section{Isolates: true}, Egress: &Section{Isolates: true},
	}
}

// failsafes are the ports that no policy closes on a host endpoint, those that Calico has unless its FelixConfiguration says
// otherwise: SSH, DHCP, DNS, BGP, etcd, Typha and the API server, toward the host and from it.
func (h *HostEndpoint) failsafes() *Policy {
	return &Policy{
		Ref:     Ref{Group: h.Ref.Group, Kind: "FelixConfiguration", Name: "default"},
		Tier:    TierRef{Name: "failsafe", Order: math.Inf(-1)},
		Subject: selector.Equal(selector.Kind, selector.KindHostEndpoint),
		Ingress: failsafe("spec.failsafeInboundHostPorts", tcp(22), udp(68)),
		Egress:  failsafe("spec.failsafeOutboundHostPorts", udp(53), udp(67)),
	}
}

func tcp(port uint16) L4 { return L4{Proto: ProtoTCP, Ports: []PortRange{{First: port, Last: port}}} }

func udp(port uint16) L4 { return L4{Proto: ProtoUDP, Ports: []PortRange{{First: port, Last: port}}} }

// failsafe is a direction: its own ports, and those of both.
func failsafe(field string, own ...L4) *Section {
	s := &Section{}
	for i, l := range append(own, tcp(179), tcp(2379), tcp(2380), tcp(5473), tcp(6443), tcp(6666), tcp(6667)) {
		s.Rules = append(s.Rules, Rule{Index: i, Field: fmt.Sprintf("%s[%d]", field, i), Verdict: VerdictAllow, L4: []L4{l}})
	}
	return s
}
