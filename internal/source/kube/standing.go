package kube

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"weft/internal/convert/language"
	"weft/internal/convert/status"
	"weft/internal/model"
)

// watch is one watch with what it writes to.
type watch struct {
	Status
	target   target
	resource resource
	stop     context.CancelFunc // nil: not running
	ended    chan struct{}      // closed when it runs no more
	idle     time.Time          // since when nobody needs it; zero: somebody does
	// unserved: the server says, and has said for some time, that the definition which is there is not served. It is no longer
	// waited for.
	unserved bool
	restart  bool   // its objects are to be looked at anew
	language string // of a watch of policies
	counted  bool   // its progress is reported, see progress
	version  uint64 // of a counted watch: up to which its objects are in the store
}

// unservedAfter is how long a CustomResourceDefinition that is there may not be served before nothing waits for it. It takes a
// new one some hundred milliseconds; one whose names are taken is never served.
const unservedAfter = 10 * time.Second

// desired lists the watches that should stand now, in order. The caller holds mu.
func (s *Source) desired() []string {
	var out []string
	for _, r := range s.core {
		out = append(out, r.name)
	}
	if s.looking > 0 {
		out = union(out, looked())
	}
	if s.opts.Policy == nil {
		return out
	}
	out = append(out, s.policies[0].name, crdWatch)
	for _, r := range s.policies[1:] {
		if s.crds[r.name] {
			out = append(out, r.name)
		}
	}
	if s.counting {
		out = append(out, leaseWatch)
	}
	return union(out, s.wide())
}

// union appends to a what of b is not in it.
func union(a, b []string) []string {
	for _, name := range b {
		if !slices.Contains(a, name) {
			a = append(a, name)
		}
	}
	return a
}

// wide lists the watches of what policies need, which is nothing as long as there is none. The caller holds mu.
func (s *Source) wide() []string {
	var n language.Needs
	for _, o := range s.needs {
		n = n.Or(o)
	}
	if !n.Pods {
		return nil
	}
	out := []string{string(model.KindNamespace)}
	if s.opts.Node != "" || !slices.Contains(s.opts.Kinds, model.KindPod) {
		out = append(out, remoteWatch)
	}
	if n.Accounts {
		out = append(out, string(model.KindServiceAccount))
	}
	if n.Backends {
		out = append(out, string(model.KindBackends))
	}
	if s.services {
		out = append(out, string(model.KindService))
	}
	return out
}

// newWatch returns the watch of that name.
func (s *Source) newWatch(name string) *watch {
	w := &watch{Status: Status{Watch: name, Since: time.Now()}}
	switch name {
	case crdWatch:
		w.resource, w.target = crds(), &definitions{s}
		return w
	case leaseWatch:
		w.resource, w.target = leases(s.office.namespace), &agents{s.office.statuses}
		return w
	case remoteWatch:
		w.resource, w.target = remotePods(s.opts.Node), rows{s.writers[name], model.KindPod}
		return w
	}
	if i := slices.IndexFunc(s.policies, func(r resource) bool { return r.name == name }); i >= 0 {
		p := newPolicySet(s, s.policies[i])
		w.resource, w.target, w.language = s.policies[i], p, p.kind.Language
		w.counted = s.office != nil && s.office.reporter != nil && s.office.counts && status.Counts(p.kind)
		return w
	}
	r, err := coreResource(model.Kind(name), s.opts.Node)
	if err != nil {
		panic(err) // desired names nothing else
	}
	w.resource, w.target = r, rows{s.w, model.Kind(name)}
	return w
}

// Run watches until ctx ends and returns its error. An API server that is away, or that answers with errors, is tried
// again without end; each watch does so on its own.
func (s *Source) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	if s.office != nil {
		wg.Go(func() { s.office.run(ctx) })
	}
	for {
		later := s.adjust(ctx, &wg)
		select {
		case <-ctx.Done():
			wg.Wait()
			return ctx.Err()
		case <-s.wake:
		case <-later:
		}
	}
}

// adjust starts the watches that should stand and ends those that should not. The channel says when to look again; nil: not
// before something changes.
func (s *Source) adjust(ctx context.Context, wg *sync.WaitGroup) <-chan time.Time {
	var surplus, again []*watch
	var later time.Duration
	s.mu.Lock()
	want := s.desired()
	for _, name := range want {
		w := s.watches[name]
		if w == nil {
			w = s.newWatch(name)
			s.watches[name] = w
		}
		w.idle = time.Time{}
		switch {
		case w.stop == nil:
			s.launch(ctx, wg, w)
		case w.restart:
			again = append(again, w)
		}
		w.restart = false
	}
	for name, w := range s.watches {
		if slices.Contains(want, name) {
			continue
		}
		if w.idle.IsZero() {
			w.idle = time.Now()
		}
		// A definition that is gone is gone; what policies needed a moment ago they may need again.
		rest := s.linger - time.Since(w.idle)
		if s.isPolicy(name) || name == leaseWatch || rest <= 0 {
			surplus = append(surplus, w)
			continue
		}
		if later == 0 || rest < later {
			later = rest
		}
	}
	s.mu.Unlock()
	for _, w := range surplus {
		s.end(w)
	}
	for _, w := range again {
		w.stop()
		<-w.ended
		s.mu.Lock()
		s.launch(ctx, wg, w)
		s.mu.Unlock()
	}
	if later == 0 {
		return nil
	}
	return time.After(later)
}

