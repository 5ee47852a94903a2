package cilium

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"weft/internal/model"
)

// maxPorts is how many ports an element of toPorts may have, and how many types one of icmps.
const maxPorts = 40

// readPorts reads toPorts. An empty list is as good as none; an element without ports matches nothing.
func (r *rule) readPorts(f *fields) {
	items, there := f.list("toPorts", &r.bad.ports)
	if there && r.bad.ports != "" {
		r.ports = []portEntry{}
		return
	}
	for i, raw := range items {
		r.ports = append(r.ports, r.portEntry(fmt.Sprintf("%s[%d]", f.path("toPorts"), i), raw))
	}
}

func (r *rule) portEntry(at string, raw json.RawMessage) portEntry {
	out := portEntry{at: at}
	f := r.fields(at, raw, &r.bad.ports)
	items, _ := f.list("ports", &r.bad.ports)
	if len(items) > maxPorts {
		r.mistake(&r.bad.ports, f.path("ports"), "has %d elements, of which Cilium takes %d", len(items), maxPorts)
	}
	ports := make([]port, len(items))
	for i, raw := range items {
		ports[i] = r.port(fmt.Sprintf("%s[%d]", f.path("ports"), i), raw)
		out.proto = append(out.proto, ports[i].means()...)
	}
	if !r.deny {
		out.narrow = r.readNarrow(f, ports)
	}
	unknown := ""
	if f.rest(&unknown); unknown == "" {
		return out
	}
	note(&r.bad.rest, unknown)
	note(&r.narrow, unknown)
	if len(items) == 0 {
		note(&r.bad.ports, unknown) // it may be the ports
	}
	return out
}

// port is one element of ports.
type port struct {
	protocols   []int  // nil: not understood
	name        string // "": a number
	first, last uint16 // 0: all
}

// means is what it means in the model.
func (p *port) means() []model.L4 {
	out := make([]model.L4, len(p.protocols))
	for i, n := range p.protocols {
		out[i].Proto = n
		switch {
		case p.name != "":
			out[i].Named = []string{p.name}
		case p.last != 0:
			out[i].Ports = []model.PortRange{{First: p.first, Last: p.last}}
		}
	}
	return out
}

// port reads a port.
func (r *rule) port(at string, raw json.RawMessage) port {
	var in struct {
		Port     string `json:"port"`
		EndPort  *int64 `json:"endPort"`
		Protocol string `json:"protocol"`
	}
	if absent(raw) {
		r.mistake(&r.bad.ports, at, "is null")
		return port{}
	}
	if !r.decode(at, raw, &in, &r.bad.ports, &r.bad.rest) {
		return port{}
	}
	protocols, portless := protocols(in.Protocol)
	out := port{protocols: protocols}
	switch {
	case protocols == nil:
		r.mistake(&r.bad.ports, at+".protocol", "%q is not a protocol: TCP, UDP, SCTP, ANY, VRRP, IGMP, GRE, IPIP, IPv6, ESP or AH", in.Protocol)
	case portless && in.Port != "" && in.Port != "0":
		r.mistake(&r.bad.ports, at+".port", "protocol %s has no ports", in.Protocol)
	case portless:
	case in.Port == "":
		r.mistake(&r.bad.ports, at+".port", "is missing")
	case portName(in.Port):
		out.name = strings.ToLower(in.Port)
		if in.EndPort != nil && *in.EndPort != 0 {
			r.mistake(&r.bad.ports, at+".endPort", "needs a port that is a number, not a name")
		}
	default:
		// As Cilium reads it: 010 is octal.
		n, err := strconv.ParseUint(in.Port, 0, 16)
		if err != nil {
			r.mistake(&r.bad.ports, at+".port", "%q is neither a number in 0..65535 nor a name of up to 15 letters, digits and single -", in.Port)
			break
		}
		out.first, out.last = uint16(n), uint16(n)
		if in.EndPort == nil || *in.EndPort == 0 {
			break
		}
		if end := *in.EndPort; end < int64(n) || end > 65535 {
			r.mistake(&r.bad.ports, at+".endPort", "%d is not in %d..65535", end, n)
		} else {
			out.last = uint16(end)
		}
	}
	return out
}

// protocols returns the numbers that a protocol's name stands for, nil if it is none. ICMP is not: that is what icmps is for.
func protocols(name string) (numbers []int, portless bool) {
	switch strings.ToUpper(name) {
	case "", "ANY":
		return []int{model.ProtoTCP, model.ProtoUDP, model.ProtoSCTP}, false
	case "TCP":
		return []int{model.ProtoTCP}, false
	case "UDP":
		return []int{model.ProtoUDP}, false
	case "SCTP":
		return []int{model.ProtoSCTP}, false
	}
	n, ok := map[string]int{"IGMP": 2, "IPIP": 4, "IPV6": 41, "GRE": 47, "ESP": 50, "AH": 51, "VRRP": 112}[strings.ToUpper(name)]
	if !ok {
		return nil, false
	}
	return []int{n}, true
}

