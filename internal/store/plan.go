package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/cilium/statedb"
	"github.com/cilium/statedb/index"

	"weft/internal/model"
	"weft/internal/plan"
)

// Status is how a row of the plan stands.
type Status string

// The statuses. Conflict: another owner's row has the same key and was first; it is applied when that one goes.
const (
	Pending  Status = "Pending"
	Done     Status = "Done"
	Error    Status = "Error"
	Deleting Status = "Deleting"
	Conflict Status = "Conflict"
)

// Row is one row of the plan table. Immutable.
type Row struct {
	Row    plan.Row
	Status Status
	Err    error     // of the last try, nil if it went well or was not made yet
	Tries  int       // failed ones in a row
	Since  time.Time // when the status became what it is
}

// TableHeader implements statedb.TableWritable.
func (*Row) TableHeader() []string { return []string{"Key", "Status", "Row"} }

// TableRow implements statedb.TableWritable.
func (r *Row) TableRow() []string {
	return []string{r.Row.Key().String(), string(r.Status), r.Row.String()}
}

func rowPrefix(k plan.Key) index.Key { return index.String(string(k.Kind) + "\x00" + k.Name + "\x00") }

func rowKey(r plan.Row) index.Key {
	return append(rowPrefix(r.Key()), r.Owner().String()...)
}

func rowIndex() statedb.Index[*Row, index.Key] {
	return statedb.Index[*Row, index.Key]{
		Name:       "key",
		FromObject: func(r *Row) index.KeySet { return index.NewKeySet(rowKey(r.Row)) },
		FromKey:    func(k index.Key) index.Key { return k },
		Unique:     true,
	}
}

func ownerIndex() statedb.Index[*Row, model.Key] {
	return statedb.Index[*Row, model.Key]{
		Name:       "owner",
		FromObject: func(r *Row) index.KeySet { return index.NewKeySet(index.String(r.Row.Owner().String())) },
		FromKey:    func(k model.Key) index.Key { return index.String(k.String()) },
	}
}

// statusIndex finds rows that somebody has to do something about. Nearly all rows are Done, and nobody looks for those.
func statusIndex() statedb.Index[*Row, Status] {
	return statedb.Index[*Row, Status]{
		Name: "status",
		FromObject: func(r *Row) index.KeySet {
			if r.Status == Done || r.Status == Conflict {
				return index.KeySet{}
			}
			return index.NewKeySet(index.String(string(r.Status)))
		},
		FromKey: func(s Status) index.Key { return index.String(string(s)) },
	}
}

// equal compares two objects or rows of the same key by what they hold.
func equal(a, b any) bool { return reflect.DeepEqual(a, b) }

// with returns a copy of r in another status.
func (s *Store) with(r *Row, status Status, err error) *Row {
	n := &Row{Row: r.Row, Status: status, Err: err, Since: s.clock.Now()}
	if status == Error || (status != Done && err != nil) {
		n.Tries = r.Tries + 1
	}
	if status == r.Status {
		n.Since = r.Since
	}
	return n
}

func (s *Store) put(txn statedb.WriteTxn, r *Row) {
	_, _, _ = s.plan.Insert(txn, r) // fails only for a table that the transaction did not lock
}

// SetRows makes the plan rows of each owner exactly rows, touching only what differs. A row that is no longer
// wanted stays as Deleting until a driver has removed it.
func (s *Store) SetRows(rows map[model.Key][]plan.Row) {
	txn := s.db.WriteTxn(s.plan)
	defer txn.Commit()
	now := s.clock.Now() // one for all: a queue that is in order need not be sorted
	owners := slices.SortedFunc(maps.Keys(rows), func(a, b model.Key) int { return cmp.Compare(a.String(), b.String()) })
	for _, owner := range owners { // in a fixed order, so that of two that want the same it is always the same one
		want := rows[owner]
		keep := make(map[plan.Key]bool, len(want))
		for _, r := range want {
			keep[r.Key()] = true
			s.want(txn, r, now)
		}
		for _, old := range statedb.Collect(s.plan.List(txn, ownerIndex().Query(owner))) {
			if keep[old.Row.Key()] || old.Status == Deleting {
				continue
			}
			if old.Status == Conflict || old.Row.Key().Kind == plan.KindProblem {
				s.remove(txn, old) // it was never applied
				continue
			}
			s.put(txn, s.with(old, Deleting, nil))
		}
	}
}

