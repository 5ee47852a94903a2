package ebpf

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"slices"

	"weft/internal/plan"
)

func lowest(word uint32) uint32 { return uint32(bits.TrailingZeros32(word)) }

// errNoSet says that a guard's policy set is not in the kernel.
var errNoSet = errors.New("its policy set is not in force: it stays closed")

// readySet returns a policy set that is in the kernel, putting it and its peer sets there if they are wanted and their turn has
// not come yet.
func (p *policies) readySet(want plan.View, id plan.ID) (*ruleSet, error) {
	if s := p.have[id]; s != nil && s.ready {
		return s, nil
	}
	row := plan.Get[*plan.PolicySet](want, (&plan.PolicySet{ID: id}).Key())
	if row == nil {
		return nil, fmt.Errorf("there is no policy set %s", id)
	}
	err := p.putSet(want, row)
	if s := p.have[id]; s != nil && s.ready {
		return s, nil
	}
	return nil, err
}

// readyPeers is the same for a peer set, of which it returns the number.
func (p *policies) readyPeers(want plan.View, id plan.ID) (*peerSet, error) {
	if s := p.peers[id]; s != nil && s.row != nil {
		return s, nil
	}
	row := plan.Get[*plan.PeerSet](want, (&plan.PeerSet{ID: id}).Key())
	if row == nil {
		return nil, fmt.Errorf("there is no peer set %s", id)
	}
	if err := p.putPeers(row); err != nil {
		return nil, err
	}
	return p.peers[id], nil
}

// putSet makes a policy set be in the kernel: lists, then matches, longest first, then the set itself with a new generation
// if any of it has changed. At each moment a packet sees all the rules that the set had, or all that it has.
func (p *policies) putSet(want plan.View, row *plan.PolicySet) error {
	s := p.have[row.ID]
	if s == nil {
		n, err := p.numbers.take(ofSet, row.ID)
		if err != nil {
			return fmt.Errorf("policy set %s: %w", row.ID, err)
		}
		s = &ruleSet{n: n, matches: p.matching[n], lists: map[uint32]string{}}
		if s.matches == nil {
			s.matches = map[weftWeftMatch]weftWeftMatched{}
		}
		for _, m := range s.matches {
			if m.List != 0 {
				s.lists[m.List] = content(p.readList(m.List))
			}
		}
		delete(p.matching, n)
		p.have[row.ID] = s
		if err := p.sets.m.Lookup(n, &s.value); err != nil {
			return fmt.Errorf("read map %s: %w", p.sets.name, err)
		}
	}
	if s.ready && s.row == row && s.refused == nil {
		return nil
	}
	before := s.row
	s.ready = false
	names, err := p.takeParts(want, row)
	fits := without(row, names.refused)
	for err == nil {
		if err = p.writeSet(s, fits, names); !errors.Is(err, errFull) || len(fits.Rules) < 2 {
			break
		}
		fits = shorten(fits, names.refused, err)
		err = p.emptySet(s) // what was written of it takes the room; until it is written again, it denies everything
	}
	if err != nil {
		p.giveParts(row)
		return fmt.Errorf("policy set %s: %w", row.ID, err)
	}
	s.row, s.ready, s.refused = row, true, refusal(row, names.refused)
	if before != nil {
		p.giveParts(before)
	}
	return s.refused
}

// parts are the numbers of what a set's rules refer to, and why some of the rules cannot be in the kernel.
type parts struct {
	rules, peers map[plan.ID]uint32
	refused      map[plan.ID]error
}

