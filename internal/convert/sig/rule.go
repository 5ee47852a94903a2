package sig

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"weft/internal/convert/object"
	"weft/internal/model"
	"weft/internal/selector"
)

// direction says which rules are converted.
type direction struct {
	field, peers string // "spec.egress", "to"
	egress       bool
}

// section converts the rules of a direction. Without rules the policy says nothing of it. What is no list is one
// rule of which nothing is known.
func (c *converter) section(d direction, raw json.RawMessage) *model.Section {
	var list []json.RawMessage
	var bad object.Mistakes
	if !bad.Decode(d.field, raw, &list) {
		c.errs = append(c.errs, bad.Errs...)
		return &model.Section{Rules: []model.Rule{{Field: d.field, Verdict: model.VerdictDeny, Unsupported: d.field}}}
	}
	if len(list) == 0 {
		return nil
	}
	s := &model.Section{Rules: make([]model.Rule, len(list))}
	for i, data := range list {
		s.Rules[i] = c.rule(d, i, data)
	}
	return s
}

// rule is the conversion of one rule.
type rule struct {
	*converter
	direction
	model.Rule
	bad      object.Mistakes
	peersBad bool // the peers are not all understood
	portsBad bool // the protocols and ports are not all understood
	portless bool // some peers have no named ports
}

// rule converts one rule.
func (c *converter) rule(d direction, i int, raw json.RawMessage) model.Rule {
	r := rule{converter: c, direction: d, Rule: model.Rule{Index: i, Field: fmt.Sprintf("%s[%d]", d.field, i)}}
	var in struct {
		Name      json.RawMessage `json:"name"`
		Action    json.RawMessage `json:"action"`
		From      json.RawMessage `json:"from"`
		To        json.RawMessage `json:"to"`
		Ports     json.RawMessage `json:"ports"`
		Protocols json.RawMessage `json:"protocols"`
	}
	if r.bad.Decode(r.Field, raw, &in); object.Absent(raw) {
		r.bad.Add(r.Field, "is null")
	}
	r.bad.Decode(r.Field+".name", in.Name, &r.Name)
	var action string
	r.bad.Decode(r.Field+".action", in.Action, &action)
	var known bool
	if r.Verdict, known = c.d.Actions[action]; !known {
		r.Verdict = model.VerdictDeny
		words := slices.Sorted(maps.Keys(c.d.Actions))
		r.bad.Add(r.Field+".action", "%q is not one of %s", action, strings.Join(words, ", "))
	}
	peers, others, name := in.From, in.To, "to"
	if d.egress {
		peers, others, name = in.To, in.From, "from"
	}
	if !object.Absent(others) {
		r.bad.Wrap(r.Field, &object.UnknownField{Field: r.Field, Name: name})
	}
	r.readPeers(peers)
	if c.d.Ports && c.d.Protocols && !object.Absent(in.Ports) && !object.Absent(in.Protocols) {
		r.bad.Add(r.Field, "both ports and protocols are set")
		r.portsBad = true
	}
	r.readPorts("ports", c.d.Ports, in.Ports, r.port)
	r.readPorts("protocols", c.d.Protocols, in.Protocols, r.protocol)
	c.errs = append(c.errs, r.bad.Errs...)
	r.close()
	return r.Rule
}

// close makes the rule fail closed if there is a mistake in it or in the policy.
func (r *rule) close() {
	switch {
	case r.bad.Field != "":
		r.Unsupported = r.bad.Field
		if r.Verdict != model.VerdictAllow {
			r.Verdict = model.VerdictDeny
		}
	case r.converter.bad.Field != "":
		r.Unsupported = r.converter.bad.Field
	default:
		return
	}
	switch {
	case r.Verdict != model.VerdictDeny:
		r.Peers = []model.Peer{}
	case r.peersBad:
		r.Peers, r.L4, r.Hosts = nil, nil, false
	case r.portsBad:
		r.L4 = nil
	}
}

// readPeers reads the other side.
func (r *rule) readPeers(raw json.RawMessage) {
	field := r.Field + "." + r.peers
	var list []json.RawMessage
	if !r.bad.Decode(field, raw, &list) {
		r.peersBad = true
		return
	}
	if len(list) == 0 {
		r.bad.Add(field, "must have a peer")
		r.peersBad = true
	}
	for i, data := range list {
		p, ok := r.peer(fmt.Sprintf("%s[%d]", field, i), data)
		r.peersBad = r.peersBad || !ok
		r.Peers = append(r.Peers, p)
	}
}

