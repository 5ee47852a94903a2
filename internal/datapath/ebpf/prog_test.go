package ebpf

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"weft/internal/model"
	"weft/internal/netset"
)

// Verdicts of a classifier.
const (
	verdictNext     = 0xffffffff
	verdictDrop     = 2
	verdictRedirect = 7
)

// skb is struct __sk_buff as far as a test may set it.
type skb struct {
	Len, PktType, Mark, QueueMapping, Protocol, VlanPresent, VlanTCI, VlanProto, Priority uint32
	IngressIfindex, Ifindex, TCIndex                                                      uint32
	CB                                                                                    [5]uint32
	Hash, TCClassid, Data, DataEnd, NAPI                                                  uint32
	_                                                                                     [14]uint32
	_                                                                                     uint64
	Tstamp                                                                                uint64
	WireLen, GSOSegs                                                                      uint32
	_                                                                                     uint64
	GSOSize                                                                               uint32
	_                                                                                     uint32
	_                                                                                     uint64
}

// lone is a node with two pods and rows to a node that does not exist: enough to run programs one by one.
func lone(tb testing.TB, outer netset.Family, tunnel bool) (n *node, peer *node) {
	tb.Helper()
	n, peer = network(tb, 1500)
	n.addPod(1450)
	n.addPod(1450)
	if tunnel {
		n.overlay(1450)
	}
	n.reach(peer, outer, tunnel, 1450)
	n.apply()
	return n, peer
}

func (n *node) index(dev string) (i uint32) {
	n.t.Helper()
	within(n.t, n.ns, func() error {
		x, err := interfaceIndex(dev)
		i = uint32(x)
		return err
	})
	return i
}

// mac is a device's.
func (n *node) mac(dev string) (m model.MAC) {
	n.t.Helper()
	within(n.t, n.ns, func() error {
		i, err := net.InterfaceByName(dev)
		if err == nil {
			copy(m[:], i.HardwareAddr)
		}
		return err
	})
	return m
}

// run runs a program on a packet that is on a device, and returns the verdict and the packet.
func (n *node) run(prog *ebpf.Program, dev string, in []byte, set ...func(*skb)) (uint32, []byte) {
	n.t.Helper()
	verdict, out, _ := n.runMarked(prog, dev, in, set...)
	return verdict, out
}

// runMarked returns the packet's mark as well.
func (n *node) runMarked(prog *ebpf.Program, dev string, in []byte, set ...func(*skb)) (uint32, []byte, uint32) {
	n.t.Helper()
	s := skb{Ifindex: n.index(dev)}
	for _, f := range set {
		f(&s)
	}
	out := make([]byte, len(in)+256)
	var verdict uint32
	var after skb
	within(n.t, n.ns, func() (err error) {
		opts := &ebpf.RunOptions{Data: in, DataOut: out, Context: s, ContextOut: &after}
		verdict, err = prog.Run(opts)
		out = opts.DataOut
		return err
	})
	return verdict, out, after.Mark
}

// step is one packet given to one program.
type step struct {
	name    string
	prog    *ebpf.Program
	dev     string
	in      []byte
	set     func(*skb)
	verdict uint32
	reason  string // the counter that goes up by one; "" for none
	out     []byte // nil: unchanged
}

func (n *node) check(t *testing.T, s step) {
	t.Helper()
	t.Run(s.name, func(t *testing.T) {
		before := n.driver.Stats()
		set := s.set
		if set == nil {
			set = func(*skb) {}
		}
		verdict, out := n.run(s.prog, s.dev, s.in, set)
		if verdict != s.verdict {
			t.Errorf("verdict %d, want %d", int32(verdict), int32(s.verdict))
		}
		want := s.out
		if want == nil {
			want = s.in
		}
		if !bytes.Equal(out, want) {
			t.Errorf("packet:\n%s\nwant:\n%s", dump(out), dump(want))
		}
		for name, v := range n.driver.Stats() {
			var up uint64
			if name == s.reason {
				up = 1
			}
			// MLD of the rig's pods and devices comes when it wants.
			if stray := name == "drop_link_local" || name == "drop_no_remote"; stray && v-before[name] >= up {
				continue
			}
			if v-before[name] != up {
				t.Errorf("counter %s went up by %d, want %d", name, v-before[name], up)
			}
		}
	})
}

