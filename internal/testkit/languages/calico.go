package languages

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"weft/internal/model"
	"weft/internal/netset"
)

const calicoAPI = "projectcalico.org/v3"

// calicoPolicy is a NetworkPolicy or, without a namespace, a GlobalNetworkPolicy.
type calicoPolicy struct {
	meta
	Spec struct {
		Tier              string       `json:"tier,omitempty"`
		Order             *float64     `json:"order,omitempty"`
		Selector          *calicoExpr  `json:"selector,omitempty"`
		NamespaceSelector *calicoExpr  `json:"namespaceSelector,omitempty"`
		AccountSelector   *calicoExpr  `json:"serviceAccountSelector,omitempty"`
		Types             []string     `json:"types,omitempty"`
		Ingress           []calicoRule `json:"ingress,omitempty"`
		Egress            []calicoRule `json:"egress,omitempty"`
	} `json:"spec"`
}

type calicoRule struct {
	Action      string        `json:"action"`
	IPVersion   int           `json:"ipVersion,omitempty"`
	Protocol    any           `json:"protocol,omitempty"`
	NotProtocol any           `json:"notProtocol,omitempty"`
	ICMP        *calicoICMP   `json:"icmp,omitempty"`
	NotICMP     *calicoICMP   `json:"notICMP,omitempty"`
	Source      *calicoEntity `json:"source,omitempty"`
	Destination *calicoEntity `json:"destination,omitempty"`
}

type calicoICMP struct {
	Type int `json:"type"`
}

type calicoEntity struct {
	Nets              []string        `json:"nets,omitempty"`
	NotNets           []string        `json:"notNets,omitempty"`
	Selector          *calicoExpr     `json:"selector,omitempty"`
	NotSelector       *calicoExpr     `json:"notSelector,omitempty"`
	NamespaceSelector *calicoExpr     `json:"namespaceSelector,omitempty"`
	Services          *calicoService  `json:"services,omitempty"`
	Accounts          *calicoAccounts `json:"serviceAccounts,omitempty"`
	Ports             []any           `json:"ports,omitempty"`
	NotPorts          []any           `json:"notPorts,omitempty"`
}

type calicoService struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
}

type calicoAccounts struct {
	Names    []string    `json:"names,omitempty"`
	Selector *calicoExpr `json:"selector,omitempty"`
}

// calicoTier is a Tier.
type calicoTier struct {
	meta
	Spec struct {
		Order         *float64 `json:"order,omitempty"`
		DefaultAction string   `json:"defaultAction,omitempty"`
	} `json:"spec"`
}

// calicoSet is a NetworkSet or, without a namespace, a GlobalNetworkSet.
type calicoSet struct {
	meta
	Spec struct {
		Nets []string `json:"nets"`
	} `json:"spec"`
}

// calicoExpr is a selector: it is written in Calico's language.
type calicoExpr struct {
	op     string // "all()", "global()", "has", "!has", "==", "!=", "in", "not in", "contains", "starts with", "ends with", "&&", "||", "!"
	key    string
	values []string
	sub    []*calicoExpr
}

// MarshalText implements encoding.TextMarshaler.
func (x *calicoExpr) MarshalText() ([]byte, error) { return []byte(x.String()), nil }

func (x *calicoExpr) String() string {
	switch x.op {
	case "all()", "global()":
		return x.op
	case "has", "!has":
		return x.op + "(" + x.key + ")"
	case "in", "not in":
		return fmt.Sprintf(`%s %s {"%s"}`, x.key, x.op, strings.Join(x.values, `", "`))
	case "&&", "||":
		return fmt.Sprintf("(%s) %s (%s)", x.sub[0], x.op, x.sub[1])
	case "!":
		return fmt.Sprintf("!(%s)", x.sub[0])
	}
	return fmt.Sprintf("%s %s '%s'", x.key, x.op, x.values[0])
}

