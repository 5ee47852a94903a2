// Package mesh measures the path MTU between this node and each of its peers: agents
// send each other datagrams that may not be fragmented and answer those that arrive.
//
// What was measured is written as model.PathMTU; a peer that never answered has none. It
// does not discover peers, carries no pod traffic, sets no MTU (that is compile/route), and
// trusts no ICMP. It makes no kernel state but one UDP socket: when the agent dies the
// last values stay in force, and the next agent measures anew.
package mesh

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/model"
	"weft/internal/netset"
)

const (
	// perSecond bounds the probes of one agent in the long run, however many peers it has.
	perSecond = 8
	// burst is what may be sent at once after quiet: two searches to the byte and their likes.
	burst = 64
	// shortCycle is the time between two looks at one path if there are few of them:
	// a path that narrows where no link event tells is found within it.
	shortCycle = 1500 * time.Millisecond
	// helloGap is the least time between two rounds of hellos.
	helloGap = time.Second
)

// Writer takes what was measured.
type Writer interface {
	Upsert(objs ...model.Object)
	Delete(keys ...model.Key)
}

// Stats counts datagrams since the start.
type Stats struct {
	Probes    uint64 // sent
	Echoes    uint64 // probes of peers that were answered
	Hellos    uint64 // sent
	Malformed uint64 // received and not understood
	Strangers uint64 // received from an address that is no peer's
	Stray     uint64 // answers to nothing that was asked
}

// Mesh measures the paths of one node. Its methods may be called from any goroutine.
type Mesh struct {
	name string // this node; its own addresses are the source of what is sent
	port uint16
	out  Writer
	log  *slog.Logger // never nil

	stats struct {
		probes, echoes, hellos, malformed, strangers, stray atomic.Uint64
	}

	mu      sync.Mutex // guards what follows: what callers say, until the loop takes it
	conn    *socket    // nil before Run
	peers   map[string][]netip.Addr
	renewed bool                     // peers were set since the loop last looked
	limit   int                      // MTU of the own underlay device, 0: not known yet
	pings   map[uint64]chan struct{} // by cookie: closed by the echo

	loop loop // of the goroutine of Run only
}

// loop is the state of the goroutine that measures.
type loop struct {
	start     time.Time
	nodes     map[string]*node
	byAddr    map[netip.Addr]*path
	queue     queue // all paths by due time
	found     found
	limit     int
	tokens    float64
	filled    time.Duration
	helloDue  time.Duration // when to send hellos; negative: not needed
	helloSent time.Duration
	buf       [1 << 16]byte // of received datagrams
	pad       [1 << 16]byte // of sent ones; zero behind the header
}

// node is a peer with one path for each family that both sides have.
type node struct {
	name  string
	paths []*path
	told  int // the value that was written last, 0: none
}

// busy reports whether a round is going on. A node's families take turns, because they mostly
// have one path, and then the second needs only to confirm what the first has found.
func (n *node) busy() bool {
	return slices.ContainsFunc(n.paths, func(p *path) bool { return p.size != 0 })
}

// New makes a Mesh for the node cfg.NodeName, which talks on cfg.Backend.ProbePort.
func New(cfg model.Config, out Writer, log *slog.Logger) *Mesh {
	return &Mesh{name: cfg.NodeName, port: cfg.Backend.ProbePort, out: out, log: log, pings: map[uint64]chan struct{}{}, loop: loop{
		start: time.Now(), nodes: map[string]*node{}, byAddr: map[netip.Addr]*path{},
		tokens: burst, helloDue: -1, helloSent: -helloGap,
	}}
}

// SetPeers says which nodes there are and their underlay addresses; the first address of
// each family is measured. This node may be among them: its addresses become the source.
func (m *Mesh) SetPeers(peers map[string][]netip.Addr) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.peers != nil && maps.EqualFunc(m.peers, peers, slices.Equal) {
		return
	}
	m.peers, m.renewed = peers, true
	m.wake()
}

// LocalMTU says the MTU in bytes of this node's underlay device. Nothing is probed before
// the first call. A change is told to all peers at once.
func (m *Mesh) LocalMTU(mtu int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.limit = min(mtu, maxSize)
	m.wake()
}

// Stats returns the counters.
func (m *Mesh) Stats() Stats {
	return Stats{
		Probes: m.stats.probes.Load(), Echoes: m.stats.echoes.Load(), Hellos: m.stats.hellos.Load(),
		Malformed: m.stats.malformed.Load(), Strangers: m.stats.strangers.Load(), Stray: m.stats.stray.Load(),
	}
}

// wake makes the loop look at what callers said. mu is held.
func (m *Mesh) wake() {
	if m.conn != nil {
		m.conn.interrupt()
	}
}

// Run answers and measures until ctx ends. It returns an error if the port cannot be used, and
// may be called again; what was measured before is not forgotten.
func (m *Mesh) Run(ctx context.Context) error {
	if err := m.open(); err != nil {
		return err
	}
	return m.serve(ctx)
}