// peer reads one peer; ok is false if it is not understood.
func (r *rule) peer(field string, raw json.RawMessage) (p model.Peer, ok bool) {
	var in struct {
		Namespaces  json.RawMessage `json:"namespaces"`
		Pods        json.RawMessage `json:"pods"`
		Nodes       json.RawMessage `json:"nodes"`
		Networks    json.RawMessage `json:"networks"`
		DomainNames json.RawMessage `json:"domainNames"`
	}
	errs := len(r.bad.Errs)
	r.bad.Decode(field, raw, &in)
	count := 0
	for _, f := range []struct {
		name string
		raw  json.RawMessage
		here bool
		read func(field string, raw json.RawMessage) (model.Peer, bool)
	}{
		{"namespaces", in.Namespaces, true, r.namespacesPeer},
		{"pods", in.Pods, true, r.podsPeer},
		{"nodes", in.Nodes, r.egress && r.d.Nodes, r.nodesPeer},
		{"networks", in.Networks, r.egress, r.networksPeer},
		{"domainNames", in.DomainNames, r.egress && len(r.d.Names) > 0, r.namesPeer},
	} {
		if object.Absent(f.raw) {
			continue
		}
		count++
		if !f.here {
			r.bad.Wrap(field, &object.UnknownField{Field: field, Name: f.name})
			continue
		}
		p, ok = f.read(field+"."+f.name, f.raw)
	}
	switch {
	case count > 1:
		r.bad.Add(field, "more than one of its fields is set")
	case count == 0 && len(r.bad.Errs) == errs:
		r.bad.Add(field, "none of its fields is set")
	}
	return p, ok && count == 1 && len(r.bad.Errs) == errs
}

func (r *rule) namespacesPeer(field string, raw json.RawMessage) (p model.Peer, ok bool) {
	s, ok := r.namespaces(&r.bad, field, raw, &p)
	if !ok {
		return p, false
	}
	p.Select = pods(&r.bad, field, s, nil)
	return p, p.Select != nil
}

func (r *rule) podsPeer(field string, raw json.RawMessage) (model.Peer, bool) {
	return r.pods(&r.bad, field, raw)
}

// nodesPeer selects nodes by their labels: this one and the others.
func (r *rule) nodesPeer(field string, raw json.RawMessage) (model.Peer, bool) {
	r.portless = true
	var s object.LabelSelector
	if !r.bad.Decode(field, raw, &s) {
		return model.Peer{}, false
	}
	e, err := s.Expr(field)
	if err != nil {
		r.bad.Wrap(field, err)
		return model.Peer{}, false
	}
	r.Hosts = true
	return model.Peer{Select: selector.AllOf(selector.OneOf(selector.Kind, selector.KindHost, selector.KindRemoteNode), e)}, true
}

// networksPeer matches whatever has an address in the networks, pods and nodes too.
func (r *rule) networksPeer(field string, raw json.RawMessage) (model.Peer, bool) {
	r.portless = true
	var list []string
	if !r.bad.Decode(field, raw, &list) {
		return model.Peer{}, false
	}
	if len(list) == 0 {
		r.bad.Add(field, "must not be empty")
	}
	p := model.Peer{}
	for i, s := range list {
		at := fmt.Sprintf("%s[%d]", field, i)
		net, err := object.Prefix(at, s)
		if err != nil {
			r.bad.Wrap(at, err)
			continue
		}
		p.Nets = append(p.Nets, net)
	}
	return p, len(p.Nets) == len(list)
}

// namesPeer keeps the names, which match nothing yet.
func (r *rule) namesPeer(field string, raw json.RawMessage) (model.Peer, bool) {
	r.portless = true
	p := model.Peer{Names: []string{}}
	if !r.bad.Decode(field, raw, &p.Names) {
		return p, false
	}
	if !slices.Contains(r.d.Names, r.Verdict) {
		r.bad.Add(field, "a rule with this action cannot have names: not all addresses of a name can be known")
		return p, false
	}
	if len(p.Names) == 0 {
		r.bad.Add(field, "must not be empty")
	}
	for i, n := range p.Names {
		if err := CheckName(n); err != nil {
			r.bad.Add(fmt.Sprintf("%s[%d]", field, i), "%w", err)
		}
	}
	r.policy.Unsupported = append(r.policy.Unsupported, field)
	return p, true
}
