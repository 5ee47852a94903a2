package ebpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
)

// Which program asks about what, with real packets where one program is not all of it.

// TestPolicyBetweenNodes: the sender's egress is asked on its node, the receiver's ingress on the other one, on each way.
func TestPolicyBetweenNodes(t *testing.T) {
	for _, way := range []string{"tunnel", "direct"} {
		for name, opts := range modes() {
			t.Run(way+"/"+name, func(t *testing.T) {
				a, b := network(t, 1500, opts...)
				p, q, r := a.addPod(1450), b.addPod(1450), a.addPod(1450)
				if way == "tunnel" {
					a.overlay(1450)
					b.overlay(1450)
				}
				a.reach(b, netset.V4, way == "tunnel", 1450)
				b.reach(a, netset.V4, way == "tunnel", 1450)
				all := []*pod{p, q, r}
				for _, n := range []*node{a, b} {
					n.policed()
					for _, x := range all {
						n.know(x)
					}
				}
				hello(t, p)
				hello(t, q)
				hello(t, r)
				b.want(peers("friends", p.name()))
				b.guard(q, set("q", plan.Ingress, rule("q/p", model.VerdictAllow, "friends")), nil)
				a.apply()
				b.apply()
				for _, f := range netset.Families() {
					reaches(t, p, q, f, 80, true)
					reaches(t, r, q, f, 80, false)
					reaches(t, q, r, f, 80, true)
				}
				transfer(t, p, q, netset.V4, 8<<20)
				echoes(t, p, q, netset.V4, 8000, 5) // fragments
				segments(t, p, q, netset.V4, 1000)  // UDP superpackets, which pass the device
				segments(t, p, q, netset.V6, 1000)
				echoes(t, p, q, netset.V6, 8000, 5)
				ping(t, p, q, netset.V6, 56)
				b.counted(t, "drop_policy", 2)
				// And now p may go nowhere.
				a.guard(p, nil, set("p", plan.Egress))
				a.apply()
				for _, f := range netset.Families() {
					reaches(t, p, q, f, 80, false)
					reaches(t, q, p, f, 80, true)
				}
				a.counted(t, "drop_policy", 2)
			})
		}
	}
}

// TestPolicyPrograms: each program on its own.
func TestPolicyPrograms(t *testing.T) {
	exchanges(t, func(t *testing.T, x *exchange) {
		o := x.driver.objs
		request, refused := x.comes(protoUDP, datagram(5000, 80)), x.comes(protoUDP, datagram(5000, 81))
		inner := func(f frame) frame {
			f.srcMAC, f.dstMAC = model.GatewayMAC, model.GatewayMAC
			return frame{
				dstMAC: x.mac(uplink), src: netip.MustParseAddr("192.168.7.2"), dst: x.node.addr(netset.V4), proto: protoUDP,
				payload: udp(40000, vxlanPort, vxlan(1, f.bytes())),
			}
		}
		expect := func(what, got, want string) {
			t.Helper()
			if got != want {
				t.Errorf("%s: %s, want %s", what, got, want)
			}
		}
		if x.f == netset.V4 || popsOther(t) {
			expect("from_net, tunnelled", x.outcome(o.FromNet, uplink, inner(request)), "pass")
			expect("from_net, tunnelled and denied", x.outcome(o.FromNet, uplink, inner(refused)), "drop_policy")
		}
		forwarded := func(s *skb) { s.IngressIfindex = 7 }
		expect("to_pod", x.outcome(o.ToPod, x.pod.hostIf, request, forwarded), "pass")
		expect("to_pod, denied", x.outcome(o.ToPod, x.pod.hostIf, refused, forwarded), "drop_policy")
		expect("to_pod, the node's own", x.outcome(o.ToPod, x.pod.hostIf, refused), "pass")
		out, away := x.goes(protoUDP, datagram(6000, 53)), x.goes(protoUDP, datagram(6000, 54))
		expect("to_net", x.outcome(o.ToNet, uplink, out), "pass")
		expect("to_net, denied", x.outcome(o.ToNet, uplink, away), "drop_policy")
		expect("to_overlay", x.outcome(o.ToOverlay, overlayDev, out), "pass")
		expect("to_overlay, denied", x.outcome(o.ToOverlay, overlayDev, away), "drop_policy")
		// What is marked must not leave the stack, if nobody stopped it.
		reject, undecided := func(s *skb) { s.Mark = 0x1010 | 0x4000 }, func(s *skb) { s.Mark = 0x1000 | 0x4000 }
		masqueraded := out
		masqueraded.src = x.node.addr(x.f)
		for _, c := range []struct {
			name, to string
			in       frame
			set      func(*skb)
			want     string
		}{
			{"rejected", "net", out, reject, "drop, not counted"}, // it was counted when it was rejected
			{"rejected", "overlay", out, reject, "drop, not counted"},
			{"undecided", "net", out, undecided, "undecided"}, // and decided here, allowed
			{"undecided, denied", "net", away, undecided, "undecided"},
			{"undecided, masqueraded", "net", masqueraded, undecided, "undecided"},
			{"another mark, masqueraded", "net", masqueraded, func(s *skb) { s.Mark = 0x4000 | 0x10 }, "pass"},
		} {
			prog, dev := o.ToNet, uplink
			if c.to == "overlay" {
				prog, dev = o.ToOverlay, overlayDev
			}
			before := x.driver.Stats()
			verdict, _, _ := x.runMarked(prog, dev, c.in.bytes(), c.set)
			after := x.driver.Stats()
			got := "pass"
			if verdict == verdictDrop {
				got = "drop, not counted"
				for _, name := range []string{"drop_policy", "drop_undecided"} {
					if after[name] > before[name] {
						got = name
					}
				}
			}
			want := c.want
			if want == "undecided" {
				want = map[string]string{"undecided": "pass", "undecided, denied": "drop_policy", "undecided, masqueraded": "drop_undecided"}[c.name]
			}
			expect(c.name+" to "+c.to, got, want)
		}
	})
}

