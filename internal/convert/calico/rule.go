package calico

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"weft/internal/convert/object"
	"weft/internal/model"
	"weft/internal/netset"
)

// ruleSpec is one rule as users write it.
type ruleSpec struct {
	Action      json.RawMessage `json:"action"`
	IPVersion   json.RawMessage `json:"ipVersion"`
	Protocol    json.RawMessage `json:"protocol"`
	ICMP        json.RawMessage `json:"icmp"`
	NotProtocol json.RawMessage `json:"notProtocol"`
	NotICMP     json.RawMessage `json:"notICMP"`
	Source      json.RawMessage `json:"source"`
	Destination json.RawMessage `json:"destination"`
	HTTP        json.RawMessage `json:"http"`
	Metadata    json.RawMessage `json:"metadata"` // annotations, which decide nothing
}

// httpSpec is what a rule wants of an HTTP request.
type httpSpec struct {
	Methods []string            `json:"methods"`
	Paths   []map[string]string `json:"paths"` // with exact, or with prefix
}

// ruleReader reads one rule. What it does not understand it leaves out, which makes the rule match more, and remembers:
// who evaluates a marked rule takes it for no match, unless it denies.
type ruleReader struct {
	*report
	field     string // path of the rule, "spec.ingress[2]"
	namespace string // of the policy; "": it has none
	ingress   bool
	family    netset.Family // of spec.ipVersion; 0: both
	bad       string        // path of the first field that is wrong or not enforced yet; "": none
}

func (r *ruleReader) mark(field string) {
	if r.bad == "" {
		r.bad = field
	}
}

// fail reports a mistake.
func (r *ruleReader) fail(field, format string, args ...any) {
	r.errorf(field, format, args...)
	r.mark(field)
}

// later reports a field that is right, and not enforced yet.
func (r *ruleReader) later(field string) {
	r.unsupported = append(r.unsupported, field)
	r.mark(field)
}

// into decodes a struct; a mistake marks the rule.
func into[T any](r *ruleReader, field string, raw json.RawMessage) (v T) {
	v, ok := structure[T](r.report, field, raw)
	if !ok {
		r.mark(blame(field, r.errs[len(r.errs)-1]))
	}
	return v
}

// blame returns the path of the field that a decoding error is about.
func blame(field string, err error) string {
	var unknown *object.UnknownField
	if errors.As(err, &unknown) {
		return unknown.Field + "." + unknown.Name
	}
	return field
}

// rules converts a list of rules. Ones that follow from a mistake elsewhere in the spec, whose path is bad, match nothing either.
func rules(r *report, section, namespace, bad string, items []json.RawMessage) []model.Rule {
	var out []model.Rule
	for i, raw := range items {
		reader := &ruleReader{
			report: r, field: fmt.Sprintf("spec.%s[%d]", section, i),
			namespace: namespace, ingress: section == "ingress", bad: bad,
		}
		out = append(out, reader.rule(i, raw))
	}
	return out
}

func (r *ruleReader) rule(index int, raw json.RawMessage) model.Rule {
	s := into[ruleSpec](r, r.field, raw)
	out := model.Rule{Index: index, Field: r.field, Verdict: r.verdict(s.Action)}
	if out.Verdict == model.VerdictLog {
		// The prefix is the one of Felix's configuration, whose default this is.
		out.Log = &model.Log{Prefix: "calico-packet"}
	}
	r.version(&s)
	src, dst := r.entity("source", s.Source), r.entity("destination", s.Destination)
	out.Family = r.family
	r.excludedFamilies(&out, src, dst)
	out.L4 = r.transport(&s, src, dst)
	other, own := src, dst
	if !r.ingress {
		other, own = dst, src
	}
	if len(other.domains) > 0 && out.Verdict != model.VerdictDeny && out.Verdict != model.VerdictReject {
		other.peer.Names = other.domains // a peer with names matches nothing: not for what denies
	}
	if out.Peers == nil {
		out.Peers = other.peers()
	}
	out.Local = own.peers()
	r.http(s.HTTP, s.Protocol, out.Verdict)
	out.Unsupported = r.bad
	return out
}

// verdict reads the action. An action that nobody knows denies: a rule that was to deny must not be skipped.
func (r *ruleReader) verdict(raw json.RawMessage) model.Verdict {
	field := r.field + ".action"
	action, ok := decode[string](r.report, field, raw)
	if !ok {
		r.mark(field)
		return model.VerdictDeny
	}
	switch action {
	case "Allow":
		return model.VerdictAllow
	case "Deny":
		return model.VerdictDeny
	case "Pass":
		return model.VerdictPass
	case "Log":
		return model.VerdictLog
	}
	r.fail(field, "%q is not one of Allow, Deny, Log, Pass", action)
	return model.VerdictDeny
}

// version reads ipVersion.
func (r *ruleReader) version(s *ruleSpec) {
	if absent(s.IPVersion) {
		return
	}
	field := r.field + ".ipVersion"
	v, ok := decode[int](r.report, field, s.IPVersion)
	switch {
	case !ok:
		r.mark(field)
	case v == 4:
		r.family = netset.V4
	case v == 6:
		r.family = netset.V6
	default:
		r.fail(field, "%d is neither 4 nor 6", v)
	}
}

// excludedFamilies keeps a rule from packets of a family of which it says nothing: one that excludes nets of one family is about
// that family alone, in Calico, just as one that names nets is.
func (r *ruleReader) excludedFamilies(out *model.Rule, src, dst entity) {
	left := netset.Families()
	for _, e := range []entity{src, dst} {
		if nets := e.peer.NotNets; len(nets) > 0 && e.exact {
			left = slices.DeleteFunc(left, func(f netset.Family) bool {
				return !slices.ContainsFunc(nets, func(p netip.Prefix) bool { return netset.OfPrefix(p) == f })
			})
		}
	}
	switch {
	case len(left) == 0: // one side excludes nets of one family, the other of the other
		out.Peers = []model.Peer{}
	case len(left) == 1:
		out.Family = left[0]
	}
}

// http reads what a rule wants of HTTP requests. It is kept out of the rule until a proxy can decide it.
func (r *ruleReader) http(raw, protocol json.RawMessage, verdict model.Verdict) {
	if absent(raw) {
		return
	}
	field := r.field + ".http"
	into[httpSpec](r, field, raw)
	switch p, ok := parseProtocol(protocol); {
	case verdict != model.VerdictAllow:
		r.fail(field, "only rules that allow may look at HTTP")
	case !r.ingress:
		r.fail(field, "only ingress rules may look at HTTP")
	case !absent(protocol) && ok && p != model.ProtoTCP:
		r.fail(field, "needs protocol TCP")
	default:
		r.later(field)
	}
}