// open makes the socket, in the network namespace of the calling thread.
func (m *Mesh) open() error {
	conn, err := listen(m.port)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.conn, m.renewed = conn, m.peers != nil
	return nil
}

// serve is the loop of Run.
func (m *Mesh) serve(ctx context.Context) error {
	conn, l := m.conn, &m.loop
	defer conn.Close()
	defer context.AfterFunc(ctx, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.wake()
	})()
	for ctx.Err() == nil {
		m.take(l.now())
		next := m.work(l.now())
		if !m.sleep(ctx, l.start.Add(next)) {
			continue
		}
		n, from, err := conn.receive(l.buf[:])
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
		case err != nil:
			return fmt.Errorf("receive path MTU probes on UDP port %d: %w", m.port, err)
		default:
			m.receive(l.buf[:n], from, l.now())
		}
	}
	return nil
}

// now is the loop's clock: monotonic, from zero.
func (l *loop) now() time.Duration { return time.Since(l.start) }

// sleep arms the socket to stop waiting at t. It is false if a caller said something meanwhile.
func (m *Mesh) sleep(ctx context.Context, t time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.renewed || m.limit != m.loop.limit || ctx.Err() != nil {
		return false
	}
	m.conn.wakeAt(t)
	return true
}

// take brings what callers said into the loop.
func (m *Mesh) take(now time.Duration) {
	l := &m.loop
	m.mu.Lock()
	peers, renewed, limit := m.peers, m.renewed, m.limit
	m.renewed = false
	if renewed {
		m.conn.setSource(peers[m.name]) // a Ping must not see half of it
	}
	m.mu.Unlock()
	if renewed {
		m.replace(peers, now)
	}
	if limit == l.limit {
		return
	}
	if l.limit != 0 {
		l.helloDue = max(now, l.helloSent+helloGap)
	}
	l.limit = limit
	for _, p := range l.queue {
		p.restart(now)
	}
	heap.Init(&l.queue)
}

// replace makes nodes and paths those of peers; what is known of a path that stays is kept.
func (m *Mesh) replace(peers map[string][]netip.Addr, now time.Duration) {
	l := &m.loop
	old := l.byAddr
	nodes := map[string]*node{}
	l.byAddr, l.queue = map[netip.Addr]*path{}, l.queue[:0]
	for name, addrs := range peers {
		if name == m.name {
			continue
		}
		n := l.nodes[name]
		if n == nil {
			n = &node{name: name}
		}
		n.paths = n.paths[:0]
		for _, f := range netset.Families() {
			a := netset.First(addrs, f)
			own := netset.First(peers[m.name], f)
			if !a.IsValid() || len(peers[m.name]) > 0 && !own.IsValid() {
				continue
			}
			p := old[a]
			if p == nil || p.node != n {
				p = newPath(n, netip.AddrPortFrom(a, m.port), &l.found)
				// Peers that appear together are measured one after the other, in no order.
				p.due = now + rand.N(50*time.Millisecond)
			}
			n.paths = append(n.paths, p)
			l.byAddr[a] = p
			l.queue = append(l.queue, p)
		}
		nodes[name] = n
	}
	for name, n := range l.nodes {
		if nodes[name] == nil && n.told != 0 {
			m.out.Delete(model.PathMTUKey(name))
		}
	}
	l.nodes = nodes
	for i, p := range l.queue {
		p.index = i
	}
	heap.Init(&l.queue)
	for _, n := range nodes {
		m.publish(n)
	}
}

// cycle is the time between two looks at one path: longer with many of them, so
// that looking takes at most half of the budget and searching has the rest.
func (l *loop) cycle() time.Duration {
	return max(shortCycle, time.Duration(len(l.queue))*time.Second*2/perSecond)
}

// work sends what is due and returns when to come back.
func (m *Mesh) work(now time.Duration) time.Duration {
	l := &m.loop
	if l.helloDue >= 0 && l.helloDue <= now {
		m.hello()
		l.helloDue, l.helloSent = -1, now
	}
	next := now + time.Minute
	for l.limit > 0 && len(l.queue) > 0 {
		p := l.queue[0]
		if p.due > now {
			next = min(next, p.due)
			break
		}
		if wait := l.wait(now); wait > 0 {
			next = now + wait
			break
		}
		if p.size == 0 && p.node.busy() {
			p.due = now + leastWait/2
		} else if size, done := p.turn(now, l.limit); done {
			m.finish(p, now)
		} else {
			l.tokens--
			m.probe(p, size, now)
		}
		heap.Fix(&l.queue, p.index)
	}
	if l.helloDue >= 0 {
		next = min(next, l.helloDue)
	}
	return next
}

