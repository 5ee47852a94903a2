package policy

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
)

// Placed is a policy with its tier.
type Placed struct {
	*model.Policy
	Tier model.Tier
}

// Order returns all policies in the order in which they are asked, with those that host endpoints have by themselves.
func Order(s model.Snapshot) []Placed {
	all := map[model.Key]*policy{}
	add := func(p *model.Policy) { all[p.Key()] = &policy{Policy: p, tier: model.FindTier(s, p.Tier)} }
	for h := range model.All[*model.HostEndpoint](s, model.KindHostEndpoint) {
		for _, p := range h.Policies() {
			add(p)
		}
	}
	for p := range model.All[*model.Policy](s, model.KindPolicy) {
		add(p)
	}
	out := make([]Placed, 0, len(all))
	for _, p := range slices.SortedFunc(maps.Values(all), comparePolicies) {
		out = append(out, Placed{p.Policy, p.tier})
	}
	return out
}

// Shadowed returns, for rules of a set that can never decide, the rule before them that always does; members returns who is
// in a peer set now.
func Shadowed(set *plan.PolicySet, members func(plan.ID) []plan.ID) map[int]int {
	out := map[int]int{}
	for j := range set.Rules {
		for i := range set.Rules[:j] {
			if covers(&set.Rules[i], &set.Rules[j], members) {
				out[j] = i
				break
			}
		}
	}
	return out
}

// covers says whether whatever matches b matches a, which ends the search.
func covers(a, b *plan.PolicyRule, members func(plan.ID) []plan.ID) bool {
	if a.Staged || a.Verdict == model.VerdictLog || a.Verdict == model.VerdictPass && a.PassTo <= b.Level ||
		a.Family != 0 && a.Family != b.Family || a.Hosts != b.Hosts ||
		a.SrcPorts != nil && (b.SrcPorts == nil || a.SrcPorts.First > b.SrcPorts.First || a.SrcPorts.Last < b.SrcPorts.Last) {
		return false
	}
	for _, m := range b.L4 {
		if !slices.ContainsFunc(a.L4, func(o plan.L4) bool { return o.Covers(m) }) {
			return false
		}
	}
	if a.Peers == 0 || a.Peers == b.Peers {
		return true
	}
	if b.Peers == 0 {
		return false
	}
	of := members(a.Peers)
	return !slices.ContainsFunc(members(b.Peers), func(id plan.ID) bool { _, found := slices.BinarySearch(of, id); return !found })
}

// Change is a pair of kinds of ends between which a verdict differs.
type Change struct {
	From, To      string // one of the ends, and how many are like it
	FromID, ToID  plan.ID
	L4            plan.L4
	Before, After model.Verdict
	By            string // what decides afterwards
	Seen          int    // flows between such ends that are open and would be affected
}

// Flow is a connection that is open.
type Flow struct {
	Src, Dst netip.Addr
	Proto    int
	SrcPort  uint16
	DstPort  uint16
}

// compared is one side of a comparison: every pod of the cluster as if it were on one node.
type compared struct {
	e    *Engine
	pods map[model.Key]*local
}

func compileAll(s model.Snapshot) compared {
	over := newOverlay(s)
	for p := range model.All[*model.Pod](s, model.KindPod) {
		if !p.HostNetwork && len(p.Addrs) > 0 {
			ep := endpointOf(p)
			over.objs[ep.Key()] = ep
		}
	}
	c := compared{New(""), map[model.Key]*local{}}
	c.e.Update(over, over.keys())
	for _, l := range c.e.locals {
		if l.holder != nil && l.holder.pod != nil {
			c.pods[l.holder.key] = l
		}
	}
	return c
}

// kind is pods that neither before nor after can be told apart.
type kind struct {
	text     string
	n        int
	id       plan.ID      // identity before
	was, now *local       // nil: the world
	addrs    []netip.Addr // one of each family that it has
	changed  [2]bool      // by direction: the sets differ
}

// Difference is what changes between two snapshots.
type Difference struct {
	Changes []Change
	Pairs   int // of kinds of ends that were compared
	Open    int // flows that would be affected
}

// Diff compares two snapshots. Connections are taken to be new, and nodes' own traffic to their pods is left out.
func Diff(before, after model.Snapshot, open []Flow) Difference {
	b, a := compileAll(before), compileAll(after)
	kinds, byAddr := kindsOf(b, a)
	ports := portsOf(b.e, a.e)
	var out []Change
	pairs := 0
	for _, from := range kinds {
		for _, to := range kinds {
			pairs++
			if !from.changed[plan.Egress] && !to.changed[plan.Ingress] {
				continue
			}
			for _, m := range ports {
				if ch, differs := compare(b.e, a.e, from, to, m); differs {
					out = append(out, ch)
				}
			}
		}
	}
	d := Difference{Changes: out, Pairs: pairs}
	d.count(b.e, a.e, byAddr, kinds[len(kinds)-1], open)
	return d
}

