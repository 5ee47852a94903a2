package antrea

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"weft/internal/convert/object"
	"weft/internal/model"
	"weft/internal/selector"
)

// ruleSpec is a rule of a policy.
type ruleSpec struct {
	Action        *string           `json:"action"`
	Ports         []json.RawMessage `json:"ports"`
	Protocols     []json.RawMessage `json:"protocols"`
	L7Protocols   []json.RawMessage `json:"l7Protocols"`
	From          []json.RawMessage `json:"from"`
	To            []json.RawMessage `json:"to"`
	ToServices    []json.RawMessage `json:"toServices"`
	Name          string            `json:"name"`
	EnableLogging bool              `json:"enableLogging"`
	LogLabel      string            `json:"logLabel"`
	AppliedTo     []json.RawMessage `json:"appliedTo"`
}

// l7Protocol is what a rule wants of the content.
type l7Protocol struct {
	HTTP *struct {
		Host   string `json:"host"`
		Method string `json:"method"`
		Path   string `json:"path"`
	} `json:"http"`
	TLS *struct {
		SNI string `json:"sni"`
	} `json:"tls"`
}

// peerService is an element of toServices.
type peerService struct {
	namespacedName
	Scope string `json:"scope"`
}

// ruleState is a rule on its way.
type ruleState struct {
	*policyState
	spec   ruleSpec
	field  string // of the object, "spec.ingress[1]"
	egress bool
	out    model.Rule
	bad    string // the first field with a mistake; "": none
	gap    string // the first field that is right and not enforced yet; "": none
}

// fail notes a mistake because of which the rule fails closed.
func (r *ruleState) fail(field, format string, args ...any) {
	r.mistake(field, format, args...)
	r.failed(field)
}

// failed is fail for a mistake that is noted already.
func (r *ruleState) failed(field string) {
	if r.bad == "" {
		r.bad = field
	}
}

// later notes a field that is not enforced yet.
func (r *ruleState) later(field string) {
	r.notYet(field)
	if r.gap == "" {
		r.gap = field
	}
}

// denies says which way to err: a rule that denies may match more than was meant, others only less.
func (r *ruleState) denies() bool {
	return r.out.Verdict == model.VerdictDeny || r.out.Verdict == model.VerdictReject
}

// rule converts a rule, except for what it is applied to.
func (p *policyState) rule(direction string, i int, raw json.RawMessage) *ruleState {
	field := fmt.Sprintf("spec.%s[%d]", direction, i)
	r := &ruleState{policyState: p, field: field, egress: direction == "egress", out: model.Rule{Index: i, Field: field}}
	if !r.decode(field, raw, &r.spec) {
		r.failed(field)
	}
	r.out.Name = r.spec.Name
	if first, double := r.names[r.spec.Name]; double && r.spec.Name != "" {
		r.fail(field+".name", "%q is the name of %s too", r.spec.Name, first)
	}
	r.names[r.spec.Name] = field
	r.verdict()
	r.log()
	r.ports()
	r.peers()
	return r
}

// finish returns the rule. Of a rule that fails closed all parts are kept as they are understood.
func (r *ruleState) finish() model.Rule {
	switch {
	case r.bad != "":
		r.out.Unsupported = r.bad
	case r.closed != "":
		r.out.Unsupported = r.closed
	case r.gap != "" && (r.denies() || r.void()):
		r.out.Unsupported = r.gap
	}
	return r.out
}

// void says that what the rule needs is not enforced yet, so that it cannot match. If only some of its peers or protocols are not,
// it does its work for the others.
func (r *ruleState) void() bool {
	known := func(p model.Peer) bool { return p.Names == nil }
	return r.out.L4 != nil && len(r.out.L4) == 0 || r.out.Peers != nil && !slices.ContainsFunc(r.out.Peers, known)
}

