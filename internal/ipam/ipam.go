// Package ipam gives addresses to pods: pools, and a journal from which a restarted agent
// knows every endpoint it serves.
//
// An address is free, reserved (an ADD is under way, or its end was not recorded), committed,
// quarantined (it rests after its pod is gone, so that nobody's late packets reach a new owner) or
// suspect (the journal was damaged and somebody may have it). It is given only after the journal that says so is on
// disk, and everything that a crash can leave is one of these states (docs/design/ipam.md).
//
// It is not a CNI plugin and touches no kernel object: whether a pod still lives is told to it by its
// caller (source/cni). It allocates for this node alone; which prefixes the node has is decided
// by others and set with SetPools.
package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/run"
)

// The reasons for which Reserve refuses. Each is wrapped with the names and numbers that matter.
var (
	ErrNoPools   = errors.New("this node has no address pool")
	ErrExhausted = errors.New("no free address")
	ErrTaken     = errors.New("already in use")
	ErrOutside   = errors.New("outside the pools")
	ErrInvalid   = errors.New("not usable")
	ErrExists    = errors.New("the attachment exists already")
	ErrSecond    = errors.New("a second interface of one pod is not supported")
	// ErrJournal means that the change could not be written down. Reserve and Commit have then
	// changed nothing; Release has released, and the next successful write records it.
	ErrJournal = errors.New("the address journal cannot be written")
)

// State is how far an address's allocation has come.
type State string

// The states. Lease has one of the first two, addresses without a lease one of the others.
const (
	Reserved    State = "reserved"
	Committed   State = "committed"
	Quarantined State = "quarantined"
	Suspected   State = "suspect"
	Free        State = "free"
	Excluded    State = "excluded" // in a pool, but never given: reserved range, network or broadcast address
	Foreign     State = "foreign"  // in no pool
)

// Lease is an endpoint with its addresses. Leases are values: changing one changes nothing here.
type Lease struct {
	Endpoint model.Endpoint
	Network  string // name of the CNI network that it was added to
	NetnsID  string // identity of the namespace behind Endpoint.Netns, as the caller's liveness check knows it
	Boot     string // boot ID under which it was reserved
	State    State  // Reserved or Committed
	Since    time.Time
}

// Request is what Reserve is asked for: the endpoint without addresses, and perhaps without MAC.
type Request struct {
	Endpoint model.Endpoint // Addrs: wanted, at most one a family; MAC: wanted, or zero
	Network  string
	NetnsID  string
}

// Options are what Open needs besides the directory.
type Options struct {
	Boot       string         // this boot's ID; suspicions of an earlier boot are dropped
	Pools      []netip.Prefix // as for SetPools
	Reserved   []netip.Prefix
	Quarantine time.Duration // how long a freed address rests
	// Salvage makes Open continue with a damaged journal: it keeps every lease that can be read, suspects every other
	// address that the file names, and leaves the file as JournalName + ".damaged". Else Open fails with a *CorruptError.
	Salvage bool
}

// Allocator hands out addresses. All methods may be called from any goroutine.
type Allocator struct {
	clock  run.Clock
	boot   string
	rest   time.Duration
	damage *CorruptError // what Open salvaged, or nil

	mu       sync.Mutex
	written  *sync.Cond // a batch has ended
	journal  journal    // used without mu by the goroutine that set writing
	writing  bool
	batch    *batch // collects what the next write writes; never nil
	pools    []netip.Prefix
	reserved []netip.Prefix
	usable   map[netset.Family]spans
	cursor   map[netset.Family]netip.Addr
	leases   map[string]*Lease         // by endpoint ID; a Lease is replaced, never changed
	owner    map[netip.Addr]*Lease     // addresses of leases
	resting  map[netip.Addr]*rest      // quarantined and suspect
	queue    map[netset.Family][]*rest // quarantined in the order of their ends; stale entries are skipped
	counts   Counters
}

// Counters count since Open.
type Counters struct {
	Reserved, Committed, Released uint64
	Exhausted                     uint64 // refused for want of a free address
	Early                         uint64 // given before the end of their quarantine
	Failed                        uint64 // changes that the journal could not take
	Writes, Rewrites              uint64 // of the journal; Writes is also the number of fsyncs on the way of ADDs
}

