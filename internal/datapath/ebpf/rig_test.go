package ebpf

import (
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"weft/internal/datapath/linux"
	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
	"weft/internal/testkit"
)

// The rig: nodes are network namespaces joined by one veth, pods are namespaces with a veth into a node's. It
// makes with `ip` what datapath/linux makes on a node; routes of the host lead to the same places as the maps.

const (
	overlayDev = "weft-vxlan"
	uplink     = "eth0"
	vxlanPort  = 8472
)

type node struct {
	t      testing.TB
	id     int
	ns     *testkit.Netns
	addrs  []netip.Addr
	under  string // the underlay's device
	pods   []*pod
	rows   rows
	driver *Driver
	pins   string
	opts   []Option
	netkit bool // new pods get netkit pairs
}

// setup changes how a node is made.
type setup func(*node)

func onClsact(n *node) { n.opts = append(n.opts, WithClsact()) }

// onNetkit is for what a kernel without netkit need not show.
func onNetkit(n *node) {
	n.t.Helper()
	n.netkit = true
	var f *model.Feature
	n.linux(func(d *linux.Driver) error {
		f = d.Netkit()
		return nil
	})
	if f.State != "active" {
		n.t.Skip(f.Detail)
	}
}

// linux lends a driver of links.
func (n *node) linux(f func(*linux.Driver) error) {
	n.t.Helper()
	within(n.t, n.ns, func() error {
		d, err := linux.New(slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		return errors.Join(f(d), d.Close())
	})
}

type pod struct {
	node   *node
	ns     *testkit.Netns
	hostIf string
	mac    model.MAC
	addrs  []netip.Addr // one of each family
}

func (p *pod) addr(f netset.Family) netip.Addr { return netset.First(p.addrs, f) }

// rows is a plan.View of a map.
type rows map[plan.Key]plan.Row

func (r rows) Get(k plan.Key) plan.Row { return r[k] }

func (r rows) All(k plan.Kind) iter.Seq[plan.Row] {
	return func(yield func(plan.Row) bool) {
		for key, row := range r {
			if key.Kind == k && !yield(row) {
				return
			}
		}
	}
}

// ip runs lines of `ip` in a namespace.
func ip(tb testing.TB, ns *testkit.Netns, lines string) {
	tb.Helper()
	file := filepath.Join(tb.TempDir(), "batch")
	if err := os.WriteFile(file, []byte(lines+"\n"), 0o600); err != nil {
		tb.Fatal(err)
	}
	if out, err := ns.Try(tb, "ip", "-batch", file); err != nil {
		tb.Fatalf("%v\n%s\n%s", err, out, lines)
	}
}

// within runs f in a namespace and fails the test with its error.
func within(tb testing.TB, ns *testkit.Netns, f func() error) {
	tb.Helper()
	var err error
	ns.Do(tb, func() { err = f() })
	if err != nil {
		tb.Fatal(err)
	}
}

// network joins two nodes by a veth of the given MTU. Nothing is applied yet.
func network(tb testing.TB, mtu int, with ...setup) (a, b *node) {
	tb.Helper()
	a, b = newNode(tb, 1, with...), newNode(tb, 2, with...)
	ip(tb, a.ns, fmt.Sprintf("link add %s mtu %d type veth peer name %s mtu %d netns %s", uplink, mtu, uplink, mtu, b.ns.Path()))
	for _, n := range []*node{a, b} {
		n.address()
	}
	return a, b
}

// address gives the underlay's device the node's addresses.
func (n *node) address() {
	n.t.Helper()
	ip(n.t, n.ns, fmt.Sprintf("addr add %[1]s/24 dev %[3]s\naddr add %[2]s/64 dev %[3]s nodad\nlink set %[3]s up", n.addrs[0], n.addrs[1], n.under))
}

func newNode(tb testing.TB, id int, with ...setup) *node {
	tb.Helper()
	n := &node{
		t: tb, id: id, ns: testkit.New(tb), rows: rows{}, under: uplink,
		addrs: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("192.168.7.%d", id)), netip.MustParseAddr(fmt.Sprintf("fd07::%d", id))},
		pins:  filepath.Join(tb.TempDir(), "bpf"),
	}
	tb.Cleanup(func() {
		if n.driver != nil {
			_ = n.driver.Close()
		}
		_ = unix.Unmount(n.pins, unix.MNT_DETACH)
	})
	for _, path := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		n.ns.Sysctl(tb, "net/"+path, "1")
	}
	for _, f := range with {
		f(n)
	}
	return n
}

// podCIDRs are the prefixes of a node's pods.
func (n *node) podCIDRs() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", n.id)),
		netip.MustParsePrefix(fmt.Sprintf("fd10:244:0:%d::/64", n.id)),
	}
}

// addPod makes a pod with its link and its row.
func (n *node) addPod(mtu int) *pod {
	n.t.Helper()
	i := len(n.pods) + 1
	p := &pod{node: n, ns: testkit.New(n.t), hostIf: fmt.Sprintf("weft%d", i), mac: model.MAC{2, 0, 0, 0, byte(n.id), byte(i)}}
	for _, c := range n.podCIDRs() {
		p.addrs = append(p.addrs, netset.Nth(c, uint64(i+1)))
	}
	p.link(mtu)
	n.pods = append(n.pods, p)
	n.want(p.row())
	return p
}

