// Package nft makes the kernel's table "inet weft-nat" equal to the plan: masquerade, host ports, and the answers to what policy
// rejects, which are there when the settings' row says so.
//
// It does not decide anything and touches no other table; what others have that hurts pods is only reported (see
// ForeignDrops). The table is recognised by its name alone and is always wholly ours. Where the kernel has owned tables
// (Linux 6.9) nobody else can change it; elsewhere it is watched and put back. A dead agent leaves it in place:
// masquerade and host ports go on working. The next agent adopts it, compares it element by element and
// changes only what differs, so unchanged objects are never deleted; every change is one transaction.
package nft

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"github.com/google/nftables"

	"weft/internal/model"
	"weft/internal/plan"
)

// TableName is the table that is ours, of family inet.
const TableName = "weft-nat"

// Driver is the nftables driver. Apply and Sweep are called from the reconcile goroutine only.
type Driver struct {
	log    *slog.Logger
	forget Forget
	plain  bool          // never claim the table; for tests of kernels that cannot
	others chan struct{} // holds one token when any table has changed

	mu   sync.Mutex
	conn *socket   // guarded by mu
	want elements  // guarded by mu: what the last transaction left in the kernel
	sure bool      // guarded by mu: the kernel holds want, unless somebody changed it since
	mine ownership // guarded by mu
}

// ownership says whether others can change the table.
type ownership int

const (
	unknown ownership = iota // no table was written yet
	owned
	shared
)

// Forget ends tracked flows to the given host ports that do not end at their pods: a client that never changes its own
// port, as of UDP, would otherwise reach the old pod for as long as it sends. The pod's port is 0 where a host port went away.
type Forget func([]plan.HostPort) error

// New returns a driver for the calling thread's network namespace. forget is called for flows that a change made
// stale; nil leaves them to time out.
func New(log *slog.Logger, forget Forget) (*Driver, error) {
	conn, err := open()
	if err != nil {
		return nil, fmt.Errorf("open nf_tables: %w", err)
	}
	if _, err := conn.ListTablesOfFamily(nftables.TableFamilyINet); err != nil {
		return nil, fmt.Errorf("nf_tables does not answer (is it in this kernel?): %w", err)
	}
	return &Driver{log: log, conn: conn, forget: forget, others: make(chan struct{}, 1)}, nil
}

// Close closes the driver's socket. The table stays, and the next agent can adopt it.
func (d *Driver) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.conn.CloseLasting()
}

// Features says which way of protecting the table is in force; before a table was written, the better one is assumed.
func (d *Driver) Features() []model.Feature {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mine == shared {
		return []model.Feature{{Name: "nft-owner", State: "fallback", Detail: "the table can be changed by others; it is watched and put back"}}
	}
	return []model.Feature{{Name: "nft-owner", State: "active", Detail: "nobody else can change or flush the table"}}
}

// Apply implements reconcile.Driver: one transaction for the whole batch, so all of its rows fare alike.
func (d *Driver) Apply(_ context.Context, want plan.View, changed plan.Changes) plan.Results {
	d.mu.Lock()
	defer d.mu.Unlock()
	res := plan.Results{}
	e := compile(want)
	err := d.converge(e)
	for _, r := range slices.Concat(changed.Upsert, changed.Delete) {
		res[r.Key()] = cmp.Or(e.refused[r.Key()], err)
	}
	return res
}

// forgetStale ends flows to host ports that differ between what was and what is.
func (d *Driver) forgetStale(was, is elements) {
	stale := moved(was, is)
	if d.forget == nil || len(stale) == 0 {
		return
	}
	if err := d.forget(stale); err != nil {
		d.log.Warn("stale flows were not ended", "err", err)
	}
}

// Sweep implements reconcile.Driver: the table goes if nothing of it is wanted.
func (d *Driver) Sweep(_ context.Context, want plan.View) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.converge(compile(want))
}

