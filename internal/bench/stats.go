package bench

import (
	"math"
	"math/rand/v2"
	"slices"
)

// Median of xs, which stay as they are; NaN if empty.
func Median(xs []float64) float64 { return Quantile(xs, .5) }

// Quantile of xs by linear interpolation between the closest ranks; NaN if empty.
func Quantile(xs []float64, q float64) float64 {
	if len(xs) == 0 {
		return math.NaN()
	}
	s := slices.Clone(xs)
	slices.Sort(s)
	at := q * float64(len(s)-1)
	lo := int(at)
	if lo+1 >= len(s) {
		return s[len(s)-1]
	}
	return s[lo] + (at-float64(lo))*(s[lo+1]-s[lo])
}

// Interval is an estimate with its 95 % confidence interval.
type Interval struct {
	Value float64 `json:"value"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
}

// resamples is enough for the 2.5 % tails to be steady in the third digit.
const resamples = 4000

// Bootstrap estimates statistic over n rounds with its 95 % interval: rounds are drawn with
// replacement, and whatever was measured in one round stays together. statistic gets the
// indexes of the drawn rounds. The seed makes it repeatable.
func Bootstrap(n int, seed uint64, statistic func(rounds []int) float64) Interval {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	if n == 0 {
		return Interval{math.NaN(), math.NaN(), math.NaN()}
	}
	rng := rand.New(rand.NewPCG(seed, 0x77656674))
	values := make([]float64, resamples)
	drawn := make([]int, n)
	for i := range values {
		for j := range drawn {
			drawn[j] = rng.IntN(n)
		}
		values[i] = statistic(drawn)
	}
	return Interval{statistic(all), Quantile(values, .025), Quantile(values, .975)}
}

// MedianRatio is the median of a[i]/b[i] with its interval; a and b are paired by round.
// Rounds in which either is zero or not a number are left out.
func MedianRatio(a, b []float64) Interval {
	var ratios []float64
	for i := range min(len(a), len(b)) {
		if r := a[i] / b[i]; r > 0 && !math.IsInf(r, 0) && !math.IsNaN(r) {
			ratios = append(ratios, r)
		}
	}
	pick := make([]float64, len(ratios))
	return Bootstrap(len(ratios), uint64(len(ratios)), func(rounds []int) float64 {
		for i, r := range rounds {
			pick[i] = ratios[r]
		}
		return Median(pick)
	})
}
