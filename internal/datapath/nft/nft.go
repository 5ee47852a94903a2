// Package nft makes the kernel's table "inet weft-nat" equal to the plan: masquerade and host ports.
//
// It does not decide anything and touches no other table; what others have that hurts pods is only reported (see
// Foreign). The table is recognised by its name alone and is always wholly ours. A dead agent leaves it in place:
// masquerade and host ports go on working. The next agent compares it element by element and
// changes only what differs, so unchanged objects are never deleted; every change is one transaction.
package nft

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
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
	log *slog.Logger
	// forget drops the host's connection tracking entries toward a pod whose host port went away or moved; may be nil.
	forget func(protocol string, pod netip.Addr) error
	others chan struct{} // holds one token when any table has changed

	mu   sync.Mutex
	conn *nftables.Conn // guarded by mu
	want elements       // guarded by mu: what the last transaction left in the kernel
	sure bool           // guarded by mu: the kernel holds want, unless somebody changed it since
}

// New returns a driver for the current network namespace. forget is called for translated flows that a change made
// stale; nil leaves them to time out.
func New(log *slog.Logger, forget func(protocol string, pod netip.Addr) error) (*Driver, error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("open nf_tables: %w", err)
	}
	if _, err := conn.ListTablesOfFamily(nftables.TableFamilyINet); err != nil {
		return nil, fmt.Errorf("nf_tables does not answer (is it in this kernel?): %w", err)
	}
	return &Driver{log: log, conn: conn, forget: forget, others: make(chan struct{}, 1)}, nil
}

// Features says which way of protecting the table is in force.
func (d *Driver) Features() []model.Feature {
	return []model.Feature{{Name: "nft-table", State: "active", Detail: "watched, and put back when somebody flushes it"}}
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
	if err == nil {
		d.forgetStale(changed)
	}
	return res
}

// forgetStale ends translated flows of host ports that go away or may have moved: a UDP client that never changes
// its port would otherwise reach the old pod for as long as it sends.
func (d *Driver) forgetStale(changed plan.Changes) {
	if d.forget == nil {
		return
	}
	for h := range plan.Of[*plan.HostPort](changed.Delete) {
		if err := d.forget(h.Protocol, h.Pod.Addr()); err != nil {
			d.log.Warn("stale flows were not ended", "hostport", h.String(), "err", err)
		}
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
		have, whole, err := read(d.conn)
		if err != nil {
			return err
		}
		if !whole {
			return d.rebuild(e)
		}
		d.want, d.sure = have, true
	}
	switch {
	case e.empty() && d.want.empty():
		return nil
	case e.empty() || d.want.empty():
		return d.rebuild(e)
	}
	diffSets(d.conn, d.want, e)
	if err := d.conn.Flush(); err != nil {
		d.sure = false
		return fmt.Errorf("change sets of table inet %s: %w", TableName, err)
	}
	d.want = e
	return nil
}

// rebuild replaces the table as a whole in one transaction, or removes it if nothing is wanted.
func (d *Driver) rebuild(e elements) error {
	d.sure = false
	t := &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}
	d.conn.AddTable(t) // so that deleting it cannot fail
	d.conn.DelTable(t)
	if !e.empty() {
		d.conn.AddTable(t)
		if err := build(d.conn, t, e); err != nil {
			return err
		}
	}
	if err := d.conn.Flush(); err != nil {
		return fmt.Errorf("write table inet %s: %w", TableName, err)
	}
	d.want, d.sure = e, true
	return nil
}

// Changed has a token when any table of the host, ours or another's, changed since the last one was taken. It needs Watch.
func (d *Driver) Changed() <-chan struct{} { return d.others }

// Watch reports rows whose kernel state somebody else changed, until ctx ends.
func (d *Driver) Watch(ctx context.Context, changed func(k plan.Key, what string)) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nf_tables for watching: %w", err)
	}
	mon := nftables.NewMonitor()
	events, err := conn.AddGenerationalMonitor(mon)
	if err != nil {
		return fmt.Errorf("watch nf_tables: %w", err)
	}
	defer mon.Close()
	for {
		if what, keys := d.verify(); what != "" {
			for _, k := range keys {
				changed(k, what)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case _, ok := <-events:
			if !ok {
				return fmt.Errorf("the watch of nf_tables ended")
			}
			select {
			case d.others <- struct{}{}:
			default:
			}
		}
	}
}

// verify compares the kernel with what was left there: it does not matter who changed it. It returns what is wrong,
// in words, and the rows that are to be applied again.
func (d *Driver) verify() (string, []plan.Key) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.sure || d.want.empty() {
		return "", nil
	}
	have, whole, err := read(d.conn)
	what := ""
	switch {
	case err != nil:
		what = fmt.Sprintf("table inet %s cannot be read: %v", TableName, err)
	case !whole:
		what = fmt.Sprintf("table inet %s was deleted or flushed, or its rules were changed", TableName)
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
