// Package policy compiles policies of every language: who may talk to whom becomes identities, peer sets, policy sets and
// guards, as docs/design/policy.md describes.
//
// It is arithmetic: no clock, no I/O, no goroutine. The Engine keeps what it has worked out, so that the cost of a change
// follows the change; what it holds depends on the objects alone and not on how they came, and a new Engine that is given
// the same objects arrives at the same rows. It does not know how a row is applied, nor what a policy's own language was.
package policy

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"weft/internal/model"
	"weft/internal/plan"
	"weft/internal/selector"
)

// Engine compiles for one node. Methods are called from one goroutine.
type Engine struct {
	node string

	policies map[model.Key]*policy
	subjects index[*policy] // by what their subjects demand of labels
	groups   int            // policies that refer to groups

	pods     map[model.Key]*holder // holders of addresses: pods, nodes
	nodes    map[model.Key]*holder
	byNS     map[string]map[*holder]bool   // pods
	locals   map[model.Key]*local          // endpoints of this node, and the node itself under its node key
	ofPod    map[model.Key]map[*local]bool // endpoints by their pod
	at       map[netip.Addr]*local         // endpoints by their address
	classes  map[plan.ID]*class
	inNS     map[string]map[*class]bool // by namespace, "" for all that is no pod
	peerSets map[plan.ID]*peerSet
	peers    index[*peer] // of all peer sets, by what they demand of labels
	sets     map[plan.ID]*set
	bySig    map[string]*set
	networks *prefixes                     // of all policies and address sets
	special  map[string]int                // keys that are looked at although they are unique to a pod; number of users
	backends map[netip.Addr]map[string]int // services of which an address is a backend, and by how many slices
	slices   map[model.Key]*model.Backends
	held     map[netip.Addr]int   // holders of an address
	blocks   map[netip.Prefix]int // the same of all addresses of a block, see blockOf
	ports    portNames
	serial   int                        // of the last policy that was compiled
	hosts    map[model.Key]string       // host endpoints of this node, with what of each is not enforced
	ported   map[model.Key][]model.Port // host endpoints with named ports
	devs     map[string]*local          // the node itself on devices where it has other policies than on its underlay
	services map[model.Key][]netip.Addr // addresses of services
	foreign  bool                       // somebody else translates services

	keys []string // of base, to be used again

	// Of one Update.
	snap  model.Snapshot
	dirty map[model.Key]bool // owners whose rows may differ
	todo  todo
}

// todo is what an Update has still to do. Everything is done once, after all changes have been taken in.
type todo struct {
	holders  map[*holder]bool      // to classify again
	classes  map[*class]bool       // to compare with every peer set again
	locals   map[*local]bool       // to find policies for again
	all      bool                  // every holder is to be classified again
	networks map[netip.Prefix]bool // have changed: holders may have others, and the world too
	ports    bool                  // the values of named ports have changed
	hosts    bool                  // other host endpoints may be those of this node's devices
}

// New returns an Engine for the named node.
func New(node string) *Engine {
	e := &Engine{
		node: node, policies: map[model.Key]*policy{}, subjects: newIndex[*policy](), pods: map[model.Key]*holder{},
		nodes: map[model.Key]*holder{}, byNS: map[string]map[*holder]bool{}, locals: map[model.Key]*local{},
		ofPod: map[model.Key]map[*local]bool{}, at: map[netip.Addr]*local{}, classes: map[plan.ID]*class{}, inNS: map[string]map[*class]bool{}, peerSets: map[plan.ID]*peerSet{}, peers: newIndex[*peer](),
		sets: map[plan.ID]*set{}, bySig: map[string]*set{}, networks: newPrefixes(), special: map[string]int{},
		backends: map[netip.Addr]map[string]int{}, slices: map[model.Key]*model.Backends{}, held: map[netip.Addr]int{}, blocks: map[netip.Prefix]int{}, ports: newPortNames(), services: map[model.Key][]netip.Addr{},
		hosts: map[model.Key]string{}, ported: map[model.Key][]model.Port{}, devs: map[string]*local{},
	}
	return e
}

