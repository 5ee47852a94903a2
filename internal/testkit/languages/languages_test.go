package languages

import (
	"testing"

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
			Run(t, 300, func(t *testing.T, seed uint64) {
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
	Run(t, 300, func(t *testing.T, seed uint64) {
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
