package languages

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"weft/internal/compile/policy"
	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
)

// Rows are the rows that policies of a snapshot compile to for a node.
type Rows struct {
	All     []plan.Row
	sets    map[plan.ID]*plan.PolicySet
	members map[[2]plan.ID]bool // peer set, identity
	ids     map[netip.Prefix]plan.ID
	guards  map[netip.Addr]*plan.Guard
}

// Compile compiles for a node, whose pods have their interfaces: see Endpoint.
func Compile(s Objects, node string) *Rows {
	s = maps.Clone(s)
	for _, o := range slices.Collect(s.All(model.KindPod)) {
		if pod, ok := o.(*model.Pod); ok && pod.Node == node {
			ep := Endpoint(pod)
			s[ep.Key()] = ep
		}
	}
	e := policy.New(node)
	r := &Rows{
		sets: map[plan.ID]*plan.PolicySet{}, members: map[[2]plan.ID]bool{}, ids: map[netip.Prefix]plan.ID{}, guards: map[netip.Addr]*plan.Guard{},
	}
	seen := map[model.Key]bool{}
	for _, owner := range e.Update(s, s.Keys()) {
		if seen[owner] {
			continue
		}
		seen[owner] = true
		for _, row := range e.Rows(owner) {
			r.add(s, node, owner, row)
		}
	}
	return r
}

func (r *Rows) add(s Objects, node string, owner model.Key, row plan.Row) {
	r.All = append(r.All, row)
	switch x := row.(type) {
	case *plan.PolicySet:
		r.sets[x.ID] = x
	case *plan.PeerSet:
		for _, m := range x.Members {
			r.members[[2]plan.ID{x.ID, m}] = true
		}
	case *plan.Address:
		r.ids[x.Prefix] = x.Identity
	case *plan.Guard:
		of := []netip.Addr(nil)
		if ep, ok := s[owner].(*model.Endpoint); ok {
			of = ep.Addrs
		} else if x.Dev == "" {
			of = s[model.NodeKey(node)].(*model.Node).Addrs
		}
		for _, a := range of {
			r.guards[a] = x
		}
	}
}

// Decide is what the rows say of each side of a packet.
func (r *Rows) Decide(p Packet) (egress, ingress model.Verdict) {
	side := func(self, other netip.Addr, in bool) model.Verdict {
		g := r.guards[self]
		if g == nil {
			return model.VerdictAllow
		}
		set := r.sets[g.Egress]
		if in {
			set = r.sets[g.Ingress]
		}
		if set == nil {
			return model.VerdictAllow
		}
		k := plan.Packet{Family: netset.Of(p.Dst), Proto: p.Proto, SrcPort: p.SrcPort, DstPort: p.DstPort, FromHost: p.FromHost && in}
		peer := r.identity(other)
		if i := set.Decide(k, func(id plan.ID) bool { return r.members[[2]plan.ID{id, peer}] }, func(int) {}); i >= 0 {
			return set.Rules[i].Verdict
		}
		return model.VerdictAllow
	}
	return side(p.Src, p.Dst, false), side(p.Dst, p.Src, true)
}

// identity is that of the longest prefix that an address is in.
func (r *Rows) identity(a netip.Addr) plan.ID {
	best, id := -1, plan.IdentityWorld
	for pfx, i := range r.ids {
		if pfx.Contains(a) && pfx.Bits() > best {
			best, id = pfx.Bits(), i
		}
	}
	return id
}

// compare fails the test unless the rows say the same.
func (r *Rows) compare(t testing.TB, s *Set, p Packet, egress, ingress model.Verdict) {
	t.Helper()
	if e, i := r.Decide(p); e != egress || i != ingress {
		t.Fatalf("%+v: rows say egress %s, ingress %s; oracle %s, %s\n%s", p, e, i, egress, ingress, s)
	}
}
