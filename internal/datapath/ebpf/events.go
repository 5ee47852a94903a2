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

	"weft/internal/model"
	"weft/internal/plan"
)

// What the programs tell of policy: how often rules decided, which packets were denied, how many flows are known.

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
	err = each(d.policy.rules.m, func(rule uint32, h weftWeftHits) error {
		id := d.policy.numbers.id(ofRule, rule)
		hits := RuleHits{Packets: h.Packets}
		if h.Last > 0 {
			hits.Last = time.Now().Add(-(now - sinceBoot(h.Last, hz)))
		}
		if id != 0 {
			out[id] = hits
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

// Record is a packet that policy did not let pass, or about which a rule that logs was asked.
type Record struct {
	Time      time.Time
	Src, Dst  netip.Addr
	SrcPort   uint16
	DstPort   uint16 // of ICMP: type<<8 | code
	Proto     uint8
	Direction plan.Direction
	Logged    model.Verdict // of a rule that logs: what the policies of this direction say in the end. VerdictNone: a denied packet
	Rule      plan.ID       // that decided, or that logs; 0: see Reason
	Reason    string        // of a denied packet a name of Stats: drop_policy, reject, drop_closed, drop_fragment, drop_undecided or drop_not_ip
	Device    int           // index of the device that it was seen on
}

// Records calls f with records of denied packets, and of first packets that rules log, until ctx ends. A CPU makes at most 256 records a
// second; the others are only counted (see LostRecords), and so are those that nobody reads in time. There may be one caller at a time.
func (d *Driver) Records(ctx context.Context, f func(Record)) error {
	r, err := ringbuf.NewReader(d.objs.Records)
	if err != nil {
		return fmt.Errorf("read records of packets: %w", err)
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
			return fmt.Errorf("read records of packets: %w", err)
		}
		var x weftWeftRecord
		if err := binary.Read(bytes.NewReader(rec.RawSample), binary.NativeEndian, &x); err != nil {
			return fmt.Errorf("read records of packets: %w", err)
		}
		f(d.record(x))
	}
}

func (d *Driver) record(x weftWeftRecord) Record {
	out := Record{
		Time: time.Now().Add(time.Duration(x.Time) - monotonic()), Src: addrFrom(x.Src), Dst: addrFrom(x.Dst),
		SrcPort: bigEndian(x.Sport), DstPort: bigEndian(x.Dport), Proto: x.Proto, Direction: plan.Direction(x.Direction),
		Device: int(x.Ifindex), Rule: d.policy.numbers.id(ofRule, x.Rule), Logged: model.Verdict(x.Answer),
	}
	if out.Logged == model.VerdictNone && int(x.Reason) < len(d.names) {
		out.Reason = d.names[x.Reason]
	}
	return out
}

// LostRecords returns how many packets that should have one have no record.
func (d *Driver) LostRecords() uint64 {
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

// Conn is a connection that policy has allowed and that is still known.
type Conn struct {
	Src, Dst         netip.Addr // Src opened it
	SrcPort, DstPort uint16     // 0 of what has no ports
	Proto            uint8
}

// Connections calls f for the connections that are known to be allowed, until it returns false. Of those that come and go meanwhile
// some may be missed, or come twice. It may be called from any goroutine.
func (d *Driver) Connections(f func(Conn) bool) error {
	d.apply.Lock()
	m, err := d.policy.conns.open()
	d.apply.Unlock()
	if err != nil || m == nil {
		return err
	}
	defer func() { _ = m.Close() }()
	var pair weftWeftPair
	var conn weftWeftConn
	entries := m.Iterate()
	for entries.Next(&pair, &conn) {
		src := 0
		if conn.Flags&connSecond != 0 {
			src = 1
		}
		c := Conn{
			Src: addrFrom(pair.Addr[src]), Dst: addrFrom(pair.Addr[1-src]), SrcPort: bigEndian(pair.Port[src]), DstPort: bigEndian(pair.Port[1-src]),
			Proto: uint8(pair.Proto),
		}
		if !f(c) {
			return nil
		}
	}
	if err := entries.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return fmt.Errorf("list connections: %w", err)
	}
	return nil
}

// connSecond is CONN_SECOND of bpf/lib/conn.h.
const connSecond = 0x01

// Conns returns how many flows of pods under policy the kernel remembers, whether they still live or not.
func (d *Driver) Conns() (int, error) {
	n := 0
	err := d.Connections(func(Conn) bool { n++; return true })
	return n, err
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
