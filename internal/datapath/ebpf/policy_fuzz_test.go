package ebpf

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
)

// fuzzed is a node with one pod under policy, and many others elsewhere whose identities are known.
type fuzzed struct {
	*node
	t     *testing.T
	r     *rand.Rand
	pod   *pod
	peers []*plan.PeerSet
	who   map[netip.Addr]plan.ID
	addrs []netip.Addr
}

func newFuzzed(t *testing.T, seed uint64) *fuzzed {
	t.Helper()
	n, peer := lone(t, netset.V4, true)
	x := &fuzzed{node: n, t: t, r: rand.New(rand.NewPCG(seed, seed)), pod: n.pods[0], who: map[netip.Addr]plan.ID{}}
	n.policed()
	var ids []string
	for i := range 600 { // more than an element of members holds
		id := fmt.Sprintf("id%d", i)
		n.want(&plan.Identity{ID: named(id), Text: id})
		ids = append(ids, id)
	}
	for i := range 40 {
		for j, c := range peer.podCIDRs() {
			a := netset.Nth(c, uint64(100+i))
			id := named(ids[x.r.IntN(len(ids))])
			if j == 1 && i < 10 { // addresses without an entry are the world
				id = plan.IdentityWorld
			} else {
				n.want(&plan.Address{Prefix: netset.Host(a), Identity: id})
			}
			x.addrs, x.who[a] = append(x.addrs, a), id
		}
	}
	for i, c := range []string{"198.18.0.0/15", "198.18.128.0/17", "3fff::/20", "3fff:1::/32"} {
		n.want(&plan.Address{Prefix: netip.MustParsePrefix(c), Identity: named(ids[i])})
	}
	for a, id := range map[string]plan.ID{
		"198.18.0.1": named(ids[0]), "198.18.200.1": named(ids[1]), "198.20.0.1": plan.IdentityWorld,
		"3fff::1": named(ids[2]), "3fff:1::1": named(ids[3]), "3ffe::1": plan.IdentityWorld,
	} {
		x.addrs, x.who[netip.MustParseAddr(a)] = append(x.addrs, netip.MustParseAddr(a)), id
	}
	slices.SortFunc(x.addrs, netip.Addr.Compare) // the order in which they are drawn
	for i := range 8 {
		var members []string
		for _, id := range append(ids, "world") {
			if x.r.IntN(8) < i {
				members = append(members, id)
			}
		}
		x.peers = append(x.peers, peers(fmt.Sprintf("peers%d", i), members...))
		n.want(x.peers[i])
	}
	n.apply()
	return x
}

// layerFour draws protocols and ports that often meet each other.
func (x *fuzzed) layerFour() plan.L4 {
	proto := []int{model.ProtoAny, protoTCP, protoTCP, protoTCP, protoUDP, protoUDP, model.ProtoSCTP, protoICMP, protoICMPv6, 47}[x.r.IntN(10)]
	if proto == model.ProtoAny || proto == 47 {
		return plan.L4{Proto: proto}
	}
	bits := []uint8{0, 4, 8, 15, 16, 16, 16}[x.r.IntN(7)]
	return plan.L4{Proto: proto, Bits: bits, Port: x.port(proto) &^ uint16(0xffff>>bits)}
}

func (x *fuzzed) port(proto int) uint16 {
	switch proto {
	case protoICMP:
		return []uint16{8 << 8, 0, 13 << 8, 9<<8 | 1}[x.r.IntN(4)]
	case protoICMPv6:
		return []uint16{128 << 8, 129 << 8, 200 << 8, 150<<8 | 1}[x.r.IntN(4)]
	}
	return []uint16{80, 81, 443, 8080, 65535, 1}[x.r.IntN(6)]
}

