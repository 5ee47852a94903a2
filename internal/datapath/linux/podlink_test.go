package linux_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
	"weft/internal/testkit"
)

// quiet runs f while `ip monitor` listens in the namespaces, and returns what it heard.
func quiet(t *testing.T, in []*testkit.Netns, f func()) string {
	t.Helper()
	var out strings.Builder
	var stop []func()
	for i, n := range in {
		path := fmt.Sprintf("%s/heard%d", t.TempDir(), i)
		file, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		heard := func() string {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
		cmd := exec.Command("ip", "-o", "monitor", "link", "address", "route", "rule", "neigh", "netconf")
		cmd.Stdout = file
		n.Do(t, func() {
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
		})
		stop = append(stop, func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			_ = file.Close()
			for line := range strings.Lines(heard()) {
				// An interface that is gone by the time that ip prints it is the mark.
				if !strings.Contains(line, "mark") && !strings.Contains(line, "Deleted inet") && !regexp.MustCompile(`\bif\d+\b`).MatchString(line) {
					out.WriteString(line)
				}
			}
			if heard() == "" {
				t.Error("the monitor heard nothing at all")
			}
		})
		mark(t, n, "mark0", heard)
	}
	f()
	for i, n := range in {
		mark(t, n, "mark1", nil)
		stop[i]()
	}
	return out.String()
}

// mark makes an interface, so that the monitor's output has a place. It repeats it until the monitor listens.
func mark(t *testing.T, n *testkit.Netns, name string, heard func() string) {
	t.Helper()
	for range 100 {
		n.IP(t, "link add "+name+" type bridge")
		n.IP(t, "link del "+name)
		time.Sleep(20 * time.Millisecond)
		if heard == nil || strings.Contains(heard(), "Deleted") {
			return
		}
	}
	t.Fatal("ip monitor does not start")
}

func TestIdempotent(t *testing.T) { eachPair(t, idempotent) }

func idempotent(t *testing.T, n *node, netkit bool) {
	t.Helper()
	a := testkit.New(t)
	l := podLink(a, 1)
	l.Netkit = netkit
	l.Narrow = []plan.RouteMTU{{Dst: netip.MustParsePrefix("10.1.0.0/24"), MTU: 1400}, {Dst: netip.MustParsePrefix("fd01::/64"), MTU: 1390}}
	l.Ingress, l.Egress = model.Rate{Bits: 10e6}, model.Rate{Bits: 40e9}
	n.apply(podRows(l)...)
	n.apply(&plan.Overlay{Name: "weft-vxlan", MAC: model.GatewayMAC, MTU: 1450, Port: 18472})
	for i, f := range netset.Families() {
		n.apply(&plan.Rule{Family: f.String(), Priority: 32766, Table: 254}, &plan.Route{Dst: netset.Host(addrs("10.8.0.1", "fd08::1")[i]), Dev: "weft-vxlan", MTU: 1400})
	}
	time.Sleep(1100 * time.Millisecond) // the kernel tells the states of new links at most a second late
	for _, again := range []func(){func() {}, n.restart} {
		again()
		if heard := quiet(t, []*testkit.Netns{n.Netns, a}, func() { n.apply(n.all()...) }); heard != "" {
			t.Errorf("a second Apply changed something:\n%s", heard)
		}
	}
}

func TestRepairInside(t *testing.T) { eachPair(t, repairInside) }

