package calico

import (
	"encoding/json"
	"math"
	"strings"

	"weft/internal/convert/object"
	"weft/internal/model"
	"weft/internal/selector"
)

// policySpec is the spec of a policy, of all four kinds.
type policySpec struct {
	Tier                   json.RawMessage `json:"tier"`
	Order                  json.RawMessage `json:"order"`
	Selector               json.RawMessage `json:"selector"`
	ServiceAccountSelector json.RawMessage `json:"serviceAccountSelector"`
	Types                  json.RawMessage `json:"types"`
	Ingress                json.RawMessage `json:"ingress"`
	Egress                 json.RawMessage `json:"egress"`
	PerformanceHints       json.RawMessage `json:"performanceHints"` // change nothing

	// Of the global kinds.
	NamespaceSelector json.RawMessage `json:"namespaceSelector"`
	DoNotTrack        json.RawMessage `json:"doNotTrack"`
	PreDNAT           json.RawMessage `json:"preDNAT"`
	ApplyOnForward    json.RawMessage `json:"applyOnForward"`

	// Of the staged kinds.
	StagedAction json.RawMessage `json:"stagedAction"`
}

// policyReader reads one policy.
type policyReader struct {
	*report
	object *object.Object
	spec   policySpec
	global bool   // it is in no namespace
	staged bool   // of a kind that only says what it would do
	bad    string // path of the first field of the spec, outside of its rules, that is wrong
}

func (p *policyReader) mark(field string) {
	if p.bad == "" {
		p.bad = field
	}
}

func (p *policyReader) fail(field, format string, args ...any) {
	p.errorf(field, format, args...)
	p.mark(field)
}

// policy converts the four kinds of policies.
func policy(o *object.Object) object.Result {
	p := &policyReader{
		report: &report{}, object: o,
		global: o.Meta.Namespace == "", staged: strings.HasPrefix(o.Type.Kind, "Staged"),
	}
	spec, ok := structure[policySpec](p.report, "spec", o.Spec)
	if p.spec = spec; !ok {
		p.mark(blame("spec", p.errs[0]))
		if p.bad == "spec" { // it is no object at all
			return object.Result{Err: p.err()}
		}
	}
	p.foreignFields()
	if p.staged && !shown(p.report, p.spec.StagedAction) {
		return object.Result{Err: p.err()}
	}
	out := model.Policy{Ref: o.Ref(), Tier: p.tier(), Order: p.order(), Staged: p.staged}
	out.Ref.Name = p.name()
	out.Tie = out.Ref.Name + "/" + out.Ref.Namespace + "/" + out.Ref.Kind
	hook, forward := p.hook()
	subject, ok := p.subject()
	if !ok {
		return object.Result{Err: p.err()}
	}
	p.sections(&out, hook)
	out.Unsupported = p.unsupported
	res := object.Result{Err: p.err()}
	for part, h := range hooks(hook, forward) {
		q := out
		q.Hook, q.Part = h, part
		q.Subject = p.kinds(h, subject)
		res.Objects = append(res.Objects, &q)
	}
	return res
}

// hooks lists where a policy is asked. One that is applied on forward is asked of a host endpoint's own traffic as well.
func hooks(hook model.Hook, forward bool) []model.Hook {
	if forward && hook == model.HookWorkload {
		return []model.Hook{model.HookWorkload, model.HookForward}
	}
	return []model.Hook{hook}
}

// foreignFields reports fields of other kinds of policies as what they are in this one, unknown.
func (p *policyReader) foreignFields() {
	check := func(mine bool, name string, raw json.RawMessage) {
		if !mine && !absent(raw) {
			p.errs = append(p.errs, &object.UnknownField{Field: "spec", Name: name})
			p.mark("spec." + name)
		}
	}
	check(p.global, "namespaceSelector", p.spec.NamespaceSelector)
	check(p.global, "doNotTrack", p.spec.DoNotTrack)
	check(p.global, "preDNAT", p.spec.PreDNAT)
	check(p.global, "applyOnForward", p.spec.ApplyOnForward)
	check(p.staged, "stagedAction", p.spec.StagedAction)
}

// shown says whether a staged policy has something to show: it may also stand for the removal of a policy, or be put aside.
func shown(r *report, raw json.RawMessage) bool {
	action, _ := decode[string](r, "spec.stagedAction", raw)
	switch action {
	case "Delete", "Ignore":
		return false
	case "", "Set", "Learn":
	default:
		r.errorf("spec.stagedAction", "%q is not one of Set, Delete, Learn, Ignore", action)
	}
	return true
}

// stored says whether the object is as Calico's Kubernetes datastore keeps it.
func (p *policyReader) stored() bool { return p.object.Type.Group == storeGroup }

// name is the policy's name as users know it: in the datastore those of the default tier begin with "default.".
func (p *policyReader) name() string {
	if rest, ok := strings.CutPrefix(p.object.Meta.Name, "default."); ok && p.stored() && rest != "" {
		return rest
	}
	return p.object.Meta.Name
}

// tier names the tier: "default" if the user does not, or in the datastore the tier of which the name tells.
func (p *policyReader) tier() model.TierRef {
	name, ok := decode[string](p.report, "spec.tier", p.spec.Tier)
	if !ok {
		p.mark("spec.tier")
	}
	if name == "" {
		name = "default"
		first, _, found := strings.Cut(p.object.Meta.Name, ".")
		switch {
		case !found || !p.stored() || first == "" || first == "knp" || first == "ossg": // the last two are conversions of others' policies
		default:
			name = first
		}
	}
	return model.TierRef{API: model.APICalico, Name: name}
}

