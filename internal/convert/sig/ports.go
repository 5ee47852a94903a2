package sig

import (
	"encoding/json"
	"fmt"

	"weft/internal/convert/object"
	"weft/internal/model"
)

// readPorts reads a rule's ports or protocols. Known says whether the dialect has them.
func (r *rule) readPorts(name string, known bool, raw json.RawMessage, each func(field string, raw json.RawMessage) []model.L4) {
	if object.Absent(raw) {
		return
	}
	field := r.Field + "." + name
	errs := len(r.bad.Errs)
	if !known {
		r.bad.Wrap(field, &object.UnknownField{Field: r.Field, Name: name})
		return // the rule denies every port, if it denies
	}
	var list []json.RawMessage
	r.bad.Decode(field, raw, &list)
	if len(list) == 0 && len(r.bad.Errs) == errs {
		r.bad.Add(field, "must not be empty")
	}
	for i, data := range list {
		at := fmt.Sprintf("%s[%d]", field, i)
		before := len(r.bad.Errs)
		l := each(at, data)
		if l == nil && len(r.bad.Errs) == before {
			r.bad.Add(at, "want exactly one of its fields")
		}
		r.L4 = append(r.L4, l...)
	}
	r.portsBad = r.portsBad || len(r.bad.Errs) > errs
}

// port reads {portNumber, portRange, namedPort}.
func (r *rule) port(field string, raw json.RawMessage) []model.L4 {
	type numbers struct {
		Protocol *string `json:"protocol"`
		Port     *int64  `json:"port"`
		Start    *int64  `json:"start"`
		End      *int64  `json:"end"`
	}
	var in struct {
		PortNumber json.RawMessage `json:"portNumber"`
		PortRange  json.RawMessage `json:"portRange"`
		NamedPort  *string         `json:"namedPort"`
	}
	if !r.bad.Decode(field, raw, &in) || !one(!object.Absent(in.PortNumber), !object.Absent(in.PortRange), in.NamedPort != nil) {
		return nil
	}
	if in.NamedPort != nil {
		return r.named(field+".namedPort", *in.NamedPort)
	}
	var n numbers
	at, first, last := field+".portRange", "start", "end"
	if data := in.PortRange; !object.Absent(data) {
		if !r.bad.Decode(at, data, &n) {
			return nil
		}
	} else {
		at, first, last = field+".portNumber", "port", "port"
		if !r.bad.Decode(at, in.PortNumber, &n) {
			return nil
		}
		n.Start, n.End = n.Port, n.Port
	}
	protocol := "TCP"
	if n.Protocol != nil {
		protocol = *n.Protocol
	}
	number, ok := map[string]int{"TCP": model.ProtoTCP, "UDP": model.ProtoUDP, "SCTP": model.ProtoSCTP}[protocol]
	if !ok {
		r.bad.Add(at+".protocol", "%q is not TCP, UDP or SCTP", protocol)
		return nil
	}
	return r.ports(at, number, first, n.Start, last, n.End)
}

// protocol reads {tcp, udp, sctp, destinationNamedPort}.
func (r *rule) protocol(field string, raw json.RawMessage) []model.L4 {
	var in struct {
		TCP   json.RawMessage `json:"tcp"`
		UDP   json.RawMessage `json:"udp"`
		SCTP  json.RawMessage `json:"sctp"`
		Named *string         `json:"destinationNamedPort"`
	}
	if !r.bad.Decode(field, raw, &in) || !one(!object.Absent(in.TCP), !object.Absent(in.UDP), !object.Absent(in.SCTP), in.Named != nil) {
		return nil
	}
	if in.Named != nil {
		return r.named(field+".destinationNamedPort", *in.Named)
	}
	for _, p := range []struct {
		name   string
		raw    json.RawMessage
		number int
	}{{"tcp", in.TCP, model.ProtoTCP}, {"udp", in.UDP, model.ProtoUDP}, {"sctp", in.SCTP, model.ProtoSCTP}} {
		if !object.Absent(p.raw) {
			return r.destination(field+"."+p.name, p.raw, p.number)
		}
	}
	return nil
}

// destination reads {destinationPort: {number | range: {start, end}}}. Without a port there would be an attribute of the protocol that nobody
// here knows.
func (r *rule) destination(field string, raw json.RawMessage, number int) []model.L4 {
	var in struct {
		DestinationPort *struct {
			Number *int64 `json:"number"`
			Range  *struct {
				Start *int64 `json:"start"`
				End   *int64 `json:"end"`
			} `json:"range"`
		} `json:"destinationPort"`
	}
	if !r.bad.Decode(field, raw, &in) {
		return nil
	}
	p := in.DestinationPort
	field += ".destinationPort"
	switch {
	case p == nil:
		r.bad.Add(field, "is missing")
		return nil
	case !one(p.Number != nil, p.Range != nil):
		r.bad.Add(field, "want exactly one of number and range")
		return nil
	case p.Number != nil:
		return r.ports(field, number, "number", p.Number, "number", p.Number)
	}
	return r.ports(field+".range", number, "start", p.Range.Start, "end", p.Range.End)
}

// ports makes a range of ports of a protocol.
func (r *rule) ports(field string, protocol int, first string, start *int64, last string, end *int64) []model.L4 {
	errs := len(r.bad.Errs)
	for _, b := range []struct {
		name  string
		value *int64
	}{{first, start}, {last, end}} {
		switch at := field + "." + b.name; {
		case b.value == nil:
			r.bad.Add(at, "is missing")
		case *b.value < 1 || *b.value > 65535:
			r.bad.Add(at, "%d is not in 1..65535", *b.value)
		}
		if first == last {
			break
		}
	}
	if len(r.bad.Errs) > errs {
		return nil
	}
	if *end < *start {
		r.bad.Add(field, "%s %d is less than %s %d", last, *end, first, *start)
		return nil
	}
	return []model.L4{{Proto: protocol, Ports: []model.PortRange{{First: uint16(*start), Last: uint16(*end)}}}}
}

// named makes the ports of that name, of every protocol that has ports.
func (r *rule) named(field, name string) []model.L4 {
	switch {
	case name == "":
		r.bad.Add(field, "must not be empty")
		return nil
	case r.portless && !r.d.NamedPorts:
		r.bad.Add(field, "peers that are nodes, networks or domainNames have no named ports")
		return nil
	}
	var out []model.L4
	for _, p := range []int{model.ProtoTCP, model.ProtoUDP, model.ProtoSCTP} {
		out = append(out, model.L4{Proto: p, Named: []string{name}})
	}
	return out
}

// one reports whether exactly one of them is true.
func one(set ...bool) bool {
	n := 0
	for _, s := range set {
		if s {
			n++
		}
	}
	return n == 1
}
