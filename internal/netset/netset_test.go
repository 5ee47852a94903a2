package netset_test

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"weft/internal/netset"
)

func TestNthAndOffsetAreInverse(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, s := range []string{"10.0.0.0/8", "10.1.2.64/27", "192.0.2.1/32", "fd00::/64", "fd00:1:2:3::/100", "2001:db8::1/128", "0.0.0.0/0"} {
		p := netip.MustParsePrefix(s)
		for range 200 {
			n := rng.Uint64N(min(netset.Size(p), 1<<53))
			a := netset.Nth(p, n)
			if !p.Contains(a) {
				t.Fatalf("%s: address %d is %s, which is outside", p, n, a)
			}
			if back, ok := netset.Offset(p, a); !ok || back != n {
				t.Fatalf("%s: offset of %s is %d %v, want %d", p, a, back, ok, n)
			}
		}
		if last := netset.Last(p); !p.Contains(last) || p.Contains(last.Next()) && last.Next().IsValid() {
			t.Errorf("last of %s is %s", p, last)
		}
	}
	if _, ok := netset.Offset(netip.MustParsePrefix("10.0.0.0/24"), netip.MustParseAddr("10.0.1.0")); ok {
		t.Error("an address outside has an offset")
	}
}

func TestMinimal(t *testing.T) {
	var in []netip.Prefix
	for _, s := range []string{"10.0.1.0/24", "fd00::/48", "10.0.0.0/16", "fd00::1/128", "10.0.1.0/24", "10.1.0.0/16", "192.0.2.9/24"} {
		in = append(in, netip.MustParsePrefix(s))
	}
	want := []string{"10.0.0.0/16", "10.1.0.0/16", "192.0.2.0/24", "fd00::/48"}
	var got []string
	for _, p := range netset.Minimal(in) {
		got = append(got, p.String())
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if _, _, found := netset.Overlap(netset.Minimal(in)); found {
		t.Error("what is minimal overlaps")
	}
	if a, b, found := netset.Overlap(in); !found || !a.Overlaps(b) {
		t.Errorf("overlap: %v %v %v", a, b, found)
	}
}

func TestFamilies(t *testing.T) {
	mapped := netip.MustParseAddr("::ffff:10.0.0.1")
	if netset.Of(mapped) != netset.V4 || netset.First([]netip.Addr{mapped}, netset.V4) != netip.MustParseAddr("10.0.0.1") {
		t.Error("a mapped address is not taken for IPv4")
	}
	if netset.Of(netip.Addr{}) != 0 {
		t.Error("no address has a family")
	}
	for _, f := range netset.Families() {
		if got := netset.OfPrefix(netset.Default(f)); got != f {
			t.Errorf("default route of %s is of %s", f, got)
		}
		if g := netset.Gateway(f); !g.IsLinkLocalUnicast() || netset.Of(g) != f {
			t.Errorf("gateway of %s is %s", f, g)
		}
		if h := netset.Host(netset.Gateway(f)); h.Bits() != f.Bits() || netset.PrefixLen16(h) != 128 {
			t.Errorf("host prefix %s", h)
		}
	}
}

func TestShadowed(t *testing.T) {
	for p, want := range map[string]bool{
		"::/0": true, "::/1": true, "::/80": true, "::/81": false, "::/96": false, "::fffe:0:0/95": true, "::ffff:0:0/96": false, "8000::/1": false,
		"fd00::/8": false, "0.0.0.0/0": false, "0.0.0.0/8": false,
	} {
		whole, got := netset.Shadowed(netip.MustParsePrefix(p))
		if got != want || whole != netip.MustParsePrefix("0.0.0.0/0") {
			t.Errorf("%s: got %s %v", p, whole, got)
		}
	}
}
