// Package store holds all tables: what users want (intent) and what the kernel must
// hold (plan), with the status of every row.
//
// Sources write intent through their own Writer, Derive keeps the plan in step, and
// reconcile writes statuses. The store decides nothing: what follows from an intent is
// compile's affair, and how a row is applied is the drivers'. With package reconcile it is the only
// importer of statedb. It keeps nothing on disk; an agent starts from empty tables.
package store

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"

	"github.com/cilium/statedb"
	"github.com/cilium/statedb/index"

	"weft/internal/model"
	"weft/internal/run"
)

// Intent is one row of the intent table. Immutable.
type Intent struct {
	Object  model.Object
	Source  string // of the Writer
	Problem error  // why the object is not used; nil if it is
}

// The Writers whose rows have another rank than those of all others: of rows with the same key, TrialSource's go before any
// other's, and CacheSource's give way to any other's.
const (
	TrialSource = "trial"
	CacheSource = "cache"
)

// rank is lower for what goes before.
func (i *Intent) rank() int {
	switch i.Source {
	case TrialSource:
		return 0
	case CacheSource:
		return 2
	}
	return 1
}

// TableHeader implements statedb.TableWritable.
func (*Intent) TableHeader() []string { return []string{"Key", "Source"} }

// TableRow implements statedb.TableWritable.
func (i *Intent) TableRow() []string { return []string{i.Object.Key().String(), i.Source} }

// Store is the database. All methods may be called concurrently.
type Store struct {
	clock  run.Clock
	db     *statedb.DB
	intent statedb.RWTable[*Intent]
	plan   statedb.RWTable[*Row]

	mu       sync.Mutex
	open     map[string]bool // guarded by mu: writers that are not complete yet
	complete chan struct{}   // closed when open is empty and sealed
	sealed   bool            // guarded by mu
	derived  uint64          // guarded by mu: intent revision that the plan reflects
	moved    chan struct{}   // guarded by mu: closed and replaced when derived grows
}

func intentKey(k model.Key, source string) index.Key {
	return index.String(string(k.Kind) + "\x00" + k.Name + "\x00" + source)
}

func intentIndex() statedb.Index[*Intent, index.Key] {
	return statedb.Index[*Intent, index.Key]{
		Name:       "key",
		FromObject: func(i *Intent) index.KeySet { return index.NewKeySet(intentKey(i.Object.Key(), i.Source)) },
		FromKey:    func(k index.Key) index.Key { return k },
		Unique:     true,
	}
}

// New returns an empty store.
func New(clock run.Clock) (*Store, error) {
	db := statedb.New()
	intent, err := statedb.NewTable(db, "intent", intentIndex())
	if err != nil {
		return nil, fmt.Errorf("create intent table: %w", err)
	}
	rows, err := statedb.NewTable(db, "plan", rowIndex(), ownerIndex(), statusIndex())
	if err != nil {
		return nil, fmt.Errorf("create plan table: %w", err)
	}
	if err := db.Start(); err != nil {
		return nil, fmt.Errorf("start database: %w", err)
	}
	return &Store{
		clock: clock, db: db, intent: intent, plan: rows,
		open: map[string]bool{}, complete: make(chan struct{}), moved: make(chan struct{}),
	}, nil
}

// Close stops the database's own goroutines.
func (s *Store) Close() error { return s.db.Stop() }

// Writer returns the writer of a source. Everything that it writes bears the source's name; the store is not
// complete before the writer is.
func (s *Store) Writer(source string) *Writer {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[source] = true
	return &Writer{s: s, source: source}
}

// Seal says that no further Writer will be made: from now on the store is complete once all writers are.
func (s *Store) Seal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sealed = true
	s.checkComplete()
}

func (s *Store) checkComplete() {
	if s.sealed && len(s.open) == 0 {
		select {
		case <-s.complete:
		default:
			close(s.complete)
		}
	}
}

// Complete is closed once every source has delivered its initial state.
func (s *Store) Complete() <-chan struct{} { return s.complete }

// Incomplete lists the sources that have not delivered their initial state.
func (s *Store) Incomplete() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.open))
}

// Snapshot is everything as it is now.
func (s *Store) Snapshot() model.Snapshot { return snapshot{s, s.db.ReadTxn()} }

type snapshot struct {
	s   *Store
	txn statedb.ReadTxn
}

// winner picks the row that counts among those with one key: the first one of the lowest rank.
func winner(rows iter.Seq2[*Intent, statedb.Revision]) *Intent {
	var best *Intent
	for r := range rows {
		if best == nil || r.rank() < best.rank() {
			best = r
		}
	}
	return best
}

