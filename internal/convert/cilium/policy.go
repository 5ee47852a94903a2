package cilium

import (
	"encoding/json"
	"errors"
	"fmt"

	"weft/internal/convert/object"
	"weft/internal/model"
	"weft/internal/selector"
)

// Where policies stand in the normal tier. NetworkPolicy and all of Cilium's are one set, in which deny goes before allow.
const (
	orderRequire = 999.9  // fromRequires and toRequires: before the set
	orderNormal  = 1000   // the set; also Calico's order of NetworkPolicy
	orderClose   = 1000.1 // what is left of rules that the set could not enforce: after it
)

// convertPolicy converts a CiliumNetworkPolicy or CiliumClusterwideNetworkPolicy.
func convertPolicy(o *object.Object) object.Result {
	c := &converter{ref: o.Ref()}
	var more struct {
		Specs json.RawMessage `json:"specs"`
	}
	var ignored string
	if err := json.Unmarshal(o.Raw, &more); err != nil { // not with Decode: other fields are nobody's business
		return object.Result{Err: object.Explain("", err)}
	}
	if absent(o.Spec) && absent(more.Specs) {
		c.mistake(&ignored, "spec", "spec or specs must be there")
	}
	if !absent(o.Spec) {
		c.spec("spec", o.Spec)
	}
	var specs []json.RawMessage
	c.decode("specs", more.Specs, &specs, &ignored, &ignored)
	for i, raw := range specs {
		c.spec(fmt.Sprintf("specs[%d]", i), raw)
	}
	out := object.Result{Err: errors.Join(c.errs...)}
	for _, p := range c.policies {
		out.Objects = append(out.Objects, p)
	}
	return out
}

// spec converts one of spec and specs into a policy, and adds others for what has a rank of its own.
func (c *converter) spec(at string, raw json.RawMessage) {
	c.unsupported = nil
	var bad faults
	f := c.fields(at, raw, &bad.peers)
	if bad.peers != "" {
		return
	}
	subject, node := c.subject(f, &bad)
	p := c.policy(subject, orderNormal)
	require, closing := c.policy(subject, orderRequire), c.policy(subject, orderClose)
	var on struct {
		Ingress *bool `json:"ingress"`
		Egress  *bool `json:"egress"`
	}
	var ignored string // of a mistake in them, nothing more is allowed
	if !f.take("enableDefaultDeny", &on, &ignored, &ignored) {
		on.Ingress, on.Egress = nil, nil
	}
	s := specReader{c: c, f: f, node: node, log: c.readLog(f)}
	for _, name := range []string{"labels", "description"} {
		f.raw(name)
	}
	var in, out direction
	in.read(&s, "ingress", on.Ingress)
	out.read(&s, "egress", on.Egress)
	f.rest(&bad.rest)
	if !in.any && !out.any {
		c.mistake(&ignored, at, "needs rules: one of ingress, ingressDeny, egress and egressDeny")
	}
	if subject == nil {
		return
	}
	p.Ingress, require.Ingress, closing.Ingress = in.sections(bad.rest)
	p.Egress, require.Egress, closing.Egress = out.sections(bad.rest)
	p.Unsupported = c.unsupported
	for _, p := range []*model.Policy{p, require, closing} {
		if p.Order == orderNormal || p.Ingress != nil || p.Egress != nil {
			p.Part = len(c.policies)
			c.policies = append(c.policies, p)
		}
	}
}

// policy is a policy without rules.
func (c *converter) policy(subject *selector.Expr, order float64) *model.Policy {
	return &model.Policy{
		Ref: c.ref, Tier: model.TierRef{Name: "normal", Order: model.TierNormal}, Order: order, Set: true, Subject: subject,
	}
}

