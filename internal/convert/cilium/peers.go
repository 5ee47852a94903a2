package cilium

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"

	"weft/internal/convert/object"
	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/selector"
)

// peerList is one of a rule's lists of peers, of which all but one must be empty.
type peerList struct {
	name  string // "Endpoints", without "from" or "to"
	allow bool   // only in rules that allow
	to    bool   // only in egress
	read  func(r *rule, at string, raw json.RawMessage) []model.Peer
	// An empty list is taken as absent, and not as nothing, by Cilium.
	optional bool
}

func peerLists() []peerList {
	return []peerList{
		{name: "Endpoints", read: (*rule).endpoint},
		{name: "Nodes", read: (*rule).nodePeer},
		{name: "Entities", read: (*rule).entity},
		{name: "CIDR", read: (*rule).cidr},
		{name: "CIDRSet", read: (*rule).cidrRule},
		{name: "FQDNs", allow: true, to: true, read: (*rule).fqdn},
		{name: "Services", to: true, read: (*rule).service, optional: true},
		{name: "Groups", read: (*rule).cloudGroup, optional: true},
	}
}

// readPeers reads the lists of peers. Peers is nil if there is none; it is empty if there is one that is empty, which
// matches nothing whatever the others say.
func (r *rule) readPeers(f *fields) {
	var used []string
	empty := false
	for _, l := range peerLists() {
		if l.allow && r.deny || l.to && !r.to {
			continue
		}
		name := r.direction() + l.name
		items, there := f.list(name, &r.bad.peers)
		if !there {
			continue
		}
		if len(items) > 0 {
			used = append(used, name)
		} else if !l.optional || !r.deny {
			// Where Cilium takes the list as absent, everybody would be meant: that may be denied, and not allowed.
			empty = true
		}
		for i, raw := range items {
			r.peers = append(r.peers, l.read(r, fmt.Sprintf("%s[%d]", f.path(name), i), raw)...)
		}
	}
	if len(used) > 1 {
		r.mistake(&r.bad.rest, r.at, "%s cannot be in one rule", strings.Join(used, " and "))
	}
	if empty {
		r.peers = []model.Peer{}
	} else if len(used) > 0 && r.peers == nil {
		r.peers = []model.Peer{} // all of them are of what does not exist
	}
}

// endpoint reads a label selector of fromEndpoints or toEndpoints.
func (r *rule) endpoint(at string, raw json.RawMessage) []model.Peer {
	return r.selected(at, raw, viewPods(r.ref.Namespace))
}

// nodePeer reads a label selector of fromNodes or toNodes.
func (r *rule) nodePeer(at string, raw json.RawMessage) []model.Peer {
	r.hosts = true
	return r.selected(at, raw, viewNodes())
}

func (r *rule) selected(at string, raw json.RawMessage, v view) []model.Peer {
	s := r.readSelector(at, raw, &r.bad)
	if s == nil {
		return nil
	}
	p, names := r.match(at, s, v, &r.bad)
	r.hosts = r.hosts || names
	return []model.Peer{p}
}

// entity reads a name of something that has no labels.
func (r *rule) entity(at string, raw json.RawMessage) []model.Peer {
	name, ok := r.text(at, raw, &r.bad.peers)
	if !ok {
		return nil
	}
	kinds := func(kinds ...string) []model.Peer {
		return []model.Peer{{Select: selector.OneOf(selector.Kind, kinds...)}}
	}
	server := model.Peer{Select: selector.Exists(apiServer)}
	switch name {
	case "world":
		return kinds(selector.KindWorld)
	case "world-ipv4", "world-ipv6":
		p := kinds(selector.KindWorld)
		p[0].Nets = []netip.Prefix{netset.Default(worldFamily(name))}
		return p
	case "health", "ingress", "init", "none", "unmanaged": // do not exist here, or anywhere
		return nil
	}
	hosts := r.hosts
	r.hosts = true // all others have nodes in them
	switch name {
	case "all":
		return []model.Peer{{}}
	case "cluster", "cluster-mesh":
		return append(kinds(selector.KindPod, selector.KindHost, selector.KindRemoteNode), server)
	case "host":
		return kinds(selector.KindHost)
	case "remote-node":
		return kinds(selector.KindRemoteNode)
	case "kube-apiserver":
		return []model.Peer{server}
	}
	r.hosts = hosts
	r.mistake(&r.bad.peers, at, "%q is not an entity", name)
	return nil
}

// text reads a word, which may not be null.
func (c *converter) text(at string, raw json.RawMessage, part *string) (s string, ok bool) {
	if absent(raw) {
		c.mistake(part, at, "is null")
		return "", false
	}
	ok = c.decode(at, raw, &s, part, part)
	return s, ok
}

// prefix reads a block, or an address if one may stand alone.
func (c *converter) prefix(part *string, at, s string, alone bool) (netip.Prefix, bool) {
	if a, err := netip.ParseAddr(s); alone && err == nil && a.Zone() == "" && !a.Is4In6() {
		return netset.Host(a), true
	}
	p, err := object.Prefix(at, s)
	if err != nil {
		c.wrap(part, at, err)
		return p, false
	}
	return p, true
}