func (s *Source) isPolicy(name string) bool {
	return slices.ContainsFunc(s.policies, func(r resource) bool { return r.name == name })
}

// launch starts a watch. The caller holds mu.
func (s *Source) launch(ctx context.Context, wg *sync.WaitGroup, w *watch) {
	ctx, w.stop = context.WithCancel(ctx)
	w.ended = make(chan struct{})
	w.Since = time.Now()
	follower := &watcher{Source: s, res: w.resource, target: w.target}
	wg.Go(func() {
		defer close(w.ended)
		follower.run(ctx)
	})
}

// end ends a watch and takes back what it wrote.
func (s *Source) end(w *watch) {
	w.stop()
	<-w.ended
	w.target.withdraw()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.watches, w.Watch)
	for name, p := range s.broken {
		if p.watch == w.Watch {
			delete(s.broken, name)
		}
	}
}

// poke makes Run look at what should stand.
func (s *Source) poke() {
	select {
	case s.wake <- struct{}{}:
	default: // it is going to
	}
}

// SetServices says whether policies need services: they do where somebody translates their addresses.
func (s *Source) SetServices(on bool) {
	s.mu.Lock()
	s.services = on
	s.mu.Unlock()
	s.poke()
}

// need notes what the objects of a watch need; it returns once that is there, or has not come for some time: then
// what it would be is unknown.
func (s *Source) need(ctx context.Context, watch string, n language.Needs) {
	s.mu.Lock()
	before := s.wide()
	s.needs[watch] = n
	more := slices.DeleteFunc(s.wide(), func(name string) bool { return slices.Contains(before, name) })
	s.mu.Unlock()
	s.poke()
	_ = s.received(ctx, more)
}

// received returns once watches are synced, or with an error when they have not been for some time.
func (s *Source) received(ctx context.Context, watches []string) error {
	patience := time.After(s.patience)
	for {
		s.mu.Lock()
		moved := s.moved
		watches = slices.DeleteFunc(watches, func(name string) bool { return s.watches[name] != nil && s.watches[name].Synced })
		s.mu.Unlock()
		if len(watches) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-patience:
			return fmt.Errorf("the API server has not sent its %s within %s", strings.Join(watches, " and "), s.patience)
		case <-moved:
		}
	}
}

// looked are the watches of Look.
func looked() []string { return []string{string(model.KindService), string(model.KindBackends)} }

// Look calls f when the services and their slices are in the store. Where nobody needs them otherwise, they are watched for
// that, and some seconds longer: somebody who looks once looks twice.
func (s *Source) Look(ctx context.Context, f func() error) error {
	hold := func(n int) {
		s.mu.Lock()
		s.looking += n
		s.mu.Unlock()
		s.poke()
	}
	hold(1)
	defer hold(-1)
	if err := s.received(ctx, looked()); err != nil {
		return err
	}
	return f()
}

// define notes which definitions of languages the cluster has.
func (s *Source) define(change func(crds map[string]bool)) {
	s.mu.Lock()
	change(s.crds)
	s.mu.Unlock()
	s.poke()
}

// synced notes that the complete state of a watch has been received.
func (s *Source) synced(name string) {
	s.mu.Lock()
	if w := s.watches[name]; w != nil {
		w.Status = Status{Watch: name, Synced: true, Since: time.Now()}
		w.unserved = false
	}
	close(s.moved)
	s.moved = make(chan struct{})
	s.mu.Unlock()
	s.settle()
}

// settle calls complete if nothing is waited for any more.
func (s *Source) settle() {
	s.mu.Lock()
	missing := s.done || slices.ContainsFunc(s.desired(), func(name string) bool {
		w := s.watches[name]
		return w == nil || !w.Synced && !w.unserved
	})
	s.done = s.done || !missing
	s.mu.Unlock()
	if !missing {
		s.complete()
	}
}

// connected notes that a watch stands.
func (s *Source) connected(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.watches[name]; w != nil && w.Err != nil {
		s.log.Info("API server is back", "watch", name, "away", time.Since(w.Since).Round(time.Millisecond))
		w.Status = Status{Watch: name, Synced: w.Synced, Since: time.Now()}
	}
	s.away = false
}

// failed notes the try-th failure in a row.
func (s *Source) failed(name string, try int, err error) {
	s.mu.Lock()
	w := s.watches[name]
	if w == nil {
		s.mu.Unlock()
		return
	}
	if w.Err == nil {
		w.Since = time.Now()
		s.log.Warn("watch failed, trying again", "watch", name, "err", err)
	}
	w.Err = err
	what, action := "", ""
	switch {
	case code(err) == http.StatusNotFound && s.isPolicy(name):
		if !w.unserved && time.Since(w.Since) > unservedAfter {
			w.unserved = true
			what, action = "CustomResourceDefinition "+name+" is there, but the API server does not serve it", "its objects are unknown; trying again"
		}
	case try >= reportAfter && !s.away:
		s.away = true
		what, action = "API server "+s.api.base.Host+" cannot be used", "the last known objects are used, trying again: "+err.Error()
	}
	s.mu.Unlock()
	if what != "" {
		s.opts.Report(what, action)
		s.settle()
	}
}
