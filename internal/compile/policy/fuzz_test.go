package policy

import (
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/oracle"
	"weft/internal/plan"
	"weft/internal/selector"
)

// objects is a snapshot that tests write.
type objects map[model.Key]model.Object

func (o objects) Get(k model.Key) model.Object {
	x, ok := o[k]
	if !ok || x.Validate() != nil {
		return nil
	}
	return x
}

func (o objects) All(kind model.Kind) iter.Seq[model.Object] {
	keys := slices.SortedFunc(maps.Keys(o), compareKeys)
	return func(yield func(model.Object) bool) {
		for _, k := range keys {
			if k.Kind == kind && o[k].Validate() == nil && !yield(o[k]) {
				return
			}
		}
	}
}

// kernel is what the rows of an Engine amount to.
type kernel struct {
	rows map[model.Key][]plan.Row
}

func (k *kernel) update(e *Engine, s model.Snapshot, changed []model.Key) {
	for _, owner := range e.Update(s, changed) {
		if rows := e.Rows(owner); len(rows) > 0 {
			k.rows[owner] = rows
		} else {
			delete(k.rows, owner)
		}
	}
}

// text is every row on a line, sorted.
func (k *kernel) text() string {
	var out []string
	for _, rows := range k.rows {
		for _, r := range rows {
			out = append(out, r.Key().String()+" "+r.Owner().String()+": "+r.String())
			if p, ok := r.(*plan.PeerSet); ok {
				out = append(out, fmt.Sprint(p.ID, p.Members))
			}
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// decide is the verdict of one side of a packet, from rows alone.
func (k *kernel) decide(p oracle.Packet, ingress bool) (model.Verdict, string) {
	sets, members, ids := map[plan.ID]*plan.PolicySet{}, map[[2]plan.ID]bool{}, map[netip.Prefix]plan.ID{}
	guards := map[netip.Addr]*plan.Guard{}
	devs := map[string]*plan.Guard{}
	for owner, rows := range k.rows {
		for _, r := range rows {
			switch r := r.(type) {
			case *plan.PolicySet:
				sets[r.ID] = r
			case *plan.PeerSet:
				for _, m := range r.Members {
					members[[2]plan.ID{r.ID, m}] = true
				}
			case *plan.Address:
				if _, twice := ids[r.Prefix]; twice {
					panic("two rows for " + r.Prefix.String())
				}
				ids[r.Prefix] = r.Identity
			case *plan.Guard:
				if r.Node {
					devs[r.Dev] = r
					continue
				}
				for _, x := range rows {
					if a, ok := x.(*plan.Address); ok && owner.Kind == model.KindEndpoint || ok && r.Dev == "" {
						guards[a.Prefix.Addr()] = r
					}
				}
			}
		}
	}
	identity := func(a netip.Addr) plan.ID {
		best, id := -1, plan.IdentityWorld
		for pfx, i := range ids {
			if pfx.Contains(a) && pfx.Bits() > best {
				best, id = pfx.Bits(), i
			}
		}
		return id
	}
	subject, other := p.Src, p.Dst
	if ingress {
		subject, other = p.Dst, p.Src
	}
	g := guards[subject]
	if g == nil {
		return model.VerdictAllow, "not on this node"
	}
	if d := devs[p.Dev]; g.Dev == "" && (d != nil || p.Dev != "" && p.Dev != plan.OverlayName) {
		if g = d; g == nil {
			return model.VerdictAllow, "a device without programs"
		}
	}
	set := sets[g.Egress]
	if ingress {
		set = sets[g.Ingress]
	}
	if set == nil {
		return model.VerdictAllow, "no set"
	}
	peer := identity(other)
	i := set.Decide(plan.Packet{
		Family: netset.Of(p.Dst), Proto: p.Proto, SrcPort: p.SrcPort, DstPort: p.DstPort, FromHost: p.FromHost && ingress,
	}, func(id plan.ID) bool { return members[[2]plan.ID{id, peer}] }, func(int) {})
	if i < 0 {
		return model.VerdictAllow, "end"
	}
	return set.Rules[i].Verdict, set.Rules[i].Origin
}

// dice makes random clusters.
type dice struct{ *rand.Rand }

func pick[T any](d dice, xs ...T) T { return xs[d.IntN(len(xs))] }

func (d dice) labels() map[string]string {
	out := map[string]string{}
	for _, k := range []string{"app", "tier", "pod-template-hash"} {
		if d.IntN(2) == 0 {
			out[k] = pick(d, "a", "b", "c")
		}
	}
	return out
}

func (d dice) addr() netip.Addr {
	if d.IntN(2) == 0 {
		return netip.AddrFrom4([4]byte{10, 0, byte(d.IntN(2)), byte(1 + d.IntN(6))})
	}
	return netip.MustParseAddr(fmt.Sprintf("fd00::%d:%d", d.IntN(2), 1+d.IntN(6)))
}

func (d dice) prefix() netip.Prefix {
	a := d.addr()
	if d.IntN(3) == 0 {
		return pick(d, netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"), netip.MustParsePrefix("10.0.0.0/16"), netip.MustParsePrefix("fd00::/64"))
	}
	p, _ := a.Prefix(a.BitLen() - pick(d, 0, 1, 2, 8, 16))
	return p
}

func (d dice) expr(depth int) *selector.Expr {
	key := pick(d, "app", "tier", selector.Namespace+"team", selector.NamespaceName, selector.Name, "pod-template-hash", selector.Kind,
		selector.ServiceAccountName, selector.ServiceAccount+"role")
	values := []string{"a", "b", "c"}
	if key == selector.Kind {
		values = []string{selector.KindPod, selector.KindHost, selector.KindRemoteNode, selector.KindWorld, selector.KindSet, selector.KindHostEndpoint}
	}
	switch n := d.IntN(9); {
	case n < 3:
		return selector.Equal(key, pick(d, values...))
	case n == 3:
		return selector.OneOf(key, pick(d, values...), pick(d, values...))
	case n == 4:
		return selector.NoneOf(key, pick(d, values...))
	case n == 5:
		return pick(d, selector.Exists(key), selector.Absent(key), selector.Exists(selector.Service+"a/svc"), &selector.Expr{})
	case depth == 0:
		return &selector.Expr{}
	case n == 6:
		return selector.AllOf(d.expr(depth-1), d.expr(depth-1))
	case n == 7:
		return selector.AnyOf(d.expr(depth-1), d.expr(depth-1))
	}
	return selector.Negate(d.expr(depth - 1))
}

func (d dice) peer() model.Peer {
	var p model.Peer
	if d.IntN(2) == 0 {
		p.Select = d.expr(2)
	}
	if d.IntN(6) == 0 {
		p.NotSelect = d.expr(1)
	}
	if d.IntN(3) == 0 {
		p.Nets = []netip.Prefix{d.prefix(), d.prefix()}
		p.External = d.IntN(3) == 0
	}
	if d.IntN(5) == 0 {
		p.NotNets = []netip.Prefix{d.prefix()}
	}
	switch d.IntN(14) {
	case 0:
		p.SameNamespace = true
	case 1:
		p.SameLabels = []string{"team"}
	case 2:
		p.Group = &model.Ref{Kind: "Group", Name: pick(d, "a", "b", "none")}
	case 3:
		p.Names = []string{"example.com"}
	}
	return p
}

func (d dice) ports() []model.PortRange {
	a, b := uint16(d.IntN(40)), uint16(d.IntN(40))
	return []model.PortRange{{First: min(a, b), Last: max(a, b)}}
}

func (d dice) l4() model.L4 {
	l := model.L4{Proto: pick(d, model.ProtoAny, model.ProtoTCP, model.ProtoTCP, model.ProtoUDP, model.ProtoICMP, model.ProtoSCTP, 47)}
	if d.IntN(8) == 0 {
		l.NotProto = []int{pick(d, model.ProtoTCP, model.ProtoUDP)}
	}
	if l.Proto == 47 {
		return l
	}
	if d.IntN(20) == 0 {
		return model.L4{Proto: model.ProtoAny, Service: "a/svc"}
	}
	if d.IntN(2) == 0 {
		l.Ports = d.ports()
	}
	if d.IntN(5) == 0 {
		l.Named = []string{pick(d, "http", "dns")}
	}
	if d.IntN(8) == 0 {
		l.NotNamed = []string{pick(d, "http", "dns"), "http"}
	}
	if d.IntN(8) == 0 {
		l.NotPorts = d.ports()
	}
	if d.IntN(8) == 0 {
		l.SrcPorts = d.ports()
	}
	if d.IntN(12) == 0 {
		l.NotSrcPorts = d.ports()
	}
	return l
}

func (d dice) section(p *model.Policy, name string) *model.Section {
	if d.IntN(3) == 0 {
		return nil
	}
	s := &model.Section{Isolates: d.IntN(2) == 0}
	for i := range d.IntN(4) {
		r := model.Rule{Index: i, Field: fmt.Sprintf("spec.%s[%d]", name, i), Verdict: pick(d,
			model.VerdictAllow, model.VerdictAllow, model.VerdictDeny, model.VerdictReject, model.VerdictPass, model.VerdictLog)}
		if p.Set && d.IntN(2) == 0 {
			r.Verdict = model.VerdictAllow
		}
		if r.Verdict == model.VerdictPass && d.IntN(2) == 0 {
			r.PassTo = pick(d, 1000.0, model.TierNormal, model.TierBaseline)
		}
		if d.IntN(8) == 0 {
			r.Family = pick(d, netset.V4, netset.V6)
		}
		r.Hosts = d.IntN(6) == 0
		if d.IntN(4) > 0 {
			r.Peers = []model.Peer{}
			for range d.IntN(3) {
				r.Peers = append(r.Peers, d.peer())
			}
		}
		if d.IntN(6) == 0 {
			r.Local = []model.Peer{d.peer()}
			r.Local[0].SameNamespace, r.Local[0].SameLabels, r.Local[0].Group = false, nil, nil // as no API has them there
		}
		if d.IntN(8) == 0 {
			r.Subject = d.expr(1)
		}
		if d.IntN(12) == 0 {
			r.Unsupported = "spec.x"
		}
		if d.IntN(2) == 0 {
			r.L4 = []model.L4{}
			for range d.IntN(3) {
				r.L4 = append(r.L4, d.l4())
			}
		}
		if slices.ContainsFunc(r.L4, func(l model.L4) bool { return l.Service != "" }) {
			if name == "ingress" {
				r.L4 = nil
			} else { // as Calico's destination.services
				r.Peers = []model.Peer{{Select: selector.Exists(selector.Service + "a/svc")}}
			}
		}
		s.Rules = append(s.Rules, r)
	}
	return s
}

func (d dice) policy() model.Object {
	p := &model.Policy{Ref: model.Ref{Kind: "Policy", Name: strconv.Itoa(d.IntN(6))}, Subject: d.expr(1), Set: d.IntN(2) == 0, Staged: d.IntN(8) == 0}
	p.Tier = pick(d, model.TierRef{Order: model.TierAdmin}, model.TierRef{Order: model.TierNormal}, model.TierRef{Order: model.TierNormal},
		model.TierRef{API: model.APIAntrea, Name: "application"}, model.TierRef{API: model.APICalico, Name: "default"}, model.TierRef{API: model.APICalico, Name: "own"})
	p.Order = pick(d, 0.0, 1000, 1000)
	if p.Order == 0 {
		p.Tie = pick(d, "x", "y")
	}
	if d.IntN(8) == 0 {
		p.Groups = []model.Ref{{Kind: "Group", Name: pick(d, "a", "b")}}
	}
	p.Ingress, p.Egress = d.section(p, "ingress"), d.section(p, "egress")
	return p
}

func (d dice) hostEndpoint() model.Object {
	h := &model.HostEndpoint{
		Ref: model.Ref{Group: "projectcalico.org", Kind: "HostEndpoint", Name: pick(d, "a", "b", "c")}, Node: pick(d, "n0", "n0", "n1"), Interface: pick(d, "*", "*", "eth0", "eth2", plan.OverlayName, ""),
		Addrs: []netip.Addr{pick(d, netip.MustParseAddr("10.0.9.1"), netip.MustParseAddr("10.0.9.2"), netip.MustParseAddr("10.8.0.1"), d.addr())},
	}
	h.Labels = selector.Map{selector.Kind: selector.KindHostEndpoint, selector.Name: h.Ref.Name, selector.Node: h.Node}
	maps.Copy(h.Labels, d.labels())
	if d.IntN(2) == 0 {
		o := model.Port{Name: pick(d, "http", "dns"), Protocol: pick(d, "tcp", "udp"), Port: uint16(d.IntN(40))}
		h.Ports, h.Labels[selector.Port+o.Protocol+"/"+o.Name] = []model.Port{o}, strconv.Itoa(int(o.Port))
	}
	if d.IntN(2) == 0 {
		h.Labels[selector.Profile+"projectcalico-default-allow"] = "0"
	}
	return h
}

// device is a device by which a packet may go: "" is the underlay's.
func (d dice) device(s objects) string {
	names := []string{"", "", plan.OverlayName}
	under := &model.Device{}
	if n := model.Get[*model.Node](s, model.NodeKey("n0")); n != nil {
		if u := model.UnderlayOf(s, n); u != nil {
			under = u
		}
	}
	for x := range model.All[*model.Device](s, model.KindDevice) {
		if x.Name != under.Name {
			names = append(names, x.Name)
		}
	}
	return pick(d, names...)
}

func (d dice) object() model.Object {
	ns := pick(d, "a", "b")
	switch d.IntN(14) {
	case 12:
		return d.hostEndpoint()
	case 13:
		return &model.Device{Name: pick(d, "eth0", "eth1", "eth2"), Up: d.IntN(8) > 0, Addrs: []netip.Prefix{pick(d, netip.MustParsePrefix("10.0.9.1/24"),
			netip.MustParsePrefix("10.8.0.1/24"), netip.MustParsePrefix("169.254.0.1/16"))}}
	case 0:
		return &model.Namespace{Name: ns, Labels: map[string]string{"team": pick(d, "a", "b")}}
	case 1:
		return &model.ServiceAccount{Namespace: ns, Name: "sa", Labels: map[string]string{"role": pick(d, "a", "b")}}
	case 2:
		i := d.IntN(2)
		return &model.Node{Name: fmt.Sprint("n", i), Labels: d.labels(), Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 9, byte(1 + i)})}}
	case 3:
		return &model.AddressSet{
			Ref: model.Ref{Kind: "Set", Name: pick(d, "a", "b")}, Nets: []netip.Prefix{d.prefix(), d.prefix()},
			Labels: selector.Map{selector.Kind: selector.KindSet, "app": pick(d, "a", "b"), selector.NamespaceName: ns},
		}
	case 4:
		return &model.Group{Ref: model.Ref{Kind: "Group", Name: pick(d, "a", "b")}, Members: []model.Peer{{Select: d.expr(1)}, {Nets: []netip.Prefix{d.prefix()}}}}
	case 5:
		return &model.Tier{API: model.APICalico, Name: "own", Order: pick(d, 5.0, 2000, 2e6), Pass: d.IntN(2) == 0}
	case 6:
		return &model.Backends{
			Namespace: "a", Name: "slice", Service: "svc", Backends: []model.Backend{{Addr: d.addr()}, {Addr: d.addr()}},
			Ports: []model.Port{{Protocol: pick(d, "tcp", "udp"), Port: uint16(d.IntN(40))}},
		}
	case 7, 8:
		return d.policy()
	}
	n := d.IntN(4)
	pod := &model.Pod{
		PodRef: model.PodRef{Namespace: ns, Name: pick(d, "a", "b", "c")}, Node: pick(d, "n0", "n1"), Labels: d.labels(), Account: pick(d, "sa", "other"),
		Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + n)}), netip.MustParseAddr(fmt.Sprintf("fd00::0:%d", 1+n))},
	}
	if d.IntN(2) == 0 {
		pod.Ports = []model.Port{{Name: pick(d, "http", "dns"), Protocol: pick(d, "tcp", "udp"), Port: uint16(d.IntN(40))}}
	}
	return pod
}