// takeParts takes the numbers of a set's rules and peer sets. Whatever comes of it, giveParts gives back what was taken.
func (p *policies) takeParts(want plan.View, row *plan.PolicySet) (parts, error) {
	out := parts{map[plan.ID]uint32{}, map[plan.ID]uint32{}, map[plan.ID]error{}}
	full := map[plan.ID]error{}
	var errs []error
	for i := range row.Rules {
		r := &row.Rules[i]
		if _, ok := out.rules[r.ID]; !ok {
			n, err := p.numbers.take(ofRule, r.ID)
			if err == nil {
				err = p.rules.start(n)
			}
			if errors.Is(err, errFull) {
				err = nil // it works without a counter
			}
			out.rules[r.ID] = n
			errs = append(errs, err)
		}
		if _, ok := out.peers[r.Peers]; !ok && r.Peers != 0 {
			n, err := p.numbers.take(ofPeers, r.Peers)
			if err == nil {
				var s *peerSet
				if s, err = p.readyPeers(want, r.Peers); err == nil {
					s.users[row.ID] = true
					clear(p.told)
				}
			}
			if errors.Is(err, errFull) {
				full[r.Peers], err = err, nil
			}
			out.peers[r.Peers] = n
			errs = append(errs, err)
		}
		if err := cmp.Or(full[r.Peers], p.misled(r)); err != nil {
			out.refused[r.ID] = err
		}
	}
	return out, errors.Join(errs...)
}

// giveParts is the inverse of takeParts.
func (p *policies) giveParts(row *plan.PolicySet) {
	rules, peers := map[plan.ID]bool{}, map[plan.ID]bool{}
	for i := range row.Rules {
		rules[row.Rules[i].ID] = true
		if id := row.Rules[i].Peers; id != 0 {
			peers[id] = true
		}
	}
	for id := range rules {
		x := p.numbers.of[nameOf(ofRule, id)]
		if freed, err := p.numbers.give(ofRule, id); freed && err == nil {
			_ = p.rules.drop(x.n) // a counter that nobody reads; Sweep tries again
		}
	}
	for id := range peers {
		_, _ = p.numbers.give(ofPeers, id)
		if now := p.have[row.ID]; p.peers[id] != nil && (now == nil || now.row == nil || !now.uses(id)) {
			delete(p.peers[id].users, row.ID)
		}
	}
}

func (s *ruleSet) uses(peers plan.ID) bool {
	return slices.ContainsFunc(s.row.Rules, func(r plan.PolicyRule) bool { return r.Peers == peers })
}

func (p *policies) writeSet(s *ruleSet, row *plan.PolicySet, names parts) error {
	wanted, err := listsOf(s.n, row, func(r *plan.PolicyRule) (rule, peers uint32) { return names.rules[r.ID], names.peers[r.Peers] })
	if err != nil {
		return err
	}
	value := s.value
	value.Flags = 0
	if slices.ContainsFunc(row.Rules, func(r plan.PolicyRule) bool { return r.Hosts }) {
		value.Flags = setHosts
	}
	writes := p.matches.writes + p.lists.writes
	matches, used := map[weftWeftMatch]bool{}, map[uint32]bool{}
	for _, l := range wanted {
		list, err := p.listFor(s, l)
		if err != nil {
			return err
		}
		now := weftWeftMatched{List: list, Len: l.match.Len}
		if s.matches[l.match] != now {
			if err := p.matches.write(l.match, now); err != nil {
				return err
			}
			s.matches[l.match] = now
		}
		matches[l.match], used[list] = true, true
	}
	// Shortest first: what a longer one that is to go has hidden is right by now.
	shortest := func(a, b weftWeftMatch) int { return cmp.Compare(a.Len, b.Len) }
	for _, m := range slices.SortedFunc(maps.Keys(s.matches), shortest) {
		if matches[m] {
			continue
		}
		if err := p.matches.drop(m); err != nil {
			return err
		}
		delete(s.matches, m)
	}
	for list := range s.lists {
		if used[list] {
			continue
		}
		if err := p.dropList(list); err != nil {
			return err
		}
		delete(s.lists, list)
	}
	if value == s.value && value.Generation != 0 && p.matches.writes+p.lists.writes == writes {
		return nil
	}
	s.value.Flags = value.Flags
	return p.raise(s)
}

// listFor returns the number of a list of the set with the rules of l, writing one if there is none.
func (p *policies) listFor(s *ruleSet, l ruleList) (uint32, error) {
	if len(l.chunks) == 0 {
		return 0, nil
	}
	text := content(l.chunks)
	for n, have := range s.lists {
		if have == text {
			return n, nil
		}
	}
	n, err := p.numbers.newSerial()
	if err != nil {
		return 0, err
	}
	if err := p.putList(n, l.chunks); err != nil {
		return 0, errors.Join(err, p.dropList(n))
	}
	s.lists[n] = text
	return n, nil
}

