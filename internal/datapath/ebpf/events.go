package ebpf

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"weft/internal/plan"
)

// What the programs tell of policy: how often rules decided, which packets were denied, how many flows are known.

// counters are the counters of rules, by their number. Programs count where an entry is; the agent makes the entries.
type counters struct {
	m      *ebpf.Map
	nest   *nest
	cpus   int
	writes int // for tests
}

func openCounters(n *nest) (*counters, error) {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("ask for the number of CPUs: %w", err)
	}
	c := &counters{nest: n, cpus: cpus}
	if c.m, err = n.open(); err != nil || c.m != nil {
		return c, err
	}
	if c.m, err = n.make(firstSize); err != nil {
		return nil, err
	}
	return c, n.use(c.m)
}

// put makes a rule's counter, if there is none. When there is no room, and the map cannot grow, the rule works without.
func (c *counters) put(rule uint32) error {
	err := c.m.Update(rule, make([]weftWeftHits, c.cpus), ebpf.UpdateNoExist)
	switch {
	case errors.Is(err, ebpf.ErrKeyExist):
		return nil
	case isFull(err) && c.m.MaxEntries() == c.nest.inner.MaxEntries:
		return nil
	case isFull(err):
		if err := c.grow(); err != nil {
			return err
		}
		return c.put(rule)
	case err != nil:
		return fmt.Errorf("write map %s: %w", c.nest.name, err)
	}
	c.writes++
	return nil
}

// grow makes room. What is counted between copy and use, a few milliseconds, is lost.
func (c *counters) grow() error {
	m, err := c.nest.make(min(4*c.m.MaxEntries(), c.nest.inner.MaxEntries))
	if err != nil {
		return err
	}
	err = c.each(func(rule uint32, hits []weftWeftHits) error { return m.Update(rule, hits, ebpf.UpdateAny) })
	if err == nil {
		err = c.nest.use(m)
	}
	if err != nil {
		_ = m.Close()
		return fmt.Errorf("enlarge map %s: %w", c.nest.name, err)
	}
	_ = c.m.Close()
	c.m = m
	return nil
}

func (c *counters) drop(rule uint32) error {
	switch err := c.m.Delete(rule); {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("delete from map %s: %w", c.nest.name, err)
	}
	c.writes++
	return nil
}

func (c *counters) each(f func(uint32, []weftWeftHits) error) error {
	var rule uint32
	var hits []weftWeftHits
	for entries := c.m.Iterate(); entries.Next(&rule, &hits); {
		if err := f(rule, hits); err != nil {
			return err
		}
	}
	return nil
}

// RuleHits is how often a rule decided about a packet, or was noted.
type RuleHits struct {
	Packets uint64
	Last    time.Time // zero: never
}

// RuleHits returns the hits of all rules that are in the kernel. Packets of a connection that was allowed before are not
// asked about again and not counted. It may be called from any goroutine.
func (d *Driver) RuleHits() (map[plan.ID]RuleHits, error) {
	hz, err := jiffiesPerSecond()
	if err != nil {
		return nil, err
	}
	now := monotonic()
	d.apply.Lock() // the map may be replaced
	defer d.apply.Unlock()
	out := map[plan.ID]RuleHits{}
	err = d.policy.rules.each(func(rule uint32, perCPU []weftWeftHits) error {
		id := d.policy.numbers.id(ofRule, rule)
		var sum RuleHits
		var last uint64
		for _, h := range perCPU {
			sum.Packets += h.Packets
			last = max(last, h.Last)
		}
		if last > 0 {
			sum.Last = time.Now().Add(-(now - sinceBoot(last, hz)))
		}
		if id != 0 {
			out[id] = sum
		}
		return nil
	})
	return out, err
}

// sinceBoot turns jiffies into the time of CLOCK_MONOTONIC. The kernel starts five minutes before 32 bits run over.
func sinceBoot(jiffies uint64, hz uint32) time.Duration {
	first := uint64(uint32(-300 * int64(hz)))
	return time.Duration(jiffies-first) * (time.Second / time.Duration(hz))
}

