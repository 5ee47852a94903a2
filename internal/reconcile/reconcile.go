// Package reconcile is the one loop that touches the kernel: it takes the rows that wait,
// hands them to the driver of their kind in batches, writes what came of them, tries failed ones again, and
// sweeps what nobody wants once everything is known.
//
// It does not know what a row means, and drivers do not know about statuses. A dead agent leaves the kernel
// as it is; the next one starts with every row Pending and drivers that leave alone what is right.
package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"weft/internal/model"
	"weft/internal/plan"
	"weft/internal/run"
	"weft/internal/store"
)

// Driver makes the kernel agree with rows. It is called from the loop's goroutine only.
type Driver interface {
	// Apply makes the kernel agree with changed and says what came of each row. Idempotent.
	Apply(ctx context.Context, want plan.View, changed plan.Changes) plan.Results
	// Sweep deletes what bears our mark and is not in want. Called once every source is complete.
	Sweep(ctx context.Context, want plan.View) error
}

// Stage is a driver with the kinds of rows that it applies.
type Stage struct {
	Name   string
	Driver Driver
	Kinds  []plan.Kind
}

const (
	// batchOwners bounds how many owners' rows go into one batch, so that in a burst the first
	// pods are ready long before the last.
	batchOwners = 16
	// batchShare is the part of a long queue that one batch takes in any case: each batch looks at the whole queue, and that
	// shall not be more often than its length wants. A pod that comes while a hundred thousand rows wait, waits for one batch.
	batchShare = 16
	firstRetry = 50 * time.Millisecond
	lastRetry  = 10 * time.Second
	// Recheck is how often every row is handed to its driver again, as a net under the watchers.
	recheck = 10 * time.Minute
)

// Loop applies the plan. Make one with New.
type Loop struct {
	store  *store.Store
	stages []Stage
	clock  run.Clock
	log    *slog.Logger

	mu    sync.Mutex
	stats Stats // guarded by mu
	swept chan struct{}
}

// Stats counts the loop's work since the start.
type Stats struct {
	Batches, Applied, Failed, Deleted uint64
	LastBatch                         time.Duration
	Swept                             bool
}

// New returns a loop over the stages in the order in which new rows are applied; deletes go the other way.
func New(s *store.Store, clock run.Clock, log *slog.Logger, stages ...Stage) *Loop {
	return &Loop{store: s, stages: stages, clock: clock, log: log, swept: make(chan struct{})}
}

// Stats returns the counters.
func (l *Loop) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stats
}

// Swept is closed once everything known at the start has been applied and leftovers are gone.
func (l *Loop) Swept() <-chan struct{} { return l.swept }

// Run works until ctx ends.
func (l *Loop) Run(ctx context.Context) error {
	complete := l.store.Complete()
	again := time.NewTicker(recheck)
	defer again.Stop()
	for {
		todo, changed := l.store.Todo(l.due)
		if len(todo) > 0 {
			l.batch(ctx, todo)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			continue
		}
		retry := l.nextRetry()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-retry:
		case <-again.C:
			l.recheck()
		case <-complete:
			if err := l.sweep(ctx); err != nil {
				l.log.Error("sweep failed, trying again", "err", err)
				select {
				case <-ctx.Done():
				case <-time.After(time.Second):
				}
				continue
			}
			complete = nil
		}
	}
}

// due reports whether a failed row's wait is over.
func (l *Loop) due(r *store.Row) bool {
	return !l.clock.Now().Before(r.Since.Add(run.Backoff(r.Tries, firstRetry, lastRetry)))
}

func (l *Loop) nextRetry() <-chan time.Time {
	var next time.Time
	for r := range l.store.Failed() {
		if at := r.Since.Add(run.Backoff(r.Tries, firstRetry, lastRetry)); next.IsZero() || at.Before(next) {
			next = at
		}
	}
	if next.IsZero() {
		return nil
	}
	return time.After(max(next.Sub(l.clock.Now()), time.Millisecond))
}

// batch applies the rows of the owners that have waited longest.
func (l *Loop) batch(ctx context.Context, todo []*store.Row) {
	began := time.Now()
	todo = oldest(todo)
	view := l.store.View()
	for _, st := range l.stages {
		l.apply(ctx, st, view, pick(todo, st.Kinds, false), false)
	}
	for _, st := range slices.Backward(l.stages) {
		l.apply(ctx, st, view, pick(todo, st.Kinds, true), true)
	}
	l.unhandled(todo)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stats.Batches++
	l.stats.LastBatch = time.Since(began)
}

