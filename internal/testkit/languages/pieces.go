package languages

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
)

// dice draws.
type dice struct{ *rand.Rand }

func newDice(seed uint64) dice {
	return dice{rand.New(rand.NewPCG(seed, 7))} //nolint:gosec // to be repeated
}

func pick[T any](d dice, xs ...T) T { return xs[d.IntN(len(xs))] }

// once is true n times of m.
func (d dice) once(n, m int) bool { return d.IntN(m) < n }

// some draws up to n things; nil if it draws none.
func some[T any](d dice, n int, draw func() T) (out []T) {
	for range d.IntN(n + 1) {
		out = append(out, draw())
	}
	return out
}

func (d dice) labels(words []word) map[string]string {
	out := map[string]string{}
	for _, w := range words {
		if d.once(2, 3) {
			out[w.key] = pick(d, w.values...)
		}
	}
	return out
}

// with appends objects of one kind to those of others.
func with[T any](out []any, more []T) []any {
	for _, o := range more {
		out = append(out, o)
	}
	return out
}

// labelSelector is Kubernetes' LabelSelector, which most languages have.
type labelSelector struct {
	MatchLabels      map[string]string `json:"matchLabels,omitempty"`
	MatchExpressions []requirement     `json:"matchExpressions,omitempty"`
}

type requirement struct {
	Key      string   `json:"key"`
	Operator string   `json:"operator"`
	Values   []string `json:"values,omitempty"`
}

// matches says whether all of it holds. Without any conditions it does.
func (s *labelSelector) matches(labels map[string]string) bool {
	for k, v := range s.MatchLabels {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	for _, r := range s.MatchExpressions {
		v, ok := labels[r.Key]
		holds := map[string]bool{
			"In": ok && slices.Contains(r.Values, v), "NotIn": !ok || !slices.Contains(r.Values, v), "Exists": ok, "DoesNotExist": !ok,
		}
		if !holds[r.Operator] {
			return false
		}
	}
	return true
}

// selector draws a selector of labels.
func (d dice) selector(words []word) *labelSelector {
	s := &labelSelector{}
	for range pick(d, 0, 1, 1, 2) {
		w := pick(d, words...)
		if d.once(1, 2) {
			s.MatchLabels = map[string]string{w.key: pick(d, w.values...)}
			continue
		}
		r := requirement{Key: w.key, Operator: pick(d, "In", "NotIn", "Exists", "DoesNotExist")}
		if r.Operator == "In" || r.Operator == "NotIn" {
			r.Values = w.values[:1+d.IntN(len(w.values))]
		}
		s.MatchExpressions = append(s.MatchExpressions, r)
	}
	return s
}

// ipBlock is a block with exceptions, as Kubernetes and Antrea write it.
type ipBlock struct {
	CIDR   string   `json:"cidr"`
	Except []string `json:"except,omitempty"`
}

func (b *ipBlock) matches(a netip.Addr) bool {
	return contains(b.CIDR, a) && !slices.ContainsFunc(b.Except, func(x string) bool { return contains(x, a) })
}

// contains says whether an address is in a block.
func contains(cidr string, a netip.Addr) bool { return netip.MustParsePrefix(cidr).Contains(a) }

// cidr draws a block that some of the cluster's ends are in.
func (c *Cluster) cidr() string {
	var all []netip.Addr
	for _, addrs := range slices.Concat(c.Places.Pods, c.Nodes[:], c.World, c.World) {
		all = append(all, addrs...)
	}
	a := pick(c.dice, all...)
	p, _ := a.Prefix(max(0, a.BitLen()-pick(c.dice, 0, 1, 2, 6, 8, 16, 128)))
	return p.String()
}

func (c *Cluster) ipBlock() *ipBlock {
	b := &ipBlock{CIDR: c.cidr()}
	if c.once(1, 2) {
		p := netip.MustParsePrefix(b.CIDR)
		if x := netip.MustParsePrefix(c.cidr()); p.Contains(x.Addr()) && x.Bits() > p.Bits() {
			b.Except = []string{x.String()}
		}
	}
	return b
}

// portRange draws a first port and, sometimes, a last one; else that is 0.
func (d dice) portRange() (first, last int) {
	first = int(pick(d, portNumbers()...))
	if d.once(1, 3) {
		last = first + d.IntN(500)
	}
	return first, last
}

// within says whether a port is in a range; a last of 0 is none.
func within(port uint16, first, last int) bool {
	return int(port) == first || int(port) >= first && int(port) <= last
}

func numberOf(v any) int {
	n, ok := v.(int)
	if !ok {
		panic(fmt.Sprintf("%v is no number", v))
	}
	return n
}