// verdict converts action and l7Protocols.
func (r *ruleState) verdict() {
	field := r.field + ".action"
	action := ""
	if r.spec.Action != nil {
		action = *r.spec.Action
	}
	switch action {
	case "Allow":
		r.out.Verdict = model.VerdictAllow
	case "Drop":
		r.out.Verdict = model.VerdictDeny
	case "Reject":
		r.out.Verdict = model.VerdictReject
	case "Pass":
		// Not to the next tier, but to the policies of Kubernetes.
		r.out.Verdict, r.out.PassTo = model.VerdictPass, model.TierNormal
		if r.baseline {
			r.fail(field, "Pass is not possible in the tier baseline, which is the last")
		}
	case "":
		r.out.Verdict = model.VerdictDeny // it may have been meant
		r.fail(field, "is missing")
	default:
		r.out.Verdict = model.VerdictDeny
		r.fail(field, "%q is not one of Allow, Drop, Reject, Pass", action)
	}
	if len(r.spec.L7Protocols) == 0 {
		return
	}
	field = r.field + ".l7Protocols"
	for i, raw := range r.spec.L7Protocols {
		at := fmt.Sprintf("%s[%d]", field, i)
		var l l7Protocol
		switch ok := r.decode(at, raw, &l); {
		case !ok:
			r.failed(at)
		case (l.HTTP == nil) == (l.TLS == nil):
			r.fail(at, "needs one of http, tls")
		}
	}
	r.later(field)
	if action != "Allow" {
		r.fail(field, "is only possible with action Allow")
		return
	}
	// Upstream drops what matches the rule but not its protocols, and asks no other rule. To match nothing would open what the
	// rule closes.
	r.out.Verdict = model.VerdictDeny
}

// log converts enableLogging and logLabel. A wrong label changes no decision.
func (r *ruleState) log() {
	label := r.spec.LogLabel
	if !isLogLabel(label) {
		r.mistake(r.field+".logLabel", "%q is not a label: at most 63 letters, digits, '-', '_' and '.'", label)
		label = ""
	}
	if r.spec.EnableLogging {
		r.out.Log = &model.Log{Prefix: label}
	}
}

// isLogLabel says whether a label can be in a line of a log.
func isLogLabel(s string) bool {
	const alnum = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	return len(s) <= 63 && strings.Trim(s, alnum+"-_.") == "" && s == strings.Trim(s, "-_.")
}

// peers converts from, to and toServices.
func (r *ruleState) peers() {
	name, list, other, wrong := "from", r.spec.From, "to", r.spec.To
	if r.egress {
		name, list, other, wrong = "to", r.spec.To, "from", r.spec.From
	}
	if len(wrong) > 0 {
		r.fail(r.field+"."+other, "is not allowed here")
	}
	if len(r.spec.ToServices) > 0 {
		r.toServices()
		return
	}
	if len(list) == 0 {
		return // anybody
	}
	whole := true
	r.out.Peers = []model.Peer{}
	for i, raw := range list {
		p, ok := r.peer(fmt.Sprintf("%s.%s[%d]", r.field, name, i), raw)
		if p != nil {
			r.out.Peers = append(r.out.Peers, *p)
		}
		whole = whole && ok
	}
	if !whole && r.denies() {
		r.out.Peers = append(r.out.Peers, model.Peer{}) // anybody may be meant
	}
}

// peer converts one peer. The second result is false if others may be meant too.
func (r *ruleState) peer(field string, raw json.RawMessage) (*model.Peer, bool) {
	allowed := []string{fieldPods, fieldNamespace, fieldExternal, fieldNodes, fieldGroup, fieldAccount, fieldBlock}
	if r.namespace == "" {
		allowed = append(allowed, fieldNamespaces)
	}
	if r.egress {
		allowed = append(allowed, fieldName)
	}
	e, wrong := r.entry(field, raw, allowed)
	if wrong != "" {
		r.failed(wrong)
		return nil, false
	}
	p, ok := r.peerOf(field, e)
	switch e.Scope {
	case "", "Cluster":
	case "ClusterSet":
		r.later(field + ".scope")
		return p, false // those of this cluster
	default:
		r.fail(field+".scope", "%q is not one of Cluster, ClusterSet", e.Scope)
		return nil, false
	}
	return p, ok
}

// peerOf converts the fields of a peer that select; entry has checked that they fit together.
func (r *ruleState) peerOf(field string, e *entry) (*model.Peer, bool) {
	var x *selector.Expr
	var ok bool
	p := &model.Peer{}
	switch {
	case e.ExternalEntitySelector != nil:
		r.later(field + "." + fieldExternal)
		return nil, false
	case e.FQDN != "":
		return r.name(field+"."+fieldName, e.FQDN)
	case e.IPBlock != nil:
		return r.ipBlock(field+"."+fieldBlock, e.IPBlock)
	case e.Group != "":
		ref := r.groupRef(e.Group)
		p.Group = &ref
		return p, true
	case e.NodeSelector != nil:
		// Rule.Hosts stays false: a nodeSelector never stops a node from reaching its own pods.
		x, ok = r.nodes(field, e.NodeSelector, selector.KindHost, selector.KindRemoteNode)
	case e.ServiceAccount != nil:
		x, ok = r.account(field+"."+fieldAccount, e.ServiceAccount)
	default:
		ok = r.namespaces(field+"."+fieldNamespaces, e.Namespaces, p)
		if ok {
			x, ok = r.pods(field, e.PodSelector, e.NamespaceSelector)
		}
	}
	if !ok {
		r.failed(field)
		return nil, false
	}
	p.Select = x
	return p, true
}

