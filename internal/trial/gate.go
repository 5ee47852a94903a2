package trial

import (
	"context"
	"slices"

	"weft/internal/model"
)

// PolicyWriter is where a source writes policies.
type PolicyWriter interface {
	Upsert(objs ...model.Object)
	Delete(keys ...model.Key)
	Replace(kind model.Kind, objs []model.Object)
	Refuse(o model.Object, problem error)
}

// Gate returns a writer that hands everything on to w. It holds back what is to be on trial until it is known what holds without
// it: at most a second.
func (t *Trials) Gate(w PolicyWriter) PolicyWriter {
	if t.o.Mode == model.ConfirmOff {
		return w
	}
	return gate{w, t}
}

// gate is a writer that watches. Refuse is none of its business: of an object that is refused the last version stays that was not.
type gate struct {
	PolicyWriter
	t *Trials
}

// Upsert implements PolicyWriter.
func (g gate) Upsert(objs ...model.Object) {
	g.t.pass(objs, nil, func() { g.PolicyWriter.Upsert(objs...) })
}

// Delete implements PolicyWriter.
func (g gate) Delete(keys ...model.Key) {
	g.t.pass(nil, func(k model.Key) bool { return slices.Contains(keys, k) }, func() { g.PolicyWriter.Delete(keys...) })
}

// Replace implements PolicyWriter.
func (g gate) Replace(kind model.Kind, objs []model.Object) {
	gone := func(k model.Key) bool {
		return k.Kind == kind && !slices.ContainsFunc(objs, func(o model.Object) bool { return o.Key() == k })
	}
	g.t.pass(objs, gone, func() { g.PolicyWriter.Replace(kind, objs) })
}

// pass lets objects into the store, and those that gone says out of it.
func (t *Trials) pass(objs []model.Object, gone func(model.Key) bool, write func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	news, over := t.sort(objs)
	for k := range t.all {
		if gone != nil && gone(k) {
			over = append(over, k)
		}
	}
	if len(news) > 0 {
		t.measure()
		for _, x := range news {
			t.start(x)
		}
		t.save() // before it is in force: whoever dies now goes on with the trial
	}
	write()
	var back []model.Key
	for _, x := range news {
		back = append(back, x.key)
		t.w.Upsert(x.row())
	}
	if len(back) > 0 {
		t.w.Delete(back...) // what was in force instead of an earlier version
		select {
		case t.wake <- struct{}{}:
		default:
		}
	}
	t.end(over)
}

// sort finds what goes on trial, and the trials that are over because there is something else now. The caller holds mu.
func (t *Trials) sort(objs []model.Object) (news []*trial, over []model.Key) {
	if len(objs) == 0 || len(t.all) == 0 && !t.begun {
		return nil, nil
	}
	snap := t.o.Snapshot()
	for _, o := range objs {
		k := o.Key()
		x, covered := t.all[k], t.begun && t.covers(o)
		if x == nil && !covered {
			continue
		}
		before := snap.Get(k)
		if x != nil {
			if same(x.after, o) {
				x.said = true
				continue
			}
			before = x.before
		}
		switch unchanged := before != nil && same(before, o); {
		case !unchanged && covered:
			news = append(news, &trial{key: k, before: before, after: o, said: true})
		case x != nil:
			over = append(over, k)
		}
	}
	return news, over
}

// covers reports whether changes of an object are on trial.
func (t *Trials) covers(o model.Object) bool {
	p, ok := o.(*model.Policy)
	if !ok || p.Confirm == model.ConfirmDefault {
		return t.o.Mode == model.ConfirmAll
	}
	return p.Confirm == model.ConfirmAlways
}

// measure finds out what holds now. While something else is on trial, what held before it is what counts. The caller holds mu.
func (t *Trials) measure() {
	now := t.o.Clock.Now()
	if !t.busy() {
		clear(t.held)
		clear(t.fails)
	} else if now.Sub(t.measured) < round {
		return // changes come in bursts
	}
	t.measured = now
	for name, err := range t.look(context.Background(), nil) {
		if err == nil {
			t.held[name] = true
		}
	}
}

// start puts a change on trial. The caller holds mu.
func (t *Trials) start(x *trial) {
	x.since = t.o.Clock.Now()
	x.until = x.since.Add(t.o.Window)
	t.all[x.key] = x
}
