package k8s

import (
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
)

// quantity parses a Kubernetes resource quantity (k8s.io/apimachinery/pkg/api/resource) and returns it as a
// whole number, rounded up as Kubernetes does. What exceeds a uint64 is math.MaxUint64.
func quantity(s string) (uint64, error) {
	end := strings.LastIndexAny(s, "0123456789.") + 1
	// An exponent ends in a digit as well: 1e3.
	mantissa, scale := s[:end], s[end:]
	if i := strings.IndexAny(mantissa, "eE"); i >= 0 {
		mantissa, scale = mantissa[:i], s[i:]
	}
	factor, ok := multiplier(scale)
	if !ok || !decimal(mantissa) {
		return 0, fmt.Errorf("%q is not a quantity such as 10M or 1.5Gi", s)
	}
	v, ok := new(big.Rat).SetString(mantissa)
	if !ok {
		return 0, fmt.Errorf("%q is not a quantity such as 10M or 1.5Gi", s)
	}
	if v.Sign() < 0 {
		return 0, fmt.Errorf("%q is negative", s)
	}
	v.Mul(v, factor)
	whole, rest := new(big.Int).QuoRem(v.Num(), v.Denom(), new(big.Int))
	if rest.Sign() > 0 {
		whole.Add(whole, big.NewInt(1))
	}
	if !whole.IsUint64() {
		return math.MaxUint64, nil
	}
	return whole.Uint64(), nil
}

// decimal reports whether s is an optional sign, digits, and at most one point, and short enough to be meant.
func decimal(s string) bool {
	if s != "" && (s[0] == '+' || s[0] == '-') {
		s = s[1:]
	}
	digits := strings.Replace(s, ".", "", 1)
	return digits != "" && len(digits) < 64 && strings.Trim(digits, "0123456789") == ""
}

// multiplier returns what a quantity's suffix stands for.
func multiplier(suffix string) (*big.Rat, bool) {
	if suffix == "" {
		return big.NewRat(1, 1), true
	}
	if i := strings.Index("kMGTPE", suffix); i >= 0 && len(suffix) == 1 {
		return power(10, 3*(i+1)), true
	}
	if i := strings.Index("KiMiGiTiPiEi", suffix); i >= 0 && i%2 == 0 && len(suffix) == 2 {
		return power(2, 10*(i/2+1)), true
	}
	if i := strings.Index("mun", suffix); i >= 0 && len(suffix) == 1 {
		return power(10, -3*(i+1)), true
	}
	return exponent(suffix)
}

// exponent reads "e-3" or "E+12". Beyond two digits the result is out of any range anyway.
func exponent(s string) (*big.Rat, bool) {
	digits, negative := s[1:], strings.HasPrefix(s[1:], "-")
	if digits != "" && (digits[0] == '+' || digits[0] == '-') {
		digits = digits[1:]
	}
	if !strings.ContainsAny(s[:1], "eE") || digits == "" || strings.Trim(digits, "0123456789") != "" {
		return nil, false
	}
	exp, err := strconv.Atoi(digits)
	if err != nil || exp > 99 {
		exp = 99
	}
	if negative {
		exp = -exp
	}
	return power(10, exp), true
}

// power returns base to the exp.
func power(base int64, exp int) *big.Rat {
	n := exp
	if n < 0 {
		n = -n
	}
	p := new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(base), big.NewInt(int64(n)), nil))
	if exp < 0 {
		p.Inv(p)
	}
	return p
}
