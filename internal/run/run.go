// Package run keeps long-lived goroutines alive and says how they are: a supervised
// group, exponential backoff and a clock that tests can move.
//
// It does not decide what to run or in what order; package agent does.
package run

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"time"
)

// Clock tells the time. The zero value is not usable: use System or a Manual.
type Clock interface{ Now() time.Time }

type system struct{}

func (system) Now() time.Time { return time.Now() }

// System is the machine's clock.
func System() Clock { return system{} }

// Manual is a clock for tests that stands until it is moved.
type Manual struct {
	mu  sync.Mutex
	now time.Time // guarded by mu
}

// NewManual returns a clock that stands at t.
func NewManual(t time.Time) *Manual { return &Manual{now: t} }

// Now implements Clock.
func (m *Manual) Now() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now
}

// Add moves the clock by d.
func (m *Manual) Add(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now = m.now.Add(d)
}

// Backoff returns how long to wait before try n (counted from 1): first, doubled each time, at most limit.
func Backoff(n int, first, limit time.Duration) time.Duration {
	d := first
	for range max(n-1, 0) {
		if d *= 2; d >= limit {
			return limit
		}
	}
	return min(d, limit)
}

// Health is how one supervised task is.
type Health struct {
	Name     string
	Running  bool
	Restarts int
	Err      string    // of the last end, "" if it never ended
	Since    time.Time // of the current state
}

// Group supervises tasks: one that ends with an error or a panic is started again after a backoff,
// until the group's context ends. All methods may be called concurrently.
type Group struct {
	ctx context.Context
	log *slog.Logger
	wg  sync.WaitGroup

	mu    sync.Mutex
	tasks []*Health // guarded by mu
}

// NewGroup returns an empty group whose tasks live as long as ctx.
func NewGroup(ctx context.Context, log *slog.Logger) *Group { return &Group{ctx: ctx, log: log} }

// Go starts a task. A nil error ends it for good; anything else restarts it.
func (g *Group) Go(name string, task func(context.Context) error) {
	h := &Health{Name: name, Running: true, Since: time.Now()}
	g.mu.Lock()
	g.tasks = append(g.tasks, h)
	g.mu.Unlock()
	g.wg.Go(func() {
		for try := 1; ; try++ {
			began := time.Now()
			err := guarded(g.ctx, name, task)
			if g.ctx.Err() != nil || err == nil {
				g.set(h, false, nil)
				return
			}
			if time.Since(began) > time.Minute {
				try = 1
			}
			g.set(h, false, err)
			wait := Backoff(try, 100*time.Millisecond, 10*time.Second)
			g.log.Error("task ended, starting it again", "task", name, "wait", wait, "err", err)
			select {
			case <-g.ctx.Done():
				return
			case <-time.After(wait):
			}
			g.set(h, true, err)
		}
	})
}

func (g *Group) set(h *Health, running bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if running && !h.Running {
		h.Restarts++
	}
	h.Running, h.Since = running, time.Now()
	if err != nil {
		h.Err = err.Error()
	}
}

// guarded turns a panic of a task into an error, so that one broken task does not take the agent down.
func guarded(ctx context.Context, name string, task func(context.Context) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: panic: %v\n%s", name, p, debug.Stack())
		}
	}()
	err = task(ctx)
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return nil
	}
	return err
}

// Wait returns when all tasks have ended.
func (g *Group) Wait() { g.wg.Wait() }

// Health returns the state of every task, by name.
func (g *Group) Health() []Health {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make([]Health, 0, len(g.tasks))
	for _, h := range g.tasks {
		out = append(out, *h)
	}
	slices.SortFunc(out, func(a, b Health) int { return cmp.Compare(a.Name, b.Name) })
	return out
}
