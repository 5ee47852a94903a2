package netpol

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"weft/internal/convert/object"
	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/selector"
)

// Spec is what a NetworkPolicy, or an object of an API that is modelled on it, says: read, and not judged yet.
type Spec struct {
	Ref  model.Ref
	Pods *object.LabelSelector // the subject; nil: absent, which is every pod of the namespace
	// PodsErr is why the subject was not understood. There is no policy then.
	PodsErr error
	Types   []string // policyTypes; empty: ingress, and egress if there are rules of it
	// TypesErr is why policyTypes were not understood. Both directions are isolated then.
	TypesErr        error
	Ingress, Egress []Rule
	// Bad are mistakes that concern all rules, such as a field that nobody knows: none of them allows anything.
	Bad object.Mistakes
}

// Rule is one rule of a Spec.
type Rule struct {
	Field string // "spec.ingress[2]"
	Peers []Peer // nil or empty: everything
	Ports []Port // nil or empty: every port of every protocol
	Bad   object.Mistakes
}

// Peer is one element of a rule's "from" or "to".
type Peer struct {
	Field            string                // "spec.ingress[2].from[0]"
	Pods, Namespaces *object.LabelSelector // nil: absent
	Block            *IPBlock              // nil: absent
	Names            []string              // DNS names or patterns; nil: absent
	NamesField       string                // the path of Names
}

// IPBlock is a range of addresses without some parts of it.
type IPBlock struct {
	CIDR   string   `json:"cidr"`
	Except []string `json:"except"`
}

// Port is one element of a rule's ports.
type Port struct {
	Field    string  // "spec.ingress[2].ports[0]"
	Protocol *string // nil: TCP
	Port     *Value  // nil: every port of the protocol
	EndPort  *int64  // nil: only Port
}

// Value is the number or the name of a port.
type Value struct {
	Number int64
	Name   string
	Named  bool // it is Name
}

// Result judges the spec. Rules with a mistake allow nothing, and the policy isolates all the same; without a subject that is
// understood there is no policy.
func (s *Spec) Result() object.Result {
	p := &model.Policy{
		Ref:   s.Ref,
		Tier:  model.TierRef{Name: "normal", Order: model.TierNormal},
		Order: 1000, Set: true, // as Calico places them, so that its policies may come before and after
	}
	errs := slices.Clone(s.Bad.Errs)
	subject, err := s.subject()
	if err != nil {
		errs = append(errs, err)
	}
	p.Subject = subject
	in, out, err := s.directions()
	if err != nil {
		errs = append(errs, err)
	}
	for _, d := range []struct {
		on    bool
		rules []Rule
		into  **model.Section
	}{{in, s.Ingress, &p.Ingress}, {out, s.Egress, &p.Egress}} {
		var rules []model.Rule
		for i := range d.rules {
			rules = append(rules, s.rule(i, &d.rules[i], p, d.on))
			errs = append(errs, d.rules[i].Bad.Errs...)
		}
		if d.on {
			*d.into = &model.Section{Isolates: true, Rules: rules}
		}
	}
	if subject == nil {
		return object.Result{Err: errors.Join(errs...)}
	}
	return object.Result{Objects: []model.Object{p}, Err: errors.Join(errs...)}
}

// subject returns the pods that the policy selects; nil with an error if that was not understood.
func (s *Spec) subject() (*selector.Expr, error) {
	if s.PodsErr != nil {
		return nil, s.PodsErr
	}
	if s.Pods == nil {
		return object.Pods(s.Ref.Namespace, nil), nil
	}
	e, err := s.Pods.Expr("spec.podSelector")
	if err != nil {
		return nil, err
	}
	return object.Pods(s.Ref.Namespace, e), nil
}

// directions says in which directions the policy isolates. Types that are not understood may have been either.
func (s *Spec) directions() (ingress, egress bool, err error) {
	if s.TypesErr != nil {
		return true, true, s.TypesErr
	}
	if len(s.Types) == 0 {
		return true, len(s.Egress) > 0, nil
	}
	var bad object.Mistakes
	for i, t := range s.Types {
		switch t {
		case "Ingress":
			ingress = true
		case "Egress":
			egress = true
		default:
			ingress, egress = true, true
			bad.Add(fmt.Sprintf("spec.policyTypes[%d]", i), "%q is not Ingress or Egress", t)
		}
	}
	return ingress, egress, errors.Join(bad.Errs...)
}

// rule judges one rule. Counts says whether it is in a direction that the policy is about; one that is not is read for its mistakes only.
func (s *Spec) rule(i int, r *Rule, p *model.Policy, counts bool) model.Rule {
	out := model.Rule{Index: i, Field: r.Field, Verdict: model.VerdictAllow}
	var unsupported []string
	for j := range r.Peers {
		peer := &r.Peers[j]
		out.Peers = append(out.Peers, peer.judge(s.Ref.Namespace, &r.Bad))
		if peer.Names != nil {
			unsupported = append(unsupported, peer.NamesField)
		}
	}
	for j := range r.Ports {
		out.L4 = append(out.L4, r.Ports[j].judge(&r.Bad))
	}
	if counts {
		p.Unsupported = append(p.Unsupported, unsupported...)
	}
	for _, m := range []*object.Mistakes{&r.Bad, &s.Bad} {
		if m.Field != "" && out.Unsupported == "" {
			out.Unsupported, out.Peers = m.Field, []model.Peer{}
		}
	}
	return out
}