// TestFuzz compares, for random clusters that change step by step: what the rows decide with what the oracle does; and the rows
// after all steps with those of a new Engine that is given everything at once.
func TestFuzz(t *testing.T) {
	rounds := 1500
	if n, err := strconv.Atoi(os.Getenv("WEFT_FUZZ_ROUNDS")); err == nil {
		rounds = n
	}
	for seed := range rounds {
		if !t.Run(fmt.Sprint(seed), func(t *testing.T) { fuzz(t, uint64(seed)) }) {
			return
		}
	}
}

func fuzz(t *testing.T, seed uint64) {
	d := dice{rand.New(rand.NewPCG(seed, 1))}
	state, e, k := objects{}, New("n0"), &kernel{rows: map[model.Key][]plan.Row{}}
	for range 4 + d.IntN(8) {
		changed := map[model.Key]bool{}
		for range 1 + d.IntN(6) {
			o := d.object()
			if pod, ok := o.(*model.Pod); ok && taken(state, pod) {
				continue
			}
			changed[o.Key()] = true
			if _, there := state[o.Key()]; there && d.IntN(4) == 0 {
				delete(state, o.Key())
			} else {
				state[o.Key()] = o
			}
		}
		for key := range endpoints(state) {
			changed[key] = true
		}
		k.update(e, state, slices.SortedFunc(maps.Keys(changed), compareKeys))
	}
	fresh := &kernel{rows: map[model.Key][]plan.Row{}}
	fresh.update(New("n0"), state, slices.SortedFunc(maps.Keys(state), compareKeys))
	if have, want := k.text(), fresh.text(); have != want {
		a, b := strings.Split(have, "\n"), strings.Split(want, "\n")
		for _, l := range a {
			if !slices.Contains(b, l) {
				t.Log("step by step: ", l)
			}
		}
		for _, l := range b {
			if !slices.Contains(a, l) {
				t.Log("at once:      ", l)
			}
		}
		t.Fatalf("seed %d: rows depend on how the objects came\n%s", seed, dump(state))
	}
	for range 20 {
		p := oracle.Packet{
			Src: d.addr(), Dst: d.addr(), Proto: pick(d, model.ProtoTCP, model.ProtoUDP, model.ProtoICMP, model.ProtoSCTP, 47),
			SrcPort: uint16(d.IntN(40)), DstPort: uint16(d.IntN(40)), FromHost: d.IntN(5) == 0,
		}
		if netset.Of(p.Src) != netset.Of(p.Dst) {
			continue
		}
		if d.IntN(4) == 0 && netset.Of(p.Src) == netset.V4 {
			p.Src = netip.AddrFrom4([4]byte{10, 0, 9, byte(1 + d.IntN(2))})
		}
		if d.IntN(4) == 0 && netset.Of(p.Src) == netset.V4 {
			p.Dst = netip.AddrFrom4([4]byte{10, 0, 9, byte(1 + d.IntN(2))})
		}
		p.Dev = d.device(state)
		if d.IntN(4) == 0 {
			p.DstPort = pick[uint16](d, 22, 53, 68, 6443)
		}
		egress, ingress := oracle.Decide(state, "n0", p)
		for in, want := range map[bool]oracle.Decision{false: egress, true: ingress} {
			have, why := k.decide(p, in)
			if have != want.Verdict {
				t.Fatalf("seed %d: %+v ingress=%v: rows say %s (%s), oracle %s (%s %s)\n%s\n%s", seed, p, in, have, why, want.Verdict, want.Policy, want.Rule, k.text(), dump(state))
			}
		}
	}
}