// eachFamily runs a table for packets of each family, on a node that has a tunnel to its peer over the outer one.
func eachFamily(t *testing.T, outer netset.Family, tunnel bool, table func(t *testing.T, n, peer *node, f netset.Family) []step) {
	t.Helper()
	n, peer := lone(t, outer, tunnel)
	for _, f := range netset.Families() {
		t.Run(f.String(), func(t *testing.T) {
			for _, s := range table(t, n, peer, f) {
				n.check(t, s)
			}
		})
	}
}

// dump is the part of a packet that programs change.
func dump(b []byte) string { return hex.Dump(b[:min(len(b), 160)]) }

// remotePod is an address of a pod on a node that has no pods here.
func remotePod(n *node, f netset.Family) netip.Addr {
	for _, c := range n.podCIDRs() {
		if netset.OfPrefix(c) == f {
			return netset.Nth(c, 9)
		}
	}
	return netip.Addr{}
}

func with(f frame, change func(*frame)) frame {
	change(&f)
	return f
}

func TestFromPodOnNode(t *testing.T) {
	t.Run("veth", func(t *testing.T) { fromPodOnNode(t, func(o *weftObjects) *ebpf.Program { return o.FromPod }) })
	t.Run("netkit", func(t *testing.T) { fromPodOnNode(t, func(o *weftObjects) *ebpf.Program { return o.FromPodNetkit }) })
}

func fromPodOnNode(t *testing.T, of func(*weftObjects) *ebpf.Program) {
	t.Helper()
	eachFamily(t, netset.V4, true, func(_ *testing.T, n, _ *node, f netset.Family) []step {
		a, b := n.pods[0], n.pods[1]
		prog, dev, gw := of(&n.driver.objs), a.hostIf, model.GatewayMAC
		ok := frame{srcMAC: a.mac, dstMAC: gw, src: a.addr(f), dst: b.addr(f), proto: protoTCP, payload: tcp(1000, 80, 10)}
		other := netset.Nth(netset.Default(f), 0x08080808)
		drop := func(name, reason string, in []byte) step {
			return step{name: name, prog: prog, dev: dev, in: in, verdict: verdictDrop, reason: reason}
		}
		stack := func(name, reason string, in frame) step {
			return step{name: name, prog: prog, dev: dev, in: in.bytes(), verdict: verdictNext, reason: reason}
		}
		return []step{
			{name: "local", prog: prog, dev: dev, in: ok.bytes(), verdict: verdictRedirect, reason: "local", out: ok.forwarded(b.mac, gw).bytes()},
			{
				name: "last but one hop", prog: prog, dev: dev, in: with(ok, func(f *frame) { f.ttl = 2 }).bytes(), verdict: verdictRedirect,
				reason: "local", out: with(ok, func(f *frame) { f.ttl = 2 }).forwarded(b.mac, gw).bytes(),
			},
			{
				name: "fragment", prog: prog, dev: dev, in: with(ok, func(f *frame) { f.fragment = 0x2001 }).bytes(), verdict: verdictRedirect,
				reason: "local", out: with(ok, func(f *frame) { f.fragment = 0x2001 }).forwarded(b.mac, gw).bytes(),
			},
			stack("last hop", "stack_ttl", with(ok, func(f *frame) { f.ttl = 1 })),
			stack("to the world", "stack", with(ok, func(f *frame) { f.dst = other })),
			stack("to the node", "stack", with(ok, func(x *frame) { x.dst = netset.First(n.addrs, f) })),
			drop("address of another pod", "drop_spoof", with(ok, func(x *frame) { x.src = b.addr(f) }).bytes()),
			drop("address of nobody", "drop_spoof", with(ok, func(x *frame) { x.src = other }).bytes()),
			drop("MAC of another pod", "drop_spoof", with(ok, func(x *frame) { x.srcMAC = b.mac }).bytes()),
			drop("unspecified address", "drop_link_local", with(ok, func(x *frame) { x.src = unspecified(f) }).bytes()),
			drop("not IP", "drop_not_ip", ethernet(gw, a.mac, 0x88cc, make([]byte, 60))),
			drop("another version than said", "drop_not_ip", ethernet(gw, a.mac, etherType(ok.src), append([]byte{0x50}, ok.packet()[1:]...))),
		}
	})
}