func repairInside(t *testing.T, n *node, netkit bool) {
	t.Helper()
	a := testkit.New(t)
	l := podLink(a, 1)
	l.Netkit = netkit
	l.Narrow = []plan.RouteMTU{{Dst: netip.MustParsePrefix("10.1.0.0/24"), MTU: 1400}, {Dst: netip.MustParsePrefix("fd01::/64"), MTU: 1390}}
	l.Egress = model.Rate{Bits: 10e6}
	n.apply(podRows(l)...)
	state := func() string {
		// A link's operational state is told late, and not always, by older kernels.
		return strings.ReplaceAll(a.IP(t, "-o link show eth0"), "state UNKNOWN", "state UP") + a.IP(t, "route") + a.IP(t, "-6 route") + a.IP(t, "neigh show nud permanent") +
			a.IP(t, "-6 neigh show nud permanent") + a.IP(t, "-o addr show dev eth0") + a.Run(t, "tc", "qdisc", "show", "dev", "eth0")
	}
	want := state()
	a.IP(t, "route add 198.51.100.0/24 via 169.254.1.1 dev eth0")
	a.IP(t, "addr add 10.77.0.1/32 dev eth0")
	own := state()
	for _, damage := range []string{
		"ip link set eth0 down", "ip link set eth0 address 02:00:00:00:00:77", "ip link set eth0 mtu 1300", "ip route del default",
		"ip -6 route del default", "ip addr del 10.9.0.1/32 dev eth0", "ip addr del fd09::1/128 dev eth0", "ip neigh del 169.254.1.1 dev eth0",
		"ip route change 10.1.0.0/24 via 169.254.1.1 dev eth0 proto 119 onlink mtu lock 900", "ip -6 route flush dev eth0",
		"tc qdisc del dev eth0 root", "ip route add 10.2.0.0/24 via 169.254.1.1 dev eth0 proto 119",
	} {
		a.Run(t, "sh", "-c", damage)
		n.apply(l)
		got := state()
		if strings.HasPrefix(damage, "ip link set eth0 down") || strings.HasPrefix(damage, "ip link set eth0 address") {
			// What the pod added itself went with the interface; ours must be back.
			a.Run(t, "sh", "-c", "ip route replace 198.51.100.0/24 via 169.254.1.1 dev eth0; ip addr replace 10.77.0.1/32 dev eth0")
			got = state()
		}
		if sorted(got) != sorted(own) {
			t.Errorf("after %q:\n%s\nwant\n%s", damage, got, own)
		}
	}
	a.Run(t, "sh", "-c", "ip route del 198.51.100.0/24; ip addr del 10.77.0.1/32 dev eth0")
	// The row changes: MTU, narrow routes, limits.
	l2 := *l
	l2.MTU, l2.Narrow, l2.Egress, l2.Ingress = 1400, l.Narrow[:1], model.Rate{}, model.Rate{Bits: 20e6}
	n.apply(&l2)
	has(t, state(), "mtu 1400", "10.1.0.0/24")
	hasNot(t, state(), "fd01::/64", "tbf")
	has(t, n.Run(t, "tc", "qdisc", "show", "dev", "weftb"), "tbf", "rate 20Mbit")
	has(t, n.IP(t, "link show weftb"), "mtu 1400")
	n.apply(l)
	if got := state(); sorted(got) != sorted(want) {
		t.Errorf("back again:\n%s\nwant\n%s", got, want)
	}
	hasNot(t, n.Run(t, "tc", "qdisc", "show", "dev", "weftb"), "tbf")
	// An address of the endpoint changes: the old one is ours to remove.
	l3 := *l
	l3.Addrs = addrs("10.9.0.7", "fd09::7")
	n.restart()
	n.apply(&l3)
	has(t, state(), "10.9.0.7/32", "fd09::7/128")
	hasNot(t, state()+a.IP(t, "-6 route show table local"), "10.9.0.1/32", "fd09::1")
}

func sorted(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		for j := i; j > 0 && lines[j] < lines[j-1]; j-- {
			lines[j], lines[j-1] = lines[j-1], lines[j]
		}
	}
	return strings.Join(lines, "\n")
}

