package ebpf

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/netset"
)

// The host's stack translates addresses (host ports, kube-proxy). These tests let nft do it.

// patience bounds a connection that is expected to come about: a first SYN may wait for a neighbour.
const patience = 5 * time.Second

// hello answers each TCP connection with a line, on a pod's port 80.
func hello(t *testing.T, p *pod) {
	t.Helper()
	for _, f := range netset.Families() {
		var l net.Listener
		within(t, p.ns, func() (err error) {
			l, err = net.Listen("tcp", netip.AddrPortFrom(p.addr(f), 80).String())
			return err
		})
		t.Cleanup(func() { _ = l.Close() })
		go answer(l)
	}
}

// answer says hello to whoever connects.
func answer(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = io.WriteString(c, "hello\n")
		_ = c.Close()
	}
}

// ask connects within a time and reads the line. A time under a second is for what is expected to fail.
func ask(t *testing.T, from place, to netip.AddrPort, within time.Duration) error {
	t.Helper()
	return askFrom(t, from, 0, to, within)
}

// askFrom is ask from a port of the client, 0: any.
func askFrom(t *testing.T, from place, port int, to netip.AddrPort, within time.Duration) error {
	t.Helper()
	var c net.Conn
	var err error
	d := &net.Dialer{Timeout: within, LocalAddr: &net.TCPAddr{Port: port}, Control: func(_, _ string, rc syscall.RawConn) error {
		return rc.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
	}}
	from.netns().Do(t, func() { c, err = d.Dial("tcp", to.String()) })
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	line, err := io.ReadAll(c)
	if err == nil && string(line) != "hello\n" {
		err = fmt.Errorf("read %q", line)
	}
	return err
}

// translate sends a service's address and port to a pod, as kube-proxy does: in the node's stack, before routing.
func (n *node) translate(service netip.Addr, port int, to *pod) {
	n.t.Helper()
	f := netset.Of(service)
	word := map[netset.Family]string{netset.V4: "ip", netset.V6: "ip6"}[f]
	table := fmt.Sprintf("%s svc%d", word, port)
	rules := strings.Join([]string{
		"add table " + table,
		fmt.Sprintf("add chain %s pre { type nat hook prerouting priority -100; }", table),
		fmt.Sprintf("add rule %s pre %s daddr %s tcp dport %d dnat to %s", table, word, service, port, netip.AddrPortFrom(to.addr(f), 80)),
	}, ";")
	n.ns.Run(n.t, "nft", rules)
}

// TestTracked: replies of translated flows go back through the stack that translated them, for services and host ports, with
// the backend on the same node and on another. Without tracking they do not: that is what it is for.
func TestTracked(t *testing.T) {
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
			for i, s := range services {
				a.translate(s, 1000, near)
				a.translate(s, 1001, far)
				b.translate(b.addrs[i], 1002, far) // a host port
			}
			track := func(on bool) {
				for _, n := range []*node{a, b} {
					s := n.settings()
					s.Tracked = on
					n.want(s)
					n.apply()
				}
			}
			for i := range services {
				for _, c := range []struct {
					name string
					to   netip.AddrPort
				}{
					{"service with a pod of the node", netip.AddrPortFrom(services[i], 1000)},
					{"service with a pod of another node", netip.AddrPortFrom(services[i], 1001)},
					{"host port of another node", netip.AddrPortFrom(b.addrs[i], 1002)},
				} {
					track(true)
					for range 3 {
						if err := ask(t, client, c.to, patience); err != nil {
							t.Errorf("%s (%s): %v\n%s\n%s", c.name, c.to, err, a.dump(), b.dump())
						}
					}
					track(false)
					within(t, a.ns, func() error { return flush(a, b) })
					if err := ask(t, client, c.to, 500*time.Millisecond); err == nil {
						t.Errorf("%s (%s): answered without tracking: this test shows nothing", c.name, c.to)
					}
				}
			}
			track(true)
			// One port of the client for a translated flow, and then for a direct one to the same pod.
			for i, f := range netset.Families() {
				for j, c := range []struct {
					service netip.AddrPort
					pod     *pod
				}{
					{netip.AddrPortFrom(services[i], 1000), near}, {netip.AddrPortFrom(services[i], 1001), far}, {netip.AddrPortFrom(b.addrs[i], 1002), far},
				} {
					port := 40000 + i*10 + j
					if err := askFrom(t, client, port, c.service, patience); err != nil {
						t.Errorf("%s from port %d: %v", c.service, port, err)
					}
					direct := netip.AddrPortFrom(c.pod.addr(f), 80)
					if err := askFrom(t, client, port, direct, patience); err != nil {
						t.Errorf("%s from port %d, which a flow to %s had: %v", direct, port, c.service, err)
					}
				}
			}
			before := a.driver.Stats()
			talk(t, client, far)
			talk(t, client, near)
			after := a.driver.Stats()
			if fast, slow := after["local"]-before["local"], after["stack_tracked"]-before["stack_tracked"]; fast < 100 || slow > fast {
				t.Errorf("of untranslated packets %d were delivered directly and %d left to the stack", fast, slow)
			}
		})
	}
}

// flush forgets all tracked flows.
func flush(nodes ...*node) error {
	for _, n := range nodes {
		var k, v []byte
		var keys [][]byte
		for entries := n.driver.objs.Track.Iterate(); entries.Next(&k, &v); {
			keys = append(keys, append([]byte(nil), k...))
		}
		for _, k := range keys {
			if err := n.driver.objs.Track.Delete(k); err != nil {
				return err
			}
		}
	}
	return nil
}
