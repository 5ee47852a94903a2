package languages

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"weft/internal/model"
	"weft/internal/netset"
)

// ciliumPolicy is a CiliumNetworkPolicy or, without a namespace, a CiliumClusterwideNetworkPolicy.
type ciliumPolicy struct {
	meta
	Spec struct {
		EndpointSelector *labelSelector `json:"endpointSelector,omitempty"`
		NodeSelector     *labelSelector `json:"nodeSelector,omitempty"`
		DefaultDeny      *struct {
			Ingress *bool `json:"ingress,omitempty"`
			Egress  *bool `json:"egress,omitempty"`
		} `json:"enableDefaultDeny,omitempty"`
		Ingress     []ciliumRule `json:"ingress,omitempty"`
		IngressDeny []ciliumRule `json:"ingressDeny,omitempty"`
		Egress      []ciliumRule `json:"egress,omitempty"`
		EgressDeny  []ciliumRule `json:"egressDeny,omitempty"`
	} `json:"spec"`
}

// ciliumRule is a rule of ingress; one of egress has the same lists under other names. An empty list is not the same as none.
type ciliumRule struct {
	egress    bool
	Endpoints []*labelSelector
	Nodes     []*labelSelector
	Entities  []string
	CIDR      []string
	CIDRSet   []ciliumCIDR
	Services  []map[string]map[string]string
	Ports     []ciliumPorts
	ICMPs     []ciliumICMPs
}

type ciliumCIDR struct {
	CIDR   string   `json:"cidr,omitempty"`
	Group  string   `json:"cidrGroupRef,omitempty"`
	Except []string `json:"except,omitempty"`
}

type ciliumPorts struct {
	Ports []ciliumPort `json:"ports,omitempty"`
}

type ciliumPort struct {
	Port     string `json:"port"`
	EndPort  int    `json:"endPort,omitempty"`
	Protocol string `json:"protocol,omitempty"`
}

type ciliumICMPs struct {
	Fields []ciliumICMP `json:"fields,omitempty"`
}

type ciliumICMP struct {
	Family string `json:"family,omitempty"`
	Type   int    `json:"type"`
}

// MarshalJSON implements json.Marshaler.
func (r ciliumRule) MarshalJSON() ([]byte, error) {
	out := map[string]any{}
	put := func(name string, list any, there bool) {
		if there {
			out[name] = list
		}
	}
	peers := "from"
	if r.egress {
		peers = "to"
	}
	put(peers+"Endpoints", r.Endpoints, r.Endpoints != nil)
	put(peers+"Nodes", r.Nodes, r.Nodes != nil)
	put(peers+"Entities", r.Entities, r.Entities != nil)
	put(peers+"CIDR", r.CIDR, r.CIDR != nil)
	put(peers+"CIDRSet", r.CIDRSet, r.CIDRSet != nil)
	put("toServices", r.Services, r.Services != nil)
	put("toPorts", r.Ports, r.Ports != nil)
	put("icmps", r.ICMPs, r.ICMPs != nil)
	return json.Marshal(out)
}

// ciliumGroup is a CiliumCIDRGroup.
type ciliumGroup struct {
	meta
	Spec struct {
		CIDRs []string `json:"externalCIDRs"`
	} `json:"spec"`
}

// cilium are Cilium's objects of a cluster, with its NetworkPolicies.
type cilium struct {
	netpols  kubernetes
	group    *ciliumGroup
	policies []*ciliumPolicy
}

