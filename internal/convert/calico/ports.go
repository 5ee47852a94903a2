package calico

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"weft/internal/model"
	"weft/internal/netset"
)

// ports is a list of ports: numbers, ranges and names of which one must match.
type ports struct {
	ranges []model.PortRange
	named  []string
	given  bool // there is a list with something in it
}

// ports reads a list of ports. Of a list that must match, nothing is kept if a part of it is not understood; of one that
// must not, what is understood.
func (r *ruleReader) ports(field string, raw json.RawMessage, positive bool) ports {
	items, ok := r.list(field, raw)
	if !ok {
		r.mark(field)
	}
	out := ports{given: len(items) > 0}
	for i, item := range items {
		rng, name, err := parsePort(item)
		switch {
		case err != nil:
			r.fail(fmt.Sprintf("%s[%d]", field, i), "%v", err)
			ok = false
		case name != "":
			out.named = append(out.named, name)
		default:
			out.ranges = append(out.ranges, rng)
		}
	}
	if positive && !ok {
		return ports{}
	}
	return out
}

// parsePort reads a number, the string of one, a range "first:last", or a name.
func parsePort(raw json.RawMessage) (rng model.PortRange, name string, err error) {
	text := string(raw)
	if strings.HasPrefix(text, `"`) {
		if err := json.Unmarshal(raw, &text); err != nil {
			return rng, "", err
		}
	} else if _, err := strconv.ParseUint(text, 10, 16); err != nil {
		return rng, "", fmt.Errorf("%s is not a port number, a range \"first:last\" or a name", clip(text))
	}
	first, last, isRange := strings.Cut(text, ":")
	if !isRange {
		if !digits(text) {
			if !portName(text) {
				return rng, "", fmt.Errorf("%q is not a port number, a range \"first:last\" or a name", clip(text))
			}
			return rng, text, nil
		}
		last = first
	}
	if rng.First, err = portNumber(first); err != nil {
		return rng, "", err
	}
	if rng.Last, err = portNumber(last); err != nil {
		return rng, "", err
	}
	if rng.First > rng.Last {
		return rng, "", fmt.Errorf("the range %s is reversed", text)
	}
	return rng, "", nil
}

func portNumber(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || !digits(s) {
		return 0, fmt.Errorf("%q is not a port from 1 to 65535", clip(s))
	}
	return uint16(n), nil
}

func digits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

func portName(s string) bool {
	for i := range len(s) {
		if !labelCharacter(s[i]) || s[i] == '/' {
			return false
		}
	}
	return s != "" && len(s) <= 128
}

// clip shortens what a message repeats.
func clip(s string) string {
	if len(s) > 40 {
		return s[:40] + "..."
	}
	return s
}

// parseProtocol reads a protocol, a name or a number from 1 to 255; ProtoAny if there is none.
func parseProtocol(raw json.RawMessage) (p int, ok bool) {
	if absent(raw) {
		return model.ProtoAny, true
	}
	text := string(raw)
	if strings.HasPrefix(text, `"`) && json.Unmarshal(raw, &text) != nil {
		return model.ProtoAny, false
	}
	switch strings.ToLower(text) {
	case "tcp":
		return model.ProtoTCP, true
	case "udp":
		return model.ProtoUDP, true
	case "icmp":
		return model.ProtoICMP, true
	case "icmpv6":
		return model.ProtoICMPv6, true
	case "sctp":
		return model.ProtoSCTP, true
	case "udplite":
		return model.ProtoUDPLite, true
	}
	if n, err := strconv.ParseUint(text, 10, 8); err == nil && n > 0 {
		return int(n), true
	}
	return model.ProtoAny, false
}

