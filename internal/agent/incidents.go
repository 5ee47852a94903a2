package agent

import (
	"log/slog"
	"sync"

	"weft/internal/model"
	"weft/internal/run"
	"weft/internal/store"
)

// maxIncidents bounds the table; the oldest goes first.
const maxIncidents = 256

// incidents records what was found wrong on the host.
type incidents struct {
	w     *store.Writer
	clock run.Clock
	log   *slog.Logger

	mu    sync.Mutex
	known map[string]*model.Incident // guarded by mu; by what
	order []string                   // guarded by mu; by first finding
}

func newIncidents(w *store.Writer, clock run.Clock, log *slog.Logger) *incidents {
	return &incidents{w: w, clock: clock, log: log, known: map[string]*model.Incident{}}
}

// add records one finding and what was done about it. The same finding again counts up.
func (i *incidents) add(what, action string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	now := i.clock.Now()
	n := &model.Incident{ID: what, What: what, Action: action, First: now, Last: now, Count: 1}
	if old := i.known[what]; old != nil {
		n.First, n.Count = old.First, old.Count+1
	} else {
		i.order = append(i.order, what)
		if len(i.order) > maxIncidents {
			i.w.Delete(i.known[i.order[0]].Key())
			delete(i.known, i.order[0])
			i.order = i.order[1:]
		}
	}
	i.known[what] = n
	i.w.Upsert(n)
	i.log.Warn("found on this host", "what", what, "action", action, "times", n.Count)
}