// subject reads endpointSelector or nodeSelector; nil if there is nothing that can be a subject. What narrows it in a way
// that is not understood is in bad: the subject is then too large, and may not be allowed anything.
func (c *converter) subject(f *fields, bad *faults) (subject *selector.Expr, node bool) {
	endpoints, nodes := f.raw("endpointSelector"), f.raw("nodeSelector")
	name, raw, v := "endpointSelector", endpoints, viewSubjects()
	switch {
	case endpoints == nil && nodes == nil:
		c.mistake(&bad.peers, f.at, "needs endpointSelector or nodeSelector")
		return nil, false
	case endpoints != nil && nodes != nil:
		c.mistake(&bad.peers, f.at, "cannot have both endpointSelector and nodeSelector")
		return nil, false
	case nodes != nil && c.ref.Kind == kindPolicy:
		c.mistake(&bad.peers, f.path("nodeSelector"), "is for %s only", kindClusterPolicy)
		return nil, false
	case nodes != nil:
		name, raw, v, node = "nodeSelector", nodes, viewNodeSubjects(), true
	}
	s := c.readSelector(f.path(name), raw, bad)
	if c.ref.Namespace != "" {
		// A policy is for its own namespace, whatever it says.
		delete(s.MatchLabels, sourceK8s+":"+keyNamespace)
	}
	p, _ := c.match(f.path(name), s, v, bad)
	if bad.peers != "" {
		return nil, node
	}
	if c.ref.Namespace != "" {
		return selector.AllOf(p.Select, selector.Equal(selector.NamespaceName, c.ref.Namespace)), node
	}
	return p.Select, node
}

// readLog reads log, a word for the records of a policy's connections.
func (c *converter) readLog(f *fields) *model.Log {
	var in struct {
		Value string `json:"value"`
	}
	var ignored string // it decides nothing
	f.take("log", &in, &ignored, &ignored)
	if len(in.Value) > 32 {
		c.mistake(&ignored, f.path("log.value"), "is longer than 32 characters")
		return nil
	}
	if in.Value == "" {
		return nil
	}
	return &model.Log{Prefix: in.Value}
}

// specReader is what the rules of a spec have in common.
type specReader struct {
	c    *converter
	f    *fields
	node bool
	log  *model.Log
}

// rules reads one of the four lists. Of what is no list there is one rule of which nothing is understood.
func (s *specReader) rules(name string, to, deny bool) []rule {
	var bad string
	items, _ := s.f.list(name, &bad)
	blank := func(at string, i int) rule {
		return rule{converter: s.c, at: at, index: i, to: to, deny: deny, node: s.node, log: s.log}
	}
	if bad != "" {
		r := blank(s.f.path(name), 0)
		r.bad = faults{peers: bad, ports: bad}
		return []rule{r}
	}
	var out []rule
	for i, raw := range items {
		r := blank(fmt.Sprintf("%s[%d]", s.f.path(name), i), i)
		r.read(raw)
		out = append(out, r)
	}
	return out
}

// direction is ingress or egress of a spec.
type direction struct {
	any      bool // there are rules
	isolates bool
	rules    []rule
}

// read reads the rules. On is enableDefaultDeny; nil: a direction with rules isolates. A list that is empty is as good as none.
func (d *direction) read(s *specReader, name string, on *bool) {
	to := name == "egress"
	d.rules = append(s.rules(name, to, false), s.rules(name+"Deny", to, true)...)
	d.any = len(d.rules) > 0
	d.isolates = d.any
	if on != nil {
		d.isolates = *on
	}
}

// sections returns what the rules became: those of the set, what goes before and what goes after it; nil where there is nothing. Whole
// is a field that narrows the policy as a whole and is not understood, or "": nothing is allowed then.
func (d *direction) sections(whole string) (set, require, closing *model.Section) {
	if d.any || d.isolates {
		set = &model.Section{Isolates: d.isolates}
	}
	add := func(s **model.Section, rules []model.Rule) {
		if len(rules) == 0 {
			return
		}
		if *s == nil {
			*s = new(model.Section)
		}
		(*s).Rules = append((*s).Rules, rules...)
	}
	for i := range d.rules {
		r := &d.rules[i]
		rules := r.rules()
		for j := range rules {
			if whole != "" && !r.deny && rules[j].Unsupported == "" {
				rules[j].Unsupported = whole
			}
		}
		add(&set, rules)
		add(&require, r.requirements())
		if !d.isolates {
			add(&closing, r.closing())
		}
	}
	return set, require, closing
}