func newCilium(c *Cluster) policies {
	k := &cilium{netpols: c.netpols(2, "networking.k8s.io/v1", "NetworkPolicy")}
	k.group = &ciliumGroup{meta: head("cilium.io/v2", "CiliumCIDRGroup", "", "partners")}
	k.group.Spec.CIDRs = append(some(c.dice, 1, c.cidr), c.cidr())
	for i := range 1 + c.IntN(3) {
		p := &ciliumPolicy{meta: head("cilium.io/v2", "CiliumNetworkPolicy", pick(c.dice, namespaces()...), numbered(i))}
		p.Spec.EndpointSelector = c.ciliumSelector(false)
		if c.once(1, 3) {
			p.Kind, p.Metadata.Namespace = "CiliumClusterwideNetworkPolicy", ""
			if p.Spec.EndpointSelector = c.ciliumSelector(true); c.once(1, 4) {
				p.Spec.EndpointSelector, p.Spec.NodeSelector = nil, c.selector(nodeWords())
			}
		}
		rules := func(n int, egress, deny bool) []ciliumRule {
			return some(c.dice, n, func() ciliumRule { return c.ciliumRule(egress, deny) })
		}
		p.Spec.Ingress, p.Spec.IngressDeny = rules(3, false, false), rules(pick(c.dice, 0, 2), false, true)
		p.Spec.Egress, p.Spec.EgressDeny = rules(3, true, false), rules(pick(c.dice, 0, 2), true, true)
		if p.Spec.Ingress == nil && p.Spec.IngressDeny == nil && p.Spec.Egress == nil && p.Spec.EgressDeny == nil { // which is a mistake
			p.Spec.Ingress = []ciliumRule{c.ciliumRule(false, false)}
		}
		if c.once(1, 3) {
			p.Spec.DefaultDeny = &struct {
				Ingress *bool `json:"ingress,omitempty"`
				Egress  *bool `json:"egress,omitempty"`
			}{}
			for _, x := range []**bool{&p.Spec.DefaultDeny.Ingress, &p.Spec.DefaultDeny.Egress} {
				if c.once(2, 3) {
					v := c.once(1, 2)
					*x = &v
				}
			}
		}
		k.policies = append(k.policies, p)
	}
	return k
}

// ciliumWords are labels of pods; wide ones say which namespaces are meant.
func ciliumWords(wide bool) []word {
	out := podWords()
	if wide {
		out = append(out, word{"io.kubernetes.pod.namespace", namespaces()}, word{"io.cilium.k8s.namespace.labels.env", []string{"prod", "test"}})
	}
	return append(out, word{"io.cilium.k8s.policy.serviceaccount", []string{"robot", "default"}})
}

// ciliumSelector draws a selector whose keys have a source before them, or none.
func (c *Cluster) ciliumSelector(wide bool) *labelSelector {
	words := ciliumWords(wide)
	for i := range words {
		words[i].key = pick(c.dice, "", "k8s:", "any:") + words[i].key
	}
	return c.selector(words)
}

func (c *Cluster) ciliumRule(egress, deny bool) ciliumRule {
	r := ciliumRule{egress: egress}
	switch c.IntN(9) {
	case 0:
		r.Endpoints = []*labelSelector{} // nobody
	case 1, 2, 3:
		r.Endpoints = append(some(c.dice, 1, func() *labelSelector { return c.ciliumSelector(true) }), c.ciliumSelector(true))
		if c.once(1, 8) {
			r.Endpoints[0] = &labelSelector{MatchLabels: map[string]string{"reserved:" + pick(c.dice, "host", "remote-node", "world", "kube-apiserver"): ""}}
		}
	case 4:
		entities := []string{"world", "world-ipv4", "world-ipv6", "all", "cluster", "host", "remote-node", "kube-apiserver", "health", "none"}
		r.Entities = append(some(c.dice, 1, func() string { return pick(c.dice, entities...) }), pick(c.dice, entities...))
	case 5:
		r.CIDR = []string{c.cidr()}
	case 6:
		b := c.ipBlock()
		r.CIDRSet = []ciliumCIDR{{CIDR: b.CIDR, Except: b.Except}}
		if c.once(1, 3) {
			r.CIDRSet = []ciliumCIDR{{Group: "partners"}}
		}
	case 7:
		switch {
		case egress && !deny:
			r.Services = []map[string]map[string]string{{"k8sService": {"serviceName": "svc", "namespace": "a"}}}
		default:
			r.Nodes = []*labelSelector{c.selector(nodeWords())}
		}
	}
	switch c.IntN(6) {
	case 0, 1:
		r.Ports = append(some(c.dice, 1, c.ciliumPorts), c.ciliumPorts())
	case 2:
		r.ICMPs = []ciliumICMPs{{[]ciliumICMP{c.ciliumICMP(), c.ciliumICMP()}}}
	case 3:
		r.Ports = pick(c.dice, nil, []ciliumPorts{}, []ciliumPorts{{}})
	}
	return r
}

