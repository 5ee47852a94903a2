package ebpf

import (
	"errors"
	"fmt"
	"slices"

	"weft/internal/model"
	"weft/internal/plan"
)

// What becomes of rules that there is no room for: they are named, and what they leave open is closed. The others work.

// without is a set without the rules that are refused. One whose absence could let something pass denies everybody instead.
func without(row *plan.PolicySet, refused map[plan.ID]error) *plan.PolicySet {
	if len(refused) == 0 {
		return row
	}
	out := *row
	out.Rules = nil
	for _, r := range row.Rules {
		if refused[r.ID] != nil {
			if !opens(&r) {
				continue
			}
			r.Peers = 0
			if r.Verdict == model.VerdictPass {
				r.Verdict, r.PassTo = model.VerdictDeny, 0
			}
		}
		out.Rules = append(out.Rules, r)
	}
	return &out
}

// opens says whether something could pass that must not, if the rule were left out.
func opens(r *plan.PolicyRule) bool {
	return !r.Staged && r.Verdict != model.VerdictAllow && r.Verdict != model.VerdictLog
}

// shorten leaves out the later half of a set's rules, because there was no room for all: in their place everything is denied.
func shorten(row *plan.PolicySet, refused map[plan.ID]error, why error) *plan.PolicySet {
	half := (len(row.Rules) - 1) / 2
	for _, r := range row.Rules[half:] {
		refused[r.ID] = why
	}
	first := row.Rules[half]
	out := *row
	out.Rules = append(slices.Clone(row.Rules[:half]), plan.PolicyRule{
		ID: first.ID, Origin: first.Origin, Level: first.Level, Verdict: model.VerdictDeny, L4: []plan.L4{{Proto: model.ProtoAny}},
	})
	return &out
}

// misled says why a rule would let pass what it must not: an address that there was no room for passes for one of the identity
// of its surroundings.
func (p *policies) misled(r *plan.PolicyRule) error {
	s := p.peers[r.Peers]
	if s == nil || r.Staged || r.Verdict == model.VerdictLog {
		return nil
	}
	for at, x := range p.lost {
		is, seems := s.has(x.is), s.has(x.seems)
		if is == seems || r.Verdict == model.VerdictAllow && is || r.Verdict != model.VerdictAllow && r.Verdict != model.VerdictPass && seems {
			continue // right, or narrower than it should be
		}
		return fmt.Errorf("address %s: map %s %w", at, p.networks.name, errFull)
	}
	return nil
}

// heed writes those sets anew whose rules are misled since an address was lost or found. The errors name the rules.
func (p *policies) heed(want plan.View) error {
	if !p.stirred {
		return nil
	}
	p.stirred = false
	var errs []error
	for _, s := range p.have {
		if s.row == nil || !s.ready {
			continue // its row is tried again
		}
		row := s.row
		s.ready = false
		errs = append(errs, p.putSet(want, row))
	}
	return errors.Join(errs...)
}

// refusal names rules that are not in the kernel as they are.
func refusal(row *plan.PolicySet, refused map[plan.ID]error) error {
	var errs []error
	seen := map[plan.ID]bool{}
	for i := range row.Rules {
		r := &row.Rules[i]
		err := refused[r.ID]
		if err == nil || seen[r.ID] {
			continue
		}
		seen[r.ID] = true
		if len(errs) == maxRefusals {
			errs = append(errs, fmt.Errorf("and %d more of %d rules", len(refused)-maxRefusals, len(row.Rules)))
			break
		}
		does := "is left out"
		if opens(r) {
			does = "denies everybody"
		}
		errs = append(errs, fmt.Errorf("there is no room for the rule %s, it %s: %w", r.Origin, does, err))
	}
	if errs == nil {
		return nil
	}
	return fmt.Errorf("policy set %s: %w", row.ID, errors.Join(errs...))
}

// maxRefusals is how many rules a message names.
const maxRefusals = 8
