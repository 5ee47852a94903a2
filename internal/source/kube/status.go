package kube

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"time"

	"weft/internal/convert/language"
	"weft/internal/convert/status"
)

// statuses writes the statuses of policies, one by one, while this agent holds the office.
type statuses struct {
	s    *Source
	wake chan struct{} // capacity 1

	mu    sync.Mutex
	todo  map[string]func() []byte // guarded by mu: by path; what to patch, decided as late as possible; nil: nothing
	order []string                 // guarded by mu: of todo
	progress
}

func newStatuses(s *Source) *statuses {
	return &statuses{s: s, wake: make(chan struct{}, 1), todo: map[string]func() []byte{}, progress: newProgress()}
}

// pace is the least time between two statuses: the API server has more to do.
const pace = 20 * time.Millisecond

// run writes what there is to write until ctx ends.
func (st *statuses) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { st.watchNodes(ctx) })
	for {
		select {
		case <-ctx.Done():
			return
		case <-st.wake:
		}
		for path, patch, ok := st.next(); ok && ctx.Err() == nil; path, patch, ok = st.next() {
			body := patch()
			if body == nil || !st.s.office.holds() {
				continue
			}
			err := st.s.api.write(ctx, http.MethodPatch, path, mergePatch, body, nil)
			switch code(err) {
			case http.StatusConflict: // the object has changed, and is looked at again
			case http.StatusNotFound: // it is gone, or its definition has no statuses
			default:
				if err != nil && ctx.Err() == nil {
					st.s.log.Warn("status was not written", "path", path, "err", err)
				}
			}
			select {
			case <-ctx.Done():
			case <-time.After(pace):
			}
		}
	}
}

// next takes the first thing to do.
func (st *statuses) next() (path string, patch func() []byte, ok bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if len(st.order) == 0 {
		return "", nil, false
	}
	path = st.order[0]
	patch, st.order = st.todo[path], st.order[1:]
	delete(st.todo, path)
	return path, patch, true
}

// want has a status written. The caller holds mu.
func (st *statuses) want(path string, patch func() []byte) {
	if st.todo[path] == nil {
		st.order = append(st.order, path)
	}
	st.todo[path] = patch
	select {
	case st.wake <- struct{}{}:
	default:
	}
}

// examine looks at what has become of objects, for their statuses.
func (s *Source) examine(k language.Kind, some []change) {
	if s.office == nil || !slices.Contains(s.office.languages, k.Language) {
		return
	}
	st := s.office.statuses
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, c := range some {
		if c.gone {
			st.forget(k, c.id)
			continue
		}
		if c.raw == nil {
			continue
		}
		o, err := status.Observe(k, c.raw, c.objs, c.err)
		if err != nil {
			continue // the API server sends nothing that is not JSON
		}
		o.TakenBack, o.Unreported = st.back[k.CRD()+"/"+c.id], !st.known
		if status.Counts(k) {
			st.follow(k, c.id, o)
			continue
		}
		if patch := o.Conditions(now()); patch != nil {
			st.want(o.Path, func() []byte { return patch })
		}
	}
}

// now is the time as objects have it.
func now() string { return time.Now().UTC().Format(time.RFC3339) }