// TestPolicyHosts: what the node sends to its own pods is not asked about, but for rules that name nodes on purpose; the pod's
// replies pass, and stay allowed when rules change.
func TestPolicyHosts(t *testing.T) {
	n, _ := network(t, 1500)
	p := n.addPod(1500)
	hello(t, p)
	n.policed()
	n.want(&plan.Identity{ID: named("node"), Text: "node"}, peers("nodes", "node"))
	for _, a := range n.addrs {
		n.want(&plan.Address{Prefix: netset.Host(a), Identity: named("node")})
	}
	try := func(what string, want bool) {
		t.Helper()
		for _, f := range netset.Families() {
			limit := patience
			if !want {
				limit = 150 * time.Millisecond
			}
			if err := ask(t, n, netip.AddrPortFrom(p.addr(f), 80), limit); (err == nil) != want {
				t.Errorf("%s: %s: %v, want it to pass: %v\n%s", what, f, err, want, n.dump())
			}
		}
	}
	n.guard(p, set("closed", plan.Ingress), set("silent", plan.Egress))
	n.apply()
	try("nothing is allowed", true)
	talkUDP := func() {
		for _, f := range netset.Families() {
			echoes(t, n, p, f, 64, 3)
		}
	}
	talkUDP()
	deny := rule("nodes/80", model.VerdictDeny, "nodes", port(protoTCP, 80))
	deny.Hosts = true
	n.guard(p, set("closed to nodes", plan.Ingress, deny), set("silent", plan.Egress))
	n.apply()
	try("a rule denies nodes", false)
	talkUDP()
	allow := rule("nodes/any", model.VerdictAllow, "nodes")
	allow.Hosts = true
	n.guard(p, set("open to nodes", plan.Ingress, allow, deny), set("silent", plan.Egress))
	n.apply()
	try("a rule before it allows them", true)
	// The pod's reply after a change of rules: who opened the flow is known, and that it was the node.
	x := &exchange{node: n, t: t}
	for _, f := range netset.Families() {
		o := n.driver.objs
		in := frame{srcMAC: model.GatewayMAC, dstMAC: p.mac, src: n.addr(f), dst: p.addr(f), proto: protoUDP, payload: datagram(4000, 90)}
		out := frame{srcMAC: p.mac, dstMAC: model.GatewayMAC, src: p.addr(f), dst: n.addr(f), proto: protoUDP, payload: datagram(90, 4000)}
		if got := x.outcome(o.ToPod, p.hostIf, in); got != "pass" {
			t.Errorf("%s: the node's: %s", f, got)
		}
		n.guard(p, set("closed again", plan.Ingress), set("silent", plan.Egress))
		n.apply()
		if got := x.outcome(o.FromPod, p.hostIf, out); got != "pass" {
			t.Errorf("%s: the reply to the node after a change: %s", f, got)
		}
		n.guard(p, set("open to nodes", plan.Ingress, allow, deny), set("silent", plan.Egress))
		n.apply()
	}
}

