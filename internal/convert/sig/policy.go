package sig

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"weft/internal/convert/object"
	"weft/internal/model"
	"weft/internal/selector"
)

// converter converts one object.
type converter struct {
	d      Dialect
	policy *model.Policy
	bad    object.Mistakes // that concern all rules
	errs   []error         // of rules
}

// ConvertAs turns an object of this form into the model. It is for the converters of APIs with the same form.
//
// A rule with a mistake fails closed, as the API's documents demand: one that accepts matches nothing; of one that denies
// or passes, what is not understood is left out and the rest is denied; if that is a peer, everything is.
func ConvertAs(o *object.Object, d Dialect) object.Result {
	c := converter{d: d, policy: &model.Policy{
		Ref: o.Ref(), Tier: d.Tier,
		// A blank sorts before everything that a name can have in it, so that names decide, then kinds.
		Tie: fmt.Sprintf("%s %s.%s", o.Meta.Name, o.Type.Kind, o.Type.Group),
	}}
	var spec struct {
		Tier     json.RawMessage `json:"tier"`
		Priority json.RawMessage `json:"priority"`
		Subject  json.RawMessage `json:"subject"`
		Ingress  json.RawMessage `json:"ingress"`
		Egress   json.RawMessage `json:"egress"`
	}
	if !c.bad.Decode("spec", o.Spec, &spec) {
		return object.Result{Err: errors.Join(c.bad.Errs...)}
	}
	if d.Name != "" && o.Meta.Name != d.Name {
		c.bad.Add("metadata.name", "must be %q", d.Name)
	}
	c.place(spec.Tier, spec.Priority)
	subjectErr := c.subject(spec.Subject)
	c.policy.Ingress = c.section(direction{field: "spec.ingress", peers: "from"}, spec.Ingress)
	c.policy.Egress = c.section(direction{field: "spec.egress", peers: "to", egress: true}, spec.Egress)
	err := errors.Join(append(append([]error{subjectErr}, c.bad.Errs...), c.errs...)...)
	if subjectErr != nil {
		return object.Result{Err: err}
	}
	return object.Result{Objects: []model.Object{c.policy}, Err: err}
}

// place reads tier and priority. A policy without a place is asked first, so that what it denies is denied.
func (c *converter) place(tier, priority json.RawMessage) {
	switch fixed := c.d.Tier != (model.TierRef{}); {
	case fixed && !object.Absent(tier):
		c.bad.Wrap("spec", &object.UnknownField{Field: "spec", Name: "tier"})
	case !fixed:
		var name string
		ok := c.bad.Decode("spec.tier", tier, &name)
		switch c.policy.Tier = Admin(); {
		case !ok || name == "Admin": // if not ok, the mistake is noted
		case name == "Baseline":
			c.policy.Tier = Baseline()
		default:
			c.bad.Add("spec.tier", "%q is not Admin or Baseline", name)
		}
	}
	if !c.d.Priority {
		if !object.Absent(priority) {
			c.bad.Wrap("spec", &object.UnknownField{Field: "spec", Name: "priority"})
		}
		c.policy.Order = -1 // before those that have a priority
		return
	}
	var p *int64
	switch ok := c.bad.Decode("spec.priority", priority, &p); {
	case !ok: // and the mistake is noted
	case p == nil:
		c.bad.Add("spec.priority", "is missing")
	case *p < 0 || *p > 1000:
		c.bad.Add("spec.priority", "%d is not in 0..1000", *p)
	default:
		c.policy.Order = float64(*p)
	}
}

// subject reads the pods that the policy applies to.
func (c *converter) subject(raw json.RawMessage) error {
	var in struct {
		Namespaces json.RawMessage `json:"namespaces"`
		Pods       json.RawMessage `json:"pods"`
	}
	var bad object.Mistakes
	bad.Decode("spec.subject", raw, &in)
	switch {
	case !object.Absent(in.Namespaces) && !object.Absent(in.Pods):
		bad.Add("spec.subject", "both namespaces and pods are set")
	case !object.Absent(in.Namespaces):
		var s object.LabelSelector
		if bad.Decode("spec.subject.namespaces", in.Namespaces, &s) {
			c.policy.Subject = pods(&bad, "spec.subject.namespaces", &s, nil)
		}
	case !object.Absent(in.Pods):
		p, _ := c.pods(&bad, "spec.subject.pods", in.Pods)
		if c.policy.Subject = p.Select; p.SameNamespace || p.SameLabels != nil {
			c.policy.Subject = nil
		}
	default:
		bad.Add("spec.subject", "one of namespaces and pods must be set")
	}
	if c.policy.Subject == nil {
		if len(bad.Errs) == 0 {
			bad.Add("spec.subject", "names its namespaces in a way that weft does not know")
		}
		return errors.Join(bad.Errs...)
	}
	// There is something that nobody knows beside what was understood: nothing is accepted.
	for _, err := range bad.Errs {
		c.bad.Wrap("spec.subject", err)
	}
	return nil
}