// TestMapped: an IPv6 packet with IPv4-mapped addresses is not the IPv4 packet that the maps would take it for.
func TestMapped(t *testing.T) {
	n, peer := lone(t, netset.V4, true)
	a, b := n.pods[0], n.pods[1]
	mapped := func(p *pod) netip.Addr { return netip.AddrFrom16(p.addr(netset.V4).As16()) }
	base := frame{srcMAC: a.mac, dstMAC: model.GatewayMAC, proto: protoTCP, payload: tcp(1000, 80, 10)}
	six := a.addr(netset.V6)
	for _, s := range []step{
		{name: "both", in: with(base, func(f *frame) { f.src, f.dst = mapped(a), mapped(b) }).wide()},
		{name: "source", in: with(base, func(f *frame) { f.src, f.dst = mapped(a), b.addr(netset.V6) }).wide()},
		{name: "destination", in: with(base, func(f *frame) { f.src, f.dst = six, mapped(b) }).wide()},
	} {
		s.prog, s.dev, s.verdict, s.reason = n.driver.objs.FromPod, a.hostIf, verdictDrop, "drop_not_ip"
		n.check(t, s)
	}
	arriving := with(base, func(f *frame) {
		f.dstMAC, f.src, f.dst = n.mac(uplink), remotePod(peer, netset.V6), mapped(a)
	}).wide()
	n.check(t, step{name: "arriving", prog: n.driver.objs.FromNet, dev: uplink, in: arriving, verdict: verdictNext})
}

func unspecified(f netset.Family) netip.Addr { return netset.Default(f).Addr() }

// TestLinkLocal: what pods say on their links is answered or dropped, and never reaches the host or others.
func TestLinkLocal(t *testing.T) {
	n, _ := lone(t, netset.V4, true)
	a := n.pods[0]
	gw := model.GatewayMAC
	all := model.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	ask := func(op byte, target netip.Addr) []byte {
		b := []byte{0, 1, 8, 0, 6, 4, 0, op}
		b = append(append(b, a.mac[:]...), a.addr(netset.V4).AsSlice()...)
		return append(append(b, make([]byte, 6)...), target.AsSlice()...)
	}
	answer := append([]byte{0, 1, 8, 0, 6, 4, 0, 2}, gw[:]...)
	answer = append(answer, netset.Gateway(netset.V4).AsSlice()...)
	answer = append(append(answer, a.mac[:]...), a.addr(netset.V4).AsSlice()...)

	self := netip.MustParseAddr("fe80::aa")
	group := netip.MustParseAddr("ff02::1:ff00:1")
	solicit := func(src, target netip.Addr) []byte {
		return frame{
			srcMAC: a.mac, dstMAC: model.MAC{0x33, 0x33, 0xff, 0, 0, 1}, src: src, dst: group, proto: protoICMPv6, ttl: 255,
			payload: neighbour(135, 0, src, group, target, 1, a.mac),
		}.bytes()
	}
	advert := frame{
		srcMAC: gw, dstMAC: a.mac, src: netset.Gateway(netset.V6), dst: self, proto: protoICMPv6, ttl: 255,
		payload: neighbour(136, 0xe0, netset.Gateway(netset.V6), self, netset.Gateway(netset.V6), 2, gw),
	}.bytes()
	drop := func(name string, in []byte) step {
		return step{name: name, in: in, verdict: verdictDrop, reason: "drop_link_local"}
	}
	for _, s := range []step{
		{
			name: "ARP for the gateway", in: ethernet(all, a.mac, etherARP, ask(1, netset.Gateway(netset.V4))),
			verdict: verdictRedirect, reason: "gateway", out: ethernet(a.mac, gw, etherARP, answer),
		},
		drop("ARP for another pod", ethernet(all, a.mac, etherARP, ask(1, n.pods[1].addr(netset.V4)))),
		drop("ARP reply", ethernet(all, a.mac, etherARP, ask(2, netset.Gateway(netset.V4)))),
		drop("short ARP", ethernet(all, a.mac, etherARP, ask(1, netset.Gateway(netset.V4))[:20])),
		{
			name: "ND for the gateway", in: solicit(self, netset.Gateway(netset.V6)),
			verdict: verdictRedirect, reason: "gateway", out: advert,
		},
		drop("ND for another pod", solicit(self, n.pods[1].addr(netset.V6))),
		drop("DAD", frame{
			srcMAC: a.mac, dstMAC: gw, src: unspecified(netset.V6), dst: group, proto: protoICMPv6, ttl: 255,
			payload: neighbour(135, 0, unspecified(netset.V6), group, self, 0, model.MAC{})[:24],
		}.bytes()),
		drop("router solicitation", frame{
			srcMAC: a.mac, dstMAC: gw, src: self, dst: netip.MustParseAddr("ff02::2"), proto: protoICMPv6, ttl: 255, payload: []byte{133, 0, 0, 0, 0, 0, 0, 0},
		}.bytes()),
		drop("UDP from a link-local address", frame{
			srcMAC: a.mac, dstMAC: gw, src: self, dst: n.pods[1].addr(netset.V6), proto: protoUDP, payload: udp(1, 2, make([]byte, 30)),
		}.bytes()),
	} {
		s.prog, s.dev = n.driver.objs.FromPod, a.hostIf
		n.check(t, s)
	}
}

