package calico

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/selector"
)

// entitySpec is what a rule says of one side.
type entitySpec struct {
	Nets              json.RawMessage `json:"nets"`
	NotNets           json.RawMessage `json:"notNets"`
	Selector          json.RawMessage `json:"selector"`
	NotSelector       json.RawMessage `json:"notSelector"`
	NamespaceSelector json.RawMessage `json:"namespaceSelector"`
	Services          json.RawMessage `json:"services"`
	ServiceAccounts   json.RawMessage `json:"serviceAccounts"`
	Ports             json.RawMessage `json:"ports"`
	NotPorts          json.RawMessage `json:"notPorts"`
	Domains           json.RawMessage `json:"domains"` // of Calico Enterprise and Cloud
}

// entity is one side of a rule, converted.
type entity struct {
	field           string // "spec.ingress[0].source"
	peer            model.Peer
	ports, notPorts ports
	service         string   // whose backends' ports must be met, "namespace/name"
	domains         []string // DNS names
	exact           bool     // all of notNets was understood
}

// peers returns the side as a list of peers, nil if it says nothing of addresses.
func (e entity) peers() []model.Peer {
	if p := e.peer; p.Select == nil && p.NotSelect == nil && p.Nets == nil && p.NotNets == nil && p.Names == nil {
		return nil
	}
	return []model.Peer{e.peer}
}

// entity reads one side, "source" or "destination".
func (r *ruleReader) entity(side string, raw json.RawMessage) entity {
	e := entity{field: r.field + "." + side}
	s := into[entitySpec](r, e.field, raw)
	nets, ok := r.nets(e.field+".nets", s.Nets)
	if ok && len(nets) > 0 { // of a list that is not understood in part, the rest could be any net
		e.peer.Nets = nets
	}
	e.peer.NotNets, e.exact = r.nets(e.field+".notNets", s.NotNets)
	r.selectors(&e, &s)
	r.services(&e, &s, side)
	e.ports = r.ports(e.field+".ports", s.Ports, true)
	e.notPorts = r.ports(e.field+".notPorts", s.NotPorts, false)
	if side == "source" {
		r.namedSource(".ports", &e, &e.ports)
		r.namedSource(".notPorts", &e, &e.notPorts)
	}
	r.domains(&e, &s, side)
	return e
}

// namedSource takes away the names of source ports, which are not enforced yet: who opens a connection from a port of its own
// containers is not known to whom it connects to.
func (r *ruleReader) namedSource(name string, e *entity, p *ports) {
	if len(p.named) == 0 {
		return
	}
	r.later(e.field + name)
	if name == ".ports" {
		p.ranges = nil // the range or the name: without the name anything
	}
	p.named = nil
}

// domains reads DNS names.
func (r *ruleReader) domains(e *entity, s *entitySpec, side string) {
	field := e.field + ".domains"
	names, ok := r.texts(field, s.Domains)
	switch {
	case !ok:
		r.mark(field)
	case len(names) == 0:
	case r.ingress || side != "destination":
		r.fail(field, "only the destination of an egress rule may have domains")
	default:
		e.domains = names
		r.later(field)
	}
}

// nets reads a list of prefixes or addresses; ok is false if some were not understood.
func (r *ruleReader) nets(field string, raw json.RawMessage) (out []netip.Prefix, ok bool) {
	wrong := false
	ok = r.each(field, raw, func(at, text string) {
		p, err := parseNet(text)
		switch {
		case err != nil:
			r.fail(at, "%v", err)
			wrong = true
		case r.family != 0 && netset.OfPrefix(p) != r.family:
			r.fail(at, "%s is not of %s, which ipVersion asks for", p, r.family)
			wrong = true
		default:
			out = append(out, p)
		}
	})
	if !ok {
		r.mark(field)
	}
	return out, ok && !wrong
}

// parseNet reads a prefix, or an address for the prefix of it alone. Bits beyond its length are cut off.
func parseNet(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return netset.Host(a), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("%q is not a prefix in CIDR notation, nor an address", clip(s))
	}
	if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p.Masked(), nil
}

// known is what selectors select from: what Calico knows by labels. Nodes without a host endpoint, and the world, are not in it.
func known() *selector.Expr {
	return selector.OneOf(selector.Kind, selector.KindPod, selector.KindSet, selector.KindHostEndpoint)
}