// wait fills the bucket and returns how long it will take until it holds one probe.
func (l *loop) wait(now time.Duration) time.Duration {
	l.tokens = min(burst, l.tokens+perSecond*(now-l.filled).Seconds())
	l.filled = now
	if l.tokens >= 1 {
		return 0
	}
	return time.Duration((1-l.tokens)/perSecond*float64(time.Second)) + time.Millisecond
}

// finish ends a round of a path: it rests for a cycle, spread so that rounds do not gather.
func (m *Mesh) finish(p *path, now time.Duration) {
	m.loop.found.add(p.mtu)
	c := m.loop.cycle()
	p.due = now + c*9/10 + rand.N(c/5)
	if p.again {
		p.again, p.due = false, now
	}
	m.publish(p.node)
}

// probe sends one datagram that makes an IP packet of size bytes.
func (m *Mesh) probe(p *path, size int, now time.Duration) {
	l := &m.loop
	msg := l.pad[:size-p.headers()]
	header{kind: kindProbe, cookie: p.sent(now, size), size: uint16(size), mtu: uint16(l.limit)}.put(msg)
	err := m.conn.send(msg, p.to)
	switch {
	case err == nil:
		m.stats.probes.Add(1)
	case errors.Is(err, unix.EMSGSIZE):
		// The own device refused: nothing left, so it costs nothing and needs no second try.
		l.tokens++
		p.refused(now)
	default:
		// As good as lost on the way; the peer may have no route yet.
		m.log.Debug("mesh: probe", "node", p.node.name, "to", p.to, "err", err)
	}
}

// hello tells every peer the own MTU, so that it looks at its path to us now. It is one small
// datagram a peer and change, outside of the budget.
func (m *Mesh) hello() {
	l := &m.loop
	for _, p := range l.queue {
		msg := l.pad[:headerSize]
		header{kind: kindHello, mtu: uint16(l.limit)}.put(msg)
		if m.conn.send(msg, p.to) == nil {
			m.stats.hellos.Add(1)
		}
	}
}

// receive handles one datagram. Whatever it holds, the answer is never longer than it, and only
// peers are answered, on the port on which they listen.
func (m *Mesh) receive(b []byte, from netip.AddrPort, now time.Duration) {
	l := &m.loop
	h, err := parse(b)
	if err != nil {
		m.stats.malformed.Add(1)
		return
	}
	p := l.byAddr[from.Addr().Unmap()]
	if p == nil || from.Port() != m.port {
		m.stats.strangers.Add(1)
		return
	}
	wakes := h.mtu != 0 && int(h.mtu) != p.peer && p.mtu != 0
	switch h.kind {
	case kindProbe:
		wakes = wakes || p.silent // it is back
		m.echo(p, h)
	case kindEcho:
		if !m.pinged(h.cookie) {
			m.answered(p, h, now)
		}
		return
	}
	switch {
	case wakes && p.size != 0:
		p.again = true // what is on its way may have left before the change
	case wakes && p.due > now:
		p.due = now
		heap.Fix(&l.queue, p.index)
	}
}

// echo answers a probe.
func (m *Mesh) echo(p *path, h header) {
	msg := m.loop.pad[:headerSize]
	header{kind: kindEcho, cookie: h.cookie, size: h.size, mtu: uint16(m.loop.limit)}.put(msg)
	m.stats.echoes.Add(1)
	if err := m.conn.send(msg, p.to); err != nil {
		m.log.Debug("mesh: echo", "node", p.node.name, "to", p.to, "err", err)
	}
}

// answered takes a round further with the echo of a probe.
func (m *Mesh) answered(p *path, h header, now time.Duration) {
	size, ok := p.answered(h.cookie, now)
	if !ok {
		m.stats.stray.Add(1)
		return
	}
	if p.heard(int(h.mtu)) && p.mtu != 0 {
		p.restart(now)
	} else if p.due = now; p.passed(size) {
		m.finish(p, now)
	}
	heap.Fix(&m.loop.queue, p.index)
}

// publish writes the node's value if it changed: the least over its families, because a
// packet to it may take either.
func (m *Mesh) publish(n *node) {
	mtu := 0
	for _, p := range n.paths {
		if p.mtu != 0 && (mtu == 0 || p.mtu < mtu) {
			mtu = p.mtu
		}
	}
	if mtu == n.told {
		return
	}
	m.log.Info("path MTU measured", "node", n.name, "mtu", mtu, "before", n.told)
	n.told = mtu
	if mtu == 0 {
		m.out.Delete(model.PathMTUKey(n.name))
		return
	}
	m.out.Upsert(&model.PathMTU{Node: n.name, MTU: mtu})
}

// queue is a heap of paths by due time.
type queue []*path

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due < q[j].due }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

// Push implements heap.Interface; paths are only ever added with heap.Init.
func (q *queue) Push(x any) { *q = append(*q, x.(*path)) }

// Pop implements heap.Interface.
func (q *queue) Pop() any {
	last := (*q)[len(*q)-1]
	*q = slices.Delete(*q, len(*q)-1, len(*q))
	return last
}