// batch is what one write puts on disk.
type batch struct {
	ops  []op
	undo []func() // in the order of ops; called with mu held if the write failed
	over bool
	err  error
}

// Reserve gives the endpoint its addresses, one of each family that has pools, and its MAC. It returns when that is on
// disk. The same ID in the same network namespace gets the same lease again; callers make one call at a time for one ID. The errors are the Err values above.
func (a *Allocator) Reserve(r Request) (Lease, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	id := r.Endpoint.ID
	if have := a.leases[id]; have != nil {
		if have.Endpoint.Netns == r.Endpoint.Netns && have.NetnsID == r.NetnsID {
			return *have, nil
		}
		return Lease{}, fmt.Errorf("%s: %w in the namespace %s", id, ErrExists, have.Endpoint.Netns)
	}
	l := &Lease{Endpoint: r.Endpoint, Network: r.Network, NetnsID: r.NetnsID, Boot: a.boot, State: Reserved, Since: a.now()}
	if err := a.conflicts(l); err != nil {
		return Lease{}, err
	}
	a.expire()
	cursor, err := a.choose(l)
	if err != nil {
		return Lease{}, err
	}
	if l.Endpoint.MAC.IsZero() {
		l.Endpoint.MAC = DeriveMAC(l.Endpoint.Addrs[0])
	}
	before := make(map[netip.Addr]*rest)
	for _, x := range l.Endpoint.Addrs {
		if r := a.resting[x]; r != nil {
			before[x] = r
		}
	}
	a.put(l)
	for _, c := range cursor {
		a.cursor[netset.Of(c)] = c
	}
	undo := func() {
		if a.leases[id] != l {
			return
		}
		a.drop(l)
		for x, r := range before {
			a.lay(x, r)
		}
	}
	if err := a.write(op{Op: "lease", Lease: toRecord(l), Cursor: cursor}, undo); err != nil {
		return Lease{}, err
	}
	a.counts.Reserved++
	return *l, nil
}

// Commit records that the endpoint works. It returns when that is on disk; a caller may go on before, because a
// reserved lease is kept over a crash as well.
func (a *Allocator) Commit(id string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	old := a.leases[id]
	switch {
	case old == nil:
		return fmt.Errorf("commit %s: it was released meanwhile", id)
	case old.State == Committed:
		return nil
	}
	l := *old
	l.State = Committed
	a.leases[id] = &l
	for _, x := range l.Endpoint.Addrs {
		a.owner[x] = &l
	}
	undo := func() {
		if a.leases[id] == &l {
			a.leases[id] = old
			for _, x := range l.Endpoint.Addrs {
				a.owner[x] = old
			}
		}
	}
	a.counts.Committed++
	return a.write(op{Op: "lease", Lease: toRecord(&l)}, undo)
}

// Release ends leases; their addresses rest. IDs without a lease are passed over. Call it when nothing in the kernel
// uses the addresses any more. It returns when that is on disk. After an error, which is ErrJournal, the leases have
// ended all the same: should the agent die before the next write, they are found dead when it starts.
func (a *Allocator) Release(why string, ids ...string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	var ops []op
	for _, id := range ids {
		l := a.leases[id]
		if l == nil {
			continue
		}
		o := op{Op: "free", ID: id, At: now, Until: now.Add(a.rest), Why: why}
		a.free(l, o)
		ops = append(ops, o)
		a.counts.Released++
	}
	if len(ops) == 0 {
		return nil
	}
	a.batch.ops = append(a.batch.ops, ops[:len(ops)-1]...)
	return a.write(ops[len(ops)-1], nil)
}

// Suspect keeps addresses from being given that have no lease but may be in use, such as those that the kernel
// routes to a link that no lease explains. They are given again after Absolve or a reboot.
func (a *Allocator) Suspect(why string, addrs ...netip.Addr) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var rs []rest
	for _, x := range addrs {
		x = x.Unmap()
		if a.owner[x] != nil {
			continue
		}
		r := rest{Addr: x, Since: a.now(), Boot: a.boot, Why: why}
		if old := a.resting[x]; old != nil && old.Owner != "" {
			r.Owner, r.Pod, r.Why = old.Owner, old.Pod, old.Why+", and "+why
		}
		rs = append(rs, r)
	}
	if len(rs) == 0 {
		return nil
	}
	for i := range rs {
		a.lay(rs[i].Addr, &rs[i])
	}
	return a.write(op{Op: "rest", Rest: rs}, nil)
}