func TestFamilies(t *testing.T) {
	for _, want := range [][]netip.Addr{addrs("10.9.0.1"), addrs("fd09::1"), addrs("fd09::1", "10.9.0.1")} {
		n, a := newNode(t), testkit.New(t)
		// Runtimes switch IPv6 off in a pod's namespace.
		a.Sysctl(t, "net/ipv6/conf/all/disable_ipv6", "1")
		a.Sysctl(t, "net/ipv6/conf/default/disable_ipv6", "1")
		l := podLink(a, 1)
		l.Addrs = want
		n.apply(podRows(l)...)
		for _, x := range want {
			reach(t, n.Netns, a, x)
		}
		has(t, a.IP(t, "route")+a.IP(t, "-6 route"), "default via "+netset.Gateway(netset.Of(want[0])).String())
		if netset.First(want, netset.V6).IsValid() {
			if got := a.ReadSysctl(t, "net/ipv6/conf/eth0/accept_ra"); got != "0" {
				t.Errorf("accept_ra of the pod's interface is %s", got)
			}
		}
	}
}

// TestSilence: a link that nobody uses sends no ARP, no neighbour or router solicitation, and no flood.
func TestSilence(t *testing.T) {
	n, a := newNode(t), testkit.New(t)
	n.apply(podRows(podLink(a, 1))...)
	time.Sleep(1500 * time.Millisecond) // solicitations and MLD reports would come within this
	icmp := n.Run(t, "nstat", "-az", "Icmp6InRouterSolicits", "Icmp6InNeighborSolicits", "Icmp6InNeighborAdvertisements")
	for line := range strings.Lines(icmp) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[0], "Icmp6") && f[1] != "0" {
			t.Errorf("the pod sent: %s", line)
		}
	}
	hasNot(t, n.IP(t, "neigh")+a.IP(t, "neigh"), "REACHABLE", "STALE", "DELAY", "INCOMPLETE", "FAILED")
	if sent := strings.Fields(strings.Split(n.IP(t, "-s link show weftb"), "\n")[4])[1]; len(sent) > 1 {
		t.Errorf("the pod sent %s packets", sent)
	}
}

func TestNameTaken(t *testing.T) { eachPair(t, nameTaken) }

func nameTaken(t *testing.T, n *node, netkit bool) {
	t.Helper()
	a := testkit.New(t)
	testkit.NoLeaks(t, []*testkit.Netns{a})
	l := podLink(a, 1)
	l.Netkit = netkit
	fails := func(what string, words ...string) {
		t.Helper()
		err := n.try(l)
		if err == nil {
			t.Errorf("%s: no error", what)
			return
		}
		has(t, err.Error(), words...)
	}
	n.IP(t, "link add weftb type bridge")
	fails("a foreign link", "weftb", "foreign interface", `kind "bridge"`)
	n.remove(l)
	has(t, n.IP(t, "link show weftb"), "weftb")
	n.IP(t, "link del weftb")

	// A link of ours of another endpoint.
	b := testkit.New(t)
	other := podLink(b, 1)
	other.By = by("stale/eth0")
	n.apply(other)
	n.apply(l)
	has(t, n.IP(t, "link show weftb"), "weft:b/eth0")
	hasNot(t, b.IP(t, "link"), "eth0")
	n.remove(other) // its deletion comes late, and must not hit the new link
	has(t, n.IP(t, "link show weftb"), "weft:b/eth0")

	// The same endpoint, but its other end is in a namespace of before.
	moved := *l
	moved.Netns = b.Path()
	n.apply(&moved)
	has(t, b.IP(t, "link"), "eth0")
	hasNot(t, a.IP(t, "link"), "eth0")
	n.remove(&moved)

	a.IP(t, "link add eth0 type bridge")
	fails("the pod has an eth0", "eth0 exists already in "+l.Netns)
	a.IP(t, "link del eth0")
	hasNot(t, n.IP(t, "link"), "weftb")
}

