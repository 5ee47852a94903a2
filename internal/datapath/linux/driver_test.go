package linux_test

import (
	"context"
	"io"
	"iter"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/internal/datapath/linux"
	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
	"weft/internal/testkit"
)

// view is a plan.View over a map.
type view map[plan.Key]plan.Row

func (v view) Get(k plan.Key) plan.Row { return v[k] }

func (v view) All(kind plan.Kind) iter.Seq[plan.Row] {
	return func(yield func(plan.Row) bool) {
		for k, r := range v {
			if k.Kind == kind && !yield(r) {
				return
			}
		}
	}
}

// node is a namespace with a driver.
type node struct {
	*testkit.Netns
	t      testing.TB
	driver *linux.Driver
	mu     sync.Mutex
	want   view // guarded by mu where a repairer runs; drivers are handed copies
}

// change changes what is wanted, and returns a copy.
func (n *node) change(f func(view)) view {
	n.mu.Lock()
	defer n.mu.Unlock()
	f(n.want)
	return maps.Clone(n.want)
}

func newNode(tb testing.TB) *node {
	tb.Helper()
	n := &node{Netns: testkit.New(tb), t: tb, want: view{}}
	n.IP(tb, "addr add 192.0.2.1/32 dev lo")
	n.IP(tb, "addr add fd99::1/128 dev lo nodad") // lest the host sends from ::1 until the address is checked
	n.restart()
	tb.Cleanup(func() { _ = n.driver.Close() })
	n.apply(
		&plan.Sysctl{Path: "net/ipv4/ip_forward", Value: "1"},
		&plan.Sysctl{Path: "net/ipv6/conf/all/forwarding", Value: "1"},
	)
	return n
}

// restart replaces the driver by one without memory.
func (n *node) restart() {
	n.t.Helper()
	if n.driver != nil {
		_ = n.driver.Close()
	}
	n.Do(n.t, func() {
		var err error
		if n.driver, err = linux.New(slog.New(slog.DiscardHandler)); err != nil {
			n.t.Fatal(err)
		}
	})
}

// try upserts rows and returns the first error.
func (n *node) try(rows ...plan.Row) error {
	n.t.Helper()
	want := n.change(func(v view) {
		for _, r := range rows {
			v[r.Key()] = r
		}
	})
	res := n.driver.Apply(context.Background(), want, plan.Changes{Upsert: rows})
	return n.first(res, rows)
}

func (n *node) first(res plan.Results, rows []plan.Row) error {
	n.t.Helper()
	for _, r := range rows {
		if err, found := res[r.Key()]; !found {
			n.t.Errorf("no result for %s", r.Key())
		} else if err != nil {
			return err
		}
	}
	return nil
}

func (n *node) apply(rows ...plan.Row) {
	n.t.Helper()
	if err := n.try(rows...); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) remove(rows ...plan.Row) {
	n.t.Helper()
	want := n.change(func(v view) {
		for _, r := range rows {
			delete(v, r.Key())
		}
	})
	if err := n.first(n.driver.Apply(context.Background(), want, plan.Changes{Delete: rows}), rows); err != nil {
		n.t.Fatal(err)
	}
}

// all returns every wanted row.
func (n *node) all() []plan.Row {
	var out []plan.Row
	for _, k := range linux.Kinds() {
		out = slices.AppendSeq(out, n.want.All(k))
	}
	return out
}

func addrs(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func by(id string) plan.By { return plan.By{Key: model.EndpointKey(id)} }

// podLink is the link of the pod with that number.
func podLink(ns *testkit.Netns, i byte) *plan.PodLink {
	return &plan.PodLink{
		By: by(string('a'+rune(i)) + "/eth0"), HostIf: "weft" + string('a'+rune(i)), Netns: ns.Path(), IfName: "eth0",
		MAC: model.MAC{2, 0, 0, 0, 0, i}, MTU: 1450,
		Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 9, 0, i}), netip.AddrFrom16([16]byte{0: 0xfd, 1: 9, 15: i})},
	}
}

