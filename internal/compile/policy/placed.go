package policy

import (
	"net/netip"
	"slices"
)

// placed are addresses with their classes. Nearly every holder has one or two: a map of them takes ten times the memory.
type placed []placement

type placement struct {
	addr  netip.Addr
	class *class
}

// at returns the class of an address, or nil.
func (p placed) at(a netip.Addr) *class {
	for _, x := range p {
		if x.addr == a {
			return x.class
		}
	}
	return nil
}

// put gives an address a class.
func (p *placed) put(a netip.Addr, c *class) {
	for i, x := range *p {
		if x.addr == a {
			(*p)[i].class = c
			return
		}
	}
	*p = append(slices.Grow(*p, 1), placement{a, c})
}
