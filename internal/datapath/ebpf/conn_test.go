package ebpf

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
)

// Flows of pods under policy: when they are known, for how long, and by whom. Single programs, both families.

// outcome says what a program makes of a packet: "pass", "undecided", "reject", or the name of the counter of a drop.
func (n *node) outcome(prog *ebpf.Program, dev string, in frame, set ...func(*skb)) string {
	n.t.Helper()
	before := n.driver.Stats()
	verdict, _, mark := n.runMarked(prog, dev, in.bytes(), set...)
	switch {
	case mark&0x1030 == 0x1000:
		return "undecided"
	case verdict != verdictDrop && mark == 0x1010:
		return "reject"
	case verdict != verdictDrop:
		return "pass"
	}
	for name, v := range n.driver.Stats() {
		if strings.HasPrefix(name, "drop") && name != "drop_link_local" && name != "drop_no_remote" && v > before[name] {
			return name
		}
	}
	return "drop, not counted"
}

// exchange is a node with two pods, one under policy, and programs to ask.
type exchange struct {
	*node
	t           *testing.T
	f           netset.Family
	far         netip.Addr // a pod of another node
	client, pod *pod
}

// exchanges runs a test for each family. The pod lets "friends" in to TCP and UDP port 80 and to ping, and goes out to UDP port 53.
func exchanges(t *testing.T, test func(t *testing.T, x *exchange)) {
	t.Helper()
	n, peer := lone(t, netset.V4, true)
	n.policed()
	n.want(&plan.Identity{ID: named("far"), Text: "far"}, peers("friends", "far", n.pods[0].name()))
	for _, c := range peer.podCIDRs() {
		n.want(&plan.Address{Prefix: netset.Host(netset.Nth(c, 9)), Identity: named("far")})
	}
	in := set("in", plan.Ingress, rule("in/ports", model.VerdictAllow, "friends", port(protoTCP, 80), port(protoUDP, 80)),
		rule("in/ping", model.VerdictAllow, "friends", plan.L4{Proto: protoICMP, Port: 8 << 8, Bits: 8}, plan.L4{Proto: protoICMPv6, Port: 128 << 8, Bits: 8}))
	out := set("out", plan.Egress, rule("out/dns", model.VerdictAllow, "", port(protoUDP, 53)))
	n.guard(n.pods[1], in, out)
	n.apply()
	for _, f := range netset.Families() {
		t.Run(f.String(), func(t *testing.T) {
			n.flushConns()
			test(t, &exchange{node: n, t: t, f: f, far: remotePod(peer, f), client: n.pods[0], pod: n.pods[1]})
		})
	}
}

// comes and goes are packets to and from the pod under policy; far is the other side.
func (x *exchange) comes(proto byte, payload []byte) frame {
	return frame{dstMAC: x.mac(uplink), src: x.far, dst: x.pod.addr(x.f), proto: proto, payload: payload}
}

func (x *exchange) goes(proto byte, payload []byte) frame {
	return frame{srcMAC: x.pod.mac, dstMAC: model.GatewayMAC, src: x.pod.addr(x.f), dst: x.far, proto: proto, payload: payload}
}

// in and out give a packet to the program that sees it.
func (x *exchange) in(what string, f frame, want string) {
	x.t.Helper()
	if got := x.outcome(x.driver.objs.FromNet, uplink, f); got != want {
		x.t.Errorf("in: %s: %s, want %s", what, got, want)
	}
}

func (x *exchange) out(what string, f frame, want string) {
	x.t.Helper()
	if got := x.outcome(x.driver.objs.FromPod, x.pod.hostIf, f); got != want {
		x.t.Errorf("out: %s: %s, want %s", what, got, want)
	}
}

const (
	fin = 0x11
	syn = 0x02
	rst = 0x04
	ack = 0x10
)

func segment(sport, dport uint16, flags byte) []byte {
	b := tcp(sport, dport, 4)
	b[13] = flags
	return b
}

func datagram(sport, dport uint16) []byte { return udp(sport, dport, []byte("some data")) }