// raise gives a set a new generation, so that its flows are asked about again.
func (p *policies) raise(s *ruleSet) error {
	g, err := p.numbers.newSerial()
	if err != nil {
		return err
	}
	s.value.Generation = g
	return p.sets.put(s.n, s.value)
}

// raiseStale does so for all sets that something they refer to has changed for.
func (p *policies) raiseStale() error {
	var errs []error
	for id := range p.stale {
		if s := p.have[id]; s != nil && s.value.Generation != 0 {
			errs = append(errs, p.raise(s))
		}
	}
	clear(p.stale)
	clear(p.told)
	return errors.Join(errs...)
}

// dropSet removes a policy set that no guard refers to.
func (p *policies) dropSet(id plan.ID) error {
	s := p.have[id]
	if s == nil {
		return nil
	}
	s.ready = false
	if err := p.emptySet(s); err != nil {
		return fmt.Errorf("policy set %s: %w", id, err)
	}
	delete(p.have, id)
	if s.row != nil {
		p.giveParts(s.row)
	}
	_, err := p.numbers.give(ofSet, id)
	return err
}

func (p *policies) emptySet(s *ruleSet) error {
	if err := p.sets.put(s.n, weftWeftSet{}); err != nil {
		return err
	}
	s.value = weftWeftSet{}
	for m := range s.matches {
		if err := p.matches.drop(m); err != nil {
			return err
		}
		delete(s.matches, m)
	}
	for list := range s.lists {
		if err := p.dropList(list); err != nil {
			return err
		}
		delete(s.lists, list)
	}
	return nil
}

// sweepSets removes sets that no row was for, and lists that no set refers to.
func (p *policies) sweepSets() error {
	var errs []error
	for n, matches := range p.matching {
		errs = append(errs, p.emptySet(&ruleSet{n: n, matches: matches}))
		delete(p.matching, n)
	}
	for _, x := range p.numbers.idle(ofSet) {
		errs = append(errs, p.sets.put(x.n, weftWeftSet{}))
	}
	lists := map[uint32]bool{}
	for _, s := range p.have {
		for n := range s.lists {
			lists[n] = true
		}
	}
	var gone []weftWeftList
	errs = append(errs, each(p.lists.m, func(k weftWeftList, _ weftWeftRules) error {
		if !lists[k.List] {
			gone = append(gone, k)
		}
		return nil
	}))
	for _, k := range gone {
		errs = append(errs, p.lists.drop(k))
	}
	return errors.Join(errs...)
}

// guard is a Guard row in the form of the programs. A direction whose set is not in the kernel is closed, and told.
func (p *policies) guard(want plan.View, g *plan.Guard) (weftWeftGuard, error) {
	out := weftWeftGuard{}
	var errs []error
	if g.Identity != 0 {
		x, err := p.numbers.get(ofIdentity, g.Identity)
		if err == nil {
			out.Identity = x.n
		}
		errs = append(errs, err)
	}
	for _, side := range []struct {
		id plan.ID
		to *uint32
	}{{g.Ingress, &out.Ingress}, {g.Egress, &out.Egress}} {
		if side.id == 0 {
			continue
		}
		s, err := p.readySet(want, side.id)
		if err != nil {
			*side.to = setClosed
			errs = append(errs, fmt.Errorf("guard %s: %w: %w", g.Key().Name, errNoSet, err))
			continue
		}
		if g.OfNode() && s.refused != nil { // the node is not put under rules that deny more than they should
			errs = append(errs, fmt.Errorf("guard %s: %w", g.Key().Name, s.refused))
		}
		*side.to = s.n
	}
	return out, errors.Join(errs...)
}

// setClosed is the number of a set that denies everything; see bpf/lib/maps.h.
const setClosed = 0xffffffff

func closed() weftWeftGuard { return weftWeftGuard{Ingress: setClosed, Egress: setClosed} }

func isGuarded(g weftWeftGuard) bool { return g.Ingress != 0 || g.Egress != 0 }
