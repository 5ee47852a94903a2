package ebpf

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
	"weft/internal/testkit"
)

// Real packets through real devices: every test sends in both directions and families, and compares what arrived.

// place is where a socket can be: a pod or a node.
type place interface {
	netns() *testkit.Netns
	addr(netset.Family) netip.Addr
	dump() string
}

func (p *pod) netns() *testkit.Netns            { return p.ns }
func (p *pod) dump() string                     { return p.node.dump() }
func (n *node) netns() *testkit.Netns           { return n.ns }
func (n *node) addr(f netset.Family) netip.Addr { return netset.First(n.addrs, f) }

// talk exercises a pair in both directions and families.
func talk(t *testing.T, a, b place) {
	t.Helper()
	for _, f := range netset.Families() {
		transfer(t, a, b, f, 8<<20)
		transfer(t, b, a, f, 1<<20)
		echoes(t, a, b, f, 64, 20)
		echoes(t, b, a, f, 8000, 5) // fragmented by the sender
		for _, size := range []int{0, 56, 1200} {
			ping(t, a, b, f, size)
		}
		segments(t, a, b, f, 1000)
		segments(t, b, a, f, 1000)
	}
}

// modes are the ways of attaching programs.
func modes() map[string][]setup {
	return map[string][]setup{"tcx": nil, "clsact": {onClsact}, "netkit": {onNetkit}}
}

// pairs are the kinds of pods' links, for what does not depend on how a program is attached.
func pairs() map[string][]setup { return map[string][]setup{"veth": nil, "netkit": {onNetkit}} }

func (n *node) counted(t *testing.T, name string, atLeast uint64) {
	t.Helper()
	if got := n.driver.Stats()[name]; got < atLeast {
		t.Errorf("node %d counted %d of %s, want at least %d: %v", n.id, got, name, atLeast, n.driver.Stats())
	}
}

func (n *node) never(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if got := n.driver.Stats()[name]; got > 0 {
			t.Errorf("node %d counted %d of %s, want none: %v", n.id, got, name, n.driver.Stats())
		}
	}
}

func TestSameNode(t *testing.T) {
	for name, with := range modes() {
		t.Run(name, func(t *testing.T) {
			n, _ := network(t, 1500, with...)
			a, b := n.addPod(1500), n.addPod(1500)
			n.want(n.settings())
			n.apply()
			talk(t, a, b)
			n.counted(t, "local", 100)
			n.never(t, "stack", "drop_spoof", "drop_not_ip")
			talk(t, a, n) // pod and its own node
			n.counted(t, "stack", 100)
		})
	}
}

func TestDirect(t *testing.T) {
	for name, with := range modes() {
		t.Run(name, func(t *testing.T) {
			a, b := network(t, 1500, with...)
			p, q := a.addPod(1500), b.addPod(1500)
			a.reach(b, netset.V4, false, 1500)
			b.reach(a, netset.V4, false, 1500)
			a.apply()
			b.apply()
			talk(t, p, q)
			for _, n := range []*node{a, b} {
				n.counted(t, "direct", 100)
				n.counted(t, "local", 100)
				n.never(t, "stack", "drop_spoof")
			}
			talk(t, p, b)
			talk(t, b, p)
		})
	}
}

// way is how two nodes reach each other's pods: directly, or by a tunnel between the addresses of a family.
type way struct {
	name   string
	tunnel bool
	outer  netset.Family
}

func ways() []way {
	out := []way{{name: "direct", outer: netset.V4}}
	for _, f := range netset.Families() {
		out = append(out, way{"over" + f.String(), true, f})
	}
	return out
}

// join connects two nodes, with a pod on each.
func (w way) join(a, b *node) (p, q *pod) {
	mtu := 1500
	if w.tunnel {
		mtu = tunnelMTU(w.outer)
	}
	p, q = a.addPod(mtu), b.addPod(mtu)
	if w.tunnel {
		a.overlay(mtu)
		b.overlay(mtu)
	}
	a.reach(b, w.outer, w.tunnel, mtu)
	b.reach(a, w.outer, w.tunnel, mtu)
	a.apply()
	b.apply()
	return p, q
}

// counter is what goes up for each packet that is sent that way.
func (w way) counter() string {
	if w.tunnel {
		return "tunnel"
	}
	return "direct"
}

// tunnelled is two nodes with a tunnel between the addresses of a family, and a pod on each.
func tunnelled(tb testing.TB, outer netset.Family, with ...setup) (a, b *node, p, q *pod) {
	tb.Helper()
	a, b = network(tb, 1500, with...)
	p, q = way{tunnel: true, outer: outer}.join(a, b)
	return a, b, p, q
}