// portName reports whether it is a service's name (RFC 6335): also 0x50 is one.
func portName(s string) bool {
	const letters, digits = "abcdefghijklmnopqrstuvwxyz", "0123456789"
	low := strings.ToLower(s)
	return len(s) <= 15 && strings.Trim(low, letters+digits+"-") == "" && strings.ContainsAny(low, letters) &&
		!strings.Contains(s, "--") && strings.Trim(s, "-") == s
}

// readICMPs reads icmps.
func (r *rule) readICMPs(f *fields) {
	items, there := f.list("icmps", &r.bad.ports)
	if len(items) == 0 {
		if there && r.bad.ports != "" {
			r.icmps = []model.L4{}
		}
		return
	}
	r.icmps = []model.L4{}
	if len(r.ports) > 0 {
		r.mistake(&r.bad.ports, f.path("icmps"), "cannot be in one rule with toPorts")
	}
	for i, raw := range items {
		at := fmt.Sprintf("%s[%d]", f.path("icmps"), i)
		var in struct {
			Fields []json.RawMessage `json:"fields"`
		}
		r.decode(at, raw, &in, &r.bad.ports, &r.bad.rest)
		if len(in.Fields) > maxPorts {
			r.mistake(&r.bad.ports, at+".fields", "has %d elements, of which Cilium takes %d", len(in.Fields), maxPorts)
		}
		for j, raw := range in.Fields {
			if match, ok := r.icmp(fmt.Sprintf("%s.fields[%d]", at, j), raw); ok {
				r.icmps = append(r.icmps, match)
			}
		}
	}
}

// icmp reads a type of ICMP.
func (r *rule) icmp(at string, raw json.RawMessage) (model.L4, bool) {
	var in struct {
		Family string          `json:"family"`
		Type   json.RawMessage `json:"type"`
	}
	out := model.L4{Proto: model.ProtoICMP}
	if !r.decode(at, raw, &in, &r.bad.ports, &r.bad.rest) {
		return out, false
	}
	names := icmpNames
	switch in.Family {
	case "", "IPv4":
	case "IPv6":
		out.Proto, names = model.ProtoICMPv6, icmpv6Names
	default:
		r.mistake(&r.bad.ports, at+".family", "%q is not IPv4 or IPv6", in.Family)
		return out, false
	}
	word := strings.Trim(string(in.Type), `"`)
	n, err := strconv.ParseUint(word, 10, 8)
	known, ok := names()[word]
	switch {
	case absent(in.Type):
		r.mistake(&r.bad.ports, at+".type", "is missing")
		return out, false
	case ok:
		n = uint64(known)
	case err != nil:
		r.mistake(&r.bad.ports, at+".type", "%s is neither a number in 0..255 nor the name of a type of that family", in.Type)
		return out, false
	}
	out.Ports = []model.PortRange{model.ICMPTypes(uint8(n), -1)}
	return out, true
}

// icmpNames are the types of ICMP that have names.
func icmpNames() map[string]uint8 {
	return map[string]uint8{
		"EchoReply": 0, "DestinationUnreachable": 3, "Redirect": 5, "Echo": 8, "EchoRequest": 8, "RouterAdvertisement": 9,
		"RouterSelection": 10, "TimeExceeded": 11, "ParameterProblem": 12, "Timestamp": 13, "TimestampReply": 14,
		"Photuris": 40, "ExtendedEchoRequest": 42, "ExtendedEchoReply": 43,
	}
}

// icmpv6Names are those of ICMPv6.
func icmpv6Names() map[string]uint8 {
	return map[string]uint8{
		"DestinationUnreachable": 1, "PacketTooBig": 2, "TimeExceeded": 3, "ParameterProblem": 4, "EchoRequest": 128, "EchoReply": 129,
		"MulticastListenerQuery": 130, "MulticastListenerReport": 131, "MulticastListenerDone": 132, "RouterSolicitation": 133,
		"RouterAdvertisement": 134, "NeighborSolicitation": 135, "NeighborAdvertisement": 136, "RedirectMessage": 137,
		"RouterRenumbering": 138, "ICMPNodeInformationQuery": 139, "ICMPNodeInformationResponse": 140,
		"InverseNeighborDiscoverySolicitation": 141, "InverseNeighborDiscoveryAdvertisement": 142,
		"HomeAgentAddressDiscoveryRequest": 144, "HomeAgentAddressDiscoveryReply": 145, "MobilePrefixSolicitation": 146,
		"MobilePrefixAdvertisement": 147, "DuplicateAddressRequestCodeSuffix": 157, "DuplicateAddressConfirmationCodeSuffix": 158,
		"ExtendedEchoRequest": 160, "ExtendedEchoReply": 161,
	}
}
