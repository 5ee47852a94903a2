// Package trial lets a node take changes of policy back that break what the node lives on: a change is on trial for
// some seconds, and if something that held before it does no longer hold, what was in force before is in force again.
//
// Who writes policies into the store does so through Gate, which looks at the invariants before a change passes. Taking back
// is a row of a Writer that goes before all others (store.TrialSource): the store, the compilers and drivers know of nothing else, and
// what users said stays as it is. It does not know what the invariants are (the agent hands them in), says nothing to the
// cluster, and looks at nothing while nothing is on trial.
//
// It makes no kernel state. Trials are in a file of the state directory, replaced by rename, so that an agent without memory
// goes on with them, and does not try again what it took back. A file that cannot be read is no trial at all: what users said is in force.
package trial

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"weft/internal/model"
	"weft/internal/run"
	"weft/internal/source/cache"
)

const (
	// round is the time between two looks at the invariants, and how long each may take to hold.
	round = time.Second
	// fresh is how old a trial is while it is looked at in each round: what breaks at all mostly breaks at once. Later, looks
	// are calm apart, until one fails: many nodes may have the same change on trial, and one API server.
	fresh = 5 * time.Second
	calm  = 3 * time.Second
	// losses is how many looks in a row must fail: one packet may be lost.
	losses = 3
	// healing is how long after taking back one of what broke must hold again. If none does, the change was not the
	// cause, and it would be wrong to leave it out: other nodes, which may have to take it back too, are as fast as this one.
	healing = 20 * time.Second
)

// Invariant is something that the node lives on.
type Invariant struct {
	Name string // "API server 10.0.0.1:6443"
	// Check returns nil if it holds. It is called from several goroutines.
	Check func(context.Context) error
}

// Writer is where trials are shown, and what is in force instead of what was taken back.
type Writer interface {
	Upsert(objs ...model.Object)
	Delete(keys ...model.Key)
	// Refuse makes an object of no effect, and shows why.
	Refuse(o model.Object, problem error)
}

// Options are what a Trials works with.
type Options struct {
	Mode       string                    // model.ConfirmAnnotated, ConfirmAll or ConfirmOff
	Window     time.Duration             // how long a change is on trial
	File       string                    // where trials are kept
	Snapshot   func() model.Snapshot     // what is in force
	Invariants func() []Invariant        // those that there are now; of two with one name the first counts
	Report     func(what, action string) // is told what an operator should know
	Clock      run.Clock
	Log        *slog.Logger
}

// Trials are the changes on trial and those that were taken back, on one node. Its methods may be called from any goroutine.
type Trials struct {
	o    Options
	w    Writer
	wake chan struct{} // capacity 1: something is on trial

	mu       sync.Mutex // guards what follows; held while a change passes, so that none is judged in the middle
	all      map[model.Key]*trial
	begun    bool            // changes are on trial; before, what comes is what there is
	held     map[string]bool // invariants that held before what is on trial now; names
	fails    map[string]int  // looks in a row that failed, by name; none that holds
	measured time.Time       // when held was filled
	failing  bool            // the file could not be written last time
}

// trial is one change.
type trial struct {
	key    model.Key
	before model.Object // what was in force; nil: nothing was
	after  model.Object // what is on trial, or was taken back
	back   bool         // taken back
	since  time.Time
	until  time.Time // on trial: its end. Taken back: when one of why must hold again; zero: one did
	why    []string  // taken back: what broke
	said   bool      // a source has said it since the start
}

// New returns the trials of a node, none as yet.
func New(o Options, w Writer) *Trials {
	return &Trials{o: o, w: w, wake: make(chan struct{}, 1), all: map[model.Key]*trial{}, held: map[string]bool{}, fails: map[string]int{}}
}

// Begin says that what is in force is known: what differs from it is a change. Before, everything passes.
func (t *Trials) Begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.begun = true
}

// Complete says that the sources have said all that there is: what was on trial or taken back before the start, and is no
// more, is forgotten.
func (t *Trials) Complete() {
	t.Begin()
	t.mu.Lock()
	defer t.mu.Unlock()
	var gone []model.Key
	for k, x := range t.all {
		if !x.said {
			gone = append(gone, k)
		}
	}
	t.end(gone)
}

// Run looks at the invariants while something is on trial, until ctx ends.
func (t *Trials) Run(ctx context.Context) error {
	for {
		wake, next := t.wake, (<-chan time.Time)(nil)
		if names, busy := t.watched(); busy {
			t.judge(t.look(ctx, names))
			wake, next = nil, time.After(t.pace()) // changes come in bursts, and three looks at once are one
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-wake:
		case <-next:
		}
	}
}

// pace is the time until the next look.
func (t *Trials) pace() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.o.Clock.Now()
	for _, x := range t.all {
		if !x.until.IsZero() && (x.back || now.Sub(x.since) < fresh) {
			return round
		}
	}
	if len(t.fails) > 0 {
		return round
	}
	return calm
}

// watched are the invariants to look at, if something depends on them.
func (t *Trials) watched() (names map[string]bool, busy bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.held), t.busy()
}

// busy reports whether something is on trial, or was taken back a moment ago. The caller holds mu.
func (t *Trials) busy() bool {
	for _, x := range t.all {
		if !x.until.IsZero() {
			return true
		}
	}
	return false
}

