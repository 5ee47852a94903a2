package ebpf

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"

	"weft/internal/netset"
	"weft/internal/plan"
)

// policies are the maps of policy and what the driver remembers of them. docs/design/policy.md says what they mean.
//
// Entries are written before what refers to them and removed after it. An agent that dies in between leaves lists that no
// match refers to, or numbers that nobody bears; the next one's Sweep removes them.
type policies struct {
	numbers   *numbers
	sets      *table[uint32, weftWeftSet]
	matches   *table[weftWeftMatch, weftWeftMatched]
	lists     *table[weftWeftList, weftWeftRules]
	members   *table[weftWeftBlock, weftWeftBits]
	addresses *table[weftWeftAddr, uint32]
	networks  *table[weftWeftPrefix, weftWeftNetwork]
	vips      *table[weftWeftAddr, uint32]
	rules     *table[uint32, weftWeftHits] // counters, which programs change
	conns     *nest

	peers  map[plan.ID]*peerSet
	have   map[plan.ID]*ruleSet
	guards map[string]*plan.Guard // by the name of their key: a pod's is its device
	left   map[string]bool        // likewise, those that were removed
	mine   map[string]both        // by device: directions that this agent has put rules on
	named  map[plan.ID]bool       // identities that have a row

	// What the kernel holds for numbers whose rows were not applied by this agent yet.
	blocks   map[uint32]map[uint32]weftWeftBits           // of members: by peer set and block
	matching map[uint32]map[weftWeftMatch]weftWeftMatched // of matches: by set

	lost    map[netip.Prefix]lostAddr // addresses that there was no room for
	stirred bool                      // lost has changed
	stale   map[plan.ID]bool          // sets whose flows must be asked about again
	told    map[[2]uint32]bool        // pairs of identities that all peer sets were asked about since stale was empty and since one changed
}

// lostAddr is the identity of an address, and the one that programs take it for.
type lostAddr struct{ is, seems uint32 }

// both is something for each direction.
type both struct{ ingress, egress bool }

// peerSet is a peer set in the kernel.
type peerSet struct {
	row    *plan.PeerSet
	n      uint32
	blocks map[uint32]weftWeftBits
	users  map[plan.ID]bool // policy sets
}

// ruleSet is a policy set in the kernel.
type ruleSet struct {
	row     *plan.PolicySet
	n       uint32
	ready   bool
	matches map[weftWeftMatch]weftWeftMatched
	lists   map[uint32]string // contents by number
	value   weftWeftSet
	refused error // names rules that there was no room for
}

// openPolicies opens the maps, and reads from them what an earlier agent left.
func openPolicies(d *Driver, spec *ebpf.CollectionSpec) (*policies, error) {
	o := &d.objs
	pins := filepath.Join(d.dir, layoutPrefix+d.layout)
	in := func(name string, outer *ebpf.Map) *nest {
		return &nest{name: name, pins: pins, outer: outer, inner: spec.Maps[name].InnerMap}
	}
	p := &policies{
		sets:    &table[uint32, weftWeftSet]{m: o.Sets, name: "sets"},
		matches: &table[weftWeftMatch, weftWeftMatched]{m: o.Matches, name: "matches"}, networks: &table[weftWeftPrefix, weftWeftNetwork]{m: o.Networks, name: "networks"},
		conns: in("conns", o.Conns),
		peers: map[plan.ID]*peerSet{}, have: map[plan.ID]*ruleSet{}, guards: map[string]*plan.Guard{}, named: map[plan.ID]bool{}, left: map[string]bool{}, mine: map[string]both{},
		blocks: map[uint32]map[uint32]weftWeftBits{}, matching: map[uint32]map[weftWeftMatch]weftWeftMatched{}, lost: map[netip.Prefix]lostAddr{}, stale: map[plan.ID]bool{}, told: map[[2]uint32]bool{},
	}
	var errs [6]error
	p.lists, errs[0] = nested[weftWeftList, weftWeftRules](in("lists", o.Lists))
	p.members, errs[1] = nested[weftWeftBlock, weftWeftBits](in("members", o.Members))
	p.addresses, errs[2] = nested[weftWeftAddr, uint32](in("addresses", o.Addresses))
	p.vips, errs[3] = nested[weftWeftAddr, uint32](in("vips", o.Vips))
	p.rules, errs[4] = nested[uint32, weftWeftHits](in("rulestats", o.Rulestats))
	names, err := nested[weftWeftName, uint32](in("numbers", o.Numbers))
	errs[5] = err
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	if p.numbers, err = loadNumbers(names, o.Sets.MaxEntries()); err != nil {
		return nil, err
	}
	return p, p.load()
}

