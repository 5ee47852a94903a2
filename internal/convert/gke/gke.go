// Package gke turns FQDNNetworkPolicy (networking.gke.io) into the model: the kind of Google Kubernetes Engine (v1alpha1, whose
// rules have matches) and that of the open add-on of the same name (v1alpha1 to v1alpha3, whose peers have fqdns).
//
// It does not resolve names. They are kept, and match nothing yet: until then such a policy isolates the pods that it selects and
// allows them nothing. The NetworkPolicy that the add-on's controller writes is converted by package netpol like any other.
package gke

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"weft/internal/convert/netpol"
	"weft/internal/convert/object"
)

// group is the API group.
const group = "networking.gke.io"

// Kinds lists the object types that are converted, for sources and CRDs. They are versions of one resource, newest first: in an older one
// the API server leaves out what only a newer one has.
func Kinds() []object.Kind {
	var out []object.Kind
	for _, version := range []string{"v1alpha3", "v1alpha2", "v1alpha1"} {
		out = append(out, object.Kind{
			Type:   object.Type{Group: group, Version: version, Kind: "FQDNNetworkPolicy"},
			Plural: "fqdnnetworkpolicies", Namespaced: true,
		})
	}
	return out
}

// Convert turns one object (JSON) into the model.
func Convert(raw []byte) object.Result {
	o, err := object.Parse(raw, true)
	if err != nil {
		return object.Result{Err: err}
	}
	for _, k := range Kinds() {
		if k.Type == o.Type {
			return parse(o).Result()
		}
	}
	return object.Result{Err: fmt.Errorf("%s: not a FQDNNetworkPolicy of %s", o.Type, group)}
}

// parse reads the spec of an object.
func parse(o *object.Object) *netpol.Spec {
	s := &netpol.Spec{Ref: o.Ref()}
	var in struct {
		PodSelector json.RawMessage `json:"podSelector"`
		PolicyTypes json.RawMessage `json:"policyTypes"`
		Ingress     json.RawMessage `json:"ingress"`
		Egress      json.RawMessage `json:"egress"`
	}
	s.ReadHead(o.Spec, &in, &in.PodSelector, &in.PolicyTypes)
	s.Egress = netpol.ReadRules("spec.egress", in.Egress, egress)
	s.Ingress = netpol.ReadRules("spec.ingress", in.Ingress, func(r *netpol.Rule, data json.RawMessage) {
		var in struct {
			From  json.RawMessage `json:"from"`
			Ports json.RawMessage `json:"ports"`
		}
		r.Decode(r.Field, data, &in)
		r.Ports = ports(r, in.Ports)
		peers(r, "from", in.From)
	})
	// Only v1alpha2 and v1alpha3 have directions; an older object is about egress, also without rules.
	if o.Type.Version == "v1alpha1" && len(s.Types) == 0 && len(s.Ingress) == 0 {
		s.Types = []string{"Egress"}
	}
	return s
}

// egress reads an egress rule, which names its destinations in "matches" (GKE) or in "to" (the add-on).
func egress(r *netpol.Rule, data json.RawMessage) {
	var in struct {
		Matches json.RawMessage `json:"matches"`
		To      json.RawMessage `json:"to"`
		Ports   json.RawMessage `json:"ports"`
	}
	r.Decode(r.Field, data, &in)
	r.Ports = ports(r, in.Ports)
	if in.To != nil {
		if in.Matches != nil {
			r.Bad.Add(r.Field, "both matches and to are set")
		}
		peers(r, "to", in.To)
		return
	}
	list, _ := netpol.List(&r.Bad, r.Field+".matches", in.Matches)
	if len(list) == 0 {
		// Elsewhere no peers are all peers; here a rule is about names, and there are none.
		r.Bad.Add(r.Field+".matches", "must not be empty")
	}
	for i, data := range list {
		r.Peers = append(r.Peers, match(r, fmt.Sprintf("%s.matches[%d]", r.Field, i), data))
	}
}

// match reads {name} or {pattern}.
func match(r *netpol.Rule, field string, data json.RawMessage) netpol.Peer {
	var in struct {
		Name    *string `json:"name"`
		Pattern *string `json:"pattern"`
	}
	r.Decode(field, data, &in)
	p := netpol.Peer{Field: field, Names: []string{}, NamesField: field}
	switch {
	case (in.Name == nil) == (in.Pattern == nil):
		r.Bad.Add(field, "want exactly one of name and pattern")
	case in.Name != nil:
		p.Names = append(p.Names, *in.Name)
		if err := checkName(*in.Name, ""); err != nil {
			r.Bad.Add(field+".name", "%w", err)
		}
	default:
		p.Names = append(p.Names, *in.Pattern)
		if err := checkName(*in.Pattern, "*"); err != nil {
			r.Bad.Add(field+".pattern", "%w", err)
		}
	}
	return p
}

// peers reads a list of {fqdns}.
func peers(r *netpol.Rule, name string, raw json.RawMessage) {
	field := r.Field + "." + name
	list, _ := netpol.List(&r.Bad, field, raw)
	if len(list) == 0 {
		r.Bad.Add(field, "must not be empty")
	}
	for i, data := range list {
		var in struct {
			FQDNs json.RawMessage `json:"fqdns"`
		}
		p := netpol.Peer{Field: fmt.Sprintf("%s[%d]", field, i)}
		r.Decode(p.Field, data, &in)
		p.ReadNames(r, "fqdns", in.FQDNs, func(s string) error { return checkName(s, "") })
		r.Peers = append(r.Peers, p)
	}
}

// ports reads a rule's ports, of which the add-on takes an empty protocol for TCP.
func ports(r *netpol.Rule, raw json.RawMessage) []netpol.Port {
	out := netpol.ReadPorts(r, raw)
	for i := range out {
		if p := out[i].Protocol; p != nil && *p == "" {
			out[i].Protocol = nil
		}
	}
	return out
}

// checkName says what is wrong with a DNS name; of a pattern, the wildcard is one more character.
func checkName(name, wildcard string) error {
	const alnum = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	s := strings.TrimSuffix(name, ".")
	switch {
	case s == "" || len(name) > 255:
		return errors.New("want a DNS name of 1 to 255 characters")
	case strings.Trim(s, alnum+"-_."+wildcard) != "" || strings.Contains(s, "..") || s[0] == '.' || s[0] == '-':
		return fmt.Errorf("%q is not a DNS name", name)
	}
	return nil
}