// link makes a pod's link and all that leads to it.
func (p *pod) link(mtu int) {
	p.node.t.Helper()
	n := p.node
	if n.netkit {
		p.netkit(mtu)
	} else {
		p.veth(mtu)
	}
	for i, a := range p.addrs {
		ip(n.t, n.ns, fmt.Sprintf("neigh replace %s lladdr %s nud permanent dev %s\nroute add %s dev %s src %s",
			a, p.mac, p.hostIf, netset.Host(a), p.hostIf, n.addrs[i]))
	}
}

func (p *pod) veth(mtu int) {
	p.node.t.Helper()
	n := p.node
	ip(n.t, n.ns, fmt.Sprintf("link add %s mtu %d address %s type veth peer name eth0 mtu %d address %s netns %s\nlink set %s up",
		p.hostIf, mtu, model.GatewayMAC, mtu, p.mac, p.ns.Path(), p.hostIf))
	ip(n.t, p.ns, "link set eth0 up")
	for _, a := range p.addrs {
		f := netset.Of(a)
		gw := netset.Gateway(f)
		ip(n.t, p.ns, fmt.Sprintf("addr add %s dev eth0 %s\nroute add %s dev eth0\nneigh replace %s lladdr %s nud permanent dev eth0\nroute add default via %s dev eth0",
			netset.Host(a), map[bool]string{true: "nodad"}[f == netset.V6], netset.Host(gw), gw, model.GatewayMAC, gw))
	}
}

// netkit makes a pod's link, and all inside, by datapath/linux: this machine's ip may not know netkit.
func (p *pod) netkit(mtu int) {
	p.node.t.Helper()
	l := &plan.PodLink{HostIf: p.hostIf, Netns: p.ns.Path(), IfName: "eth0", MAC: p.mac, MTU: mtu, Addrs: p.addrs, Netkit: true}
	p.node.linux(func(d *linux.Driver) error {
		return d.Apply(p.node.t.Context(), rows{}, plan.Changes{Upsert: []plan.Row{l}})[l.Key()]
	})
}

func (p *pod) row() *plan.Local { return &plan.Local{HostIf: p.hostIf, MAC: p.mac, Addrs: p.addrs} }

func (n *node) want(rs ...plan.Row) {
	for _, r := range rs {
		n.rows[r.Key()] = r
	}
}

// overlay makes the VXLAN device as datapath/linux does.
func (n *node) overlay(mtu int) {
	n.t.Helper()
	ip(n.t, n.ns, fmt.Sprintf("link add %s mtu %d address %s type vxlan external dstport %d udp6zerocsumrx\nlink set %s arp off addrgenmode none up",
		overlayDev, mtu, model.GatewayMAC, vxlanPort, overlayDev))
	n.want(&plan.Hook{Dev: overlayDev, Role: plan.RoleOverlay})
}

func (n *node) settings() *plan.Settings {
	s := &plan.Settings{GatewayMAC: model.GatewayMAC, VNI: 1, Port: vxlanPort, Underlay: n.under, Addrs: n.addrs}
	if n.rows[plan.Key{Kind: plan.KindHook, Name: overlayDev}] != nil {
		s.Overlay = overlayDev
	}
	return s
}

// reach adds rows and routes to another node: by a tunnel between the addresses of the outer family, or directly.
func (n *node) reach(peer *node, outer netset.Family, tunnel bool, mtu int) {
	n.t.Helper()
	n.want(n.settings(), &plan.Hook{Dev: n.under, Role: plan.RoleUnderlay})
	for i, c := range peer.podCIDRs() {
		r := &plan.Remote{Prefix: c, Via: peer.addrs[i], Tunnel: tunnel, MTU: mtu}
		if tunnel {
			r.Via, r.VTEPMAC, r.OnLink = netset.First(peer.addrs, outer), model.GatewayMAC, true
			ip(n.t, n.ns, fmt.Sprintf("route add %s dev %s src %s mtu %d", c, overlayDev, n.addrs[i], mtu))
			n.want(&plan.Remote{Prefix: netset.Host(peer.addrs[i]), Via: r.Via, Tunnel: true, OnLink: true, VTEPMAC: model.GatewayMAC, MTU: mtu})
		} else {
			ip(n.t, n.ns, fmt.Sprintf("route add %s via %s dev %s onlink", c, peer.addrs[i], n.under))
			n.want(&plan.Remote{Prefix: netset.Host(peer.addrs[i]), Via: peer.addrs[i], MTU: mtu})
		}
		n.want(r)
	}
}

// apply applies every wanted row, with a new driver if there is none.
func (n *node) apply() {
	n.t.Helper()
	if n.driver == nil {
		n.open()
	}
	within(n.t, n.ns, func() error {
		var ch plan.Changes
		for _, k := range plan.Kinds() {
			for r := range n.rows.All(k) {
				ch.Upsert = append(ch.Upsert, r)
			}
		}
		var errs []error
		for _, err := range n.driver.Apply(n.t.Context(), n.rows, ch) {
			errs = append(errs, err)
		}
		for n.driver.calm() { // what Watch does
		}
		return errors.Join(errs...)
	})
}

// open makes a driver on the node's pins, as an agent's start does.
func (n *node) open() {
	n.t.Helper()
	within(n.t, n.ns, func() (err error) {
		n.driver, err = New(n.pins, slog.New(slog.DiscardHandler), n.opts...)
		return err
	})
}

func (n *node) dump() string { return fmt.Sprintf("node %d: %v", n.id, n.driver.Stats()) }
