package linux

import (
	"encoding/binary"
	"fmt"
	"math"

	"golang.org/x/sys/unix"

	"weft/internal/datapath/linux/rtnl"
	"weft/internal/model"
)

// Numbers of linux/pkt_sched.h.
const (
	tcRoot         = 0xffffffff // TC_H_ROOT
	tcHandle       = 0x770000   // 77:, ours; 78: when it takes the place of another of ours
	tcOther        = 0x780000
	tcmsgLen       = 20 // struct tcmsg
	tcaKind        = 1
	tcaOptions     = 2
	tbfParms       = 1
	tbfRate        = 4 // TCA_TBF_RATE64
	tbfBurst       = 6
	linklayerEther = 1
)

// bucket is a token bucket filter (tc-tbf(8)): bytes and bytes per second.
type bucket struct {
	rate         uint64
	burst, limit uint32
}

// Bounds of bursts, in bytes, and the rate from which on a burst holds a superpacket.
const (
	burstLeast = 16 << 10
	burstMost  = 4 << 20
	// superpacket is 64 KiB and what the queue counts for the headers of its segments.
	superpacket = 80 << 10
	superRate   = 10e6 / 8 // bytes per second
)

// newBucket chooses what the rate leaves open. The burst is 10 ms of the rate: short enough that a second's
// mean is within a percent of the rate, long enough for one softirq's worth of packets. From 10 Mbit/s on it holds a whole
// superpacket, so that none need be segmented (65 ms at that rate). The queue holds 50 ms beyond that: less makes a
// loss-based sender idle after each loss, more is delay for everybody else of the pod.
func newBucket(r model.Rate, mtu int) bucket {
	bytesPerSecond := r.Bits / 8
	b := bucket{rate: max(bytesPerSecond, 1)}
	burst := r.Burst / 8
	if burst == 0 {
		least := uint64(burstLeast)
		if bytesPerSecond >= superRate {
			least = superpacket
		}
		burst = min(max(bytesPerSecond/100, least), burstMost)
	}
	b.burst = uint32(min(max(burst, uint64(2*mtu)), math.MaxInt32))
	b.limit = uint32(min(uint64(b.burst)+max(bytesPerSecond/20, 128<<10), math.MaxInt32))
	return b
}

// parms is struct tc_tbf_qopt: rate and peak rate (struct tc_ratespec), limit, buffer, MTU.
func (b bucket) parms() []byte {
	p := make([]byte, 36)
	p[1] = linklayerEther
	binary.NativeEndian.PutUint32(p[8:], uint32(min(b.rate, math.MaxUint32)))
	binary.NativeEndian.PutUint32(p[24:], b.limit)
	return p
}

// tcmsg is struct tcmsg for the root of a device.
func tcmsg(index int, handle uint32) []byte {
	b := make([]byte, tcmsgLen)
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	binary.NativeEndian.PutUint32(b[8:], handle)
	binary.NativeEndian.PutUint32(b[12:], tcRoot)
	return b
}

// shape limits what leaves an interface, or lets go of it where the rate is 0. A limit that is right stays untouched; another
// one is changed in place, with what is queued. It lives and dies with the interface.
func (a *apply) shape(nl *rtnl.Conn, dev *rtnl.Link, rate model.Rate, mtu int) error {
	if rate.Bits == 0 {
		if dev.Qdisc != "tbf" {
			return nil
		}
		if err := nl.One(rtnl.NewRequest(unix.RTM_DELQDISC, 0, tcmsg(dev.Index, 0))).Err; err != nil && !gone(err) && !rtnl.IsErrno(err, unix.EINVAL) {
			return fmt.Errorf("delete the limit: %w", err)
		}
		return nil
	}
	b := newBucket(rate, mtu)
	handle := uint32(tcHandle)
	if dev.Qdisc == "tbf" {
		old := bucketOf(nl, dev.Index)
		if old.is(b) {
			return nil
		}
		if handle = old.handle; old.burst() > uint64(b.burst) && b.burst < superpacket {
			// A queued packet that is larger than the new burst would never leave. Another handle makes a new, empty queue.
			handle = tcHandle + tcOther - old.handle
		}
	}
	r := rtnl.NewRequest(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, tcmsg(dev.Index, handle)).Text(tcaKind, "tbf")
	r.Nest(tcaOptions, func() {
		r.Bytes(tbfParms, b.parms()...).U32(tbfBurst, int(b.burst))
		if b.rate > math.MaxUint32 {
			r.Bytes(tbfRate, binary.NativeEndian.AppendUint64(nil, b.rate)...)
		}
	})
	return nl.One(r).Err
}

// installed is a token bucket as the kernel tells it.
type installed struct {
	handle uint32
	rate   uint64
	limit  uint32
	ticks  uint64 // how long the burst takes, in units of 64 ns
}

// burst is about the burst in bytes; the kernel does not tell it.
func (i installed) burst() uint64 { return i.ticks * i.rate / (1e9 / 64) }

func (i installed) is(b bucket) bool {
	want := uint64(b.burst) * (1e9 / 64) / b.rate
	return i.rate == b.rate && i.limit == b.limit && i.ticks+2 >= want && i.ticks <= want+2
}

// bucketOf returns a device's root token bucket; the zero one if it cannot be read.
func bucketOf(nl *rtnl.Conn, index int) installed {
	r := rtnl.NewRequest(unix.RTM_GETQDISC, unix.NLM_F_ECHO, tcmsg(index, 0)) // without it, only listeners are told
	r.Answer = true
	rep := nl.One(r)
	if rep.Err != nil || len(rep.Msgs[0]) < tcmsgLen {
		return installed{handle: tcHandle}
	}
	out := installed{handle: binary.NativeEndian.Uint32(rep.Msgs[0][8:])}
	if out.handle != tcOther {
		out.handle = tcHandle
	}
	var large uint64
	for typ, v := range rtnl.Attrs(rep.Msgs[0][tcmsgLen:]) {
		if typ != tcaOptions {
			continue
		}
		for typ, v := range rtnl.Attrs(v) {
			switch {
			case typ == tbfRate:
				large = uint64(rtnl.Uint(v))
			case typ == tbfParms && len(v) >= 36:
				out.rate = uint64(binary.NativeEndian.Uint32(v[8:]))
				out.limit = binary.NativeEndian.Uint32(v[24:])
				out.ticks = uint64(binary.NativeEndian.Uint32(v[28:]))
			}
		}
	}
	if large != 0 {
		out.rate = large
	}
	return out
}