// want inserts one row that compile asked for.
func (s *Store) want(txn statedb.WriteTxn, r plan.Row, now time.Time) {
	if p, ok := r.(*plan.Problem); ok {
		if old, _, found := s.plan.Get(txn, rowIndex().Query(rowKey(r))); !found || !equal(old.Row, r) {
			s.put(txn, &Row{Row: r, Status: Error, Err: errors.New(p.Reason), Since: now})
		}
		return
	}
	status := Pending
	var why error
	for other := range s.plan.Prefix(txn, rowIndex().Query(rowPrefix(r.Key()))) {
		if other.Row.Owner() == r.Owner() {
			if other.Status != Deleting && equal(other.Row, r) {
				return // as it was
			}
			if other.Status == Conflict {
				status, why = Conflict, other.Err
			}
			continue
		}
		if other.Status != Conflict {
			status, why = Conflict, fmt.Errorf("%s is held by %s", r.Key(), other.Row.Owner())
		}
	}
	s.put(txn, &Row{Row: r, Status: status, Err: why, Since: now})
}

// remove deletes a row for good and lets the first row that waited for its key go ahead.
func (s *Store) remove(txn statedb.WriteTxn, r *Row) {
	_, _, _ = s.plan.Delete(txn, r)
	if r.Status == Conflict {
		return
	}
	for other := range s.plan.Prefix(txn, rowIndex().Query(rowPrefix(r.Row.Key()))) {
		if other.Status == Conflict {
			s.put(txn, s.with(other, Pending, nil))
			return
		}
	}
}

// Todo returns the rows that wait for a driver: Pending and Deleting ones, and failed ones for which due says
// yes. The channel is closed when there may be more.
func (s *Store) Todo(due func(*Row) bool) ([]*Row, <-chan struct{}) {
	txn := s.db.ReadTxn()
	_, changed := s.plan.AllWatch(txn)
	var out []*Row
	for _, st := range []Status{Pending, Deleting} {
		for r := range s.plan.List(txn, statusIndex().Query(st)) {
			if r.Err == nil || due(r) {
				out = append(out, r)
			}
		}
	}
	for r := range s.plan.List(txn, statusIndex().Query(Error)) {
		if r.Row.Key().Kind != plan.KindProblem && due(r) {
			out = append(out, r)
		}
	}
	return out, changed
}

// Failed yields the rows whose last try failed, whatever is to become of them.
func (s *Store) Failed() iter.Seq[*Row] {
	return func(yield func(*Row) bool) {
		txn := s.db.ReadTxn()
		for _, st := range []Status{Error, Deleting} {
			for r := range s.plan.List(txn, statusIndex().Query(st)) {
				if r.Err != nil && r.Row.Key().Kind != plan.KindProblem && !yield(r) {
					return
				}
			}
		}
	}
}

// Report writes what drivers made of rows. A row that has changed since it was handed out keeps its status.
func (s *Store) Report(handed []*Row, results plan.Results) {
	txn := s.db.WriteTxn(s.plan)
	defer txn.Commit()
	for _, h := range handed {
		err, known := results[h.Row.Key()]
		cur, _, found := s.plan.Get(txn, rowIndex().Query(rowKey(h.Row)))
		if !found || cur.Row != h.Row || (cur.Status == Deleting) != (h.Status == Deleting) {
			continue
		}
		if !known {
			err = fmt.Errorf("no driver handles %s", h.Row.Key())
		}
		switch {
		case err == nil && h.Status == Deleting:
			s.remove(txn, cur)
		case err == nil:
			s.put(txn, s.with(cur, Done, nil))
		case h.Status == Deleting:
			s.put(txn, s.with(cur, Deleting, err))
		default:
			s.put(txn, s.with(cur, Error, err))
		}
	}
}