// selectors reads everything that selects endpoints. A policy of a namespace selects in its own one as soon as any of it is
// used, unless a namespaceSelector says otherwise.
func (r *ruleReader) selectors(e *entity, s *entitySpec) {
	ok := true
	part := func(name string, raw json.RawMessage, l language) *selector.Expr {
		x, good := r.selector(e.field+name, raw, l)
		ok = ok && good
		return x
	}
	ns := part(".namespaceSelector", s.NamespaceSelector, namespaceLanguage(true))
	own := part(".selector", s.Selector, endpointLanguage(selector.AllOf()))
	account := r.accounts(e, s.ServiceAccounts, &ok)
	// An exclusion that is not understood excludes nothing: the rule is the wider for it, and not for this the narrower.
	not, notOK := r.selector(e.field+".notSelector", s.NotSelector, endpointLanguage(selector.AllOf()))
	if !ok {
		return
	}
	if ns == nil && r.namespace != "" && (own != nil || account != nil || not != nil || !notOK) {
		ns = selector.Equal(selector.NamespaceName, r.namespace)
	}
	positive := ns != nil || own != nil || account != nil
	switch {
	case positive && not != nil:
		e.peer.Select = selector.AllOf(known(), ns, own, account, selector.Negate(not))
	case positive:
		e.peer.Select = selector.AllOf(known(), ns, own, account)
	case not != nil: // also what no selector could select is not excluded
		e.peer.NotSelect = selector.AllOf(known(), not)
	}
}

// selector reads a selector; nil if it is absent, empty or not understood, the last with ok false.
func (r *ruleReader) selector(field string, raw json.RawMessage, l language) (x *selector.Expr, ok bool) {
	x, ok = r.report.selector(field, raw, l)
	if !ok {
		r.mark(field)
	}
	return x, ok
}

// selector reads a selector; nil if it is absent, empty or not understood, the last with ok false.
func (r *report) selector(field string, raw json.RawMessage, l language) (x *selector.Expr, ok bool) {
	text, ok := decode[string](r, field, raw)
	if !ok || text == "" {
		return nil, ok
	}
	x, err := parseSelector(text, l)
	if err != nil {
		r.errorf(field, "%v", err)
		return nil, false
	}
	return x, true
}

// accounts reads serviceAccounts: names, a selector of labels, or both.
func (r *ruleReader) accounts(e *entity, raw json.RawMessage, ok *bool) *selector.Expr {
	field := e.field + ".serviceAccounts"
	before := len(r.errs)
	s := into[struct {
		Names    json.RawMessage `json:"names"`
		Selector json.RawMessage `json:"selector"`
	}](r, field, raw)
	names, good := r.texts(field+".names", s.Names)
	if !good {
		r.mark(field + ".names")
	}
	labels, _ := r.selector(field+".selector", s.Selector, accountLanguage(selector.AllOf()))
	if len(r.errs) > before {
		*ok = false
		return nil
	}
	if len(names) > 0 {
		return selector.AllOf(labels, selector.OneOf(selector.ServiceAccountName, names...))
	}
	return labels
}

// services reads the service whose backends are meant: their addresses as a source, their addresses and ports as a destination.
func (r *ruleReader) services(e *entity, s *entitySpec, side string) {
	if absent(s.Services) {
		return
	}
	field := e.field + ".services"
	before := len(r.errs)
	spec := into[struct {
		Name      *string `json:"name"`
		Namespace *string `json:"namespace"`
	}](r, field, s.Services)
	switch {
	case len(r.errs) > before:
		return
	case r.ingress != (side == "source"):
		r.fail(field, "only the source of an ingress rule and the destination of an egress rule may be services")
		return
	case spec.Name == nil || *spec.Name == "":
		r.fail(field+".name", "is missing")
		return
	}
	ns := r.namespace
	if spec.Namespace != nil && *spec.Namespace != "" {
		ns = *spec.Namespace
	}
	if ns == "" {
		r.fail(field+".namespace", "is missing: this policy has no namespace that could be meant")
		return
	}
	if e.peer.Select != nil || e.peer.NotSelect != nil || e.peer.Nets != nil || e.peer.NotNets != nil {
		r.fail(field, "may not be used together with selectors, nets or serviceAccounts")
	}
	// Alone: which services an address is a backend of is not among the labels of the pod that has it, so that no expression is
	// true of both.
	name := ns + "/" + *spec.Name
	e.peer.Select = selector.Exists(selector.Service + name)
	if side == "destination" {
		e.service = name
		r.later(field) // until whoever compiles policy looks at L4.Service
		if !absent(s.Ports) || !absent(s.NotPorts) {
			r.fail(field, "has the ports of the service: ports and notPorts may not be used with it")
		}
	}
}

// prefixes reads the nets of a set; those that are not understood are left out.
func (r *report) prefixes(field string, raw json.RawMessage) []netip.Prefix {
	var out []netip.Prefix
	r.each(field, raw, func(at, text string) {
		if p, err := parseNet(text); err != nil {
			r.errorf(at, "%v", err)
		} else {
			out = append(out, p)
		}
	})
	return out
}