// pods converts {namespaceSelector, podSelector}; ok is false if it was not understood, which is noted.
func (c *converter) pods(bad *object.Mistakes, field string, raw json.RawMessage) (p model.Peer, ok bool) {
	var in struct {
		NamespaceSelector *object.LabelSelector `json:"namespaceSelector"`
		PodSelector       *object.LabelSelector `json:"podSelector"`
		Namespaces        json.RawMessage       `json:"namespaces"`
	}
	if !bad.Decode(field, raw, &in) {
		return p, false
	}
	switch {
	case in.PodSelector == nil:
		bad.Add(field+".podSelector", "is missing")
		return p, false
	case !object.Absent(in.Namespaces) && !c.d.Nested:
		bad.Wrap(field, &object.UnknownField{Field: field, Name: "namespaces"})
	case !object.Absent(in.Namespaces) && in.NamespaceSelector != nil:
		bad.Add(field, "both namespaces and namespaceSelector are set")
		return p, false
	case !object.Absent(in.Namespaces):
		if in.NamespaceSelector, ok = c.namespaces(bad, field+".namespaces", in.Namespaces, &p); !ok {
			return p, false
		}
	}
	p.Select = pods(bad, field, in.NamespaceSelector, in.PodSelector)
	return p, p.Select != nil
}

// pods is the expression for the pods of the namespaces; nil, with the mistake noted, if a selector is wrong. A selector that is nil
// matches everything.
func pods(bad *object.Mistakes, field string, namespaces, own *object.LabelSelector) *selector.Expr {
	var parts [2]*selector.Expr
	var err error
	if namespaces != nil {
		at := field
		if own != nil {
			at += ".namespaceSelector"
		}
		parts[0], err = namespaces.ExprKeys(at, func(k string) string { return selector.Namespace + k })
		if err != nil {
			bad.Wrap(at, err)
			return nil
		}
	}
	if own != nil {
		parts[1], err = own.Expr(field + ".podSelector")
		if err != nil {
			bad.Wrap(field+".podSelector", err)
			return nil
		}
	}
	return object.Pods("", selector.AllOf(parts[:]...))
}

// namespaces reads a selector of namespaces. In v1alpha1's first releases it may look at the namespace of the subject instead,
// which is then asked of the peer; s is nil.
func (c *converter) namespaces(bad *object.Mistakes, field string, raw json.RawMessage, p *model.Peer) (s *object.LabelSelector, ok bool) {
	var in struct {
		object.LabelSelector
		NamespaceSelector *object.LabelSelector `json:"namespaceSelector"`
		Related           *string               `json:"related"`
		SameLabels        []string              `json:"sameLabels"`
		NotSameLabels     []string              `json:"notSameLabels"`
	}
	if !c.d.Nested {
		ok = bad.Decode(field, raw, &in.LabelSelector)
		return &in.LabelSelector, ok
	}
	if !bad.Decode(field, raw, &in) {
		return nil, false
	}
	plain := in.MatchLabels != nil || in.MatchExpressions != nil
	set := []bool{plain, in.NamespaceSelector != nil, in.Related != nil, in.SameLabels != nil, in.NotSameLabels != nil}
	switch {
	case !slices.Contains(set, true): // {} is a selector
		return &in.LabelSelector, true
	case !one(set...):
		bad.Add(field, "more than one of its fields is set")
		return nil, false
	case in.NamespaceSelector != nil:
		return in.NamespaceSelector, true
	case in.Related != nil && *in.Related == "Self":
		p.SameNamespace = true
		return nil, true
	case in.Related != nil:
		c.lack(bad, field+".related")
		return nil, false
	case in.NotSameLabels != nil:
		c.lack(bad, field+".notSameLabels")
		return nil, false
	case in.SameLabels != nil && len(in.SameLabels) == 0:
		bad.Add(field+".sameLabels", "must not be empty")
		return nil, false
	case in.SameLabels != nil:
		p.SameLabels = in.SameLabels
		return nil, true
	}
	return &in.LabelSelector, true
}

// lack notes a field that is right, but not enforced yet.
func (c *converter) lack(bad *object.Mistakes, field string) {
	bad.Lack(field)
	c.policy.Unsupported = append(c.policy.Unsupported, field)
}