// protocol reads protocol or notProtocol; ProtoAny if it is absent or wrong.
func (r *ruleReader) protocol(name string, raw json.RawMessage) int {
	field := r.field + "." + name
	p, ok := parseProtocol(raw)
	switch {
	case !ok:
		r.fail(field, "%s is not TCP, UDP, SCTP, UDPLite, ICMP, ICMPv6 or a number from 1 to 255", clip(string(raw)))
	case p == model.ProtoICMP && r.family == netset.V6:
		r.fail(field, "ICMP is a protocol of IPv4, and ipVersion is 6")
	case p == model.ProtoICMPv6 && r.family == netset.V4:
		r.fail(field, "ICMPv6 is a protocol of IPv6, and ipVersion is 4")
	}
	return p
}

// icmp reads icmp or notICMP: the range of ports that stands for it; nil if it is absent, empty or wrong.
func (r *ruleReader) icmp(name string, raw json.RawMessage) []model.PortRange {
	field := r.field + "." + name
	before := len(r.errs)
	s := into[struct {
		Type *int `json:"type"`
		Code *int `json:"code"`
	}](r, field, raw)
	switch {
	case len(r.errs) > before, s.Type == nil && s.Code == nil:
		return nil
	case s.Type == nil:
		r.fail(field+".code", "needs a type")
		return nil
	case *s.Type < 0 || *s.Type > 254:
		r.fail(field+".type", "%d is not in 0..254", *s.Type)
		return nil
	case s.Code == nil:
		return []model.PortRange{model.ICMPTypes(uint8(*s.Type), -1)}
	case *s.Code < 0 || *s.Code > 255:
		r.fail(field+".code", "%d is not in 0..255", *s.Code)
		return nil
	}
	return []model.PortRange{model.ICMPTypes(uint8(*s.Type), *s.Code)}
}

// transport puts together what a rule wants of protocols and ports; nil: nothing.
func (r *ruleReader) transport(s *ruleSpec, src, dst entity) []model.L4 {
	l := model.L4{Proto: r.protocol("protocol", s.Protocol), Service: dst.service}
	if p := r.protocol("notProtocol", s.NotProtocol); p != model.ProtoAny {
		l.NotProto = []int{p}
	}
	r.setPorts(&l, src, dst, s.Protocol)
	if types := r.icmp("icmp", s.ICMP); types != nil {
		if l.Proto == model.ProtoICMP || l.Proto == model.ProtoICMPv6 {
			l.Ports = types
		} else {
			r.fail(r.field+".icmp", "needs protocol ICMP or ICMPv6")
		}
	}
	var out []model.L4
	if types := r.icmp("notICMP", s.NotICMP); types != nil {
		// Without a protocol it excludes packets of ICMP alone, of both families, and lets all others match.
		for _, p := range []int{model.ProtoICMP, model.ProtoICMPv6} {
			switch l.Proto {
			case p:
				l.NotPorts = types
			case model.ProtoAny:
				only := l
				only.Proto, only.NotPorts = p, types
				out = append(out, only)
			}
		}
		if l.Proto == model.ProtoAny {
			l.NotProto = append([]int{model.ProtoICMP, model.ProtoICMPv6}, l.NotProto...)
		}
	}
	if l.Proto == model.ProtoAny && l.NotProto == nil && l.Service == "" {
		return nil
	}
	return append([]model.L4{l}, out...)
}

// setPorts sets the ports of both sides, which need a protocol that has ports.
func (r *ruleReader) setPorts(l *model.L4, src, dst entity, protocol json.RawMessage) {
	switch l.Proto {
	case model.ProtoTCP, model.ProtoUDP, model.ProtoSCTP:
		l.Ports, l.Named = dst.ports.ranges, dst.ports.named
		l.NotPorts, l.NotNamed = dst.notPorts.ranges, dst.notPorts.named
		l.SrcPorts, l.NotSrcPorts = src.ports.ranges, src.notPorts.ranges
		return
	case model.ProtoAny:
		if !absent(protocol) {
			return // wrong, and reported
		}
	}
	for _, e := range []entity{src, dst} {
		if e.ports.given {
			r.fail(e.field+".ports", "needs protocol TCP, UDP or SCTP")
		}
		if e.notPorts.given {
			r.fail(e.field+".notPorts", "needs protocol TCP, UDP or SCTP")
		}
	}
}
