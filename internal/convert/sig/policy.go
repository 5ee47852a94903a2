package sig

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"weft/internal/convert/object"
	"weft/internal/model"
	"weft/internal/selector"
)

// converter converts one object.
type converter struct {
	d      Dialect
	policy *model.Policy
	bad    mistakes // that concern all rules
	errs   []error  // of rules
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
	if !decode(&c.bad, "spec", o.Spec, &spec) {
		return object.Result{Err: errors.Join(c.bad.errs...)}
	}
	if d.Name != "" && o.Meta.Name != d.Name {
		c.bad.add("metadata.name", "must be %q", d.Name)
	}
	c.place(spec.Tier, spec.Priority)
	subjectErr := c.subject(spec.Subject)
	c.policy.Ingress = c.section(direction{field: "spec.ingress", peers: "from"}, spec.Ingress)
	c.policy.Egress = c.section(direction{field: "spec.egress", peers: "to", egress: true}, spec.Egress)
	err := errors.Join(append(append([]error{subjectErr}, c.bad.errs...), c.errs...)...)
	if subjectErr != nil {
		return object.Result{Err: err}
	}
	return object.Result{Objects: []model.Object{c.policy}, Err: err}
}

// place reads tier and priority. A policy without a place is asked first, so that what it denies is denied.
func (c *converter) place(tier, priority json.RawMessage) {
	switch fixed := c.d.Tier != (model.TierRef{}); {
	case fixed && !absent(tier):
		c.bad.wrap("spec", &object.UnknownField{Field: "spec", Name: "tier"})
	case !fixed:
		var name string
		ok := decode(&c.bad, "spec.tier", tier, &name)
		switch c.policy.Tier = Admin(); {
		case !ok || name == "Admin": // if not ok, the mistake is noted
		case name == "Baseline":
			c.policy.Tier = Baseline()
		default:
			c.bad.add("spec.tier", "%q is not Admin or Baseline", name)
		}
	}
	if !c.d.Priority {
		if !absent(priority) {
			c.bad.wrap("spec", &object.UnknownField{Field: "spec", Name: "priority"})
		}
		return
	}
	var p *int64
	switch ok := decode(&c.bad, "spec.priority", priority, &p); {
	case !ok: // and the mistake is noted
	case p == nil:
		c.bad.add("spec.priority", "is missing")
	case *p < 0 || *p > 1000:
		c.bad.add("spec.priority", "%d is not in 0..1000", *p)
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
	var bad mistakes
	decode(&bad, "spec.subject", raw, &in)
	switch {
	case !absent(in.Namespaces) && !absent(in.Pods):
		bad.add("spec.subject", "both namespaces and pods are set")
	case !absent(in.Namespaces):
		var s object.LabelSelector
		if decode(&bad, "spec.subject.namespaces", in.Namespaces, &s) {
			c.policy.Subject = pods(&bad, "spec.subject.namespaces", &s, nil)
		}
	case !absent(in.Pods):
		p, _ := c.pods(&bad, "spec.subject.pods", in.Pods)
		if c.policy.Subject = p.Select; p.SameNamespace || p.SameLabels != nil {
			c.policy.Subject = nil
		}
	default:
		bad.add("spec.subject", "one of namespaces and pods must be set")
	}
	if c.policy.Subject == nil {
		if len(bad.errs) == 0 {
			bad.add("spec.subject", "names its namespaces in a way that weft does not know")
		}
		return errors.Join(bad.errs...)
	}
	// There is something that nobody knows beside what was understood: nothing is accepted.
	for _, err := range bad.errs {
		c.bad.wrap("spec.subject", err)
	}
	return nil
}

// pods converts {namespaceSelector, podSelector}; ok is false if it was not understood, which is noted.
func (c *converter) pods(bad *mistakes, field string, raw json.RawMessage) (p model.Peer, ok bool) {
	var in struct {
		NamespaceSelector *object.LabelSelector `json:"namespaceSelector"`
		PodSelector       *object.LabelSelector `json:"podSelector"`
		Namespaces        json.RawMessage       `json:"namespaces"`
	}
	if !decode(bad, field, raw, &in) {
		return p, false
	}
	switch {
	case in.PodSelector == nil:
		bad.add(field+".podSelector", "is missing")
		return p, false
	case !absent(in.Namespaces) && !c.d.Nested:
		bad.wrap(field, &object.UnknownField{Field: field, Name: "namespaces"})
	case !absent(in.Namespaces) && in.NamespaceSelector != nil:
		bad.add(field, "both namespaces and namespaceSelector are set")
		return p, false
	case !absent(in.Namespaces):
		if in.NamespaceSelector, ok = c.namespaces(bad, field+".namespaces", in.Namespaces, &p); !ok {
			return p, false
		}
	}
	p.Select = pods(bad, field, in.NamespaceSelector, in.PodSelector)
	return p, p.Select != nil
}

// pods is the expression for the pods of the namespaces; nil, with the mistake noted, if a selector is wrong. A selector that is nil
// matches everything.
func pods(bad *mistakes, field string, namespaces, own *object.LabelSelector) *selector.Expr {
	var parts [2]*selector.Expr
	var err error
	if namespaces != nil {
		at := field
		if own != nil {
			at += ".namespaceSelector"
		}
		parts[0], err = namespaces.ExprKeys(at, func(k string) string { return selector.Namespace + k })
		if err != nil {
			bad.wrap(at, err)
			return nil
		}
	}
	if own != nil {
		parts[1], err = own.Expr(field + ".podSelector")
		if err != nil {
			bad.wrap(field+".podSelector", err)
			return nil
		}
	}
	return object.Pods("", selector.AllOf(parts[:]...))
}

// namespaces reads a selector of namespaces. In v1alpha1's first releases it may look at the namespace of the subject instead,
// which is then asked of the peer; s is nil.
func (c *converter) namespaces(bad *mistakes, field string, raw json.RawMessage, p *model.Peer) (s *object.LabelSelector, ok bool) {
	var in struct {
		object.LabelSelector
		NamespaceSelector *object.LabelSelector `json:"namespaceSelector"`
		Related           *string               `json:"related"`
		SameLabels        []string              `json:"sameLabels"`
		NotSameLabels     []string              `json:"notSameLabels"`
	}
	if !c.d.Nested {
		ok = decode(bad, field, raw, &in.LabelSelector)
		return &in.LabelSelector, ok
	}
	if !decode(bad, field, raw, &in) {
		return nil, false
	}
	plain := in.MatchLabels != nil || in.MatchExpressions != nil
	set := []bool{plain, in.NamespaceSelector != nil, in.Related != nil, in.SameLabels != nil, in.NotSameLabels != nil}
	switch {
	case !slices.Contains(set, true): // {} is a selector
		return &in.LabelSelector, true
	case !one(set...):
		bad.add(field, "more than one of its fields is set")
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
		bad.add(field+".sameLabels", "must not be empty")
		return nil, false
	case in.SameLabels != nil:
		p.SameLabels = in.SameLabels
		return nil, true
	}
	return &in.LabelSelector, true
}

// lack notes a field that is right, but not enforced yet.
func (c *converter) lack(bad *mistakes, field string) {
	bad.lack(field)
	c.policy.Unsupported = append(c.policy.Unsupported, field)
}

// decode decodes a part of an object, and notes what is wrong with it; ok is false if it was not decoded.
func decode(bad *mistakes, field string, raw json.RawMessage, into any) (ok bool) {
	if absent(raw) {
		return true
	}
	switch kind := reflect.TypeOf(into).Elem().Kind(); {
	case kind == reflect.Struct && raw[0] != '{':
		bad.add(field, "want an object")
		return false
	case kind == reflect.Slice && raw[0] != '[':
		bad.add(field, "want a list")
		return false
	}
	err := object.Decode(field, raw, into)
	if err == nil {
		return true
	}
	bad.wrap(field, err)
	var unknown *object.UnknownField
	return errors.As(err, &unknown)
}

// absent reports whether a field is not there or null, which Kubernetes does not tell apart.
func absent(raw json.RawMessage) bool {
	return len(raw) == 0 || bytes.Equal(raw, []byte("null"))
}
