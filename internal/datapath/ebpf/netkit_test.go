package ebpf

import (
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"weft/internal/netset"
)

// Netkit pairs: what differs from veth. All else is shown by the tests with real packets, in their third mode.

// TestNetkit: without its program nothing leaves a pod, wherever the program went; with it, pods of both kinds talk.
func TestNetkit(t *testing.T) {
	n, _ := network(t, 1500, onNetkit)
	p := n.addPod(1500)
	n.netkit = false
	q := n.addPod(1500)
	n.want(n.settings())
	n.open()
	closed := func(when string) {
		t.Helper()
		for _, f := range netset.Families() {
			if err := udpEcho(t, p, n, f, 64, 1); err == nil {
				t.Errorf("%s, %s: the pod's packet got out", when, f)
			}
		}
	}
	open := func(when string) {
		t.Helper()
		n.apply()
		if on := strings.Join(n.attached(p.hostIf), ", "); on != "ingress link, egress filter" {
			t.Errorf("%s: on %s: %s", when, p.hostIf, on)
		}
		talk(t, p, q)
		talk(t, p, n)
		n.never(t, "drop_spoof", "drop_not_ip")
	}
	closed("before an agent came")
	open("with an agent")
	// The pod's own limit: the program runs when the queue lets go of a packet.
	p.ns.Run(t, "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "50mbit", "burst", "128k", "latency", "50ms")
	began := time.Now()
	transfer(t, p, q, netset.V4, 5<<20)
	if took := time.Since(began); took < 700*time.Millisecond {
		t.Errorf("5 MiB at 50 Mbit/s took %s", took)
	}
	p.ns.Run(t, "tc", "qdisc", "del", "dev", "eth0", "root")
	key := p.row().Key()
	for what, take := range map[string]func(link.Link) error{"detached": link.Link.Detach, "removed": link.Link.Unpin} {
		l, err := link.LoadPinnedLink(n.driver.mode.pin(p.hostIf, directions()[0]), nil)
		if err == nil {
			err = take(l)
		}
		if err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
		closed("the program was " + what)
		within(t, n.ns, func() error {
			if said := n.driver.mode.missing(n.driver.hooked[key], true); !strings.Contains(said, what) {
				t.Errorf("the program was %s, and it is said: %q", what, said)
			}
			return nil
		})
		open("after it was " + what)
	}
	n.remove(key)
	closed("its row is gone")
	if on := strings.Join(n.attached(p.hostIf), ", "); on != "ingress filter, egress filter" { // the gate's: see Shut
		t.Errorf("its row is gone: on %s: %s", p.hostIf, on)
	}
}

// sockets is a pair of connected sockets.
type sockets struct{ client, server int }

// joined connects two places. Nothing needs a second thread: on one processor, what is sent has arrived when the call returns.
func joined(t *testing.T, from, to place, f netset.Family, kind int) sockets {
	t.Helper()
	x := sockets{-1, -1}
	family := map[netset.Family]int{netset.V4: unix.AF_INET, netset.V6: unix.AF_INET6}[f]
	open := func(p place) (fd int) {
		within(t, p.netns(), func() (err error) {
			if fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0); err != nil {
				return err
			}
			_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
			return unix.Bind(fd, sockaddr(p.addr(f), 0))
		})
		t.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
	x.client, x.server = open(from), open(to)
	connect := func(fd, other int) {
		name, err := unix.Getsockname(other)
		if err == nil {
			err = unix.Connect(fd, name)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if kind == unix.SOCK_DGRAM {
		connect(x.client, x.server)
		connect(x.server, x.client)
		return x
	}
	if err := unix.Listen(x.server, 1); err != nil {
		t.Fatal(err)
	}
	connect(x.client, x.server)
	fd, _, err := unix.Accept4(x.server, unix.SOCK_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	x.server = fd
	for _, fd := range []int{x.client, x.server} {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	return x
}

func pass(from, to int, b []byte) error {
	if n, err := unix.Write(from, b); err != nil || n != len(b) {
		return fmt.Errorf("wrote %d of %d bytes: %w", n, len(b), err)
	}
	for got := 0; got < len(b); {
		n, err := unix.Read(to, b[got:])
		if err != nil || n == 0 {
			return fmt.Errorf("read %d of %d bytes: %w", got, len(b), err)
		}
		got += n
	}
	return nil
}

// receptions is how often a packet was received by a device, on its way from one to the next as well.
func receptions(t *testing.T) (sum int) {
	t.Helper()
	text, err := os.ReadFile("/proc/net/softnet_stat")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var n int
		if _, err := fmt.Sscanf(line, "%x", &n); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}

// TestPairCost compares netkit with veth: a packet from a pod is received once less. The times are logged; in the machine of
// test/vm, whose clock goes on by 2 ns with each instruction, they are counts of instructions.
func TestPairCost(t *testing.T) {
	type figure struct {
		received float64
		took     time.Duration
	}
	figures := map[string]map[string]figure{}
	for _, pair := range []string{"netkit", "veth"} { // without netkit, this is skipped at once
		figures[pair] = map[string]figure{}
		measure := func(way string, from, to place) {
			for _, f := range netset.Families() {
				for _, c := range []struct {
					name       string
					kind, size int
					back       bool
				}{{"UDP 64 B there and back", unix.SOCK_DGRAM, 64, true}, {"TCP 1 B there and back", unix.SOCK_STREAM, 1, true}, {"TCP 32 KiB there", unix.SOCK_STREAM, 32 << 10, false}} {
					x, b := joined(t, from, to, f, c.kind), make([]byte, c.size)
					round := func(n int) {
						for range n {
							err := pass(x.client, x.server, b)
							if err == nil && c.back {
								err = pass(x.server, x.client, b)
							}
							if err != nil {
								t.Fatalf("%s, %s, %s: %v\n%s", pair, way, c.name, err, from.dump())
							}
						}
					}
					const batches, rounds = 10, 20
					round(rounds)
					before, best := receptions(t), time.Hour // the least: the kernel has other things to do, too
					for range batches {
						began := time.Now()
						round(rounds)
						best = min(best, time.Since(began)/rounds)
					}
					figures[pair][fmt.Sprintf("%-12s %s %-23s", way, f, c.name)] = figure{float64(receptions(t)-before) / (batches * rounds), best}
				}
			}
		}
		for _, tunnel := range []bool{false, true} {
			a, b := network(t, 1500, pairs()[pair]...)
			began := time.Now()
			p, q, beside := a.addPod(1450), b.addPod(1450), a.addPod(1450)
			if tunnel {
				a.overlay(1450)
				b.overlay(1450)
			}
			a.reach(b, netset.V4, tunnel, 1450)
			b.reach(a, netset.V4, tunnel, 1450)
			a.apply()
			b.apply()
			t.Logf("%s: pods and nodes are up after %s", pair, time.Since(began).Round(time.Millisecond))
			if tunnel {
				measure("tunnel", p, q)
				continue
			}
			measure("same node", p, beside)
			measure("direct", p, q)
			measure("pod and node", p, a)
		}
	}
	for _, what := range slices.Sorted(maps.Keys(figures["veth"])) {
		veth, netkit := figures["veth"][what], figures["netkit"][what]
		t.Logf("%s: veth %6d ns, received %.2f times; netkit %6d ns (%+.1f %%), received %.2f times", what,
			veth.took.Nanoseconds(), veth.received, netkit.took.Nanoseconds(), 100*(float64(netkit.took)/float64(veth.took)-1), netkit.received)
		// The node's own packets take the same way with both.
		if want := map[bool]float64{true: 2, false: 0}[!strings.Contains(what, "pod and node")]; strings.Contains(what, "UDP") && math.Abs(veth.received-netkit.received-want) > .1 {
			t.Errorf("%s: received %.2f times with veth and %.2f with netkit, want %g less", what, veth.received, netkit.received, want)
		}
	}
}