// Get implements model.Snapshot.
func (v snapshot) Get(k model.Key) model.Object {
	w := winner(v.s.intent.Prefix(v.txn, intentIndex().Query(intentKey(k, ""))))
	if w == nil || w.Problem != nil {
		return nil
	}
	return w.Object
}

// All implements model.Snapshot.
func (v snapshot) All(kind model.Kind) iter.Seq[model.Object] {
	return func(yield func(model.Object) bool) {
		for r := range v.s.intents(v.txn, kind) {
			if r.Problem == nil && !yield(r.Object) {
				return
			}
		}
	}
}

// intents yields the rows that count of a kind, those with problems included.
func (s *Store) intents(txn statedb.ReadTxn, kind model.Kind) iter.Seq[*Intent] {
	return func(yield func(*Intent) bool) {
		var last *Intent
		for r := range s.intent.Prefix(txn, intentIndex().Query(index.String(string(kind)+"\x00"))) {
			switch {
			case last == nil:
				last = r
			case last.Object.Key() != r.Object.Key():
				if !yield(last) {
					return
				}
				last = r
			case r.rank() < last.rank():
				last = r
			}
		}
		if last != nil {
			yield(last)
		}
	}
}

// Intents returns the rows of a kind as they are shown: with their source and problem.
func (s *Store) Intents(kind model.Kind) []*Intent {
	return slices.Collect(s.intents(s.db.ReadTxn(), kind))
}

// Writer writes the intent of one source.
type Writer struct {
	s      *Store
	source string
}

func (w *Writer) row(o model.Object) *Intent {
	return &Intent{Object: o, Source: w.source, Problem: o.Validate()}
}

// Upsert stores objects in one transaction. An invalid one is kept with its problem and is in no snapshot.
func (w *Writer) Upsert(objs ...model.Object) {
	txn := w.s.db.WriteTxn(w.s.intent)
	defer txn.Commit()
	for _, o := range objs {
		w.insert(txn, o)
	}
}

func (w *Writer) insert(txn statedb.WriteTxn, o model.Object) {
	old, _, found := w.s.intent.Get(txn, intentIndex().Query(intentKey(o.Key(), w.source)))
	if found && equal(old.Object, o) {
		return
	}
	_, _, _ = w.s.intent.Insert(txn, w.row(o)) // fails only for a table that the transaction did not lock
}

// Refuse stores an object that a converter did not accept, so that it is shown with the reason.
func (w *Writer) Refuse(o model.Object, problem error) {
	txn := w.s.db.WriteTxn(w.s.intent)
	defer txn.Commit()
	_, _, _ = w.s.intent.Insert(txn, &Intent{Object: o, Source: w.source, Problem: problem})
}

// Delete removes objects; one that is not there is ignored.
func (w *Writer) Delete(keys ...model.Key) {
	txn := w.s.db.WriteTxn(w.s.intent)
	defer txn.Commit()
	for _, k := range keys {
		if old, _, found := w.s.intent.Get(txn, intentIndex().Query(intentKey(k, w.source))); found {
			_, _, _ = w.s.intent.Delete(txn, old)
		}
	}
}

// Replace makes this source's objects of the kind exactly objs, touching only what differs.
func (w *Writer) Replace(kind model.Kind, objs []model.Object) {
	txn := w.s.db.WriteTxn(w.s.intent)
	defer txn.Commit()
	keep := make(map[model.Key]bool, len(objs))
	for _, o := range objs {
		keep[o.Key()] = true
		w.insert(txn, o)
	}
	var gone []*Intent
	for r := range w.s.intent.Prefix(txn, intentIndex().Query(index.String(string(kind)+"\x00"))) {
		if r.Source == w.source && !keep[r.Object.Key()] {
			gone = append(gone, r)
		}
	}
	for _, r := range gone {
		_, _, _ = w.s.intent.Delete(txn, r)
	}
}

// Complete says that the source's initial state is in. Further calls do nothing.
func (w *Writer) Complete() {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	delete(w.s.open, w.source)
	w.s.checkComplete()
}

// revision is the newest revision of the intent table.
func (s *Store) revision() uint64 { return s.intent.Revision(s.db.ReadTxn()) }

// setDerived notes that the plan reflects the intent up to rev.
func (s *Store) setDerived(rev uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if rev > s.derived {
		s.derived = rev
		close(s.moved)
		s.moved = make(chan struct{})
	}
}

// Settled returns once the plan reflects all intent that was written before the call.
func (s *Store) Settled(ctx context.Context) error {
	want := s.revision()
	for {
		s.mu.Lock()
		have, moved := s.derived, s.moved
		s.mu.Unlock()
		if have >= want {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the plan to follow the intent: %w", ctx.Err())
		case <-moved:
		}
	}
}
