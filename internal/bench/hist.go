package bench

import (
	"math/bits"
	"slices"
	"time"
)

// Histogram counts durations in log-linear buckets, 128 to each power of two: a quantile is at
// most 0.8 % too high. It needs no allocation once made; durations over 18 minutes count as that.
type Histogram struct {
	counts [histSize]uint64
	n      uint64
	sum    uint64 // ns
	min    uint64 // ns, valid if n > 0
	max    uint64
}

const (
	histBits = 7
	histTop  = 40 // bits of the largest value
	histSize = (histTop - histBits + 1) << histBits
)

// bucket is the index of the bucket of v ns.
func bucket(v uint64) int {
	shift := bits.Len64(v) - (histBits + 1)
	if shift <= 0 {
		return int(v)
	}
	return shift<<histBits + int(v>>shift)
}

// ceiling is the largest value of bucket i in ns.
func ceiling(i int) uint64 {
	shift := i>>histBits - 1
	if shift <= 0 {
		return uint64(i)
	}
	return (uint64(i&(1<<histBits-1)|1<<histBits)+1)<<shift - 1
}

// Record adds one duration; a negative one counts as zero.
func (h *Histogram) Record(d time.Duration) {
	v := uint64(max(d, 0))
	v = min(v, 1<<histTop-1)
	h.counts[bucket(v)]++
	if h.n == 0 || v < h.min {
		h.min = v
	}
	h.max = max(h.max, v)
	h.n++
	h.sum += v
}

// Quantile is the duration that a share q (0..1) of the recorded ones does not exceed; 0 if empty.
func (h *Histogram) Quantile(q float64) time.Duration {
	if h.n == 0 {
		return 0
	}
	rank := max(uint64(q*float64(h.n)+0.5), 1)
	var seen uint64
	for i, c := range h.counts {
		if seen += c; seen >= rank {
			return time.Duration(min(ceiling(i), h.max))
		}
	}
	return time.Duration(h.max)
}

// Summary is a histogram as people and JSON read it; nanoseconds.
type Summary struct {
	Count uint64        `json:"count"`
	Min   time.Duration `json:"min"`
	Mean  time.Duration `json:"mean"`
	P50   time.Duration `json:"p50"`
	P90   time.Duration `json:"p90"`
	P99   time.Duration `json:"p99"`
	P999  time.Duration `json:"p999"`
	Max   time.Duration `json:"max"`
}

// Summary returns the usual quantiles.
func (h *Histogram) Summary() *Summary {
	s := &Summary{Count: h.n, Min: time.Duration(h.min), Max: time.Duration(h.max)}
	if h.n > 0 {
		s.Mean = time.Duration(h.sum / h.n)
	}
	s.P50, s.P90, s.P99, s.P999 = h.Quantile(.5), h.Quantile(.9), h.Quantile(.99), h.Quantile(.999)
	return s
}

// longest keeps the longest gaps seen.
type longest struct {
	keep  int   // how many
	gaps  []Gap // unordered, never more than keep
	least time.Duration
}

// add keeps the gap if it is among the longest. It is cheap for all others.
func (l *longest) add(d time.Duration, start time.Time, end time.Duration) {
	if len(l.gaps) == l.keep && d <= l.least {
		return
	}
	g := Gap{At: start.Add(end), Length: d}
	if len(l.gaps) < l.keep {
		l.gaps = append(l.gaps, g)
	} else {
		i := slices.IndexFunc(l.gaps, func(x Gap) bool { return x.Length == l.least })
		l.gaps[i] = g
	}
	l.least = slices.MinFunc(l.gaps, byLength).Length
}

func byLength(a, b Gap) int { return int(a.Length - b.Length) }

// sorted returns the gaps, longest first.
func (l *longest) sorted() []Gap {
	slices.SortFunc(l.gaps, func(a, b Gap) int { return byLength(b, a) })
	return l.gaps
}