// load reads the maps that refer to numbers.
func (p *policies) load() error {
	return errors.Join(
		each(p.members.m, func(k weftWeftBlock, v weftWeftBits) error {
			if p.blocks[k.Peers] == nil {
				p.blocks[k.Peers] = map[uint32]weftWeftBits{}
			}
			p.blocks[k.Peers][k.Block] = v
			return p.holdBits(k.Block, weftWeftBits{}, v, nil)
		}),
		each(p.addresses.m, func(_ weftWeftAddr, v uint32) error { return p.numbers.hold(v, 1, 1) }),
		each(p.networks.m, func(_ weftWeftPrefix, v weftWeftNetwork) error { return p.numbers.hold(v.Identity, 1, 1) }),
		each(p.matches.m, func(k weftWeftMatch, v weftWeftMatched) error {
			if p.matching[k.Set] == nil {
				p.matching[k.Set] = map[weftWeftMatch]weftWeftMatched{}
			}
			k.Len = v.Len
			p.matching[k.Set][k] = v
			return nil
		}))
}

// holdBits notes the difference between two versions of a block, and calls f for every identity that it is about.
func (p *policies) holdBits(block uint32, old, now weftWeftBits, f func(identity uint32)) error {
	var errs []error
	for w := range now.Word {
		for diff := old.Word[w] ^ now.Word[w]; diff != 0; diff &= diff - 1 {
			bit := lowest(diff)
			v := block<<8 | uint32(w)<<5 | bit
			if f != nil {
				f(v)
			}
			if now.Word[w]>>bit&1 == 1 {
				errs = append(errs, p.numbers.hold(v, 1, 0))
			} else {
				errs = append(errs, p.numbers.hold(v, -1, 0))
			}
		}
	}
	return errors.Join(errs...)
}

// identity gives a row's identity a number until it is given back.
func (p *policies) identity(id plan.ID) (uint32, error) {
	if id == 0 {
		return 0, nil
	}
	n, err := p.numbers.take(ofIdentity, id)
	if err != nil {
		return 0, fmt.Errorf("identity %s: %w", id, err)
	}
	return n, nil
}

// putPeers makes a peer set have just the members of its row. What is written is what differs.
func (p *policies) putPeers(row *plan.PeerSet) error {
	s := p.peers[row.ID]
	if s == nil {
		n, err := p.numbers.take(ofPeers, row.ID)
		if err != nil {
			return fmt.Errorf("peer set %s: %w", row.ID, err)
		}
		s = &peerSet{n: n, blocks: p.blocks[n], users: map[plan.ID]bool{}}
		if s.blocks == nil {
			s.blocks = map[uint32]weftWeftBits{}
		}
		delete(p.blocks, n)
		p.peers[row.ID] = s
	}
	touched := map[uint32]weftWeftBits{}
	var gone, come []plan.ID
	if s.row == nil { // of a predecessor, who knew others
		for b := range s.blocks {
			touched[b] = weftWeftBits{}
		}
		come = row.Members
	} else {
		gone, come = differing(s.row.Members, row.Members)
	}
	set := func(id plan.ID, on uint32) error {
		x, err := p.numbers.get(ofIdentity, id)
		if err != nil {
			return fmt.Errorf("peer set %s: identity %s: %w", row.ID, id, err)
		}
		bits, ok := touched[x.n>>8]
		if !ok {
			bits = s.blocks[x.n>>8]
		}
		word, bit := x.n>>5&7, x.n&31
		bits.Word[word] = bits.Word[word]&^(1<<bit) | on<<bit
		touched[x.n>>8] = bits
		return nil
	}
	for _, id := range gone {
		if err := set(id, 0); err != nil {
			return err
		}
	}
	for _, id := range come {
		if err := set(id, 1); err != nil {
			return err
		}
	}
	s.row = nil // until all of it is written
	if err := p.putBlocks(s, touched); err != nil {
		return fmt.Errorf("peer set %s: %w", row.ID, err)
	}
	s.row = row
	return nil
}