func tunnelMTU(outer netset.Family) int {
	if outer == netset.V6 {
		return 1430
	}
	return 1450
}

func TestTunnel(t *testing.T) {
	for name, with := range modes() {
		t.Run(name, func(t *testing.T) {
			for _, outer := range netset.Families() {
				t.Run("over"+outer.String(), func(t *testing.T) {
					a, b, p, q := tunnelled(t, outer, with...)
					talk(t, p, q)
					for _, n := range []*node{a, b} {
						n.counted(t, "tunnel", 100)
						n.counted(t, "local", 100)
						n.counted(t, "tunnel_device", 1) // UDP superpackets
						n.never(t, "stack", "drop_spoof", "drop_vni", "drop_peer", "drop_not_ip")
					}
					talk(t, p, b)
					talk(t, a, q)
				})
			}
		})
	}
}

// TestTunnelByRoutes: the peer is not a neighbour, the kernel's routes say how to get there.
func TestTunnelByRoutes(t *testing.T) {
	for _, outer := range netset.Families() {
		a, b, p, q := tunnelled(t, outer)
		for _, n := range []*node{a, b} {
			for r := range n.rows.All(plan.KindRemote) {
				far := *r.(*plan.Remote)
				far.OnLink = false
				n.want(&far)
			}
			n.apply()
		}
		talk(t, p, q)
		a.never(t, "stack")
	}
}

// TestKernelDevice: the other node has no weft, but a VXLAN device of the kernel's.
func TestKernelDevice(t *testing.T) {
	for _, outer := range netset.Families() {
		t.Run("over"+outer.String(), func(t *testing.T) {
			a, b := network(t, 1500)
			mtu := tunnelMTU(outer)
			p, q := a.addPod(mtu), b.addPod(mtu)
			a.overlay(mtu)
			a.reach(b, outer, true, mtu)
			there := model.MAC{2, 9, 9, 9, 9, 9}
			for r := range a.rows.All(plan.KindRemote) {
				far := *r.(*plan.Remote)
				far.VTEPMAC = there
				a.want(&far)
			}
			a.apply()
			ip(t, b.ns, fmt.Sprintf("link add vx mtu %d address %s type vxlan id 1 dstport %d local %s remote %s nolearning udp6zerocsumrx\nlink set vx up",
				mtu, there, vxlanPort, b.addr(outer), a.addr(outer)))
			for i, c := range a.podCIDRs() {
				hop := netset.Gateway(netset.OfPrefix(c)) // any address that is on no link
				ip(t, b.ns, fmt.Sprintf("route add %s dev vx\nroute add %s via %s dev vx src %s\nneigh replace %s lladdr %s nud permanent dev vx",
					netset.Host(hop), c, hop, b.addrs[i], hop, model.GatewayMAC))
			}
			b.driver = a.driver // for dumps; nothing of b is applied
			talk(t, p, q)
			b.driver = nil
			a.counted(t, "tunnel", 100)
			a.counted(t, "local", 100)
		})
	}
}

// TestPathMTU: what is larger than the path gets an ICMP error that names the path's MTU, and TCP goes on.
func TestPathMTU(t *testing.T) {
	for name, with := range pairs() {
		for _, tunnel := range []bool{false, true} {
			t.Run(map[bool]string{false: "direct", true: "tunnel"}[tunnel]+"/"+name, func(t *testing.T) { pathMTU(t, tunnel, with) })
		}
	}
}

func pathMTU(t *testing.T, tunnel bool, with []setup) {
	t.Helper()
	a, b := network(t, 1500, with...)
	p, q := a.addPod(1450), b.addPod(1450)
	for _, n := range []*node{a, b} {
		if tunnel {
			n.overlay(1450)
		}
	}
	a.reach(b, netset.V4, tunnel, 1350)
	b.reach(a, netset.V4, tunnel, 1350)
	if !tunnel {
		for _, n := range []*node{a, b} {
			for _, c := range []*node{b, a}[n.id-1].podCIDRs() {
				via := netset.First([]*node{b, a}[n.id-1].addrs, netset.OfPrefix(c))
				ip(t, n.ns, fmt.Sprintf("route replace %s via %s dev %s onlink mtu 1350", c, via, uplink))
			}
		}
	}
	a.apply()
	b.apply()
	for _, f := range netset.Families() {
		if got := discover(t, p, q, f, 1351); got != 1350 {
			t.Errorf("%s: the pod learned MTU %d, want 1350", f, got)
		}
		transfer(t, p, q, f, 4<<20)
		transfer(t, q, p, f, 4<<20)
	}
	a.counted(t, "stack_mtu", 2)
}