// oldest keeps the rows of at most batchOwners owners, or of a share of all, those first whose rows have waited longest.
func oldest(todo []*store.Row) []*store.Row {
	bySince := func(a, b *store.Row) int { return a.Since.Compare(b.Since) }
	if !slices.IsSortedFunc(todo, bySince) {
		slices.SortStableFunc(todo, bySince)
	}
	most := max(batchOwners, len(todo)/batchShare)
	owners := make(map[model.Key]bool, min(most, len(todo)))
	return slices.DeleteFunc(todo, func(r *store.Row) bool {
		o := r.Row.Owner()
		if owners[o] {
			return false
		}
		if len(owners) == most {
			return true
		}
		owners[o] = true
		return false
	})
}

// pick returns the rows of the kinds, in the order of the kinds; reversed for deletes.
func pick(todo []*store.Row, kinds []plan.Kind, deletes bool) []*store.Row {
	var out []*store.Row
	for _, k := range kinds {
		for _, r := range todo {
			if r.Row.Key().Kind == k && (r.Status == store.Deleting) == deletes {
				out = append(out, r)
			}
		}
	}
	if deletes {
		slices.Reverse(out)
	}
	return out
}

func (l *Loop) apply(ctx context.Context, st Stage, view plan.View, rows []*store.Row, deletes bool) {
	if len(rows) == 0 || ctx.Err() != nil {
		return
	}
	var ch plan.Changes
	for _, r := range rows {
		if deletes {
			ch.Delete = append(ch.Delete, r.Row)
		} else {
			ch.Upsert = append(ch.Upsert, r.Row)
		}
	}
	results := l.guarded(ctx, st, view, ch)
	l.store.Report(rows, results)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range rows {
		switch err := results[r.Row.Key()]; {
		case err != nil:
			l.stats.Failed++
			if r.Err == nil || r.Err.Error() != err.Error() {
				l.log.Warn("row failed", "row", r.Row.Key().String(), "owner", r.Row.Owner().String(), "driver", st.Name, "err", err)
			}
		case deletes:
			l.stats.Deleted++
		default:
			l.stats.Applied++
		}
	}
}

// guarded calls the driver; a panic becomes an error of every row of the batch.
func (l *Loop) guarded(ctx context.Context, st Stage, view plan.View, ch plan.Changes) (res plan.Results) {
	defer func() {
		if p := recover(); p != nil {
			res = plan.Results{}
			for _, r := range slices.Concat(ch.Upsert, ch.Delete) {
				res[r.Key()] = fmt.Errorf("driver %s: panic: %v", st.Name, p)
			}
			l.log.Error("driver panicked", "driver", st.Name, "panic", p)
		}
	}()
	return st.Driver.Apply(ctx, view, ch)
}

// unhandled reports rows of kinds that no stage has.
func (l *Loop) unhandled(todo []*store.Row) {
	var rows []*store.Row
	for _, r := range todo {
		if !slices.ContainsFunc(l.stages, func(st Stage) bool { return slices.Contains(st.Kinds, r.Row.Key().Kind) }) {
			rows = append(rows, r)
		}
	}
	if len(rows) > 0 {
		l.store.Report(rows, nil)
	}
}

// sweep removes leftovers of earlier agents. Everything that the sources know has been applied by now.
func (l *Loop) sweep(ctx context.Context) error {
	for {
		if err := l.store.Settled(ctx); err != nil {
			return err
		}
		todo, _ := l.store.Todo(l.due)
		if len(todo) == 0 {
			break
		}
		if l.batch(ctx, todo); ctx.Err() != nil {
			return ctx.Err()
		}
	}
	view := l.store.View()
	var errs []error
	for _, st := range slices.Backward(l.stages) {
		if err := st.Driver.Sweep(ctx, view); err != nil {
			errs = append(errs, fmt.Errorf("sweep of %s: %w", st.Name, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.stats.Swept {
		l.stats.Swept = true
		close(l.swept)
	}
	return nil
}

// recheck hands every applied row to its driver again.
func (l *Loop) recheck() {
	var keys []plan.Key
	for _, st := range l.stages {
		for _, k := range st.Kinds {
			for _, r := range l.store.Rows(k) {
				keys = append(keys, r.Row.Key())
			}
		}
	}
	l.store.Again(keys...)
}
