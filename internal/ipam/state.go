package ipam

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/run"
)

// Open reads the journal in the directory and starts it anew without what has become meaningless. A missing journal is an
// empty one. A disk that cannot be written is no error: what was read is served, and Reserve fails until it can.
func Open(fs FS, clock run.Clock, o Options) (*Allocator, error) {
	a := &Allocator{clock: clock, boot: o.Boot, rest: o.Quarantine, batch: &batch{}, journal: journal{fs: fs}}
	a.forget()
	a.written = sync.NewCond(&a.mu)
	data, err := fs.ReadFile(JournalName)
	if errors.Is(err, os.ErrNotExist) {
		a.setPools(o.Pools, o.Reserved)
		return a, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the address journal: %w", err)
	}
	c := parse(JournalName, data)
	for _, o := range c.ops {
		if o.Op == "head" && o.Version > formatVersion {
			// Not damage, and nothing to salvage: every pod of the node would be forgotten.
			return nil, fmt.Errorf("%s has format %d, this program knows up to %d: was weft downgraded?", JournalName, o.Version, formatVersion)
		}
	}
	if c.damage == nil {
		c.damage = a.replay(c.ops, false)
	}
	if c.damage != nil {
		if !o.Salvage {
			return nil, c.damage
		}
		a.forget()
		_ = a.replay(c.ops, true) // what is damaged is known already, and left out
	}
	a.journal.seq, a.damage = c.seq, c.damage
	a.distrust(c)
	clear(a.queue)
	for _, r := range a.resting {
		a.lay(r.Addr, r)
	}
	a.setPools(o.Pools, o.Reserved)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.expire()
	if c.damage != nil {
		// Without the copy of the evidence the original must not be replaced.
		if _, _, err := replace(fs, JournalName+".damaged", data); err != nil {
			return nil, errors.Join(c.damage, err)
		}
	}
	_ = a.journal.put(nil, a.state()) // a failure is met again, and told, by the first Reserve
	return a, nil
}

// forget makes the allocator know nothing.
func (a *Allocator) forget() {
	a.usable, a.cursor = map[netset.Family]spans{}, map[netset.Family]netip.Addr{}
	a.leases, a.owner = map[string]*Lease{}, map[netip.Addr]*Lease{}
	a.resting, a.queue = map[netip.Addr]*rest{}, map[netset.Family][]*rest{}
}

// replay applies what was read. What contradicts itself is damage; when salvaging, the later op is right.
func (a *Allocator) replay(ops []op, salvage bool) *CorruptError {
	bad := func(f string, v ...any) *CorruptError {
		return &CorruptError{File: JournalName, Reason: fmt.Sprintf(f, v...)}
	}
	for _, o := range ops {
		for _, c := range o.Cursor {
			a.cursor[netset.Of(c)] = c
		}
		switch {
		case o.Op == "head":
		case o.Op == "free":
			if l := a.leases[o.ID]; l != nil {
				a.free(l, o)
			}
		case o.Op == "rest":
			for _, r := range o.Rest {
				if a.owner[r.Addr] == nil {
					a.resting[r.Addr] = &r
				}
			}
		case o.Op == "lease" && o.Lease != nil && o.Lease.ID != "" && len(o.Lease.Addrs) > 0:
			l := o.Lease.lease()
			if old := a.leases[l.Endpoint.ID]; old != nil {
				a.drop(old)
			}
			for _, x := range l.Endpoint.Addrs {
				other := a.owner[x]
				if other == nil {
					continue
				}
				if !salvage {
					return bad("%s is given to %s and to %s", x, other.Endpoint.ID, l.Endpoint.ID)
				}
				a.drop(other)
			}
			a.put(l)
		default:
			if !salvage {
				return bad("it has an operation %q that this program does not know", o.Op)
			}
		}
	}
	return nil
}

