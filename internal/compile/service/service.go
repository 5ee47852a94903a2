// Package service says what a Service means on one node: which addresses and ports it has there, and to which of its backends a
// connection to each of them may go. Pure: nothing is kept between two calls.
//
// The rules are those of kube-proxy (KEP-1669 for terminating backends, KEP-2433 and KEP-4444 for hints), one deviation apart:
// a balancer's source ranges that name no prefix of a family let nobody of that family in. docs/design/services.md has them in words.
package service

import (
	"cmp"
	"net/netip"
	"slices"

	"weft/internal/model"
	"weft/internal/netset"
)

// zoneLabel says in which zone a node is (Kubernetes well-known labels).
const zoneLabel = "topology.kubernetes.io/zone"

// Kind is why a service has an address.
type Kind string

// The kinds.
const (
	ClusterIP  Kind = "ClusterIP"
	ExternalIP Kind = "ExternalIP"
	Balancer   Kind = "LoadBalancer"
	NodePort   Kind = "NodePort"
)

// Frontend is one address and port of a service on a node, and what is behind it.
type Frontend struct {
	Kind     Kind
	Addr     netip.Addr // unspecified, of the frontend's family, for NodePort: every address of the node
	Protocol string     // "tcp", "udp" or "sctp"
	Port     uint16
	Name     string // of the service's port
	Inside   Choice // for pods and processes of the cluster's nodes
	Outside  Choice // for all others
	Affinity int    // seconds that a client keeps its backend; 0: it does not
	// Sources are who may use it, if Limited.
	Limited bool
	Sources []netip.Prefix
}

// Choice is where a connection goes.
type Choice struct {
	Backends []netip.AddrPort // in order; each as likely as any other
	Drop     bool             // without backends: the node has none, others have. Else it is refused.
}

// Candidate is a backend of a service's port, and why connections do not go there; "" where they do.
type Candidate struct {
	model.Backend
	Port           uint16
	Cluster, Local string // by traffic policy
}

// Frontends returns what a service is on the node, in order of families and ports. slices are its EndpointSlices. A service that others serve, or that
// has no address, is nothing.
func Frontends(s model.Snapshot, node string, svc *model.Service, slices []*model.Backends) []Frontend {
	if svc.Elsewhere != "" || svc.Type == "ExternalName" {
		return nil
	}
	var out []Frontend
	for _, f := range netset.Families() {
		own := netset.First(svc.Addrs, f)
		if !own.IsValid() {
			continue // a family that the service does not have
		}
		for _, p := range svc.Ports {
			all := Candidates(s, node, p.Port, f, slices)
			cluster, local := choose(all, Candidate.cluster), choose(all, Candidate.local)
			front := func(k Kind, a netip.Addr, port uint16, localOnly bool) Frontend {
				fr := Frontend{Kind: k, Addr: a, Protocol: p.Protocol, Port: port, Name: p.Name, Inside: cluster, Outside: cluster, Affinity: svc.Affinity}
				if localOnly {
					fr.Outside = local
				}
				return fr
			}
			fr := front(ClusterIP, own, p.Port.Port, svc.InternalLocal)
			fr.Inside = fr.Outside // who comes from outside is routed there, and no policy speaks of that
			out = append(out, fr)
			for _, a := range svc.ExternalIPs {
				if netset.Of(a) == f {
					out = append(out, front(ExternalIP, a, p.Port.Port, svc.ExternalLocal))
				}
			}
			for _, a := range svc.Balancers {
				if netset.Of(a) != f {
					continue
				}
				fr := front(Balancer, a, p.Port.Port, svc.ExternalLocal)
				fr.Limited = svc.SourceRanges != nil
				for _, r := range svc.SourceRanges {
					if netset.Of(r.Addr()) == f {
						fr.Sources = append(fr.Sources, r)
					}
				}
				out = append(out, fr)
			}
			if p.NodePort != 0 {
				out = append(out, front(NodePort, netset.Default(f).Addr(), p.NodePort, svc.ExternalLocal))
			}
		}
	}
	return out
}

// State is "ready", "terminating" (and still serving) or "not ready".
func (c Candidate) State() string {
	return [...]string{notReady, "terminating", "ready"}[standing(c.Backend)]
}