func dump(s objects) string {
	out := ""
	for _, kind := range []model.Kind{model.KindPolicy, model.KindGroup, model.KindTier, model.KindPod, model.KindNode, model.KindHostEndpoint, model.KindDevice, model.KindBackends, model.KindAddressSet} {
		for o := range s.All(kind) {
			b, _ := json.Marshal(o)
			out += o.Key().String() + " " + string(b) + "\n"
		}
	}
	return out
}

// taken reports whether another pod has one of the pod's addresses.
func taken(s objects, pod *model.Pod) bool {
	for o := range s.All(model.KindPod) {
		other := o.(*model.Pod)
		if other.Key() != pod.Key() && slices.ContainsFunc(other.Addrs, func(a netip.Addr) bool { return slices.Contains(pod.Addrs, a) }) {
			return true
		}
	}
	return false
}

// endpoints gives the pods of this node their endpoints, as CNI ADD and DEL do, and returns what changed.
func endpoints(s objects) map[model.Key]bool {
	changed := map[model.Key]bool{}
	for k, o := range s {
		ep, ok := o.(*model.Endpoint)
		if !ok {
			continue
		}
		if pod, ok := s[model.PodKey(ep.Pod.Namespace, ep.Pod.Name)].(*model.Pod); !ok || pod.Node != "n0" || !slices.Equal(pod.Addrs, ep.Addrs) {
			delete(s, k)
			changed[k] = true
		}
	}
	for _, o := range s {
		pod, ok := o.(*model.Pod)
		if !ok || pod.Node != "n0" {
			continue
		}
		ep := &model.Endpoint{
			ID: pod.Namespace + pod.Name, Pod: pod.PodRef, Netns: "x", IfName: "eth0", HostIf: "w" + pod.Namespace + pod.Name,
			MAC: model.GatewayMAC, Addrs: pod.Addrs,
		}
		if _, there := s[ep.Key()]; !there {
			s[ep.Key()] = ep
			changed[ep.Key()] = true
		}
	}
	return changed
}
