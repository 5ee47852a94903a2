package ipam

import (
	"math/bits"
	"net/netip"
	"slices"

	"weft/internal/netset"
)

// span is a run of consecutive addresses that can be given to pods. Used ones are kept in a sparse bitmap
// of 64-bit words, so that memory follows the use and a /64 costs no more than a /24.
type span struct {
	prefix netip.Prefix // what offsets are counted in
	base   uint64       // offset of the first address in prefix
	size   uint64       // at least 1
	words  map[uint64]uint64
	used   uint64 // bits set in words
}

// spans are the usable addresses of the pools of one family, in order of the pools.
type spans []*span

// buildSpans cuts what is never given out of the pools: of a v4 prefix up to /30 the first (network) and the last
// (broadcast) address, of a v6 prefix up to /126 the first (subnet-router anycast, RFC 4291 2.6.1), and
// the reserved prefixes. Smaller prefixes are used whole (RFC 3021, RFC 6164).
func buildSpans(pools, reserved []netip.Prefix, f netset.Family) spans {
	var out spans
	for _, p := range pools {
		if netset.OfPrefix(p) != f {
			continue
		}
		type cut struct{ from, to uint64 } // inclusive
		size := netset.Size(p)
		var cuts []cut
		if host := f.Bits() - p.Bits(); host >= 2 {
			cuts = append(cuts, cut{0, 0})
			if f == netset.V4 {
				cuts = append(cuts, cut{size - 1, size - 1})
			}
		}
		for _, r := range reserved {
			switch {
			case netset.OfPrefix(r) != f || !r.Overlaps(p):
			case netset.Covers(r, p):
				cuts = append(cuts, cut{0, size - 1})
			default:
				if from, ok := netset.Offset(p, r.Masked().Addr()); ok && from < size {
					cuts = append(cuts, cut{from, min(from+netset.Size(r)-1, size-1)})
				}
			}
		}
		slices.SortFunc(cuts, func(a, b cut) int {
			if a.from < b.from {
				return -1
			}
			return 1
		})
		next := uint64(0)
		for _, c := range append(cuts, cut{size, size}) {
			if c.from > next {
				out = append(out, &span{prefix: p, base: next, size: c.from - next, words: map[uint64]uint64{}})
			}
			next = max(next, c.to+1)
		}
	}
	return out
}

// find returns the span that holds a, and a's offset in it.
func (ss spans) find(a netip.Addr) (*span, uint64) {
	for _, s := range ss {
		if n, ok := netset.Offset(s.prefix, a); ok && n >= s.base && n-s.base < s.size {
			return s, n - s.base
		}
	}
	return nil, 0
}

// set marks a as used or free; an address in no span is ignored.
func (ss spans) set(a netip.Addr, used bool) {
	s, n := ss.find(a)
	if s == nil {
		return
	}
	w, bit := n/64, uint64(1)<<(n%64)
	switch old := s.words[w]; {
	case used && old&bit == 0:
		s.words[w] = old | bit
		s.used++
	case !used && old&bit != 0:
		if s.words[w] = old &^ bit; old == bit {
			delete(s.words, w)
		}
		s.used--
	}
}

// next returns the first free address after the cursor, going round; the zero Addr if there is none.
// Going round gives every freed address the longest rest that the pool allows.
func (ss spans) next(cursor netip.Addr) netip.Addr {
	at, from := 0, uint64(0)
	if s, n := ss.find(cursor); s != nil {
		at, from = slices.Index(ss, s), n+1
	}
	if len(ss) == 0 {
		return netip.Addr{}
	}
	for i := range len(ss) + 1 { // the first span twice: after the cursor, then before it
		s := ss[(at+i)%len(ss)]
		if n, ok := s.free(from); ok {
			return netset.Nth(s.prefix, s.base+n)
		}
		from = 0
	}
	return netip.Addr{}
}

// free returns the first free offset that is not below from.
func (s *span) free(from uint64) (uint64, bool) {
	if s.used == s.size || from >= s.size {
		return 0, false
	}
	mask := ^uint64(0) << (from % 64)
	for w := from / 64; w <= (s.size-1)/64; w++ {
		if open := ^s.words[w] & mask; open != 0 {
			n := w*64 + uint64(bits.TrailingZeros64(open))
			return n, n < s.size
		}
		mask = ^uint64(0)
	}
	return 0, false
}

// size returns how many addresses can be given, capped at 1<<62, and how many of them are used.
func (ss spans) size() (size, used uint64) {
	for _, s := range ss {
		size = min(size+s.size, 1<<62)
		used += s.used
	}
	return size, used
}
