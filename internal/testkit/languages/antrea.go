package languages

import (
	"cmp"
	"slices"
	"strings"

	"weft/internal/model"
)

const antreaAPI = "crd.antrea.io/v1beta1"

// antreaPolicy is a ClusterNetworkPolicy or, in a namespace, a NetworkPolicy.
type antreaPolicy struct {
	meta
	Spec struct {
		Tier      string       `json:"tier,omitempty"`
		Priority  float64      `json:"priority"`
		AppliedTo []antreaPeer `json:"appliedTo,omitempty"`
		Ingress   []antreaRule `json:"ingress,omitempty"`
		Egress    []antreaRule `json:"egress,omitempty"`
	} `json:"spec"`
}

type antreaRule struct {
	Name      string           `json:"name"`
	Action    string           `json:"action"`
	AppliedTo []antreaPeer     `json:"appliedTo,omitempty"`
	From      []antreaPeer     `json:"from,omitempty"`
	To        []antreaPeer     `json:"to,omitempty"`
	Ports     []antreaPort     `json:"ports,omitempty"`
	Protocols []antreaProtocol `json:"protocols,omitempty"`
}

// antreaPeer selects pods and others; also in appliedTo and in groups.
type antreaPeer struct {
	PodSelector       *labelSelector    `json:"podSelector,omitempty"`
	NamespaceSelector *labelSelector    `json:"namespaceSelector,omitempty"`
	Namespaces        *antreaNamespaces `json:"namespaces,omitempty"`
	IPBlock           *ipBlock          `json:"ipBlock,omitempty"`
	NodeSelector      *labelSelector    `json:"nodeSelector,omitempty"`
	Group             string            `json:"group,omitempty"`
	Account           *antreaAccount    `json:"serviceAccount,omitempty"`
}

type antreaNamespaces struct {
	Match      string   `json:"match,omitempty"`
	SameLabels []string `json:"sameLabels,omitempty"`
}

type antreaAccount struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
}

type antreaPort struct {
	Protocol string `json:"protocol,omitempty"`
	Port     any    `json:"port,omitempty"`
	EndPort  int    `json:"endPort,omitempty"`
	Source   int    `json:"sourcePort,omitempty"`
	SourceTo int    `json:"sourceEndPort,omitempty"`
}

type antreaProtocol struct {
	ICMP struct {
		Type *int `json:"icmpType,omitempty"`
	} `json:"icmp"`
}

// antreaTier is a Tier.
type antreaTier struct {
	meta
	Spec struct {
		Priority int `json:"priority"`
	} `json:"spec"`
}

// antreaGroup is a ClusterGroup or, in a namespace, a Group.
type antreaGroup struct {
	meta
	Spec struct {
		PodSelector       *labelSelector    `json:"podSelector,omitempty"`
		NamespaceSelector *labelSelector    `json:"namespaceSelector,omitempty"`
		IPBlocks          []*ipBlock        `json:"ipBlocks,omitempty"`
		Service           map[string]string `json:"serviceReference,omitempty"`
		Children          []string          `json:"childGroups,omitempty"`
	} `json:"spec"`
}

// antrea are Antrea's objects of a cluster, with its NetworkPolicies.
type antrea struct {
	netpols  kubernetes
	tier     *antreaTier
	groups   []*antreaGroup
	policies []*antreaPolicy
}

func newAntrea(c *Cluster) policies {
	k := &antrea{netpols: c.netpols(2, "networking.k8s.io/v1", "NetworkPolicy")}
	k.tier = &antreaTier{meta: head(antreaAPI, "Tier", "", "own")}
	k.tier.Spec.Priority = pick(c.dice, 20, 120, 230)
	for _, ns := range []string{"", "a", "b"} {
		pods, blocks := c.antreaGroup(ns, "pods"), c.antreaGroup(ns, "blocks")
		pods.Spec.PodSelector = c.selector(podWords())
		if c.once(1, 2) && ns == "" {
			pods.Spec.NamespaceSelector = c.selector(nsWords())
		}
		if blocks.Spec.IPBlocks = []*ipBlock{c.ipBlock(), c.ipBlock()}; c.once(1, 3) {
			blocks.Spec.IPBlocks, blocks.Spec.Service = nil, map[string]string{"name": "svc", "namespace": "a"}
			if ns == "b" { // a Group speaks of its own namespace
				blocks.Spec.Service["namespace"] = "b"
			}
		}
		both := c.antreaGroup(ns, "both")
		both.Spec.Children = []string{"pods", "blocks"}
		k.groups = append(k.groups, pods, blocks, both)
	}
	for i := range 1 + c.IntN(5) {
		k.policies = append(k.policies, c.antreaPolicy(i))
	}
	return k
}