func (x *calicoExpr) matches(labels map[string]string) bool {
	v, ok := labels[x.key]
	switch x.op {
	case "all()": // of namespaces: what is in one
		return labels != nil
	case "global()": // of namespaces: what is in none
		return labels == nil
	case "has":
		return ok
	case "!has":
		return !ok
	case "==", "in":
		return ok && slices.Contains(x.values, v)
	case "!=", "not in":
		return !ok || !slices.Contains(x.values, v)
	case "contains":
		return ok && strings.Contains(v, x.values[0])
	case "starts with":
		return ok && strings.HasPrefix(v, x.values[0])
	case "ends with":
		return ok && strings.HasSuffix(v, x.values[0])
	case "&&":
		return x.sub[0].matches(labels) && x.sub[1].matches(labels)
	case "||":
		return x.sub[0].matches(labels) || x.sub[1].matches(labels)
	}
	return !x.sub[0].matches(labels)
}

func (d dice) calicoExpr(words []word, depth int) *calicoExpr {
	w := pick(d, words...)
	x := &calicoExpr{key: w.key, values: []string{pick(d, w.values...)}}
	switch n := d.IntN(16); {
	case n < 5:
		x.op = "=="
	case n < 11:
		x.op = pick(d, "all()", "has", "!has", "!=", "contains", "starts with", "ends with")
		if len(x.op) > 5 {
			x.values[0] = pick(d, x.values[0][:1], x.values[0][1:], x.values[0])
		}
	case n < 13 || depth == 0:
		x.op, x.values = pick(d, "in", "not in"), w.values[:1+d.IntN(len(w.values))]
	default:
		x.op = pick(d, "&&", "||", "!")
		x.sub = []*calicoExpr{d.calicoExpr(words, depth-1), d.calicoExpr(words, depth-1)}
	}
	return x
}

// calicoWords are the labels of what selectors select: of pods and sets, with those that Calico gives.
func calicoWords() []word {
	return append(podWords(), word{"projectcalico.org/orchestrator", []string{"k8s"}}, word{"projectcalico.org/namespace", namespaces()},
		word{"projectcalico.org/serviceaccount", []string{"robot"}}, word{"pcns.env", []string{"prod", "test"}}, word{"pcsa.role", []string{"reader", "writer"}})
}

func calicoNamespaces() []word {
	return append(nsWords(), word{"projectcalico.org/name", namespaces()})
}

// calico are Calico's objects of a cluster.
type calico struct {
	tiers    []*calicoTier
	sets     []*calicoSet
	policies []*calicoPolicy
}

func newCalico(c *Cluster) policies {
	k := &calico{}
	for _, name := range []string{"early", "late"} {
		t := &calicoTier{meta: head(calicoAPI, "Tier", "", name)}
		t.Spec.DefaultAction = pick(c.dice, "", "Deny", "Pass", "Pass")
		if c.once(4, 5) {
			order := pick(c.dice, 5.0, 500, 20_000, 2_000_000)
			t.Spec.Order = &order
		}
		k.tiers = append(k.tiers, t)
	}
	for i, ns := range []string{"a", "b", "", ""}[c.IntN(3):] {
		s := &calicoSet{meta: head(calicoAPI, "GlobalNetworkSet", ns, numbered(i))}
		if ns != "" {
			s.Kind = "NetworkSet"
		}
		s.Metadata.Labels = c.labels(podWords())
		s.Spec.Nets = append(some(c.dice, 2, c.cidr), c.cidr())
		k.sets = append(k.sets, s)
	}
	for i := range 1 + c.IntN(5) {
		k.policies = append(k.policies, c.calicoPolicy(i))
	}
	return k
}

func (c *Cluster) calicoPolicy(i int) *calicoPolicy {
	p := &calicoPolicy{meta: head(calicoAPI, "NetworkPolicy", pick(c.dice, namespaces()...), numbered(i))}
	if c.once(1, 2) {
		p.Kind, p.Metadata.Namespace = "GlobalNetworkPolicy", ""
		if c.once(1, 2) {
			p.Spec.NamespaceSelector = c.calicoExpr(calicoNamespaces(), 1)
		}
	}
	if tier := pick(c.dice, "", "", "default", "early", "late", "kube-admin", "kube-baseline"); tier != "" {
		p.Spec.Tier = tier
		if tier != "default" {
			p.Metadata.Name = tier + "." + p.Metadata.Name
		}
	}
	if c.once(2, 3) {
		order := pick(c.dice, 1.0, 2, 2.5)
		p.Spec.Order = &order
	}
	if c.once(3, 4) {
		p.Spec.Selector = c.calicoExpr(calicoWords(), 1)
	}
	if c.once(1, 8) {
		p.Spec.AccountSelector = c.calicoExpr(accountWords(), 0)
	}
	p.Spec.Types = pick(c.dice, nil, nil, []string{"Ingress"}, []string{"Egress"}, []string{"Ingress", "Egress"})
	p.Spec.Ingress = some(c.dice, 4, func() calicoRule { return c.calicoRule(p, true) })
	p.Spec.Egress = some(c.dice, 4, func() calicoRule { return c.calicoRule(p, false) })
	return p
}

