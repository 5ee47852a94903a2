package ebpf

import (
	"fmt"
	"strings"
	"testing"

	"weft/internal/plan"
	"weft/internal/testkit"
)

// tagged joins two nodes by a tagged network (802.1q): their underlay is a VLAN device on their end of a veth.
func tagged(tb testing.TB, mtu int, with ...setup) (a, b *node) {
	tb.Helper()
	a, b = newNode(tb, 1, with...), newNode(tb, 2, with...)
	ip(tb, a.ns, fmt.Sprintf("link add %s mtu %d type veth peer name %s mtu %d netns %s", uplink, mtu, uplink, mtu, b.ns.Path()))
	for _, n := range []*node{a, b} {
		n.under = uplink + ".100"
		ip(tb, n.ns, fmt.Sprintf("link set %[1]s up\nlink add link %[1]s name %[2]s type vlan id 100", uplink, n.under))
		n.address()
	}
	return a, b
}

// TestVLAN: the underlay is a VLAN device, whose packets bear no tag any more. The device below it takes tags from the kernel and
// gives them to it, or, as a card that cannot do that, has them in its frames.
func TestVLAN(t *testing.T) {
	testkit.RequireVLAN(t)
	for name, with := range modes() {
		for _, w := range ways() {
			t.Run(name+"/"+w.name, func(t *testing.T) {
				a, b := tagged(t, 1500, with...)
				p, q := testVLAN(t, w, a, b)
				if name == "tcx" {
					talk(t, p, b)
					talk(t, a, q)
				}
			})
		}
	}
	for _, w := range ways() {
		t.Run("inFrames/"+w.name, func(t *testing.T) {
			a, b := tagged(t, 1500)
			plainCards(t, a, b)
			testVLAN(t, w, a, b)
		})
	}
}

func testVLAN(t *testing.T, w way, a, b *node) (p, q *pod) {
	t.Helper()
	p, q = w.join(a, b)
	talk(t, p, q)
	for _, n := range []*node{a, b} {
		n.counted(t, w.counter(), 100)
		n.counted(t, "local", 100)
		n.never(t, "stack", "stack_mtu", "drop_spoof", "drop_not_ip", "drop_peer", "drop_vni")
	}
	return p, q
}

// plainCards lets the nodes' ends of the wire do nothing that the kernel can do itself.
func plainCards(t *testing.T, nodes ...*node) {
	t.Helper()
	for _, n := range nodes {
		n.ns.Run(t, "ethtool", "-K", uplink, "tx", "off", "tso", "off", "gso", "off", "tx-udp_tnl-segmentation", "off", "txvlan", "off", "rxvlan", "off")
	}
}

// TestVLANLife: a device's name has a dot. An agent's successor finds the programs that are on it, puts them on a device that was
// made again, and takes them off when they are not wanted any more.
func TestVLANLife(t *testing.T) {
	testkit.RequireVLAN(t)
	for name, with := range modes() {
		t.Run(name, func(t *testing.T) {
			a, b := tagged(t, 1500, with...)
			p, q := ways()[0].join(a, b)
			before := strings.Join(a.attached(a.under), ", ")
			a.restart()
			if after := strings.Join(a.attached(a.under), ", "); after != before || strings.Count(after, "gress") != 2 {
				t.Errorf("on %s: %q, after a restart %q", a.under, before, after)
			}
			talk(t, p, q)
			ip(t, a.ns, fmt.Sprintf("link del %[2]s\nlink add link %[1]s name %[2]s type vlan id 100", uplink, a.under))
			a.address()
			for i, c := range b.podCIDRs() {
				ip(t, a.ns, fmt.Sprintf("route add %s via %s dev %s onlink", c, b.addrs[i], a.under))
			}
			a.restart()
			talk(t, p, q)
			delete(a.rows, plan.Key{Kind: plan.KindHook, Name: a.under})
			a.restart()
			if left := a.attached(a.under); len(left) > 0 {
				t.Errorf("on %s is left: %v", a.under, left)
			}
		})
	}
}
