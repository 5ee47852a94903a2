package trial

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/internal/model"
	"weft/internal/run"
	"weft/internal/selector"
	"weft/internal/store"
)

// rig is a node without a kernel: a store, and invariants that break while a policy is in force that breaks them.
type rig struct {
	*testing.T
	dir     string
	clock   *run.Manual
	store   *store.Store
	trials  *Trials
	w       PolicyWriter
	mu      sync.Mutex
	down    map[string]bool // guarded by mu: invariants that do not hold, whatever is in force
	reports []string        // guarded by mu
}

func newRig(t *testing.T, mode string) *rig {
	r := &rig{T: t, dir: t.TempDir(), clock: run.NewManual(time.Unix(1000, 0)), down: map[string]bool{}}
	r.start(mode)
	r.trials.Complete()
	return r
}

// start makes an agent without memory.
func (r *rig) start(mode string) {
	r.Helper()
	var err error
	if r.store, err = store.New(r.clock); err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { _ = r.store.Close() })
	r.trials = New(Options{
		Mode: mode, Window: 30 * time.Second, File: filepath.Join(r.dir, "trials.json"), Snapshot: r.store.Snapshot,
		Invariants: r.invariants, Clock: r.clock, Log: slog.New(slog.DiscardHandler),
		Report: func(what, action string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.reports = append(r.reports, what+" → "+action)
		},
	}, r.store.Writer(store.TrialSource))
	if err := r.trials.Restore(); err != nil {
		r.Fatal(err)
	}
	r.w = r.trials.Gate(r.store.Writer("test"))
}

// invariants: a policy that is enforced, and of which a rule is called after an invariant, breaks it.
func (r *rig) invariants() []Invariant {
	var out []Invariant
	for _, name := range []string{"DNS", "API server"} {
		out = append(out, Invariant{name, func(context.Context) error {
			r.mu.Lock()
			down := r.down[name]
			r.mu.Unlock()
			for p := range model.All[*model.Policy](r.store.Snapshot(), model.KindPolicy) {
				down = down || !p.Staged && p.Egress != nil && p.Egress.Rules[0].Name == name
			}
			if down {
				return errors.New("no answer")
			}
			return nil
		}})
	}
	return out
}

func (r *rig) set(name string, down bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down[name] = down
}

// pass lets seconds pass, with a look in each, as Run does.
func (r *rig) pass(seconds int) {
	for range seconds {
		r.clock.Add(time.Second)
		if names, busy := r.trials.watched(); busy {
			r.trials.judge(r.trials.look(r.Context(), names))
		}
	}
}

// state is what is in force, and what of it is on trial or taken back, in one line.
func (r *rig) state() string {
	var out []string
	for _, i := range r.store.Intents(model.KindPolicy) {
		p := i.Object.(*model.Policy)
		s := p.Ref.Name + "=" + p.Egress.Rules[0].Name
		if p.Staged {
			s += " shadow"
		}
		if t := model.Get[*model.Trial](r.store.Snapshot(), model.TrialKey(p.Key())); t != nil && t.Back {
			s += " back:" + strings.Join(t.Why, "+")
		} else if t != nil {
			s += " trial"
		}
		out = append(out, s)
	}
	for _, i := range r.store.Intents(model.KindGroup) {
		s := i.Object.(*model.Group).Ref.Name
		if i.Problem != nil {
			s += " refused"
		}
		out = append(out, s)
	}
	return strings.Join(out, ", ")
}

func (r *rig) want(want string) {
	r.Helper()
	if have := r.state(); have != want {
		r.Errorf("in force: %q, want %q", have, want)
	}
}

func (r *rig) reported(words string) {
	r.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.ContainsFunc(r.reports, func(s string) bool { return strings.Contains(s, words) }) {
		r.Errorf("nothing with %q was reported: %q", words, r.reports)
	}
}

// policy denies what the word says.
func policy(name, breaks string, confirm model.Confirm) *model.Policy {
	return &model.Policy{
		Ref: model.Ref{Group: "networking.k8s.io", Kind: "NetworkPolicy", Namespace: "shop", Name: name}, Confirm: confirm,
		Tier: model.TierRef{Name: "normal", Order: model.TierNormal}, Order: math.Inf(1), Subject: selector.AllOf(),
		Egress: &model.Section{Rules: []model.Rule{{Name: breaks, Verdict: model.VerdictDeny}}},
	}
}