func (c *Cluster) antreaGroup(ns, name string) *antreaGroup {
	g := &antreaGroup{meta: head(antreaAPI, "ClusterGroup", ns, name)}
	if ns != "" {
		g.Kind = "Group"
	}
	return g
}

func (c *Cluster) antreaPolicy(i int) *antreaPolicy {
	p := &antreaPolicy{meta: head(antreaAPI, "ClusterNetworkPolicy", "", numbered(i))}
	if c.once(1, 3) {
		p.Kind, p.Metadata.Namespace = "NetworkPolicy", pick(c.dice, namespaces()...)
	}
	p.Metadata.Created = pick(c.dice, "2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z")
	p.Spec.Tier = pick(c.dice, "", "", "application", "emergency", "securityops", "Platform", "own", "baseline")
	p.Spec.Priority = pick(c.dice, 1.0, 5, 5, 5.5)
	each := c.once(1, 4)
	if !each {
		p.Spec.AppliedTo = c.antreaApplied(p)
	}
	rules := func(in bool) []antreaRule {
		return some(c.dice, 3, func() antreaRule {
			r := c.antreaRule(p, in)
			if each {
				r.AppliedTo = c.antreaApplied(p)
				if slices.ContainsFunc(r.AppliedTo, func(x antreaPeer) bool { return x.NodeSelector != nil }) {
					r.AppliedTo = []antreaPeer{{PodSelector: &labelSelector{}}}
				}
			}
			return r
		})
	}
	p.Spec.Ingress, p.Spec.Egress = rules(true), rules(false)
	if each && len(p.Spec.Ingress)+len(p.Spec.Egress) == 0 {
		p.Spec.AppliedTo = c.antreaApplied(p)
	}
	names := map[bool]string{true: "in", false: "out"}
	for in, list := range map[bool][]antreaRule{true: p.Spec.Ingress, false: p.Spec.Egress} {
		for i := range list {
			list[i].Name = names[in] + numbered(i) // must differ
		}
	}
	return p
}

func (c *Cluster) antreaApplied(p *antreaPolicy) []antreaPeer {
	one := func() antreaPeer {
		switch n := c.IntN(8); {
		case n == 0:
			return antreaPeer{Group: pick(c.dice, "pods", "both")}
		case n == 1 && p.Metadata.Namespace == "":
			return antreaPeer{NodeSelector: c.selector(nodeWords())}
		case n == 2:
			return antreaPeer{Account: &antreaAccount{"robot", cmp.Or(p.Metadata.Namespace, "a")}}
		case n < 5 && p.Metadata.Namespace == "":
			return antreaPeer{PodSelector: c.selector(podWords()), NamespaceSelector: c.selector(nsWords())}
		}
		return antreaPeer{PodSelector: c.selector(podWords())}
	}
	return append(some(c.dice, 1, one), one())
}

