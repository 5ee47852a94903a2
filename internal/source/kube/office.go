package kube

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"weft/internal/crd"
)

// The lease of the office. Its holder renews it a few times before it ends; the others look seldom, since they are many.
const (
	leaseTime  = 60 * time.Second
	leaseRenew = 20 * time.Second
	leaseLook  = 30 * time.Second
	leaseName  = "weft"
)

// office is what one agent of the cluster does for all: it installs definitions that are missing and writes the statuses of
// policies. Who holds it is said by a Lease. An agent that dies leaves the lease to run out; one that starts again
// on the same node goes on with it. What it has done stays when weft goes: definitions have the users' objects below them.
type office struct {
	s         *Source
	languages []string
	namespace string // of the lease
	statuses  *statuses
	reporter  *reporter // nil: nothing is reported
	counts    bool      // where policies are in force is counted

	mu   sync.Mutex
	held bool // guarded by mu

	// Of the goroutine of run.
	seen   string          // what the lease of somebody else said last
	since  time.Time       // of seen
	renewd time.Time       // when the lease was renewed last
	told   map[string]bool // definitions that could not be installed, reported
}

func newOffice(s *Source) *office {
	o := &office{s: s, languages: s.opts.Policy.Languages, namespace: "kube-system", told: map[string]bool{}}
	if b, err := os.ReadFile("/var/run/secrets/kubernetes.io/serviceaccount/namespace"); err == nil && len(b) > 0 {
		o.namespace = strings.TrimSpace(string(b))
	}
	o.statuses = newStatuses(s)
	o.counts = slices.Contains(o.languages, "antrea") && s.opts.Policy.Realized != nil
	if s.opts.Node != "" {
		o.reporter = &reporter{s: s, wake: make(chan struct{}, 1), versions: s.counted}
	}
	return o
}

// holds reports whether this agent holds the office.
func (o *office) holds() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.held
}

