package kube

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"weft/internal/convert/language"
	"weft/internal/convert/status"
	"weft/internal/convert/wire"
)

// Antrea's policies say in their status on how many nodes they are in force. Each agent says in a Lease of its own up to which
// resource versions it has them in force, after what follows from them has reached its kernel; the holder of the office counts.
const (
	nodeLabel    = "weft.io/node"     // of agents' leases, and their annotation's name:
	realizedNote = "weft.io/realized" // resource versions by watch, as JSON
	leaseWatch   = "leases of agents"

	reportPause = 2 * time.Second  // least time between two reports of an agent
	reportRenew = time.Minute      // and the longest
	nodeGone    = 3 * reportRenew  // without a report, an agent counts no more
	nodeSwept   = 10 * reportRenew // and its lease is removed
)

// progress is what the agents have reported, and the policies that are followed. It is guarded by the mu of statuses.
type progress struct {
	nodes    map[string]nodeReport
	policies map[string]*followed // by definition and id
}

// nodeReport is what one agent reported.
type nodeReport struct {
	versions map[string]uint64 // by watch
	last     time.Time         // of this host's clock
	lease    string            // its name
}

// followed is one policy of which it is counted where it is in force.
type followed struct {
	status.Observed
	from    uint64 // the version in which this generation was seen first
	written string // what was written last, or is to be
}

func newProgress() progress {
	return progress{nodes: map[string]nodeReport{}, policies: map[string]*followed{}}
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
	f.Observed, f.written = o, ""
	st.recount()
}

// forget drops a policy. The caller holds mu.
func (st *statuses) forget(k language.Kind, id string) { delete(st.policies, k.CRD()+"/"+id) }

// recount has the statuses written that have changed. The caller holds mu.
func (st *statuses) recount() {
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
		patch := f.Realized(len(vs)-i, alive, now())
		if patch != nil && string(patch) != f.written {
			f.written = string(patch)
			st.want(f.Path, func() []byte { return patch })
		}
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
	a.take(all)
}

func (a *agents) apply(_ context.Context, some []change) {
	a.st.mu.Lock()
	defer a.st.mu.Unlock()
	a.take(some)
}

func (a *agents) withdraw() { a.replace(context.Background(), nil) }

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

// run reports until ctx ends: nothing as long as there is no policy that is counted.
func (r *reporter) run(ctx context.Context) {
	told := map[string]uint64{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		case <-time.After(reportRenew):
			if len(told) == 0 {
				continue
			}
			clear(told) // say it again: this agent is alive
		}
		versions := r.versions()
		if len(versions) > 0 && !maps.Equal(versions, told) && r.s.opts.Policy.Realized(ctx) == nil {
			if err := r.tell(ctx, versions); err == nil {
				told = versions
			} else if ctx.Err() == nil {
				r.s.log.Debug("what is in force here was not reported", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(reportPause):
		}
	}
}

// tell writes the versions into this agent's lease.
func (r *reporter) tell(ctx context.Context, versions map[string]uint64) error {
	note, err := json.Marshal(versions)
	if err != nil {
		return err
	}
	name, path := leaseName+"-"+r.s.opts.Node, leasesPath(r.s.office.namespace)
	l := lease{
		"coordination.k8s.io/v1", "Lease",
		map[string]any{
			"name": name, "namespace": r.s.office.namespace, "labels": map[string]any{nodeLabel: r.s.opts.Node},
			"annotations": map[string]any{realizedNote: string(note)},
		},
		leaseSpec{Holder: r.s.opts.Node, Seconds: int(nodeGone.Seconds()), Renewed: micro(time.Now())},
	}
	err = r.s.api.write(ctx, http.MethodPatch, path+"/"+name, mergePatch, l, nil)
	if code(err) == http.StatusNotFound {
		err = r.s.api.write(ctx, http.MethodPost, path, jsonBody, l, nil)
	}
	return err
}
