package nft_test

import (
	"context"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/internal/datapath/linux"
	"weft/internal/datapath/nft"
	"weft/internal/model"
	"weft/internal/plan"
	"weft/internal/testkit"
)

// view is a plan.View over rows.
type view []plan.Row

func (v view) Get(k plan.Key) plan.Row {
	for _, r := range v {
		if r.Key() == k {
			return r
		}
	}
	return nil
}

func (v view) All(kind plan.Kind) iter.Seq[plan.Row] {
	return func(yield func(plan.Row) bool) {
		for _, r := range v {
			if r.Key().Kind == kind && !yield(r) {
				return
			}
		}
	}
}

// node is a host with two pods behind links named as weft's, and the outside. Routes between them are the stack's own.
type node struct {
	testing.TB
	host, out *testkit.Netns
	pods      []*testkit.Netns
	d         *nft.Driver
	plain     bool // as on a kernel without owned tables
}

// modes runs a test with the table owned and not.
func modes(t *testing.T, f func(t *testing.T, n *node)) {
	t.Helper()
	testkit.RequireRoot(t)
	for name, plain := range map[string]bool{"owned": false, "shared": true} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, plain)
			n.needOwner()
			f(t, n)
		})
	}
}

// needOwner skips the test where the table is to be owned and the kernel cannot do that.
func (n *node) needOwner() {
	n.Helper()
	n.apply(masquerade())
	if state := n.d.Features()[0].State; !n.plain && state != "active" {
		n.Skipf("this kernel has no owned tables (%s)", state)
	}
	n.apply()
}

const (
	hostAddr, hostAddrSix = "172.30.0.1", "fd00:172::1"
	outAddr, outAddrSix   = "172.30.0.9", "fd00:172::9"
)

func newNode(tb testing.TB, plain bool) *node {
	tb.Helper()
	n := &node{TB: tb, host: testkit.New(tb), out: testkit.New(tb), plain: plain}
	testkit.Veth(tb, n.host, "eth0", []string{hostAddr + "/24", hostAddrSix + "/64"}, n.out, "eth0", []string{outAddr + "/24", outAddrSix + "/64"})
	for _, s := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		n.host.Sysctl(tb, s, "1")
	}
	for i := range 2 {
		p := testkit.New(tb)
		link := fmt.Sprintf("weft%d", i)
		testkit.Veth(tb, n.host, link, []string{fmt.Sprintf("10.0.%d.1/24", i), fmt.Sprintf("fd00:%d::1/64", i)}, p, "eth0",
			[]string{fmt.Sprintf("10.0.%d.5/24", i), fmt.Sprintf("fd00:%d::5/64", i)})
		p.IP(tb, fmt.Sprintf("route add default via 10.0.%d.1", i))
		p.IP(tb, fmt.Sprintf("-6 route add default via fd00:%d::1", i))
		n.host.Sysctl(tb, "net/ipv4/conf/"+link+"/route_localnet", "1")
		n.pods = append(n.pods, p)
	}
	// The outside knows the way to pods, so that what is not masqueraded arrives with the pod's address.
	n.out.IP(tb, "route add 10.0.0.0/16 via "+hostAddr)
	n.out.IP(tb, "-6 route add fd00:0:0::/32 via "+hostAddrSix)
	n.open()
	tb.Cleanup(func() { _ = n.d.Close() })
	return n
}

// open makes a driver without memory, after the end of the one before.
func (n *node) open() {
	n.Helper()
	if n.d != nil {
		_ = n.d.Close()
	}
	n.host.Do(n.TB, func() {
		var err error
		open := nft.New
		if n.plain {
			open = nft.NewPlain
		}
		if n.d, err = open(slog.New(slog.DiscardHandler), linux.ForgetFlows); err != nil {
			n.Fatal(err)
		}
	})
}

func (n *node) apply(rows ...plan.Row) {
	n.Helper()
	n.host.Do(n.TB, func() {
		for k, err := range n.d.Apply(n.Context(), view(rows), plan.Changes{Upsert: rows}) {
			if err != nil {
				n.Fatalf("%s: %v", k, err)
			}
		}
	})
}