// run seeks the office, and does its work, until ctx ends.
func (o *office) run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { o.statuses.run(ctx) })
	if o.reporter != nil {
		wg.Go(func() { o.reporter.run(ctx) })
	}
	defer wg.Wait()
	for ctx.Err() == nil {
		held, err := o.turn(ctx)
		if err != nil {
			o.s.log.Debug("lease", "err", err)
			// The lease is still this agent's for a while, and then somebody else's.
			held = o.holds() && time.Since(o.renewd) < leaseTime-leaseRenew
		}
		o.set(held)
		wait := leaseLook/2 + rand.N(leaseLook)
		if held {
			o.install(ctx)
			wait = leaseRenew
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// set notes whether the office is held. Who has just come into it looks at every object anew.
func (o *office) set(held bool) {
	o.mu.Lock()
	before := o.held
	o.held = held
	o.mu.Unlock()
	if held != before && o.reporter != nil {
		o.s.count(held)
	}
	if held && !before {
		o.s.log.Info("this agent installs definitions and writes statuses of policies", "languages", o.languages)
		o.s.again(o.s.ofLanguages())
	}
}

// lease is what matters of coordination.k8s.io/v1 Lease. Times are texts, which are sent back as they came.
type lease struct {
	APIVersion string         `json:"apiVersion"`
	Kind       string         `json:"kind"`
	Metadata   map[string]any `json:"metadata"`
	Spec       leaseSpec      `json:"spec"`
}

type leaseSpec struct {
	Holder      string `json:"holderIdentity"`
	Seconds     int    `json:"leaseDurationSeconds"`
	Acquired    string `json:"acquireTime,omitempty"`
	Renewed     string `json:"renewTime"`
	Transitions int    `json:"leaseTransitions"`
}

// turn looks at the lease once and takes or renews it if it can: true if it is this agent's now.
func (o *office) turn(ctx context.Context) (bool, error) {
	all := leasesPath(o.namespace)
	now := time.Now()
	mine := leaseSpec{Holder: o.s.opts.Node, Seconds: int(leaseTime.Seconds()), Acquired: micro(now), Renewed: micro(now)}
	var l lease
	switch err := o.s.api.read(ctx, all+"/"+leaseName, &l); {
	case code(err) == http.StatusNotFound:
		l = lease{"coordination.k8s.io/v1", "Lease", map[string]any{"name": leaseName, "namespace": o.namespace}, mine}
		return o.won(now, o.s.api.write(ctx, http.MethodPost, all, jsonBody, l, nil))
	case err != nil:
		return false, err
	}
	switch {
	case l.Spec.Holder == mine.Holder:
		mine.Acquired, mine.Transitions = l.Spec.Acquired, l.Spec.Transitions
	case l.Spec.Holder != "" && o.fresh(l.Spec, now):
		return false, nil
	default:
		mine.Transitions = l.Spec.Transitions + 1
	}
	l.Spec = mine
	return o.won(now, o.s.api.write(ctx, http.MethodPut, all+"/"+leaseName, jsonBody, l, nil))
}

// won is the result of a write: a conflict means that somebody else was faster.
func (o *office) won(now time.Time, err error) (bool, error) {
	if code(err) == http.StatusConflict {
		return false, nil
	}
	if err == nil {
		o.renewd = now
	}
	return err == nil, err
}

// fresh reports whether a lease of somebody else has not run out, by this host's clock alone: it counts from when it was seen to
// change.
func (o *office) fresh(l leaseSpec, now time.Time) bool {
	if said := l.Holder + " " + l.Renewed; said != o.seen {
		o.seen, o.since = said, now
	}
	return now.Sub(o.since) < max(leaseTime, time.Duration(l.Seconds)*time.Second)
}

// micro is metav1.MicroTime.
func micro(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z07:00") }

// install creates the definitions of the languages that the cluster has not. One that is there is never touched, whoever made it.
func (o *office) install(ctx context.Context) {
	if !o.s.knowsDefinitions() {
		return
	}
	for _, language := range o.languages {
		defs, err := crd.Of(language)
		if err != nil {
			o.s.opts.Report(err.Error(), "ignored")
		}
		for _, d := range defs {
			if o.s.defined(d.Name) {
				continue
			}
			err := o.s.api.write(ctx, http.MethodPost, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", jsonBody, []byte(d.JSON), nil)
			switch {
			case err == nil:
				delete(o.told, d.Name)
				o.s.opts.Report("CustomResourceDefinition "+d.Name+" was missing", "installed: policy.languages has "+language)
			case code(err) == http.StatusConflict: // it has come in the meantime
			case !o.told[d.Name] && ctx.Err() == nil:
				o.told[d.Name] = true
				o.s.opts.Report(fmt.Sprintf("CustomResourceDefinition %s cannot be installed: %v", d.Name, err), "trying again")
			}
		}
	}
}

// knowsDefinitions reports whether it is known which definitions the cluster has.
func (s *Source) knowsDefinitions() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.watches[crdWatch]
	return w != nil && w.Synced && w.Err == nil
}

// defined reports whether the cluster has the definition.
func (s *Source) defined(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.crds[name]
}

// count says whether this agent counts where policies are in force.
func (s *Source) count(on bool) {
	s.mu.Lock()
	s.counting = on
	s.mu.Unlock()
	s.poke()
}

// counted returns the resource versions up to which the store has the policies that are counted; none if there are none.
func (s *Source) counted() map[string]uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	out, some := map[string]uint64{}, false
	for name, w := range s.watches {
		if w.counted && w.Synced {
			out[name] = w.version
			some = some || s.needs[name].Pods
		}
	}
	if !some {
		return nil
	}
	return out
}

// stored notes up to which version a watch's objects are in the store.
func (s *Source) stored(name, version string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.watches[name]
	if w == nil || !w.counted {
		return
	}
	v, err := strconv.ParseUint(version, 10, 64)
	if err != nil {
		return
	}
	w.version = v
	s.office.reporter.poke()
}

// ofLanguages lists the watches of policies whose objects get a status.
func (s *Source) ofLanguages() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for name, w := range s.watches {
		if s.isPolicy(name) && slices.Contains(s.opts.Policy.Languages, w.language) {
			out = append(out, name)
		}
	}
	return out
}

// again has every object of these watches looked at anew.
func (s *Source) again(watches []string) {
	s.mu.Lock()
	for _, name := range watches {
		if w := s.watches[name]; w != nil {
			w.restart = true
		}
	}
	s.mu.Unlock()
	s.poke()
}