// order reads the order, infinite if there is none.
func (p *policyReader) order() float64 {
	order, ok := decode[*float64](p.report, "spec.order", p.spec.Order)
	if !ok {
		p.mark("spec.order")
	}
	if !ok || order == nil {
		return math.Inf(1)
	}
	return *order
}

// hook says where the policy is asked, and whether it is applied on forward.
func (p *policyReader) hook() (hook model.Hook, forward bool) {
	flag := func(name string, raw json.RawMessage) bool {
		v, ok := decode[bool](p.report, "spec."+name, raw)
		if !ok {
			p.mark("spec." + name)
		}
		if v {
			p.unsupported = append(p.unsupported, "spec."+name) // no datapath asks these hooks yet
		}
		return v
	}
	if !p.global {
		return model.HookWorkload, false
	}
	forward = flag("applyOnForward", p.spec.ApplyOnForward)
	untracked, preDNAT := flag("doNotTrack", p.spec.DoNotTrack), flag("preDNAT", p.spec.PreDNAT)
	if untracked && preDNAT {
		p.fail("spec.preDNAT", "may not be true together with doNotTrack")
	}
	if (untracked || preDNAT) && !forward {
		p.fail("spec.applyOnForward", "must be true where preDNAT or doNotTrack is")
	}
	switch {
	case preDNAT:
		return model.HookPreDNAT, forward
	case untracked:
		return model.HookUntracked, forward
	}
	return model.HookWorkload, forward
}

// subject reads what the policy applies to; ok is false if it cannot be understood. Of what kinds these are is said by kinds.
func (p *policyReader) subject() (*selector.Expr, bool) {
	everything := selector.AllOf()
	all := everything
	// As Calico rewrites it, all() is in a policy with a namespaceSelector whatever is in a namespace, and in one
	// with a serviceAccountSelector whatever has a service account. In a policy of a namespace it is just all.
	accounts := everything
	if p.global {
		accounts = selector.Exists(selector.ServiceAccountName)
		if text, _ := decode[string](&report{}, "", p.spec.ServiceAccountSelector); text != "" {
			all = accounts
		}
		if text, _ := decode[string](&report{}, "", p.spec.NamespaceSelector); text != "" {
			all = selector.Exists(selector.NamespaceName)
		}
	}
	own, ok := p.selector("spec.selector", p.spec.Selector, endpointLanguage(all))
	account, accountOK := p.selector("spec.serviceAccountSelector", p.spec.ServiceAccountSelector, accountLanguage(accounts))
	ok = ok && accountOK
	var ns *selector.Expr
	if p.global {
		var nsOK bool
		ns, nsOK = p.selector("spec.namespaceSelector", p.spec.NamespaceSelector, namespaceLanguage(false))
		ok = ok && nsOK
	}
	return selector.AllOf(own, account, ns), ok
}

// kinds narrows the subject to what can be subject where the policy is asked: pods, but for one of no namespace also host endpoints, and
// away from pods nothing else.
func (p *policyReader) kinds(h model.Hook, subject *selector.Expr) *selector.Expr {
	switch {
	case !p.global:
		return object.Pods(p.object.Meta.Namespace, subject)
	case h == model.HookWorkload:
		return selector.AllOf(selector.OneOf(selector.Kind, selector.KindPod, selector.KindHostEndpoint), subject)
	}
	return selector.AllOf(selector.Equal(selector.Kind, selector.KindHostEndpoint), subject)
}

// sections reads types and rules.
func (p *policyReader) sections(out *model.Policy, hook model.Hook) {
	in, inOK := p.list("spec.ingress", p.spec.Ingress)
	eg, egOK := p.list("spec.egress", p.spec.Egress)
	if !inOK {
		p.mark("spec.ingress")
	}
	if !egOK {
		p.mark("spec.egress")
	}
	ingress, egress := p.types(len(in) > 0 || !inOK, len(eg) > 0 || !egOK)
	if hook == model.HookPreDNAT && egress {
		p.fail("spec.egress", "a policy with preDNAT is about ingress only")
		egress = false
	}
	// What no tier decides before connections are tracked or translated is decided after, where tiers end in a denial.
	isolates := hook == model.HookWorkload
	if ingress {
		out.Ingress = &model.Section{Isolates: isolates, Rules: rules(p.report, "ingress", out.Ref.Namespace, p.bad, in)}
	}
	if egress {
		out.Egress = &model.Section{Isolates: isolates, Rules: rules(p.report, "egress", out.Ref.Namespace, p.bad, eg)}
	}
}

// types says of which directions the policy is: what it says itself, else of those that it has rules of, else ingress. If what
// it says is wrong, of both.
func (p *policyReader) types(hasIngress, hasEgress bool) (ingress, egress bool) {
	types, ok := p.texts("spec.types", p.spec.Types)
	for _, t := range types {
		switch t {
		case "Ingress":
			ingress = true
		case "Egress":
			egress = true
		default:
			p.errorf("spec.types", "%q is neither Ingress nor Egress", t)
			ok = false
		}
	}
	switch {
	case !ok:
		p.mark("spec.types")
		return true, true
	case len(types) > 0:
		return ingress, egress
	}
	return hasIngress || !hasEgress, hasEgress
}