func (x *fuzzed) set(name string, d plan.Direction) *plan.PolicySet {
	s := &plan.PolicySet{ID: named(name), Direction: d}
	level := 1
	for i := range []int{0, 1, 3, 8, 20, 60}[x.r.IntN(6)] {
		if x.r.IntN(6) == 0 {
			level++
		}
		r := plan.PolicyRule{
			ID: named(fmt.Sprint(name, i)), Level: level, Staged: x.r.IntN(8) == 0, Hosts: x.r.IntN(4) == 0,
			Verdict: []model.Verdict{model.VerdictAllow, model.VerdictAllow, model.VerdictDeny, model.VerdictReject, model.VerdictPass, model.VerdictLog}[x.r.IntN(6)],
		}
		if r.Verdict == model.VerdictPass {
			r.PassTo = level + 1 + x.r.IntN(3)
		}
		if x.r.IntN(5) == 0 {
			r.Family = netset.Families()[x.r.IntN(2)]
		}
		if x.r.IntN(4) > 0 {
			r.Peers = x.peers[x.r.IntN(len(x.peers))].ID
		}
		if x.r.IntN(6) == 0 {
			r.SrcPorts = &model.PortRange{First: uint16(x.r.IntN(3)), Last: 1000 + uint16(x.r.IntN(3))}
		}
		for range 1 + x.r.IntN(3) {
			r.L4 = append(r.L4, x.layerFour())
		}
		s.Rules = append(s.Rules, r)
	}
	return s
}

// packet is one that the pod sends or receives, as a frame and as plan sees it.
type packet struct {
	frame
	plan.Packet
	other netip.Addr
	syn   bool
}

func (x *fuzzed) packet(sends bool) packet {
	other := x.addrs[x.r.IntN(len(x.addrs))]
	f := netset.Of(other)
	proto := x.layerFour().Proto
	if proto == model.ProtoAny {
		proto = protoTCP
	}
	p := packet{other: other, Packet: plan.Packet{Family: f, Proto: proto, DstPort: x.port(proto)}, syn: x.r.IntN(4) > 0}
	switch proto {
	case protoTCP, protoUDP, model.ProtoSCTP:
		p.SrcPort = []uint16{0, 1, 2, 999, 1000, 1001, 1002, 1003, 40000}[x.r.IntN(9)]
	}
	p.frame = frame{proto: byte(proto), src: x.pod.addr(f), dst: other, srcMAC: x.pod.mac, dstMAC: model.GatewayMAC}
	if !sends {
		p.src, p.dst = other, x.pod.addr(f)
	}
	switch proto {
	case protoTCP:
		p.payload = tcp(p.SrcPort, p.DstPort, 4)
		if p.syn {
			p.payload[13] = 2
		}
	case protoICMP, protoICMPv6:
		p.payload = []byte{byte(p.DstPort >> 8), byte(p.DstPort), 0, 0, 0, 9, 0, 1, 0, 0}
	default:
		p.payload = udp(p.SrcPort, p.DstPort, []byte("data"))
	}
	return p
}

// flushConns forgets all flows.
func (n *node) flushConns() {
	n.t.Helper()
	m, err := n.driver.policy.conns.open()
	if err != nil {
		n.t.Fatal(err)
	}
	if m == nil {
		return
	}
	defer m.Close()
	var keys []weftWeftPair
	if err := each(m, func(k weftWeftPair, _ weftWeftConn) error { keys = append(keys, k); return nil }); err != nil {
		n.t.Fatal(err)
	}
	for _, k := range keys {
		if err := m.Delete(k); err != nil {
			n.t.Fatal(err)
		}
	}
}

