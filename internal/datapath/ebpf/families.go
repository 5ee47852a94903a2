package ebpf

import (
	"errors"
	"net/netip"

	"weft/internal/netset"
)

// uncover keeps a prefix from being what addresses of another family are in, as the trie has them: those that nothing else is said of
// are the world, which then needs an entry of its own. It comes before the prefix's, and goes after it.
func (p *policies) uncover(at netip.Prefix) error {
	other, ok := netset.Shadowed(at)
	if !ok {
		return nil
	}
	if _, there := p.exact(other); there {
		return nil
	}
	return p.putWorld(other)
}

func (p *policies) putWorld(at netip.Prefix) error {
	key := prefixOf(at)
	return errors.Join(p.networks.write(key, weftWeftNetwork{Identity: worldNumber, Len: key.Len}), p.numbers.hold(worldNumber, 1, 1))
}

// covered says whether a shorter prefix that has an entry covers this one in the trie.
func (p *policies) covered(at netip.Prefix) bool {
	key := prefixOf(at)
	if key.Len == 0 {
		return false
	}
	key.Len--
	var w weftWeftNetwork
	return p.networks.m.Lookup(key, &w) == nil
}