func (c *Cluster) calicoRule(p *calicoPolicy, in bool) calicoRule {
	r := calicoRule{Action: pick(c.dice, "Allow", "Allow", "Allow", "Deny", "Deny", "Pass", "Log")}
	ports := false
	switch c.IntN(8) {
	case 0:
		r.IPVersion = pick(c.dice, 4, 6)
	case 1:
		r.NotProtocol = pick[any](c.dice, "TCP", "udp", 132)
	case 2:
		r.Protocol, r.ICMP = "ICMP", &calicoICMP{pick(c.dice, 8, 13)}
	case 3:
		r.Protocol, r.ICMP = "ICMPv6", &calicoICMP{pick(c.dice, 128, 200)}
	case 4:
		r.Protocol, r.NotICMP = "ICMP", &calicoICMP{8}
	case 5, 6:
		r.Protocol, ports = pick[any](c.dice, "TCP", "TCP", "UDP", "SCTP", 6), true
	}
	if c.once(2, 3) {
		r.Source = c.calicoEntity(p, &r, in, ports && c.once(1, 4), false)
	}
	if ports || c.once(1, 2) {
		r.Destination = c.calicoEntity(p, &r, !in, ports, true)
	}
	return r
}

// calicoEntity draws one side of a rule; peer says that it is not the policy's own.
func (c *Cluster) calicoEntity(p *calicoPolicy, r *calicoRule, peer, ports, destination bool) *calicoEntity {
	e, mixed := &calicoEntity{}, r.IPVersion == 0 // nets of another family than the rule's are a mistake
	if peer && !destination && !ports && c.once(1, 10) {
		e.Services = &calicoService{"svc", "a"}
		return e
	}
	if c.once(1, 2) {
		e.Selector = c.calicoExpr(calicoWords(), 1)
	}
	if c.once(1, 5) {
		e.NotSelector = c.calicoExpr(calicoWords(), 1)
	}
	if c.once(1, 4) {
		e.NamespaceSelector = c.calicoExpr(calicoNamespaces(), 1)
		if c.once(1, 4) {
			e.NamespaceSelector = &calicoExpr{op: pick(c.dice, "global()", "all()")}
		}
	}
	if mixed && c.once(1, 6) {
		e.Nets = append(some(c.dice, 1, c.cidr), c.cidr())
	}
	if mixed && c.once(1, 6) {
		e.NotNets = append(some(c.dice, 1, c.cidr), c.cidr())
	}
	if c.once(1, 10) {
		e.Accounts = &calicoAccounts{}
		if c.once(1, 2) {
			e.Accounts.Names = []string{"robot"}
		}
		if e.Accounts.Names == nil || c.once(1, 3) {
			e.Accounts.Selector = c.calicoExpr(accountWords(), 0)
		}
	}
	if ports {
		e.Ports = some(c.dice, 2, func() any { return c.calicoPort(destination) })
		if c.once(1, 4) {
			e.NotPorts = []any{c.calicoPort(destination)}
		}
	}
	return e
}

func (c *Cluster) calicoPort(named bool) any {
	first, last := c.portRange()
	switch {
	case !named:
		return pick[any](c.dice, 1000, "1000:2000", "30000:65535")
	case c.once(1, 4):
		return pick(c.dice, "http", "dns")
	case last > 0:
		return fmt.Sprintf("%d:%d", first, last)
	}
	return first
}

func (k *calico) objects() []any {
	var out []any
	for _, t := range k.tiers {
		out = append(out, t)
	}
	for _, s := range k.sets {
		out = append(out, s)
	}
	for _, p := range k.policies {
		out = append(out, p)
	}
	return out
}

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
