package mesh

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"weft/internal/model"
	"weft/internal/testkit"
)

// table is the Writer of a test: what is known now, and a channel that closes at each change.
type table struct {
	mu      sync.Mutex
	mtu     map[string]int
	changed chan struct{}
}

func newTable() *table { return &table{mtu: map[string]int{}, changed: make(chan struct{})} }

func (w *table) Upsert(objs ...model.Object) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range objs {
		p := o.(*model.PathMTU)
		w.mtu[p.Node] = p.MTU
	}
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *table) Delete(keys ...model.Key) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, k := range keys {
		delete(w.mtu, k.Name)
	}
	close(w.changed)
	w.changed = make(chan struct{})
}

// await waits until the table is want, each value up to slack above it, and returns how long that took.
func (w *table) await(t *testing.T, who string, want map[string]int, slack int, within time.Duration) time.Duration {
	t.Helper()
	start := time.Now()
	expired := time.After(within)
	for {
		w.mu.Lock()
		near := func(have, want int) bool { return want <= have && have <= want+slack }
		same, have, changed := maps.EqualFunc(w.mtu, want, near), maps.Clone(w.mtu), w.changed
		w.mu.Unlock()
		if same {
			return time.Since(start)
		}
		select {
		case <-changed:
		case <-expired:
			t.Fatalf("%s has %v after %s, want %v", who, have, within, want)
		}
	}
}

// rig is a switch with nodes around it, each with a leg of its own MTU.
type rig struct {
	sw    *testkit.Netns
	nodes []*member
	peers map[string][]netip.Addr
}

type member struct {
	name  string
	ns    *testkit.Netns
	addrs []netip.Addr
	mtu   int
	mesh  *Mesh
	table *table
}

// addresses are those of node i in the given families.
func addresses(i int, families string) (out []netip.Addr) {
	if families != "IPv6" {
		out = append(out, netip.MustParseAddr(fmt.Sprintf("10.9.0.%d", i+1)))
	}
	if families != "IPv4" {
		out = append(out, netip.MustParseAddr(fmt.Sprintf("fd09::%d", i+1)))
	}
	return out
}

func newRig(t *testing.T, families string, mtus ...int) *rig {
	t.Helper()
	r := &rig{sw: testkit.New(t), peers: map[string][]netip.Addr{}}
	r.sw.Run(t, "ip", "link", "add", "br0", "up", "type", "bridge", "mcast_snooping", "0")
	for i, mtu := range mtus {
		m := &member{name: fmt.Sprintf("node-%d", i+1), ns: testkit.New(t), addrs: addresses(i, families), mtu: mtu, table: newTable()}
		port := fmt.Sprintf("p%d", i+1)
		r.sw.Run(t, "ip", "link", "add", port, "mtu", fmt.Sprint(mtu), "master", "br0", "type", "veth",
			"peer", "name", "eth0", "mtu", fmt.Sprint(mtu), "netns", m.ns.Path())
		r.sw.Run(t, "ip", "link", "set", port, "up")
		for _, a := range m.addrs {
			bits := map[bool]string{true: "/24", false: "/64"}[a.Is4()]
			m.ns.Run(t, "ip", "addr", "add", a.String()+bits, "dev", "eth0", "nodad")
		}
		m.ns.Run(t, "ip", "link", "set", "eth0", "up")
		r.nodes = append(r.nodes, m)
		r.peers[m.name] = m.addrs
	}
	return r
}

// start runs an agent's mesh on a node until the test ends or stop is called.
func (r *rig) start(t *testing.T, m *member) (stop func()) {
	t.Helper()
	cfg := model.Config{NodeName: m.name}
	cfg.SetDefaults()
	m.mesh = New(cfg, m.table, slog.New(slog.DiscardHandler))
	m.mesh.SetPeers(r.peers)
	m.mesh.LocalMTU(m.mtu)
	var err error
	m.ns.Do(t, func() { err = m.mesh.open() })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.mesh.serve(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("%s: %v", m.name, err)
			}
		case <-time.After(2 * time.Second):
			t.Errorf("%s: Run did not end", m.name)
		}
	})
	t.Cleanup(stop)
	return stop
}

// expect awaits on every node the least of both legs to each other one. slack is what a value may be
// above that: a veth, and on some kernels a bridge, forwards a VLAN tag's four bytes more than its MTU
// says, which shows where only the switch's end of a leg was narrowed.
func (r *rig) expect(t *testing.T, what string, within time.Duration, slack int, legs ...int) {
	t.Helper()
	start := time.Now()
	for i, m := range r.nodes {
		want := map[string]int{}
		for j, peer := range r.nodes {
			if i != j {
				want[peer.name] = min(legs[i], legs[j])
			}
		}
		m.table.await(t, what+": "+m.name, want, slack, testkit.Within(within)-time.Since(start))
	}
	testkit.Promised(t, what, time.Since(start), within)
	t.Logf("%s: all %d paths right after %s", what, len(legs)*(len(legs)-1), time.Since(start).Round(time.Millisecond))
}

