// Package netset is the arithmetic of addresses and prefixes over net/netip.
//
// With bpf/lib/ip.h it is the only place where the address family is special:
// everything else handles netip values and never asks which family they have.
// It does no I/O and knows neither the kernel nor Kubernetes.
package netset

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// Family is an address family as data. The zero value is no family.
type Family uint8

// The families, numbered as in an IP header's version field (RFC 791, RFC 8200).
const (
	V4 Family = 4
	V6 Family = 6
)

// Families lists both families in the order in which weft handles them.
func Families() []Family { return []Family{V4, V6} }

// String returns "IPv4" or "IPv6", as Kubernetes spells them.
func (f Family) String() string {
	switch f {
	case V4:
		return "IPv4"
	case V6:
		return "IPv6"
	}
	return fmt.Sprintf("family(%d)", uint8(f))
}

// Bits is the length of an address of the family in bits.
func (f Family) Bits() int {
	if f == V4 {
		return 32
	}
	return 128
}

// Of returns the family of an address; a v4-mapped v6 address counts as V4.
func Of(a netip.Addr) Family {
	switch {
	case a.Is4() || a.Is4In6():
		return V4
	case a.IsValid():
		return V6
	}
	return 0
}

// OfPrefix returns the family of a prefix.
func OfPrefix(p netip.Prefix) Family { return Of(p.Addr()) }

// First returns the first address of the family in as, or the zero Addr.
func First(as []netip.Addr, f Family) netip.Addr {
	for _, a := range as {
		if Of(a) == f {
			return a.Unmap()
		}
	}
	return netip.Addr{}
}

// FamiliesOf returns the families that occur in as, V4 first.
func FamiliesOf(as []netip.Addr) []Family {
	var out []Family
	for _, f := range Families() {
		if First(as, f).IsValid() {
			out = append(out, f)
		}
	}
	return out
}

// Host returns the prefix that holds a alone: /32 or /128.
func Host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a.Unmap(), Of(a).Bits()) }

// Default returns the family's default route: 0.0.0.0/0 or ::/0.
func Default(f Family) netip.Prefix {
	if f == V4 {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// Gateway returns the link-local address that every pod uses as its next hop
// (169.254.1.1, fe80::1). It is assigned nowhere: pods and host reach each other
// through permanent neighbour entries, so that no ARP or ND is ever sent.
func Gateway(f Family) netip.Addr {
	if f == V4 {
		return netip.AddrFrom4([4]byte{169, 254, 1, 1})
	}
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 15: 1})
}

// As16 returns the unified 16-byte form that the BPF maps use: v4 as ::ffff:a.b.c.d.
func As16(a netip.Addr) [16]byte { return a.As16() }

// PrefixLen16 returns the length of p in the unified form: a v4 length plus 96.
func PrefixLen16(p netip.Prefix) int {
	if Of(p.Addr()) == V4 {
		return p.Bits() + 96
	}
	return p.Bits()
}

// Shadowed returns the whole of the family whose unified form lies in p, though none of its addresses is in p: 0.0.0.0/0 for ::/0 and
// what else ::ffff:0:0/96 is a part of. Who looks for the longest prefix of unified addresses has to know the two apart.
func Shadowed(p netip.Prefix) (netip.Prefix, bool) {
	whole := Default(V4)
	mapped := netip.AddrFrom16(As16(whole.Addr()))
	return whole, OfPrefix(p) == V6 && p.Bits() < PrefixLen16(whole) && p.Contains(mapped)
}

// ComparePrefix orders prefixes by family, address and length.
func ComparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// Sorted returns the prefixes masked, in order and without repetition.
func Sorted(ps []netip.Prefix) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(ps))
	for _, p := range ps {
		out = append(out, p.Masked())
	}
	slices.SortFunc(out, ComparePrefix)
	return slices.Compact(out)
}

// Minimal returns Sorted(ps) without the prefixes that another one covers.
func Minimal(ps []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range Sorted(ps) {
		if n := len(out); n > 0 && Covers(out[n-1], p) {
			continue
		}
		out = append(out, p)
	}
	return out
}

// Covers reports whether every address of inner is in outer.
func Covers(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// Contains reports whether any of ps contains a.
func Contains(ps []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Overlap returns the first pair of prefixes that share an address.
func Overlap(ps []netip.Prefix) (a, b netip.Prefix, found bool) {
	s := slices.Clone(ps)
	slices.SortFunc(s, ComparePrefix)
	for i := 1; i < len(s); i++ {
		if s[i-1].Overlaps(s[i]) {
			return s[i-1], s[i], true
		}
	}
	return a, b, false
}

// Last returns the last address of p.
func Last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := range b {
		switch left := p.Bits() - 8*i; {
		case left <= 0:
			b[i] = 0xff
		case left < 8:
			b[i] |= 0xff >> left
		}
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Size returns how many addresses p holds, capped at 1<<62.
func Size(p netip.Prefix) uint64 {
	return 1 << min(Of(p.Addr()).Bits()-p.Bits(), 62)
}

// Nth returns the n-th address of p, counted from 0. The caller keeps n below Size(p).
func Nth(p netip.Prefix, n uint64) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := len(b) - 1; i >= 0 && n > 0; i-- {
		n += uint64(b[i])
		b[i] = byte(n)
		n >>= 8
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Offset is the inverse of Nth: how far a is from the start of p.
// The second result is false where a is not in p or further than 1<<62.
func Offset(p netip.Prefix, a netip.Addr) (uint64, bool) {
	if !p.Contains(a) {
		return 0, false
	}
	base, b := p.Masked().Addr().AsSlice(), a.AsSlice()
	var n uint64
	for i := range b {
		if n >= 1<<54 {
			return 0, false
		}
		n = n<<8 + uint64(b[i]) - uint64(base[i])
	}
	return n, true
}