// Update takes in what has changed and names the owners whose rows may differ.
func (e *Engine) Update(s model.Snapshot, changed []model.Key) []model.Key {
	e.snap, e.dirty = s, map[model.Key]bool{}
	e.todo = todo{holders: map[*holder]bool{}, classes: map[*class]bool{}, locals: map[*local]bool{}, networks: map[netip.Prefix]bool{}}
	// What policies refer to comes before policies, and what they select after them.
	for _, pass := range []func(model.Key){e.referents, e.takePolicy, e.endpoints} {
		for _, k := range changed {
			pass(k)
		}
	}
	e.settle()
	out := slices.Collect(maps.Keys(e.dirty))
	slices.SortFunc(out, compareKeys)
	e.snap = nil
	return out
}

func compareKeys(a, b model.Key) int {
	return cmp.Or(strings.Compare(string(a.Kind), string(b.Kind)), strings.Compare(a.Name, b.Name))
}

// referents takes in tiers, groups, address sets and backends.
func (e *Engine) referents(k model.Key) {
	switch k.Kind {
	case model.KindTier:
		for _, p := range e.policies {
			if p.Tier.API != "" && model.TierKey(p.Tier.API, p.Tier.Name) == k {
				e.serial++
				p.tier, p.serial = model.FindTier(e.snap, p.Tier), e.serial
				e.selected(p)
			}
		}
	case model.KindGroup:
		e.regroup()
	case model.KindAddressSet:
		e.takeAddressSet(k)
		e.regroup()
	case model.KindHostEndpoint:
		e.takeHostEndpoint(k)
	case model.KindDevice, model.KindConfig:
		e.todo.hosts = e.todo.hosts || len(e.hosts) > 0
	case model.KindBackends:
		e.takeBackends(k)
	case model.KindService, model.KindFeature:
		e.takeService(k)
	default: // the others come in the later passes
	}
}

// regroup compiles the policies anew that refer to groups.
func (e *Engine) regroup() {
	if e.groups == 0 {
		return
	}
	for _, p := range slices.Collect(maps.Values(e.policies)) {
		if p.grouped {
			e.takePolicy(p.Key())
		}
	}
}

// endpoints takes in who has addresses and labels.
func (e *Engine) endpoints(k model.Key) {
	switch k.Kind {
	case model.KindPod:
		e.takePod(k)
	case model.KindNode:
		e.takeNode(k)
	case model.KindEndpoint:
		e.takeEndpoint(k)
	case model.KindNamespace:
		for h := range e.byNS[k.Name] {
			e.refresh(h)
		}
		for set, l := range e.networks.labels {
			if l.Own[selector.NamespaceName] == k.Name {
				e.takeAddressSet(set)
			}
		}
	case model.KindServiceAccount:
		for _, h := range e.pods {
			if pod := h.pod; pod != nil && pod.Namespace+"/"+pod.Account == k.Name {
				e.refresh(h)
			}
		}
	default: // came in an earlier pass, or is nothing to policy
	}
}

// settle does what the changes demand: addresses get their identities, identities their peer sets, and subjects
// their policy sets. What the sets of yesterday asked for and those of today do not, may make it do so again.
func (e *Engine) settle() {
	if e.classes[plan.IdentityWorld] == nil {
		e.class("world", selector.Map{selector.Kind: selector.KindWorld}, nil, netip.Prefix{}, nil).refs = 1
	}
	if e.todo.hosts {
		e.pickHosts()
	}
	for e.todo.any() {
		changed := e.todo.networks
		e.todo.networks = map[netip.Prefix]bool{}
		if e.todo.all {
			for p := range e.networks.users {
				changed[p] = true
			}
		}
		for p := range changed {
			e.world(p)
		}
		if len(changed) > 0 {
			e.within(changed)
		}
		if e.todo.all {
			for _, m := range []map[model.Key]*holder{e.pods, e.nodes} {
				for _, h := range m {
					e.todo.holders[h] = true
				}
			}
			for _, c := range e.classes { // whoever is left in a class may not be whom it was compared by
				e.todo.classes[c] = true
			}
			e.todo.all = false
		}
		for h := range e.todo.holders {
			e.classify(h)
		}
		clear(e.todo.holders)
		for c := range e.todo.classes {
			e.compare(c)
		}
		clear(e.todo.classes)
		if e.todo.ports {
			for _, l := range e.locals {
				e.todo.locals[l] = true
			}
			e.todo.ports = false
		}
		for l := range e.todo.locals {
			e.guard(l)
		}
		clear(e.todo.locals)
	}
}

