package mesh

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"weft/internal/netset"
)

// pingPause is the time between two probes of a Ping: one may be lost.
const pingPause = 300 * time.Millisecond

// Ping asks a peer for an echo until one of its addresses has answered or ctx ends. It measures nothing, and is outside of the
// budget of probes: whoever calls it has few peers in mind.
func (m *Mesh) Ping(ctx context.Context, name string) error {
	cookie, echoed := rand.Uint64(), make(chan struct{})
	m.mu.Lock()
	m.pings[cookie] = echoed
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.pings, cookie)
	}()
	for {
		m.sendPing(name, cookie)
		select {
		case <-ctx.Done():
			return fmt.Errorf("the agent of %s does not answer on UDP port %d: %w", name, m.port, ctx.Err())
		case <-echoed:
			return nil
		case <-time.After(pingPause):
		}
	}
}

func (m *Mesh) sendPing(name string, cookie uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	msg := make([]byte, headerSize)
	header{kind: kindProbe, cookie: cookie, mtu: uint16(m.limit)}.put(msg)
	for _, f := range netset.Families() {
		a := netset.First(m.peers[name], f)
		if m.conn == nil || !a.IsValid() {
			continue
		}
		m.stats.probes.Add(1)
		if err := m.conn.send(msg, netip.AddrPortFrom(a, m.port)); err != nil {
			m.log.Debug("mesh: ping", "node", name, "to", a, "err", err)
		}
	}
}

// pinged reports whether an echo is the answer to a Ping.
func (m *Mesh) pinged(cookie uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	echoed, ok := m.pings[cookie]
	if ok {
		close(echoed)
		delete(m.pings, cookie)
	}
	return ok
}