// echo is an ICMP echo request or reply of the family.
func (x *exchange) echo(reply bool, id uint16) (proto byte, payload []byte) {
	proto, kinds := byte(protoICMP), [2]byte{8, 0}
	if x.f == netset.V6 {
		proto, kinds = protoICMPv6, [2]byte{128, 129}
	}
	b := []byte{kinds[0], 0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4}
	if reply {
		b[0] = kinds[1]
	}
	binary.BigEndian.PutUint16(b[4:], id)
	return proto, b
}

// age makes every flow older.
func (x *exchange) age(seconds int) {
	x.t.Helper()
	var s weftWeftSettings
	if err := x.driver.settings.m.Lookup(uint32(0), &s); err != nil {
		x.t.Fatal(err)
	}
	x.change(func(c *weftWeftConn) { c.Last -= uint32(seconds) * s.Second })
}

// change changes every entry of conns.
func (x *exchange) change(f func(*weftWeftConn)) (n int) {
	x.t.Helper()
	m, err := x.driver.policy.conns.open()
	if err != nil || m == nil {
		x.t.Fatal(m, err)
	}
	defer m.Close()
	entries := map[weftWeftPair]weftWeftConn{}
	if err := each(m, func(k weftWeftPair, v weftWeftConn) error { entries[k] = v; return nil }); err != nil {
		x.t.Fatal(err)
	}
	for k, v := range entries {
		f(&v)
		if err := m.Update(k, v, ebpf.UpdateExist); err != nil {
			x.t.Fatal(err)
		}
	}
	return len(entries)
}

func (x *exchange) flows(want int) {
	x.t.Helper()
	if got := x.change(func(*weftWeftConn) {}); got != want {
		x.t.Errorf("%d flows are known, want %d", got, want)
	}
	if got, err := x.driver.Conns(); err != nil || got != want {
		x.t.Errorf("Conns: %d, %v, want %d", got, err, want)
	}
}

// TestConnReplies: what answers an allowed packet passes, and nothing else does.
func TestConnReplies(t *testing.T) {
	exchanges(t, func(_ *testing.T, x *exchange) {
		x.out("a reply to nothing", x.goes(protoUDP, datagram(80, 5000)), "drop_policy")
		x.in("a request", x.comes(protoUDP, datagram(5000, 80)), "pass")
		x.out("its reply", x.goes(protoUDP, datagram(80, 5000)), "pass")
		x.out("from another port", x.goes(protoUDP, datagram(81, 5000)), "drop_policy")
		x.out("to another port", x.goes(protoUDP, datagram(80, 5001)), "drop_policy")
		x.out("of another protocol", x.goes(protoTCP, segment(80, 5000, syn)), "drop_policy")
		x.flows(1)
		x.in("a request that is not allowed", x.comes(protoUDP, datagram(5000, 81)), "drop_policy")
		x.flows(1) // a denied packet makes no entry
		x.in("an answer to nothing", x.comes(protoUDP, datagram(53, 6000)), "drop_policy")
		x.out("a question", x.goes(protoUDP, datagram(6000, 53)), "pass")
		x.in("its answer", x.comes(protoUDP, datagram(53, 6000)), "pass")

		request, ping := x.echo(false, 7)
		_, pong := x.echo(true, 7)
		_, other := x.echo(true, 8)
		x.out("an echo reply to nothing", x.goes(request, pong), "drop_policy")
		x.out("a ping that is not allowed", x.goes(request, ping), "drop_policy")
		x.in("a ping", x.comes(request, ping), "pass")
		x.out("its reply", x.goes(request, pong), "pass")
		x.out("a reply to another one", x.goes(request, other), "drop_policy")
		x.out("a ping with the same number", x.goes(request, ping), "drop_policy")
		x.in("the ping again", x.comes(request, ping), "pass")
	})
}

