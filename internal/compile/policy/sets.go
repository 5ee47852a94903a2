package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
	"weft/internal/selector"
)

// policy is a model.Policy, compiled as far as it does not depend on the subject.
type policy struct {
	*model.Policy
	tier    model.Tier
	serial  int  // other for every compilation
	varies  bool // what its rules are depends on more of the subject than whether it is selected
	grouped bool
	demand  *selector.Expr // what every subject has; nil: nothing in particular
	subject []*peer        // one of them must match a subject
	rules   [2][]*rule     // by plan.Direction
}

// rule is a model.Rule, compiled likewise.
type rule struct {
	*model.Rule
	id       plan.ID
	origin   string
	peers    []*peer // nil: anything
	relative bool    // the peers depend on the subject
	local    []*peer // all of them must match the subject
	subject  []*peer // nil: the policy's
}

func (p *policy) section(d plan.Direction) *model.Section {
	if d == plan.Ingress {
		return p.Ingress
	}
	return p.Egress
}

// takePolicy takes in a policy.
func (e *Engine) takePolicy(k model.Key) {
	if k.Kind != model.KindPolicy {
		return
	}
	defer e.strangers(len(e.policies) > 0)
	if old := e.policies[k]; old != nil {
		e.selected(old)
		delete(e.policies, k)
		e.subjects.remove(old, old.demand)
		if old.grouped {
			e.groups--
		}
		e.ports.use(old, -1)
	}
	m := model.Get[*model.Policy](e.snap, k)
	if m == nil || m.Hook != model.HookWorkload {
		return
	}
	p := e.compile(m)
	e.policies[k] = p
	e.subjects.add(p, p.demand)
	if p.grouped {
		e.groups++
	}
	e.selected(p)
}

// strangers looks again at the endpoints whose pods are not known, if there are policies now and were none, or the other way round.
func (e *Engine) strangers(before bool) {
	if before == (len(e.policies) > 0) {
		return
	}
	for _, l := range e.locals {
		if l.holder == nil {
			e.todo.locals[l] = true
		}
	}
}

func (e *Engine) compile(m *model.Policy) *policy {
	e.serial++
	p := &policy{Policy: m, tier: model.FindTier(e.snap, m.Tier), serial: e.serial}
	p.subject = e.subjectOf(p, m.Subject, m.Groups)
	own := true
	for d := plan.Ingress; d <= plan.Egress; d++ {
		s := p.section(d)
		if s == nil {
			continue
		}
		for i := range s.Rules {
			r := e.compileRule(p, &s.Rules[i], d)
			p.rules[d] = append(p.rules[d], r)
			own = own && r.subject == nil
		}
	}
	if own && len(m.Groups) == 0 {
		p.demand = m.Subject
	}
	e.ports.use(p, 1)
	return p
}

// subjectOf makes the peers that a subject is one of.
func (e *Engine) subjectOf(p *policy, x *selector.Expr, groups []model.Ref) []*peer {
	out := []*peer{}
	if x != nil {
		out = append(out, &peer{Peer: model.Peer{Select: x}})
	}
	for _, g := range groups {
		p.grouped = true
		for _, member := range e.resolve(model.Peer{Group: &g}, false, 0).group {
			member.each(func(x *peer) { // a group's prefixes are nobody's subject
				if x.Nets == nil && !x.grouped {
					out = append(out, x)
				}
			})
		}
	}
	return out
}

func (e *Engine) compileRule(p *policy, m *model.Rule, d plan.Direction) *rule {
	r := &rule{Rule: m, id: idOf("rule", p.Key().Name, d.String(), m.Field), origin: originOf(p.Ref, m)}
	denies := m.Verdict == model.VerdictDeny || m.Verdict == model.VerdictReject
	if m.Subject != nil || m.Groups != nil {
		r.subject = e.subjectOf(p, m.Subject, m.Groups)
		p.varies = true
	}
	for _, l := range m.Local {
		r.local = append(r.local, e.resolve(l, denies, 0))
		p.grouped = p.grouped || l.Group != nil
		p.varies = true
	}
	if m.Peers == nil {
		return r
	}
	r.peers = make([]*peer, len(m.Peers))
	for i, x := range m.Peers {
		r.peers[i] = e.resolve(x, denies, 0)
		p.grouped = p.grouped || x.Group != nil
	}
	r.relative = slices.ContainsFunc(r.peers, (*peer).relative)
	p.varies = p.varies || r.relative
	return r
}

