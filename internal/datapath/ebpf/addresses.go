package ebpf

import (
	"errors"
	"fmt"
	"net/netip"

	"weft/internal/netset"
	"weft/internal/plan"
)

// Whose an address is: single ones in a hash, blocks in a trie.

// identityAt is the number of the identity that a prefix's addresses have where nothing longer says another one.
func (p *policies) identityAt(at netip.Prefix) uint32 {
	var v uint32
	if at.IsSingleIP() && p.addresses.m.Lookup(addrOf(at.Addr()), &v) == nil {
		return v
	}
	var w weftWeftNetwork
	if p.networks.m.Lookup(prefixOf(at), &w) == nil {
		return w.Identity
	}
	return worldNumber
}

// putAddress gives a prefix its identity. Addresses are in a hash, as long as there is room.
func (p *policies) putAddress(row *plan.Address) error {
	x, err := p.numbers.get(ofIdentity, row.Identity)
	if err != nil {
		return fmt.Errorf("address %s: identity %s: %w", row.Prefix, row.Identity, err)
	}
	if err := p.uncover(row.Prefix); err != nil {
		return fmt.Errorf("address %s: %w", row.Prefix, err)
	}
	before := p.identityAt(row.Prefix)
	was, exact := p.exact(row.Prefix)
	if exact && was == x.n {
		return nil
	}
	full := true
	if row.Prefix.IsSingleIP() {
		err = p.addresses.write(addrOf(row.Prefix.Addr()), x.n)
		if full = errors.Is(err, errFull); err != nil && !full {
			return fmt.Errorf("address %s: %w", row.Prefix, err)
		}
	}
	if full {
		key := prefixOf(row.Prefix)
		if err := p.networks.write(key, weftWeftNetwork{Identity: x.n, Len: key.Len}); err != nil {
			if now := (lostAddr{is: x.n, seems: before}); errors.Is(err, errFull) && p.lost[row.Prefix] != now {
				p.lost[row.Prefix], p.stirred = now, true
			}
			return fmt.Errorf("address %s: %w", row.Prefix, err)
		}
	}
	p.found(row.Prefix)
	p.moved(before, x.n)
	err = p.numbers.hold(x.n, 1, 1)
	if exact {
		err = errors.Join(err, p.numbers.hold(was, -1, -1))
		if key := prefixOf(row.Prefix); !full && p.inTrie(key) { // there was no room in the hash when it came
			err = errors.Join(err, p.networks.drop(key))
		}
	}
	return err
}

// exact is the identity that the entry of just this prefix has, if there is one.
func (p *policies) exact(at netip.Prefix) (uint32, bool) {
	var v uint32
	if at.IsSingleIP() && p.addresses.m.Lookup(addrOf(at.Addr()), &v) == nil {
		return v, true
	}
	var w weftWeftNetwork
	key := prefixOf(at)
	if p.networks.m.Lookup(key, &w) == nil && w.Len == key.Len {
		return w.Identity, true
	}
	return 0, false
}

// found is for an address that there is room for now, or whose row is gone.
func (p *policies) found(at netip.Prefix) {
	if _, was := p.lost[at]; was {
		delete(p.lost, at)
		p.stirred = true
	}
}

// dropAddress forgets whose a prefix is.
func (p *policies) dropAddress(at netip.Prefix) error {
	p.found(at)
	was, exact := p.exact(at)
	if !exact {
		return nil
	}
	if at == netset.Default(netset.OfPrefix(at)) && p.covered(at) { // by one of another family: see uncover
		if was == worldNumber {
			return nil
		}
		if err := p.putWorld(at); err != nil {
			return fmt.Errorf("address %s: %w", at, err)
		}
		p.moved(was, worldNumber)
		return p.numbers.hold(was, -1, -1)
	}
	var err error
	if at.IsSingleIP() {
		err = p.addresses.drop(addrOf(at.Addr()))
	}
	if key := prefixOf(at); err == nil && (!at.IsSingleIP() || p.inTrie(key)) {
		err = p.networks.drop(key)
	}
	if err != nil {
		return fmt.Errorf("address %s: %w", at, err)
	}
	p.moved(was, p.identityAt(at))
	err = p.numbers.hold(was, -1, -1)
	if other, ok := netset.Shadowed(at); ok && !p.covered(other) {
		if v, there := p.exact(other); there && v == worldNumber {
			err = errors.Join(err, p.dropAddress(other))
		}
	}
	return err
}

func (p *policies) inTrie(key weftWeftPrefix) bool {
	var w weftWeftNetwork
	return p.networks.m.Lookup(key, &w) == nil && w.Len == key.Len
}

// moved is for an address whose identity has changed: flows of sets that tell the two apart are asked about again.
func (p *policies) moved(from, to uint32) {
	if from == to || p.told[[2]uint32{from, to}] {
		return
	}
	p.told[[2]uint32{from, to}] = true
	for _, s := range p.peers {
		if s.has(from) != s.has(to) {
			p.again(s)
		}
	}
}

func (s *peerSet) has(v uint32) bool { return s.blocks[v>>8].Word[v>>5&7]>>(v&31)&1 == 1 }