func (t *todo) any() bool {
	return t.all || t.ports || len(t.networks)+len(t.holders)+len(t.classes)+len(t.locals) > 0
}

// refresh is for a holder whose labels may have changed.
func (e *Engine) refresh(h *holder) {
	e.todo.holders[h] = true
	h.view = nil
	for _, x := range h.classes {
		e.todo.classes[x.class] = true // its namespace's labels are not in its name
	}
	e.lookAgain(h.local)
}

// lookAgain is for an endpoint that other policies may select.
func (e *Engine) lookAgain(l *local) {
	if l == nil {
		return
	}
	e.todo.locals[l] = true
	if l.endpoint == nil {
		for _, d := range e.devs {
			e.todo.locals[d] = true
		}
	}
}

// selected marks the endpoints of this node that a policy selects.
func (e *Engine) selected(p *policy) {
	ns := namespaceIn(p.demand)
	for _, l := range e.locals {
		if e.todo.locals[l] || l.holder == nil || ns != "" && (l.holder.pod == nil || l.holder.pod.Namespace != ns) {
			continue
		}
		if slices.ContainsFunc(l.views(e), p.concerns) {
			e.todo.locals[l] = true
		}
	}
}

// use notes that an expression looks at keys, or does no longer (n is -1).
func (e *Engine) use(x *selector.Expr, n int) {
	if x == nil {
		return
	}
	x.Keys(func(key string) {
		if !unique(key) {
			return
		}
		before := e.special[key]
		e.special[key] += n
		if e.special[key] <= 0 {
			delete(e.special, key)
		}
		if (before > 0) != (e.special[key] > 0) {
			e.todo.all = true
			e.serviceKey(key)
		}
	})
}

// Rows returns the rows of an owner.
func (e *Engine) Rows(owner model.Key) []plan.Row {
	by := plan.By{Key: owner}
	switch owner.Kind {
	case model.KindPod:
		return e.pods[owner].rows(by)
	case model.KindNode:
		rows := e.nodes[owner].rows(by)
		if l := e.locals[owner]; l != nil {
			rows = append(rows, l.rows(by)...)
		}
		return rows
	case model.KindEndpoint:
		return e.locals[owner].rows(by)
	case model.KindService:
		var rows []plan.Row
		if e.foreign {
			for _, a := range e.services[owner] {
				rows = append(rows, &plan.VIP{By: by, Addr: a})
			}
		}
		return rows
	case model.KindHostEndpoint:
		return e.hostRows(by)
	case kindOf(plan.KindGuard):
		return e.deviceRows(by)
	case kindOf(plan.KindIdentity):
		return e.classes[parseID(owner.Name)].rows(by)
	case kindOf(plan.KindPeerSet):
		return e.peerSets[parseID(owner.Name)].rows(by)
	case kindOf(plan.KindPolicySet):
		return e.sets[parseID(owner.Name)].rows(by)
	case kindOf(plan.KindAddress):
		return e.networks.rows(e, by)
	default:
		return nil
	}
}

// kindOf is the kind of the keys that own rows which no single object causes: they own themselves.
func kindOf(k plan.Kind) model.Kind { return model.Kind(k) }

func ownKey(k plan.Kind, name string) model.Key { return model.Key{Kind: kindOf(k), Name: name} }
