package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"weft/internal/convert/language"
	"weft/internal/convert/status"
	"weft/internal/convert/wire"
	"weft/internal/model"
)

// Antrea's policies say in their status on how many nodes they are in force. Each agent says in a Lease of its own up to which
// resource versions it has them in force, after what follows from them has reached its kernel; the holder of the office counts.
// It says there as well which policies, of any language, it has taken back: see package trial.
const (
	nodeLabel     = "weft.io/node"       // of agents' leases, and their annotations' names:
	realizedNote  = "weft.io/realized"   // resource versions by watch, as JSON
	takenBackNote = "weft.io/taken-back" // what broke, by definition and id, as JSON
	leaseWatch    = "leases of agents"

	reportPause = 2 * time.Second  // least time between two reports of an agent
	reportRenew = time.Minute      // and the longest
	nodeGone    = 3 * reportRenew  // without a report, an agent counts no more
	nodeSwept   = 10 * reportRenew // and its lease is removed
)

// progress is what the agents have reported, and the policies that are followed. It is guarded by the mu of statuses.
type progress struct {
	nodes    map[string]nodeReport
	policies map[string]*followed // by definition and id
	back     map[string]string    // where and why policies were taken back, by definition and id
	known    bool                 // what agents report has been received
}

// nodeReport is what one agent reported.
type nodeReport struct {
	versions map[string]uint64 // by watch
	back     map[string]string // what broke, by definition and id
	last     time.Time         // of this host's clock
	lease    string            // its name
}

// followed is one policy of which it is counted where it is in force.
type followed struct {
	status.Observed
	from    uint64 // the version in which this generation was seen first
	written string // what was written last, or is to be
	key     string // definition and id
}

func newProgress() progress {
	return progress{nodes: map[string]nodeReport{}, policies: map[string]*followed{}, back: map[string]string{}}
}

// follow takes in a version of a policy. The caller holds mu.
func (st *statuses) follow(k language.Kind, id string, o status.Observed) {
	key := k.CRD() + "/" + id
	f := st.policies[key]
	if f == nil || f.Generation != o.Generation {
		from, _ := strconv.ParseUint(o.Version, 10, 64) // of what is no number, every agent has it
		f = &followed{from: from}
		st.policies[key] = f
	}
	f.Observed, f.written, f.key = o, "", key
	st.recount()
}

// forget drops a policy. The caller holds mu.
func (st *statuses) forget(k language.Kind, id string) { delete(st.policies, k.CRD()+"/"+id) }

// recount has the statuses written that have changed. The caller holds mu.
func (st *statuses) recount() {
	st.whereBack()
	if len(st.policies) == 0 {
		return
	}
	alive := 0
	at := map[string][]uint64{} // by watch, in order
	for _, n := range st.nodes {
		if time.Since(n.last) > nodeGone {
			continue
		}
		alive++
		for watch, v := range n.versions {
			at[watch] = append(at[watch], v)
		}
	}
	for _, vs := range at {
		slices.Sort(vs)
	}
	for _, f := range st.policies {
		vs := at[f.Kind.CRD()]
		i, _ := slices.BinarySearch(vs, f.from)
		f.TakenBack, f.Unreported = st.back[f.key], !st.known
		patch := f.Realized(len(vs)-i-st.without(f), alive, now())
		if patch != nil && string(patch) != f.written {
			f.written = string(patch)
			st.want(f.Path, func() []byte { return patch })
		}
	}
}

// without counts the nodes that have a policy, and have taken it back. The caller holds mu.
func (st *statuses) without(f *followed) (n int) {
	for _, r := range st.nodes {
		if _, back := r.back[f.key]; back && r.versions[f.Kind.CRD()] >= f.from && time.Since(r.last) <= nodeGone {
			n++
		}
	}
	return n
}

// whereBack works out anew which policies were taken back where, and has those looked at that are not as before. The caller holds mu.
func (st *statuses) whereBack() {
	by := map[string][]string{}
	for _, r := range st.nodes {
		for key, why := range r.back {
			if time.Since(r.last) <= nodeGone {
				by[key] = append(by[key], strings.TrimPrefix(r.lease, leaseName+"-")+": "+why)
			}
		}
	}
	back := map[string]string{}
	for key, nodes := range by {
		slices.Sort(nodes)
		back[key] = strings.Join(nodes[:min(len(nodes), 10)], "; ")
		if n := len(nodes) - 10; n > 0 {
			back[key] += fmt.Sprintf("; and %d nodes more", n)
		}
	}
	var watches []string
	for _, m := range []map[string]string{back, st.back} {
		for key := range m {
			if back[key] != st.back[key] {
				watch, _, _ := strings.Cut(key, "/")
				watches = append(watches, watch)
			}
		}
	}
	if st.back = back; len(watches) > 0 {
		st.s.again(watches)
	}
}

// agents is the target of the agents' leases.
type agents struct{ st *statuses }

// leases is the resource of the agents' leases.
func leases(namespace string) resource {
	return resource{
		name: leaseWatch, query: url.Values{"labelSelector": {nodeLabel}}, accept: accept{jsonBody, jsonBody},
		forms: []form{{leasesPath(namespace), func(raw []byte, proto bool, s *wire.Strings) item {
			i := metadata("Lease")(raw, proto, s)
			i.raw = raw
			return i
		}}},
	}
}

func leasesPath(namespace string) string {
	return "/apis/coordination.k8s.io/v1/namespaces/" + namespace + "/leases"
}