// Again marks applied rows as Pending: the kernel no longer agrees with them. It returns those that were marked.
func (s *Store) Again(keys ...plan.Key) []plan.Key {
	txn := s.db.WriteTxn(s.plan)
	defer txn.Commit()
	var marked []plan.Key
	for _, k := range keys {
		for _, r := range statedb.Collect(s.plan.Prefix(txn, rowIndex().Query(rowPrefix(k)))) {
			if r.Status == Done || r.Status == Error && k.Kind != plan.KindProblem {
				s.put(txn, s.with(r, Pending, nil))
				marked = append(marked, k)
			}
		}
	}
	return marked
}

// View is the wanted state as it is now: every row that is not being deleted and not in conflict.
func (s *Store) View() plan.View { return view{s, s.db.ReadTxn()} }

type view struct {
	s   *Store
	txn statedb.ReadTxn
}

func wanted(r *Row) bool { return r.Status != Deleting && r.Status != Conflict }

// Get implements plan.View.
func (v view) Get(k plan.Key) plan.Row {
	for r := range v.s.plan.Prefix(v.txn, rowIndex().Query(rowPrefix(k))) {
		if wanted(r) {
			return r.Row
		}
	}
	return nil
}

// All implements plan.View.
func (v view) All(kind plan.Kind) iter.Seq[plan.Row] {
	return func(yield func(plan.Row) bool) {
		for r := range v.s.plan.Prefix(v.txn, rowIndex().Query(index.String(string(kind)+"\x00"))) {
			if wanted(r) && !yield(r.Row) {
				return
			}
		}
	}
}

// Rows returns the rows of a kind as they are shown.
func (s *Store) Rows(kind plan.Kind) []*Row {
	return statedb.Collect(s.plan.Prefix(s.db.ReadTxn(), rowIndex().Query(index.String(string(kind)+"\x00"))))
}

// RowsOf returns the rows that an intent object caused.
func (s *Store) RowsOf(owner model.Key) []*Row {
	return statedb.Collect(s.plan.List(s.db.ReadTxn(), ownerIndex().Query(owner)))
}

// Watch returns a channel that is closed when any table changes.
func (s *Store) Watch() (intent, rows <-chan struct{}) {
	txn := s.db.ReadTxn()
	_, intent = s.intent.AllWatch(txn)
	_, rows = s.plan.AllWatch(txn)
	return intent, rows
}

// WatchKind returns a channel that is closed when intent of the kind changes.
func (s *Store) WatchKind(kind model.Kind) <-chan struct{} {
	_, changed := s.intent.PrefixWatch(s.db.ReadTxn(), intentIndex().Query(index.String(string(kind)+"\x00")))
	return changed
}

// WaitDone returns nil once the plan follows the owner's intent and all of its rows, at least one, are Done.
// At the end of ctx the error is that of the first row that is not, in the order in which rows are applied: what
// the others wait for.
func (s *Store) WaitDone(ctx context.Context, owner model.Key) error {
	return s.wait(ctx, owner, func(rows []*Row) error {
		if len(rows) == 0 {
			return fmt.Errorf("%s: nothing is planned for it yet: this node's address or underlay device is not known", owner)
		}
		var first *Row
		order := plan.Kinds()
		for _, r := range rows {
			if r.Status != Done && (first == nil || slices.Index(order, r.Row.Key().Kind) < slices.Index(order, first.Row.Key().Kind)) {
				first = r
			}
		}
		if first != nil {
			return cmpErr(first)
		}
		return nil
	})
}

// WaitGone returns nil once no row of the owner is left.
func (s *Store) WaitGone(ctx context.Context, owner model.Key) error {
	return s.wait(ctx, owner, func(rows []*Row) error {
		if len(rows) == 0 {
			return nil
		}
		return cmpErr(rows[0])
	})
}

func cmpErr(r *Row) error {
	if r.Err != nil {
		return fmt.Errorf("%s: %s: %w", r.Row.Key(), r.Status, r.Err)
	}
	return fmt.Errorf("%s is %s", r.Row.Key(), r.Status)
}

func (s *Store) wait(ctx context.Context, owner model.Key, check func([]*Row) error) error {
	if err := s.Settled(ctx); err != nil {
		return err
	}
	for {
		rows, changed := s.plan.ListWatch(s.db.ReadTxn(), ownerIndex().Query(owner))
		err := check(slices.Collect(statedb.ToSeq(rows)))
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-changed:
		}
	}
}