// TestPolicyClosed: a pod without a guard is closed, and one whose rules cannot be put into the kernel; both say so.
func TestPolicyClosed(t *testing.T) {
	exchanges(t, func(t *testing.T, x *exchange) {
		request, out := x.comes(protoUDP, datagram(5000, 80)), x.goes(protoUDP, datagram(6000, 53))
		x.in("before", request, "pass")
		good := x.rows[(&plan.Guard{Dev: x.pod.hostIf}).Key()].(*plan.Guard)
		// A guard whose set nobody knows.
		bad := *good
		bad.Ingress = named("unknown")
		x.want(&bad)
		within(t, x.ns, func() error {
			err := x.driver.Apply(t.Context(), x.rows, plan.Changes{Upsert: []plan.Row{&bad}})[bad.Key()]
			if err == nil || !strings.Contains(err.Error(), x.pod.hostIf) || !strings.Contains(err.Error(), named("unknown").String()) {
				return fmt.Errorf("a guard whose set nobody knows: %w", err)
			}
			return nil
		})
		x.in("the set is not known", request, "drop_closed")
		x.out("but the other one is", out, "pass")
		// A set whose peers nobody knows.
		odd := set("odd", plan.Ingress, rule("odd/1", model.VerdictAllow, "nobody"))
		bad.Ingress = odd.ID
		x.want(&bad, odd)
		within(t, x.ns, func() error {
			res := x.driver.Apply(t.Context(), x.rows, plan.Changes{Upsert: []plan.Row{odd, &bad}})
			for _, k := range []plan.Key{odd.Key(), bad.Key()} {
				if err := res[k]; err == nil || !strings.Contains(err.Error(), named("nobody").String()) {
					return fmt.Errorf("%s: %w", k, err)
				}
			}
			return nil
		})
		x.in("the peers are not known", request, "drop_closed")
		delete(x.rows, odd.Key())
		// No guard at all.
		x.want(good)
		x.apply()
		x.in("as before", request, "pass")
		x.remove(good.Key())
		x.in("without a guard", request, "drop_closed")
		x.out("without a guard", out, "drop_closed")
		if got := x.outcome(x.driver.objs.ToPod, x.pod.hostIf, request); got != "drop_closed" {
			t.Errorf("the node's own, without a guard: %s", got)
		}
		// A set that goes while a guard has it.
		x.want(good)
		x.apply()
		in := x.rows[(&plan.PolicySet{ID: good.Ingress}).Key()]
		x.remove(in.Key())
		x.in("its set is gone", request, "drop_closed")
		x.want(in)
		x.apply()
		x.in("as before", request, "pass")
	})
}

// answers makes the chains that datapath/nft has for what is rejected.
func (n *node) answers() {
	n.t.Helper()
	n.ns.Run(n.t, "nft", strings.Join([]string{
		"add table inet weft-nat", "add chain inet weft-nat refuse",
		"add rule inet weft-nat refuse meta l4proto tcp reject with tcp reset",
		"add rule inet weft-nat refuse reject with icmpx admin-prohibited",
		"add chain inet weft-nat forward { type filter hook forward priority -10; }",
		"add rule inet weft-nat forward meta mark & 0x1030 == 0x1010 jump refuse",
		"add chain inet weft-nat input { type filter hook input priority -10; }",
		"add rule inet weft-nat input meta mark & 0x1030 == 0x1010 jump refuse",
		"add rule inet weft-nat input meta mark & 0x1030 == 0x1030 jump refuse",
		"add rule inet weft-nat input meta mark & 0x1030 == 0x1020 counter drop",
		"add rule inet weft-nat input meta mark & 0x1030 == 0x1000 meta l4proto != { tcp, udp } counter drop",
	}, ";"))
}