func (a *agents) replace(_ context.Context, all []change) {
	a.st.mu.Lock()
	defer a.st.mu.Unlock()
	clear(a.st.nodes)
	a.st.known = true
	a.take(all)
}

func (a *agents) apply(_ context.Context, some []change) {
	a.st.mu.Lock()
	defer a.st.mu.Unlock()
	a.take(some)
}

func (a *agents) withdraw() {
	a.st.mu.Lock()
	defer a.st.mu.Unlock()
	clear(a.st.nodes)
	a.st.back, a.st.known = map[string]string{}, false
}

// take takes in what agents report. The caller holds mu.
func (a *agents) take(changes []change) {
	for _, c := range changes {
		if c.gone {
			delete(a.st.nodes, c.id)
			continue
		}
		var l struct {
			Metadata struct {
				Name        string
				Annotations map[string]string
			}
		}
		n := nodeReport{last: time.Now()}
		if json.Unmarshal(c.raw, &l) == nil && json.Unmarshal([]byte(l.Metadata.Annotations[realizedNote]), &n.versions) == nil {
			n.lease = l.Metadata.Name
			_ = json.Unmarshal([]byte(l.Metadata.Annotations[takenBackNote]), &n.back) // an older agent says nothing
			a.st.nodes[c.id] = n
		}
	}
	a.st.recount()
}

// watchNodes counts again as agents cease to report, and removes what those leave that are gone for good.
func (st *statuses) watchNodes(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(reportRenew / 2):
		}
		if !st.s.office.holds() {
			continue
		}
		var old []string
		st.mu.Lock()
		st.recount()
		for _, n := range st.nodes {
			if time.Since(n.last) > nodeSwept {
				old = append(old, n.lease)
			}
		}
		st.mu.Unlock()
		for _, name := range old {
			err := st.s.api.write(ctx, http.MethodDelete, leasesPath(st.s.office.namespace)+"/"+name, jsonBody, []byte("{}"), nil)
			st.s.log.Debug("removed the lease of an agent that is gone", "lease", name, "err", err)
		}
	}
}

// reporter tells the holder of the office what is in force on this node.
type reporter struct {
	s        *Source
	wake     chan struct{} // capacity 1
	versions func() map[string]uint64
}

// report is what an agent says.
type report struct {
	versions map[string]uint64
	back     map[string]string
}

func (r report) empty() bool { return len(r.versions)+len(r.back) == 0 }

// run reports until ctx ends: nothing as long as there is no policy that is counted, and none was taken back.
func (r *reporter) run(ctx context.Context) {
	var told report
	again := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		case <-time.After(reportRenew):
			again = !told.empty() // this agent is alive
		}
		now := report{r.versions(), r.s.takenBack()}
		counts := maps.Equal(now.versions, told.versions)
		if again || !counts || !maps.Equal(now.back, told.back) {
			if !counts && len(now.versions) > 0 && r.s.opts.Policy.Realized(ctx) != nil {
				continue
			}
			if err := r.tell(ctx, now); err == nil {
				told, again = now, false
			} else if ctx.Err() == nil {
				r.s.log.Debug("what is in force here was not reported", "err", err)
				r.retry(ctx)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(reportPause):
		}
	}
}

// retry wakes the reporter again, later.
func (r *reporter) retry(ctx context.Context) {
	time.AfterFunc(reportRenew/6, func() {
		if ctx.Err() == nil {
			r.poke()
		}
	})
}

// poke has the reporter look whether there is something to report.
func (r *reporter) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// tell writes the report into this agent's lease.
func (r *reporter) tell(ctx context.Context, now report) error {
	realized, err1 := json.Marshal(now.versions)
	back, err2 := json.Marshal(now.back)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	name, path := leaseName+"-"+r.s.opts.Node, leasesPath(r.s.office.namespace)
	l := lease{
		"coordination.k8s.io/v1", "Lease",
		map[string]any{
			"name": name, "namespace": r.s.office.namespace, "labels": map[string]any{nodeLabel: r.s.opts.Node},
			"annotations": map[string]any{realizedNote: string(realized), takenBackNote: string(back)},
		},
		leaseSpec{Holder: r.s.opts.Node, Seconds: int(nodeGone.Seconds()), Renewed: micro(time.Now())},
	}
	err := r.s.api.write(ctx, http.MethodPatch, path+"/"+name, mergePatch, l, nil)
	if code(err) == http.StatusNotFound {
		err = r.s.api.write(ctx, http.MethodPost, path, jsonBody, l, nil)
	}
	return err
}

// SetTakenBack says which policies this node has taken back, and why: it is reported to who writes statuses.
func (s *Source) SetTakenBack(back map[model.Ref]string) {
	by := map[string]string{}
	kinds := language.Kinds()
	for ref, why := range back {
		// Of the versions of a kind, which have one definition, any will do.
		if i := slices.IndexFunc(kinds, func(k language.Kind) bool { return k.Type.Group == ref.Group && k.Type.Kind == ref.Kind }); i >= 0 {
			by[kinds[i].CRD()+"/"+strings.TrimPrefix(ref.Namespace+"/"+ref.Name, "/")] = why
		}
	}
	s.mu.Lock()
	s.back = by
	s.mu.Unlock()
	if s.office != nil && s.office.reporter != nil {
		s.office.reporter.poke()
	}
}

// takenBack returns what SetTakenBack said last, by definition and id.
func (s *Source) takenBack() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.back
}
