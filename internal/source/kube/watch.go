package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/url"
	"slices"
	"strconv"
	"time"

	"weft/internal/convert/k8s"
	"weft/internal/convert/wire"
	"weft/internal/model"
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

// watcher follows one kind.
type watcher struct {
	*Source
	res     resource
	version string       // resource version up to which everything is in the store; "" before the first
	strings wire.Strings // of labels, namespaces and node names
	plain   bool         // the server has no watch lists
}

// run follows the kind until ctx ends.
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
		if time.Since(began) > longestWait {
			try = 0
		}
		try++
		wait := jitter(run.Backoff(try, firstWait, longestWait))
		if err != nil {
			w.failed(w.res.kind, try, err)
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
		if !refused(err) && !errors.Is(err, errSilent) {
			return err
		}
		w.log.Debug("no watch list, listing instead", "kind", w.res.kind, "err", err)
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
	var objs []model.Object
	for {
		p, err := w.page(ctx, q)
		if err != nil {
			return err
		}
		for _, item := range p.items {
			objs = w.take(objs, item)
		}
		if p.next == "" {
			w.replace(objs, p.resourceVersion)
			return nil
		}
		q.Set("continue", p.next)
	}
}

func (w *watcher) page(ctx context.Context, q url.Values) (page, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	resp, err := w.api.get(ctx, w.res.path, q, acceptObject)
	if err != nil {
		return page{}, fmt.Errorf("list %s: %w", w.res.kind, err)
	}
	defer resp.Body.Close()
	p, err := readPage(resp, w.res.typ, &w.strings)
	if err != nil {
		return p, fmt.Errorf("list %s: %w", w.res.kind, err)
	}
	return p, nil
}

// take appends the item's object, if it has one, and reports what was wrong with it.
func (w *watcher) take(objs []model.Object, item k8s.Item) []model.Object {
	w.check(item)
	if item.Object == nil {
		return objs
	}
	return append(objs, item.Object)
}

// check reports an object that was not understood, or not wholly, once until it is right again.
func (w *watcher) check(item k8s.Item) {
	if !w.understood(item) {
		action := "used without what was not understood"
		if item.Object == nil {
			action = "ignored"
		}
		w.report(item.Err.Error(), action)
	}
}

// replace makes objs the complete state.
func (w *watcher) replace(objs []model.Object, version string) {
	w.w.Replace(w.res.kind, objs)
	w.version = version
	w.synced(w.res.kind)
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
	return fmt.Errorf("watch %s: %w", w.res.kind, err)
}

// events sends the request and applies its events, as many at once as have been received.
func (w *watcher) events(ctx context.Context, q url.Values, initial bool, patience *time.Timer) error {
	resp, err := w.api.get(ctx, w.res.path, q, acceptStream)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if !initial {
		patience.Stop()
		w.connected(w.res.kind)
	}
	in := newStream(resp, w.res.typ, &w.strings)
	all := map[model.Key]model.Object{} // of the initial events
	var b batch
	for {
		e, err := in.next()
		if err != nil {
			w.flush(&b)
			if initial && errors.Is(err, io.EOF) {
				return errors.New("the server ended the watch within the initial events")
			}
			return err
		}
		switch {
		case e.typ == failure:
			w.flush(&b)
			return e.status
		case initial:
			patience.Reset(initialTime)
			if done := w.first(all, e); done {
				initial = false
				patience.Stop()
				w.replace(slices.Collect(maps.Values(all)), e.item.Meta.ResourceVersion)
				w.connected(w.res.kind)
				all = nil
			}
		default:
			w.add(&b, e)
			if !in.ready() || len(b.order) >= pageSize {
				w.flush(&b)
			}
		}
	}
}

// first takes an initial event and reports whether it was the mark of their end.
func (w *watcher) first(all map[model.Key]model.Object, e event) bool {
	switch e.typ {
	case bookmark:
		return e.item.Meta.Annotations[k8s.AnnInitialEnd] == "true"
	case deleted:
		delete(all, w.key(e.item))
	case added, modified:
		w.check(e.item)
		if e.item.Object != nil {
			all[e.item.Object.Key()] = e.item.Object
		}
	}
	return false
}

// batch is what events have changed: the last word on each key.
type batch struct {
	objs    map[model.Key]model.Object // nil: deleted
	order   []model.Key
	version string
}

// key returns the key of an event's object, even if no more than its metadata was understood.
func (w *watcher) key(i k8s.Item) model.Key {
	if i.Object != nil {
		return i.Object.Key()
	}
	return model.Key{Kind: w.res.kind, Name: nameOf(i.Meta)}
}

// add puts an event into the batch.
func (w *watcher) add(b *batch, e event) {
	if v := e.item.Meta.ResourceVersion; v != "" {
		b.version = v
	}
	var o model.Object
	switch e.typ {
	case added, modified:
		w.check(e.item)
		if o = e.item.Object; o == nil {
			return // the last version that was understood stays
		}
	case deleted:
		w.understood(k8s.Item{Type: e.item.Type, Meta: e.item.Meta})
	default:
		return
	}
	k := w.key(e.item)
	if b.objs == nil {
		b.objs = map[model.Key]model.Object{}
	}
	if _, known := b.objs[k]; !known {
		b.order = append(b.order, k)
	}
	b.objs[k] = o
}

// flush writes the batch to the store and empties it.
func (w *watcher) flush(b *batch) {
	var put []model.Object
	var gone []model.Key
	for _, k := range b.order {
		if o := b.objs[k]; o != nil {
			put = append(put, o)
		} else {
			gone = append(gone, k)
		}
	}
	if len(put) > 0 {
		w.w.Upsert(put...)
	}
	if len(gone) > 0 {
		w.w.Delete(gone...)
	}
	if b.version != "" {
		w.version = b.version
	}
	clear(b.objs)
	b.order, b.version = b.order[:0], ""
}
