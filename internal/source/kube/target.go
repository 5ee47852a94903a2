package kube

import (
	"context"
	"maps"
	"slices"

	"weft/internal/convert/language"
	"weft/internal/model"
)

// change is what happened to one object.
type change struct {
	item
	gone bool
}

// target is where the objects of a watch go. Its methods are called by one goroutine at a time.
type target interface {
	// replace makes all the complete state.
	replace(ctx context.Context, all []change)
	// apply takes what has changed, each object once.
	apply(ctx context.Context, some []change)
	// withdraw takes back everything.
	withdraw()
}

// rows is the target of one of the cluster's own kinds. Of an object that is not understood, the last version stays that was.
type rows struct {
	w    Writer
	kind model.Kind
}

func (r rows) replace(_ context.Context, all []change) {
	objs := make([]model.Object, 0, len(all))
	for _, c := range all {
		objs = append(objs, c.objs...)
	}
	r.w.Replace(r.kind, objs)
}

func (r rows) apply(_ context.Context, some []change) {
	var put []model.Object
	var gone []model.Key
	for _, c := range some {
		if put = append(put, c.objs...); c.gone {
			gone = append(gone, model.Key{Kind: r.kind, Name: c.id})
		}
	}
	if len(put) > 0 {
		r.w.Upsert(put...)
	}
	if len(gone) > 0 {
		r.w.Delete(gone...)
	}
}

func (r rows) withdraw() { r.w.Replace(r.kind, nil) }

// definitions is the target of the CustomResourceDefinitions: it keeps the names of those that are a language's.
type definitions struct{ s *Source }

func (d *definitions) replace(_ context.Context, all []change) {
	d.s.define(func(crds map[string]bool) {
		clear(crds)
		d.note(crds, all)
	})
}

func (d *definitions) apply(_ context.Context, some []change) {
	d.s.define(func(crds map[string]bool) { d.note(crds, some) })
}

func (d *definitions) withdraw() {}

func (d *definitions) note(crds map[string]bool, changes []change) {
	for _, c := range changes {
		switch {
		case c.gone:
			delete(crds, c.id)
		case d.s.isPolicy(c.id):
			crds[c.id] = true
		}
	}
}

// policySet is the target of one kind of policies. One object may become several of the model, which come and go together. Of an
// object that is not understood the last version stays that was; if there was none, something stands for it that is shown and not used.
type policySet struct {
	s     *Source
	watch string
	kind  language.Kind
	w     PolicyWriter
	have  map[string][]model.Key    // what an object became, by its id; never empty
	stand map[string]model.Key      // what stands for an object that was refused, by its id
	needs map[string]language.Needs // of the objects that need something, by their id
}

func newPolicySet(s *Source, r resource) *policySet {
	kinds := language.Kinds()
	i := slices.IndexFunc(kinds, func(k language.Kind) bool { return k.CRD() == r.name })
	return &policySet{
		s: s, watch: r.name, kind: kinds[i], w: s.writers[r.name],
		have: map[string][]model.Key{}, stand: map[string]model.Key{}, needs: map[string]language.Needs{},
	}
}

// replace implements target: what is not in all is gone.
func (p *policySet) replace(ctx context.Context, all []change) {
	there := make(map[string]bool, len(all))
	for _, c := range all {
		there[c.id] = true
	}
	for _, id := range p.ids() {
		if !there[id] {
			all = append(all, change{item: item{id: id}, gone: true})
		}
	}
	p.apply(ctx, all)
}

// ids lists the objects of which something is in the store.
func (p *policySet) ids() []string {
	return slices.AppendSeq(slices.Collect(maps.Keys(p.have)), maps.Keys(p.stand))
}

// writes is what a policySet is about to do, in this order.
type writes struct {
	stood  []model.Key // what stood for objects that are understood now
	put    []model.Object
	gone   []model.Key // what objects were and are no more
	refuse []change
}

// apply implements target. What the objects need is there before they are, so that no policy is in force whose peers are
// not known; what takes the place of something comes before that goes.
func (p *policySet) apply(ctx context.Context, some []change) {
	var w writes
	for _, c := range some {
		p.take(&w, c)
	}
	var all language.Needs
	for _, n := range p.needs {
		all = all.Or(n)
	}
	p.s.need(ctx, p.watch, all)
	if len(w.stood) > 0 {
		p.w.Delete(w.stood...)
	}
	if len(w.put) > 0 {
		p.w.Upsert(w.put...)
	}
	if len(w.gone) > 0 {
		p.w.Delete(w.gone...)
	}
	for _, c := range w.refuse {
		o := p.kind.Stand(c.ref)
		p.stand[c.id] = o.Key()
		p.w.Refuse(o, c.err)
	}
	p.s.examine(p.kind, some)
}

// take adds what follows from one change, and notes it.
func (p *policySet) take(w *writes, c change) {
	if c.refused() && !c.gone {
		if p.have[c.id] == nil {
			w.refuse = append(w.refuse, c)
		}
		return
	}
	if k, stood := p.stand[c.id]; stood {
		w.stood = append(w.stood, k)
		delete(p.stand, c.id)
	}
	var keys []model.Key
	var n language.Needs
	for _, o := range c.objs {
		keys = append(keys, o.Key())
		n = n.Or(language.NeedsOf(o))
	}
	for _, k := range p.have[c.id] {
		if !slices.Contains(keys, k) {
			w.gone = append(w.gone, k)
		}
	}
	w.put = append(w.put, c.objs...)
	delete(p.have, c.id)
	if len(keys) > 0 {
		p.have[c.id] = keys
	}
	delete(p.needs, c.id)
	if n != (language.Needs{}) {
		p.needs[c.id] = n
	}
}

// withdraw implements target.
func (p *policySet) withdraw() { p.replace(context.Background(), nil) }