// podRows are the rows of a pod: its link, neighbours and routes.
func podRows(l *plan.PodLink) []plan.Row {
	rows := []plan.Row{l}
	for _, a := range l.Addrs {
		rows = append(rows, &plan.Neighbour{By: l.By, Dev: l.HostIf, Addr: a, MAC: l.MAC}, &plan.Route{By: l.By, Dst: netset.Host(a), Dev: l.HostIf})
	}
	return rows
}

// reach sends a line by TCP from one namespace to an address in another, and expects it back.
func reach(tb testing.TB, from, to *testkit.Netns, addr netip.Addr) {
	tb.Helper()
	if err := tryReach(tb, from, to, addr); err != nil {
		tb.Errorf("%s: %v", addr, err)
	}
}

func tryReach(tb testing.TB, from, to *testkit.Netns, addr netip.Addr) error {
	tb.Helper()
	var l net.Listener
	var err error
	to.Do(tb, func() { l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 0))) })
	if err != nil {
		return err
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}
	}()
	var c net.Conn
	from.Do(tb, func() { c, err = net.DialTimeout("tcp", l.Addr().String(), 3*time.Second) })
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, 5))
	return err
}

// has fails the test unless out contains every word.
func has(tb testing.TB, out string, words ...string) {
	tb.Helper()
	for _, w := range words {
		if !strings.Contains(out, w) {
			tb.Errorf("%q is not in:\n%s", w, out)
		}
	}
}

func hasNot(tb testing.TB, out string, words ...string) {
	tb.Helper()
	for _, w := range words {
		if strings.Contains(out, w) {
			tb.Errorf("%q is in:\n%s", w, out)
		}
	}
}

func TestPodLink(t *testing.T) {
	n, a, b := newNode(t), testkit.New(t), testkit.New(t)
	testkit.NoLeaks(t, []*testkit.Netns{n.Netns, a, b})
	la, lb := podLink(a, 1), podLink(b, 2)
	la.Narrow = []plan.RouteMTU{{Dst: netip.MustParsePrefix("10.1.0.0/24"), MTU: 1400}, {Dst: netip.MustParsePrefix("fd01::/64"), MTU: 1390}}
	n.apply(podRows(la)...)
	n.apply(podRows(lb)...)

	has(t, n.IP(t, "-d link show weftb"), "weft:b/eth0", model.GatewayMAC.String(), "mtu 1450", "veth", "group 119", "addrgenmode none", ",UP,")
	has(t, a.IP(t, "-d link show eth0"), "02:00:00:00:00:01", "mtu 1450", "addrgenmode none", ",UP,", "numtxqueues 1 ")
	has(t, a.IP(t, "addr show dev eth0"), "10.9.0.1/32", "fd09::1/128")
	hasNot(t, a.IP(t, "addr show dev eth0"), "fe80:", "tentative")
	has(t, a.IP(t, "-d route"), "default via 169.254.1.1 dev eth0 proto 119", "169.254.1.1 dev eth0 proto 119 scope link", "10.1.0.0/24 via 169.254.1.1 dev eth0 proto 119 scope global onlink mtu 1400")
	has(t, a.IP(t, "-6 route"), "default via fe80::1 dev eth0", "fe80::1 dev eth0", "fd01::/64 via fe80::1 dev eth0 proto 119 metric 1024 onlink mtu 1390")
	has(t, a.IP(t, "neigh"), "169.254.1.1 dev eth0 lladdr "+model.GatewayMAC.String()+" PERMANENT", "fe80::1 dev eth0 lladdr "+model.GatewayMAC.String())
	for i := range la.Addrs {
		reach(t, a, b, lb.Addrs[i])
		reach(t, b, a, la.Addrs[i])
		reach(t, n.Netns, a, la.Addrs[i])
		reach(t, a, n.Netns, addrs("192.0.2.1", "fd99::1")[i])
	}
	n.remove(podRows(la)...)
	n.remove(podRows(lb)...)
	hasNot(t, n.IP(t, "link"), "weft")
	hasNot(t, a.IP(t, "link"), "eth0")
	n.remove(podRows(la)...) // again
}
