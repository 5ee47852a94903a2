package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"weft/internal/api"
	"weft/internal/compile/policy"
	"weft/internal/convert/k8s"
	"weft/internal/convert/language"
	"weft/internal/convert/object"
	"weft/internal/datapath/ebpf"
	"weft/internal/model"
	"weft/internal/plan"
)

// policyOrder is the method behind `weft policy order`.
func (a *Agent) policyOrder(context.Context, struct{}) (api.Table, error) {
	t := api.Table{Name: "policy order", Columns: []string{"TIER", "ORDER", "POLICY", "SUBJECT", "INGRESS", "EGRESS", "NOTE"}}
	snap := a.store.Snapshot()
	for _, p := range policy.Order(snap) {
		notes := trialNotes(snap, p.Key())
		if p.Staged {
			notes = append(notes, "staged")
		}
		if len(p.Unsupported) > 0 {
			notes = append(notes, "Unsupported: "+strings.Join(p.Unsupported, ", "))
		}
		tier := p.Tier.Name
		if p.Tier.API != "" {
			tier = p.Tier.API + "/" + tier
		}
		subject := "none"
		if p.Subject != nil {
			subject = p.Subject.String()
		}
		t.Rows = append(t.Rows, []string{
			fmt.Sprintf("%s (%s)", tier, order(p.Tier.Order)), order(p.Order), p.Ref.String(), subject, section(p.Ingress), section(p.Egress), strings.Join(notes, "; "),
		})
	}
	return t, nil
}

func order(x float64) string {
	if math.IsInf(x, 0) {
		return map[bool]string{true: "first", false: "last"}[x < 0]
	}
	return strconv.FormatFloat(x, 'g', 6, 64)
}

func section(s *model.Section) string {
	switch {
	case s == nil:
		return "-"
	case s.Isolates:
		return fmt.Sprintf("%d rules, else deny", len(s.Rules))
	}
	return fmt.Sprintf("%d rules", len(s.Rules))
}

// policyUnused is the method behind `weft policy unused`.
func (a *Agent) policyUnused(context.Context, struct{}) (api.Table, error) {
	t := api.Table{Name: "policy unused", Columns: []string{"RULE", "VERDICT", "DIRECTION", "WHY"}}
	members := map[plan.ID][]plan.ID{}
	for r := range plan.All[*plan.PeerSet](a.store.View(), plan.KindPeerSet) {
		members[r.ID] = r.Members
	}
	hits := a.ruleHits()
	seen := map[string]bool{}
	for s := range plan.All[*plan.PolicySet](a.store.View(), plan.KindPolicySet) {
		shadowed := policy.Shadowed(s, func(id plan.ID) []plan.ID { return members[id] })
		for i, r := range s.Rules {
			why := ""
			if by, ok := shadowed[i]; r.Peers != 0 && len(members[r.Peers]) == 0 {
				why = "nobody is among its peers now"
			} else if ok {
				why = "shadowed by " + s.Rules[by].Origin
			} else if hits[r.ID].Packets == 0 {
				why = "never hit on this node"
			}
			line := []string{r.Origin, r.Verdict.String(), s.Direction.String(), why}
			if key := strings.Join(line, "\n"); why != "" && !seen[key] {
				seen[key] = true
				t.Rows = append(t.Rows, line)
			}
		}
	}
	slices.SortFunc(t.Rows, slices.Compare)
	return t, nil
}

// policyDiff is the method behind `weft policy diff`.
func (a *Agent) policyDiff(_ context.Context, r api.DiffRequest) (api.DiffReply, error) {
	objs, err := parseObjects(r.Manifest)
	if err != nil {
		return api.DiffReply{}, api.Errorf(api.CodeInvalidConfig, "%v", err)
	}
	changed := map[model.Key]model.Object{}
	for _, o := range objs {
		changed[o.Key()] = o
		if r.Delete {
			changed[o.Key()] = nil
		}
	}
	before := a.store.Snapshot()
	var open []policy.Flow
	if err := a.ebpf.Connections(func(c ebpf.Conn) bool {
		open = append(open, policy.Flow{Src: c.Src, Dst: c.Dst, Proto: int(c.Proto), SrcPort: c.SrcPort, DstPort: c.DstPort})
		return true
	}); err != nil {
		return api.DiffReply{}, err
	}
	d := policy.Diff(before, policy.With(before, changed), open)
	out := api.DiffReply{Pairs: d.Pairs, Open: d.Open}
	for _, c := range d.Changes {
		out.Changes = append(out.Changes, api.DiffChange{
			From: c.From, To: c.To, Port: c.L4.String(), Before: c.Before.String(), After: c.After.String(), By: c.By, Seen: c.Seen,
		})
	}
	return out, nil
}

// parseObjects reads what a manifest says of policies and of what they select.
func parseObjects(manifest []byte) ([]model.Object, error) {
	var out []model.Object
	var errs []error
	for _, d := range k8s.Documents(manifest) {
		objs, err := []model.Object{d.Object}, d.Err
		if d.Object == nil {
			objs = nil
		}
		if kind, ok := language.Find(object.TypeOf(d.Type.APIVersion, d.Type.Kind)); ok {
			r := kind.Convert(d.Raw)
			objs, err = r.Objects, r.Err
		}
		out = append(out, objs...)
		if err != nil {
			errs = append(errs, fmt.Errorf("line %d: %w", d.Line, err))
		}
	}
	if len(out) == 0 && len(errs) == 0 {
		return nil, errors.New("no object in the manifest")
	}
	return out, errors.Join(errs...)
}

// ruleHits is how often each rule has decided on this node, by its counter.
func (a *Agent) ruleHits() map[plan.ID]ebpf.RuleHits {
	hits, err := a.ebpf.RuleHits()
	if err != nil {
		a.log.Warn("read the hits of rules", "error", err)
	}
	return hits
}

// hitRule is a rule that is in force on this node, with how often it has decided.
type hitRule struct {
	rule      plan.PolicyRule
	direction plan.Direction
	hits      ebpf.RuleHits
}

// rules returns each rule that is in force on this node once, however many sets it is in.
func (a *Agent) rules() []hitRule {
	hits := a.ruleHits()
	seen := map[plan.ID]bool{}
	var out []hitRule
	for s := range plan.All[*plan.PolicySet](a.store.View(), plan.KindPolicySet) {
		for _, r := range s.Rules {
			if !seen[r.ID] {
				seen[r.ID] = true
				out = append(out, hitRule{r, s.Direction, hits[r.ID]})
			}
		}
	}
	slices.SortFunc(out, func(x, y hitRule) int {
		return cmp.Or(strings.Compare(x.rule.Origin, y.rule.Origin), cmp.Compare(x.direction, y.direction), cmp.Compare(x.rule.ID, y.rule.ID))
	})
	return out
}

// policyRules is the table of the rules in force, which is made of others.
const policyRules = "policyrules"

func (a *Agent) rulesTable() api.Table {
	t := api.Table{Name: policyRules, Columns: []string{"RULE", "DIRECTION", "VERDICT", "PACKETS", "LAST", "NOTE"}}
	for _, r := range a.rules() {
		last := "never"
		if !r.hits.Last.IsZero() {
			last = age(a.clock.Now(), r.hits.Last)
		}
		note := ""
		if r.rule.Staged {
			note = "staged: counts what it would do"
		}
		t.Rows = append(t.Rows, []string{r.rule.Origin, r.direction.String(), r.rule.Verdict.String(), strconv.FormatUint(r.hits.Packets, 10), last, note})
	}
	return t
}
