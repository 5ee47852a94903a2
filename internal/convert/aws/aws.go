// Package aws turns the policies of the AWS VPC CNI (networking.k8s.aws/v1alpha1) into the model: ApplicationNetworkPolicy, which is
// NetworkPolicy with DNS names, and ClusterNetworkPolicy, which is sig-network's with ports in its older form.
//
// It does not read PolicyEndpoint and ClusterPolicyEndpoint: those are what AWS's controller makes of the policies for AWS's
// agents, and weft needs neither. DNS names are kept, and match nothing yet.
package aws

import (
	"fmt"

	"weft/internal/convert/netpol"
	"weft/internal/convert/object"
	"weft/internal/convert/sig"
	"weft/internal/model"
)

// The API group, and the kind in a namespace.
const (
	group       = "networking.k8s.aws"
	application = "ApplicationNetworkPolicy"
)

// Kinds lists the object types that are converted, for sources and CRDs.
func Kinds() []object.Kind {
	return []object.Kind{
		{
			Type:   object.Type{Group: group, Version: "v1alpha1", Kind: application},
			Plural: "applicationnetworkpolicies", Namespaced: true,
		},
		{
			Type:   object.Type{Group: group, Version: "v1alpha1", Kind: "ClusterNetworkPolicy"},
			Plural: "clusternetworkpolicies",
		},
	}
}

// Convert turns one object (JSON) into the model.
func Convert(raw []byte) object.Result {
	o, err := object.Parse(raw, true)
	if err != nil {
		return object.Result{Err: err}
	}
	for _, k := range Kinds() {
		switch {
		case k.Type != o.Type:
		case k.Namespaced:
			return applicationPolicy(o).Result()
		default:
			o.Meta.Namespace = ""
			return sig.ConvertAs(o, dialect())
		}
	}
	return object.Result{Err: fmt.Errorf("%s: not a policy of %s", o.Type, group)}
}

// applicationPolicy reads an ApplicationNetworkPolicy. Without policyTypes it is about the directions that it has rules of: nothing fills them
// in here, as the API server does for NetworkPolicy, which is about ingress always.
func applicationPolicy(o *object.Object) *netpol.Spec {
	s := netpol.Parse(o, netpol.Dialect{CheckName: sig.CheckName})
	if len(s.Types) == 0 && len(s.Ingress) == 0 && len(s.Egress) > 0 {
		s.Types = []string{"Egress"}
	}
	return s
}

// dialect is AWS's form of ClusterNetworkPolicy: its rules have ports and not protocols, its peers may not be nodes,
// and what passes may be named.
func dialect() sig.Dialect {
	return sig.Dialect{
		Actions: sig.Actions(), Priority: true, Ports: true,
		Names:      []model.Verdict{model.VerdictAllow, model.VerdictPass},
		NamedPorts: true,
	}
}