func eachFamily(t *testing.T, f func(t *testing.T, families string)) {
	testkit.RequireRoot(t)
	for _, families := range []string{"IPv4", "IPv6", "dual"} {
		t.Run(families, func(t *testing.T) { f(t, families) })
	}
}

// TestConverge measures legs of 9000, 1500 and 1400, narrows one end, then the middle where no
// node sees a link event, and widens both again; every step within five seconds down, and up in ten.
func TestConverge(t *testing.T) {
	eachFamily(t, func(t *testing.T, families string) {
		r := newRig(t, families, 9000, 1500, 1400)
		testkit.NoLeaks(t, []*testkit.Netns{r.sw})
		for _, m := range r.nodes {
			r.start(t, m)
		}
		r.expect(t, "start", 8*time.Second, 0, 9000, 1500, 1400)

		second := r.nodes[1]
		second.ns.Run(t, "ip", "link", "set", "eth0", "mtu", "1350")
		second.mesh.LocalMTU(1350)
		r.expect(t, "node's own end narrowed", 5*time.Second, 0, 9000, 1350, 1400)

		second.ns.Run(t, "ip", "link", "set", "eth0", "mtu", "1500")
		second.mesh.LocalMTU(1500)
		r.expect(t, "node's own end widened", 10*time.Second, 0, 9000, 1500, 1400)

		// The switch's end: no node is told.
		r.sw.Run(t, "ip", "link", "set", "p2", "mtu", "1300")
		r.expect(t, "switch's end narrowed", 5*time.Second, 4, 9000, 1300, 1400)

		r.sw.Run(t, "ip", "link", "set", "p2", "mtu", "1500")
		r.expect(t, "switch's end widened", 10*time.Second, 0, 9000, 1500, 1400)
	})
}

// TestRestartedAgent: silence keeps the last values; an agent that comes back is
// measured again at once, and a node that left the cluster has no row.
func TestRestartedAgent(t *testing.T) {
	eachFamily(t, func(t *testing.T, families string) {
		r := newRig(t, families, 1500, 1500)
		stop := r.start(t, r.nodes[0])
		r.start(t, r.nodes[1])
		r.expect(t, "start", 5*time.Second, 0, 1500, 1500)
		stop()
		before := r.nodes[1].mesh.Stats().Probes
		r.sw.Run(t, "ip", "link", "set", "p1", "mtu", "1400")
		// Until all tries of the value and of the floor have failed, and one more.
		deadline := time.Now().Add(10 * time.Second)
		for other := r.nodes[1].mesh; other.Stats().Probes < before+7 && time.Now().Before(deadline); {
			time.Sleep(20 * time.Millisecond)
		}
		r.nodes[1].table.await(t, "during silence", map[string]int{"node-1": 1500}, 0, time.Second)
		r.nodes[0].table = newTable()
		r.start(t, r.nodes[0])
		r.expect(t, "after the restart", 5*time.Second, 4, 1400, 1500)
		r.nodes[1].mesh.SetPeers(map[string][]netip.Addr{"node-2": r.peers["node-2"]})
		r.nodes[1].table.await(t, "after the node left", map[string]int{}, 0, time.Second)
	})
}

// TestBudget: three hundred peers, most of them not there, cost no more probes than the budget.
func TestBudget(t *testing.T) {
	r := newRig(t, "dual", 1500, 1500)
	for i := range 300 {
		r.peers[fmt.Sprintf("ghost-%d", i)] = []netip.Addr{
			netip.MustParseAddr(fmt.Sprintf("10.9.0.%d", 3+i%250)).Next(), netip.MustParseAddr(fmt.Sprintf("fd09::1:%x", i+1)),
		}
	}
	start := time.Now()
	r.start(t, r.nodes[0])
	time.Sleep(4 * time.Second) // the budget is a rate: only time shows it
	sent, took := r.nodes[0].mesh.Stats().Probes, time.Since(start)
	if most := uint64(burst + perSecond*took.Seconds() + 1); sent > most || sent < burst {
		t.Errorf("%d probes in %s, want %d to %d", sent, took, burst, most)
	}
}

