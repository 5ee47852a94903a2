package antrea

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"

	"weft/internal/model"
	"weft/internal/selector"
)

// policySpec is the spec of a ClusterNetworkPolicy or NetworkPolicy.
type policySpec struct {
	Tier      string            `json:"tier"`
	Priority  *json.RawMessage  `json:"priority"`
	AppliedTo []json.RawMessage `json:"appliedTo"`
	Ingress   []json.RawMessage `json:"ingress"`
	Egress    []json.RawMessage `json:"egress"`
}

// applied is what an appliedTo selects.
type applied struct {
	subject *selector.Expr // pods and nodes; nil: none
	groups  []model.Ref
	service *selector.Expr // the backends of node port services; nil: it is not applied to services
}

// empty says that nothing is selected.
func (a *applied) empty() bool { return a.subject == nil && len(a.groups) == 0 && a.service == nil }

// policyState is a policy on its way.
type policyState struct {
	*conversion
	spec     policySpec
	baseline bool              // its tier is the one after the policies of Kubernetes
	closed   string            // field of a mistake that makes every rule fail closed; "": none
	names    map[string]string // name of a rule → its field
}

// policy converts a ClusterNetworkPolicy or NetworkPolicy.
func (c *conversion) policy() []model.Object {
	p := &policyState{conversion: c, names: map[string]string{}}
	if !c.decode("spec", c.obj.Spec, &p.spec) {
		p.closed = "spec"
	}
	head := model.Policy{Ref: c.obj.Ref(), Tier: tierRef(p.spec.Tier), Order: p.order()}
	p.baseline = head.Tier.Name == tierBaseline
	// Equal priorities are decided by age and then by name, so that a new policy does not go before an old one.
	head.Tie = c.obj.Meta.Created + "/" + c.obj.Meta.Name + "/" + c.namespace

	whole := p.appliedTo("spec.appliedTo", p.spec.AppliedTo)
	var rules []*ruleState
	for i, raw := range p.spec.Ingress {
		rules = append(rules, p.rule("ingress", i, raw))
	}
	for i, raw := range p.spec.Egress {
		rules = append(rules, p.rule("egress", i, raw))
	}
	parts := p.place(whole, rules)
	var out []model.Object
	for i, part := range parts {
		policy := head
		policy.Part = i
		part.fill(&policy)
		policy.Unsupported = slices.Clone(c.unsupported)
		out = append(out, &policy)
	}
	return out
}

// order returns the order within the tier. If it is wrong, the policy stands where it says, or last, and fails closed.
func (p *policyState) order() float64 {
	const field = "spec.priority"
	if p.spec.Priority == nil {
		p.mistake(field, "is missing")
		p.closed = field
		return math.Inf(1)
	}
	var v float64
	if !p.decode(field, *p.spec.Priority, &v) {
		p.closed = field
		return math.Inf(1)
	}
	if v < 1 || v > 10000 {
		p.mistake(field, "%v is not in 1.0..10000.0", v)
		p.closed = field
	}
	return v
}

// appliedTo converts an appliedTo. Elements that are not understood are left out: there is nobody whom they could be closed for.
func (p *policyState) appliedTo(field string, list []json.RawMessage) applied {
	allowed := []string{fieldPods, fieldExternal, fieldNamespace, fieldNodes, fieldGroup, fieldAccount, fieldService}
	if p.namespace != "" {
		allowed = []string{fieldPods, fieldExternal, fieldGroup, fieldAccount}
	}
	var out applied
	var subjects, services []*selector.Expr
	for i, raw := range list {
		at := fmt.Sprintf("%s[%d]", field, i)
		e, wrong := p.entry(at, raw, allowed)
		if wrong != "" {
			continue
		}
		var x *selector.Expr
		ok := false
		switch {
		case e.Scope != "":
			p.mistake(at+".scope", "is not allowed here")
		case e.ExternalEntitySelector != nil: // none of them is a subject of weft
			p.notYet(at + "." + fieldExternal)
		case e.Group != "":
			if ref := p.groupRef(e.Group); !slices.Contains(out.groups, ref) {
				out.groups = append(out.groups, ref)
			}
		case e.Service != nil:
			if p.complete(at+"."+fieldService, e.Service) {
				p.notYet(at + "." + fieldService)
				services = append(services, backends(e.Service))
			}
		case e.NodeSelector != nil:
			x, ok = p.nodes(at, e.NodeSelector, selector.KindHost)
		case e.ServiceAccount != nil:
			if p.namespace != "" && e.ServiceAccount.Namespace != p.namespace {
				p.mistake(at+"."+fieldAccount+".namespace", "%q is not the namespace of the policy", e.ServiceAccount.Namespace)
				break
			}
			x, ok = p.account(at+"."+fieldAccount, e.ServiceAccount)
		default:
			x, ok = p.pods(at, e.PodSelector, e.NamespaceSelector)
		}
		if ok {
			subjects = append(subjects, x)
		}
	}
	if len(subjects) > 0 {
		out.subject = selector.AnyOf(subjects...)
	}
	switch {
	case len(services) == 0:
	case !out.empty():
		p.mistake(field, "services cannot be together with others, which alone are taken")
	default:
		out.service = selector.AllOf(selector.Equal(selector.Kind, selector.KindPod), selector.AnyOf(services...))
	}
	return out
}