func (c *Cluster) ciliumICMP() ciliumICMP {
	return pick(c.dice, ciliumICMP{"", 8}, ciliumICMP{"IPv4", 13}, ciliumICMP{"IPv6", 128}, ciliumICMP{"IPv6", 200})
}

func (c *Cluster) ciliumPorts() ciliumPorts {
	return ciliumPorts{some(c.dice, 2, func() ciliumPort {
		first, last := c.portRange()
		p := ciliumPort{strconv.Itoa(first), last, pick(c.dice, "", "ANY", "TCP", "TCP", "UDP", "SCTP")}
		switch c.IntN(6) {
		case 0:
			p.Port, p.EndPort = pick(c.dice, "http", "dns"), 0
		case 1:
			p.Port, p.EndPort = "0", 0
		}
		return p
	})}
}

func (k *cilium) objects() []any {
	return with(append(k.netpols.objects(), k.group), k.policies)
}

// decide: what some rule denies is denied, else what some rule or NetworkPolicy allows is allowed, else a side that some policy
// isolates is closed.
func (k *cilium) decide(s *side) model.Verdict {
	isolated, allowed := false, false
	for _, p := range k.policies {
		if !p.selects(s) {
			continue
		}
		allow, deny, isolates := p.Spec.Egress, p.Spec.EgressDeny, (*bool)(nil)
		if s.in {
			allow, deny = p.Spec.Ingress, p.Spec.IngressDeny
		}
		if d := p.Spec.DefaultDeny; d != nil {
			if isolates = d.Egress; s.in {
				isolates = d.Ingress
			}
		}
		ns := p.Metadata.Namespace
		if slices.ContainsFunc(deny, func(r ciliumRule) bool { return (!s.own() || r.hosts()) && k.matches(s, ns, &r) }) {
			return model.VerdictDeny
		}
		isolated = isolated || isolates == nil && len(allow)+len(deny) > 0 || isolates != nil && *isolates
		allowed = allowed || slices.ContainsFunc(allow, func(r ciliumRule) bool { return k.matches(s, ns, &r) })
	}
	netpols := k.netpols.decide(s)
	switch {
	case s.own():
		return model.VerdictNone
	case allowed || netpols == model.VerdictAllow:
		return model.VerdictAllow
	case isolated:
		return model.VerdictDeny
	}
	return netpols
}

func (p *ciliumPolicy) selects(s *side) bool {
	if p.Spec.NodeSelector != nil {
		return s.self.node != nil && p.Spec.NodeSelector.matches(s.self.node.Labels)
	}
	return s.self.pod != nil && (p.Metadata.Namespace == "" || p.Metadata.Namespace == s.self.pod.Namespace) &&
		p.Spec.EndpointSelector.matches(s.ciliumLabels(s.self.pod))
}

// ciliumLabels are a pod's labels by each of the names that a selector may have for them.
func (c *Cluster) ciliumLabels(p *model.Pod) map[string]string {
	all := map[string]string{"io.kubernetes.pod.namespace": p.Namespace, "io.cilium.k8s.policy.serviceaccount": p.Account}
	for k, v := range p.Labels {
		all[k] = v
	}
	for k, v := range c.namespaceOf(p) {
		all["io.cilium.k8s.namespace.labels."+k] = v
	}
	out := map[string]string{}
	for k, v := range all {
		out[k], out["k8s:"+k], out["any:"+k] = v, v, v
	}
	return out
}

// hosts says whether a rule names nodes, so that it is about a node's traffic to its own pods as well.
func (r *ciliumRule) hosts() bool {
	return r.Nodes != nil || slices.ContainsFunc(r.Entities, func(e string) bool {
		return slices.Contains([]string{"host", "remote-node", "kube-apiserver", "cluster", "all"}, e)
	}) || slices.ContainsFunc(r.Endpoints, func(x *labelSelector) bool { return reserved(x) != "" && reserved(x) != "world" })
}

// reserved is the entity that a selector stands for, or "".
func reserved(x *labelSelector) string {
	for k := range x.MatchLabels {
		if name, ok := strings.CutPrefix(k, "reserved:"); ok {
			return name
		}
	}
	return ""
}

