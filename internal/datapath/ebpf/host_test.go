package ebpf

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
)

// helloAt answers "hello" at an address of a node.
func helloAt(t *testing.T, n *node, at netip.AddrPort) {
	t.Helper()
	var l net.Listener
	within(t, n.ns, func() (err error) {
		l, err = net.Listen("tcp", at.String())
		return err
	})
	t.Cleanup(func() { _ = l.Close() })
	go answer(l)
}

// twoDevices are two nodes under policy that reach each other by the underlay, at two addresses of each family, and by another device.
type twoDevices struct {
	t     *testing.T
	a, b  *node
	extra map[string][2][2]netip.Addr // what, by family: of a, of b
}

const (
	otherDev       = "public0"
	nodeOpen, shut = 8080, 8081
)

func connectTwice(t *testing.T) *twoDevices {
	t.Helper()
	a, b := network(t, 1500)
	x := &twoDevices{t: t, a: a, b: b, extra: map[string][2][2]netip.Addr{}}
	ip(t, a.ns, fmt.Sprintf("link add %s type veth peer name %s netns %s", otherDev, otherDev, b.ns.Path()))
	for what, dev := range map[string]string{"second address": uplink, "other device": otherDev} {
		net := map[string]byte{uplink: 8, otherDev: 9}[dev]
		var at [2][2]netip.Addr
		for i, n := range []*node{a, b} {
			at[0][i] = netip.AddrFrom4([4]byte{192, 168, net, byte(1 + i)})
			at[1][i] = netip.MustParseAddr(fmt.Sprintf("fd%02d::%d", net, 1+i))
			ip(t, n.ns, fmt.Sprintf("addr add %s/24 dev %s\naddr add %s/64 dev %s nodad\nlink set %s up", at[0][i], dev, at[1][i], dev, dev))
		}
		x.extra[what] = at
	}
	x.extra["underlay"] = [2][2]netip.Addr{{a.addrs[0], b.addrs[0]}, {a.addrs[1], b.addrs[1]}}
	for _, at := range x.extra {
		for _, family := range at {
			for _, port := range []uint16{nodeOpen, shut} {
				helloAt(t, a, netip.AddrPortFrom(family[0], port))
				helloAt(t, b, netip.AddrPortFrom(family[1], port))
			}
		}
	}
	for i, n := range []*node{a, b} {
		n.answers()
		n.reach([]*node{b, a}[i], netset.V4, false, 1500)
		n.policed()
		n.apply()
	}
	return x
}

// expect asks in both directions at every pair of addresses, and says which way is open to which port; absent ways are open.
func (x *twoDevices) expect(when string, in, out map[string][]uint16) {
	x.t.Helper()
	for what, at := range x.extra {
		for _, family := range at {
			for _, port := range []uint16{nodeOpen, shut} {
				for _, d := range []struct {
					from, to *node
					at       netip.Addr
					open     map[string][]uint16
				}{{x.a, x.b, family[1], in}, {x.b, x.a, family[0], out}} {
					ports, said := d.open[what]
					want := !said
					for _, p := range ports {
						want = want || p == port
					}
					limit := patience
					if !want {
						limit = 150 * time.Millisecond
					}
					if err := ask(x.t, d.from, netip.AddrPortFrom(d.at, port), limit); (err == nil) != want {
						x.t.Errorf("%s: %s, node %d to %s port %d: %v, want it to pass: %v\n%s", when, what, d.from.id, d.at, port, err, want, x.b.dump())
					}
				}
			}
		}
	}
}

// TestPolicyNodeDevices: the node is guarded at all of its addresses, on each device by that one's guard.
func TestPolicyNodeDevices(t *testing.T) {
	x := connectTwice(t)
	b := x.b
	x.expect("no policy", nil, nil)
	one := []uint16{nodeOpen}
	in := set("node/in", plan.Ingress, rule("node/in/open", model.VerdictAllow, "", port(protoTCP, nodeOpen)))
	out := set("node/out", plan.Egress, rule("node/out/open", model.VerdictAllow, "", port(protoTCP, nodeOpen)))
	b.want(in, out, &plan.Guard{Ingress: in.ID, Egress: out.ID})
	b.apply()
	// Replies pass in any case: those of what is open in the other direction.
	x.expect("underlay", map[string][]uint16{"underlay": one, "second address": one}, map[string][]uint16{"underlay": one, "second address": one})

	none := set("other/in", plan.Ingress)
	other := &plan.Guard{Node: true, Dev: otherDev, Ingress: none.ID}
	b.want(none, other, &plan.Hook{Dev: otherDev, Role: plan.RoleHost})
	b.apply()
	closed := map[string][]uint16{"underlay": one, "second address": one, "other device": nil}
	x.expect("the other device", closed, map[string][]uint16{"underlay": one, "second address": one})
	b.counted(t, "deny_node", 2)

	// A successor goes on.
	b.restart()
	x.expect("after a restart", closed, map[string][]uint16{"underlay": one, "second address": one})

	// A guard whose rules cannot be put in place keeps what it had: the node stays reachable as it was.
	b.want(&plan.Guard{Ingress: named("missing"), Egress: named("missing")}, &plan.Guard{Node: true, Dev: otherDev, Ingress: named("missing")})
	b.fails(plan.KindGuard, 2)
	x.expect("rules are missing", closed, map[string][]uint16{"underlay": one, "second address": one})
	b.want(&plan.Guard{Ingress: in.ID, Egress: out.ID})

	b.remove(other.Key(), (&plan.Hook{Dev: otherDev}).Key())
	x.expect("without the other device", map[string][]uint16{"underlay": one, "second address": one}, map[string][]uint16{"underlay": one, "second address": one})
	b.remove((&plan.Guard{}).Key())
	x.expect("no policy any more", nil, nil)
}