// neighbour is a neighbour solicitation or advertisement (RFC 4861 §4.3, §4.4).
func neighbour(kind, flags byte, src, dst, target netip.Addr, option byte, mac model.MAC) []byte {
	b := []byte{kind, 0, 0, 0, flags, 0, 0, 0}
	b = append(b, target.AsSlice()...)
	b = append(append(b, option, 1), mac[:]...)
	binary.BigEndian.PutUint16(b[2:], ^sum(src.AsSlice(), dst.AsSlice(), []byte{0, 0, 0, byte(len(b)), 0, 0, 0, protoICMPv6}, b))
	return b
}

func TestFromPodDirect(t *testing.T) {
	eachFamily(t, netset.V4, false, func(_ *testing.T, n, peer *node, f netset.Family) []step {
		a := n.pods[0]
		prog, dev := n.driver.objs.FromPod, a.hostIf
		ok := frame{srcMAC: a.mac, dstMAC: model.GatewayMAC, src: a.addr(f), dst: remotePod(peer, f), proto: protoTCP, payload: tcp(1000, 80, 10)}
		header := len(ok.packet()) - len(ok.payload)
		sized := func(mtu int, proto byte) frame {
			return with(ok, func(f *frame) {
				f.proto = proto
				f.payload = append(f.payload, make([]byte, mtu-header-len(f.payload))...)
			})
		}
		gso := func(segment int) func(*skb) { return func(s *skb) { s.GSOSize, s.GSOSegs = uint32(segment), 2 } }
		sent := func(name string, in frame, set func(*skb)) step {
			return step{
				name: name, prog: prog, dev: dev, in: in.bytes(), set: set, verdict: verdictRedirect, reason: "direct",
				out: in.forwarded(model.GatewayMAC, a.mac).bytes(), // the kernel writes the Ethernet header
			}
		}
		big := func(name string, in frame, set func(*skb)) step {
			return step{name: name, prog: prog, dev: dev, in: in.bytes(), set: set, verdict: verdictNext, reason: "stack_mtu"}
		}
		return []step{
			sent("sent", ok, nil),
			sent("as large as the MTU", sized(1450, protoTCP), nil),
			big("one more", sized(1451, protoTCP), nil),
			sent("TCP superpacket whose segments fit", sized(2800, protoTCP), gso(1450-header-20)),
			big("TCP superpacket, one byte too much", sized(2800, protoTCP), gso(1450-header-20+1)),
			sent("UDP superpacket whose segments fit", sized(2800, protoUDP), gso(1450-header-8)),
			big("UDP superpacket, one byte too much", sized(2800, protoUDP), gso(1450-header-8+1)),
			{
				name: "last hop", prog: prog, dev: dev, in: with(ok, func(f *frame) { f.ttl = 1 }).bytes(),
				verdict: verdictNext, reason: "stack_ttl",
			},
			sent("fragment", with(ok, func(f *frame) { f.fragment = 0x0010 }), nil),
			sent("to the node", with(ok, func(x *frame) { x.dst = netset.First(peer.addrs, f) }), nil),
		}
	})
}

