package calico

import (
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"strconv"

	"weft/internal/convert/object"
	"weft/internal/model"
	"weft/internal/selector"
)

// profileKey + name is a label that host endpoints have of each of their profiles; the value is the profile's place among them.
const profileKey = "@profile:"

// hostEndpoint converts a HostEndpoint. One that cannot be said to be any interface of any node is not an object.
func hostEndpoint(o *object.Object) object.Result {
	r := &report{}
	spec, _ := structure[struct {
		Node      json.RawMessage `json:"node"`
		Interface json.RawMessage `json:"interfaceName"`
		IPs       json.RawMessage `json:"expectedIPs"`
		Profiles  json.RawMessage `json:"profiles"`
		Ports     json.RawMessage `json:"ports"`
	}](r, "spec", o.Spec)
	h := &model.HostEndpoint{Ref: o.Ref()}
	h.Node, _ = decode[string](r, "spec.node", spec.Node)
	h.Interface, _ = decode[string](r, "spec.interfaceName", spec.Interface)
	r.each("spec.expectedIPs", spec.IPs, func(at, text string) {
		if a, err := netip.ParseAddr(text); err != nil || a.Zone() != "" {
			r.errorf(at, "%q is not an IP address", clip(text))
		} else {
			h.Addrs = append(h.Addrs, a.Unmap())
		}
	})
	h.Profiles, _ = r.texts("spec.profiles", spec.Profiles)
	h.Ports = r.endpointPorts("spec.ports", spec.Ports)
	h.Labels = ownLabels(o.Meta.Labels)
	h.Labels[selector.Kind], h.Labels[selector.Name], h.Labels[selector.Node] = selector.KindHostEndpoint, o.Meta.Name, h.Node
	for _, p := range h.Ports {
		h.Labels[selector.Port+p.Protocol+"/"+p.Name] = strconv.Itoa(int(p.Port))
	}
	for i, name := range h.Profiles {
		h.Labels[profileKey+name] = strconv.Itoa(i)
	}
	usable := true
	if h.Node == "" {
		r.errorf("spec.node", "is missing")
		usable = false
	}
	if h.Interface == "" && len(h.Addrs) == 0 {
		r.errorf("spec.interfaceName", "or expectedIPs is missing")
		usable = false
	}
	if !usable {
		return object.Result{Err: r.err()}
	}
	return object.Result{Objects: []model.Object{h}, Err: r.err()}
}

// endpointPorts reads the named ports of a host endpoint; those that are not understood are left out.
func (r *report) endpointPorts(field string, raw json.RawMessage) []model.Port {
	var out []model.Port
	items, _ := r.list(field, raw)
	for i, item := range items {
		at := fmt.Sprintf("%s[%d]", field, i)
		s, ok := structure[struct {
			Name     string          `json:"name"`
			Protocol json.RawMessage `json:"protocol"`
			Port     uint16          `json:"port"`
		}](r, at, item)
		p, known := parseProtocol(s.Protocol)
		name := map[int]string{model.ProtoTCP: "tcp", model.ProtoUDP: "udp", model.ProtoSCTP: "sctp"}[p]
		switch {
		case !ok: // reported
		case !portName(s.Name):
			r.errorf(at+".name", "%q is not a port's name", clip(s.Name))
		case !known || name == "":
			r.errorf(at+".protocol", "is not one of TCP, UDP, SCTP")
		case s.Port == 0:
			r.errorf(at+".port", "is not in 1..65535")
		default:
			out = append(out, model.Port{Name: s.Name, Protocol: name, Port: s.Port})
		}
	}
	return out
}

// profilePolicy is the policy that a profile is for the host endpoints that name it: asked after all tiers, where what no
// profile allows is denied.
func profilePolicy(ref model.Ref) *model.Policy {
	return &model.Policy{
		Ref: ref, Tier: model.TierRef{Name: "profiles", Order: math.Inf(1)}, Tie: ref.Name, Order: math.Inf(1),
		Subject: selector.AllOf(selector.Equal(selector.Kind, selector.KindHostEndpoint), selector.Exists(profileKey+ref.Name)),
		Ingress: &model.Section{Isolates: true}, Egress: &model.Section{Isolates: true},
	}
}

