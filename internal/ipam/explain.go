package ipam

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weft/internal/api"
	"weft/internal/netset"
)

// Use returns the use of the pools by family, for the families that have any or an address in use.
func (a *Allocator) Use() []api.PoolUse {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.expire()
	var out []api.PoolUse
	for _, f := range netset.Families() {
		ss := a.usable[f]
		size, used := ss.size()
		u := api.PoolUse{Family: f.String(), Size: size, Free: size - used}
		for x := range a.owner {
			if netset.Of(x) != f {
				continue
			}
			if s, _ := ss.find(x); s != nil {
				u.Live++
			} else {
				u.Outside++
			}
		}
		u.Quarantined = used - u.Live
		if size > 0 || u.Outside > 0 {
			out = append(out, u)
		}
	}
	return out
}

// Counters returns the counters.
func (a *Allocator) Counters() Counters {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.counts
}

// Pools returns the pools and the reserved prefixes as they are used.
func (a *Allocator) Pools() (pools, reserved []netip.Prefix) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.pools), slices.Clone(a.reserved)
}

// Explain says who has, or had, the addresses that the query matches (see api.ExplainRequest), in their order. A single
// address always has an answer.
func (a *Allocator) Explain(query string) []api.Holding {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.expire()
	if x, err := netip.ParseAddr(query); err == nil {
		return []api.Holding{a.explain(x.Unmap())}
	}
	match := func(id string, pod podRecord) bool {
		return query == "" || query == id || query == pod.Name || query == pod.Namespace+"/"+pod.Name ||
			len(query) >= 6 && strings.HasPrefix(id, query)
	}
	var out []api.Holding
	for x, l := range a.owner {
		if match(l.Endpoint.ID, podRecord(l.Endpoint.Pod)) {
			out = append(out, a.explain(x))
		}
	}
	for x, r := range a.resting {
		if match(r.Owner, r.Pod) {
			out = append(out, a.explain(x))
		}
	}
	slices.SortFunc(out, func(x, y api.Holding) int { return x.Addr.Compare(y.Addr) })
	return out
}

func (a *Allocator) explain(x netip.Addr) api.Holding {
	h := api.Holding{Addr: x, State: string(Free), Reason: "nobody has it"}
	if l := a.owner[x]; l != nil {
		h.State, h.Owner, h.Pod = string(l.State), l.Endpoint.ID, api.PodRef(l.Endpoint.Pod)
		h.Netns, h.Since = l.Endpoint.Netns, l.Since
		h.Reason = "given to " + l.name()
		if l.State == Reserved {
			h.Reason += "; its ADD is under way, or the agent died before the end of it was recorded"
		}
		if !netset.Contains(a.pools, x) {
			h.Reason += "; it is in no pool any more, and stays until the pod goes"
		}
		return h
	}
	if r := a.resting[x]; r != nil {
		h.State, h.Owner, h.Pod, h.Since, h.Until = string(Quarantined), r.Owner, api.PodRef(r.Pod), r.Since, r.Until
		h.Reason = "resting: " + r.Why
		if r.Until.IsZero() {
			h.State, h.Reason = string(Suspected), "not given until the agent has swept or the node was rebooted: "+r.Why
		}
		return h
	}
	switch s, _ := a.usable[netset.Of(x)].find(x); {
	case !netset.Contains(a.pools, x):
		h.State, h.Reason = string(Foreign), "outside the pools of this node: "+list(a.pools)
	case s == nil:
		h.State, h.Reason = string(Excluded), a.excluded(x)
	}
	return h
}

// excluded says why an address of the pools is never given.
func (a *Allocator) excluded(x netip.Addr) string {
	for _, r := range a.reserved {
		if r.Contains(x) {
			return fmt.Sprintf("the configuration reserves %s", r)
		}
	}
	return "it is the first or the last address of its pool"
}

// exhausted explains that a family has no address left.
func (a *Allocator) exhausted(f netset.Family) error {
	size, used := a.usable[f].size()
	holders := map[string]int{}
	live := uint64(0)
	for x, l := range a.owner {
		if s, _ := a.usable[f].find(x); s == nil {
			continue
		}
		live++
		holders[cmp.Or(l.Endpoint.Pod.Namespace, "(no namespace)")]++
	}
	names := make([]string, 0, len(holders))
	for n := range holders {
		names = append(names, n)
	}
	slices.SortFunc(names, func(x, y string) int { return cmp.Or(holders[y]-holders[x], strings.Compare(x, y)) })
	var top []string
	for i, n := range names {
		if i == 5 {
			top = append(top, fmt.Sprintf("%d more namespaces", len(names)-i))
			break
		}
		top = append(top, fmt.Sprintf("%s %d", n, holders[n]))
	}
	if size == 0 {
		return fmt.Errorf("%w: the reserved ranges leave nothing of the %s pools %s", ErrExhausted, f, list(a.of(f)))
	}
	suspects := ""
	if used > live {
		suspects = fmt.Sprintf(" and %d suspected to be", used-live)
	}
	return fmt.Errorf("%w in the %s pools %s: %d of %d are in use%s; most by namespace %s",
		ErrExhausted, f, list(a.of(f)), live, size, suspects, strings.Join(top, ", "))
}

// of returns the pools of a family.
func (a *Allocator) of(f netset.Family) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(a.pools), func(p netip.Prefix) bool { return netset.OfPrefix(p) != f })
}

// name is how an owner is called in errors.
func (l *Lease) name() string {
	if p := l.Endpoint.Pod; p.Name != "" {
		return fmt.Sprintf("pod %s (%s)", p, l.Endpoint.ID)
	}
	return "attachment " + l.Endpoint.ID
}

func list(ps []netip.Prefix) string {
	if len(ps) == 0 {
		return "(none)"
	}
	var b strings.Builder
	for i, p := range ps {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(p.String())
	}
	return b.String()
}
