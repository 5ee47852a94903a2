package languages

import (
	"cmp"
	"slices"

	"weft/internal/model"
)

// admin is a cluster-wide policy: ClusterNetworkPolicy of sig-network or AWS, AdminNetworkPolicy or BaselineAdminNetworkPolicy.
type admin struct {
	meta
	Spec struct {
		Tier     string      `json:"tier,omitempty"`
		Priority *int        `json:"priority,omitempty"`
		Subject  adminPods   `json:"subject"`
		Ingress  []adminRule `json:"ingress,omitempty"`
		Egress   []adminRule `json:"egress,omitempty"`
	} `json:"spec"`
	baseline bool
}

// adminPods selects pods, by one of its fields.
type adminPods struct {
	Namespaces *labelSelector `json:"namespaces,omitempty"`
	Pods       *struct {
		NamespaceSelector *labelSelector `json:"namespaceSelector"`
		PodSelector       *labelSelector `json:"podSelector"`
	} `json:"pods,omitempty"`
}

type adminRule struct {
	Name      string          `json:"name,omitempty"`
	Action    string          `json:"action"`
	From      []adminPeer     `json:"from,omitempty"`
	To        []adminPeer     `json:"to,omitempty"`
	Protocols []adminProtocol `json:"protocols,omitempty"`
	Ports     []adminPort     `json:"ports,omitempty"`
}

type adminPeer struct {
	adminPods
	Nodes    *labelSelector `json:"nodes,omitempty"`
	Networks []string       `json:"networks,omitempty"`
}

// adminProtocol is the newer way to write ports.
type adminProtocol struct {
	TCP   *adminDestination `json:"tcp,omitempty"`
	UDP   *adminDestination `json:"udp,omitempty"`
	SCTP  *adminDestination `json:"sctp,omitempty"`
	Named string            `json:"destinationNamedPort,omitempty"`
}

type adminDestination struct {
	Port *adminRange `json:"destinationPort,omitempty"`
}

type adminRange struct {
	Number int     `json:"number,omitempty"`
	Range  *fromTo `json:"range,omitempty"`
}

type fromTo struct {
	Protocol string `json:"protocol,omitempty"`
	Start    int    `json:"start"`
	End      int    `json:"end"`
}

// adminPort is the older one.
type adminPort struct {
	Number *portNumber `json:"portNumber,omitempty"`
	Range  *fromTo     `json:"portRange,omitempty"`
	Named  string      `json:"namedPort,omitempty"`
}

type portNumber struct {
	Protocol string `json:"protocol,omitempty"`
	Port     int    `json:"port"`
}

// admins are the cluster-wide policies of a cluster, with the policies of namespaces that they come before or after.
type admins struct {
	all    []*admin
	within kubernetes
}

func newSig(c *Cluster) policies {
	a := admins{within: c.netpols(2, "networking.k8s.io/v1", "NetworkPolicy")}
	for i := range c.IntN(4) {
		switch name := numbered(c.IntN(10)*10 + i); c.IntN(3) {
		case 0:
			a.all = append(a.all, c.admin("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy", name))
		default:
			a.all = append(a.all, c.admin("policy.networking.k8s.io/"+pick(c.dice, "v1alpha2", "v1beta1"), "ClusterNetworkPolicy", name))
		}
	}
	if c.once(1, 4) {
		a.all = append(a.all, c.admin("policy.networking.k8s.io/v1alpha1", "BaselineAdminNetworkPolicy", "default"))
	}
	return a
}

func newAWS(c *Cluster) policies {
	a := admins{within: c.netpols(3, "networking.k8s.aws/v1alpha1", "ApplicationNetworkPolicy")}
	for i := range c.IntN(3) {
		a.all = append(a.all, c.admin("networking.k8s.aws/v1alpha1", "ClusterNetworkPolicy", numbered(c.IntN(10)*10+i)))
	}
	return a
}

// old says that a policy is of an API that is written as AdminNetworkPolicy is.
func (p *admin) old() bool { return p.Kind != "ClusterNetworkPolicy" || p.aws() }

func (p *admin) aws() bool { return p.APIVersion == "networking.k8s.aws/v1alpha1" }

func (c *Cluster) admin(apiVersion, kind, name string) *admin {
	p := &admin{meta: head(apiVersion, kind, "", name)}
	p.baseline = kind == "BaselineAdminNetworkPolicy"
	if kind == "ClusterNetworkPolicy" {
		p.Spec.Tier = pick(c.dice, "Admin", "Baseline")
		p.baseline = p.Spec.Tier == "Baseline"
	}
	if kind != "BaselineAdminNetworkPolicy" {
		n := c.IntN(3)
		p.Spec.Priority = &n
	}
	p.Spec.Subject = c.adminPods()
	p.Spec.Ingress = some(c.dice, 3, func() adminRule { return c.adminRule(p, true) })
	p.Spec.Egress = some(c.dice, 3, func() adminRule { return c.adminRule(p, false) })
	return p
}

func (c *Cluster) adminPods() (p adminPods) {
	if c.once(1, 2) {
		p.Namespaces = c.selector(nsWords())
		return p
	}
	p.Pods = &struct {
		NamespaceSelector *labelSelector `json:"namespaceSelector"`
		PodSelector       *labelSelector `json:"podSelector"`
	}{c.selector(nsWords()), c.selector(podWords())}
	return p
}

