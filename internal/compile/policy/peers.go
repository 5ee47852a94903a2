package policy

import (
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
	"weft/internal/selector"
)

// peerSet is the classes that one list of peers matches. Rules with equal lists share it.
type peerSet struct {
	id      plan.ID
	text    string
	peers   []*peer
	members map[*class]bool
	users   int // rules of policy sets
}

// peer is a model.Peer with its group resolved.
type peer struct {
	model.Peer
	set     *peerSet
	grouped bool
	group   []*peer // one of them must match, if grouped
}

// matches says whether a class is this peer.
func (p *peer) matches(c *class, views []selector.Labels) bool {
	is := func(x *selector.Expr) bool { return slices.ContainsFunc(views, x.Match) }
	switch {
	case len(p.Names) > 0,
		p.External && c.member,
		p.Select != nil && !is(p.Select),
		p.NotSelect != nil && is(p.NotSelect),
		p.Nets != nil && !inAny(p.Nets, c.prefix),
		inAny(p.NotNets, c.prefix),
		p.grouped && !slices.ContainsFunc(p.group, func(g *peer) bool { return g.matches(c, views) }):
		return false
	}
	return true
}

// inAny says whether a class's prefix is in one of the nets. As every net of a policy is among the prefixes that classes
// are made of, an address is in a net exactly if the longest of those that it is in is.
func inAny(nets []netip.Prefix, p netip.Prefix) bool {
	return p.IsValid() && slices.ContainsFunc(nets, func(n netip.Prefix) bool { return netset.Covers(n, p) })
}

func (p *peer) text() string {
	var b strings.Builder
	part := func(name, v string) {
		if v != "" {
			fmt.Fprintf(&b, " %s %s", name, v)
		}
	}
	expr := func(name string, x *selector.Expr) {
		if x != nil {
			part(name, "("+x.String()+")")
		}
	}
	expr("labels", p.Select)
	expr("not labels", p.NotSelect)
	if p.Nets != nil {
		part("nets", fmt.Sprint(netset.Sorted(p.Nets)))
	}
	if len(p.NotNets) > 0 {
		part("not nets", fmt.Sprint(netset.Sorted(p.NotNets)))
	}
	if p.External {
		b.WriteString(" outside")
	}
	if len(p.Names) > 0 {
		part("names", fmt.Sprint(p.Names))
	}
	if p.grouped {
		inner := make([]string, len(p.group))
		for i, g := range p.group {
			inner[i] = g.text()
		}
		slices.Sort(inner)
		part("group", "{"+strings.Join(inner, "|")+"}")
	}
	if b.Len() == 0 {
		return "anything"
	}
	return b.String()[1:]
}

// each calls f for the peer and those of its group.
func (p *peer) each(f func(*peer)) {
	f(p)
	for _, g := range p.group {
		g.each(f)
	}
}

// resolve turns a peer of a rule into one whose group's members are in it. Of a rule that denies, a group that is not
// understood as a whole has everything in it.
func (e *Engine) resolve(x model.Peer, denies bool, depth int) *peer {
	p := &peer{Peer: x}
	if x.Group == nil {
		return p
	}
	if set := model.Get[*model.AddressSet](e.snap, model.AddressSetKey(*x.Group)); set != nil {
		p.grouped, p.group = true, []*peer{{Peer: model.Peer{Nets: set.Nets}}}
		return p
	}
	p.grouped = true
	g := model.Get[*model.Group](e.snap, model.GroupKey(*x.Group))
	if g == nil || depth > maxGroups {
		return p // has no members
	}
	if len(g.Unsupported) > 0 && denies {
		p.grouped = false
		return p
	}
	for _, m := range g.Members {
		p.group = append(p.group, e.resolve(m, denies, depth+1))
	}
	for _, c := range g.Children {
		p.group = append(p.group, e.resolve(model.Peer{Group: &c}, denies, depth+1))
	}
	return p
}

// relative reports whether the peer depends on the policy's own side.
func (p *peer) relative() bool {
	return p.SameNamespace || p.SameLabels != nil || slices.ContainsFunc(p.group, (*peer).relative)
}

// seenBy returns the peer as the subject with these labels sees it; nil if it then matches nothing.
func (p *peer) seenBy(subject selector.Labels) *peer {
	if !p.relative() {
		return p
	}
	out := *p
	out.SameNamespace, out.SameLabels = false, nil
	var demands []*selector.Expr
	demand := func(key string) bool {
		v, ok := subject.Get(key)
		if ok {
			demands = append(demands, selector.Equal(key, v))
		}
		return ok
	}
	if p.SameNamespace && !demand(selector.NamespaceName) {
		return nil
	}
	for _, k := range p.SameLabels {
		if !demand(selector.Namespace + k) {
			return nil
		}
	}
	out.Select = selector.AllOf(append(demands, p.Select)...)
	out.group = nil
	for _, g := range p.group {
		if x := g.seenBy(subject); x != nil {
			out.group = append(out.group, x)
		}
	}
	return &out
}

// maxGroups is how deep groups may lie in groups; no API allows more than one.
const maxGroups = 4

