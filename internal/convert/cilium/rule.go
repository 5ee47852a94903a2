package cilium

import (
	"encoding/json"
	"fmt"
	"slices"

	"weft/internal/model"
	"weft/internal/selector"
)

// rule is one element of ingress, ingressDeny, egress or egressDeny while it is read.
type rule struct {
	*converter
	at    string // its path
	index int
	to    bool // egress
	deny  bool
	node  bool // the policy's subject is nodes
	log   *model.Log

	bad   faults
	peers []model.Peer // nil: none is named. Empty: nothing
	hosts bool
	ports []portEntry // nil: no toPorts
	icmps []model.L4  // nil: no icmps
	// narrow is a field that lets through less than the rule's peers and ports say, and that weft does not enforce or know. If the
	// policy does not isolate, that the rule allows nothing is not enough: what it should have narrowed must be closed.
	narrow string
	// requires are what every pod must be besides (fromRequires, toRequires); nil for one that was not understood.
	requires []*selector.Expr
	required []string // their paths
}

// portEntry is one element of toPorts.
type portEntry struct {
	at     string
	proto  []model.L4
	narrow string // as in rule
}

func (r *rule) direction() string {
	if r.to {
		return "to"
	}
	return "from"
}

// read reads a rule.
func (r *rule) read(raw json.RawMessage) {
	f := r.fields(r.at, raw, &r.bad.peers)
	if r.bad.peers != "" {
		r.bad.ports = r.bad.peers // nothing of it is known
		return
	}
	r.readPeers(f)
	r.readRequires(f)
	r.readPorts(f)
	r.readICMPs(f)
	if !r.deny {
		r.readAuth(f)
	}
	if r.peers == nil && (r.ports == nil && r.icmps == nil || len(r.requires) > 0) {
		r.peers = []model.Peer{} // no peers are all peers only if ports are said
	}
	unknown := ""
	if f.rest(&unknown); unknown == "" {
		return
	}
	note(&r.bad.rest, unknown)
	note(&r.narrow, unknown)
	if len(r.peers) == 0 {
		note(&r.bad.peers, unknown) // it may be the peers
	}
}

// readRequires reads fromRequires or toRequires (Cilium before 1.19).
func (r *rule) readRequires(f *fields) {
	name := r.direction() + "Requires"
	var bad string
	items, _ := f.list(name, &bad)
	if bad != "" {
		note(&r.bad.rest, bad)
		r.requires, r.required = append(r.requires, nil), append(r.required, f.path(name))
	}
	if len(items) > 0 && r.deny {
		// It limits what all policies deny. More is denied without it.
		r.missing(f.path(name))
		note(&r.bad.rest, f.path(name))
	}
	for i, raw := range items {
		at := fmt.Sprintf("%s[%d]", f.path(name), i)
		var bad faults
		var e *selector.Expr
		if s := r.readSelector(at, raw, &bad); s != nil {
			v := viewPods(r.ref.Namespace)
			v.reserved = false
			p, _ := r.match(at, s, v, &bad)
			e = p.Select
		}
		if field := bad.first(); field != "" {
			note(&r.bad.rest, field)
			e = nil
		}
		r.requires, r.required = append(r.requires, e), append(r.required, at)
	}
}

// requirements are the rules that deny to or from every pod that is not what the rule requires. What is no pod is not looked at.
func (r *rule) requirements() []model.Rule {
	if r.deny {
		return nil
	}
	var out []model.Rule
	for i, e := range r.requires {
		pods := selector.Equal(selector.Kind, selector.KindPod)
		out = append(out, model.Rule{
			Index: r.index, Field: r.required[i], Verdict: model.VerdictDeny, Log: r.log,
			Peers: []model.Peer{{Select: pods, NotSelect: e}},
		})
	}
	return out
}

// readAuth reads authentication.
func (r *rule) readAuth(f *fields) {
	raw := f.raw("authentication")
	if raw == nil {
		return
	}
	at := f.path("authentication")
	var in struct {
		Mode string `json:"mode"`
	}
	r.decode(at, raw, &in, &r.bad.rest, &r.bad.rest)
	switch in.Mode {
	case "disabled":
	case "required", "test-always-fail":
		r.missing(at)
		note(&r.narrow, at)
	default:
		r.mistake(&r.bad.rest, at+".mode", "%q is not disabled, required or test-always-fail", in.Mode)
		note(&r.narrow, at)
	}
}

// rules returns what the rule became: one rule of the model, or several if only some of its ports are narrowed.
func (r *rule) rules() []model.Rule {
	if r.deny {
		return []model.Rule{r.rule(r.at, r.allPorts(), r.bad.first())}
	}
	whole := r.bad.first()
	if whole == "" {
		whole = r.narrow
	}
	if whole != "" {
		return []model.Rule{r.rule(r.at, r.allPorts(), whole)}
	}
	var out []model.Rule
	plain := slices.DeleteFunc(slices.Clone(r.ports), func(p portEntry) bool { return p.narrow != "" })
	if len(plain) > 0 || len(plain) == len(r.ports) {
		all := *r
		all.ports = plain
		out = append(out, r.rule(r.at, all.allPorts(), ""))
	}
	for _, p := range r.ports {
		if p.narrow != "" {
			out = append(out, r.rule(p.at, p.proto, p.narrow))
		}
	}
	return out
}

// closing are the rules that close what the rule should have narrowed, if the policy does not isolate.
func (r *rule) closing() []model.Rule {
	if r.deny {
		return nil
	}
	closed := *r
	closed.deny = true
	if r.narrow != "" {
		return []model.Rule{closed.rule(r.at, r.allPorts(), r.narrow)}
	}
	var out []model.Rule
	for _, p := range r.ports {
		if p.narrow != "" {
			out = append(out, closed.rule(p.at, p.proto, p.narrow))
		}
	}
	return out
}

// rule makes a rule of the model. Of a part that was not understood it allows nothing, and denies everything.
func (r *rule) rule(field string, proto []model.L4, unsupported string) model.Rule {
	out := model.Rule{
		Index: r.index, Field: field, Verdict: model.VerdictAllow, Peers: r.peers, Hosts: r.hosts, L4: proto, Log: r.log,
		Unsupported: unsupported,
	}
	if r.deny {
		out.Verdict = model.VerdictDeny
	}
	if r.bad.peers != "" {
		out.Peers = nil
		if !r.deny {
			out.Peers = []model.Peer{}
		}
	}
	if r.bad.ports != "" {
		out.L4 = nil
		if !r.deny {
			out.L4 = []model.L4{}
		}
	}
	return out
}

// allPorts is what any of toPorts and icmps says; nil if there is neither.
func (r *rule) allPorts() []model.L4 {
	if r.ports == nil && r.icmps == nil {
		return nil
	}
	out := []model.L4{}
	for _, p := range r.ports {
		out = append(out, p.proto...)
	}
	return append(out, r.icmps...)
}