func (c *Cluster) antreaRule(p *antreaPolicy, in bool) antreaRule {
	r := antreaRule{Action: pick(c.dice, "Allow", "Allow", "Drop", "Reject", "Pass")}
	if r.Action == "Pass" && p.Spec.Tier == "baseline" {
		r.Action = "Drop"
	}
	peers := some(c.dice, 2, func() antreaPeer {
		switch n := c.IntN(11); {
		case n < 2:
			return antreaPeer{IPBlock: c.ipBlock()}
		case n == 2:
			return antreaPeer{NodeSelector: c.selector(nodeWords())}
		case n == 3:
			return antreaPeer{Group: pick(c.dice, "pods", "blocks", "both")}
		case n == 4:
			return antreaPeer{Account: &antreaAccount{"robot", pick(c.dice, namespaces()...)}}
		case n == 5 && p.Metadata.Namespace == "":
			x := antreaPeer{Namespaces: &antreaNamespaces{Match: "Self"}}
			if c.once(1, 2) {
				x.Namespaces = &antreaNamespaces{SameLabels: []string{"env", "team"}[c.IntN(2):]}
			}
			if c.once(1, 2) {
				x.PodSelector = c.selector(podWords())
			}
			return x
		case n < 8:
			return antreaPeer{PodSelector: c.selector(podWords()), NamespaceSelector: c.selector(nsWords())}
		}
		return antreaPeer{PodSelector: c.selector(podWords())}
	})
	if r.To = peers; in {
		r.From, r.To = peers, nil
	}
	switch c.IntN(4) {
	case 0:
		r.Ports = append(some(c.dice, 1, c.antreaPort), c.antreaPort())
	case 1:
		x := antreaProtocol{}
		if c.once(2, 3) {
			x.ICMP.Type = pick(c.dice, ptr(8), ptr(13), ptr(128))
		}
		r.Protocols = []antreaProtocol{x}
		r.Ports = some(c.dice, 1, c.antreaPort)
	}
	return r
}

func ptr[T any](v T) *T { return &v }

func (c *Cluster) antreaPort() antreaPort {
	p := antreaPort{Protocol: pick(c.dice, "", "TCP", "UDP", "SCTP")}
	switch c.IntN(5) {
	case 0:
	case 1:
		p.Port = pick(c.dice, "http", "dns")
	default:
		first, last := c.portRange()
		p.Port, p.EndPort = first, last
	}
	if c.once(1, 5) {
		p.Source, p.SourceTo = 1000, pick(c.dice, 0, 2000)
	}
	return p
}

func (k *antrea) objects() []any {
	return with(with(append(k.netpols.objects(), k.tier), k.groups), k.policies)
}

// priority is where a tier stands among Antrea's tiers.
func (k *antrea) priority(tier string) int {
	switch strings.ToLower(tier) {
	case "emergency":
		return 50
	case "securityops":
		return 100
	case "platform":
		return 200
	case "own":
		return k.tier.Spec.Priority
	case "baseline":
		return 253
	}
	return 250
}

// decide: Antrea's policies by tier, priority and age, then NetworkPolicies, then those of the baseline tier. Pass goes to NetworkPolicies.
func (k *antrea) decide(s *side) model.Verdict {
	all := slices.SortedFunc(slices.Values(k.policies), func(a, b *antreaPolicy) int {
		return cmp.Or(cmp.Compare(k.priority(a.Spec.Tier), k.priority(b.Spec.Tier)), cmp.Compare(a.Spec.Priority, b.Spec.Priority),
			cmp.Compare(a.Metadata.Created, b.Metadata.Created), cmp.Compare(a.Metadata.Name, b.Metadata.Name), cmp.Compare(a.Metadata.Namespace, b.Metadata.Namespace))
	})
	first := func(baseline bool) model.Verdict {
		for _, p := range all {
			if (p.Spec.Tier == "baseline") != baseline {
				continue
			}
			if action := k.action(s, p); action != "" {
				return map[string]model.Verdict{"Allow": model.VerdictAllow, "Drop": model.VerdictDeny, "Reject": model.VerdictReject, "Pass": model.VerdictNone}[action]
			}
		}
		return model.VerdictNone
	}
	if s.own() { // a node always reaches its own pods
		return model.VerdictNone
	}
	return cmp.Or(first(false), k.netpols.decide(s), first(true))
}

// action is that of a policy's first rule that matches; "" if none does.
func (k *antrea) action(s *side, p *antreaPolicy) string {
	rules := p.Spec.Egress
	if s.in {
		rules = p.Spec.Ingress
	}
	for _, r := range rules {
		applied := slices.ContainsFunc(append(p.Spec.AppliedTo, r.AppliedTo...), func(x antreaPeer) bool {
			return (x.NodeSelector == nil) == (s.self.pod != nil) && k.peer(s, p.Metadata.Namespace, &x, s.self, true)
		})
		peers := slices.Concat(r.From, r.To)
		if applied && (len(peers) == 0 || slices.ContainsFunc(peers, func(x antreaPeer) bool { return k.peer(s, p.Metadata.Namespace, &x, s.other, false) })) && r.port(s) {
			return r.Action
		}
	}
	return ""
}