// acquire returns the peer set of a list of peers, making it if it is new.
func (e *Engine) acquire(peers []*peer) *peerSet {
	texts := make([]string, len(peers))
	for i, p := range peers {
		texts[i] = p.text()
	}
	slices.Sort(texts)
	texts = slices.Compact(texts)
	text := strings.Join(texts, " | ")
	if text == "" {
		text = "nothing"
	}
	id := idOf("peers", text)
	if s := e.peerSets[id]; s != nil {
		s.users++
		return s
	}
	s := &peerSet{id: id, text: text, peers: peers, members: map[*class]bool{}, users: 1}
	e.peerSets[id] = s
	e.dirty[ownKey(plan.KindPeerSet, id.String())] = true
	for _, p := range peers {
		p.each(func(x *peer) {
			x.set = s
			e.use(x.Select, 1)
			e.use(x.NotSelect, 1)
			e.addNetworks(x.Nets, 1)
			e.addNetworks(x.NotNets, 1)
		})
		e.peers.add(p, p.demand())
		for c := range e.candidates(p) {
			if !s.members[c] && p.matches(c, e.views(c)) {
				s.members[c] = true
				c.in[id] = s
			}
		}
	}
	return s
}

// candidates are the classes that may match a peer.
func (e *Engine) candidates(p *peer) iter.Seq[*class] {
	var ns []string
	if p.Select != nil && len(e.networks.labels) == 0 {
		ns = p.Select.Require(selector.NamespaceName)
	}
	if ns == nil {
		return maps.Values(e.classes)
	}
	return func(yield func(*class) bool) {
		for _, n := range ns {
			for c := range e.inNS[n] {
				if !yield(c) {
					return
				}
			}
		}
	}
}

// demand is what the peer's labels must have, for the index.
func (p *peer) demand() *selector.Expr { return p.Select }

func (e *Engine) abandon(s *peerSet) {
	if s == nil {
		return
	}
	if s.users--; s.users > 0 {
		return
	}
	for _, p := range s.peers {
		p.each(func(x *peer) {
			e.use(x.Select, -1)
			e.use(x.NotSelect, -1)
			e.addNetworks(x.Nets, -1)
			e.addNetworks(x.NotNets, -1)
		})
		e.peers.remove(p, p.demand())
	}
	for c := range s.members {
		delete(c.in, s.id)
	}
	delete(e.peerSets, s.id)
	e.dirty[ownKey(plan.KindPeerSet, s.id.String())] = true
}

func (s *peerSet) rows(by plan.By) []plan.Row {
	if s == nil {
		return nil
	}
	r := &plan.PeerSet{By: by, ID: s.id, Text: s.text, Members: make([]plan.ID, 0, len(s.members))}
	for c := range s.members {
		r.Members = append(r.Members, c.id)
	}
	slices.Sort(r.Members)
	return []plan.Row{r}
}

// index finds things by labels that they demand: only those that may match are looked at. The same label in another namespace is
// another one, where a namespace is demanded as well: every namespace has an app=web.
type index[T comparable] struct {
	byLabel map[string]map[labelValue]map[T]bool // by key
	others  map[T]bool                           // demand no particular label
}

// labelValue is a value of a label, in a namespace; "" is any.
type labelValue struct{ value, namespace string }

func newIndex[T comparable]() index[T] {
	return index[T]{byLabel: map[string]map[labelValue]map[T]bool{}, others: map[T]bool{}}
}

// add enters t, which matches nothing that x, if not nil, does not match.
func (i *index[T]) add(t T, x *selector.Expr) {
	key, values, ok := must(x)
	if !ok {
		i.others[t] = true
		return
	}
	if i.byLabel[key] == nil {
		i.byLabel[key] = map[labelValue]map[T]bool{}
	}
	for _, v := range values {
		if i.byLabel[key][v] == nil {
			i.byLabel[key][v] = map[T]bool{}
		}
		i.byLabel[key][v][t] = true
	}
}

func (i *index[T]) remove(t T, x *selector.Expr) {
	key, values, ok := must(x)
	if !ok {
		delete(i.others, t)
		return
	}
	for _, v := range values {
		delete(i.byLabel[key][v], t)
		if len(i.byLabel[key][v]) == 0 {
			delete(i.byLabel[key], v)
		}
	}
	if len(i.byLabel[key]) == 0 {
		delete(i.byLabel, key)
	}
}

func must(x *selector.Expr) (string, []labelValue, bool) {
	if x == nil {
		return "", nil, false
	}
	key, values, ok := x.Must()
	ns := namespaceIn(x)
	out := make([]labelValue, len(values))
	for i, v := range values {
		out[i] = labelValue{v, ns}
	}
	return key, out, ok
}

// namespaceIn is the namespace that an expression demands, "" if it is none or not just one.
func namespaceIn(x *selector.Expr) string {
	switch {
	case x == nil:
	case x.Op == selector.In && x.Key == selector.NamespaceName && len(x.Values) == 1:
		return x.Values[0]
	case x.Op == selector.And:
		for _, s := range x.Sub {
			if ns := namespaceIn(s); ns != "" {
				return ns
			}
		}
	}
	return ""
}

// find calls f for everything that may match the labels.
func (i *index[T]) find(l selector.Labels, f func(T)) {
	for t := range i.others {
		f(t)
	}
	ns, _ := l.Get(selector.NamespaceName)
	for key, values := range i.byLabel {
		v, ok := l.Get(key)
		if !ok {
			continue
		}
		for t := range values[labelValue{value: v}] {
			f(t)
		}
		if ns == "" {
			continue
		}
		for t := range values[labelValue{v, ns}] {
			f(t)
		}
	}
}