// distrust suspects the addresses that may be in use though no readable lease says so, and drops
// suspicions that a reboot has settled.
func (a *Allocator) distrust(c contents) {
	now := a.now()
	suspect := func(x netip.Addr, why string) {
		if a.owner[x] == nil {
			a.resting[x] = &rest{Addr: x, Since: now, Boot: a.boot, Why: why}
		}
	}
	for x, r := range a.resting {
		if r.Until.IsZero() && r.Boot != a.boot {
			r.Until = now
		} else if most := now.Add(a.rest); r.Until.After(most) {
			r.Until = most // the clock was set back, or the quarantine shortened
		}
		a.resting[x] = r
	}
	for _, x := range c.strewn {
		suspect(x.Unmap(), "an unreadable part of the address journal names it")
	}
	if c.damage == nil {
		return
	}
	for _, o := range c.ops {
		if o.Lease != nil {
			for _, x := range o.Lease.Addrs {
				suspect(x, "the address journal was damaged and names it")
			}
		}
		for _, r := range o.Rest {
			suspect(r.Addr, "the address journal was damaged and names it")
		}
	}
}

// state returns batches that rebuild everything.
func (a *Allocator) state() [][]op {
	head := op{Op: "head", Version: formatVersion}
	for _, f := range netset.Families() {
		if c := a.cursor[f]; c.IsValid() {
			head.Cursor = append(head.Cursor, c)
		}
	}
	out := [][]op{{head}}
	for _, l := range a.leases {
		out = append(out, []op{{Op: "lease", Lease: toRecord(l)}})
	}
	if len(a.resting) > 0 {
		o := op{Op: "rest"}
		for _, r := range a.resting {
			o.Rest = append(o.Rest, *r)
		}
		slices.SortFunc(o.Rest, func(x, y rest) int { return x.Addr.Compare(y.Addr) })
		out = append(out, []op{o})
	}
	slices.SortFunc(out[1:], func(x, y []op) int { return cmp.Compare(x[0].id(), y[0].id()) })
	return out
}

func (o op) id() string {
	if o.Lease == nil {
		return "" // the resting first
	}
	return o.Lease.ID
}

// put adds a lease; its addresses rest no more.
func (a *Allocator) put(l *Lease) {
	a.leases[l.Endpoint.ID] = l
	for _, x := range l.Endpoint.Addrs {
		if r := a.resting[x]; r != nil {
			delete(a.resting, x)
		}
		a.owner[x] = l
		a.usable[netset.Of(x)].set(x, true)
	}
}

// drop removes a lease; its addresses are free.
func (a *Allocator) drop(l *Lease) {
	delete(a.leases, l.Endpoint.ID)
	for _, x := range l.Endpoint.Addrs {
		delete(a.owner, x)
		a.usable[netset.Of(x)].set(x, false)
	}
}

// free ends a lease as the op says; its addresses rest.
func (a *Allocator) free(l *Lease, o op) {
	a.drop(l)
	for _, x := range l.Endpoint.Addrs {
		a.lay(x, &rest{Addr: x, Since: o.At, Until: o.Until, Owner: o.ID, Pod: podRecord(l.Endpoint.Pod), Why: o.Why})
	}
}

// lay puts an address to rest.
func (a *Allocator) lay(x netip.Addr, r *rest) {
	f := netset.Of(x)
	a.resting[x] = r
	a.usable[f].set(x, true)
	if r.Until.IsZero() {
		return
	}
	// Almost always the last place; a changed quarantine or a reopened journal needs the search.
	q := a.queue[f]
	at, _ := slices.BinarySearchFunc(q, r, func(x, y *rest) int {
		if c := x.Until.Compare(y.Until); c != 0 {
			return c
		}
		return -1 // behind its equals
	})
	a.queue[f] = slices.Insert(q, at, r)
}

// expire frees the addresses whose rest is over.
func (a *Allocator) expire() {
	now := a.now()
	for _, f := range netset.Families() {
		for len(a.queue[f]) > 0 {
			r := a.queue[f][0]
			if a.resting[r.Addr] == r { // else it was given or laid down again meanwhile
				if r.Until.After(now) {
					break
				}
				delete(a.resting, r.Addr)
				a.usable[f].set(r.Addr, false)
			}
			a.queue[f] = a.queue[f][1:]
		}
	}
}