// count adds up the open flows that would be affected.
func (d *Difference) count(b, a *Engine, byAddr map[netip.Addr]*kind, outside *kind, open []Flow) {
	for _, f := range open {
		from, to := cmp.Or(byAddr[f.Src], outside), cmp.Or(byAddr[f.Dst], outside)
		pkt := plan.Packet{Family: netset.Of(f.Src), Proto: f.Proto, SrcPort: f.SrcPort, DstPort: f.DstPort}
		if verdict(b, from.was, to.was, f.Src, f.Dst, pkt).Verdict() == verdict(a, from.now, to.now, f.Src, f.Dst, pkt).Verdict() {
			continue
		}
		d.Open++
		for i := range d.Changes {
			if c := &d.Changes[i]; c.From == from.text && c.To == to.text && c.L4.Covers(plan.L4{Proto: f.Proto, Port: f.DstPort, Bits: 16}) {
				c.Seen++
			}
		}
	}
}

func compare(b, a *Engine, from, to *kind, m plan.L4) (Change, bool) {
	for _, src := range from.addrs {
		for _, dst := range to.addrs {
			if netset.Of(src) != netset.Of(dst) {
				continue
			}
			pkt := plan.Packet{Family: netset.Of(src), Proto: max(m.Proto, 0), SrcPort: 32768, DstPort: m.Port}
			was := verdict(b, from.was, to.was, src, dst, pkt)
			now := verdict(a, from.now, to.now, src, dst, pkt)
			if was.Verdict() != now.Verdict() {
				by := now.Egress.By
				if now.Egress.Verdict == model.VerdictAllow {
					by = now.Ingress.By
				}
				return Change{From: from.text, To: to.text, FromID: from.id, ToID: to.id, L4: m, Before: was.Verdict(), After: now.Verdict(), By: by}, true
			}
		}
	}
	return Change{}, false
}

func verdict(e *Engine, from, to *local, src, dst netip.Addr, pkt plan.Packet) Answer {
	return Answer{Egress: e.side(from, dst, plan.Egress, pkt), Ingress: e.side(to, src, plan.Ingress, pkt)}
}

// kindsOf puts pods together that are alike on both sides, and adds the world as the last. It says, too, of which kind an address is.
func kindsOf(b, a compared) ([]*kind, map[netip.Addr]*kind) {
	byKey, byAddr := map[string]*kind{}, map[netip.Addr]*kind{}
	for _, k := range slices.SortedFunc(maps.Keys(a.pods), compareKeys) {
		now, was := a.pods[k], b.pods[k]
		if was == nil {
			was = &local{}
		}
		pod := now.holder.pod
		key := fmt.Sprint(now.holder.base(a.e, model.PodLabels{Pod: pod}), idsOf(was), idsOf(now))
		x := byKey[key]
		if x == nil {
			x = &kind{was: was, now: now, addrs: pod.Addrs, text: "pod " + pod.PodRef.String()}
			if c := a.e.classOf(pod.Addrs[0]); c != nil {
				x.id = c.id
			}
			w, n := idsOf(was), idsOf(now)
			x.changed = [2]bool{w[0] != n[0], w[1] != n[1]}
			byKey[key] = x
		}
		x.n++
		for _, addr := range pod.Addrs {
			byAddr[addr] = x
		}
	}
	out := slices.Collect(maps.Values(byKey))
	for _, x := range out {
		if x.n > 1 {
			x.text += fmt.Sprintf(" and %d like it", x.n-1)
		}
	}
	slices.SortFunc(out, func(x, y *kind) int { return cmp.Compare(x.text, y.text) })
	// Documentation addresses (RFC 5737, RFC 3849) are nobody's.
	world := []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, 1}), netip.MustParseAddr("2001:db8::1")}
	return append(out, &kind{text: "outside", n: 1, id: plan.IdentityWorld, addrs: world}), byAddr
}

func idsOf(l *local) [2]plan.ID {
	var out [2]plan.ID
	for i, s := range []*set{l.ingress, l.egress} {
		if s != nil {
			out[i] = s.id
		}
	}
	return out
}

// portsOf are the first ports of every prefix that rules distinguish, and one that none does.
func portsOf(es ...*Engine) []plan.L4 {
	seen := map[plan.L4]bool{{Proto: model.ProtoTCP, Port: 61001, Bits: 16}: true, {Proto: model.ProtoUDP, Port: 61001, Bits: 16}: true}
	for _, e := range es {
		for _, s := range e.sets {
			for _, r := range s.rules {
				for _, m := range r.L4 {
					if m.Proto != model.ProtoAny && m.Bits > 0 {
						seen[plan.L4{Proto: m.Proto, Port: m.Port, Bits: 16}] = true
					}
				}
			}
		}
	}
	return slices.SortedFunc(maps.Keys(seen), func(x, y plan.L4) int { return cmp.Or(cmp.Compare(x.Proto, y.Proto), cmp.Compare(x.Port, y.Port)) })
}

// With is a snapshot in which objects are as given; a nil object is one that is not there.
func With(s model.Snapshot, objs map[model.Key]model.Object) model.Snapshot {
	return overlay{s, objs}
}
