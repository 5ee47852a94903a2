package cilium

import (
	"errors"
	"fmt"

	"weft/internal/convert/object"
	"weft/internal/model"
	"weft/internal/selector"
)

// Labels of address sets that are CIDR groups have a source, as in Cilium, which no label of Kubernetes has. So other APIs'
// selectors of address sets do not find CIDR groups by their labels, and Cilium's find nothing else.
const (
	sourceGroup  = "cidrgroup:"
	keyGroupName = sourceGroup + "@name" // every CIDR group has it
)

// convertGroup converts a CiliumCIDRGroup. A block with a mistake is left out: who is allowed is not more than was
// written; who is denied may be less, which is as in Cilium, where nobody would be.
func convertGroup(o *object.Object) object.Result {
	c := &converter{ref: o.Ref()}
	out := &model.AddressSet{Ref: c.ref, Labels: selector.Map{
		selector.Kind: selector.KindSet, selector.Name: o.Meta.Name, keyGroupName: o.Meta.Name,
	}}
	for k, v := range o.Meta.Labels {
		out.Labels[sourceGroup+k] = v
	}
	var ignored string
	f := c.fields("spec", o.Spec, &ignored)
	items, there := f.list("externalCIDRs", &ignored)
	if !there && len(c.errs) == 0 {
		c.mistake(&ignored, "spec.externalCIDRs", "is missing")
	}
	for i, raw := range items {
		at := fmt.Sprintf("spec.externalCIDRs[%d]", i)
		s, ok := c.text(at, raw, &ignored)
		if !ok {
			continue
		}
		if p, ok := c.prefix(&ignored, at, s, true); ok {
			out.Nets = append(out.Nets, p)
		}
	}
	f.rest(&ignored)
	return object.Result{Objects: []model.Object{out}, Err: errors.Join(c.errs...)}
}

// groups is the expression for addresses in CIDR groups that match e.
func groups(e *selector.Expr) *selector.Expr {
	return selector.AllOf(selector.Equal(selector.Kind, selector.KindSet), selector.Exists(keyGroupName), e)
}

// groupLabels converts a selector of CIDR groups by their labels.
func (c *converter) groupLabels(at string, s *object.LabelSelector, bad *faults) *selector.Expr {
	var parts []*selector.Expr
	for _, t := range c.terms(at, s, true, bad) {
		parts = append(parts, t.on(sourceGroup+t.key))
	}
	return selector.AllOf(parts...)
}