// cidr reads a block of fromCIDR or toCIDR.
func (r *rule) cidr(at string, raw json.RawMessage) []model.Peer {
	s, ok := r.text(at, raw, &r.bad.peers)
	if !ok {
		return nil
	}
	p, ok := r.prefix(&r.bad.peers, at, s, true)
	if !ok {
		return nil
	}
	return []model.Peer{{Nets: []netip.Prefix{p}, External: true}}
}

// cidrRule reads an element of fromCIDRSet or toCIDRSet.
func (r *rule) cidrRule(at string, raw json.RawMessage) []model.Peer {
	var in struct {
		CIDR     string          `json:"cidr"`
		Except   []string        `json:"except"`
		Group    string          `json:"cidrGroupRef"`
		Selector json.RawMessage `json:"cidrGroupSelector"`
	}
	if !r.decode(at, raw, &in, &r.bad.peers, &r.bad.rest) {
		return nil
	}
	out := model.Peer{External: true}
	n := 0
	if in.CIDR != "" {
		n++
		p, ok := r.prefix(&r.bad.peers, at+".cidr", in.CIDR, false)
		if !ok {
			return nil
		}
		out.Nets = []netip.Prefix{p}
	}
	if in.Group != "" {
		n++
		out.Select = groups(selector.Equal(keyGroupName, in.Group))
	}
	if !absent(in.Selector) {
		n++
		field := at + ".cidrGroupSelector"
		if s := r.readSelector(field, in.Selector, &r.bad); s != nil {
			out.Select = groups(r.groupLabels(field, s, &r.bad))
		}
	}
	if n != 1 {
		r.mistake(&r.bad.peers, at, "needs exactly one of cidr, cidrGroupRef and cidrGroupSelector")
		return nil
	}
	for i, s := range in.Except {
		field := fmt.Sprintf("%s.except[%d]", at, i)
		p, ok := r.prefix(&r.bad.rest, field, s, false)
		switch {
		case !ok:
		case out.Nets != nil && !netset.Covers(out.Nets[0], p):
			r.mistake(&r.bad.rest, field, "%s is not a part of %s", s, in.CIDR)
		default:
			out.NotNets = append(out.NotNets, p)
		}
	}
	return []model.Peer{out}
}

// fqdn reads a DNS name or pattern. It is kept, and matches nothing yet.
func (r *rule) fqdn(at string, raw json.RawMessage) []model.Peer {
	var n dnsName
	if !r.decode(at, raw, &n, &r.bad.peers, &r.bad.rest) {
		return nil
	}
	if why := n.check(); why != "" {
		r.mistake(&r.bad.peers, at, "%s", why)
		return nil
	}
	field := at[:strings.LastIndexByte(at, '[')]
	r.missing(field)
	note(&r.bad.rest, field)
	var names []string
	for _, s := range []string{n.MatchName, n.MatchPattern} {
		if s != "" {
			names = append(names, strings.ToLower(s))
		}
	}
	return []model.Peer{{Names: names, External: true}}
}

// service reads an element of toServices.
func (r *rule) service(at string, raw json.RawMessage) []model.Peer {
	var in struct {
		Service *struct {
			Name      string `json:"serviceName"`
			Namespace string `json:"namespace"`
		} `json:"k8sService"`
		Selector *struct {
			Selector  json.RawMessage `json:"selector"`
			Namespace string          `json:"namespace"`
		} `json:"k8sServiceSelector"`
	}
	if !r.decode(at, raw, &in, &r.bad.peers, &r.bad.rest) {
		return nil
	}
	unknown := func(field string) []model.Peer {
		r.missing(field)
		note(&r.bad.peers, field)
		return nil
	}
	switch {
	case in.Selector != nil: // and not Service, as Cilium does it
		// It would need the labels of services among the facts that an address has.
		field := at + ".k8sServiceSelector"
		if s := r.readSelector(field+".selector", in.Selector.Selector, &r.bad); s != nil {
			r.terms(field+".selector", s, true, &r.bad)
		}
		return unknown(field)
	case in.Service == nil:
		r.mistake(&r.bad.peers, at, "needs k8sService or k8sServiceSelector")
		return nil
	case in.Service.Name == "":
		r.mistake(&r.bad.peers, at+".k8sService.serviceName", "is missing")
		return nil
	case in.Service.Namespace == "": // of any namespace, which no fact says
		return unknown(at + ".k8sService.namespace")
	}
	return []model.Peer{{Select: selector.Exists(selector.Service + in.Service.Namespace + "/" + in.Service.Name)}}
}

// cloudGroup reads an element of fromGroups or toGroups: instances that only the cloud knows.
func (r *rule) cloudGroup(at string, raw json.RawMessage) []model.Peer {
	var in struct {
		AWS *struct {
			Labels map[string]string `json:"labels"`
			IDs    []string          `json:"securityGroupsIds"`
			Names  []string          `json:"securityGroupsNames"`
			Region string            `json:"region"`
		} `json:"aws"`
	}
	r.decode(at, raw, &in, &r.bad.peers, &r.bad.rest)
	r.missing(at)
	note(&r.bad.peers, at)
	return nil
}