// converge makes the kernel hold e.
func (d *Driver) converge(e elements) error {
	if !d.sure {
		have, whole, err := read(d.conn.Conn)
		if err != nil {
			return err
		}
		if !whole {
			return d.rebuild(e)
		}
		if !have.empty() && d.mine == unknown {
			if err := d.claim(); err != nil {
				return err
			}
		}
		d.want, d.sure = have, true
	}
	was := d.want
	switch {
	case e.empty() && was.empty():
		d.want = e
		return nil
	case e.empty() || was.empty() || e.policed != was.policed:
		return d.rebuild(e)
	}
	diffSets(d.conn.Conn, was, e)
	if err := d.conn.Flush(); err != nil {
		d.log.Warn("the table does not take a change and is written anew", "err", err)
		return d.rebuild(e)
	}
	d.want = e
	d.forgetStale(was, e)
	return nil
}

// claim makes the table ours alone where that is possible.
func (d *Driver) claim() error {
	if d.plain {
		d.mine = shared
		return nil
	}
	err := d.conn.claim()
	switch {
	case err == nil:
		d.mine = owned
	case errors.Is(err, errNoOwner):
		d.mine, err = shared, nil
	default:
		d.mine = unknown
	}
	return err
}

// rebuild replaces the table as a whole in one transaction, or removes it if nothing is wanted.
func (d *Driver) rebuild(e elements) error {
	was := d.want
	d.sure = false
	if err := d.clear(e.empty()); err != nil {
		return err
	}
	if !e.empty() {
		if err := build(d.conn.Conn, table(), e); err != nil {
			return err
		}
	}
	if err := d.conn.Flush(); err != nil {
		return fmt.Errorf("write table inet %s: %w", TableName, err)
	}
	d.want, d.sure = e, true
	d.forgetStale(was, e)
	return nil
}

// clear queues the removal of all that the table holds, and of the table itself if it is to go.
func (d *Driver) clear(whole bool) error {
	t := table()
	if !whole {
		// An empty table does nothing, so it may be made before the transaction.
		if err := d.claim(); err != nil {
			return err
		}
	}
	switch {
	case !whole && d.mine == shared: // made anew, which the owner's flags would not allow
		d.conn.AddTable(t)
		d.conn.DelTable(t)
		d.conn.AddTable(t)
		return nil
	case whole:
		there, err := exists(d.conn.Conn)
		if there {
			d.conn.DelTable(t)
		}
		return err
	}
	chains, err := d.conn.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return fmt.Errorf("list chains: %w", err)
	}
	sets, err := d.conn.GetSets(t)
	if err != nil {
		return fmt.Errorf("list sets: %w", err)
	}
	d.conn.FlushTable(t)
	for _, c := range chains {
		if c.Table.Name == TableName {
			d.conn.DelChain(c)
		}
	}
	for _, s := range sets {
		d.conn.DelSet(s)
	}
	return nil
}

// Changed has a token when any table of the host, ours or another's, changed since the last one was taken. It needs Watch.
func (d *Driver) Changed() <-chan struct{} { return d.others }

// Watch reports rows whose kernel state somebody else changed, until ctx ends.
func (d *Driver) Watch(ctx context.Context, changed func(k plan.Key, what string)) error {
	return d.conn.listen(ctx, func(ours bool) {
		select {
		case d.others <- struct{}{}:
		default:
		}
		if !ours {
			return
		}
		if what, keys := d.verify(); what != "" {
			for _, k := range keys {
				changed(k, what)
			}
		}
	})
}

// verify compares the kernel with what was left there: it does not matter who changed it. It returns what is wrong,
// in words, and the rows that are to be applied again.
func (d *Driver) verify() (string, []plan.Key) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.sure || d.want.empty() {
		return "", nil
	}
	have, whole, err := read(d.conn.Conn)
	what := ""
	switch {
	case err != nil:
		what = fmt.Sprintf("table inet %s cannot be read: %v", TableName, err)
	case whole && len(have.sets) == 0:
		what = fmt.Sprintf("table inet %s was deleted", TableName)
	case !whole:
		what = fmt.Sprintf("table inet %s was flushed, or its rules were changed", TableName)
	default:
		for _, name := range slices.Sorted(maps.Keys(d.want.sets)) {
			if !equalSet(have.sets[name], d.want.sets[name]) {
				what = fmt.Sprintf("elements of %s in table inet %s were changed", name, TableName)
			}
		}
	}
	if what == "" {
		return "", nil
	}
	d.sure = false
	return what, d.want.rows
}