// TestShaped: packets to a shaped pod go through the queue of its link, from this node and from others.
func TestShaped(t *testing.T) {
	for name, with := range modes() {
		t.Run(name, func(t *testing.T) {
			a, b, p, q := tunnelled(t, netset.V4, with...)
			beside := b.addPod(1450)
			b.ns.Run(t, "tc", "qdisc", "add", "dev", q.hostIf, "root", "handle", "1:", "tbf", "rate", "1gbit", "burst", "128k", "latency", "50ms")
			row := q.row()
			row.Shaped = true
			b.want(row)
			b.apply()
			talk(t, p, q)
			talk(t, beside, q)
			a.never(t, "drop_spoof")
			out := b.ns.Run(t, "tc", "-s", "qdisc", "show", "dev", q.hostIf, "root")
			var bytes, packets int
			for line := range strings.Lines(out) {
				_, _ = fmt.Sscanf(strings.TrimSpace(line), "Sent %d bytes %d pkt", &bytes, &packets)
			}
			if bytes < 32<<20 {
				t.Errorf("the queue passed %d bytes, want all of what the pod received:\n%s", bytes, out)
			}
		})
	}
}

// TestForwardingPod: a pod sends on what came to it through the tunnel, to a pod of another node. The packet still bears
// the marks of its first tunnel, and the kernel refuses to push a second header: the device does it.
func TestForwardingPod(t *testing.T) {
	for name, with := range pairs() {
		for _, outer := range netset.Families() {
			t.Run("over"+outer.String()+"/"+name, func(t *testing.T) { forwardingPod(t, outer, with) })
		}
	}
}

func forwardingPod(t *testing.T, outer netset.Family, with []setup) {
	t.Helper()
	a, b, p, q := tunnelled(t, outer, with...)
	r := a.addPod(tunnelMTU(outer))
	a.apply()
	hello(t, r)
	for _, path := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		q.ns.Sysctl(t, path, "1")
	}
	for i, word := range []string{"ip", "ip6"} {
		q.ns.Run(t, "nft", fmt.Sprintf("add table %[1]s f; add chain %[1]s f pre { type nat hook prerouting priority -100; }; "+
			"add chain %[1]s f post { type nat hook postrouting priority 100; }; add rule %[1]s f pre meta l4proto { tcp, udp } dnat to %[2]s; "+
			"add rule %[1]s f post oifname eth0 masquerade", word, r.addrs[i]))
	}
	for _, f := range netset.Families() {
		if err := ask(t, p, netip.AddrPortFrom(q.addr(f), 80), patience); err != nil {
			t.Errorf("%s: %v\n%s\n%s", f, err, a.dump(), b.dump())
		}
		via := &through{place: r, hop: q}
		transfer(t, p, via, f, 8<<20)
		echoes(t, p, via, f, 1200, 20)
	}
	b.counted(t, "tunnel_device", 100)
}

// through is a place that is reached by another one's address.
type through struct {
	place
	hop place
}

func (v *through) reachedAt(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(v.hop.addr(netset.Of(a.Addr())), a.Port())
}

// TestWire: frames of the underlay's MTU with finished checksums, as a network card sends and receives them.
func TestWire(t *testing.T) {
	for _, outer := range netset.Families() {
		t.Run("over"+outer.String(), func(t *testing.T) {
			a, b, p, q := tunnelled(t, outer)
			for _, n := range []*node{a, b} {
				n.ns.Run(t, "ethtool", "-K", uplink, "tx", "off", "tso", "off", "gso", "off", "tx-udp_tnl-segmentation", "off", "gro", "on")
			}
			talk(t, p, q)
			talk(t, p, b)
			for _, n := range []*node{a, b} {
				n.never(t, "drop_not_ip", "drop_spoof")
			}
			for _, x := range []*pod{p, q} {
				for _, proto := range []string{"Tcp:", "Udp:", "Ip:"} {
					if bad := x.snmp(t, proto, "InCsumErrors"); bad > 0 {
						t.Errorf("the pod on node %d saw %d %s checksum errors", x.node.id, bad, proto)
					}
				}
			}
		})
	}
}

// snmp reads a counter of /proc/net/snmp.
func (p *pod) snmp(t *testing.T, proto, name string) int {
	t.Helper()
	var names []string
	for line := range strings.Lines(p.ns.Run(t, "cat", "/proc/net/snmp")) {
		words := strings.Fields(line)
		switch {
		case words[0] != proto:
		case names == nil:
			names = words
		default:
			if i := slices.Index(names, name); i >= 0 {
				v, _ := strconv.Atoi(words[i])
				return v
			}
		}
	}
	return 0
}