func monotonic() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // fails for unknown clocks only
	return time.Duration(ts.Nano())
}

// Denial is a packet that policy did not let pass.
type Denial struct {
	Time      time.Time
	Src, Dst  netip.Addr
	SrcPort   uint16
	DstPort   uint16 // of ICMP: type<<8 | code
	Proto     uint8
	Direction plan.Direction
	Rule      plan.ID // that decided; 0: see Reason
	Reason    string  // a name of Stats: drop_policy, reject, drop_closed, drop_fragment, drop_undecided or drop_not_ip
	Device    int     // index of the device that it was seen on
}

// Denials calls f with each record of a denied packet until ctx ends. A CPU makes at most 256 records a second; the others are
// only counted (see LostDenials), and so are those that nobody reads in time. There may be one caller at a time.
func (d *Driver) Denials(ctx context.Context, f func(Denial)) error {
	r, err := ringbuf.NewReader(d.objs.Denials)
	if err != nil {
		return fmt.Errorf("read denied packets: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = r.Close() })
	defer func() {
		stop()
		_ = r.Close()
	}()
	for {
		rec, err := r.Read()
		if ctx.Err() != nil || errors.Is(err, os.ErrClosed) {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("read denied packets: %w", err)
		}
		var x weftWeftDenial
		if err := binary.Read(bytes.NewReader(rec.RawSample), binary.NativeEndian, &x); err != nil {
			return fmt.Errorf("read denied packets: %w", err)
		}
		f(d.denial(x))
	}
}

func (d *Driver) denial(x weftWeftDenial) Denial {
	out := Denial{
		Time: time.Now().Add(time.Duration(x.Time) - monotonic()), Src: addrFrom(x.Src), Dst: addrFrom(x.Dst),
		SrcPort: bigEndian(x.Sport), DstPort: bigEndian(x.Dport), Proto: x.Proto, Direction: plan.Direction(x.Direction),
		Device: int(x.Ifindex), Rule: d.policy.numbers.id(ofRule, x.Rule),
	}
	if int(x.Reason) < len(d.names) {
		out.Reason = d.names[x.Reason]
	}
	return out
}

// LostDenials returns how many denied packets have no record.
func (d *Driver) LostDenials() uint64 {
	var perCPU []weftWeftPace
	if err := d.objs.Pace.Lookup(uint32(0), &perCPU); err != nil {
		return 0 // the map is an array: only a closed driver gets here
	}
	var sum uint64
	for _, x := range perCPU {
		sum += x.Lost
	}
	return sum
}

// Conns returns how many flows of pods under policy the kernel remembers, whether they still live or not.
func (d *Driver) Conns() (int, error) {
	d.apply.Lock()
	defer d.apply.Unlock()
	m, err := d.policy.conns.open()
	if err != nil || m == nil {
		return 0, err
	}
	defer func() { _ = m.Close() }()
	var pair weftWeftPair
	var conn weftWeftConn
	n := 0
	entries := m.Iterate()
	for entries.Next(&pair, &conn) {
		n++
	}
	if err := entries.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return 0, fmt.Errorf("count flows: %w", err)
	}
	return n, nil
}

// readyConns makes room for flows.
func (p *policies) readyConns(outer *ebpf.Map) error {
	var id uint32
	if outer.Lookup(uint32(0), &id) == nil {
		return nil
	}
	m, err := p.conns.make(p.conns.inner.MaxEntries)
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }()
	return p.conns.use(m)
}

// dropConns gives the room back.
func (p *policies) dropConns() error { return p.conns.drop() }

func (p *policies) close() error {
	return errors.Join(p.lists.m.Close(), p.members.m.Close(), p.addresses.m.Close(), p.vips.m.Close(), p.rules.m.Close(), p.numbers.t.m.Close())
}
