package mesh

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"weft/internal/netset"
)

const (
	// tries is how often a size is sent before it counts as too big: one datagram may be lost.
	tries = 3
	// widenEvery is the number of rounds between two looks whether a narrow path became wider.
	widenEvery = 3
	// Bounds of the time that is waited for an answer.
	firstWait = 250 * time.Millisecond
	leastWait = 40 * time.Millisecond
	mostWait  = time.Second
)

// plausible are the MTUs that networks have: they are tried before a bracket is halved.
// 1400 and 1450 are tunnels, 1420 WireGuard, 1460 and 8896 GCE, 1492 PPPoE, 9001 AWS.
var plausible = [...]int{1280, 1400, 1420, 1450, 1460, 1492, 1500, 8896, 9000, 9001} //nolint:gochecknoglobals // an array constant

// path is the way to one address of a peer. It is pure: it is told what time it is and what
// arrived, and answers what to send; so it can be tested without a network.
//
// A round looks at the known MTU, or searches: lo is the largest size that arrived in this
// round and hi the smallest that did not, and the round ends when they meet. A size is too big
// only if it was lost three times, a smaller one arrived, and it was lost twice more; silence proves nothing.
type path struct {
	node  *node
	found *found
	to    netip.AddrPort
	index int           // in the queue
	due   time.Duration // when to call turn
	mtu   int           // the result, 0: none yet
	own   int           // MTU of this node's device, as turn was told
	peer  int           // MTU of the peer's device, as its last echo said, 0: unknown

	size   int  // of the probe that is waited for, 0: between rounds
	left   int  // tries of it that are left
	lo, hi int  // see above; lo 0: nothing arrived in this round
	retest bool // hi was lost while nothing arrived: try it again
	silent bool // the last round had no answer at all
	rounds int
	widen  bool // this round asks whether more than mtu arrives
	again  bool // begin the next round at once

	rtt  time.Duration // smoothed, 0: unknown
	last [tries + 1]probe
	next int // index into last
}

// probe is a datagram that was sent.
type probe struct {
	cookie uint64
	size   int
	at     time.Duration
}

func newPath(n *node, to netip.AddrPort, f *found) *path { return &path{node: n, to: to, found: f} }

// found holds the results of the last searches on any path, the newest first.
type found [4]int

func (f *found) add(mtu int) {
	i := slices.Index(f[:], mtu)
	if i < 0 {
		i = len(f) - 1
	}
	copy(f[1:i+1], f[:i])
	f[0] = mtu
}

// headers is the length of the IP and UDP headers of a probe.
func (p *path) headers() int {
	if netset.Of(p.to.Addr()) == netset.V4 {
		return 20 + 8
	}
	return 40 + 8
}

// floor is what every path must carry (RFC 791 §3.2, RFC 8200 §5): if not even that
// arrives then the size is not why.
func (p *path) floor() int {
	if netset.Of(p.to.Addr()) == netset.V4 {
		return 576
	}
	return 1280
}

// turn is called when the path is due. It returns the size of the probe to send now,
// or done at the end of a round. own is the MTU of this node's device.
func (p *path) turn(now time.Duration, own int) (size int, done bool) {
	p.own = own
	switch {
	case p.size == 0:
		p.begin()
	case p.left > 0:
	case p.failed():
		return 0, true
	}
	p.left--
	p.due = now + p.patience()
	return p.size, false
}

// restart begins a round now, whatever was going on.
func (p *path) restart(now time.Duration) {
	p.size, p.due, p.rounds = 0, now, widenEvery-1
}

// patience is how long an answer is waited for.
func (p *path) patience() time.Duration {
	if p.rtt == 0 {
		return firstWait
	}
	return min(max(4*p.rtt, leastWait), mostWait)
}

// begin starts a round with what is believed: that nothing has changed.
func (p *path) begin() {
	p.lo, p.hi, p.retest = 0, p.limit()+1, false
	p.rounds++
	p.widen = p.rounds%widenEvery == 0
	switch {
	case p.silent:
		p.ask(p.floor(), 1)
	case p.mtu == 0:
		p.ask(max(p.limit(), p.floor()), tries)
	default:
		p.ask(max(min(p.mtu, p.limit()), p.floor()), tries)
	}
}

