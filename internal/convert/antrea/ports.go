package antrea

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"

	"weft/internal/model"
)

// protoIGMP is the number of IGMP, which has no ports.
const protoIGMP = 2

// portSpec is an element of ports.
type portSpec struct {
	Protocol      *string      `json:"protocol"`
	Port          *intOrString `json:"port"`
	EndPort       *int64       `json:"endPort"`
	SourcePort    *int64       `json:"sourcePort"`
	SourceEndPort *int64       `json:"sourceEndPort"`
}

// protocolSpec is an element of protocols.
type protocolSpec struct {
	ICMP *struct {
		Type *int64 `json:"icmpType"`
		Code *int64 `json:"icmpCode"`
	} `json:"icmp"`
	IGMP *struct {
		Type  *int64 `json:"igmpType"`
		Group string `json:"groupAddress"`
	} `json:"igmp"`
}

// intOrString is a number or a name.
type intOrString struct {
	number int64
	name   string
	named  bool // it was written as a string
}

// UnmarshalJSON implements json.Unmarshaler.
func (v *intOrString) UnmarshalJSON(data []byte) error {
	if json.Unmarshal(data, &v.number) == nil {
		return nil
	}
	if json.Unmarshal(data, &v.name) == nil {
		v.named = true
		return nil
	}
	return fmt.Errorf("%s is neither a number nor a name", data)
}

// ports converts ports and protocols, of which one must match. In a rule that denies, one that is not understood may be any.
func (r *ruleState) ports() {
	if len(r.spec.Ports)+len(r.spec.Protocols) == 0 {
		return
	}
	whole := true
	out := []model.L4{}
	for i, raw := range r.spec.Ports {
		l, ok := r.port(fmt.Sprintf("%s.ports[%d]", r.field, i), raw)
		if whole = whole && ok; ok {
			out = append(out, l)
		}
	}
	for i, raw := range r.spec.Protocols {
		l, ok := r.protocol(fmt.Sprintf("%s.protocols[%d]", r.field, i), raw)
		whole = whole && ok
		out = append(out, l...)
	}
	if whole || !r.denies() {
		r.out.L4 = out
	}
}

// port converts an element of ports; if it is not understood, the second result is false and the mistake noted.
func (r *ruleState) port(field string, raw json.RawMessage) (out model.L4, ok bool) {
	var s portSpec
	if !r.decode(field, raw, &s) {
		r.failed(field)
		return out, false
	}
	out.Proto, ok = model.ProtoTCP, true
	if s.Protocol != nil {
		switch *s.Protocol {
		case "TCP":
		case "UDP":
			out.Proto = model.ProtoUDP
		case "SCTP":
			out.Proto = model.ProtoSCTP
		default:
			r.fail(field+".protocol", "%q is not one of TCP, UDP, SCTP", *s.Protocol)
			ok = false
		}
	}
	var first *int64
	switch {
	case s.Port == nil:
	case !s.Port.named:
		first = &s.Port.number
	case s.EndPort != nil:
		r.fail(field+".endPort", "needs a port that is a number")
		return out, false
	case !isPortName(s.Port.name):
		r.fail(field+".port", "%q is not the name of a port: at most 15 small letters, digits and '-', with a letter", s.Port.name)
		return out, false
	default:
		out.Named = []string{s.Port.name}
	}
	var fine bool
	out.Ports, fine = r.portRange(field, "port", "endPort", first, s.EndPort)
	ok = ok && fine
	out.SrcPorts, fine = r.portRange(field, "sourcePort", "sourceEndPort", s.SourcePort, s.SourceEndPort)
	return out, ok && fine
}

// portRange converts a range of ports; both ends are optional, the last needs the first.
func (r *ruleState) portRange(field, name, endName string, first, last *int64) ([]model.PortRange, bool) {
	if first == nil {
		if last != nil {
			r.fail(field+"."+endName, "needs %s", name)
		}
		return nil, last == nil
	}
	if last == nil {
		last = first
	}
	switch {
	case *first < 1 || *first > 65535:
		r.fail(field+"."+name, "%d is not in 1..65535", *first)
	case *last > 65535:
		r.fail(field+"."+endName, "%d is not in 1..65535", *last)
	case *last < *first:
		r.fail(field+"."+endName, "%d is less than %s, %d", *last, name, *first)
	default:
		return []model.PortRange{{First: uint16(*first), Last: uint16(*last)}}, true
	}
	return nil, false
}

// isPortName says whether a container's port can have the name (IANA_SVC_NAME, as Kubernetes has it).
func isPortName(s string) bool {
	const letters, others = "abcdefghijklmnopqrstuvwxyz", "0123456789-"
	return s != "" && len(s) <= 15 && strings.Trim(s, letters+others) == "" && strings.ContainsAny(s, letters)
}

// protocol converts an element of protocols. The second result is false if it is not all understood; what is returned is then
// all that it may be if the rule denies, and nothing otherwise.
func (r *ruleState) protocol(field string, raw json.RawMessage) ([]model.L4, bool) {
	var s protocolSpec
	switch ok := r.decode(field, raw, &s); {
	case !ok:
		r.failed(field)
		return nil, false
	case (s.ICMP == nil) == (s.IGMP == nil):
		r.fail(field, "needs one of icmp, igmp")
		return nil, false
	case s.ICMP != nil:
		return r.icmp(field+".icmp", s.ICMP.Type, s.ICMP.Code)
	}
	r.noAnswer(field + ".igmp")
	if s.IGMP.Type == nil && s.IGMP.Group == "" {
		return []model.L4{{Proto: protoIGMP}}, true
	}
	if s.IGMP.Group != "" {
		if a, err := netip.ParseAddr(s.IGMP.Group); err != nil || !a.IsMulticast() {
			r.fail(field+".igmp.groupAddress", "%q is not a multicast address", s.IGMP.Group)
		}
	}
	r.later(field + ".igmp")
	if r.denies() {
		return []model.L4{{Proto: protoIGMP}}, true
	}
	return nil, true
}

// icmp converts icmp, which means ICMP and ICMPv6 alike, as upstream.
func (r *ruleState) icmp(field string, typ, code *int64) ([]model.L4, bool) {
	for _, v := range []struct {
		name  string
		value *int64
	}{{"icmpType", typ}, {"icmpCode", code}} {
		if v.value != nil && (*v.value < 0 || *v.value > 255) {
			r.fail(field+"."+v.name, "%d is not in 0..255", *v.value)
			return nil, false
		}
	}
	c := -1
	if code != nil {
		c = int(*code)
	}
	var types []model.PortRange
	switch {
	case typ != nil:
		types = []model.PortRange{model.ICMPTypes(uint8(*typ), c)}
	case code != nil: // of every type
		for t := range 256 {
			types = append(types, model.ICMPTypes(uint8(t), c))
		}
	}
	return []model.L4{{Proto: model.ProtoICMP, Ports: types}, {Proto: model.ProtoICMPv6, Ports: types}}, true
}
