package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"weft/internal/convert/wire"
	"weft/internal/run"
)

const (
	firstWait   = 200 * time.Millisecond // before a failed watch is tried again; doubles
	longestWait = 10 * time.Second
	reportAfter = 5   // failures in a row make an outage that is told to the operator
	pageSize    = 500 // objects of one list request, which bounds the memory of a start
	// A watch is ended by the server after 5 to 10 minutes, so that connections spread over a changed set of servers.
	watchTime = 5 * time.Minute
	// initialTime is how long a server may stay silent in the middle of the initial events of a watch list.
	initialTime = 30 * time.Second
)

// watcher follows one resource.
type watcher struct {
	*Source
	res     resource
	target  target
	form    int          // the form of the resource that is tried, or that the server has
	version string       // resource version up to which everything is in the store; "" before the first
	strings wire.Strings // of labels, namespaces and node names
	plain   bool         // the server has no watch lists
}

// run follows the resource until ctx ends.
func (w *watcher) run(ctx context.Context) {
	for try := 0; ctx.Err() == nil; {
		began := time.Now()
		err := w.once(ctx)
		if ctx.Err() != nil {
			return
		}
		stood := time.Since(began) > firstWait // else something answers and ends every watch at once
		if err == nil && stood {
			try = 0
			continue
		}
		if expired(err) {
			w.version = ""
		}
		if code(err) == http.StatusNotFound && len(w.res.forms) > 1 {
			w.form, w.version = (w.form+1)%len(w.res.forms), ""
		}
		if time.Since(began) > longestWait {
			try = 0
		}
		try++
		wait := jitter(run.Backoff(try, firstWait, longestWait))
		if err != nil {
			w.failed(w.res.name, try, err)
		}
		var api *apiError
		if errors.As(err, &api) {
			wait = max(wait, api.retry)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// jitter spreads the nodes of a cluster, which all lose a server at the same moment.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d) }

// once gets the complete state if it has to, and follows one watch to its end: nil if the server ended it in good order.
func (w *watcher) once(ctx context.Context) error {
	if w.version != "" {
		return w.watch(ctx)
	}
	if !w.plain {
		err := w.watchList(ctx)
		if !refused(err) && !errors.Is(err, errSilent) || code(err) == http.StatusNotFound {
			return err
		}
		w.log.Debug("no watch list, listing instead", "watch", w.res.name, "err", err)
		w.plain = true
	}
	if err := w.list(ctx); err != nil {
		return err
	}
	return w.watch(ctx)
}

// list gets the complete state page by page.
func (w *watcher) list(ctx context.Context) error {
	q := maps.Clone(w.res.query)
	q.Set("limit", strconv.Itoa(pageSize))
	var all []change
	for {
		p, err := w.page(ctx, q)
		if err != nil {
			return err
		}
		for _, i := range p.items {
			all = append(all, w.take(i))
		}
		if p.next == "" {
			w.replace(ctx, all, p.resourceVersion)
			return nil
		}
		q.Set("continue", p.next)
	}
}

func (w *watcher) page(ctx context.Context, q url.Values) (page, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	f := w.res.forms[w.form]
	resp, err := w.api.get(ctx, f.path, q, w.res.accept.object)
	if err != nil {
		return page{}, fmt.Errorf("list %s: %w", w.res.name, err)
	}
	defer resp.Body.Close()
	p, err := readPage(resp, f.decode, &w.strings)
	if err != nil {
		return p, fmt.Errorf("list %s: %w", w.res.name, err)
	}
	return p, nil
}

// take makes a change of an object that is there, and reports what was wrong with it.
func (w *watcher) take(i item) change {
	w.check(i)
	if w.office == nil || !w.office.holds() {
		i.raw = nil // large, and nobody looks at it
	}
	if i.err == nil {
		i.name = ""
	}
	i.version = ""
	return change{item: i}
}

// check reports an object that was not understood, or not wholly, once until it is right again.
func (w *watcher) check(i item) {
	if !w.understood(w.res.name, i) {
		action := "used without what was not understood"
		if i.refused() {
			action = "ignored"
		}
		w.opts.Report(i.err.Error(), action)
	}
}

// replace makes all the complete state.
func (w *watcher) replace(ctx context.Context, all []change, version string) {
	w.onlyBroken(w.res.name, all)
	w.target.replace(ctx, all)
	w.version = version
	w.synced(w.res.name)
	w.stored(w.res.name, version)
}

// errSilent is the end of a watch list whose initial events did not come to their end: a proxy that
// buffers, or a server that ignores what it does not know.
var errSilent = errors.New("the initial events did not end")

// watchList gets the complete state as the first events of a watch (KEP-3157) and goes on with that watch.
func (w *watcher) watchList(ctx context.Context) error {
	q := maps.Clone(w.res.query)
	q.Set("sendInitialEvents", "true")
	q.Set("resourceVersionMatch", "NotOlderThan")
	return w.follow(ctx, q, true)
}

// watch continues from the known version.
func (w *watcher) watch(ctx context.Context) error {
	q := maps.Clone(w.res.query)
	q.Set("resourceVersion", w.version)
	return w.follow(ctx, q, false)
}

// follow runs one watch. Initial says that it begins with the complete state.
func (w *watcher) follow(ctx context.Context, q url.Values, initial bool) error {
	last := watchTime + rand.N(watchTime)
	q.Set("watch", "true")
	q.Set("allowWatchBookmarks", "true")
	q.Set("timeoutSeconds", strconv.Itoa(int(last.Seconds())))
	// The server ends the watch; where it cannot, because the connection died unnoticed, this does.
	ctx, cancel := context.WithTimeoutCause(ctx, last+30*time.Second, errors.New("the server did not end the watch"))
	defer cancel()
	ctx, silent := context.WithCancelCause(ctx)
	defer silent(nil)
	patience := time.AfterFunc(initialTime, func() {
		if initial {
			silent(errSilent)
		}
	})
	defer patience.Stop()

	err := w.events(ctx, q, initial, patience)
	switch {
	case err == nil || errors.Is(err, io.EOF):
		return nil
	case ctx.Err() != nil && context.Cause(ctx) != nil:
		err = context.Cause(ctx)
	}
	return fmt.Errorf("watch %s: %w", w.res.name, err)
}

// events sends the request and applies its events, as many at once as have been received.
func (w *watcher) events(ctx context.Context, q url.Values, initial bool, patience *time.Timer) error {
	f := w.res.forms[w.form]
	resp, err := w.api.get(ctx, f.path, q, w.res.accept.stream)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if !initial {
		patience.Stop()
		w.connected(w.res.name)
	}
	in := newStream(resp, f.decode, &w.strings)
	all := map[string]change{} // of the initial events, by id
	var b batch
	for {
		e, err := in.next()
		if err != nil {
			w.flush(ctx, &b)
			if initial && errors.Is(err, io.EOF) {
				return errors.New("the server ended the watch within the initial events")
			}
			return err
		}
		switch {
		case e.typ == failure:
			w.flush(ctx, &b)
			return e.status
		case initial:
			patience.Reset(initialTime)
			if done := w.first(all, e); done {
				initial = false
				patience.Stop()
				w.replace(ctx, slices.Collect(maps.Values(all)), e.item.version)
				w.connected(w.res.name)
				all = nil
			}
		default:
			w.add(&b, e)
			if !in.ready() || len(b.order) >= pageSize {
				w.flush(ctx, &b)
			}
		}
	}
}

// first takes an initial event and reports whether it was the mark of their end.
func (w *watcher) first(all map[string]change, e event) bool {
	switch e.typ {
	case bookmark:
		return e.item.end
	case deleted:
		delete(all, e.item.id)
	case added, modified:
		all[e.item.id] = w.take(e.item)
	}
	return false
}

// batch is what events have changed: the last word on each object.
type batch struct {
	changes map[string]change
	order   []string
	version string
}

// add puts an event into the batch.
func (w *watcher) add(b *batch, e event) {
	if e.item.version != "" {
		b.version = e.item.version
	}
	var c change
	switch e.typ {
	case added, modified:
		c = w.take(e.item)
	case deleted:
		w.understood(w.res.name, item{name: e.item.name})
		c = change{item: item{id: e.item.id, ref: e.item.ref}, gone: true}
	default:
		return
	}
	if b.changes == nil {
		b.changes = map[string]change{}
	}
	_, known := b.changes[c.id]
	if known && c.refused() {
		return // the last version that was understood counts
	}
	if !known {
		b.order = append(b.order, c.id)
	}
	b.changes[c.id] = c
}

// flush hands the batch on and empties it.
func (w *watcher) flush(ctx context.Context, b *batch) {
	if len(b.order) > 0 {
		some := make([]change, 0, len(b.order))
		for _, id := range b.order {
			some = append(some, b.changes[id])
		}
		w.target.apply(ctx, some)
		w.stored(w.res.name, b.version)
	}
	if b.version != "" {
		w.version = b.version
	}
	clear(b.changes)
	b.order, b.version = b.order[:0], ""
}