// TestConnTCP: who opens a connection is who sends the SYN; of one whose SYN was not seen nobody knows, so that either may have been.
func TestConnTCP(t *testing.T) {
	exchanges(t, func(_ *testing.T, x *exchange) {
		x.out("a connection", x.goes(protoTCP, segment(80, 5000, syn)), "drop_policy")
		x.in("a connection to a closed port", x.comes(protoTCP, segment(5000, 81, syn)), "drop_policy")
		x.in("a segment to a closed port", x.comes(protoTCP, segment(5000, 81, ack)), "drop_policy")
		x.in("a connection", x.comes(protoTCP, segment(5000, 80, syn)), "pass")
		x.out("its second segment", x.goes(protoTCP, segment(80, 5000, syn|ack)), "pass")
		x.out("a connection between the same ports", x.goes(protoTCP, segment(80, 5000, syn)), "drop_policy")
		x.out("a segment after that", x.goes(protoTCP, segment(80, 5000, ack)), "pass")
		x.flushConns()
		x.out("a forgotten connection, the other way", x.goes(protoTCP, segment(80, 5000, ack)), "pass")
		x.in("and this way", x.comes(protoTCP, segment(5000, 80, ack)), "pass")
		x.out("a forgotten connection, its end", x.goes(protoTCP, segment(80, 5001, rst)), "pass")
		x.flows(1) // which is not worth an entry
		x.flushConns()
		x.in("a forgotten connection, this way", x.comes(protoTCP, segment(5000, 80, ack)), "pass")
		x.out("and the other way", x.goes(protoTCP, segment(80, 5000, ack)), "pass")
		x.out("a forgotten connection to a closed port", x.goes(protoTCP, segment(81, 5000, ack)), "drop_policy")
	})
}

// TestConnAge: how long after its last packet a flow is known. What a reply needs is the flow; requests make it anew.
func TestConnAge(t *testing.T) {
	exchanges(t, func(_ *testing.T, x *exchange) {
		ping, request := x.echo(false, 7)
		_, pong := x.echo(true, 7)
		for _, c := range []struct {
			name           string
			request, reply frame
			seconds        int
		}{
			{"UDP", x.comes(protoUDP, datagram(5000, 80)), x.goes(protoUDP, datagram(80, 5000)), 60},
			{"ping", x.comes(ping, request), x.goes(ping, pong), 30},
		} {
			x.flushConns()
			x.in(c.name, c.request, "pass")
			x.age(c.seconds - 3)
			x.out(c.name+", nearly too late", c.reply, "pass")
			x.age(c.seconds - 3)
			x.out(c.name+", nearly too late after that", c.reply, "pass")
			x.age(c.seconds + 3)
			x.out(c.name+", too late", c.reply, "drop_policy")
		}
		// A TCP segment is not asked for its flow alone: with a SYN from the other side it can be seen whether that is known.
		tcpKnown := func(what string, want bool) {
			x.t.Helper()
			before, err := x.driver.RuleHits()
			if err != nil {
				x.t.Fatal(err)
			}
			x.out(what, x.goes(protoTCP, segment(80, 5000, ack)), "pass")
			after, _ := x.driver.RuleHits()
			if asked := after[named("in/ports")].Packets > before[named("in/ports")].Packets; asked == want {
				x.t.Errorf("%s: the rules were asked: %v", what, asked)
			}
		}
		x.flushConns()
		x.in("TCP", x.comes(protoTCP, segment(5000, 80, syn)), "pass")
		x.age(7190)
		tcpKnown("TCP, nearly too late", true)
		x.age(7210)
		tcpKnown("TCP, too late", false)
		x.in("TCP, closing", x.comes(protoTCP, segment(5000, 80, fin)), "pass")
		x.age(7)
		tcpKnown("closing, nearly too late", true)
		x.age(13)
		tcpKnown("closing, too late", false)
		tcpKnown("known again", true)
		x.in("closing again", x.comes(protoTCP, segment(5000, 80, rst|ack)), "pass")
		x.in("opened again", x.comes(protoTCP, segment(5000, 80, syn)), "pass")
		x.age(100)
		tcpKnown("as if it had never been closed", true)
	})
}

