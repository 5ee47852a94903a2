package netpol

import (
	"encoding/json"
	"fmt"

	"weft/internal/convert/object"
)

// Dialect is what an API modelled on NetworkPolicy has that NetworkPolicy has not. The zero value is NetworkPolicy itself.
type Dialect struct {
	// CheckName, if not nil, says that egress peers may have domainNames, and what is wrong with one of them.
	CheckName func(string) error
}

// Parse reads the spec of an object.
func Parse(o *object.Object, d Dialect) *Spec {
	s := &Spec{Ref: o.Ref()}
	var raw struct {
		PodSelector json.RawMessage `json:"podSelector"`
		PolicyTypes json.RawMessage `json:"policyTypes"`
		Ingress     json.RawMessage `json:"ingress"`
		Egress      json.RawMessage `json:"egress"`
	}
	s.ReadHead(o.Spec, &raw, &raw.PodSelector, &raw.PolicyTypes)
	s.Ingress = ReadRules("spec.ingress", raw.Ingress, func(r *Rule, data json.RawMessage) {
		var in struct {
			From  json.RawMessage `json:"from"`
			Ports json.RawMessage `json:"ports"`
		}
		r.Decode(r.Field, data, &in)
		r.Ports = ReadPorts(r, in.Ports)
		r.Peers = ReadPeers(r, "from", in.From, Dialect{})
	})
	s.Egress = ReadRules("spec.egress", raw.Egress, func(r *Rule, data json.RawMessage) {
		var in struct {
			To    json.RawMessage `json:"to"`
			Ports json.RawMessage `json:"ports"`
		}
		r.Decode(r.Field, data, &in)
		r.Ports = ReadPorts(r, in.Ports)
		r.Peers = ReadPeers(r, "to", in.To, d)
	})
	return s
}

// ReadHead reads a spec into a struct, and the subject and the directions from two fields of it.
func (s *Spec) ReadHead(raw json.RawMessage, into any, podSelector, policyTypes *json.RawMessage) {
	var bad object.Mistakes
	if !s.Bad.Decode("spec", raw, into) {
		s.PodsErr = s.Bad.Errs[0]
		s.Bad = object.Mistakes{}
		return
	}
	if s.Pods = new(object.LabelSelector); !bad.Decode("spec.podSelector", *podSelector, s.Pods) {
		s.PodsErr = bad.Errs[0]
	} else if len(bad.Errs) > 0 { // an unknown field: what is left is the subject, and allows nothing
		s.Bad.Wrap("spec.podSelector", bad.Errs[0])
	}
	bad = object.Mistakes{}
	if !bad.Decode("spec.policyTypes", *policyTypes, &s.Types) {
		s.TypesErr = bad.Errs[0]
	}
}

// ReadRules reads a list of rules. Of what is no list there is one rule, which allows nothing.
func ReadRules(field string, raw json.RawMessage, each func(*Rule, json.RawMessage)) []Rule {
	var bad object.Mistakes
	list, ok := List(&bad, field, raw)
	if !ok {
		return []Rule{{Field: field, Bad: bad}}
	}
	var out []Rule
	for i, data := range list {
		r := Rule{Field: fmt.Sprintf("%s[%d]", field, i)}
		if object.Absent(data) { // not {}, which allows everything
			r.Bad.Add(r.Field, "is null")
		}
		each(&r, data)
		out = append(out, r)
	}
	return out
}

// ReadPeers reads a rule's peers.
func ReadPeers(r *Rule, name string, raw json.RawMessage, d Dialect) []Peer {
	list, _ := List(&r.Bad, r.Field+"."+name, raw)
	var out []Peer
	for i, data := range list {
		p := Peer{Field: fmt.Sprintf("%s.%s[%d]", r.Field, name, i)}
		var in struct {
			PodSelector       *object.LabelSelector `json:"podSelector"`
			NamespaceSelector *object.LabelSelector `json:"namespaceSelector"`
			IPBlock           *IPBlock              `json:"ipBlock"`
			DomainNames       json.RawMessage       `json:"domainNames"`
		}
		right := r.Decode(p.Field, data, &in)
		p.Pods, p.Namespaces, p.Block = in.PodSelector, in.NamespaceSelector, in.IPBlock
		switch {
		case object.Absent(in.DomainNames):
		case d.CheckName == nil:
			r.Bad.Wrap(p.Field, &object.UnknownField{Field: p.Field, Name: "domainNames"})
			right = false
		default:
			p.ReadNames(r, "domainNames", in.DomainNames, d.CheckName)
		}
		if !right && p.Pods == nil && p.Namespaces == nil && p.Block == nil && p.Names == nil {
			continue // what is wrong with it is said
		}
		out = append(out, p)
	}
	return out
}

// ReadNames reads a list of DNS names or patterns.
func (p *Peer) ReadNames(r *Rule, name string, raw json.RawMessage, check func(string) error) {
	p.NamesField, p.Names = p.Field+"."+name, []string{}
	if !r.Bad.Decode(p.NamesField, raw, &p.Names) {
		return
	}
	if len(p.Names) == 0 {
		p.Names = []string{} // null: it is there, and names nothing
		r.Bad.Add(p.NamesField, "must not be empty")
	}
	for i, n := range p.Names {
		if err := check(n); err != nil {
			r.Bad.Add(fmt.Sprintf("%s[%d]", p.NamesField, i), "%w", err)
		}
	}
}

// ReadPorts reads a rule's ports.
func ReadPorts(r *Rule, raw json.RawMessage) []Port {
	list, _ := List(&r.Bad, r.Field+".ports", raw)
	var out []Port
	for i, data := range list {
		p := Port{Field: fmt.Sprintf("%s.ports[%d]", r.Field, i)}
		var in struct {
			Protocol *string `json:"protocol"`
			Port     *Value  `json:"port"`
			EndPort  *int64  `json:"endPort"`
		}
		if object.Absent(data) {
			r.Bad.Add(p.Field, "is null")
		}
		if !r.Bad.Decode(p.Field, data, &in) {
			continue
		}
		p.Protocol, p.Port, p.EndPort = in.Protocol, in.Port, in.EndPort
		out = append(out, p)
	}
	return out
}

// Decode decodes a part of the rule, and notes what is wrong with it; it returns whether nothing is.
func (r *Rule) Decode(field string, raw json.RawMessage, into any) bool {
	before := len(r.Bad.Errs)
	r.Bad.Decode(field, raw, into)
	return len(r.Bad.Errs) == before
}

// List decodes a list of things that are decoded one by one; ok is false if it is none. Absent is empty.
func List(bad *object.Mistakes, field string, raw json.RawMessage) (list []json.RawMessage, ok bool) {
	ok = bad.Decode(field, raw, &list)
	return list, ok
}

// UnmarshalJSON reads a number or a string.
func (v *Value) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		*v = Value{Named: true}
		return json.Unmarshal(b, &v.Name)
	}
	*v = Value{}
	return json.Unmarshal(b, &v.Number)
}
