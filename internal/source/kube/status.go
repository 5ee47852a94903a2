package kube

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"weft/internal/convert/language"
	"weft/internal/model"
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
		o, err := parseObserved(k, c)
		if err != nil || c.raw == nil {
			continue
		}
		if counts(k) {
			st.follow(k, c.id, o)
			continue
		}
		if patch := o.conditions(time.Now()); patch != nil {
			st.want(o.path, func() []byte { return patch })
		}
	}
}

// observed is what an object says of itself, and what became of it.
type observed struct {
	path       string // of its status
	kind       language.Kind
	version    string // resource version
	generation int64
	status     json.RawMessage
	err        error    // mistakes; nil: there are none
	missing    []string // fields that are not enforced
	refused    bool
}

func parseObserved(k language.Kind, c change) (observed, error) {
	var in struct {
		APIVersion string `json:"apiVersion"`
		Metadata   struct {
			Name, Namespace, ResourceVersion string
			Generation                       int64
		} `json:"metadata"`
		Status json.RawMessage `json:"status"`
	}
	if len(c.raw) == 0 {
		return observed{}, errors.New("nothing is kept of it")
	}
	if err := json.Unmarshal(c.raw, &in); err != nil {
		return observed{}, err
	}
	path := "/apis/" + in.APIVersion
	if k.Namespaced {
		path += "/namespaces/" + in.Metadata.Namespace
	}
	o := observed{
		path: path + "/" + k.Plural + "/" + in.Metadata.Name + "/status", kind: k, version: in.Metadata.ResourceVersion,
		generation: in.Metadata.Generation, status: in.Status, err: c.err, refused: c.refused(),
	}
	for _, obj := range c.objs {
		if p, ok := obj.(*model.Policy); ok {
			for _, f := range p.Unsupported {
				if !slices.Contains(o.missing, f) {
					o.missing = append(o.missing, f)
				}
			}
		}
	}
	return o, nil
}

// condition is one of a status.
type condition struct {
	typ, status, reason, message string
	generation                   bool // the API's conditions say which generation they are about
}

// wanted is the condition that the object's API has for this; false if it has none.
func (o *observed) wanted() (condition, bool) {
	wrong := ""
	if o.err != nil {
		wrong = strings.ReplaceAll(o.err.Error(), "\n", "; ")
	}
	switch o.kind.Language {
	case "cilium":
		if !strings.HasSuffix(o.kind.Type.Kind, "NetworkPolicy") {
			return condition{}, false
		}
		c := condition{typ: "Valid", status: "True", message: "Policy validation succeeded"}
		if len(o.missing) > 0 {
			c.message += "; " + o.unsupported()
		}
		if wrong != "" {
			c.status, c.message = "False", wrong
		}
		return c, true
	case "calico":
		if o.kind.Type.Kind != "Tier" {
			return condition{}, false
		}
		c := condition{typ: "Ready", status: "True", reason: "Ready", message: "the tier is in force", generation: true}
		if wrong != "" {
			c.status, c.reason, c.message = "False", "Invalid", wrong
		}
		return c, true
	case "sig-network", "aws":
		c := condition{typ: "weft.io/Accepted", status: "True", reason: "Accepted", message: "the policy is enforced", generation: true}
		switch {
		case wrong != "":
			c.status, c.reason, c.message = "False", "Invalid", wrong
		case len(o.missing) > 0:
			c.status, c.reason, c.message = "False", "Unsupported", o.unsupported()
		}
		return c, true
	}
	return condition{}, false
}

// conditions returns the patch that gives the object its condition; nil if it has it. Those of others stay, and the patch fails if they
// have changed meanwhile.
func (o *observed) conditions(now time.Time) []byte {
	want, ok := o.wanted()
	if !ok {
		return nil
	}
	var have struct {
		Conditions []map[string]any `json:"conditions"`
	}
	_ = json.Unmarshal(o.status, &have) // what is no list of conditions is replaced
	conditions, changed := merge(have.Conditions, want, o.generation, now)
	if !changed {
		return nil
	}
	return o.patch(map[string]any{"conditions": conditions})
}

// merge puts a condition among those that are there, and reports whether that changes something.
func merge(have []map[string]any, want condition, generation int64, now time.Time) ([]map[string]any, bool) {
	c := map[string]any{"type": want.typ, "status": want.status, "lastTransitionTime": now.UTC().Format(time.RFC3339)}
	if want.reason != "" {
		c["reason"] = want.reason
	}
	if want.message != "" {
		c["message"] = clip(want.message)
	}
	if want.generation {
		c["observedGeneration"] = float64(generation)
	}
	i := slices.IndexFunc(have, func(c map[string]any) bool { return c["type"] == want.typ })
	if i < 0 {
		return append(have, c), true
	}
	old := have[i]
	if old["status"] == c["status"] && old["lastTransitionTime"] != nil {
		c["lastTransitionTime"] = old["lastTransitionTime"]
	}
	if same(old, c) {
		return have, false
	}
	have[i] = c
	return have, true
}

// unsupported names the fields that are not enforced.
func (o *observed) unsupported() string { return "not enforced yet: " + strings.Join(o.missing, ", ") }

// patch is a merge patch of the status of this version of the object.
func (o *observed) patch(status map[string]any) []byte {
	b, err := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": o.version}, "status": status})
	if err != nil {
		return nil // it is made of texts and numbers
	}
	return b
}

// same compares what JSON makes of two values.
func same(a, b any) bool {
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return cmp.Or(err1, err2) == nil && bytes.Equal(x, y)
}

// clip keeps a message within what the API server takes.
func clip(s string) string {
	if len(s) > 30_000 {
		return strings.ToValidUTF8(s[:30_000], "") + "…"
	}
	return s
}