// look checks the invariants that wanted has, or all if it is nil, at the same time.
func (t *Trials) look(ctx context.Context, wanted map[string]bool) map[string]error {
	ctx, cancel := context.WithTimeout(ctx, round)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	out := map[string]error{}
	seen := map[string]bool{}
	for _, i := range t.o.Invariants() {
		if seen[i.Name] || wanted != nil && !wanted[i.Name] {
			continue
		}
		seen[i.Name] = true
		wg.Go(func() {
			err := i.Check(ctx)
			mu.Lock()
			defer mu.Unlock()
			out[i.Name] = err
		})
	}
	wg.Wait()
	return out
}

// judge decides what follows from a look. An invariant that is no more (its pod has gone) is neither broken nor healed.
func (t *Trials) judge(seen map[string]error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	broken := t.count(seen)
	now := t.o.Clock.Now()
	var takeBack, confirmed, innocent []*trial
	for _, x := range t.all {
		switch over := !now.Before(x.until); {
		case x.until.IsZero():
		case !x.back && len(broken) > 0:
			takeBack = append(takeBack, x)
		case !x.back && over && len(t.fails) == 0:
			confirmed = append(confirmed, x)
		case x.back && slices.ContainsFunc(x.why, func(name string) bool { err, there := seen[name]; return there && err == nil }):
			x.until = time.Time{}
			t.save()
		case x.back && over:
			innocent = append(innocent, x)
		}
	}
	if len(takeBack) > 0 {
		t.takeBack(takeBack, broken, now)
	}
	if len(confirmed) > 0 {
		t.o.Log.Info("changes of policy are kept: nothing broke", "objects", names(confirmed))
		t.end(keys(confirmed))
	}
	if len(innocent) > 0 {
		why := innocent[0].why
		t.o.Report(strings.Join(why, ", ")+": no answer, with "+names(innocent)+" and without", "it is in force again: it is not the cause")
		t.end(keys(innocent))
	}
}

// count takes in a look and returns what is broken: once something has failed often enough, all that has failed more than once, since
// not everything fails at the same moment. The caller holds mu.
func (t *Trials) count(seen map[string]error) (broken []string) {
	enough := false
	for name := range t.held {
		if err, there := seen[name]; !there || err == nil {
			delete(t.fails, name)
			continue
		}
		t.fails[name]++
		enough = enough || t.fails[name] >= losses
	}
	for name, n := range t.fails {
		if enough && n > 1 {
			broken = append(broken, name)
		}
	}
	slices.Sort(broken)
	return broken
}

// takeBack puts what was before in force. The caller holds mu.
func (t *Trials) takeBack(some []*trial, broken []string, now time.Time) {
	var put []model.Object
	for _, x := range some {
		x.back, x.why, x.since, x.until = true, broken, now, now.Add(healing)
		if o, _ := x.instead(); o != nil {
			put = append(put, o)
		} else {
			t.w.Refuse(x.after, x.problem())
		}
		put = append(put, x.row())
	}
	t.w.Upsert(put...)
	t.save()
	clear(t.fails)
	said := map[string]bool{} // of one object there may be several policies
	for _, x := range some {
		_, instead := x.instead()
		if what := x.problem().Error(); !said[what] {
			said[what] = true
			t.o.Report(what, "taken back on this node: "+instead)
		}
	}
}

// end forgets trials: what their sources say is in force. The caller holds mu.
func (t *Trials) end(some []model.Key) {
	var gone []model.Key
	for _, k := range some {
		gone = append(gone, k, model.TrialKey(k))
		delete(t.all, k)
	}
	if len(gone) > 0 {
		t.w.Delete(gone...)
		t.save()
	}
}

// instead is what is in force instead of what was taken back; nil: nothing is.
func (x *trial) instead() (model.Object, string) {
	if x.before != nil {
		return x.before, "its earlier version is in force"
	}
	if p, ok := x.after.(*model.Policy); ok {
		shadow := *p
		shadow.Staged = true
		return &shadow, "it only counts what it would do"
	}
	return nil, "as if it were not there"
}

// problem says why it was taken back.
func (x *trial) problem() error {
	return fmt.Errorf("%s broke %s", name(x.after), strings.Join(x.why, ", "))
}

// row is the trial as it is shown.
func (x *trial) row() *model.Trial {
	r := &model.Trial{Of: x.key, Ref: ref(x.after), Name: name(x.after), Back: x.back, Since: x.since, Why: x.why}
	if x.back {
		_, r.Instead = x.instead()
	} else {
		r.Until = x.until
	}
	return r
}

// name is what messages call an object.
func name(o model.Object) string {
	if r := ref(o); !r.IsZero() {
		return r.String()
	}
	return o.Key().String()
}

// ref is the API's object that became o; zero where o does not say.
func ref(o model.Object) model.Ref {
	switch o := o.(type) {
	case *model.Policy:
		return o.Ref
	case *model.Group:
		return o.Ref
	case *model.AddressSet:
		return o.Ref
	case *model.HostEndpoint:
		return o.Ref
	}
	return model.Ref{}
}

// names lists objects, each once: of one object there may be several policies.
func names(some []*trial) string {
	var out []string
	for _, x := range some {
		out = append(out, name(x.after))
	}
	slices.Sort(out)
	return strings.Join(slices.Compact(out), ", ")
}

func keys(some []*trial) []model.Key {
	var out []model.Key
	for _, x := range some {
		out = append(out, x.key)
	}
	return out
}

// encode is what tells one version of an object from another; nil for what is not kept on disk.
func encode(o model.Object) []byte {
	b, err := cache.Encode(o)
	if err != nil {
		return nil
	}
	return b
}

// same reports whether two objects hold the same.
func same(a, b model.Object) bool {
	return reflect.DeepEqual(a, b) || bytes.Equal(encode(a), encode(b))
}