// matches says whether a rule of a policy of a namespace is about the packet.
func (k *cilium) matches(s *side, ns string, r *ciliumRule) bool {
	peers := r.Endpoints != nil || r.Nodes != nil || r.Entities != nil || r.CIDR != nil || r.CIDRSet != nil || r.Services != nil
	ports := len(r.Ports) > 0 || len(r.ICMPs) > 0
	return (peers || ports) && (!peers || k.peer(s, ns, r)) && (!ports || r.port(s))
}

func (k *cilium) peer(s *side, ns string, r *ciliumRule) bool {
	out := s.other.world()
	in := func(n string) bool { return out && contains(n, s.other.addr) }
	return slices.ContainsFunc(r.Endpoints, func(x *labelSelector) bool { return s.ciliumEndpoint(ns, x) }) ||
		slices.ContainsFunc(r.Nodes, func(x *labelSelector) bool {
			return s.other.node != nil && s.other.node != s.self.node && s.other.at() != s.self.at() && x.matches(s.other.node.Labels)
		}) || slices.ContainsFunc(r.Entities, s.ciliumEntity) || slices.ContainsFunc(r.CIDR, in) ||
		slices.ContainsFunc(r.CIDRSet, func(x ciliumCIDR) bool {
			if x.Group != "" {
				return slices.ContainsFunc(k.group.Spec.CIDRs, in)
			}
			return in(x.CIDR) && !slices.ContainsFunc(x.Except, in)
		}) || r.Services != nil && s.behind("a", "svc", s.other.addr)
}

// ciliumEndpoint says whether a selector of peers selects the other side. It is limited to the policy's namespace unless it names others.
func (s *side) ciliumEndpoint(ns string, x *labelSelector) bool {
	if name := reserved(x); name != "" {
		return s.ciliumEntity(name)
	}
	if s.other.pod == nil || !x.matches(s.ciliumLabels(s.other.pod)) {
		return false
	}
	wide := func(k string) bool {
		return strings.Contains(k, "io.kubernetes.pod.namespace") || strings.Contains(k, "namespace.labels.")
	}
	for k := range x.MatchLabels {
		if wide(k) {
			return true
		}
	}
	return ns == "" || s.other.pod.Namespace == ns || slices.ContainsFunc(x.MatchExpressions, func(r requirement) bool { return wide(r.Key) })
}

func (s *side) ciliumEntity(name string) bool {
	e, server := s.other, s.behind("default", "kubernetes", s.other.addr)
	switch name {
	case "all":
		return true
	case "world":
		return e.world()
	case "world-ipv4":
		return e.world() && netset.Of(e.addr) == netset.V4
	case "world-ipv6":
		return e.world() && netset.Of(e.addr) == netset.V6
	case "cluster":
		return !e.world() || server
	case "host":
		return e.node != nil && e.at() == s.self.at()
	case "remote-node":
		return e.node != nil && e.at() != s.self.at()
	case "kube-apiserver":
		return server
	}
	return false
}

func (r *ciliumRule) port(s *side) bool {
	f := map[netset.Family]string{netset.V4: "IPv4", netset.V6: "IPv6"}[netset.Of(s.Dst)]
	return slices.ContainsFunc(r.Ports, func(x ciliumPorts) bool {
		return slices.ContainsFunc(x.Ports, func(p ciliumPort) bool { return p.matches(s) })
	}) || slices.ContainsFunc(r.ICMPs, func(x ciliumICMPs) bool {
		return slices.ContainsFunc(x.Fields, func(i ciliumICMP) bool {
			icmp := s.Proto == model.ProtoICMP && f == "IPv4" || s.Proto == model.ProtoICMPv6 && f == "IPv6"
			return icmp && (i.Family == f || i.Family == "" && f == "IPv4") && int(s.DstPort>>8) == i.Type
		})
	})
}

func (p *ciliumPort) matches(s *side) bool {
	want, one := map[string]int{"TCP": model.ProtoTCP, "UDP": model.ProtoUDP, "SCTP": model.ProtoSCTP}[p.Protocol]
	if one && s.Proto != want || !s.ported() {
		return false
	}
	n, err := strconv.Atoi(p.Port)
	switch {
	case err != nil:
		return s.names(p.Port)
	case n == 0:
		return true
	}
	return within(s.DstPort, n, p.EndPort)
}