// putBlocks writes blocks of a peer set. Flows of a known identity that is in it or not in it since then are asked about again.
func (p *policies) putBlocks(s *peerSet, touched map[uint32]weftWeftBits) error {
	clear(p.told)
	for _, b := range slices.Sorted(maps.Keys(touched)) {
		old, now := s.blocks[b], touched[b]
		if old == now {
			continue
		}
		var err error
		if key := (weftWeftBlock{Peers: s.n, Block: b}); now == (weftWeftBits{}) {
			err = p.members.drop(key)
			delete(s.blocks, b)
		} else {
			err = p.members.write(key, now)
			s.blocks[b] = now
		}
		if err != nil {
			s.blocks[b] = old
			return err
		}
		matters := false
		err = p.holdBits(b, old, now, func(v uint32) { matters = matters || p.numbers.known(v) })
		if matters {
			p.again(s)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// again marks the flows of whoever uses a peer set.
func (p *policies) again(s *peerSet) {
	for id := range s.users {
		p.stale[id] = true
	}
}

func (p *policies) dropPeers(id plan.ID) error {
	s := p.peers[id]
	if s == nil {
		return nil
	}
	none := map[uint32]weftWeftBits{}
	for b := range s.blocks {
		none[b] = weftWeftBits{}
	}
	s.row = nil
	if err := p.putBlocks(s, none); err != nil {
		return fmt.Errorf("peer set %s: %w", id, err)
	}
	delete(p.peers, id)
	_, err := p.numbers.give(ofPeers, id)
	return err
}

// differing returns what is in one of two sorted lists only.
func differing(old, now []plan.ID) (gone, come []plan.ID) {
	for len(old) > 0 || len(now) > 0 {
		switch {
		case len(now) == 0 || len(old) > 0 && old[0] < now[0]:
			gone, old = append(gone, old[0]), old[1:]
		case len(old) == 0 || now[0] < old[0]:
			come, now = append(come, now[0]), now[1:]
		default:
			old, now = old[1:], now[1:]
		}
	}
	return gone, come
}

// putVIP lets programs know a service's address.
func (p *policies) putVIP(a netip.Addr) error {
	if err := p.vips.put(addrOf(a), 1); err != nil {
		return fmt.Errorf("service address %s: %w", a, err)
	}
	return nil
}

func (p *policies) dropVIP(a netip.Addr) error {
	if err := p.vips.drop(addrOf(a)); err != nil {
		return fmt.Errorf("service address %s: %w", a, err)
	}
	return nil
}

// prefixesOf are the keys of the wanted addresses, as the two maps have them.
func prefixesOf(want plan.View) (hosts map[weftWeftAddr]bool, nets map[weftWeftPrefix]bool) {
	hosts, nets = map[weftWeftAddr]bool{}, map[weftWeftPrefix]bool{}
	for r := range plan.All[*plan.Address](want, plan.KindAddress) {
		nets[prefixOf(r.Prefix)] = true
		if r.Prefix.IsSingleIP() {
			hosts[addrOf(r.Prefix.Addr())] = true
		}
	}
	return hosts, nets
}

// sweep removes what an earlier agent left and nobody wants.
func (p *policies) sweep(want plan.View) error {
	var errs []error
	hosts, nets := prefixesOf(want)
	var gone []netip.Prefix
	note := func(wanted bool, k weftWeftPrefix) {
		if !wanted {
			gone = append(gone, prefixFrom(k))
		}
	}
	errs = append(errs,
		each(p.addresses.m, func(k weftWeftAddr, _ uint32) error {
			note(hosts[k], weftWeftPrefix{Len: 128, Addr: k})
			return nil
		}),
		each(p.networks.m, func(k weftWeftPrefix, v weftWeftNetwork) error {
			k.Len = v.Len
			note(nets[k], k)
			return nil
		}))
	for _, at := range gone {
		errs = append(errs, p.dropAddress(at))
	}
	vips := map[weftWeftAddr]bool{}
	for r := range plan.All[*plan.VIP](want, plan.KindVIP) {
		vips[addrOf(r.Addr)] = true
	}
	errs = append(errs, p.vips.keep(vips))
	for n, blocks := range p.blocks { // of peer sets that no row was for
		s := &peerSet{n: n, blocks: blocks}
		none := map[uint32]weftWeftBits{}
		for b := range blocks {
			none[b] = weftWeftBits{}
		}
		errs = append(errs, p.putBlocks(s, none))
		delete(p.blocks, n)
	}
	errs = append(errs, p.sweepSets())
	for _, k := range []kind{ofSet, ofPeers, ofRule, ofIdentity} {
		for _, x := range p.numbers.idle(k) {
			if k == ofRule {
				errs = append(errs, p.rules.drop(x.n))
			}
			_, err := p.numbers.release(k, x)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// prefixFrom is the inverse of prefixOf.
func prefixFrom(k weftWeftPrefix) netip.Prefix {
	a := addrFrom(k.Addr)
	return netip.PrefixFrom(a, int(k.Len)-(128-netset.Of(a).Bits()))
}

// putIdentity gives an identity its number. The kernel holds nothing else of it.
func (p *policies) putIdentity(id plan.ID) error {
	if p.named[id] {
		return nil
	}
	if _, err := p.identity(id); err != nil {
		return err
	}
	p.named[id] = true
	return nil
}

func (p *policies) dropIdentity(id plan.ID) error {
	if !p.named[id] {
		return nil
	}
	delete(p.named, id)
	_, err := p.numbers.give(ofIdentity, id)
	return err
}