// TestConnChange: a change of rules, of members or of an address's identity reaches live flows with their next packet, unless
// connections are kept.
func TestConnChange(t *testing.T) {
	exchanges(t, func(_ *testing.T, x *exchange) {
		in := x.rows[(&plan.PolicySet{ID: named("in")}).Key()].(*plan.PolicySet)
		out := x.rows[(&plan.PolicySet{ID: named("out")}).Key()].(*plan.PolicySet)
		friends := x.rows[peers("friends").Key()]
		addr := &plan.Address{Prefix: netset.Host(x.far), Identity: named("far")}
		stranger := &plan.Address{Prefix: addr.Prefix, Identity: named("stranger")}
		changes := []struct {
			name     string
			do, undo func()
		}{
			{
				"other rules", func() { x.guard(x.pod, set("none", plan.Ingress), out) },
				func() { x.guard(x.pod, in, out) },
			},
			{
				"rules under the same name", func() { x.want(set("in", plan.Ingress)) },
				func() { x.want(in) },
			},
			{"a member less", func() { x.want(peers("friends", x.client.name())) }, func() { x.want(friends) }},
			{"another identity", func() { x.want(stranger) }, func() { x.want(addr) }},
			{"the world's identity", func() { x.remove(addr.Key()) }, func() { x.want(addr) }},
		}
		for _, keep := range []bool{false, true} {
			x.policedAs(keep)
			for _, c := range changes {
				x.flushConns()
				x.in(c.name+": before", x.comes(protoUDP, datagram(5000, 80)), "pass")
				x.out(c.name+": before", x.goes(protoUDP, datagram(80, 5000)), "pass")
				c.do()
				x.apply()
				want := "drop_policy"
				if keep {
					want = "pass"
				}
				x.out(fmt.Sprintf("%s: the reply, keep %v", c.name, keep), x.goes(protoUDP, datagram(80, 5000)), want)
				x.in(fmt.Sprintf("%s: the request, keep %v", c.name, keep), x.comes(protoUDP, datagram(5000, 80)), want)
				x.in(c.name+": a new one", x.comes(protoUDP, datagram(5001, 80)), "drop_policy")
				c.undo()
				x.apply()
				x.in(c.name+": as before", x.comes(protoUDP, datagram(5000, 80)), "pass")
				x.out(c.name+": as before", x.goes(protoUDP, datagram(80, 5000)), "pass")
			}
		}
		x.policedAs(false)
		// What concerns nobody whom the rules tell apart does not ask again.
		x.in("UDP", x.comes(protoUDP, datagram(5000, 80)), "pass")
		before, _ := x.driver.RuleHits()
		x.want(&plan.Identity{ID: named("newcomer")}, peers("friends", "far", "newcomer", x.client.name()), &plan.Address{Prefix: netip.MustParsePrefix("203.0.113.9/32"), Identity: named("stranger")})
		x.apply()
		x.in("UDP", x.comes(protoUDP, datagram(5000, 80)), "pass")
		if after, _ := x.driver.RuleHits(); after[named("in/ports")].Packets != before[named("in/ports")].Packets {
			x.t.Error("a new member with no address made flows be asked about again")
		}
		x.want(friends)
		x.apply()
	})
}

// policedAs applies the settings with or without keeping connections.
func (n *node) policedAs(keep bool) {
	n.t.Helper()
	s := *n.rows[(&plan.Settings{}).Key()].(*plan.Settings)
	s.Keep = keep
	n.want(&s)
	n.apply()
}

// TestConnInterface: an address that another pod has now does not inherit flows.
func TestConnInterface(t *testing.T) {
	exchanges(t, func(_ *testing.T, x *exchange) {
		x.policedAs(true) // which would keep it
		x.in("before", x.comes(protoUDP, datagram(5000, 80)), "pass")
		x.out("before", x.goes(protoUDP, datagram(80, 5000)), "pass")
		x.change(func(c *weftWeftConn) { // as if it had been another interface
			for i := range c.Ifindex {
				if c.Ifindex[i] != 0 {
					c.Ifindex[i]++
				}
			}
		})
		x.out("after", x.goes(protoUDP, datagram(80, 5000)), "drop_policy")
		x.policedAs(false)
	})
}

// quote is an ICMP error about a packet.
func quote(f netset.Family, about frame) (proto byte, payload []byte) {
	h := []byte{3, 1, 0, 0, 0, 0, 0, 0}
	proto = protoICMP
	if f == netset.V6 {
		h[0], proto = 1, protoICMPv6
	}
	body := about.packet()
	return proto, append(h, body[:min(len(body), 48)]...)
}

