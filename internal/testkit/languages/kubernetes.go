package languages

import (
	"slices"

	"weft/internal/model"
)

// netpol is a NetworkPolicy, or an ApplicationNetworkPolicy of AWS.
type netpol struct {
	meta
	Spec struct {
		PodSelector *labelSelector `json:"podSelector"`
		PolicyTypes []string       `json:"policyTypes,omitempty"`
		Ingress     []netpolRule   `json:"ingress,omitzero"`
		Egress      []netpolRule   `json:"egress,omitzero"`
	} `json:"spec"`
}

type netpolRule struct {
	From  []netpolPeer `json:"from,omitzero"`
	To    []netpolPeer `json:"to,omitzero"`
	Ports []netpolPort `json:"ports,omitzero"`
}

type netpolPeer struct {
	PodSelector       *labelSelector `json:"podSelector,omitempty"`
	NamespaceSelector *labelSelector `json:"namespaceSelector,omitempty"`
	IPBlock           *ipBlock       `json:"ipBlock,omitempty"`
	DomainNames       []string       `json:"domainNames,omitempty"` // AWS only
}

type netpolPort struct {
	Protocol string `json:"protocol,omitempty"`
	Port     any    `json:"port,omitempty"` // number or name
	EndPort  int    `json:"endPort,omitempty"`
}

// kubernetes are the NetworkPolicies of a cluster, and what is in one set with them.
type kubernetes []*netpol

func newKubernetes(c *Cluster) policies { return c.netpols(5, "networking.k8s.io/v1", "NetworkPolicy") }

func (c *Cluster) netpols(n int, apiVersion, kind string) (out kubernetes) {
	for i := range 1 + c.IntN(n) {
		p := &netpol{meta: head(apiVersion, kind, pick(c.dice, namespaces()...), numbered(c.netpolCount+i))}
		p.Spec.PodSelector = c.selector(podWords())
		p.Spec.PolicyTypes = pick(c.dice, nil, nil, []string{"Ingress"}, []string{"Egress"}, []string{"Ingress", "Egress"})
		rules := func(in bool) (out []netpolRule) {
			return some(c.dice, 3, func() netpolRule { return c.netpolRule(in, p.aws()) })
		}
		p.Spec.Ingress, p.Spec.Egress = rules(true), rules(false)
		out = append(out, p)
	}
	c.netpolCount += len(out)
	return out
}

func (p *netpol) aws() bool { return p.Kind == "ApplicationNetworkPolicy" }

func (c *Cluster) netpolRule(in, aws bool) (r netpolRule) {
	peers := some(c.dice, 2, func() netpolPeer {
		switch c.IntN(6) {
		case 0:
			return netpolPeer{NamespaceSelector: c.selector(nsWords())}
		case 1:
			return netpolPeer{NamespaceSelector: c.selector(nsWords()), PodSelector: c.selector(podWords())}
		case 2, 3:
			return netpolPeer{IPBlock: c.ipBlock()}
		case 4:
			if aws && !in {
				return netpolPeer{DomainNames: []string{"example.com"}}
			}
		}
		return netpolPeer{PodSelector: c.selector(podWords())}
	})
	if r.To = peers; in {
		r.From, r.To = peers, nil
	}
	if c.once(1, 2) {
		r.Ports = some(c.dice, 2, c.netpolPort)
	}
	return r
}

func (c *Cluster) netpolPort() netpolPort {
	p := netpolPort{Protocol: pick(c.dice, "", "TCP", "TCP", "UDP", "SCTP")}
	switch c.IntN(5) {
	case 0:
	case 1:
		p.Port = pick(c.dice, "http", "dns")
	default:
		first, last := c.portRange()
		p.Port, p.EndPort = first, last
	}
	return p
}

func (k kubernetes) objects() []any {
	return with(nil, k)
}

// decide: what no policy selects is open; what some policy selects is closed but for what one of them allows.
func (k kubernetes) decide(s *side) model.Verdict {
	if s.own() || s.self.pod == nil {
		return model.VerdictNone
	}
	verdict := model.VerdictNone
	for _, p := range k {
		if p.Metadata.Namespace != s.self.pod.Namespace || !p.about(s.in) || !p.Spec.PodSelector.matches(s.self.pod.Labels) {
			continue
		}
		verdict = model.VerdictDeny
		rules := p.Spec.Egress
		if s.in {
			rules = p.Spec.Ingress
		}
		for _, r := range rules {
			if r.peers(s, p.Metadata.Namespace) && r.ports(s) {
				return model.VerdictAllow
			}
		}
	}
	return verdict
}

