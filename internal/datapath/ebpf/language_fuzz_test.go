package ebpf

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/oracle"
	"weft/internal/plan"
	"weft/internal/testkit/languages"
)

// languageNode is a node whose pods are those of a random cluster's first node, with the policies of that cluster.
type languageNode struct {
	*node
	policies  []plan.Row // that are applied
	uplinkMAC model.MAC
}

func newLanguageNode(t *testing.T) *languageNode {
	t.Helper()
	n, peer := network(t, 1500)
	for range 3 {
		n.addPod(1450)
	}
	n.overlay(1450)
	n.reach(peer, netset.V4, true, 1450)
	s := n.settings()
	s.Policed = true
	n.want(s)
	n.apply()
	return &languageNode{node: n, uplinkMAC: n.mac(uplink)}
}

// enforce replaces the policies of the cluster before by those of another one, as a reconciler does.
func (x *languageNode) enforce(rows []plan.Row) {
	x.t.Helper()
	var ch plan.Changes
	before := map[plan.Key]plan.Row{}
	for _, r := range x.policies {
		before[r.Key()] = r
	}
	for _, r := range rows {
		k := r.Key()
		if old := before[k]; old == nil || old.String() != r.String() || k.Kind == plan.KindPeerSet {
			ch.Upsert = append(ch.Upsert, r)
		}
		delete(before, k)
		x.want(r)
	}
	for k, r := range before {
		ch.Delete = append(ch.Delete, r)
		delete(x.rows, k)
	}
	x.policies = rows
	within(x.t, x.ns, func() error {
		for k, err := range x.driver.Apply(x.t.Context(), x.rows, ch) {
			if err != nil {
				return fmt.Errorf("%s: %w", k, err)
			}
		}
		return nil
	})
}

// languageFrame is the packet that a policy is asked about.
func (x *languageNode) languageFrame(p languages.Packet) frame {
	f := frame{proto: byte(p.Proto), src: p.Src, dst: p.Dst, srcMAC: model.GatewayMAC, dstMAC: model.GatewayMAC}
	if from := x.podAt(p.Src); from != nil {
		f.srcMAC = from.mac
	} else if to := x.podAt(p.Dst); to != nil {
		f.dstMAC = to.mac
	} else {
		f.dstMAC = x.uplinkMAC // or it is not for this host
	}
	switch p.Proto {
	case protoTCP:
		f.payload = tcp(p.SrcPort, p.DstPort, 4)
		f.payload[13] = 2 // SYN
	case protoICMP, protoICMPv6:
		f.payload = []byte{byte(p.DstPort >> 8), byte(p.DstPort), 0, 0, 0, 9, 0, 1, 0, 0}
	default:
		f.payload = udp(p.SrcPort, p.DstPort, []byte("data"))
	}
	return f
}

// outcomeOf is a verdict of a program with the mark that it leaves.
type outcomeOf struct{ verdict, mark uint32 }

// wanted is what a program has to say; refused are those of a packet that is denied and rejected.
func wanted(v model.Verdict, allowed, denied, rejected outcomeOf) outcomeOf {
	return map[model.Verdict]outcomeOf{model.VerdictAllow: allowed, model.VerdictDeny: denied, model.VerdictReject: rejected}[v]
}

// send gives a packet to the program that it would come to, and returns what that said and should have said.
func (x *languageNode) send(p languages.Packet, egress, ingress model.Verdict) (where string, got, want outcomeOf) {
	x.t.Helper()
	drop, next, redirect, reject := outcomeOf{verdictDrop, 0}, outcomeOf{verdictNext, 0}, outcomeOf{verdictRedirect, 0}, outcomeOf{verdictNext, 0x1010}
	from, to := x.podAt(p.Src), x.podAt(p.Dst)
	o, own := x.driver.objs, netset.First(x.addrs, netset.Of(p.Dst))
	var prog *ebpf.Program
	dev, change := uplink, func(s *skb) { s.IngressIfindex = 1 }
	switch {
	case from != nil:
		where, prog, dev = "from_pod", o.FromPod, from.hostIf
		v := egress
		allowed := next
		if to != nil && v == model.VerdictAllow {
			v = ingress
		}
		if to != nil || netset.Contains(x.remotes(), p.Dst) {
			allowed = redirect
		}
		want = wanted(v, allowed, drop, reject)
	case to != nil:
		where, prog, dev = "to_pod", o.ToPod, to.hostIf
		if p.FromHost {
			change = func(*skb) {}
		}
		want = wanted(ingress, next, drop, drop) // it is too late for the stack to answer
	case p.Dst == own:
		where, prog = "from_net", o.FromNet
		want = wanted(ingress, next, outcomeOf{verdictNext, 0x1020}, outcomeOf{verdictNext, 0x1030})
	default:
		where, prog, change = "to_net", o.ToNet, func(*skb) {}
		want = wanted(egress, next, drop, drop)
	}
	x.flushConns()
	verdict, _, mark := x.runMarked(prog, dev, x.languageFrame(p).bytes(), change)
	return where, outcomeOf{verdict, mark}, want
}

// podAt is the node's pod that has an address.
func (n *node) podAt(a netip.Addr) *pod {
	if i := slices.IndexFunc(n.pods, func(p *pod) bool { return slices.Contains(p.addrs, a) }); i >= 0 {
		return n.pods[i]
	}
	return nil
}

// TestLanguageFuzz: policies of all languages at once, as their users write them, go through the converters, the compiler, the driver and
// the programs; of each packet the programs have to say what the oracle does.
func TestLanguageFuzz(t *testing.T) {
	x := newLanguageNode(t)
	few := 80
	if emulated() {
		few = 10
	}
	asked := map[string]int{}
	languages.Run(t, few, func(t *testing.T, seed uint64) {
		s := languages.New(seed, languages.Anywhere()).Policies(t, languages.Names()...)
		x.enforce(languages.Compile(s.Objects, languages.NodeName(0)).All)
		for range 20 {
			p := s.Packet()
			e, i := oracle.Decide(s.Objects, languages.NodeName(0), p)
			where, got, want := x.send(p, e.Verdict, i.Verdict)
			if got != want {
				t.Fatalf("%s, %+v: got verdict %d mark %#x, want %d and %#x; oracle %s by %s %s, %s by %s %s\n%s", where, p, int32(got.verdict), got.mark,
					int32(want.verdict), want.mark, e.Verdict, e.Policy, e.Rule, i.Verdict, i.Policy, i.Rule, s)
			}
			asked[where]++
		}
	})
	t.Log(asked)
}
