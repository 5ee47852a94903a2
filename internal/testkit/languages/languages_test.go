package languages

import (
	"testing"

	"weft/internal/compile/policy"
	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/oracle"
)

// packets are asked of every set.
const packets = 20

// TestLanguages compares, for random objects of each language, what its documents say of packets with what the oracle says of what the
// converter made of them, and that with what the compiled rows say.
func TestLanguages(t *testing.T) {
	for _, name := range Names() {
		t.Run(name, func(t *testing.T) {
			counts := map[string]int{}
			Run(t, 150, func(t *testing.T, seed uint64) {
				s := New(seed, Anywhere()).Policies(t, name)
				rows := Compile(s.Objects, NodeName(0))
				for range packets {
					p := s.Packet()
					egress, ingress := s.Say(NodeName(0), p)
					e, i := oracle.Decide(s.Objects, NodeName(0), p)
					if e.Verdict != egress || i.Verdict != ingress {
						t.Fatalf("%+v: documents say egress %s, ingress %s; oracle %s by %s %s, %s by %s %s\n%s",
							p, egress, ingress, e.Verdict, e.Policy, e.Rule, i.Verdict, i.Policy, i.Rule, s)
					}
					rows.compare(t, s, p, e.Verdict, i.Verdict)
					counts[egress.String()+" "+ingress.String()]++
				}
			})
			t.Log(counts)
		})
	}
}

// TestMixed compares, for policies of all languages at once, the oracle with the compiled rows.
func TestMixed(t *testing.T) {
	counts := map[string]int{}
	Run(t, 150, func(t *testing.T, seed uint64) {
		s := New(seed, Anywhere()).Policies(t, Names()...)
		rows := Compile(s.Objects, NodeName(0))
		for range packets {
			p := s.Packet()
			e, i := oracle.Decide(s.Objects, NodeName(0), p)
			rows.compare(t, s, p, e.Verdict, i.Verdict)
			counts[e.Verdict.String()+" "+i.Verdict.String()]++
		}
	})
	t.Log(counts)
}

// TestCan compares what `weft can` answers with, from both sides, with the oracle.
func TestCan(t *testing.T) {
	counts := map[model.Verdict]int{}
	Run(t, 50, func(t *testing.T, seed uint64) {
		s := New(seed, Anywhere()).Policies(t, Names()...)
		for range 3 {
			p := s.Packet()
			p.SrcPort = 32768 // as it is asked
			src, dst := s.end(p.Src), s.end(p.Dst)
			a, err := policy.Can(s.Objects, policy.Question{From: src.asked(), To: dst.asked(), Family: netset.Of(p.Dst), Proto: p.Proto, Port: p.DstPort})
			if err != nil {
				t.Fatal(err)
			}
			egress, _ := oracle.Decide(s.Objects, src.at(), p)
			_, ingress := oracle.Decide(s.Objects, dst.at(), p)
			if src.at() == dst.at() { // the node's own policies are not asked about its own pods
				if src.node != nil {
					egress.Verdict = model.VerdictAllow
				}
				if dst.node != nil {
					ingress.Verdict = model.VerdictAllow
				}
			}
			if a.Egress.Verdict != egress.Verdict || a.Ingress.Verdict != ingress.Verdict {
				t.Fatalf("%+v: can says %s by %s, %s by %s; oracle %s, %s\n%s",
					p, a.Egress.Verdict, a.Egress.By, a.Ingress.Verdict, a.Ingress.By, egress.Verdict, ingress.Verdict, s)
			}
			counts[a.Verdict()]++
		}
	})
	t.Log(counts)
}

func (e end) asked() policy.End {
	switch {
	case e.pod != nil:
		return policy.End{Pod: e.pod}
	case e.node != nil:
		return policy.End{Node: e.node.Name}
	}
	return policy.End{Addr: e.addr}
}