// named writes protocols by name, as nft does where there is an /etc/protocols.
func named(list string) string {
	for number, name := range map[string]string{"6": "tcp", "17": "udp", "132": "sctp"} {
		list = regexp.MustCompile(`([ \t{])`+number+`( \. \d+ :)`).ReplaceAllString(list, "${1}"+name+"${2}")
	}
	return list
}

// serve answers each connection or datagram with the address that it came from, until the test ends.
func (n *node) serve(ns *testkit.Netns, network, at string) {
	n.Helper()
	if network == "sctp" {
		n.serveSCTP(ns, at, func(c net.Conn) {
			fmt.Fprint(c, c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap())
		})
		return
	}
	ns.Do(n.TB, func() {
		if network == "udp" {
			c, err := net.ListenPacket("udp", at)
			if err != nil {
				n.Fatal(err)
			}
			n.Cleanup(func() { c.Close() })
			go func() {
				b := make([]byte, 64)
				for {
					_, from, err := c.ReadFrom(b)
					if err != nil {
						return
					}
					_, _ = c.WriteTo([]byte(from.(*net.UDPAddr).AddrPort().Addr().Unmap().String()), from)
				}
			}()
			return
		}
		l, err := net.Listen("tcp", at)
		if err != nil {
			n.Fatal(err)
		}
		n.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(c, c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap())
				c.Close()
			}
		}()
	})
}

// serveSCTP lets f answer each association with a port on one of the namespace's addresses, until the test ends.
func (n *node) serveSCTP(ns *testkit.Netns, at string, f func(net.Conn)) {
	n.Helper()
	var listeners []net.Listener
	ns.Do(n.TB, func() {
		addrs, err := net.InterfaceAddrs()
		if err != nil {
			n.Fatal(err)
		}
		port := netip.MustParseAddrPort("0.0.0.0" + at).Port()
		for _, a := range addrs {
			p := netip.MustParsePrefix(a.String())
			if !p.Addr().IsGlobalUnicast() {
				continue
			}
			l, err := testkit.ListenSCTP(netip.AddrPortFrom(p.Addr(), port))
			if err != nil {
				n.Fatal(err)
			}
			n.Cleanup(func() { l.Close() })
			listeners = append(listeners, l)
		}
	})
	for _, l := range listeners {
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					f(c)
				}()
			}
		}()
	}
}

// dial connects. A first SYN or INIT may be lost while IPv6 wakes up: there is time for another.
func dial(network, to string) (net.Conn, error) {
	if network == "sctp" {
		return testkit.DialSCTP(0, netip.MustParseAddrPort(to), 4*time.Second)
	}
	return net.DialTimeout(network, to, 4*time.Second)
}

