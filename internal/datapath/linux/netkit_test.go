package linux_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/internal/datapath/linux/rtnl"
	"weft/internal/model"
	"weft/internal/plan"
	"weft/internal/testkit"
)

// eachPair runs a test with veth and netkit pairs. What sends from a pod is for veth alone: no program is attached here.
func eachPair(t *testing.T, f func(t *testing.T, n *node, netkit bool)) {
	t.Helper()
	t.Run("veth", func(t *testing.T) { f(t, newNode(t), false) })
	t.Run("netkit", func(t *testing.T) { f(t, withNetkit(t), true) })
}

func withNetkit(t *testing.T) *node {
	t.Helper()
	n := newNode(t)
	if f := n.driver.Netkit(); f.State != "active" {
		t.Skip(f.Detail)
	}
	return n
}

// TestNetkit: the pair is closed without a program, is closed again if somebody opens it, and is kept whatever the row says later.
func TestNetkit(t *testing.T) {
	n, a, b := withNetkit(t), testkit.New(t), testkit.New(t)
	testkit.NoLeaks(t, []*testkit.Netns{n.Netns, a, b})
	l, old := podLink(a, 1), podLink(b, 2)
	n.apply(podRows(old)...)
	l.Netkit = true
	n.apply(podRows(l)...)
	closed := func() error {
		var err error
		n.Do(t, func() {
			var found netlink.Link
			if found, err = netlink.LinkByName(l.HostIf); err != nil {
				return
			}
			k, ok := found.(*netlink.Netkit)
			if !ok || k.Mode != netlink.NETKIT_MODE_L2 || k.Policy != netlink.NETKIT_POLICY_FORWARD || k.PeerPolicy != netlink.NETKIT_POLICY_BLACKHOLE {
				err = errors.New("it is another link: " + found.Type())
			}
		})
		return err
	}
	within(t, "a new pair", closed)
	has(t, n.IP(t, "-d link show weftb"), "weft:b/eth0", model.GatewayMAC.String(), "mtu 1450", "group 119", "addrgenmode none", ",UP,")
	has(t, a.IP(t, "-d link show eth0"), "02:00:00:00:00:01", "mtu 1450", "addrgenmode none", ",UP,")

	kept := *l
	kept.Netkit, old.Netkit = false, true
	n.restart()
	n.apply(podRows(&kept)...)
	n.apply(podRows(old)...)
	within(t, "a pair whose row asks for veth now", closed)
	has(t, n.IP(t, "-d link show weftc"), "veth")

	r := n.repair(t)
	n.Do(t, func() {
		nl, err := rtnl.Dial(nil)
		if err != nil {
			t.Fatal(err)
		}
		defer nl.Close()
		host, err := nl.LinkByName(l.HostIf)
		if err != nil {
			t.Fatal(err)
		}
		open := rtnl.SetLink(host.Index, 0)
		open.Nest(unix.IFLA_LINKINFO, func() {
			open.Text(unix.IFLA_INFO_KIND, "netkit")
			open.Nest(unix.IFLA_INFO_DATA, func() { open.U32(unix.IFLA_NETKIT_PEER_POLICY, unix.NETKIT_PASS) })
		})
		if err := nl.One(open).Err; err != nil {
			t.Fatal(err)
		}
	})
	var said string
	within(t, "an opened pair", func() error {
		if said += r.words(); !strings.Contains(said, "policy of link weftb was changed") {
			return errors.New("nobody noticed")
		}
		return closed()
	})
	none := n.change(func(v view) { clear(v) }) // also lest the repairer makes them again
	if err := n.driver.Sweep(context.Background(), none); err != nil {
		t.Fatal(err)
	}
	hasNot(t, n.IP(t, "link"), "weftb", "weftc")
}

// TestWithoutNetkit: a kernel without it makes veth pairs, and says why.
func TestWithoutNetkit(t *testing.T) {
	n, a := newNode(t), testkit.New(t)
	f := n.driver.Netkit()
	if f.State == "active" {
		t.Skip("this kernel has netkit")
	}
	if f.State != "fallback" || !strings.Contains(f.Detail, unix.EOPNOTSUPP.Error()) {
		t.Errorf("%+v", f)
	}
	l := podLink(a, 1)
	l.Netkit = true
	n.apply(podRows(l)...)
	has(t, n.IP(t, "-d link show weftb"), "veth")
	reach(t, n.Netns, a, l.Addrs[0])
	n.remove(plan.Row(l))
}
