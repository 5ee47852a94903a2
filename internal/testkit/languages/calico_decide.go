package languages

import (
	"cmp"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"weft/internal/model"
	"weft/internal/netset"
)

// calicoPlace is where a tier is asked, and whether it goes on at its end.
type calicoPlace struct {
	name  string
	order float64
	pass  bool
}

func orInfinity(order *float64) float64 {
	if order == nil {
		return math.Inf(1)
	}
	return *order
}

func (k *calico) places() []calicoPlace {
	out := []calicoPlace{{"kube-admin", 1000, true}, {"default", 1_000_000, false}, {"kube-baseline", 10_000_000, true}}
	for _, t := range k.tiers {
		out = append(out, calicoPlace{t.Metadata.Name, orInfinity(t.Spec.Order), t.Spec.DefaultAction == "Pass"})
	}
	slices.SortFunc(out, func(a, b calicoPlace) int { return cmp.Or(cmp.Compare(a.order, b.order), cmp.Compare(a.name, b.name)) })
	return out
}

// decide asks tier by tier. A tier of which a policy applies has the last word unless it passes.
func (k *calico) decide(s *side) model.Verdict {
	if s.own() || s.self.pod == nil {
		return model.VerdictNone
	}
	for _, place := range k.places() {
		var all []*calicoPolicy
		for _, p := range k.policies {
			if cmp.Or(p.Spec.Tier, "default") == place.name && p.about(s.in) && p.applies(s) {
				all = append(all, p)
			}
		}
		slices.SortFunc(all, func(a, b *calicoPolicy) int {
			return cmp.Or(cmp.Compare(orInfinity(a.Spec.Order), orInfinity(b.Spec.Order)), cmp.Compare(a.Metadata.Name, b.Metadata.Name),
				cmp.Compare(a.Metadata.Namespace, b.Metadata.Namespace), cmp.Compare(a.Kind, b.Kind))
		})
		switch action := k.tier(s, all); {
		case action == "Allow":
			return model.VerdictAllow
		case action == "Deny", action == "" && len(all) > 0 && !place.pass:
			return model.VerdictDeny
		}
	}
	return model.VerdictNone
}

// tier is the action of the first rule that matches and is not Log; "" if there is none.
func (k *calico) tier(s *side, all []*calicoPolicy) string {
	for _, p := range all {
		rules := p.Spec.Egress
		if s.in {
			rules = p.Spec.Ingress
		}
		for _, r := range rules {
			if r.Action != "Log" && k.matches(s, p, &r) {
				return r.Action
			}
		}
	}
	return ""
}

// about says whether a policy is about a direction: by its types, else by the rules that it has, else ingress.
func (p *calicoPolicy) about(in bool) bool {
	if len(p.Spec.Types) > 0 {
		return slices.Contains(p.Spec.Types, map[bool]string{true: "Ingress", false: "Egress"}[in])
	}
	if in {
		return len(p.Spec.Ingress) > 0 || len(p.Spec.Egress) == 0
	}
	return len(p.Spec.Egress) > 0
}

func (p *calicoPolicy) applies(s *side) bool {
	pod := s.self.pod
	i := slices.IndexFunc(s.Accounts, func(a *model.ServiceAccount) bool { return a.Namespace == pod.Namespace && a.Name == pod.Account })
	account := map[string]string{}
	if i >= 0 {
		account = s.Accounts[i].Labels
	}
	return (p.Metadata.Namespace == "" || p.Metadata.Namespace == pod.Namespace) && p.Spec.Selector.of(s.calicoLabels(pod)) &&
		p.Spec.NamespaceSelector.of(s.calicoNamespace(pod.Namespace)) && p.Spec.AccountSelector.of(account)
}

// of is matches; a selector that is not there matches everything.
func (x *calicoExpr) of(labels map[string]string) bool { return x == nil || x.matches(labels) }

// calicoLabels are those of a pod with those that Calico gives it.
func (c *Cluster) calicoLabels(pod *model.Pod) map[string]string {
	out := maps.Clone(pod.Labels)
	out["projectcalico.org/namespace"], out["projectcalico.org/orchestrator"] = pod.Namespace, "k8s"
	out["projectcalico.org/serviceaccount"] = pod.Account
	for k, v := range c.namespaceOf(pod) {
		out["pcns."+k] = v
	}
	for _, a := range c.Accounts {
		if a.Namespace == pod.Namespace && a.Name == pod.Account {
			for k, v := range a.Labels {
				out["pcsa."+k] = v
			}
		}
	}
	return out
}

// calicoNamespace is the labels that selectors of namespaces see.
func (c *Cluster) calicoNamespace(name string) map[string]string {
	for _, ns := range c.Namespaces {
		if ns.Name == name {
			out := maps.Clone(ns.Labels)
			out["projectcalico.org/name"] = name
			return out
		}
	}
	return nil
}

// calicoKnown is something that selectors select: a pod or a set that an address is in.
type calicoKnown struct {
	labels    map[string]string
	namespace string
	pod       *model.Pod
}