// Absolve turns suspicions into quarantine. Call it when no link of ours is left that no lease explains.
func (a *Allocator) Absolve() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	var rs []rest
	for _, r := range a.resting {
		if r.Until.IsZero() {
			rs = append(rs, rest{Addr: r.Addr, Since: r.Since, Until: now.Add(a.rest), Owner: r.Owner, Pod: r.Pod, Why: r.Why})
		}
	}
	if len(rs) == 0 {
		return nil
	}
	for i := range rs {
		a.lay(rs[i].Addr, &rs[i])
	}
	return a.write(op{Op: "rest", Rest: rs}, nil)
}

// SetPools changes what addresses are given from. Leases outside the new pools stay until they are released.
func (a *Allocator) SetPools(pools, reserved []netip.Prefix) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.setPools(pools, reserved)
}

func (a *Allocator) setPools(pools, reserved []netip.Prefix) {
	a.pools, a.reserved = netset.Minimal(pools), netset.Minimal(reserved)
	for _, f := range netset.Families() {
		a.usable[f] = buildSpans(a.pools, a.reserved, f)
	}
	for x := range a.owner {
		a.usable[netset.Of(x)].set(x, true)
	}
	for x := range a.resting {
		a.usable[netset.Of(x)].set(x, true)
	}
}

// SetQuarantine changes how long addresses rest that are freed from now on.
func (a *Allocator) SetQuarantine(d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rest = d
}

// Get returns the lease of the ID.
func (a *Allocator) Get(id string) (Lease, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if l := a.leases[id]; l != nil {
		return *l, true
	}
	return Lease{}, false
}

// Leases returns all leases in the order of their IDs.
func (a *Allocator) Leases() []Lease {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]Lease, 0, len(a.leases))
	for _, l := range a.leases {
		out = append(out, *l)
	}
	slices.SortFunc(out, func(x, y Lease) int {
		if x.Endpoint.ID < y.Endpoint.ID {
			return -1
		}
		return 1
	})
	return out
}

// LeasesOf returns the leases of the pod with that name, whatever its UID.
func (a *Allocator) LeasesOf(namespace, pod string) []Lease {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []Lease
	for _, l := range a.leases {
		if p := l.Endpoint.Pod; p.Name == pod && p.Namespace == namespace {
			out = append(out, *l)
		}
	}
	return out
}

// Salvaged returns the damage that Open found and worked around, or nil.
func (a *Allocator) Salvaged() *CorruptError { return a.damage }

// Close waits for writes and closes the journal. Nothing needs it: a killed agent loses nothing.
func (a *Allocator) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.writing {
		a.written.Wait()
	}
	if a.journal.file == nil {
		return nil
	}
	f := a.journal.file
	a.journal.file = nil
	return f.Close()
}

func (a *Allocator) now() time.Time { return a.clock.Now().UTC().Truncate(time.Millisecond) }

// write puts the op into the next batch and returns when that is on disk. Whoever finds nobody writing
// writes for all: concurrent calls share one fsync. mu is held, and released meanwhile.
func (a *Allocator) write(o op, undo func()) error {
	b := a.batch
	b.ops = append(b.ops, o)
	if undo != nil {
		b.undo = append(b.undo, undo)
	}
	for !b.over {
		if a.writing {
			a.written.Wait()
			continue
		}
		a.writing, a.batch = true, &batch{}
		var whole [][]op
		if a.journal.full() {
			whole = a.state()
		}
		a.mu.Unlock()
		err := a.journal.put(b.ops, whole)
		a.mu.Lock()
		a.counts.Writes++
		if whole != nil {
			a.counts.Rewrites++
		}
		if err != nil {
			a.counts.Failed++
			b.err = fmt.Errorf("%w: %w", ErrJournal, err)
			for _, undo := range slices.Backward(b.undo) {
				undo()
			}
		}
		a.writing, b.over = false, true
		a.written.Broadcast()
	}
	return b.err
}
