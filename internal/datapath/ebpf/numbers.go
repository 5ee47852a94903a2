package ebpf

import (
	"fmt"
	"sync"

	"weft/internal/plan"
)

// kind says what a number is of.
type kind uint32

// The kinds. A number means nothing but in its kind.
const (
	ofCounter  kind = iota // the last serial number that may be in use
	ofIdentity             // from 2; 1 is the world
	ofPeers
	ofSet // less than the size of map sets
	ofRule
)

const worldNumber = 1

// serialBlock is how many serial numbers are taken from the kernel's memory at once.
const serialBlock = 1024

// numbers gives the IDs of rows the numbers by which programs know them. They are in the pinned map numbers, so that a new agent
// goes on with them, and what is in other maps keeps its meaning. A number is free again when nobody holds it: rows
// of this agent, and for identities also what is in the maps of addresses and members.
type numbers struct {
	t     *table[weftWeftName, uint32]
	limit map[kind]uint32 // the largest

	mu     sync.Mutex // for readers of other goroutines; the maps change in the reconcile goroutine only
	of     map[weftWeftName]*number
	by     map[kind]map[uint32]*number
	free   map[kind][]uint32
	next   map[kind]uint32
	serial uint32 // the last that was given
	last   uint32 // the last that may be given before the kernel must be told
}

// number is one that was given.
type number struct {
	n     uint32
	id    plan.ID
	rows  int // rows of this agent that need it
	held  int // of an identity: entries in the maps of addresses, networks and members
	addrs int // of an identity: those of them in the maps of addresses and networks
}

func nameOf(k kind, id plan.ID) weftWeftName {
	return weftWeftName{Id: [2]uint32{uint32(id), uint32(id >> 32)}, Kind: uint32(k)}
}

// loadNumbers reads what earlier agents gave.
func loadNumbers(t *table[weftWeftName, uint32], sets uint32) (*numbers, error) {
	n := &numbers{
		t: t, limit: map[kind]uint32{ofIdentity: 1<<32 - 2, ofPeers: 1<<32 - 2, ofSet: sets - 1, ofRule: 1<<32 - 2},
		of: map[weftWeftName]*number{}, by: map[kind]map[uint32]*number{}, free: map[kind][]uint32{},
		next: map[kind]uint32{ofIdentity: worldNumber + 1, ofPeers: 1, ofSet: 1, ofRule: 1},
	}
	for k := range n.limit {
		n.by[k] = map[uint32]*number{}
	}
	err := each(t.m, func(name weftWeftName, v uint32) error {
		k := kind(name.Kind)
		if k == ofCounter {
			n.serial, n.last = v, v
			return nil
		}
		x := &number{n: v, id: plan.ID(name.Id[0]) | plan.ID(name.Id[1])<<32}
		n.of[name], n.by[k][v] = x, x
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", t.name, err)
	}
	for k, have := range n.by {
		for v := range have {
			n.next[k] = max(n.next[k], v+1)
		}
		for v := n.next[k] - 1; v > worldNumber; v-- { // what is missing below the last
			if have[v] == nil {
				n.free[k] = append(n.free[k], v)
			}
		}
	}
	return n, nil
}

// take returns the number of an ID, which has none before somebody takes it, for one more row.
func (n *numbers) take(k kind, id plan.ID) (uint32, error) {
	x, err := n.get(k, id)
	if err != nil {
		return 0, err
	}
	x.rows++
	return x.n, nil
}

// get returns the number of an ID, a new one if it has none.
func (n *numbers) get(k kind, id plan.ID) (*number, error) {
	name := nameOf(k, id)
	if x := n.of[name]; x != nil {
		return x, nil
	}
	x := &number{id: id}
	free := n.free[k]
	switch {
	case k == ofIdentity && id == plan.IdentityWorld:
		x.n = worldNumber // the programs know it
	case len(free) > 0:
		x.n = free[len(free)-1]
	case n.next[k] <= n.limit[k]:
		x.n = n.next[k]
	default:
		return nil, fmt.Errorf("there are no more than %d numbers of this kind", n.limit[k])
	}
	if x.n != worldNumber || k != ofIdentity {
		if err := n.t.put(name, x.n); err != nil {
			return nil, err
		}
		if len(free) > 0 {
			n.free[k] = free[:len(free)-1]
		} else {
			n.next[k]++
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.of[name], n.by[k][x.n] = x, x
	return x, nil
}

// give is for a row that does not need the number any more. It reports whether nobody does.
func (n *numbers) give(k kind, id plan.ID) (bool, error) {
	x := n.of[nameOf(k, id)]
	if x == nil {
		return false, nil
	}
	x.rows--
	return n.release(k, x)
}

// release frees a number that nobody holds.
func (n *numbers) release(k kind, x *number) (bool, error) {
	if x.rows > 0 || x.held > 0 {
		return false, nil
	}
	if x.n == worldNumber && k == ofIdentity {
		return false, nil
	}
	if err := n.t.drop(nameOf(k, x.id)); err != nil {
		return false, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.of, nameOf(k, x.id))
	delete(n.by[k], x.n)
	n.free[k] = append(n.free[k], x.n)
	return true, nil
}

// hold notes entries of maps that bear an identity's number: d more or less, a of them of addresses.
func (n *numbers) hold(v uint32, d, a int) error {
	x := n.by[ofIdentity][v]
	if x == nil { // of an entry that was there before the numbers were lost
		return nil
	}
	x.held += d
	x.addrs += a
	_, err := n.release(ofIdentity, x)
	return err
}

// known says whether anybody bears an identity now.
func (n *numbers) known(v uint32) bool {
	x := n.by[ofIdentity][v]
	return v == worldNumber || x != nil && x.addrs > 0
}

// id returns what has a number, 0 for nothing. It may be called from any goroutine.
func (n *numbers) id(k kind, v uint32) plan.ID {
	n.mu.Lock()
	defer n.mu.Unlock()
	if x := n.by[k][v]; x != nil {
		return x.id
	}
	return 0
}

// idle returns the numbers of a kind that no row needs.
func (n *numbers) idle(k kind) []*number {
	var out []*number
	for _, x := range n.by[k] {
		if x.rows == 0 {
			out = append(out, x)
		}
	}
	return out
}

// newSerial returns a number that was never given before, by no agent.
func (n *numbers) newSerial() (uint32, error) {
	if n.serial == n.last {
		if err := n.t.put(nameOf(ofCounter, 0), n.last+serialBlock); err != nil {
			return 0, err
		}
		n.last += serialBlock
	}
	n.serial++
	return n.serial, nil
}
