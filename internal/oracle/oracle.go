// Package oracle decides about single packets straight from the policies, slowly and in the plainest way there is: the evaluator is
// this file, and who has an address is in world.go.
//
// It is what compiled policy is tested against, and shares nothing with the compiler but the model. It is not used to
// enforce anything, keeps nothing between two calls, and knows no connections: a packet is the first of its own.
// docs/design/policy.md has the order of evaluation in words.
package oracle

import (
	"cmp"
	"math"
	"net/netip"
	"slices"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/selector"
)

// Packet is the first packet of a connection, after services have been translated.
type Packet struct {
	Src, Dst         netip.Addr
	Proto            int    // IANA number
	SrcPort, DstPort uint16 // DstPort of ICMP: type<<8 | code
	FromHost         bool   // the node's own processes sent it
	Dev              string // by which the node gets or sends it; "": the underlay's
}

// Decision is what one side says.
type Decision struct {
	Verdict model.Verdict // allow, deny or reject
	Policy  model.Ref     // whose rule decided; zero: none did
	Rule    string        // its field, "" at a tier's end
}

// Decide returns what the sender's egress and the receiver's ingress say on the node; a side that is not on the node allows.
func Decide(s model.Snapshot, node string, p Packet) (egress, ingress Decision) {
	w := world{s, node, p.Dev}
	src, dst := w.end(p.Src), w.end(p.Dst)
	return w.side(src, dst, p, false), w.side(dst, src, p, true)
}

// ranked is a policy with its place on the axis, and the subject as it sees it.
type ranked struct {
	*model.Policy
	tier    model.Tier
	sec     *model.Section
	subject end
}

// side decides one direction of one subject.
func (w world) side(subject, other end, p Packet, ingress bool) Decision {
	if !subject.policed {
		return Decision{Verdict: model.VerdictAllow}
	}
	var all []ranked
	add := func(pol *model.Policy, as end) {
		sec := map[bool]*model.Section{true: pol.Ingress, false: pol.Egress}[ingress]
		if sec != nil && !pol.Staged && pol.Hook == model.HookWorkload {
			all = append(all, ranked{pol, model.FindTier(w.s, pol.Tier), sec, as})
		}
	}
	for pol := range model.All[*model.Policy](w.s, model.KindPolicy) {
		add(pol, subject)
	}
	if h := subject.host; h != nil { // the node under its host endpoint's labels, with the policies that that has by itself
		as := subject
		as.labels = []selector.Labels{h.Labels}
		for pol := range model.All[*model.Policy](w.s, model.KindPolicy) {
			add(pol, as)
		}
		for _, pol := range h.Policies() {
			add(pol, as)
		}
	}
	slices.SortStableFunc(all, func(a, b ranked) int {
		return cmp.Or(cmp.Compare(a.tier.Order, b.tier.Order), cmp.Compare(a.tier.API+"/"+a.tier.Name, b.tier.API+"/"+b.tier.Name),
			cmp.Compare(a.Order, b.Order), cmp.Compare(a.Tie, b.Tie), model.SetsFirst(a.Policy, b.Policy), cmp.Compare(a.Key().Name, b.Key().Name))
	})
	skip := math.Inf(-1)
	for len(all) > 0 {
		n := 1
		for n < len(all) && all[n].tier == all[0].tier {
			n++
		}
		tier := all[:n]
		all = all[n:]
		if tier[0].tier.Order < skip {
			continue
		}
		d, to := w.askTier(tier, other, p, ingress)
		if d.Verdict != model.VerdictPass && d.Verdict != model.VerdictNone {
			return d
		}
		if d.Verdict == model.VerdictPass && to != 0 {
			skip = max(skip, to)
		}
		if d.Verdict == model.VerdictNone && !tier[0].tier.Pass && !exempt(p, ingress) {
			if i := slices.IndexFunc(tier, func(r ranked) bool {
				return r.sec.Isolates && w.selects(r.subject, r.Subject, r.Groups)
			}); i >= 0 {
				return Decision{Verdict: model.VerdictDeny, Policy: tier[i].Ref}
			}
		}
	}
	return Decision{Verdict: model.VerdictAllow}
}

// exempt says whether only rules that name nodes are asked: about a node's own traffic to its pods.
func exempt(p Packet, ingress bool) bool { return ingress && p.FromHost }

// askTier returns the first verdict of a tier, and where to go on if it is pass.
func (w world) askTier(tier []ranked, other end, p Packet, ingress bool) (Decision, float64) {
	for len(tier) > 0 {
		n := 1
		for n < len(tier) && tier[0].Set && tier[n].Set && tier[n].Order == tier[0].Order && tier[n].Tie == tier[0].Tie {
			n++
		}
		best, passTo := Decision{}, 0.0
		for _, pol := range tier[:n] {
			for i := range pol.sec.Rules {
				r := &pol.sec.Rules[i]
				if !w.applies(pol.Policy, r, pol.subject) || !w.matches(r, pol.subject, other, p, ingress) {
					continue
				}
				if best.Verdict == model.VerdictNone || strength(r.Verdict) > strength(best.Verdict) {
					best, passTo = Decision{r.Verdict, pol.Ref, r.Field}, r.PassTo
				}
				if !pol.Set {
					break
				}
			}
		}
		if best.Verdict != model.VerdictNone {
			return best, passTo
		}
		tier = tier[n:]
	}
	return Decision{}, 0
}

