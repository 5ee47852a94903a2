package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weft/internal/api"
	"weft/internal/compile/route"
	"weft/internal/model"
	"weft/internal/plan"
)

// status is the method behind `weft status`.
func (a *Agent) status() api.Status {
	s := api.Status{
		Node: a.cfg.NodeName, Version: a.version, Started: a.started, Waiting: a.waiting(), Backend: a.backend(),
		Pools: a.pools(), Rows: map[string]int{}, Counters: a.ebpf.Stats(),
	}
	s.Ready = len(s.Waiting) == 0
	if a.cluster.problems != nil {
		s.Problems = append(s.Problems, a.cluster.problems()...)
	}
	snap := a.store.Snapshot()
	s.Problems = append(s.Problems, takenBack(snap)...)
	if dev, addrs, err := route.Underlay(snap); err == nil {
		s.Underlay = fmt.Sprintf("%s, MTU %d, %s", dev.Name, dev.MTU, words(addrs))
	}
	for _, k := range plan.Kinds() {
		for _, r := range a.store.Rows(k) {
			switch {
			case k == plan.KindProblem:
				s.Problems = append(s.Problems, r.Err.Error())
			case r.Err != nil:
				s.Failures = append(s.Failures, fmt.Sprintf("%s: %s: %v", r.Row.Key(), r.Status, r.Err))
				s.Rows[string(r.Status)]++
			default:
				s.Rows[string(r.Status)]++
			}
		}
	}
	for _, k := range model.Kinds() {
		for _, i := range a.store.Intents(k) {
			if _, of := i.Object.(*model.Policy); of && i.Problem == nil {
				continue // what is wrong with a part of it its source has told
			}
			if problem := problemOf(i); problem != "" {
				s.Problems = append(s.Problems, problem)
			}
		}
	}
	for f := range model.All[*model.Feature](snap, model.KindFeature) {
		s.Features = append(s.Features, api.Feature{Name: f.Name, State: f.State, Detail: f.Detail})
	}
	for _, h := range a.group.Health() {
		s.Tasks = append(s.Tasks, api.Task{Name: h.Name, Running: h.Running, Restarts: h.Restarts, Err: h.Err})
	}
	return s
}

func (a *Agent) backend() string {
	b := a.cfg.Backend
	if b.Type != "vxlan" {
		return b.Type
	}
	s := fmt.Sprintf("vxlan VNI %d port %d", b.VNI, b.Port)
	if b.CrossSubnet {
		s += ", direct within the subnet"
	}
	return s
}

// pools is the use of the addresses, by family.
func (a *Agent) pools() []api.PoolUse { return a.cni.Pools().Use }

// doctor is the method behind `weft doctor`.
func (a *Agent) doctor() api.Doctor {
	a.mu.Lock()
	d := api.Doctor{Now: slices.Clone(a.findings)}
	a.mu.Unlock()
	s := a.status()
	d.Now = append(d.Now, s.Problems...)
	d.Now = append(d.Now, s.Failures...)
	for _, t := range s.Tasks {
		if !t.Running && t.Err != "" {
			d.Now = append(d.Now, fmt.Sprintf("task %s is down: %s", t.Name, t.Err))
		}
	}
	for i := range model.All[*model.Incident](a.store.Snapshot(), model.KindIncident) {
		d.Incidents = append(d.Incidents, api.Incident{What: i.What, Action: i.Action, First: i.First, Last: i.Last, Count: i.Count})
	}
	slices.SortStableFunc(d.Incidents, func(a, b api.Incident) int { return b.Last.Compare(a.Last) })
	return d
}

// words joins addresses as people read them.
func words(as []netip.Addr) string {
	out := make([]string, 0, len(as))
	for _, a := range as {
		out = append(out, a.String())
	}
	return strings.Join(out, ", ")
}