// TestPolicyReject: who is rejected is told at once, whatever the way.
func TestPolicyReject(t *testing.T) {
	for _, tunnel := range []bool{true, false} {
		t.Run(map[bool]string{true: "tunnel", false: "direct"}[tunnel], func(t *testing.T) {
			a, b := network(t, 1500)
			p, q, r := a.addPod(1450), b.addPod(1450), a.addPod(1450)
			if tunnel {
				a.overlay(1450)
				b.overlay(1450)
			}
			a.reach(b, netset.V4, tunnel, 1450)
			b.reach(a, netset.V4, tunnel, 1450)
			loud := func(name string, d plan.Direction) *plan.PolicySet {
				return set(name, d, rule(name+"/reject", model.VerdictReject, ""))
			}
			for _, n := range []*node{a, b} {
				n.answers()
				n.policed()
			}
			b.guard(q, loud("q", plan.Ingress), nil)
			a.guard(p, nil, loud("p", plan.Egress))
			a.apply()
			b.apply()
			for _, f := range netset.Families() {
				for _, c := range []struct {
					name     string
					from, to place
				}{
					{"the receiver's node", r, q}, {"the sender's node", p, q}, {"on one node", p, r}, {"to the node itself", p, a},
				} {
					began := time.Now()
					err := ask(t, c.from, netip.AddrPortFrom(c.to.addr(f), 80), patience)
					if took := time.Since(began); !errors.Is(err, unix.ECONNREFUSED) || took > patience/2 {
						t.Errorf("%s: %s: TCP: %v after %s, want to be refused\n%s\n%s", f, c.name, err, took, a.dump(), b.dump())
					}
					if err := udpRefused(t, c.from, c.to, f); !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.EACCES) {
						t.Errorf("%s: %s: UDP: %v, want to be told", f, c.name, err)
					}
				}
			}
			a.counted(t, "reject", 4)
			b.counted(t, "reject", 2)
			a.never(t, "drop_policy")
			b.never(t, "drop_policy")
		})
	}
}

// udpRefused sends a datagram and returns the error that comes back.
func udpRefused(t *testing.T, from, to place, f netset.Family) error {
	t.Helper()
	c, err := dial(t, from, to, "udp", netip.AddrPortFrom(to.addr(f), 9))
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte("?")); err != nil {
		return err
	}
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	_, err = c.Read(make([]byte, 1))
	return err
}

// TestPolicyShaped: what is redirected through a pod's queue passes to_pod, where it is not asked about again; what the stack
// delivers there is.
func TestPolicyShaped(t *testing.T) {
	for name, opts := range modes() {
		t.Run(name, func(t *testing.T) {
			n, _ := network(t, 1500, opts...)
			p, q, r := n.addPod(1500), n.addPod(1500), n.addPod(1500)
			hello(t, q)
			n.ns.Run(t, "tc", "qdisc", "add", "dev", q.hostIf, "root", "handle", "1:", "tbf", "rate", "1gbit", "burst", "128k", "latency", "50ms")
			n.policed()
			row := q.row()
			row.Shaped = true
			n.want(row, peers("friends", p.name()))
			n.guard(q, set("q", plan.Ingress, rule("q/p", model.VerdictAllow, "friends")), nil)
			n.apply()
			for _, f := range netset.Families() {
				reaches(t, p, q, f, 80, true)
				reaches(t, r, q, f, 80, false)
				before, _ := n.driver.RuleHits()
				echoes(t, p, q, f, 64, 10)
				after, _ := n.driver.RuleHits()
				if hits := after[named("q/p")].Packets - before[named("q/p")].Packets; hits != 1 {
					t.Errorf("%s: the rule was asked %d times for one flow", f, hits)
				}
			}
			if n.driver.Stats()["drop_policy"] == 0 {
				t.Error("nothing was denied")
			}
		})
	}
}