// judge converts a peer.
func (p *Peer) judge(namespace string, bad *object.Mistakes) model.Peer {
	switch {
	case p.Names != nil:
		if p.Pods != nil || p.Namespaces != nil || p.Block != nil {
			bad.Add(p.NamesField, "cannot be combined with podSelector, namespaceSelector or ipBlock")
		}
		return model.Peer{Names: p.Names}
	case p.Block != nil:
		if p.Pods != nil || p.Namespaces != nil {
			bad.Add(p.Field+".ipBlock", "cannot be combined with podSelector or namespaceSelector")
		}
		return p.Block.judge(p.Field+".ipBlock", bad)
	case p.Pods == nil && p.Namespaces == nil:
		bad.Add(p.Field, "none of podSelector, namespaceSelector and ipBlock is set")
		return model.Peer{}
	}
	var pods, namespaces *selector.Expr
	var err error
	if p.Pods != nil {
		if pods, err = p.Pods.Expr(p.Field + ".podSelector"); err != nil {
			bad.Wrap(p.Field+".podSelector", err)
		}
	}
	if p.Namespaces != nil {
		namespace = "" // any that the selector matches, not the policy's own
		key := func(k string) string { return selector.Namespace + k }
		if namespaces, err = p.Namespaces.ExprKeys(p.Field+".namespaceSelector", key); err != nil {
			bad.Wrap(p.Field+".namespaceSelector", err)
		}
	}
	return model.Peer{Select: object.Pods(namespace, selector.AllOf(namespaces, pods))}
}

// judge converts a block. What is in Except is not matched by this peer, and may be by another.
func (b *IPBlock) judge(field string, bad *object.Mistakes) model.Peer {
	out := model.Peer{}
	net, err := object.Prefix(field+".cidr", b.CIDR)
	if err != nil {
		bad.Wrap(field+".cidr", err)
		return out
	}
	out.Nets = append(out.Nets, net)
	for i, s := range b.Except {
		at := fmt.Sprintf("%s.except[%d]", field, i)
		not, err := object.Prefix(at, s)
		switch {
		case err != nil:
			bad.Wrap(at, err)
		case !netset.Covers(net, not) || net == not:
			bad.Add(at, "%s is not a part of %s", s, b.CIDR)
		default:
			out.NotNets = append(out.NotNets, not)
		}
	}
	return out
}

// judge converts a port.
func (p *Port) judge(bad *object.Mistakes) model.L4 {
	out := model.L4{Proto: model.ProtoTCP}
	if p.Protocol != nil {
		switch *p.Protocol {
		case "TCP":
		case "UDP":
			out.Proto = model.ProtoUDP
		case "SCTP":
			out.Proto = model.ProtoSCTP
		default:
			bad.Add(p.Field+".protocol", "%q is not TCP, UDP or SCTP", *p.Protocol)
		}
	}
	switch {
	case p.Port == nil:
		if p.EndPort != nil {
			bad.Add(p.Field+".endPort", "needs a port to begin with")
		}
	case p.Port.Named:
		if !portName(p.Port.Name) {
			bad.Add(p.Field+".port", "%q is not a port's name: up to 15 of a-z, 0-9 and -, one a letter", p.Port.Name)
		}
		if p.EndPort != nil {
			bad.Add(p.Field+".endPort", "needs a port that is a number, not a name")
		}
		out.Named = []string{p.Port.Name}
	default:
		last := p.Port.Number
		if p.EndPort != nil {
			last = *p.EndPort
		}
		first, ok := port(bad, p.Field+".port", p.Port.Number)
		end, okay := first, ok
		if p.EndPort != nil {
			end, okay = port(bad, p.Field+".endPort", last)
		}
		switch {
		case !ok || !okay:
		case end < first:
			bad.Add(p.Field+".endPort", "%d is less than port %d", end, first)
		default:
			out.Ports = []model.PortRange{{First: first, Last: end}}
		}
	}
	return out
}

// port checks a port's number.
func port(bad *object.Mistakes, field string, n int64) (uint16, bool) {
	if n < 1 || n > 65535 {
		bad.Add(field, "%d is not in 1..65535", n)
		return 0, false
	}
	return uint16(n), true
}

// portName reports whether a container's port may have the name (RFC 6335).
func portName(s string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyz"
	return len(s) <= 15 && strings.Trim(s, letters+"0123456789-") == "" && strings.ContainsAny(s, letters)
}
