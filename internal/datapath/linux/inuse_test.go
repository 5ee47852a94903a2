package linux_test

import (
	"net/netip"
	"testing"

	"weft/internal/testkit"
)

// TestPodAddrs: what an agent without any record learns of the pods that are there.
func TestPodAddrs(t *testing.T) {
	n, a := newNode(t), testkit.New(t)
	l := podLink(a, 1)
	n.apply(podRows(l)...)
	n.IP(t, "link add other type bridge")
	n.IP(t, "link set other up")
	n.IP(t, "route add 10.9.0.77/32 dev other")
	got, err := n.driver.PodAddrs()
	if err != nil || len(got) != 2 || got[netip.MustParseAddr("10.9.0.1")] != l.HostIf || got[netip.MustParseAddr("fd09::1")] != l.HostIf {
		t.Errorf("%v, %v", got, err)
	}
	n.remove(podRows(l)...)
	if got, err := n.driver.PodAddrs(); err != nil || len(got) != 0 {
		t.Errorf("%v, %v", got, err)
	}
}