// outerOf is the frame that carries inner, with the source port that the program chose.
func outerOf(n, peer *node, outer netset.Family, inner []byte, got []byte, tos byte) []byte {
	f := frame{src: netset.First(n.addrs, outer), dst: netset.First(peer.addrs, outer), proto: protoUDP, fragment: 0x4000, tos: tos}
	if outer == netset.V6 {
		f.fragment = 0
	}
	var port uint16
	if at := 14 + len(f.packet()); len(got) > at+2 {
		port = binary.BigEndian.Uint16(got[at:])
	}
	f.payload = udp(port|0x8000, vxlanPort, vxlan(1, inner))
	return f.packet()
}

// TestTunnelBytes compares what is pushed with what RFC 7348 says, for each inner and outer family, from a pod and
// from the stack, and that popping it at the other node gives back what was pushed.
func TestTunnelBytes(t *testing.T) {
	for _, outer := range netset.Families() {
		t.Run("over"+outer.String(), func(t *testing.T) {
			n, peer := lone(t, outer, true)
			peer.addPod(1450)
			peer.overlay(1450)
			peer.reach(n, outer, true, 1450)
			peer.apply()
			for _, f := range netset.Families() {
				for _, tos := range []byte{0, 2} {
					t.Run(fmt.Sprintf("%s/ecn%d", f, tos), func(t *testing.T) {
						pushPop(t, n, peer, outer, f, tos)
					})
				}
			}
		})
	}
}

// popsOther says whether the kernel can leave a packet of the other family when it removes a header (Linux 6.3).
func popsOther(t *testing.T) bool {
	t.Helper()
	return kernelIs(t, 6, 3)
}

// kernelIs says whether this kernel is at least the given one.
func kernelIs(t *testing.T, major, minor int) bool {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var x, y int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &x, &y); err != nil {
		t.Fatal(err)
	}
	return x > major || x == major && y >= minor
}

func pushPop(t *testing.T, n, peer *node, outer, f netset.Family, tos byte) {
	t.Helper()
	a, b := n.pods[0], peer.pods[0]
	gw := model.GatewayMAC
	in := frame{srcMAC: a.mac, dstMAC: gw, src: a.addr(f), dst: b.addr(f), proto: protoTCP, tos: tos, payload: tcp(1000, 80, 10)}
	inner := in.forwarded(gw, senderOf(gw))
	for _, way := range []struct {
		name string
		prog *ebpf.Program
		dev  string
		in   frame
	}{{"from_pod", n.driver.objs.FromPod, a.hostIf, in}, {"to_overlay", n.driver.objs.ToOverlay, overlayDev, inner}} {
		verdict, out := n.run(way.prog, way.dev, way.in.bytes())
		if want := outerOf(n, peer, outer, inner.bytes(), out, tos); verdict != verdictRedirect || len(out) < 14 || !bytes.Equal(out[14:], want) {
			t.Fatalf("%s: verdict %d, packet:\n%s\nwant:\n%s", way.name, int32(verdict), dump(out), dump(want))
		}
		to := peer.mac(uplink)
		copy(out, to[:]) // redirect_neigh is not run here
		pop := step{
			name: "pop/" + way.name, prog: peer.driver.objs.FromNet, dev: uplink, in: out, verdict: verdictRedirect, reason: "local",
			out: inner.forwarded(b.mac, gw).bytes(),
		}
		if f != outer && !popsOther(t) {
			pop.verdict, pop.reason, pop.out = verdictNext, "", nil // the device does it
		}
		peer.check(t, pop)
	}
}