// strength orders the verdicts of one group.
func strength(v model.Verdict) int {
	return map[model.Verdict]int{model.VerdictDeny: 4, model.VerdictReject: 3, model.VerdictAllow: 2, model.VerdictPass: 1}[v]
}

func (w world) selects(e end, x *selector.Expr, groups []model.Ref) bool {
	none := w.own(end{labels: e.labels, member: true}, e.all) // without an address: a group's prefixes are nobody's subject
	return x != nil && none.is(x) || slices.ContainsFunc(groups, func(g model.Ref) bool { return w.inGroup(g, none, none, 0) })
}

func (w world) applies(pol *model.Policy, r *model.Rule, subject end) bool {
	if r.Subject != nil || r.Groups != nil {
		return w.selects(subject, r.Subject, r.Groups)
	}
	return w.selects(subject, pol.Subject, pol.Groups)
}

func (w world) matches(r *model.Rule, subject, other end, p Packet, ingress bool) bool {
	if exempt(p, ingress) && !r.Hosts {
		return false
	}
	allows := r.Verdict == model.VerdictAllow || r.Verdict == model.VerdictPass
	if r.Verdict == model.VerdictLog || r.Unsupported != "" && allows || r.Family != 0 && r.Family != netset.Of(p.Dst) {
		return false
	}
	own := w.own(end{addr: subject.addr, labels: subject.labels, member: true}, subject.all)
	for _, l := range r.Local {
		if !w.peer(l, own, own) {
			return false
		}
	}
	dst := other
	if ingress {
		dst = subject
	}
	return (r.Peers == nil || slices.ContainsFunc(r.Peers, func(x model.Peer) bool { return w.peer(x, subject, other) })) &&
		(r.L4 == nil || slices.ContainsFunc(r.L4, func(l model.L4) bool { return w.matchL4(l, p, dst) }))
}

func (w world) peer(x model.Peer, subject, e end) bool {
	switch {
	case len(x.Names) > 0,
		x.External && e.member,
		!slices.ContainsFunc(e.labels, func(l selector.Labels) bool { return selects(x, subject, l) }),
		x.NotSelect != nil && e.is(x.NotSelect),
		x.Nets != nil && !within(x.Nets, e.addr),
		within(x.NotNets, e.addr),
		x.Group != nil && !w.inGroup(*x.Group, subject, e, 0):
		return false
	}
	return true
}

// selects says whether a peer's labels are those, seen from the subject.
func selects(x model.Peer, subject end, l selector.Labels) bool {
	same := func(key string) bool {
		v, ok := subject.labels[0].Get(key)
		other, there := l.Get(key)
		return ok && there && v == other
	}
	return (x.Select == nil || x.Select.Match(l)) && (!x.SameNamespace || same(selector.NamespaceName)) &&
		!slices.ContainsFunc(x.SameLabels, func(k string) bool { return !same(selector.Namespace + k) })
}

func (w world) inGroup(ref model.Ref, subject, e end, depth int) bool {
	g := model.Get[*model.Group](w.s, model.GroupKey(ref))
	if g == nil || depth > 4 {
		return false
	}
	return slices.ContainsFunc(g.Members, func(x model.Peer) bool { return w.peer(x, subject, e) }) ||
		slices.ContainsFunc(g.Children, func(c model.Ref) bool { return w.inGroup(c, subject, e, depth+1) })
}

func (w world) matchL4(l model.L4, p Packet, dst end) bool {
	if l.Proto != model.ProtoAny && l.Proto != p.Proto || slices.Contains(l.NotProto, p.Proto) || l.Service != "" && !w.behind(l.Service, p) {
		return false
	}
	ported := l.Ports != nil || l.Named != nil || l.NotPorts != nil || l.NotNamed != nil || l.SrcPorts != nil || l.NotSrcPorts != nil
	if ported && l.Proto == model.ProtoAny && p.Proto != model.ProtoTCP && p.Proto != model.ProtoUDP && p.Proto != model.ProtoSCTP {
		return false
	}
	if (l.Ports != nil || l.Named != nil) && !inPorts(l.Ports, p.DstPort) && !named(l.Named, p, dst) {
		return false
	}
	return !inPorts(l.NotPorts, p.DstPort) && !named(l.NotNamed, p, dst) &&
		(l.SrcPorts == nil || inPorts(l.SrcPorts, p.SrcPort)) && !inPorts(l.NotSrcPorts, p.SrcPort)
}

func inPorts(rs []model.PortRange, port uint16) bool {
	return slices.ContainsFunc(rs, func(r model.PortRange) bool { return r.First <= port && port <= r.Last })
}
