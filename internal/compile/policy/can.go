package policy

import (
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
)

// End is one side of a question: a pod, an address, or a pod that there might be, with these labels.
type End struct {
	Pod  *model.Pod // of the cluster, or made up
	Addr netip.Addr // without a pod
	Node string     // the node itself, by its name
}

// Question asks whether a connection would be allowed.
type Question struct {
	From, To End
	Family   netset.Family
	Proto    int
	Port     uint16
}

// Side is what one side's policies say.
type Side struct {
	Policed bool // the end is a pod or a node; others have no policies
	Verdict model.Verdict
	By      string          // the deciding rule, or why there is none
	Notes   []string        // what staged and logging rules would have said
	Set     *plan.PolicySet // nil: no policy selects the end in this direction
}

// Answer is what both sides say; both must allow.
type Answer struct{ Egress, Ingress Side }

// Verdict is what becomes of the connection.
func (a Answer) Verdict() model.Verdict {
	if a.Egress.Verdict != model.VerdictAllow {
		return a.Egress.Verdict
	}
	return a.Ingress.Verdict
}

// Can answers a question from the rows that the policies of a snapshot compile to, each side as its own node compiles them.
func Can(s model.Snapshot, q Question) (Answer, error) {
	from, to := q.From.addr(s, q.Family), q.To.addr(s, q.Family)
	if !from.IsValid() || !to.IsValid() {
		return Answer{}, fmt.Errorf("both sides need an %s address", q.Family)
	}
	var out Answer
	pkt := plan.Packet{Family: q.Family, Proto: q.Proto, DstPort: q.Port, SrcPort: 32768}
	home := q.From.node() == q.To.node()
	out.Egress = ask(s, q.From, q.To, plan.Egress, pkt)
	pkt.FromHost = q.From.Node != "" && home
	out.Ingress = ask(s, q.To, q.From, plan.Ingress, pkt)
	unasked := Side{Policed: true, Verdict: model.VerdictAllow, By: "between a node and its own pods the node's policies are not asked"}
	if home && q.From.Node != "" {
		out.Egress = unasked
	}
	if home && q.To.Node != "" {
		out.Ingress = unasked
	}
	return out, nil
}

func (x End) node() string {
	if x.Pod != nil {
		return x.Pod.Node
	}
	return x.Node
}

// addr is the address of an end in a family.
func (x End) addr(s model.Snapshot, f netset.Family) netip.Addr {
	switch {
	case x.Pod != nil:
		return netset.First(x.Pod.Addrs, f)
	case x.Node != "":
		if n := model.Get[*model.Node](s, model.NodeKey(x.Node)); n != nil {
			return netset.First(n.Addrs, f)
		}
		return netip.Addr{}
	}
	if netset.Of(x.Addr) == f {
		return x.Addr
	}
	return netip.Addr{}
}

// ask compiles for the subject's node and decides its direction.
func ask(s model.Snapshot, subject, other End, d plan.Direction, pkt plan.Packet) Side {
	if subject.Pod == nil && subject.Node == "" || subject.Pod != nil && subject.Pod.HostNetwork {
		return Side{Verdict: model.VerdictAllow, By: "no pod: has no policies"}
	}
	over := newOverlay(s)
	for _, x := range []End{subject, other} {
		if x.Pod != nil {
			over.objs[x.Pod.Key()] = x.Pod
		}
	}
	key := model.NodeKey(subject.Node)
	if subject.Pod != nil {
		ep := endpointOf(subject.Pod)
		over.objs[ep.Key()] = ep
		key = ep.Key()
	}
	e := New(subject.node())
	e.Update(over, over.keys())
	return e.side(e.locals[key], other.addr(over, pkt.Family), d, pkt)
}

// endpointOf makes up the interface of a pod.
func endpointOf(p *model.Pod) *model.Endpoint {
	return &model.Endpoint{
		ID: "asked/" + p.Namespace + "/" + p.Name, Pod: p.PodRef, Netns: "-", IfName: "eth0", HostIf: "asked", MAC: model.GatewayMAC, Addrs: p.Addrs,
	}
}

// side decides one direction of an endpoint that has been compiled.
func (e *Engine) side(l *local, other netip.Addr, d plan.Direction, pkt plan.Packet) Side {
	out := Side{Policed: true, Verdict: model.VerdictAllow, By: "no policy selects it for " + d.String()}
	if l == nil {
		return out
	}
	set := l.ingress
	if d == plan.Egress {
		set = l.egress
	}
	if set == nil {
		return out
	}
	out.Set = set.rows(plan.By{})[0].(*plan.PolicySet)
	c := e.classOf(other)
	i := out.Set.Decide(pkt, func(id plan.ID) bool { return c.in[id] != nil }, func(i int) {
		r := out.Set.Rules[i]
		out.Notes = append(out.Notes, fmt.Sprintf("%s would %s", r.Origin, r.Verdict))
	})
	if i < 0 {
		out.By = "no rule decides"
		return out
	}
	out.Verdict, out.By = out.Set.Rules[i].Verdict, out.Set.Rules[i].Origin
	return out
}

// classOf returns the class of an address: its holder's, its network's, or the world's.
func (e *Engine) classOf(a netip.Addr) *class {
	for _, m := range []map[model.Key]*holder{e.pods, e.nodes} {
		for _, h := range m {
			if c := h.classes.at(a); c != nil {
				return c
			}
		}
	}
	if c := e.networks.world[e.networks.longest(a)]; c != nil {
		return c
	}
	return e.classes[plan.IdentityWorld]
}

// overlay is a snapshot with some objects replaced.
type overlay struct {
	model.Snapshot
	objs map[model.Key]model.Object // nil: not there
}

func newOverlay(s model.Snapshot) overlay { return overlay{s, map[model.Key]model.Object{}} }

// Get implements model.Snapshot.
func (o overlay) Get(k model.Key) model.Object {
	if x, ok := o.objs[k]; ok {
		return x
	}
	return o.Snapshot.Get(k)
}

// All implements model.Snapshot; what is new comes last.
func (o overlay) All(kind model.Kind) iter.Seq[model.Object] {
	return func(yield func(model.Object) bool) {
		seen := map[model.Key]bool{}
		for x := range o.Snapshot.All(kind) {
			k := x.Key()
			if kind == model.KindEndpoint {
				continue // who is asked about is put in by who asks
			}
			if y, ok := o.objs[k]; ok {
				seen[k] = true
				if x = y; x == nil {
					continue
				}
			}
			if !yield(x) {
				return
			}
		}
		for _, k := range slices.SortedFunc(maps.Keys(o.objs), compareKeys) {
			if x := o.objs[k]; k.Kind == kind && !seen[k] && x != nil && !yield(x) {
				return
			}
		}
	}
}

// keys names everything that policy is compiled from.
func (o overlay) keys() []model.Key {
	var out []model.Key
	for _, kind := range Kinds() {
		for x := range o.All(kind) {
			out = append(out, x.Key())
		}
	}
	return out
}

// Kinds are the kinds of intent that policy is compiled from.
func Kinds() []model.Kind {
	return []model.Kind{
		model.KindConfig, model.KindDevice, model.KindTier, model.KindGroup, model.KindAddressSet, model.KindHostEndpoint, model.KindBackends, model.KindService, model.KindPolicy, model.KindNamespace,
		model.KindServiceAccount, model.KindNode, model.KindPod, model.KindEndpoint,
	}
}