// about says whether a policy is about a direction.
func (p *netpol) about(in bool) bool {
	if types := p.Spec.PolicyTypes; len(types) > 0 {
		return slices.Contains(types, map[bool]string{true: "Ingress", false: "Egress"}[in])
	}
	switch egress := len(p.Spec.Egress) > 0; {
	case !in:
		return egress
	case p.aws(): // the directions that there are rules of
		return len(p.Spec.Ingress) > 0 || !egress
	}
	return true
}

func (r *netpolRule) peers(s *side, namespace string) bool {
	peers := slices.Concat(r.From, r.To)
	return len(peers) == 0 || slices.ContainsFunc(peers, func(p netpolPeer) bool {
		switch {
		case p.IPBlock != nil:
			return p.IPBlock.matches(s.other.addr)
		case p.DomainNames != nil, s.other.pod == nil: // names are nobody's yet
			return false
		case p.NamespaceSelector == nil && s.other.pod.Namespace != namespace:
			return false
		case p.NamespaceSelector != nil && !p.NamespaceSelector.matches(s.namespaceOf(s.other.pod)):
			return false
		}
		return p.PodSelector == nil || p.PodSelector.matches(s.other.pod.Labels)
	})
}

func (r *netpolRule) ports(s *side) bool {
	return len(r.Ports) == 0 || slices.ContainsFunc(r.Ports, func(p netpolPort) bool { return p.matches(s) })
}

func (p *netpolPort) matches(s *side) bool {
	want := map[string]int{"": model.ProtoTCP, "TCP": model.ProtoTCP, "UDP": model.ProtoUDP, "SCTP": model.ProtoSCTP}[p.Protocol]
	if s.Proto != want {
		return false
	}
	switch port := p.Port.(type) {
	case nil:
		return true
	case string:
		return s.names(port)
	default:
		return within(s.DstPort, numberOf(port), p.EndPort)
	}
}

// fqdnPolicy is GKE's FQDNNetworkPolicy, of which no name is known to be anybody's: all that it does is isolate.
type fqdnPolicy struct {
	meta
	Spec struct {
		PodSelector *labelSelector `json:"podSelector"`
		Egress      []fqdnRule     `json:"egress"`
	} `json:"spec"`
}

type fqdnRule struct {
	Matches []map[string]string `json:"matches"`
	Ports   []netpolPort        `json:"ports,omitempty"`
}

// gke are a cluster's FQDNNetworkPolicies with its NetworkPolicies.
type gke struct {
	netpols kubernetes
	fqdns   []*fqdnPolicy
}

func newGKE(c *Cluster) policies {
	g := gke{netpols: c.netpols(3, "networking.k8s.io/v1", "NetworkPolicy")}
	for i := range c.IntN(3) {
		p := &fqdnPolicy{meta: head("networking.gke.io/v1alpha1", "FQDNNetworkPolicy", pick(c.dice, namespaces()...), numbered(i))}
		p.Spec.PodSelector = c.selector(podWords())
		p.Spec.Egress = append([]fqdnRule{}, some(c.dice, 2, func() fqdnRule {
			r := fqdnRule{Matches: []map[string]string{{"name": "example.com"}, {"pattern": "*.example.com"}}}
			if c.once(1, 2) {
				r.Ports = []netpolPort{{Protocol: "TCP", Port: 443}}
			}
			return r
		})...)
		g.fqdns = append(g.fqdns, p)
	}
	return g
}

func (g gke) objects() []any {
	return with(g.netpols.objects(), g.fqdns)
}

func (g gke) decide(s *side) model.Verdict {
	v := g.netpols.decide(s)
	if v == model.VerdictNone && !s.in && s.self.pod != nil && slices.ContainsFunc(g.fqdns, func(p *fqdnPolicy) bool {
		return p.Metadata.Namespace == s.self.pod.Namespace && p.Spec.PodSelector.matches(s.self.pod.Labels)
	}) {
		return model.VerdictDeny
	}
	return v
}