func (c Candidate) cluster() string { return c.Cluster }
func (c Candidate) local() string   { return c.Local }

// choose takes the candidates that nothing speaks against.
func choose(all []Candidate, against func(Candidate) string) Choice {
	var out Choice
	for _, c := range all {
		if against(c) == "" {
			out.Backends = append(out.Backends, netip.AddrPortFrom(c.Addr, c.Port))
		}
		out.Drop = out.Drop || standing(c.Backend) > 0
	}
	if out.Backends != nil {
		out.Drop = false
	}
	return out
}

// standing is higher for a backend that is preferred: 2 is ready, 1 is going but still serves, 0 is not to be used.
func standing(b model.Backend) int {
	switch {
	case b.Ready:
		return 2
	case b.Serving && b.Terminating:
		return 1
	}
	return 0
}

// Candidates returns the backends of a service's port in a family, in order, and says of each whether connections on the node go there.
func Candidates(s model.Snapshot, node string, port model.Port, f netset.Family, of []*model.Backends) []Candidate {
	// While a pod moves from one slice to another, it is in both: the better news counts, else the first in the order of names.
	of = slices.SortedFunc(slices.Values(of), func(a, b *model.Backends) int { return cmp.Compare(a.Name, b.Name) })
	var out []Candidate
	for _, sl := range of {
		for _, p := range sl.Ports {
			if sl.Family != f || p.Port == 0 || p.Name != port.Name || p.Protocol != port.Protocol {
				continue
			}
			for _, b := range sl.Backends {
				out = append(out, Candidate{Backend: b, Port: p.Port})
			}
		}
	}
	slices.SortStableFunc(out, func(a, b Candidate) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Port, b.Port), cmp.Compare(standing(b.Backend), standing(a.Backend)))
	})
	out = slices.CompactFunc(out, func(a, b Candidate) bool { return a.Addr == b.Addr && a.Port == b.Port })
	against(out, node, zoneOf(s, node))
	return out
}

func zoneOf(s model.Snapshot, node string) string {
	if n := model.Get[*model.Node](s, model.NodeKey(node)); n != nil {
		return n.Labels[zoneLabel]
	}
	return ""
}

// What speaks against a backend.
const (
	notReady    = "not ready"
	terminating = "terminating, and others are ready"
	elsewhere   = "on another node"
	otherNode   = "hinted for other nodes"
	otherZone   = "hinted for other zones"
)

// against says of each candidate what speaks against it.
func against(all []Candidate, node, zone string) {
	best, bestHere := 0, 0
	for _, c := range all {
		best = max(best, standing(c.Backend))
		if c.Node == node {
			bestHere = max(bestHere, standing(c.Backend))
		}
	}
	hinted := hints(all, node, zone)
	for i := range all {
		c := &all[i]
		level := standing(c.Backend)
		switch {
		case level == 0:
			c.Cluster = notReady
		case level < best:
			c.Cluster = terminating
		case level == 2:
			c.Cluster = hinted(*c)
		}
		switch {
		case c.Node != node:
			c.Local = elsewhere
		case level == 0:
			c.Local = notReady
		case level < bestHere:
			c.Local = terminating
		}
	}
}

// hints returns what the hints say against a ready candidate. They count only if every ready one has them and one is meant for
// us: those of nodes before those of zones.
func hints(all []Candidate, node, zone string) func(Candidate) string {
	for _, h := range []struct {
		of      func(*model.Hints) []string
		us, why string
	}{
		{func(h *model.Hints) []string { return h.Nodes }, node, otherNode},
		{func(h *model.Hints) []string { return h.Zones }, zone, otherZone},
	} {
		every, ours := true, false
		for _, c := range all {
			if c.Ready {
				every = every && c.Hints != nil && len(h.of(c.Hints)) > 0
				ours = ours || c.Hints != nil && slices.Contains(h.of(c.Hints), h.us)
			}
		}
		if every && ours {
			return func(c Candidate) string {
				if slices.Contains(h.of(c.Hints), h.us) {
					return ""
				}
				return h.why
			}
		}
	}
	return func(Candidate) string { return "" }
}
