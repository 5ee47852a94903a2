package calico

import (
	"encoding/json"
	"math"

	"weft/internal/convert/object"
	"weft/internal/model"
	"weft/internal/selector"
)

// tier converts a Tier. The order and default action of Calico's own tiers are what they are, whatever an object says.
func tier(o *object.Object) object.Result {
	r := &report{}
	spec, _ := structure[struct {
		Order         json.RawMessage `json:"order"`
		DefaultAction json.RawMessage `json:"defaultAction"`
	}](r, "spec", o.Spec)
	t := &model.Tier{API: model.APICalico, Name: o.Meta.Name, Order: math.Inf(1)}
	if order, ok := decode[*float64](r, "spec.order", spec.Order); ok && order != nil {
		t.Order = *order
	}
	switch action, _ := decode[string](r, "spec.defaultAction", spec.DefaultAction); action {
	case "Pass":
		t.Pass = true
	case "", "Deny":
	default:
		r.errorf("spec.defaultAction", "%q is neither Deny nor Pass: taken for Deny", action)
	}
	order, pass := t.Order, t.Pass
	switch t.Name {
	case "default":
		order, pass = model.TierNormal, false
	case "kube-admin":
		order, pass = model.TierAdmin, true
	case "kube-baseline":
		order, pass = model.TierBaseline, true
	}
	if t.Order != order {
		r.errorf("spec.order", "the order of tier %s is %v", t.Name, order)
	}
	if t.Pass != pass {
		r.errorf("spec.defaultAction", "of tier %s is %s", t.Name, map[bool]string{true: "Pass", false: "Deny"}[pass])
	}
	t.Order, t.Pass = order, pass
	return object.Result{Objects: []model.Object{t}, Err: r.err()}
}

// networkSet converts a NetworkSet or a GlobalNetworkSet.
func networkSet(o *object.Object) object.Result {
	r := &report{}
	spec, _ := structure[struct {
		Nets    json.RawMessage `json:"nets"`
		Domains json.RawMessage `json:"allowedEgressDomains"` // of Calico Enterprise and Cloud
	}](r, "spec", o.Spec)
	if domains, _ := r.texts("spec.allowedEgressDomains", spec.Domains); len(domains) > 0 {
		r.errorf("spec.allowedEgressDomains", "is not enforced yet: the set has the addresses of spec.nets alone")
	}
	labels := ownLabels(o.Meta.Labels)
	// Calico gives every set these, so that rules can select one by its name.
	labels[labelName], labels[labelKind] = o.Meta.Name, o.Type.Kind
	labels[selector.Kind], labels[selector.Name] = selector.KindSet, o.Meta.Name
	if o.Meta.Namespace != "" {
		labels[selector.NamespaceName] = o.Meta.Namespace
	}
	set := &model.AddressSet{Ref: o.Ref(), Labels: labels, Nets: r.prefixes("spec.nets", spec.Nets)}
	return object.Result{Objects: []model.Object{set}, Err: r.err()}
}

// stagedKubernetes converts a Kubernetes NetworkPolicy that does nothing yet.
func stagedKubernetes(o *object.Object) object.Result {
	r := &report{}
	spec, ok := structure[kubernetesSpec](r, "spec", o.Spec)
	bad := ""
	if !ok {
		if bad = blame("spec", r.errs[0]); bad == "spec" {
			return object.Result{Err: r.err()}
		}
	}
	if !shown(r, spec.StagedAction) {
		return object.Result{Err: r.err()}
	}
	subject, ok := r.labels("spec.podSelector", spec.PodSelector, nil)
	if !ok {
		return object.Result{Err: r.err()}
	}
	p := &model.Policy{
		Ref: o.Ref(), Subject: object.Pods(o.Meta.Namespace, subject), Staged: true,
		// The place and the rank of all Kubernetes NetworkPolicies, whose rules have no order.
		Tier: kubernetesTier(), Order: 1000, Set: true,
	}
	in, inOK := r.list("spec.ingress", spec.Ingress)
	eg, egOK := r.list("spec.egress", spec.Egress)
	if !inOK || !egOK {
		bad = "spec.ingress"
		if inOK {
			bad = "spec.egress"
		}
	}
	types, typesOK := r.texts("spec.policyTypes", spec.PolicyTypes)
	// As the API server fills it in for the policy that this is to become: an empty egress is none.
	ingress, egress := len(types) == 0, len(types) == 0 && len(eg) > 0
	for _, t := range types {
		switch t {
		case "Ingress":
			ingress = true
		case "Egress":
			egress = true
		default:
			r.errorf("spec.policyTypes", "%q is neither Ingress nor Egress", t)
			typesOK = false
		}
	}
	if !typesOK {
		ingress, egress, bad = true, true, "spec.policyTypes"
	}
	if ingress {
		p.Ingress = &model.Section{Isolates: true, Rules: kubernetesRules(r, "ingress", o.Meta.Namespace, bad, in)}
	}
	if egress {
		p.Egress = &model.Section{Isolates: true, Rules: kubernetesRules(r, "egress", o.Meta.Namespace, bad, eg)}
	}
	return object.Result{Objects: []model.Object{p}, Err: r.err()}
}