// limit is the largest size that is worth a try. Some devices receive a little more than
// their MTU (veth takes a VLAN tag's 4 bytes), but to send it would break their word.
func (p *path) limit() int {
	if p.peer == 0 {
		return p.own
	}
	return max(min(p.own, p.peer), p.floor())
}

func (p *path) ask(size, n int) { p.size, p.left = size, n }

// sent notes that a probe leaves now and returns its cookie.
func (p *path) sent(now time.Duration, size int) uint64 {
	s := probe{rand.Uint64(), size, now}
	p.last[p.next] = s
	p.next = (p.next + 1) % len(p.last)
	return s.cookie
}

// refused notes that the own device did not take the probe.
func (p *path) refused(now time.Duration) { p.left, p.due = 0, now }

// answered finds the probe that an echo belongs to. A late echo is as good as a prompt one.
func (p *path) answered(cookie uint64, now time.Duration) (size int, ok bool) {
	i := slices.IndexFunc(p.last[:], func(s probe) bool { return s.size != 0 && s.cookie == cookie })
	if i < 0 {
		return 0, false
	}
	s := p.last[i]
	p.last[i] = probe{}
	if d := now - s.at; p.rtt == 0 {
		p.rtt = d
	} else {
		p.rtt += (d - p.rtt) / 8
	}
	return s.size, true
}

// heard is told the MTU of the peer's device by an echo, which a third party cannot make up. It
// is true if that is news, and the round must begin anew.
func (p *path) heard(mtu int) (news bool) {
	news = mtu != p.peer && mtu != 0
	if news {
		p.peer = mtu
	}
	return news
}

// passed notes that a probe of the size arrived; it is true at the end of the round.
func (p *path) passed(size int) (done bool) {
	p.silent = false
	if p.size == 0 { // an echo after its round
		return false
	}
	first := p.lo == 0
	p.lo = min(max(p.lo, size), p.limit())
	if size >= p.hi {
		p.hi = p.limit() + 1 // so it was lost by chance
	}
	p.hi = min(p.hi, p.limit()+1)
	if first && p.retest && p.lo < p.hi && p.hi <= p.limit() {
		p.retest = false
		p.ask(p.hi, tries-1)
		return false
	}
	return p.advance()
}

// failed notes that all tries of a size were lost; it is true at the end of the round.
func (p *path) failed() (done bool) {
	if p.lo == 0 && p.size <= p.floor() {
		p.silent, p.size = true, 0
		return true
	}
	if p.size > p.lo {
		p.hi = min(p.hi, p.size)
	}
	p.retest = p.lo == 0
	return p.advance()
}

// advance chooses the next size, or ends the round.
func (p *path) advance() (done bool) {
	known := p.lo == p.mtu && !p.widen && p.hi > p.limit() // it was too much when last searched
	switch {
	case p.lo == 0:
		p.ask(p.floor(), tries)
	case p.lo+1 >= p.hi || known:
		p.mtu, p.size = p.lo, 0
		return true
	case p.lo == p.mtu && p.widen && p.hi > p.limit():
		// Any wider path carries one byte more, so that one probe answers.
		p.ask(p.lo+1, 1)
	default:
		p.ask(p.pick(), tries)
	}
	return false
}

// pick chooses a size between lo and hi, exclusive: what is likely first.
func (p *path) pick() int {
	within := func(size int) bool { return p.lo < size && size < p.hi }
	if within(p.mtu) {
		return p.mtu
	}
	if p.hi > p.limit() {
		return p.limit()
	}
	// What narrows one path mostly narrows others as well.
	if i := slices.IndexFunc(p.found[:], within); i >= 0 {
		return p.found[i]
	}
	if slices.Contains(p.found[:], p.lo) {
		return p.lo + 1
	}
	from, _ := slices.BinarySearch(plausible[:], p.lo+1)
	to, _ := slices.BinarySearch(plausible[:], p.hi)
	if from < to {
		return plausible[(from+to)/2]
	}
	if slices.Contains(plausible[:], p.lo) {
		return p.lo + 1
	}
	return (p.lo + p.hi) / 2
}