func TestFromNet(t *testing.T) {
	for _, outer := range netset.Families() {
		eachFamily(t, outer, true, func(t *testing.T, n, peer *node, f netset.Family) []step {
			t.Helper()
			a := n.pods[0]
			prog, gw := n.driver.objs.FromNet, model.GatewayMAC
			plain := frame{dstMAC: n.mac(uplink), src: remotePod(peer, f), dst: a.addr(f), proto: protoTCP, payload: tcp(1000, 80, 10)}
			inner := plain
			inner.dstMAC, inner.srcMAC = gw, gw
			carrier := func(vni uint32, in frame) frame {
				return frame{dstMAC: n.mac(uplink), src: netset.First(peer.addrs, outer), dst: netset.First(n.addrs, outer), proto: protoUDP, payload: udp(40000, vxlanPort, vxlan(vni, in.bytes()))}
			}
			left := func(name string, in frame, set func(*skb)) step {
				return step{name: name, prog: prog, dev: uplink, in: in.bytes(), set: set, verdict: verdictNext}
			}
			drop := func(name, reason string, in frame) step {
				return step{name: name, prog: prog, dev: uplink, in: in.bytes(), verdict: verdictDrop, reason: reason}
			}
			good := carrier(1, inner)
			popped := func(name string, inner frame) step {
				if f != outer && !popsOther(t) {
					return left(name, carrier(1, inner), nil)
				}
				return step{
					name: name, prog: prog, dev: uplink, in: carrier(1, inner).bytes(), verdict: verdictRedirect, reason: "local",
					out: inner.forwarded(a.mac, gw).bytes(),
				}
			}
			superpacket := func(s *skb) { s.GSOSize, s.GSOSegs = 600, 2 }
			return []step{
				{name: "direct", prog: prog, dev: uplink, in: plain.bytes(), verdict: verdictRedirect, reason: "local", out: plain.forwarded(a.mac, gw).bytes()},
				popped("tunnelled", inner),
				popped("tunnelled fragment", with(inner, func(f *frame) { f.fragment = 0x2001 })),
				left("tunnelled UDP superpacket", carrier(1, with(inner, func(f *frame) { f.proto, f.payload = protoUDP, udp(1, 2, make([]byte, 1200)) })), superpacket),
				left("tunnelled to the node", carrier(1, with(inner, func(x *frame) { x.dst = netset.First(n.addrs, f) })), nil),
				left("tunnelled, last hop", carrier(1, with(inner, func(f *frame) { f.ttl = 1 })), nil),
				left("tunnelled, congestion on the way", with(good, func(f *frame) { f.tos = 3 }), nil),
				drop("wrong VNI", "drop_vni", carrier(2, inner)),
				drop("from no node", "drop_peer", with(good, func(f *frame) { f.src = f.src.Next().Next() })),
				left("other port", with(good, func(f *frame) { f.payload = udp(40000, vxlanPort+1, vxlan(1, inner.bytes())) }), nil),
				left("other destination", with(good, func(f *frame) { f.dst = f.dst.Next().Next().Next() }), nil),
				left("outer fragment", with(good, func(f *frame) { f.fragment = 0x2000 }), nil),
				left("carrier without contents", with(good, func(f *frame) { f.payload = f.payload[:20] }), nil),
				left("carrier of half an IP header", with(good, func(f *frame) { f.payload = f.payload[:8+8+14+10] }), nil),
				left("to nobody", with(plain, func(x *frame) { x.dst = netset.First(n.addrs, f) }), nil),
				{name: "direct, last hop", prog: prog, dev: uplink, in: with(plain, func(f *frame) { f.ttl = 1 }).bytes(), verdict: verdictNext, reason: "stack_ttl"},
				{
					name: "direct, from outside of the cluster", prog: prog, dev: uplink, verdict: verdictNext, reason: "stack",
					in: with(plain, func(x *frame) { x.src = netset.Nth(netset.Default(f), 0x08080808) }).bytes(),
				},
				left("direct, to another MAC", with(plain, func(f *frame) { f.dstMAC = gw }), nil),
				left("tunnelled, to another MAC", with(good, func(f *frame) { f.dstMAC = gw }), nil),
				left("direct, to everybody", with(plain, func(f *frame) { f.dstMAC = model.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff} }), nil),
				{name: "not IP", prog: prog, dev: uplink, in: ethernet(n.mac(uplink), gw, etherARP, make([]byte, 46)), verdict: verdictNext},
			}
		})
	}
}