// originOf is what a rule is called: its object, its place, and its name if it has one.
func originOf(ref model.Ref, m *model.Rule) string {
	out := ref.String()
	if m.Field != "" {
		out += " " + m.Field
	}
	if m.Name != "" {
		out += fmt.Sprintf(" %q", m.Name)
	}
	return out
}

// isSubject says whether one of the peers is an endpoint with these labels.
func isSubject(labels selector.Labels, peers []*peer) bool {
	c := &class{member: true}
	return slices.ContainsFunc(peers, func(p *peer) bool { return p.matches(c, []selector.Labels{labels}) })
}

// concerns says whether a policy, or a rule of it, is about an endpoint with these labels.
func (p *policy) concerns(labels selector.Labels) bool {
	if isSubject(labels, p.subject) {
		return true
	}
	for _, rules := range p.rules {
		for _, r := range rules {
			if r.subject != nil && isSubject(labels, r.subject) {
				return true
			}
		}
	}
	return false
}

// guard finds the policy sets of an endpoint.
func (e *Engine) guard(l *local) {
	if e.locals[l.key] != l {
		return
	}
	e.dirty[l.key] = true
	var mine []asked
	if l.holder != nil {
		for i, labels := range l.views(e) {
			add := func(p *policy) {
				if p.concerns(labels) {
					mine = append(mine, asked{p, i, labels})
				}
			}
			e.subjects.find(labels, add)
			if i > 0 {
				for _, p := range l.own {
					add(p)
				}
			}
		}
		slices.SortStableFunc(mine, func(a, b asked) int { return cmp.Or(comparePolicies(a.policy, b.policy), cmp.Compare(a.view, b.view)) })
	}
	l.policies = len(e.policies) > 0
	for d, have := range []**set{&l.ingress, &l.egress} {
		s := e.setFor(l, mine, plan.Direction(d))
		if s != nil {
			s.users++
		}
		e.release(*have)
		*have = s
	}
}

// asked is a policy of an endpoint, with the labels under which it sees it.
type asked struct {
	*policy
	view   int // of local.views
	labels selector.Labels
}

// comparePolicies is the order in which policies are asked.
func comparePolicies(a, b *policy) int {
	return cmp.Or(cmp.Compare(a.tier.Order, b.tier.Order), strings.Compare(a.tier.API+"/"+a.tier.Name, b.tier.API+"/"+b.tier.Name),
		cmp.Compare(a.Order, b.Order), strings.Compare(a.Tie, b.Tie), model.SetsFirst(a.Policy, b.Policy), compareKeys(a.Key(), b.Key()))
}

// set is a policy set with its users.
type set struct {
	id    plan.ID
	sig   string // which policies it is made of
	dir   plan.Direction
	rules []plan.PolicyRule
	peers []*peerSet // that the set itself holds
	users int        // endpoints
}