func (c *Cluster) adminRule(p *admin, in bool) adminRule {
	r := adminRule{Name: pick(c.dice, "", "some name"), Action: pick(c.dice, "Accept", "Deny", "Pass")}
	if r.Action == "Accept" && p.Kind != "ClusterNetworkPolicy" {
		r.Action = "Allow"
	}
	if p.Kind == "BaselineAdminNetworkPolicy" && r.Action == "Pass" {
		r.Action = "Deny"
	}
	peers := []adminPeer{{adminPods: c.adminPods()}}
	named := true
	for range c.IntN(2) {
		switch x := c.IntN(3); {
		case x == 0 && !in:
			peers = append(peers, adminPeer{Networks: []string{c.cidr(), c.cidr()}})
			named = false
		case x == 1 && !in && !p.aws():
			peers = append(peers, adminPeer{Nodes: c.selector(nodeWords())})
			named = false
		default:
			peers = append(peers, adminPeer{adminPods: c.adminPods()})
		}
	}
	if r.To = peers; in {
		r.From, r.To = peers, nil
	}
	for range pick(c.dice, 0, 0, 1, 2) {
		if p.old() {
			r.Ports = append(r.Ports, c.adminPort(named))
		} else {
			r.Protocols = append(r.Protocols, c.adminProtocol(named))
		}
	}
	return r
}

func (c *Cluster) adminPort(named bool) (p adminPort) {
	first, last := c.portRange()
	switch proto := pick(c.dice, "", "TCP", "UDP", "SCTP"); {
	case named && c.once(1, 4):
		p.Named = pick(c.dice, "http", "dns")
	case last > 0:
		p.Range = &fromTo{proto, first, last}
	default:
		p.Number = &portNumber{proto, first}
	}
	return p
}

func (c *Cluster) adminProtocol(named bool) (p adminProtocol) {
	first, last := c.portRange()
	d := &adminDestination{&adminRange{Number: first}}
	if last > 0 {
		d.Port = &adminRange{Range: &fromTo{Start: first, End: last}}
	}
	switch x := c.IntN(5); {
	case x == 0 && named:
		p.Named = pick(c.dice, "http", "dns")
	case x == 1:
		p.UDP = d
	case x == 2:
		p.SCTP = d
	default:
		p.TCP = d
	}
	return p
}

func (a admins) objects() []any {
	return with(a.within.objects(), a.all)
}

// decide: the Admin tier, then the policies of namespaces, then the Baseline tier.
func (a admins) decide(s *side) model.Verdict {
	if s.own() || s.self.pod == nil {
		return model.VerdictNone
	}
	return cmp.Or(a.tier(s, false), a.within.decide(s), a.tier(s, true))
}

// tier asks the policies of a tier by priority, and their rules in order. None: go on.
func (a admins) tier(s *side, baseline bool) model.Verdict {
	var all []*admin
	for _, p := range a.all {
		if p.baseline == baseline && p.Spec.Subject.match(s.Cluster, s.self) {
			all = append(all, p)
		}
	}
	slices.SortFunc(all, func(x, y *admin) int {
		return cmp.Or(cmp.Compare(x.priority(), y.priority()), cmp.Compare(x.Metadata.Name, y.Metadata.Name), cmp.Compare(x.Kind, y.Kind))
	})
	for _, p := range all {
		rules := p.Spec.Egress
		if s.in {
			rules = p.Spec.Ingress
		}
		for _, r := range rules {
			if !slices.ContainsFunc(slices.Concat(r.From, r.To), func(x adminPeer) bool { return x.match(s) }) || !r.ports(s) {
				continue
			}
			return map[string]model.Verdict{"Accept": model.VerdictAllow, "Allow": model.VerdictAllow, "Deny": model.VerdictDeny, "Pass": model.VerdictNone}[r.Action]
		}
	}
	return model.VerdictNone
}

// priority of a policy; BaselineAdminNetworkPolicy, which has none, comes first.
func (p *admin) priority() int {
	if p.Spec.Priority == nil {
		return -1
	}
	return *p.Spec.Priority
}

func (p *adminPods) match(c *Cluster, e end) bool {
	switch {
	case e.pod == nil:
		return false
	case p.Namespaces != nil:
		return p.Namespaces.matches(c.namespaceOf(e.pod))
	case p.Pods != nil:
		return p.Pods.NamespaceSelector.matches(c.namespaceOf(e.pod)) && p.Pods.PodSelector.matches(e.pod.Labels)
	}
	return false
}

func (p *adminPeer) match(s *side) bool {
	switch e := s.other; {
	case p.Nodes != nil:
		return e.node != nil && p.Nodes.matches(e.node.Labels)
	case p.Networks != nil:
		return slices.ContainsFunc(p.Networks, func(n string) bool { return contains(n, e.addr) })
	default:
		return p.adminPods.match(s.Cluster, e)
	}
}

func (r *adminRule) ports(s *side) bool {
	if r.Ports == nil && r.Protocols == nil {
		return true
	}
	is := func(protocol string) bool {
		return s.Proto == map[string]int{"": model.ProtoTCP, "TCP": model.ProtoTCP, "UDP": model.ProtoUDP, "SCTP": model.ProtoSCTP}[protocol]
	}
	return slices.ContainsFunc(r.Ports, func(p adminPort) bool {
		switch {
		case p.Named != "":
			return s.names(p.Named)
		case p.Range != nil:
			return is(p.Range.Protocol) && within(s.DstPort, p.Range.Start, p.Range.End)
		}
		return is(p.Number.Protocol) && within(s.DstPort, p.Number.Port, 0)
	}) || slices.ContainsFunc(r.Protocols, func(p adminProtocol) bool {
		for protocol, d := range map[string]*adminDestination{"TCP": p.TCP, "UDP": p.UDP, "SCTP": p.SCTP} {
			switch {
			case d == nil || !is(protocol):
			case d.Port.Range != nil:
				return within(s.DstPort, d.Port.Range.Start, d.Port.Range.End)
			default:
				return within(s.DstPort, d.Port.Number, 0)
			}
		}
		return p.Named != "" && s.names(p.Named)
	})
}