// TestPolicyService: a pod's packet to a service is decided where it has been translated: by the backend's address and port.
func TestPolicyService(t *testing.T) {
	for _, tunnel := range []bool{true, false} {
		t.Run(map[bool]string{false: "direct", true: "tunnel"}[tunnel], func(t *testing.T) {
			a, b := network(t, 1500)
			client, near, far := a.addPod(1450), a.addPod(1450), b.addPod(1450)
			if tunnel {
				a.overlay(1450)
				b.overlay(1450)
			}
			a.reach(b, netset.V4, tunnel, 1450)
			b.reach(a, netset.V4, tunnel, 1450)
			hello(t, near)
			hello(t, far)
			services := []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd96::1")}
			for _, n := range []*node{a, b} {
				n.policed(func(s *plan.Settings) { s.Tracked = true })
				for _, p := range []*pod{client, near, far} {
					n.know(p)
				}
			}
			for _, s := range services {
				a.translate(s, 1000, near)
				a.translate(s, 1001, far)
				a.want(&plan.VIP{Addr: s})
			}
			try := func(when string, nearOK, farOK bool) {
				t.Helper()
				a.apply()
				b.apply()
				within(t, a.ns, func() error { return flush(a, b) })
				for i := range services {
					for port, want := range map[uint16]bool{1000: nearOK, 1001: farOK} {
						limit := patience
						if !want {
							limit = 150 * time.Millisecond
						}
						if err := ask(t, client, netip.AddrPortFrom(services[i], port), limit); (err == nil) != want {
							t.Errorf("%s: %s port %d: %v, want it to pass: %v\n%s\n%s", when, services[i], port, err, want, a.dump(), b.dump())
						}
					}
				}
			}
			try("no policy", true, true)
			a.want(peers("backends", near.name()), peers("clients", client.name()))
			b.want(peers("clients", client.name()))
			a.guard(client, nil, set("client", plan.Egress, rule("client/near", model.VerdictAllow, "backends", port(protoTCP, 80))))
			try("egress to the near one", true, false)
			a.want(peers("backends", far.name()))
			try("egress to the far one", false, true)
			a.want(peers("backends", near.name(), far.name()))
			a.guard(client, set("client/in", plan.Ingress), set("client", plan.Egress, rule("client/near", model.VerdictAllow, "backends", port(protoTCP, 80))))
			try("nobody may connect to the client", true, true)
			a.guard(near, set("near", plan.Ingress, rule("near/client", model.VerdictAllow, "clients")), set("near/out", plan.Egress))
			b.guard(far, set("far", plan.Ingress, rule("far/client", model.VerdictAllow, "clients")), set("far/out", plan.Egress))
			try("the backends let the client in", true, true)
			a.want(peers("clients"))
			try("the near one does not any more", false, true)
			b.want(peers("clients"))
			try("nor the far one", false, false)
			a.never(t, "drop_undecided")
			// Masqueraded: it cannot be seen any more whose it is.
			a.want(peers("clients", client.name()))
			b.want(peers("clients", client.name()))
			for i, word := range []string{"ip", "ip6"} {
				a.ns.Run(t, "nft", fmt.Sprintf("add table %[1]s m; add chain %[1]s m post { type nat hook postrouting priority 100; }; add rule %[1]s m post ct original %[1]s daddr %[2]s masquerade", word, services[i]))
			}
			try("masqueraded", false, false)
			a.counted(t, "drop_undecided", 4)
		})
	}
}

// helloNode answers on a port of a node, as hello does on a pod.
func helloNode(t *testing.T, n *node, port uint16) {
	t.Helper()
	for _, f := range netset.Families() {
		var l net.Listener
		within(t, n.ns, func() (err error) {
			l, err = net.Listen("tcp", netip.AddrPortFrom(n.addr(f), port).String())
			return err
		})
		t.Cleanup(func() { _ = l.Close() })
		go answer(l)
	}
}