// profile converts a Profile as far as host endpoints need it. Those of pods are namespaces and service accounts, which are known.
func profile(o *object.Object) object.Result {
	r := &report{}
	spec, ok := structure[struct {
		Ingress json.RawMessage `json:"ingress"`
		Egress  json.RawMessage `json:"egress"`
		Labels  json.RawMessage `json:"labelsToApply"`
	}](r, "spec", o.Spec)
	bad := ""
	if !ok {
		bad = blame("spec", r.errs[0])
	}
	p := profilePolicy(o.Ref())
	in, inOK := r.list("spec.ingress", spec.Ingress)
	eg, egOK := r.list("spec.egress", spec.Egress)
	if !inOK || !egOK {
		bad = "spec"
	}
	p.Ingress.Rules = rules(r, "ingress", "", bad, in)
	p.Egress.Rules = rules(r, "egress", "", bad, eg)
	if labels, _ := decode[map[string]string](r, "spec.labelsToApply", spec.Labels); len(labels) > 0 {
		r.unsupported = append(r.unsupported, "spec.labelsToApply")
	}
	p.Unsupported = r.unsupported
	return object.Result{Objects: []model.Object{p}, Err: r.err()}
}

// DefaultAllow is the profile projectcalico-default-allow, which Calico's automatic host endpoints name and which no object describes.
func DefaultAllow() *model.Policy {
	p := profilePolicy(model.Ref{Group: apiGroup, Kind: "Profile", Name: "projectcalico-default-allow"})
	p.Ingress.Rules = []model.Rule{{Field: "spec.ingress[0]", Verdict: model.VerdictAllow}}
	p.Egress.Rules = []model.Rule{{Field: "spec.egress[0]", Verdict: model.VerdictAllow}}
	return p
}

// Failsafe is a port that no policy closes on a host endpoint.
type Failsafe struct {
	Proto int          // IANA number
	Port  uint16       // of the connection's destination
	Net   netip.Prefix // in which the other end must be; the zero Prefix: anywhere
}

// DefaultFailsafes are those that Calico has unless its FelixConfiguration says otherwise: SSH, DHCP, DNS, BGP, etcd, Typha and the
// API server, toward the host and from it.
func DefaultFailsafes() (inbound, outbound []Failsafe) {
	udp := func(port uint16) Failsafe { return Failsafe{Proto: model.ProtoUDP, Port: port} }
	var both []Failsafe
	for _, port := range []uint16{179, 2379, 2380, 5473, 6443, 6666, 6667} {
		both = append(both, Failsafe{Proto: model.ProtoTCP, Port: port})
	}
	inbound = append([]Failsafe{{Proto: model.ProtoTCP, Port: 22}, udp(68)}, both...)
	outbound = append([]Failsafe{udp(53), udp(67)}, both...)
	return inbound, outbound
}

// Failsafes are policies of all host endpoints that are asked before all others, one for each hook but that for forwarded traffic.
//
// On HookUntracked, to allow means to leave the connection to tracking and to the other hooks, not to allow it without being tracked; that
// is why there, and only there, answers have rules as well.
func Failsafes(inbound, outbound []Failsafe) []*model.Policy {
	toHost := failsafeRules("failsafeInboundHostPorts", inbound, false)
	fromHost := failsafeRules("failsafeOutboundHostPorts", outbound, false)
	answersToHost := failsafeRules("failsafeOutboundHostPorts", outbound, true)
	answersFromHost := failsafeRules("failsafeInboundHostPorts", inbound, true)
	var out []*model.Policy
	for part, hook := range []model.Hook{model.HookWorkload, model.HookPreDNAT, model.HookUntracked} {
		p := &model.Policy{
			Ref:  model.Ref{Group: apiGroup, Kind: "FelixConfiguration", Name: "default"},
			Part: part, Hook: hook, Tier: model.TierRef{Name: "failsafe", Order: math.Inf(-1)},
			Subject: selector.Equal(selector.Kind, selector.KindHostEndpoint),
			Ingress: &model.Section{Rules: toHost},
		}
		if hook != model.HookPreDNAT {
			p.Egress = &model.Section{Rules: fromHost}
		}
		if hook == model.HookUntracked {
			p.Ingress = &model.Section{Rules: append(toHost[:len(toHost):len(toHost)], answersToHost...)}
			p.Egress = &model.Section{Rules: append(fromHost[:len(fromHost):len(fromHost)], answersFromHost...)}
		}
		out = append(out, p)
	}
	return out
}

// failsafeRules are the rules of a list of the FelixConfiguration, or those of the answers.
func failsafeRules(name string, list []Failsafe, answers bool) []model.Rule {
	var out []model.Rule
	for i, f := range list {
		r := model.Rule{Index: i, Field: fmt.Sprintf("spec.%s[%d]", name, i), Verdict: model.VerdictAllow}
		if f.Net.IsValid() {
			r.Peers = []model.Peer{{Nets: []netip.Prefix{f.Net}}}
		}
		port := []model.PortRange{{First: f.Port, Last: f.Port}}
		if answers {
			r.L4 = []model.L4{{Proto: f.Proto, SrcPorts: port}}
		} else {
			r.L4 = []model.L4{{Proto: f.Proto, Ports: port}}
		}
		out = append(out, r)
	}
	return out
}