// part is one of the policies that an object becomes: rules of one hook.
type part struct {
	hook     model.Hook
	subjects []*selector.Expr
	groups   []model.Ref
	ingress  []model.Rule
	egress   []model.Rule
}

// add takes a rule; what it is applied to is a subject of the part.
func (t *part) add(r *ruleState) {
	rule := r.finish()
	if r.egress {
		t.egress = append(t.egress, rule)
	} else {
		t.ingress = append(t.ingress, rule)
	}
}

// subject adds what rules of the part are applied to.
func (t *part) subject(e *selector.Expr, groups []model.Ref) {
	if e != nil {
		t.subjects = append(t.subjects, e)
	}
	for _, g := range groups {
		if !slices.Contains(t.groups, g) {
			t.groups = append(t.groups, g)
		}
	}
}

// fill writes the part into a policy. No section isolates: being selected means nothing in Antrea.
func (t *part) fill(p *model.Policy) {
	p.Hook = t.hook
	p.Groups = t.groups
	if len(t.subjects) > 0 {
		p.Subject = selector.AnyOf(t.subjects...)
	}
	if len(t.ingress) > 0 {
		p.Ingress = &model.Section{Rules: t.ingress}
	}
	if len(t.egress) > 0 {
		p.Egress = &model.Section{Rules: t.egress}
	}
}

// place puts the rules where they are applied to: all where the policy is, or each where it says itself. It returns no part if
// there is nothing that the policy could be applied to.
func (p *policyState) place(whole applied, rules []*ruleState) []*part {
	pods, services := &part{}, &part{hook: model.HookService}
	inSpec := len(p.spec.AppliedTo) > 0
	inRules := slices.ContainsFunc(rules, func(r *ruleState) bool { return len(r.spec.AppliedTo) > 0 })
	if !inSpec && !inRules {
		p.mistake("spec.appliedTo", "is missing: it must be there, or in every rule")
		return nil
	}
	if whole.service != nil {
		services.subject(whole.service, nil)
	} else {
		pods.subject(whole.subject, whole.groups)
	}
	for _, r := range rules {
		own := p.appliedTo(r.field+".appliedTo", r.spec.AppliedTo)
		switch {
		case inSpec && len(r.spec.AppliedTo) > 0:
			// Whichever was meant: the rule denies for both.
			r.fail(r.field+".appliedTo", "is in spec already")
			own = applied{subject: union(whole.subject, own.subject), groups: append(slices.Clone(whole.groups), own.groups...)}
		case inSpec:
			p.inherit(r, &whole, pods, services)
			continue
		case len(r.spec.AppliedTo) == 0:
			r.fail(r.field+".appliedTo", "is missing: if it is in one rule, it must be in every rule")
		}
		if own.service != nil {
			p.toService(r, own.service, services)
			continue
		}
		pods.subject(own.subject, own.groups)
		r.applyTo(&own)
		pods.add(r)
	}
	var out []*part
	for _, t := range []*part{pods, services} {
		if len(t.subjects) > 0 || len(t.groups) > 0 {
			out = append(out, t)
		}
	}
	if len(out) == 0 && len(p.errs) == 0 { // only subjects that weft does not have
		out = append(out, pods)
	}
	return out
}

// union is what one of two expressions selects; each may be nil, for nothing.
func union(a, b *selector.Expr) *selector.Expr {
	if a == nil && b == nil {
		return nil
	}
	return selector.AnyOf(a, b)
}

// inherit gives a rule to where the policy is applied.
func (p *policyState) inherit(r *ruleState, whole *applied, pods, services *part) {
	if whole.service != nil {
		p.toService(r, nil, services)
		return
	}
	r.local(whole.groups)
	pods.add(r)
}

// toService gives a rule to the part of services; subject is nil if it is the part's.
func (p *policyState) toService(r *ruleState, subject *selector.Expr, services *part) {
	if r.egress {
		r.mistake(r.field, "an egress rule cannot be applied to services")
		return
	}
	if slices.ContainsFunc(r.out.Peers, func(peer model.Peer) bool { return peer.Nets == nil }) {
		r.fail(r.field+".from", "a rule that is applied to services takes ipBlock alone")
	}
	if subject != nil {
		services.subject(subject, nil)
		r.out.Subject = subject
	}
	services.add(r)
}