// TestPolicyNode: policy of the node itself: what its own processes receive and send by the underlay. Tunnels, the nodes' own
// measurements, and what is translated to pods are not its own.
func TestPolicyNode(t *testing.T) {
	for _, tunnel := range []bool{true, false} {
		t.Run(map[bool]string{true: "tunnel", false: "direct"}[tunnel], func(t *testing.T) {
			a, b := network(t, 1500)
			p, q := a.addPod(1450), b.addPod(1450)
			if tunnel {
				a.overlay(1450)
				b.overlay(1450)
			}
			a.reach(b, netset.V4, tunnel, 1450)
			b.reach(a, netset.V4, tunnel, 1450)
			hello(t, p)
			hello(t, q)
			const open, shut, probe, hostPort = 8080, 8081, 8473, 8082
			helloNode(t, b, open)
			helloNode(t, b, shut)
			helloNode(t, a, open)
			for i, n := range []*node{a, b} {
				n.answers()
				n.policed(func(s *plan.Settings) { s.Tracked, s.Probe = true, probe })
				for j, m := range []*node{a, b} {
					for _, addr := range m.addrs {
						n.want(&plan.Identity{ID: named(fmt.Sprint("node", j))}, &plan.Address{Prefix: netset.Host(addr), Identity: named(fmt.Sprint("node", j))})
					}
				}
				n.want(peers("peer", fmt.Sprint("node", 1-i)))
			}
			for i := range b.addrs {
				b.translate(b.addrs[i], hostPort, q)
			}
			in := set("node/in", plan.Ingress, rule("node/open", model.VerdictAllow, "peer", port(protoTCP, open)))
			b.want(in, &plan.Guard{Identity: named("node1"), Ingress: in.ID})
			a.apply()
			b.apply()
			try := func(what string, from place, to netip.AddrPort, want bool) {
				t.Helper()
				limit := patience
				if !want {
					limit = 150 * time.Millisecond
				}
				if err := ask(t, from, to, limit); (err == nil) != want {
					t.Errorf("%s: %v, want it to pass: %v\n%s\n%s", what, err, want, a.dump(), b.dump())
				}
			}
			each := func(openOK, shutOK, outOK bool) {
				t.Helper()
				for _, f := range netset.Families() {
					at := func(n place, port uint16) netip.AddrPort { return netip.AddrPortFrom(n.addr(f), port) }
					try("to an open port", a, at(b, open), openOK)
					try("to a closed port", a, at(b, shut), shutOK)
					try("out of the node", b, at(a, open), outOK)
					try("pod to pod", p, at(q, 80), true)
					try("pod to pod, back", q, at(p, 80), true)
					try("to a port that leads to a pod", a, at(b, hostPort), true)
				}
			}
			each(true, false, true)
			b.counted(t, "deny_node", 2)
			for _, f := range netset.Families() { // a measurement, and the answer to a question of the node's
				if err := udpEchoAt(t, a, b, f, probe); err != nil {
					t.Errorf("%s: a measurement: %v", f, err)
				}
				if err := udpEchoAt(t, b, a, f, 53); err != nil {
					t.Errorf("%s: a question: %v", f, err)
				}
				if err := udpEchoAt(t, a, b, f, 54); err == nil {
					t.Errorf("%s: a datagram to a closed port was answered", f)
				}
			}
			out := set("node/out", plan.Egress, rule("node/out/none", model.VerdictDeny, "peer", port(protoTCP, open)))
			b.want(out, &plan.Guard{Identity: named("node1"), Egress: out.ID})
			b.apply()
			each(true, true, false)
			b.remove((&plan.Guard{}).Key())
			each(true, true, true)
		})
	}
}

// udpEchoAt is udpEcho of one datagram to a port.
func udpEchoAt(t *testing.T, from, to place, f netset.Family, port uint16) error {
	t.Helper()
	var pc net.PacketConn
	within(t, to.netns(), func() (err error) {
		pc, err = net.ListenPacket("udp", netip.AddrPortFrom(to.addr(f), port).String())
		return err
	})
	defer pc.Close()
	go func() {
		buf := make([]byte, 100)
		if n, a, err := pc.ReadFrom(buf); err == nil {
			_, _ = pc.WriteTo(buf[:n], a)
		}
	}()
	c, err := dial(t, from, to, "udp", netip.AddrPortFrom(to.addr(f), port))
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte("?")); err != nil {
		return err
	}
	_ = c.SetDeadline(time.Now().Add(500 * time.Millisecond))
	_, err = c.Read(make([]byte, 10))
	return err
}