// TestPolicyFuzz compares what the programs do on random sets and packets with plan.PolicySet.Decide, and their counters with
// what it says was noted.
func TestPolicyFuzz(t *testing.T) {
	sets, packets := 2000, 20
	if emulated() {
		sets = 50
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	x := newFuzzed(t, seed)
	deadline := time.Now().Add(90 * time.Second)
	asked := 0
	for i := range sets {
		if time.Now().After(deadline) {
			t.Logf("time is up after %d sets", i)
			break
		}
		before := x.rows[(&plan.Guard{Dev: x.pod.hostIf}).Key()].(*plan.Guard)
		in, out := x.set(fmt.Sprint("in", i), plan.Ingress), x.set(fmt.Sprint("out", i), plan.Egress)
		g := &plan.Guard{Dev: x.pod.hostIf, Identity: before.Identity, Ingress: in.ID, Egress: out.ID}
		x.want(in, out, g)
		ch := plan.Changes{Upsert: []plan.Row{in, out, g}}
		for _, id := range []plan.ID{before.Ingress, before.Egress} {
			if row := x.rows[(&plan.PolicySet{ID: id}).Key()]; row != nil {
				ch.Delete = append(ch.Delete, row)
				delete(x.rows, row.Key())
			}
		}
		within(t, x.ns, func() error {
			for k, err := range x.driver.Apply(t.Context(), x.rows, ch) {
				if err != nil {
					return fmt.Errorf("%s: %w", k, err)
				}
			}
			return nil
		})
		hits := map[plan.ID]uint64{}
		for range packets {
			asked++
			if !x.ask(in, out, hits) {
				t.Fatalf("set %d: seed %d\nin  %s\nout %s", i, seed, in, out)
			}
		}
		got, err := x.driver.RuleHits()
		if err != nil {
			t.Fatal(err)
		}
		for id, h := range got {
			if passes(in, id) || passes(out, id) { // Decide does not tell of them
				continue
			}
			if h.Packets != hits[id] {
				t.Fatalf("set %d: rule %s was hit %d times, want %d; seed %d\nin  %s\nout %s", i, id, h.Packets, hits[id], seed, in, out)
			}
		}
	}
	t.Logf("%d packets", asked)
}

func passes(s *plan.PolicySet, id plan.ID) bool {
	return slices.ContainsFunc(s.Rules, func(r plan.PolicyRule) bool { return r.ID == id && r.Verdict == model.VerdictPass && !r.Staged })
}

// emulated says whether this machine is a program, as in the VM lane.
func emulated() bool {
	cpu, err := os.ReadFile("/proc/cpuinfo")
	return err == nil && strings.Contains(string(cpu), "TCG")
}

// ask gives one packet to a program and compares.
func (x *fuzzed) ask(in, out *plan.PolicySet, hits map[plan.ID]uint64) bool {
	x.t.Helper()
	sends := x.r.IntN(2) == 0
	p := x.packet(sends)
	o := x.driver.objs
	var prog *ebpf.Program
	first, second := in, out
	change := func(s *skb) { s.IngressIfindex = 1 }
	if sends {
		prog, first, second = o.FromPod, out, in
	} else {
		prog = o.ToPod
		if x.r.IntN(4) == 0 {
			p.FromHost = true
			change = func(*skb) {}
		}
	}
	member := func(id plan.ID) bool {
		i := slices.IndexFunc(x.peers, func(s *plan.PeerSet) bool { return s.ID == id })
		return slices.Contains(x.peers[i].Members, x.who[p.other])
	}
	decide := func(s *plan.PolicySet, k plan.Packet, quiet bool) (model.Verdict, plan.ID) {
		n := s.Decide(k, member, func(rule int) {
			if !quiet {
				hits[s.Rules[rule].ID]++
			}
		})
		if n < 0 {
			return model.VerdictAllow, 0
		}
		return s.Rules[n].Verdict, s.Rules[n].ID
	}
	silent := p.Proto == protoICMP && p.DstPort>>8 == 0 || p.Proto == protoICMPv6 && p.DstPort>>8 == 129
	hosts := slices.ContainsFunc(in.Rules, func(r plan.PolicyRule) bool { return r.Hosts })
	verdict, by := model.VerdictAllow, plan.ID(0)
	if !p.FromHost || hosts && !silent {
		verdict, by = decide(first, p.Packet, false)
		if verdict != model.VerdictAllow && p.Proto == protoTCP && !p.syn {
			back := p.Packet
			back.SrcPort, back.DstPort, back.FromHost = p.DstPort, p.SrcPort, false
			if v, id := decide(second, back, true); v == model.VerdictAllow {
				verdict, by = v, id
			}
		}
	}
	if by != 0 {
		hits[by]++
	}
	want, mark := uint32(verdictNext), uint32(0)
	switch {
	case verdict == model.VerdictDeny, verdict == model.VerdictReject && !sends:
		want = verdictDrop
	case verdict == model.VerdictReject:
		mark = 0x1010
	case sends:
		if netset.Contains(x.remotes(), p.other) {
			want = verdictRedirect
		}
	}
	x.flushConns()
	got, _, marked := x.runMarked(prog, x.pod.hostIf, p.frame.bytes(), change)
	if got != want || marked != mark {
		x.t.Errorf("sent %v, from the node %v, syn %v, %+v with %s (%s): verdict %d mark %#x, want %d and %#x by %s", sends, p.FromHost, p.syn, p.Packet, p.other, x.who[p.other], int32(got), marked, int32(want), mark, by)
		return false
	}
	return true
}

func (n *node) remotes() (out []netip.Prefix) {
	for r := range n.rows.All(plan.KindRemote) {
		out = append(out, r.(*plan.Remote).Prefix)
	}
	return out
}
