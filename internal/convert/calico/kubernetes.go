package calico

import (
	"encoding/json"
	"errors"
	"fmt"

	"weft/internal/convert/object"
	"weft/internal/model"
	"weft/internal/selector"
)

// kubernetesSpec is the spec of a StagedKubernetesNetworkPolicy: that of networking.k8s.io NetworkPolicy and what is staged.
type kubernetesSpec struct {
	PodSelector  json.RawMessage `json:"podSelector"`
	PolicyTypes  json.RawMessage `json:"policyTypes"`
	Ingress      json.RawMessage `json:"ingress"`
	Egress       json.RawMessage `json:"egress"`
	StagedAction json.RawMessage `json:"stagedAction"`
}

type kubernetesRule struct {
	From  json.RawMessage `json:"from"`
	To    json.RawMessage `json:"to"`
	Ports json.RawMessage `json:"ports"`
}

type kubernetesPeer struct {
	PodSelector       json.RawMessage `json:"podSelector"`
	NamespaceSelector json.RawMessage `json:"namespaceSelector"`
	IPBlock           json.RawMessage `json:"ipBlock"`
}

type kubernetesPort struct {
	Protocol *string         `json:"protocol"`
	Port     json.RawMessage `json:"port"`
	EndPort  *int            `json:"endPort"`
}

// kubernetesTier is the tier of Kubernetes NetworkPolicies.
func kubernetesTier() model.TierRef { return model.TierRef{Name: "normal", Order: model.TierNormal} }

// labels reads a label selector, whose keys get a prefix for a namespace's labels; nil if it is absent.
func (r *report) labels(field string, raw json.RawMessage, key func(string) string) (*selector.Expr, bool) {
	if absent(raw) {
		return nil, true
	}
	s, ok := structure[object.LabelSelector](r, field, raw)
	if !ok {
		return nil, false
	}
	if key == nil {
		key = func(k string) string { return k }
	}
	x, err := s.ExprKeys(field, key)
	if err != nil {
		r.errs = append(r.errs, err)
		return nil, false
	}
	return x, true
}

func kubernetesRules(r *report, section, namespace, bad string, items []json.RawMessage) []model.Rule {
	var out []model.Rule
	for i, raw := range items {
		reader := &ruleReader{report: r, field: fmt.Sprintf("spec.%s[%d]", section, i), namespace: namespace, ingress: section == "ingress", bad: bad}
		out = append(out, reader.kubernetes(i, raw))
	}
	return out
}

// kubernetes reads one rule, which allows.
func (r *ruleReader) kubernetes(index int, raw json.RawMessage) model.Rule {
	s := into[kubernetesRule](r, r.field, raw)
	out := model.Rule{Index: index, Field: r.field, Verdict: model.VerdictAllow}
	name, list, other, foreign := "from", s.From, "to", s.To
	if !r.ingress {
		name, list, other, foreign = other, foreign, name, list
	}
	if !absent(foreign) {
		r.errs = append(r.errs, &object.UnknownField{Field: r.field, Name: other})
		r.mark(r.field + "." + other)
	}
	peers := r.items(name, list)
	for i, item := range peers {
		out.Peers = append(out.Peers, r.kubernetesPeer(fmt.Sprintf("%s.%s[%d]", r.field, name, i), item))
	}
	for i, item := range r.items("ports", s.Ports) {
		out.L4 = append(out.L4, r.kubernetesPort(fmt.Sprintf("%s.ports[%d]", r.field, i), item))
	}
	out.Unsupported = r.bad
	return out
}

// items reads a list of the rule.
func (r *ruleReader) items(name string, raw json.RawMessage) []json.RawMessage {
	items, ok := r.list(r.field+"."+name, raw)
	if !ok {
		r.mark(r.field + "." + name)
	}
	return items
}

func (r *ruleReader) kubernetesPeer(field string, raw json.RawMessage) model.Peer {
	s := into[kubernetesPeer](r, field, raw)
	if !absent(s.IPBlock) {
		if !absent(s.PodSelector) || !absent(s.NamespaceSelector) {
			r.fail(field, "ipBlock may not be used together with selectors")
		}
		block := into[struct {
			CIDR   *string         `json:"cidr"`
			Except json.RawMessage `json:"except"`
		}](r, field+".ipBlock", s.IPBlock)
		var p model.Peer
		if block.CIDR == nil {
			r.fail(field+".ipBlock.cidr", "is missing")
		} else if net, err := object.Prefix(field+".ipBlock.cidr", *block.CIDR); err != nil {
			r.errs = append(r.errs, err)
			r.mark(field + ".ipBlock.cidr")
		} else {
			p.Nets = append(p.Nets, net)
		}
		p.NotNets, _ = r.nets(field+".ipBlock.except", block.Except)
		return p
	}
	if absent(s.PodSelector) && absent(s.NamespaceSelector) {
		r.fail(field, "has neither a selector nor an ipBlock")
		return model.Peer{}
	}
	pods, podsOK := r.labels(field+".podSelector", s.PodSelector, nil)
	ns, nsOK := r.labels(field+".namespaceSelector", s.NamespaceSelector, namespaceKey)
	if !podsOK || !nsOK {
		r.mark(field)
	}
	if absent(s.NamespaceSelector) {
		return model.Peer{Select: object.Pods(r.namespace, pods)}
	}
	return model.Peer{Select: object.Pods("", selector.AllOf(pods, ns))}
}

func (r *ruleReader) kubernetesPort(field string, raw json.RawMessage) model.L4 {
	s := into[kubernetesPort](r, field, raw)
	l := model.L4{Proto: model.ProtoTCP}
	if s.Protocol != nil {
		p, ok := map[string]int{"TCP": model.ProtoTCP, "UDP": model.ProtoUDP, "SCTP": model.ProtoSCTP}[*s.Protocol]
		if ok {
			l.Proto = p
		} else {
			r.fail(field+".protocol", "%q is not one of TCP, UDP, SCTP", clip(*s.Protocol))
		}
	}
	if absent(s.Port) {
		if s.EndPort != nil {
			r.fail(field+".endPort", "needs a port")
		}
		return l
	}
	rng, name, err := parsePort(s.Port)
	switch {
	case err == nil && rng.First != rng.Last:
		err = errors.New("a range is written with endPort")
	case err == nil && s.EndPort != nil && name != "":
		err = errors.New("endPort needs a number as the port")
	case err == nil && s.EndPort != nil && (*s.EndPort < int(rng.First) || *s.EndPort > 65535):
		err = fmt.Errorf("endPort %d is not in %d..65535", *s.EndPort, rng.First)
	}
	switch {
	case err != nil:
		r.fail(field+".port", "%v", err)
	case name != "":
		l.Named = []string{name}
	default:
		if s.EndPort != nil {
			rng.Last = uint16(*s.EndPort)
		}
		l.Ports = []model.PortRange{rng}
	}
	return l
}