// namespaces converts namespaces, which may be nil; it says whether all is well.
func (r *ruleState) namespaces(field string, n *peerNamespaces, p *model.Peer) bool {
	switch {
	case n == nil:
	case n.Match != "" && n.SameLabels != nil:
		r.mistake(field, "match and sameLabels cannot be set together")
		return false
	case strings.EqualFold(n.Match, "Self"): // early documents have it in lower case
		p.SameNamespace = true
	case n.Match != "":
		r.mistake(field+".match", "%q is not Self", n.Match)
		return false
	case len(n.SameLabels) == 0:
		r.mistake(field, "needs one of match, sameLabels")
		return false
	case slices.Contains(n.SameLabels, ""):
		r.mistake(field+".sameLabels", "has an empty key")
		return false
	default:
		p.SameLabels = n.SameLabels
	}
	return true
}

// ipBlock converts a block of addresses. Of a wrong exception, nothing is excepted.
func (r *ruleState) ipBlock(field string, b *ipBlock) (*model.Peer, bool) {
	p, wrong := r.block(field, b)
	if wrong != "" {
		r.failed(wrong)
	}
	if p == nil {
		return nil, false
	}
	if p.Nets[0].Addr().IsMulticast() {
		r.noAnswer(field + ".cidr")
	}
	return p, true
}

// noAnswer checks the action of a rule about multicast, of which nobody is told that it is denied.
func (r *ruleState) noAnswer(field string) {
	switch r.out.Verdict {
	case model.VerdictReject:
		r.out.Verdict = model.VerdictDeny
		r.fail(field, "multicast cannot be rejected, only dropped")
	case model.VerdictPass:
		r.fail(field, "multicast cannot be passed on")
	default:
	}
}

// name converts a DNS name or pattern.
func (r *ruleState) name(field, s string) (*model.Peer, bool) {
	const chars = "abcdefghijklmnopqrstuvwxyz0123456789-.*"
	s = strings.ToLower(s)
	if strings.Trim(s, chars) != "" {
		r.fail(field, "%q is not a name: it may have letters, digits, '-', '.' and '*'", s)
		return nil, false
	}
	r.later(field)
	return &model.Peer{Names: []string{strings.TrimSuffix(s, ".")}}, false
}

// toServices converts toServices, which match the addresses of services. Until those are translated by weft, a rule that allows or
// passes matches nothing, and one that denies matches the backends, whichever way they are reached.
func (r *ruleState) toServices() {
	field := r.field + ".toServices"
	r.out.Peers = []model.Peer{}
	whole := true
	switch {
	case !r.egress:
		r.fail(field, "is not allowed here")
		whole = false
	case len(r.spec.To)+len(r.spec.Ports)+len(r.spec.Protocols) > 0:
		r.fail(field, "cannot be set together with to, ports or protocols")
		whole = false
		r.out.L4 = nil
	}
	r.later(field)
	for i, raw := range r.spec.ToServices {
		at := fmt.Sprintf("%s[%d]", field, i)
		var s peerService
		switch {
		case !r.decode(at, raw, &s), !r.complete(at, &s.namespacedName):
			r.failed(at)
			whole = false
		case s.Scope != "" && s.Scope != "Cluster":
			r.later(at + ".scope")
			whole = false
		case r.denies():
			r.out.Peers = append(r.out.Peers, model.Peer{Select: backends(&s.namespacedName)})
		}
	}
	if !whole && r.denies() {
		r.out.Peers = append(r.out.Peers, model.Peer{})
	}
}

// applyTo sets what the rule alone is applied to.
func (r *ruleState) applyTo(a *applied) {
	r.out.Subject = a.subject
	if a.subject == nil {
		r.out.Subject = selector.AnyOf() // nobody but the groups
	}
	r.out.Groups = a.groups
	r.local(a.groups)
}

// local keeps a policy of a namespace from reaching pods of others through a group that has them. Upstream does not realise such a
// policy at all.
func (r *ruleState) local(groups []model.Ref) {
	if r.namespace != "" && len(groups) > 0 {
		r.out.Local = []model.Peer{{Select: object.Pods(r.namespace, nil)}}
	}
}