// fails applies every row and wants so many of a kind to fail.
func (n *node) fails(kind plan.Kind, want int) {
	n.t.Helper()
	within(n.t, n.ns, func() error {
		var ch plan.Changes
		for r := range n.rows.All(kind) {
			ch.Upsert = append(ch.Upsert, r)
		}
		failed := 0
		for _, err := range n.driver.Apply(n.t.Context(), n.rows, ch) {
			if err != nil {
				failed++
			}
		}
		if failed != want {
			return fmt.Errorf("%d rows of %s failed, want %d", failed, kind, want)
		}
		return nil
	})
}

// TestPolicyNodeThrough: what the node forwards under its own address, and what answers that, is not its own traffic; what its stack
// answers, and says to groups of a link, is not asked about.
func TestPolicyNodeThrough(t *testing.T) {
	exchanges(t, func(t *testing.T, x *exchange) {
		in, out := set("host/in", plan.Ingress), set("host/out", plan.Egress)
		x.want(in, out, &plan.Guard{Ingress: in.ID, Egress: out.ID})
		x.apply()
		own, world := x.node.addr(x.f), map[netset.Family]netip.Addr{netset.V4: netip.MustParseAddr("203.0.113.9"), netset.V6: netip.MustParseAddr("2001:db8::9")}[x.f]
		gateway := model.MAC{2, 0, 0, 0, 0, 9}
		sent := func(src, dst netip.Addr, proto byte, payload []byte) frame {
			return frame{srcMAC: x.mac(uplink), dstMAC: gateway, src: src, dst: dst, proto: proto, payload: payload}
		}
		leaves := func(what string, f frame, want string, set ...func(*skb)) {
			t.Helper()
			if got := x.outcome(x.driver.objs.ToNet, uplink, f, set...); got != want {
				t.Errorf("%s: %s, want %s", what, got, want)
			}
		}
		reply := frame{dstMAC: x.mac(uplink), src: world, dst: own, proto: protoUDP, payload: datagram(53, 40000)}
		arrives := func(what string, counted uint64) {
			t.Helper()
			before := x.driver.Stats()["deny_node"]
			_, _, mark := x.runMarked(x.driver.objs.FromNet, uplink, reply.bytes())
			if got := x.driver.Stats()["deny_node"] - before; got != counted || mark != 0x1020 {
				t.Errorf("%s: counted %d, want %d; mark %#x, want 0x1020", what, got, counted, mark)
			}
		}
		forwarded := func(s *skb) { s.IngressIfindex = 7 }
		masqueraded := sent(own, world, protoUDP, datagram(40000, 53))

		arrives("out of the blue", 1)
		leaves("masqueraded", masqueraded, "pass", forwarded)
		arrives("an answer to who was masqueraded", 0)
		leaves("the node's own, of the same ports", masqueraded, "drop_policy")
		leaves("masqueraded again", masqueraded, "pass", forwarded)
		arrives("an answer again", 0)

		leaves("a reset", sent(own, world, protoTCP, segment(80, 5000, rst)), "pass")
		leaves("a connection", sent(own, world, protoTCP, segment(5000, 80, syn)), "drop_policy")
		other := x.pod.addr(x.f).Next() // of the node's, in the test's mind, since it has come in nowhere
		leaves("from another address", sent(other, world, protoTCP, segment(5000, 80, syn)), "drop_policy")
		leaves("of somebody else", sent(other, world, protoTCP, segment(5000, 80, syn)), "pass", forwarded)

		local, group := netip.MustParseAddr("fe80::1"), netip.MustParseAddr("ff02::16")
		if x.f == netset.V4 {
			local, group = netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("255.255.255.255")
		}
		business := sent(local, group, protoUDP, datagram(68, 6700))
		business.dstMAC = model.MAC{0x33, 0x33, 0, 0, 0, 0x16}
		leaves("to a group of the link", business, "pass")
		business.dstMAC = gateway
		leaves("to one on the link", business, "drop_policy")
	})
}
