package ebpf

import (
	"fmt"
	"net/netip"
	"testing"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/oracle"
	"weft/internal/plan"
)

// TestPrefixesOfFamilies: what is allowed for ::/0 is not for IPv4, which the trie has in it; whatever comes and goes before.
func TestPrefixesOfFamilies(t *testing.T) {
	x := newLanguageNode(t)
	dev := x.pods[0].hostIf
	address := func(prefix string) *plan.Address {
		return &plan.Address{Prefix: netip.MustParsePrefix(prefix), Identity: named(prefix)}
	}
	rows := func(prefixes ...string) []plan.Row {
		in := set("in", plan.Ingress, rule("allow", model.VerdictAllow, "wide"))
		out := []plan.Row{in, peers("wide", "::/0", "::/1"), &plan.Identity{ID: named("pod")}, &plan.Guard{Dev: dev, Identity: named("pod"), Ingress: in.ID}}
		for _, p := range prefixes {
			out = append(out, &plan.Identity{ID: named(p), Text: p}, address(p))
		}
		return out
	}
	asks := func(name, src string, want uint32) {
		t.Helper()
		p := oracle.Packet{Src: netip.MustParseAddr(src), Proto: protoUDP, SrcPort: 1, DstPort: 2}
		p.Dst = x.pods[0].addr(netset.Of(p.Src))
		x.flushConns()
		if got, _ := x.run(x.driver.objs.ToPod, dev, x.languageFrame(p).bytes(), func(s *skb) { s.IngressIfindex = 1 }); got != want {
			t.Errorf("%s, from %s: got %d, want %d", name, src, int32(got), int32(want))
		}
	}
	entries := func(name string, want int) {
		t.Helper()
		if got := x.driver.entries(t)["networks"]; got != want {
			t.Errorf("%s: %d networks, want %d", name, got, want)
		}
	}
	const next = uint32(verdictNext)
	for _, step := range []struct {
		prefixes []string
		networks int
	}{
		{[]string{"::/0"}, 2},
		{[]string{"::/0", "::/1"}, 3},
		{[]string{"::/1"}, 2},
		{[]string{"0.0.0.0/0", "::/1"}, 2},
		{[]string{"::/1", "10.0.0.0/8"}, 3}, // the other went while this one stays
		{[]string{"0.0.0.0/0", "::/0"}, 2},
		{[]string{"::/0"}, 2},
	} {
		x.enforce(rows(step.prefixes...))
		name := fmt.Sprint(step.prefixes)
		asks(name, "2001:db8::1", next)
		asks(name, "198.51.100.1", verdictDrop)
		asks(name, "10.9.9.9", verdictDrop)
		entries(name, step.networks)
		x.driver.policy.networks.writes = 0
		within(t, x.ns, func() error { return x.driver.Sweep(t.Context(), x.rows) })
		if n := x.driver.policy.networks.writes; n > 0 {
			t.Errorf("%s: a sweep writes %d networks", name, n)
		}
	}
	x.enforce(nil)
	entries("nothing", 0)
}