// TestConnErrors: an ICMP error passes if it quotes a packet of a known flow that its receiver sent.
func TestConnErrors(t *testing.T) {
	exchanges(t, func(_ *testing.T, x *exchange) {
		icmp := func(about frame) (byte, []byte) { return quote(x.f, about) }
		question, answer := x.goes(protoUDP, datagram(6000, 53)), x.comes(protoUDP, datagram(53, 6000))
		router := netset.Nth(netset.Default(x.f), 0x08080808)
		x.in("about nothing", x.comes(icmp(question)), "drop_policy")
		x.out("a question", question, "pass")
		x.in("about the question", x.comes(icmp(question)), "pass")
		fromRouter := x.comes(icmp(question))
		fromRouter.src = router
		// From outside of the cluster it passes the stack.
		if got := x.outcome(x.driver.objs.ToPod, x.pod.hostIf, fromRouter, func(s *skb) { s.IngressIfindex = 1 }); got != "pass" {
			x.t.Errorf("from a router on the way: %s", got)
		}
		x.in("about what another one sent", x.comes(icmp(answer)), "drop_policy")
		x.in("about another question", x.comes(icmp(x.goes(protoUDP, datagram(6001, 53)))), "drop_policy")
		x.out("about the answer", x.goes(icmp(answer)), "pass")
		x.in("a connection", x.comes(protoTCP, segment(5000, 80, syn)), "pass")
		x.out("about the connection", x.goes(icmp(x.comes(protoTCP, segment(5000, 80, ack)))), "pass")
		ping, request := x.echo(false, 9)
		x.in("a ping", x.comes(ping, request), "pass")
		x.out("about the ping", x.goes(icmp(x.comes(ping, request))), "pass")
		x.age(8000)
		x.in("about an old question", x.comes(icmp(question)), "drop_policy")
		short := x.comes(icmp(question))
		short.payload = short.payload[:20]
		x.in("with half a quotation", short, "drop_policy")
	})
}

// TestConnFragments: the first part of a datagram tells the ports of the others; without it they are dropped.
func TestConnFragments(t *testing.T) {
	exchanges(t, func(_ *testing.T, x *exchange) {
		part := func(f frame, fragment uint16, payload []byte) frame {
			f.fragment, f.payload = fragment, payload
			return f
		}
		rest := []byte("the rest of a datagram, in which nobody finds ports")
		in := x.comes(protoUDP, nil)
		x.in("a later part", part(in, 10, rest), "drop_fragment")
		x.in("the first part", part(in, 0x2000, datagram(5000, 80)), "pass")
		x.in("a middle part", part(in, 0x2000|10, rest), "pass")
		x.in("the last part", part(in, 20, rest), "pass")
		x.out("the first part of the reply", part(x.goes(protoUDP, nil), 0x2000, datagram(80, 5000)), "pass")
		x.out("a later part of it", part(x.goes(protoUDP, nil), 10, rest), "pass")
		x.in("the first part to a closed port", part(in, 0x2000, datagram(5000, 81)), "drop_policy")
		x.in("a later part of it", part(in, 10, rest), "drop_policy")
		ping, request := x.echo(false, 11)
		x.in("the first part of a ping", part(x.comes(ping, nil), 0x2000, request), "pass")
		x.in("a later part of it", part(x.comes(ping, nil), 10, rest), "pass")
		x.in("half a header", part(in, 0x2000, []byte{1, 2}), "drop_not_ip")
	})
}

// TestConnShort: a packet without the header that it announces is dropped as what it is.
func TestConnShort(t *testing.T) {
	exchanges(t, func(_ *testing.T, x *exchange) {
		for proto, size := range map[byte]int{protoTCP: 13, protoUDP: 7, protoICMP: 7, protoICMPv6: 7} {
			x.out(fmt.Sprintf("protocol %d", proto), x.goes(proto, make([]byte, size)), "drop_not_ip")
		}
		x.out("a protocol without ports", x.goes(47, []byte{1}), "drop_policy")
	})
}

// TestConnNeighbour: neighbour discovery is never asked about, and nothing that only looks like it passes.
func TestConnNeighbour(t *testing.T) {
	exchanges(t, func(_ *testing.T, x *exchange) {
		if x.f == netset.V4 {
			return
		}
		nd := x.goes(protoICMPv6, append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 24)...))
		x.out("forwarded", nd, "drop_policy")
		nd.ttl = 255
		x.out("solicitation", nd, "pass")
		nd.payload[0] = 143
		x.out("multicast listener report", nd, "drop_policy")
	})
}