// TestHalfWay: whatever fails, nothing is left.
func TestHalfWay(t *testing.T) {
	n, a := newNode(t), testkit.New(t)
	l := podLink(a, 1)
	l.Netns = "/run/netns/weft-nowhere"
	if err := n.try(podRows(l)...); err == nil || !strings.Contains(err.Error(), "open network namespace /run/netns/weft-nowhere: no such file") {
		t.Errorf("missing namespace: %v", err)
	}
	n.remove(podRows(l)...)
	l.Netns = "/proc/self/status"
	if err := n.try(l); err == nil || !strings.Contains(err.Error(), "/proc/self/status") {
		t.Errorf("no namespace: %v", err)
	}
	l.Netns = a.Path()
	bad := *l
	bad.Addrs = addrs("10.9.0.1", "ff02::1")
	for what, c := range map[string]struct {
		row  *plan.PodLink
		says string
	}{
		"bad address": {&bad, "address ff02::1 of eth0"},
		"bad MTU":     {func() *plan.PodLink { x := *l; x.MTU = 10; return &x }(), "make link weftb"},
		"bad name":    {func() *plan.PodLink { x := *l; x.IfName = "an-interface-name-too-long"; return &x }(), "make link weftb"},
	} {
		if err := n.try(c.row); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", what, err)
		}
		hasNot(t, n.IP(t, "link"), "weftb")
		hasNot(t, a.IP(t, "link"), "eth0")
	}
	// Another interface has the default route.
	testkit.Veth(t, a, "net0", []string{"192.0.2.1/24"}, n.Netns, "net1", nil)
	a.IP(t, "route add default via 192.0.2.2 dev net0")
	if err := n.try(l); err == nil || !strings.Contains(err.Error(), "route 0.0.0.0/0 of eth0") {
		t.Errorf("default route taken: %v", err)
	}
	hasNot(t, n.IP(t, "link"), "weftb")
	has(t, a.IP(t, "route"), "default via 192.0.2.2")
	a.IP(t, "link del net0")

	// The namespace goes while the link is there: the link goes with it, and everything can be removed.
	n.apply(podRows(l)...)
	a.Delete()
	within(t, "the link of a namespace that is gone", func() error {
		if strings.Contains(n.IP(t, "link"), "weftb") {
			return fmt.Errorf("weftb is still there")
		}
		return nil
	})
	if err := n.try(podRows(l)...); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("namespace gone: %v", err)
	}
	n.remove(podRows(l)...)
}

// TestThreads: entering namespaces costs no threads and no descriptors.
func TestThreads(t *testing.T) {
	n, a := newNode(t), testkit.New(t)
	testkit.NoLeaks(t, []*testkit.Netns{n.Netns, a})
	count := func() int {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		return len(tasks)
	}
	l := podLink(a, 1)
	n.apply(podRows(l)...)
	before := count()
	for range 50 {
		n.apply(podRows(l)...)
		n.remove(podRows(l)...)
	}
	if after := count(); after > before+4 {
		t.Errorf("%d threads, then %d", before, after)
	}
}

// TestFirstPacket: what is sent right after a link was made arrives, in both directions.
func TestFirstPacket(t *testing.T) {
	n, a := newNode(t), testkit.New(t)
	l := podLink(a, 1)
	for i := range 30 {
		n.apply(podRows(l)...)
		for j, x := range []netip.Addr{l.Addrs[i%2], addrs("192.0.2.1", "fd99::1")[i%2]} {
			from, to := n.Netns, a
			if j == 1 {
				from, to = a, n.Netns
			}
			var server, client *net.UDPConn
			var err error
			to.Do(t, func() { server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(x, 0))) })
			if err != nil {
				t.Fatal(err)
			}
			from.Do(t, func() { client, err = net.DialUDP("udp", nil, server.LocalAddr().(*net.UDPAddr)) })
			if err != nil {
				t.Fatal(err)
			}
			if _, err := client.Write([]byte("first")); err != nil {
				t.Error(err)
			}
			_ = server.SetReadDeadline(time.Now().Add(time.Second))
			if _, err := server.Read(make([]byte, 9)); err != nil {
				t.Errorf("round %d, to %s: the first packet was lost", i, x)
			}
			_, _ = server.Close(), client.Close()
		}
		n.remove(podRows(l)...)
	}
}