// TestForeignTunnel: on a node without tunnels of ours, VXLAN on the same port is somebody else's.
func TestForeignTunnel(t *testing.T) {
	n, peer := lone(t, netset.V4, false)
	for _, vni := range []uint32{1, 77} {
		inner := frame{srcMAC: model.GatewayMAC, src: remotePod(peer, netset.V4), dst: n.pods[0].addr(netset.V4), proto: protoTCP, payload: tcp(1000, 80, 10)}
		in := frame{
			dstMAC: n.mac(uplink), src: netip.MustParseAddr("192.168.7.99"), dst: n.addr(netset.V4), proto: protoUDP,
			payload: udp(40000, vxlanPort, vxlan(vni, inner.bytes())),
		}
		n.check(t, step{name: fmt.Sprint("VNI ", vni), prog: n.driver.objs.FromNet, dev: uplink, in: in.bytes(), verdict: verdictNext})
	}
}

func TestToOverlay(t *testing.T) {
	eachFamily(t, netset.V4, true, func(_ *testing.T, n, peer *node, f netset.Family) []step {
		prog := n.driver.objs.ToOverlay
		gw := model.GatewayMAC
		in := frame{srcMAC: gw, dstMAC: model.MAC{2, 9}, src: netset.First(n.addrs, f), dst: remotePod(peer, f), proto: protoUDP, payload: udp(1, 2, make([]byte, 1200))}
		return []step{
			{
				name: "UDP superpacket is the device's", prog: prog, dev: overlayDev, in: in.bytes(), verdict: verdictNext, reason: "tunnel_device",
				set: func(s *skb) { s.GSOSize, s.GSOSegs = 600, 2 }, out: with(in, func(f *frame) { f.dstMAC, f.srcMAC = gw, senderOf(gw) }).bytes(),
			},
			{name: "to no node", prog: prog, dev: overlayDev, in: with(in, func(x *frame) { x.dst = netset.Nth(netset.Default(f), 0x08080808) }).bytes(), verdict: verdictDrop, reason: "drop_no_remote"},
			{name: "not IP", prog: prog, dev: overlayDev, in: ethernet(gw, gw, etherARP, make([]byte, 46)), verdict: verdictDrop, reason: "drop_not_ip"},
		}
	})
}

// TestFromOverlay: a packet that no tunnel brought is refused. The way through a real device is in TestTunnelDevice.
func TestFromOverlay(t *testing.T) {
	eachFamily(t, netset.V4, true, func(_ *testing.T, n, peer *node, f netset.Family) []step {
		in := frame{srcMAC: model.GatewayMAC, dstMAC: model.GatewayMAC, src: remotePod(peer, f), dst: n.pods[0].addr(f), proto: protoTCP, payload: tcp(1, 2, 10)}
		return []step{{name: "without a tunnel", prog: n.driver.objs.FromOverlay, dev: overlayDev, in: in.bytes(), verdict: verdictDrop, reason: "drop_vni"}}
	})
}

// TestBeforeSettings: without settings pods are cut off, and the host is not.
func TestBeforeSettings(t *testing.T) {
	eachFamily(t, netset.V4, true, func(t *testing.T, n, peer *node, f netset.Family) []step {
		t.Helper()
		if err := n.driver.settings.put(0, weftWeftSettings{}); err != nil {
			t.Fatal(err)
		}
		a := n.pods[0]
		in := frame{srcMAC: a.mac, dstMAC: model.GatewayMAC, src: a.addr(f), dst: remotePod(peer, f), proto: protoTCP, payload: tcp(1, 2, 10)}.bytes()
		o := n.driver.objs
		return []step{
			{name: "from_pod", prog: o.FromPod, dev: a.hostIf, in: in, verdict: verdictDrop, reason: "drop_settings"},
			{name: "to_pod", prog: o.ToPod, dev: a.hostIf, in: in, verdict: verdictNext},
			{name: "from_net", prog: o.FromNet, dev: uplink, in: in, verdict: verdictNext},
			{name: "to_net", prog: o.ToNet, dev: uplink, in: in, verdict: verdictNext},
			{name: "from_overlay", prog: o.FromOverlay, dev: overlayDev, in: in, verdict: verdictDrop, reason: "drop_settings"},
			{name: "to_overlay", prog: o.ToOverlay, dev: overlayDev, in: in, verdict: verdictDrop, reason: "drop_settings"},
		}
	})
}
