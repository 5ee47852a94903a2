package mesh

import (
	"fmt"
	"math/rand"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// wire is a simulated network: what it carries, how it loses, how late it is.
type wire struct {
	mtu  int
	loss float64
	rtt  time.Duration
	rnd  *rand.Rand
	dead bool
	peer int // MTU that echoes bear, 0: none

	flying []flying
}

// flying is an echo on its way.
type flying struct {
	at     time.Duration
	cookie uint64
}

// drive takes a path through the simulation until a time, and counts what was sent.
func drive(p *path, w *wire, now *time.Duration, until time.Duration, own int) (sent int) {
	for *now < until {
		next := p.due
		at := -1
		for i, e := range w.flying {
			if e.at < next {
				next, at = e.at, i
			}
		}
		if *now = max(*now, next); *now >= until {
			break
		}
		if at >= 0 {
			e := w.flying[at]
			w.flying = slices.Delete(w.flying, at, at+1)
			if size, ok := p.answered(e.cookie, *now); ok {
				if p.heard(w.peer) && p.mtu != 0 {
					p.restart(*now)
				} else if p.due = *now; p.passed(size) {
					p.due = *now + shortCycle
				}
			}
			continue
		}
		size, done := p.turn(*now, own)
		if done {
			p.due = *now + shortCycle
			continue
		}
		if size > own {
			p.refused(*now)
			continue
		}
		sent++
		cookie := p.sent(*now, size)
		if !w.dead && size <= w.mtu && w.rnd.Float64() >= w.loss {
			w.flying = append(w.flying, flying{*now + w.rtt/2 + time.Duration(w.rnd.Int63n(int64(w.rtt)+1)), cookie})
		}
	}
	return sent
}

func paths() map[string]*path {
	return map[string]*path{
		"IPv4": newPath(&node{}, netip.MustParseAddrPort("192.0.2.1:1"), new(found)),
		"IPv6": newPath(&node{}, netip.MustParseAddrPort("[2001:db8::1]:1"), new(found)),
	}
}

// TestSearchIsExact finds any MTU to the byte, quickly, and follows it down and up.
func TestSearchIsExact(t *testing.T) {
	for seed := range int64(300) {
		for family, p := range paths() {
			rnd := rand.New(rand.NewSource(seed))
			own := []int{1500, 9000, 65535}[rnd.Intn(3)]
			pick := func() int { return p.floor() + rnd.Intn(own-p.floor()+1) }
			w := &wire{mtu: pick(), rtt: time.Duration(1+rnd.Intn(30)) * time.Millisecond, rnd: rnd}
			now := time.Duration(0)
			sent := drive(p, w, &now, 10*time.Second, own)
			if p.mtu != w.mtu {
				t.Fatalf("%s seed %d: path of %d (own device %d) measured as %d", family, seed, w.mtu, own, p.mtu)
			}
			if sent > 80 {
				t.Errorf("%s seed %d: %d probes for the first search", family, seed, sent)
			}
			for _, span := range []time.Duration{7 * time.Second, 15 * time.Second} {
				w.mtu = pick()
				drive(p, w, &now, now+2*span, own)
				if p.mtu != w.mtu {
					t.Fatalf("%s seed %d: path changed to %d (own device %d) but measured as %d", family, seed, w.mtu, own, p.mtu)
				}
			}
		}
	}
}

// TestPlausibleIsQuick holds the common cases to few probes and well below five seconds.
func TestPlausibleIsQuick(t *testing.T) {
	for _, c := range []struct{ own, from, to, probes int }{
		{1500, 1500, 1400, 16},
		{9000, 9000, 1500, 16},
		{1500, 1500, 1450, 16},
		{9000, 1500, 1400, 16},
		{1500, 1500, 1300, 40},
		{9000, 9000, 1501, 50},
	} {
		t.Run(fmt.Sprintf("%d to %d", c.from, c.to), func(t *testing.T) {
			for family, p := range paths() {
				w := &wire{mtu: c.from, rtt: 2 * time.Millisecond, rnd: rand.New(rand.NewSource(1))}
				now := time.Duration(0)
				drive(p, w, &now, 5*time.Second, c.own)
				if p.mtu != c.from {
					t.Fatalf("%s: measured %d, want %d", family, p.mtu, c.from)
				}
				w.mtu = c.to
				start, sent := now, 0
				for p.mtu != c.to && now < start+10*time.Second {
					sent += drive(p, w, &now, now+time.Millisecond, c.own)
				}
				if took := now - start; p.mtu != c.to || took > 5*time.Second || sent > c.probes {
					t.Errorf("%s: %d after %s and %d probes, want %d in at most 5 s and %d probes", family, p.mtu, took, sent, c.to, c.probes)
				}
			}
		})
	}
}

// TestLossLowersNothing: a third of all round trips is lost, on a path that carries all sizes, so a
// wrong value may appear only if three tries and the test after them are all lost.
func TestLossLowersNothing(t *testing.T) {
	low, looks := 0, 0
	for seed := range int64(200) {
		for _, p := range paths() {
			w := &wire{mtu: 1500, loss: 0.1, rtt: 2 * time.Millisecond, rnd: rand.New(rand.NewSource(seed))}
			now := time.Duration(0)
			for range 60 {
				drive(p, w, &now, now+time.Second, 1500)
				looks++
				if p.mtu != 0 && p.mtu != 1500 {
					low++
				}
			}
		}
	}
	if low > looks/1000 {
		t.Errorf("%d of %d looks found a value below the true one with 10 %% loss", low, looks)
	}
}

// TestSilenceProvesNothing keeps the value while the peer is away, at one probe a round.
func TestSilenceProvesNothing(t *testing.T) {
	for family, p := range paths() {
		w := &wire{mtu: 1450, rtt: time.Millisecond, rnd: rand.New(rand.NewSource(1))}
		now := time.Duration(0)
		drive(p, w, &now, 5*time.Second, 1500)
		w.dead = true
		drive(p, w, &now, now+10*time.Second, 1500)
		if sent := drive(p, w, &now, now+time.Minute, 1500); sent > 41 {
			t.Errorf("%s: %d probes a minute to a silent peer", family, sent)
		}
		if p.mtu != 1450 || !p.silent {
			t.Fatalf("%s: mtu %d, silent %t after silence; want the old 1450 and true", family, p.mtu, p.silent)
		}
		w.dead, w.mtu = false, 1400
		drive(p, w, &now, now+6*time.Second, 1500)
		if p.mtu != 1400 || p.silent {
			t.Errorf("%s: mtu %d, silent %t after it came back with 1400", family, p.mtu, p.silent)
		}
	}
}

// TestPeersDeviceIsALimit: what the peer's device is said to take is not exceeded, even where more would arrive.
func TestPeersDeviceIsALimit(t *testing.T) {
	for family, p := range paths() {
		w := &wire{mtu: 1504, peer: 1500, rtt: time.Millisecond, rnd: rand.New(rand.NewSource(1))}
		now := time.Duration(0)
		for _, mtu := range []int{1500, 1400, 1450, 9000} {
			w.peer = mtu
			drive(p, w, &now, now+15*time.Second, 9000)
			if want := min(mtu, w.mtu); p.mtu != want {
				t.Errorf("%s: measured %d with the peer's device at %d, want %d", family, p.mtu, mtu, want)
			}
		}
	}
}

// TestNothingBelowTheFloor: a path that carries less than every path must has no value.
func TestNothingBelowTheFloor(t *testing.T) {
	for family, p := range paths() {
		w := &wire{mtu: p.floor() - 1, rtt: time.Millisecond, rnd: rand.New(rand.NewSource(1))}
		now := time.Duration(0)
		drive(p, w, &now, 20*time.Second, 1500)
		if p.mtu != 0 {
			t.Errorf("%s: measured %d on a path of %d", family, p.mtu, w.mtu)
		}
	}
}

// FuzzParse: no datagram crashes the parser, and what it accepts it also writes.
func FuzzParse(f *testing.F) {
	good := make([]byte, 40)
	header{kind: kindProbe, size: 68, mtu: 1500, cookie: 1 << 60}.put(good)
	f.Add(good)
	f.Add(good[:headerSize])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parse(b)
		if err != nil {
			return
		}
		out := make([]byte, headerSize)
		h.put(out)
		again, err := parse(out)
		if err != nil || again != h {
			t.Fatalf("%v became %v, %v", h, again, err)
		}
	})
}