// choose fills in the lease's addresses, all or none, and returns where the next search starts. It changes nothing.
func (a *Allocator) choose(l *Lease) (cursor []netip.Addr, err error) {
	want := l.Endpoint.Addrs
	if err := a.checkWanted(want); err != nil {
		return nil, err
	}
	var got []netip.Addr
	for _, f := range netset.Families() {
		if x := netset.First(want, f); x.IsValid() {
			got = append(got, x)
			continue
		}
		ss := a.usable[f]
		if len(a.of(f)) == 0 {
			continue
		}
		x := ss.next(a.cursor[f])
		if !x.IsValid() {
			if x = a.longestRested(f); !x.IsValid() {
				a.counts.Exhausted++
				return nil, a.exhausted(f)
			}
			a.counts.Early++
		}
		got, cursor = append(got, x), append(cursor, x)
	}
	if len(got) == 0 {
		return nil, fmt.Errorf("%w: its Node object has no spec.podCIDRs (yet), and no entry of ipam.pools names it", ErrNoPools)
	}
	l.Endpoint.Addrs = got
	return cursor, nil
}

// longestRested returns the quarantined address of the pools whose rest ends first, or none.
func (a *Allocator) longestRested(f netset.Family) netip.Addr {
	for _, r := range a.queue[f] {
		if s, _ := a.usable[f].find(r.Addr); s != nil && a.resting[r.Addr] == r {
			return r.Addr
		}
	}
	return netip.Addr{}
}

// checkWanted says why the requested addresses cannot be given. Quarantine does not hinder whoever asks by name.
func (a *Allocator) checkWanted(want []netip.Addr) error {
	for i, x := range want {
		for _, y := range want[:i] {
			if netset.Of(x) == netset.Of(y) {
				return fmt.Errorf("requested addresses %s and %s: %w: a pod has one of each family", y, x, ErrInvalid)
			}
		}
		x = x.Unmap()
		s, _ := a.usable[netset.Of(x)].find(x)
		switch r := a.resting[x]; {
		case a.owner[x] != nil:
			return fmt.Errorf("requested address %s: %w by %s", x, ErrTaken, a.owner[x].name())
		case !netset.Contains(a.pools, x):
			return fmt.Errorf("requested address %s: %w of this node: %s", x, ErrOutside, list(a.pools))
		case s == nil:
			return fmt.Errorf("requested address %s: %w: %s", x, ErrInvalid, a.excluded(x))
		case r != nil && r.Until.IsZero():
			return fmt.Errorf("requested address %s: perhaps %w: %s", x, ErrTaken, r.Why)
		}
	}
	return nil
}

// conflicts says which other endpoint is in the same network namespace, or has the MAC or a host port that this one wants. Two
// host ports conflict if port and protocol are the same and the host addresses are, or one of them is every address.
func (a *Allocator) conflicts(want *Lease) error {
	e := &want.Endpoint
	for _, l := range a.leases {
		if l.NetnsID == want.NetnsID && l.Endpoint.Netns == e.Netns {
			return fmt.Errorf("interface %s: %w: %s has %s", e.IfName, ErrSecond, l.name(), l.Endpoint.IfName)
		}
		if !e.MAC.IsZero() && l.Endpoint.MAC == e.MAC {
			return fmt.Errorf("requested MAC %s: %w by %s", e.MAC, ErrTaken, l.name())
		}
		for _, p := range e.HostPorts {
			for _, q := range l.Endpoint.HostPorts {
				if p.Port == q.Port && p.Protocol == q.Protocol && overlap(p.HostIP, q.HostIP) {
					return fmt.Errorf("host port %s of pod %s: %w by %s", p, e.Pod, ErrTaken, l.name())
				}
			}
		}
	}
	return nil
}

// overlap reports whether two host addresses of port mappings share an address.
func overlap(a, b netip.Addr) bool {
	every := func(x netip.Addr) bool { return !x.IsValid() || x.IsUnspecified() }
	return every(a) || every(b) || a.Unmap() == b.Unmap()
}

// DeriveMAC returns the MAC of a pod whose first address is x: locally administered, the same for the same address
// always, and never model.GatewayMAC.
func DeriveMAC(x netip.Addr) model.MAC {
	b := x.Unmap().AsSlice()
	return model.MAC{0x02, byte(netset.Of(x)), b[len(b)-4], b[len(b)-3], b[len(b)-2], b[len(b)-1]}
}