// TestTakenBack is the whole of it for a new policy: in force, broken, in shadow, still so after a restart, and tried again when it is another.
func TestTakenBack(t *testing.T) {
	r := newRig(t, model.ConfirmAnnotated)
	r.w.Upsert(policy("p", "DNS", model.ConfirmAlways))
	r.want("p=DNS trial")
	r.pass(losses - 1)
	r.want("p=DNS trial")
	r.pass(1)
	r.want("p=DNS shadow back:DNS")
	r.reported("NetworkPolicy.networking.k8s.io shop/p broke DNS → taken back on this node: it only counts")
	r.pass(100)
	r.w.Upsert(policy("p", "DNS", model.ConfirmAlways)) // the same again
	r.want("p=DNS shadow back:DNS")

	r.start(model.ConfirmAnnotated) // before any source has said anything
	r.want("p=DNS shadow back:DNS")
	r.w.Replace(model.KindPolicy, []model.Object{policy("p", "DNS", model.ConfirmAlways)})
	r.trials.Complete()
	r.want("p=DNS shadow back:DNS")

	r.w.Upsert(policy("p", "API server", model.ConfirmAlways))
	r.want("p=API server trial")
	r.pass(losses)
	r.want("p=API server shadow back:API server")
	r.w.Upsert(policy("p", "nothing", model.ConfirmAlways))
	r.pass(29)
	r.want("p=nothing trial")
	r.pass(1)
	r.want("p=nothing")
	r.w.Delete(policy("p", "", 0).Key())
	r.want("")
}

// TestEarlierVersion is a change of a policy that was good: the good version comes back, and stays until there is another.
func TestEarlierVersion(t *testing.T) {
	r := newRig(t, model.ConfirmAnnotated)
	r.w.Upsert(policy("p", "nothing", model.ConfirmDefault), policy("q", "nothing", model.ConfirmDefault))
	r.want("p=nothing, q=nothing")
	r.w.Upsert(policy("p", "DNS", model.ConfirmAlways), policy("q", "much", model.ConfirmDefault))
	r.want("p=DNS trial, q=much")
	r.pass(losses)
	r.want("p=nothing back:DNS, q=much") // what is not on trial is never taken back
	r.start(model.ConfirmAnnotated)
	r.w.Replace(model.KindPolicy, []model.Object{policy("p", "DNS", model.ConfirmAlways), policy("q", "much", model.ConfirmDefault)})
	r.trials.Complete()
	r.want("p=nothing back:DNS, q=much")
	r.w.Upsert(policy("p", "DNS", model.ConfirmNever)) // so he means it
	r.pass(losses)
	r.want("p=DNS, q=much")
	r.w.Upsert(policy("p", "nothing", model.ConfirmAlways))
	r.pass(31)
	r.w.Upsert(policy("p", "DNS", model.ConfirmAlways))
	r.w.Upsert(policy("p", "nothing", model.ConfirmAlways)) // undone at once by who made it
	r.want("p=nothing, q=much")
}

// TestRestartOnTrial is an agent that dies while a change is on trial: the next one takes it back.
func TestRestartOnTrial(t *testing.T) {
	r := newRig(t, model.ConfirmAnnotated)
	r.w.Upsert(policy("p", "DNS", model.ConfirmAlways), policy("old", "nothing", model.ConfirmAlways))
	r.start(model.ConfirmAnnotated)
	r.w.Replace(model.KindPolicy, []model.Object{policy("p", "DNS", model.ConfirmAlways)})
	r.trials.Complete() // "old" is no more
	r.want("p=DNS trial")
	r.pass(losses)
	r.want("p=DNS shadow back:DNS")
}

// TestHeldBefore is that only what held before counts.
func TestHeldBefore(t *testing.T) {
	r := newRig(t, model.ConfirmAnnotated)
	r.set("DNS", true)
	r.w.Upsert(policy("p", "DNS", model.ConfirmAlways))
	r.pass(30)
	r.want("p=DNS")
}

// TestInnocent is an outage that has nothing to do with the policy: taking it back does not help, so it is in force again. One look
// that fails does not count.
func TestInnocent(t *testing.T) {
	r := newRig(t, model.ConfirmAnnotated)
	r.w.Upsert(policy("p", "nothing", model.ConfirmAlways))
	r.set("API server", true)
	r.pass(losses - 1)
	r.set("API server", false)
	r.pass(1)
	r.set("API server", true)
	r.pass(losses)
	r.want("p=nothing shadow back:API server")
	r.pass(int(healing.Seconds()))
	r.want("p=nothing")
	r.reported("API server: no answer, with NetworkPolicy.networking.k8s.io shop/p and without → it is in force again")
	r.pass(100)
	r.want("p=nothing")
}

// TestAll is the mode in which every change is on trial, of groups too; and those of before the start are not.
func TestAll(t *testing.T) {
	r := newRig(t, model.ConfirmAll)
	group := &model.Group{Ref: model.Ref{Group: "crd.antrea.io", Kind: "Group", Namespace: "shop", Name: "g"}}
	r.start(model.ConfirmAll)
	r.w.Replace(model.KindPolicy, []model.Object{policy("a", "nothing", 0)})
	r.trials.Complete()
	r.want("a=nothing")
	r.w.Upsert(policy("p", "DNS", model.ConfirmDefault), group)
	r.pass(losses)
	r.want("a=nothing, p=DNS shadow back:DNS, g refused")
	r.w.Replace(model.KindPolicy, []model.Object{policy("a", "nothing", 0)})
	r.want("a=nothing, g refused")
	off := newRig(t, model.ConfirmOff)
	off.w.Upsert(policy("p", "DNS", model.ConfirmAlways))
	off.pass(100)
	off.want("p=DNS")
}