// ask returns what the server says, or the error.
func (n *node) ask(ns *testkit.Netns, network, to string) string {
	n.Helper()
	var c net.Conn
	var err error
	ns.Do(n.TB, func() { c, err = dial(network, to) })
	if err != nil {
		return "error: " + err.Error()
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	if network == "udp" {
		fmt.Fprint(c, "?")
		b := make([]byte, 64)
		k, err := c.Read(b)
		if err != nil {
			return "error: " + err.Error()
		}
		return string(b[:k])
	}
	b, err := io.ReadAll(c)
	if err != nil {
		return "error: " + err.Error()
	}
	return string(b)
}

func (n *node) expect(what string, ns *testkit.Netns, network, to, want string) {
	n.Helper()
	if got := n.ask(ns, network, to); got != want && (want != "error" || !strings.HasPrefix(got, "error")) {
		n.Errorf("%s: %s %s answers %q, want %q\n%s", what, network, to, got, want, n.host.Run(n, "nft", "list", "table", "inet", "weft-nat"))
	}
}

func masquerade(except ...string) *plan.Masquerade {
	m := &plan.Masquerade{By: plan.By{Key: model.ConfigKey()}}
	for _, s := range []string{"10.0.0.0/24", "10.0.1.0/24", "fd00::/48", "fd00:1::/48"} {
		m.Sources = append(m.Sources, netip.MustParsePrefix(s))
	}
	for _, s := range except {
		m.Except = append(m.Except, netip.MustParsePrefix(s))
	}
	return m
}

func hostPort(proto, hostIP string, port uint16, pod string) *plan.HostPort {
	h := &plan.HostPort{By: plan.By{Key: model.EndpointKey("c/eth0")}, Protocol: proto, Port: port, Pod: netip.MustParseAddrPort(pod)}
	if hostIP != "" {
		h.HostIP = netip.MustParseAddr(hostIP)
	}
	return h
}

func both(f func(pod, other, host, out string)) {
	f("10.0.0.5", "10.0.1.5", hostAddr, outAddr)
	f("[fd00:0::5]", "[fd00:1::5]", "["+hostAddrSix+"]", "["+outAddrSix+"]")
}

func bare(s string) string { return netip.MustParseAddr(strings.Trim(s, "[]")).String() }

// networks runs a test with each protocol that has ports, one after the other on the same node: TCP, which tries again,
// wakes up IPv6 for UDP.
func networks(t *testing.T, f func(t *testing.T, n *node, network string)) {
	t.Helper()
	modes(t, func(t *testing.T, n *node) {
		t.Helper()
		defer func() { n.TB = t }()
		for _, network := range []string{"tcp", "udp", "sctp"} {
			t.Run(network, func(t *testing.T) {
				if network == "sctp" {
					testkit.RequireSCTP(t)
				}
				n.TB = t
				f(t, n, network)
			})
		}
	})
}

func TestMasquerade(t *testing.T) {
	networks(t, testMasquerade)
}

func testMasquerade(t *testing.T, n *node, network string) {
	t.Helper()
	n.serve(n.out, network, ":80")
	n.serve(n.pods[1], network, ":80")
	n.apply(masquerade("192.0.2.0/24"))
	both(func(pod, other, host, out string) {
		n.expect("outside", n.pods[0], network, out+":80", bare(host))
		n.expect("pod to pod", n.pods[0], network, other+":80", bare(pod))
	})
	n.apply(masquerade(outAddr+"/32", outAddrSix+"/128"))
	both(func(pod, _, _, out string) { n.expect("excluded", n.pods[0], network, out+":80", bare(pod)) })
	list := n.host.Run(t, "nft", "list", "table", "inet", "weft-nat")
	if !strings.Contains(list, "masquerade fully-random") || !strings.Contains(list, "10.0.0.0/23") {
		t.Errorf("table:\n%s", list)
	}
	n.apply()
	if list, err := n.host.Try(t, "nft", "list", "tables"); err != nil || strings.Contains(list, "weft") {
		t.Errorf("left: %s %v", list, err)
	}
}

func TestHostPort(t *testing.T) {
	networks(t, testHostPort)
}

func testHostPort(t *testing.T, n *node, network string) {
	t.Helper()
	n.serve(n.host, "tcp", "127.0.0.1:9")
	for _, p := range n.pods {
		n.serve(p, network, ":80")
	}
	rows := []plan.Row{masquerade()}
	both(func(pod, other, host, _ string) {
		rows = append(rows, hostPort(network, "", 8080, pod+":80"), hostPort(network, bare(host), 8081, other+":80"))
	})
	n.apply(rows...)
	both(func(pod, other, host, out string) {
		n.expect("from outside", n.out, network, host+":8080", bare(out))
		n.expect("from outside by address", n.out, network, host+":8081", bare(out))
		n.expect("from the other pod", n.pods[1], network, host+":8080", bare(other))
		if got := n.ask(n.pods[0], network, host+":8080"); strings.HasPrefix(got, "error") {
			t.Errorf("hairpin %s %s: %s", network, host, got)
		}
		if got := n.ask(n.host, network, host+":8080"); strings.HasPrefix(got, "error") {
			t.Errorf("from the host itself %s %s: %s", network, host, got)
		}
	})
	if got := n.ask(n.host, network, "127.0.0.1:8080"); strings.HasPrefix(got, "error") {
		t.Errorf("from the host by loopback %s: %s", network, got)
	}
	n.apply(masquerade())
	both(func(_, _, host, _ string) { n.expect("removed", n.out, network, host+":8080", "error") })
}

func TestRefusal(t *testing.T) {
	modes(t, testRefusal)
}

func testRefusal(t *testing.T, n *node) {
	t.Helper()
	good, mixed, odd := hostPort("tcp", "", 80, "10.0.0.5:80"), hostPort("tcp", "10.9.9.9", 7, "[fd00::5]:80"), hostPort("igmp", "", 7, "10.0.0.5:80")
	n.host.Do(t, func() {
		rows := []plan.Row{good, mixed, odd}
		res := n.d.Apply(t.Context(), view(rows), plan.Changes{Upsert: rows})
		if res[good.Key()] != nil {
			t.Error(res[good.Key()])
		}
		if err := res[mixed.Key()]; err == nil || !strings.Contains(err.Error(), "different families") {
			t.Error(err)
		}
		if err := res[odd.Key()]; err == nil || !strings.Contains(err.Error(), `"igmp" is not tcp, udp or sctp`) {
			t.Error(err)
		}
	})
}

// TestRestart: an agent without memory changes nothing that is right, and repairs what is not.
func TestRestart(t *testing.T) {
	modes(t, testRestart)
}

func testRestart(t *testing.T, n *node) {
	t.Helper()
	rows := []plan.Row{masquerade("0.0.0.0/0", "224.0.0.0/4"), hostPort("tcp", "", 8080, "10.0.0.5:80"), hostPort("sctp", "fd00::9", 7, "[fd00::5]:80")}
	n.apply(rows...)
	handles := n.host.Run(t, "nft", "-a", "list", "table", "inet", "weft-nat")
	n.open()
	n.apply(rows...)
	if again := n.host.Run(t, "nft", "-a", "list", "table", "inet", "weft-nat"); again != handles {
		t.Errorf("a restart rewrote the table:\n%s\nthen\n%s", handles, again)
	}
	n.apply(append(rows, hostPort("udp", "", 53, "10.0.1.5:53"))...)
	if list := named(n.host.Run(t, "nft", "-a", "list", "table", "inet", "weft-nat")); !strings.Contains(list, "udp . 53 : 10.0.1.5 . 53") {
		t.Errorf("one port more:\n%s", list)
	}
	// Another build's table: one rule less.
	_ = n.d.Close()
	n.host.Run(t, "nft", "flush", "chain", "inet", "weft-nat", "output")
	n.open()
	n.apply(rows...)
	if list := n.host.Run(t, "nft", "list", "chain", "inet", "weft-nat", "output"); !strings.Contains(list, "jump hostports") {
		t.Errorf("not repaired:\n%s", list)
	}
	n.open()
	n.host.Do(t, func() {
		if err := n.d.Sweep(t.Context(), view(nil)); err != nil {
			t.Error(err)
		}
	})
	if list := n.host.Run(t, "nft", "list", "tables"); strings.Contains(list, "weft") {
		t.Errorf("not swept: %s", list)
	}
}

// TestWatch: each way of damaging the table is reported, and our own changes are not.
func TestWatch(t *testing.T) {
	modes(t, testWatch)
}

func testWatch(t *testing.T, n *node) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	found := make(chan string, 16)
	var wg sync.WaitGroup
	started := make(chan struct{})
	wg.Go(func() {
		n.host.Do(t, func() {
			close(started)
			err := n.d.Watch(ctx, func(k plan.Key, what string) { found <- k.String() + ": " + what })
			if ctx.Err() == nil {
				t.Error(err)
			}
		})
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	<-started
	rows := []plan.Row{masquerade(), hostPort("tcp", "", 8080, "10.0.0.5:80")}
	n.apply(rows...)
	n.apply(append(rows, hostPort("tcp", "", 8081, "10.0.0.5:80"))...)
	n.apply(rows...)
	for _, c := range []struct {
		damage []string
		says   string
	}{
		{[]string{"flush", "ruleset"}, "table inet weft-nat was deleted"},
		{[]string{"delete", "table", "inet", "weft-nat"}, "table inet weft-nat was deleted"},
		{[]string{"flush", "chain", "inet", "weft-nat", "postrouting"}, "table inet weft-nat was flushed"},
		{[]string{"flush", "set", "inet", "weft-nat", "pods-v4"}, "elements of pods-v4 in table inet weft-nat were changed"},
		{[]string{"delete", "element", "inet", "weft-nat", "hostports-v4", "{ tcp . 8080 }"}, "elements of hostports-v4 in table inet weft-nat were changed"},
	} {
		damage := c.damage
		select {
		case f := <-found:
			t.Fatalf("reported without cause: %s", f)
		case <-time.After(100 * time.Millisecond):
		}
		if !n.plain { // nobody else can do that
			before := n.host.Run(t, "nft", "list", "table", "inet", "weft-nat")
			_, err := n.host.Try(t, "nft", damage...)
			if after := n.host.Run(t, "nft", "list", "table", "inet", "weft-nat"); after != before || err == nil && damage[1] != "ruleset" {
				t.Errorf("nft %v: %v\n%s\nwas\n%s", damage, err, after, before)
			}
			continue
		}
		n.host.Run(t, "nft", damage...)
		var keys []string
		for range rows {
			select {
			case f := <-found:
				if keys = append(keys, f); !strings.Contains(f, c.says) {
					t.Errorf("nft %v: %s, want %s", damage, f, c.says)
				}
			case <-time.After(time.Second):
				t.Fatalf("nft %v was not reported: %v", damage, keys)
			}
		}
		slices.Sort(keys)
		t.Logf("nft %v: %s", damage, keys)
		n.apply(rows...)
		n.host.Run(t, "nft", "get", "element", "inet", "weft-nat", "hostports-v4", "{ tcp . 8080 }")
	}
}

func TestForeign(t *testing.T) {
	modes(t, testForeign)
}

func testForeign(t *testing.T, n *node) {
	t.Helper()
	n.apply(masquerade())
	look := func() (drops, nat []string) {
		n.host.Do(t, func() {
			var err error
			if drops, err = n.d.ForeignDrops(t.Context()); err != nil {
				t.Error(err)
			}
			if nat, err = n.d.ForeignNAT(t.Context()); err != nil {
				t.Error(err)
			}
		})
		return drops, nat
	}
	if drops, nat := look(); len(drops)+len(nat) > 0 {
		t.Errorf("found without cause: %v %v", drops, nat)
	}
	n.host.Run(t, "nft", "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; };"+
		"add table inet fw; add chain inet fw forward { type filter hook forward priority 0; };"+
		"add rule inet fw forward tcp dport 22 accept; add rule inet fw forward counter drop;"+
		"add table ip kube-proxy; add chain ip kube-proxy pre { type nat hook prerouting priority -100; }; add rule ip kube-proxy pre counter accept")
	drops, nat := look()
	if len(drops) != 2 || !strings.Contains(drops[0]+drops[1], "table filter chain FORWARD has policy drop") || !strings.Contains(drops[0]+drops[1], "table fw chain forward has a rule that drops everything, handle 3") {
		t.Errorf("drops: %q", drops)
	}
	if len(nat) != 1 || nat[0] != "ip table kube-proxy chain pre" {
		t.Errorf("nat: %q", nat)
	}
	if _, err := n.host.Try(t, "iptables-legacy", "-t", "filter", "-S"); err != nil {
		t.Skipf("no legacy iptables: %v", err)
	}
	n.host.Run(t, "nft", "delete table ip filter; delete table inet fw; delete table ip kube-proxy")
	if drops, nat := look(); len(drops)+len(nat) > 0 {
		t.Errorf("found without cause: %v %v", drops, nat)
	}
	n.host.Run(t, "iptables-legacy", "-A", "FORWARD", "-s", "192.0.2.0/24", "-j", "ACCEPT")
	n.host.Run(t, "iptables-legacy", "-P", "FORWARD", "DROP")
	n.host.Run(t, "ip6tables-legacy", "-P", "FORWARD", "DROP")
	n.host.Run(t, "ip6tables-legacy", "-t", "nat", "-S")
	drops, nat = look()
	if want := []string{"iptables-legacy table filter chain FORWARD has policy drop", "ip6tables-legacy table filter chain FORWARD has policy drop"}; !slices.Equal(drops, want) {
		t.Errorf("drops: %q", drops)
	}
	if want := []string{"ip6tables-legacy table nat"}; !slices.Equal(nat, want) {
		t.Errorf("nat: %q", nat)
	}
	n.host.Run(t, "iptables-legacy", "-P", "FORWARD", "ACCEPT")
	if drops, _ = look(); len(drops) != 1 {
		t.Errorf("drops: %q", drops)
	}
}