// setFor returns the set that policies make for an endpoint; nil if none of them speaks of the direction. Endpoints
// for which the same policies count, and mean the same, share it.
func (e *Engine) setFor(l *local, mine []asked, d plan.Direction) *set {
	var sig strings.Builder
	fmt.Fprint(&sig, d)
	n := 0
	varies := false
	for _, p := range mine {
		if p.section(d) == nil {
			continue
		}
		n++
		fmt.Fprintf(&sig, " %d/%d", p.serial, p.view)
		varies = varies || p.varies || e.ports.asked(p.policy, d)
		if !p.varies {
			continue
		}
		b := builder{e: e, l: l, d: d, labels: p.labels}
		fmt.Fprint(&sig, " ", isSubject(p.labels, p.subject))
		for _, r := range p.rules[d] { // which of them are about it
			if r.subject != nil {
				fmt.Fprint(&sig, " ", isSubject(p.labels, r.subject))
			}
			if r.local != nil {
				family, ok := b.local(r)
				fmt.Fprint(&sig, " ", family, ok)
			}
		}
	}
	if n == 0 {
		return nil
	}
	if varies {
		if pod := l.holder.pod; pod != nil {
			labels := model.LabelsOf(e.snap, pod)
			fmt.Fprint(&sig, " ", labels.Pod.Labels, labels.Pod.Account)
			if labels.Namespace != nil {
				fmt.Fprint(&sig, " ", labels.Namespace.Labels)
			}
			if labels.Account != nil {
				fmt.Fprint(&sig, " ", labels.Account.Labels)
			}
		}
		if node := l.holder.node; node != nil {
			fmt.Fprint(&sig, " ", node.Labels)
		}
		if l.host != nil {
			fmt.Fprint(&sig, " ", l.host.Labels)
		}
		for _, a := range l.addrs {
			if c := l.holder.classes.at(a); c != nil {
				fmt.Fprintf(&sig, " %s", c.id)
			}
			fmt.Fprint(&sig, " ", e.backends[a])
		}
		fmt.Fprintf(&sig, " %s", e.ports.of(l.holder))
	}
	fmt.Fprintf(&sig, " %d", e.ports.version)
	if s := e.bySig[sig.String()]; s != nil {
		return s
	}
	b := builder{e: e, l: l, d: d}
	rules := b.build(mine)
	text := make([]string, len(rules))
	for i, r := range rules {
		text[i] = r.ID.String() + " " + r.String()
	}
	id := idOf("set", d.String(), strings.Join(text, "\n"))
	if s := e.sets[id]; s != nil { // other policies that mean the same, such as the same one compiled again
		for _, p := range b.peers {
			e.abandon(p)
		}
		delete(e.bySig, s.sig)
		s.sig = sig.String()
		e.bySig[s.sig] = s
		return s
	}
	s := &set{id: id, sig: sig.String(), dir: d, rules: rules, peers: b.peers}
	e.sets[id], e.bySig[s.sig] = s, s
	e.dirty[ownKey(plan.KindPolicySet, id.String())] = true
	return s
}

// release is for an endpoint that no longer uses a set.
func (e *Engine) release(s *set) {
	if s == nil {
		return
	}
	if s.users--; s.users > 0 {
		return
	}
	for _, p := range s.peers {
		e.abandon(p)
	}
	delete(e.sets, s.id)
	delete(e.bySig, s.sig)
	e.dirty[ownKey(plan.KindPolicySet, s.id.String())] = true
}

func (s *set) rows(by plan.By) []plan.Row {
	if s == nil {
		return nil
	}
	return []plan.Row{&plan.PolicySet{By: by, ID: s.id, Direction: s.dir, Rules: s.rules}}
}

// rows of an endpoint: its guard, and the identities of its addresses, so that it is not done before they are.
func (l *local) rows(by plan.By) []plan.Row {
	if l == nil {
		return nil
	}
	g := &plan.Guard{By: by}
	if by.Kind == kindOf(plan.KindGuard) {
		g.Node, g.Dev = true, by.Name
	}
	if l.endpoint != nil {
		g.Dev = l.endpoint.HostIf
	}
	if l.holder == nil {
		if l.policies {
			return []plan.Row{&plan.Problem{By: by, Name: "policy", Reason: fmt.Sprintf(
				"pod %s is not known, so neither are its labels: until it is, policy keeps its interface closed", l.endpoint.Pod)}}
		}
		return []plan.Row{g}
	}
	if l.ingress != nil {
		g.Ingress = l.ingress.id
	}
	if l.egress != nil {
		g.Egress = l.egress.id
	}
	rows := []plan.Row{g}
	if l.endpoint != nil {
		for _, a := range l.addrs {
			if c := l.holder.classes.at(a); c != nil && l.holder.local == l {
				rows = append(rows, &plan.Address{By: by, Prefix: netset.Host(a), Identity: c.id})
			}
		}
	}
	return rows
}