func (k *calico) known(c *Cluster, e end) (out []calicoKnown) {
	if e.pod != nil {
		out = append(out, calicoKnown{c.calicoLabels(e.pod), e.pod.Namespace, e.pod})
	}
	for _, set := range k.sets {
		if slices.ContainsFunc(set.Spec.Nets, func(n string) bool { return contains(n, e.addr) }) {
			labels := map[string]string{}
			maps.Copy(labels, set.Metadata.Labels)
			if ns := set.Metadata.Namespace; ns != "" {
				labels["projectcalico.org/namespace"] = ns
				for k, v := range c.calicoNamespace(ns) {
					labels["pcns."+k] = v
				}
			}
			out = append(out, calicoKnown{labels: labels, namespace: set.Metadata.Namespace})
		}
	}
	return out
}

func (k *calico) matches(s *side, p *calicoPolicy, r *calicoRule) bool {
	src, dst := s.self, s.other
	if s.in {
		src, dst = dst, src
	}
	return r.packet(s) && k.entity(s, p, r.Source, src, s.SrcPort) && k.entity(s, p, r.Destination, dst, s.DstPort)
}

// packet says whether protocol, family and ICMP type match.
func (r *calicoRule) packet(s *side) bool {
	f := netset.Of(s.Dst)
	if r.IPVersion != 0 && (r.IPVersion == 4) != (f == netset.V4) ||
		r.Protocol != nil && calicoProtocol(r.Protocol) != s.Proto || r.NotProtocol != nil && calicoProtocol(r.NotProtocol) == s.Proto {
		return false
	}
	typ := int(s.DstPort >> 8)
	return (r.ICMP == nil || r.ICMP.Type == typ) && (r.NotICMP == nil || r.NotICMP.Type != typ)
}

func calicoProtocol(v any) int {
	if name, ok := v.(string); ok {
		return map[string]int{"tcp": model.ProtoTCP, "udp": model.ProtoUDP, "sctp": model.ProtoSCTP, "icmp": model.ProtoICMP, "icmpv6": model.ProtoICMPv6}[strings.ToLower(name)]
	}
	return numberOf(v)
}

// entity says whether one end of a packet is what a rule wants of it.
func (k *calico) entity(s *side, p *calicoPolicy, e *calicoEntity, who end, port uint16) bool {
	if e == nil {
		return true
	}
	in := func(nets []string) bool {
		return slices.ContainsFunc(nets, func(n string) bool { return contains(n, who.addr) })
	}
	// Nets that are excluded say of which family the rule is.
	family := func(n string) bool { return netset.OfPrefix(netip.MustParsePrefix(n)) == netset.Of(who.addr) }
	switch {
	case e.Nets != nil && !in(e.Nets), in(e.NotNets), e.NotNets != nil && !slices.ContainsFunc(e.NotNets, family),
		e.Services != nil && !s.behind(e.Services.Namespace, e.Services.Name, who.addr),
		!k.selects(s, p, e, who),
		e.Ports != nil && !slices.ContainsFunc(e.Ports, func(x any) bool { return calicoPort(s, x, port) }):
		return false
	}
	return !slices.ContainsFunc(e.NotPorts, func(x any) bool { return calicoPort(s, x, port) })
}

// selects evaluates the selectors of a side. A policy of a namespace selects there, unless it says another one.
func (k *calico) selects(s *side, p *calicoPolicy, e *calicoEntity, who end) bool {
	if e.Selector == nil && e.NotSelector == nil && e.NamespaceSelector == nil && e.Accounts == nil {
		return true
	}
	known := k.known(s.Cluster, who)
	if who == s.self { // of the policy's own side weft asks only the pod, and not the sets that its address is in: docs/policy/calico.md
		known = known[:1]
	}
	if e.Selector == nil && e.NamespaceSelector == nil && e.Accounts == nil && p.Metadata.Namespace == "" {
		// Only an exclusion: of everybody.
		return !slices.ContainsFunc(known, func(x calicoKnown) bool { return e.NotSelector.matches(x.labels) })
	}
	return slices.ContainsFunc(known, func(x calicoKnown) bool {
		ns := s.calicoNamespace(x.namespace)
		switch {
		case e.NamespaceSelector == nil && p.Metadata.Namespace != "" && x.namespace != p.Metadata.Namespace,
			!e.NamespaceSelector.of(ns), !e.Selector.of(x.labels), e.NotSelector != nil && e.NotSelector.matches(x.labels):
			return false
		}
		return e.Accounts == nil || e.Accounts.match(s.Cluster, x.pod)
	})
}

// match says whether a pod's account is meant. What is no pod has an account without name and labels.
func (a *calicoAccounts) match(c *Cluster, pod *model.Pod) bool {
	labels := map[string]string{}
	if pod == nil {
		return a.Names == nil && a.Selector.of(labels)
	}
	for _, x := range c.Accounts {
		if x.Namespace == pod.Namespace && x.Name == pod.Account {
			labels = x.Labels
		}
	}
	return (a.Names == nil || slices.Contains(a.Names, pod.Account)) && a.Selector.of(labels)
}

// calicoPort says whether a port is a number, "first:last", or the name of a port of the destination.
func calicoPort(s *side, x any, port uint16) bool {
	text, ok := x.(string)
	if !ok {
		return within(port, numberOf(x), 0)
	}
	first, last, _ := strings.Cut(text, ":")
	a, err := strconv.Atoi(first)
	if err != nil {
		return s.names(text)
	}
	b, _ := strconv.Atoi(last)
	return within(port, a, b)
}
