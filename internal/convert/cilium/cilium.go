// Package cilium converts the policy objects of Cilium (group cilium.io): CiliumNetworkPolicy and
// CiliumClusterwideNetworkPolicy (v2) into model.Policy, CiliumCIDRGroup (v2alpha1, v2) into model.AddressSet.
//
// It takes every field that Cilium 1.15 to 1.20 had. It does not enforce anything, and of what weft does not enforce yet
// (rules on layer 7, DNS names, TLS, authentication) it keeps only that it is there. It does not know which pods, nodes,
// services and other clusters exist.
//
// Cilium ignores an object with a mistake as a whole, and what the object should have closed stays open. Here only the rule with the
// mistake fails, and it fails closed: it allows nothing, or denies whatever of it was understood; the policy isolates as before.
package cilium

import (
	"fmt"

	"weft/internal/convert/object"
)

// The kinds, and their group.
const (
	apiGroup          = "cilium.io"
	kindPolicy        = "CiliumNetworkPolicy"
	kindClusterPolicy = "CiliumClusterwideNetworkPolicy"
	kindCIDRGroup     = "CiliumCIDRGroup"
)

// Kinds lists the object types that are converted, for sources and CRDs.
func Kinds() []object.Kind {
	kind := func(version, name, plural string, namespaced bool) object.Kind {
		return object.Kind{Type: object.Type{Group: apiGroup, Version: version, Kind: name}, Plural: plural, Namespaced: namespaced}
	}
	return []object.Kind{
		kind("v2", kindPolicy, "ciliumnetworkpolicies", true),
		kind("v2", kindClusterPolicy, "ciliumclusterwidenetworkpolicies", false),
		kind("v2", kindCIDRGroup, "ciliumcidrgroups", false),
		kind("v2alpha1", kindCIDRGroup, "ciliumcidrgroups", false),
	}
}

// Convert turns one object (JSON) into the model: a policy into one model.Policy for each of spec and specs, and sometimes
// another one for what has a rank of its own; a CIDR group into a model.AddressSet.
func Convert(raw []byte) object.Result {
	o, err := object.Parse(raw, true)
	if err != nil {
		return object.Result{Err: err}
	}
	for _, k := range Kinds() {
		if k.Type != o.Type {
			continue
		}
		if !k.Namespaced {
			o.Meta.Namespace = ""
		}
		if o.Type.Kind == kindCIDRGroup {
			return convertGroup(o)
		}
		return convertPolicy(o)
	}
	return object.Result{Err: fmt.Errorf("%s: not a kind of Cilium's policy", o.Type)}
}