// TestAnswers sends what is not a peer's probe: nothing of it is answered, and no answer is longer than its question.
func TestAnswers(t *testing.T) {
	eachFamily(t, func(t *testing.T, families string) {
		r := newRig(t, families, 1500, 1500)
		subject, other := r.nodes[0], r.nodes[1]
		r.start(t, subject)
		to := netip.AddrPortFrom(subject.addrs[0], 8473)
		var known, stranger *net.UDPConn
		other.ns.Do(t, func() {
			for port, c := range map[int]**net.UDPConn{8473: &known, 8000: &stranger} {
				conn, err := net.ListenUDP("udp", &net.UDPAddr{Port: port})
				if err != nil {
					t.Error(err)
					return
				}
				*c = conn
			}
		})
		if t.Failed() {
			return
		}
		defer known.Close()
		defer stranger.Close()
		probe := make([]byte, 100)
		header{kind: kindProbe, size: 128, cookie: 42}.put(probe)
		send := func(c *net.UDPConn, b []byte) {
			if _, err := c.WriteToUDPAddrPort(b, to); err != nil {
				t.Fatal(err)
			}
		}
		send(stranger, probe)
		wrong := map[string][]byte{"empty": {}, "short": probe[:headerSize-1], "magic": append([]byte("nope"), probe[4:]...)}
		for _, at := range []int{4, 5} {
			b := bytes.Clone(probe)
			b[at] = 99
			wrong[fmt.Sprint("byte ", at)] = b
		}
		long := bytes.Clone(probe)
		long[5] = byte(kindEcho)
		wrong["long echo"] = long
		for _, b := range wrong {
			send(known, b)
		}
		send(known, long[:headerSize]) // an echo that nobody asked for
		send(known, probe)             // the only one with an answer; datagrams of one sender stay in order
		buf := make([]byte, 2048)
		if err := known.SetReadDeadline(time.Now().Add(3 * time.Second)); err != nil {
			t.Fatal(err)
		}
		for {
			n, _, err := known.ReadFromUDPAddrPort(buf)
			if err != nil {
				t.Fatalf("no answer to a peer's probe: %v", err)
			}
			if buf[5] != byte(kindEcho) {
				continue // the subject's own probes
			}
			if n != headerSize || binary.BigEndian.Uint64(buf[12:]) != 42 {
				t.Fatalf("answered with %d bytes % x", n, buf[:n])
			}
			break
		}
		s := subject.mesh.Stats()
		if s.Malformed != uint64(len(wrong)) || s.Strangers != 1 || s.Stray != 1 || s.Echoes != 1 {
			t.Errorf("counted %+v, want %d malformed, one stranger, one stray, one echo", s, len(wrong))
		}
		if err := stranger.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if n, _, err := stranger.ReadFromUDPAddrPort(buf); err == nil {
			t.Errorf("a stranger got %d bytes", n)
		}
	})
}

// TestPortInUse names the port.
func TestPortInUse(t *testing.T) {
	ns := testkit.New(t)
	cfg := model.Config{}
	cfg.SetDefaults()
	first, second := New(cfg, newTable(), slog.New(slog.DiscardHandler)), New(cfg, newTable(), slog.New(slog.DiscardHandler))
	var errs []error
	ns.Do(t, func() { errs = append(errs, first.open(), second.open()) })
	defer first.conn.Close()
	if errs[0] != nil || errs[1] == nil || !bytes.Contains([]byte(errs[1].Error()), []byte("8473")) {
		t.Errorf("got %v, want the second to name port 8473", errs)
	}
}

// TestSteadyStateAllocates nothing: a probe and its echo through real sockets.
func TestSteadyStateAllocates(t *testing.T) {
	r := newRig(t, "dual", 1500, 1500)
	m := r.nodes[0]
	cfg := model.Config{NodeName: m.name}
	cfg.SetDefaults()
	m.mesh = New(cfg, m.table, slog.New(slog.DiscardHandler))
	m.mesh.SetPeers(r.peers)
	m.mesh.LocalMTU(1500)
	m.ns.Do(t, func() {
		if err := m.mesh.open(); err != nil {
			t.Error(err)
		}
	})
	defer m.mesh.conn.Close()
	mesh, l := m.mesh, &m.mesh.loop
	mesh.take(0)
	now := time.Minute
	echo := make([]byte, headerSize)
	paths := slices.Clone([]*path(l.queue))
	round := func() {
		for _, p := range paths {
			now += time.Second
			p.due = now
			l.tokens = burst
			mesh.work(now)
			sent := p.last[(p.next+len(p.last)-1)%len(p.last)]
			header{kind: kindEcho, cookie: sent.cookie, size: uint16(sent.size), mtu: 1500}.put(echo)
			mesh.receive(echo, p.to, now)
		}
	}
	round()
	if n := testing.AllocsPerRun(100, round); n != 0 {
		t.Errorf("%v allocations for a round of %d paths", n, len(paths))
	}
	if s := mesh.Stats(); s.Probes < 200 || s.Stray > 0 {
		t.Errorf("the rounds were not real: %+v", s)
	}
}
