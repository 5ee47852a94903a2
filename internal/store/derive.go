package store

import (
	"context"
	"fmt"

	"weft/internal/model"
	"weft/internal/plan"
)

// Compiler turns intent into rows. Both functions are pure.
type Compiler struct {
	// Dirty names the keys whose rows a change of these objects may alter.
	Dirty func(snap model.Snapshot, changed []model.Key) []model.Key
	// Compile returns the function that gives all rows that a key owns in snap; none if the object is gone.
	Compile func(snap model.Snapshot) func(key model.Key) []plan.Row
}

// Derive keeps the plan in step with the intent until ctx ends. Its work is proportional to what changed.
func (s *Store) Derive(ctx context.Context, c Compiler) error {
	txn := s.db.WriteTxn(s.intent)
	changes, err := s.intent.Changes(txn)
	if err != nil {
		txn.Abort()
		return fmt.Errorf("watch the intent table: %w", err)
	}
	txn.Commit()
	for {
		rtxn := s.db.ReadTxn()
		batch, more := changes.Next(rtxn)
		seen := map[model.Key]bool{}
		var changed []model.Key
		for ch := range batch {
			if k := ch.Object.Object.Key(); !seen[k] {
				seen[k] = true
				changed = append(changed, k)
			}
		}
		if len(changed) > 0 {
			snap := snapshot{s, rtxn}
			rows, compile := map[model.Key][]plan.Row{}, c.Compile(snap)
			for _, k := range c.Dirty(snap, changed) {
				if _, done := rows[k]; !done {
					rows[k] = compile(k)
				}
			}
			s.SetRows(rows)
		}
		s.setDerived(s.intent.Revision(rtxn))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-more:
		}
	}
}