// TestPolicyServiceOfNode: a service whose backend is the node itself (the API server's, on its node) is decided about by the
// node's address and the backend's port, when a socket is looked for. What the node sends and pods answer is not.
func TestPolicyServiceOfNode(t *testing.T) {
	n, _ := network(t, 1500)
	client, free := n.addPod(1500), n.addPod(1500)
	n.answers()
	n.policed(func(s *plan.Settings) { s.Tracked = true })
	n.want(&plan.Identity{ID: named("node")}, peers("node", "node"))
	services := []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd96::1")}
	const port6443, other = 6443, 6444
	helloNode(t, n, port6443)
	helloNode(t, n, other)
	for i, s := range services {
		word := []string{"ip", "ip6"}[i]
		for from, to := range map[int]uint16{443: port6443, 444: other} {
			n.ns.Run(t, "nft", fmt.Sprintf("add table %[1]s s%[2]d; add chain %[1]s s%[2]d pre { type nat hook prerouting priority -100; }; "+
				"add rule %[1]s s%[2]d pre %[1]s daddr %[3]s meta l4proto { tcp, udp } th dport %[2]d dnat to %[4]s",
				word, from, s, netip.AddrPortFrom(n.addrs[i], to)))
		}
		n.want(&plan.VIP{Addr: s}, &plan.Address{Prefix: netset.Host(n.addrs[i]), Identity: named("node")})
	}
	try := func(when string, from place, allowed, rest bool) {
		t.Helper()
		n.apply()
		for _, s := range services {
			for port, want := range map[uint16]bool{443: allowed, 444: rest} {
				began := time.Now()
				if err := ask(t, from, netip.AddrPortFrom(s, port), patience); (err == nil) != want {
					t.Errorf("%s: %s port %d: %v, want it to pass: %v\n%s", when, s, port, err, want, n.dump())
				}
				if took := time.Since(began); took > patience/2 {
					t.Errorf("%s: %s port %d: the answer took %s", when, s, port, took)
				}
			}
		}
	}
	try("no policy", client, true, true)
	out := set("client/out", plan.Egress, rule("client/api", model.VerdictAllow, "node", port(protoTCP, port6443)))
	n.guard(client, set("client/in", plan.Ingress), out)
	try("egress to one port of the node", client, true, false)
	try("a pod without policy", free, true, true)
	n.counted(t, "drop_policy", 2)
	n.guard(client, nil, set("client/none", plan.Egress))
	try("no egress", client, false, false)
	// The pod's answer to the node's question, at a socket that is not connected.
	for _, f := range netset.Families() {
		echoes(t, n, client, f, 64, 2)
		asked := frame{srcMAC: model.GatewayMAC, dstMAC: client.mac, src: n.addr(f), dst: client.addr(f), proto: protoUDP, payload: datagram(4000, 90)}
		x := &exchange{node: n, t: t}
		if got := x.outcome(n.driver.objs.ToPod, client.hostIf, asked); got != "pass" {
			t.Errorf("%s: the node's question: %s", f, got)
		}
		var pc net.PacketConn
		within(t, n.ns, func() (err error) {
			pc, err = net.ListenPacket("udp", netip.AddrPortFrom(n.addr(f), 4000).String())
			return err
		})
		within(t, client.ns, func() error {
			c, err := net.DialUDP("udp", &net.UDPAddr{Port: 90}, &net.UDPAddr{IP: n.addr(f).AsSlice(), Port: 4000})
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte("the answer"))
			return err
		})
		_ = pc.SetReadDeadline(time.Now().Add(time.Second))
		if _, _, err := pc.ReadFrom(make([]byte, 100)); err != nil {
			t.Errorf("%s: the answer to the node: %v", f, err)
		}
		_ = pc.Close()
	}
	// A successor goes on with the link; without policy it goes.
	n.restart()
	try("after a restart", free, true, true)
	n.policed(func(s *plan.Settings) { s.Policed = false })
	n.apply()
	if _, err := os.Stat(n.driver.lookupPin()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without policy the link of to_node is there: %v", err)
	}
}