// peer says whether an end is selected by a policy of a namespace; "": of the cluster.
func (k *antrea) peer(s *side, ns string, p *antreaPeer, e end, subject bool) bool {
	switch {
	case p.IPBlock != nil:
		return p.IPBlock.matches(e.addr)
	case p.NodeSelector != nil:
		return e.node != nil && p.NodeSelector.matches(e.node.Labels)
	case p.Group != "":
		mine := !subject || ns == "" || e.pod != nil && e.pod.Namespace == ns // a policy of a namespace is about its pods alone
		return mine && k.member(s.Cluster, ns, p.Group, e, subject)
	case e.pod == nil:
		return false
	case p.Account != nil:
		return e.pod.Account == p.Account.Name && e.pod.Namespace == p.Account.Namespace
	case p.Namespaces != nil && !p.Namespaces.match(s, e.pod):
		return false
	}
	return pods(s.Cluster, ns, p.PodSelector, p.NamespaceSelector, p.Namespaces != nil, e.pod)
}

// pods says whether a pod is selected. Without a selector of namespaces those of a namespaced object are its own.
func pods(c *Cluster, ns string, pod, namespace *labelSelector, elsewhere bool, p *model.Pod) bool {
	switch {
	case namespace != nil && !namespace.matches(c.namespaceOf(p)),
		namespace == nil && !elsewhere && ns != "" && p.Namespace != ns:
		return false
	}
	return pod == nil || pod.matches(p.Labels)
}

// match says whether a pod is in one of the namespaces that are meant, seen from the policy's own side.
func (n *antreaNamespaces) match(s *side, p *model.Pod) bool {
	if s.self.pod == nil { // a node is in none
		return false
	}
	if n.Match == "Self" {
		return p.Namespace == s.self.pod.Namespace
	}
	mine, theirs := s.namespaceOf(s.self.pod), s.namespaceOf(p)
	return !slices.ContainsFunc(n.SameLabels, func(k string) bool {
		a, ok := mine[k]
		b, there := theirs[k]
		return !ok || !there || a != b
	})
}

// member says whether an end is in a group. Blocks are nobody that a policy is applied to.
func (k *antrea) member(c *Cluster, ns, name string, e end, subject bool) bool {
	i := slices.IndexFunc(k.groups, func(g *antreaGroup) bool { return g.Metadata.Name == name && g.Metadata.Namespace == ns })
	g := k.groups[i]
	switch {
	case g.Spec.Children != nil:
		return slices.ContainsFunc(g.Spec.Children, func(child string) bool { return k.member(c, ns, child, e, subject) })
	case g.Spec.IPBlocks != nil:
		return !subject && slices.ContainsFunc(g.Spec.IPBlocks, func(b *ipBlock) bool { return b.matches(e.addr) })
	case g.Spec.Service != nil:
		return e.pod != nil && c.behind(g.Spec.Service["namespace"], g.Spec.Service["name"], e.addr)
	}
	return e.pod != nil && pods(c, ns, g.Spec.PodSelector, g.Spec.NamespaceSelector, false, e.pod)
}

func (r *antreaRule) port(s *side) bool {
	return len(r.Ports)+len(r.Protocols) == 0 || slices.ContainsFunc(r.Ports, func(p antreaPort) bool { return p.matches(s) }) ||
		slices.ContainsFunc(r.Protocols, func(p antreaProtocol) bool {
			return (s.Proto == model.ProtoICMP || s.Proto == model.ProtoICMPv6) && (p.ICMP.Type == nil || *p.ICMP.Type == int(s.DstPort>>8))
		})
}

func (p *antreaPort) matches(s *side) bool {
	n := netpolPort{Protocol: p.Protocol, Port: p.Port, EndPort: p.EndPort}
	return n.matches(s) && (p.Source == 0 || within(s.SrcPort, p.Source, p.SourceTo))
}
