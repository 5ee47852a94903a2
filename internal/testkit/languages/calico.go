package languages

import (
	"fmt"
	"slices"
	"strings"
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
	return with(with(with(nil, k.tiers), k.sets), k.policies)
}
