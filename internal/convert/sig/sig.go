// Package sig turns the cluster-wide policies of Kubernetes' network policy group into the model: ClusterNetworkPolicy
// (policy.networking.k8s.io/v1alpha2 and v1beta1), and its predecessors AdminNetworkPolicy and
// BaselineAdminNetworkPolicy (v1alpha1).
//
// It does not decide what a packet may do (see package oracle), and it knows nothing of the namespaced NetworkPolicy (see
// netpol). AWS's ClusterNetworkPolicy has the same form: package aws calls ConvertAs.
//
// These policies are asked in the admin tier, before NetworkPolicy, or in the baseline tier, after it; by priority,
// then name; rule by rule. They isolate nobody: what none of their rules decides, a later tier decides.
package sig

import (
	"errors"
	"fmt"
	"strings"

	"weft/internal/convert/object"
	"weft/internal/model"
)

// group is the API group of all kinds.
const group = "policy.networking.k8s.io"

// Kinds lists the object types that are converted, for sources and CRDs. ClusterNetworkPolicy has two versions of equal
// form: a source asks for one of them.
func Kinds() []object.Kind {
	kind := func(version, kind, plural string) object.Kind {
		return object.Kind{Type: object.Type{Group: group, Version: version, Kind: kind}, Plural: plural}
	}
	return []object.Kind{
		kind("v1beta1", "ClusterNetworkPolicy", "clusternetworkpolicies"),
		kind("v1alpha2", "ClusterNetworkPolicy", "clusternetworkpolicies"),
		kind("v1alpha1", "AdminNetworkPolicy", "adminnetworkpolicies"),
		kind("v1alpha1", "BaselineAdminNetworkPolicy", "baselineadminnetworkpolicies"),
	}
}

// Convert turns one object (JSON) into the model.
func Convert(raw []byte) object.Result {
	o, err := object.Parse(raw, false)
	if err != nil {
		return object.Result{Err: err}
	}
	for _, k := range Kinds() {
		if k.Type == o.Type {
			return ConvertAs(o, dialect(o.Type.Kind))
		}
	}
	return object.Result{Err: fmt.Errorf("%s: not a cluster-wide policy of %s", o.Type, group)}
}

// Dialect is in what the APIs of this form differ.
type Dialect struct {
	Actions map[string]model.Verdict // the words of rules' actions
	// Names are the verdicts whose egress peers may be domainNames.
	Names []model.Verdict
	// Tier is the tier of all objects; zero: spec.tier says, Admin or Baseline.
	Tier     model.TierRef
	Priority bool   // there is spec.priority
	Name     string // the only name that an object may have; "": any
	// Rules may have ports (portNumber, portRange, namedPort) or protocols (tcp, udp, sctp, destinationNamedPort).
	Ports, Protocols bool
	NamedPorts       bool // named ports may stand beside networks and names, of which they are those of the pods
	Nodes            bool // egress peers may be nodes
	Nested           bool // namespaces may be in the form of v1alpha1's first releases: {namespaceSelector: …}
}

// dialect returns the dialect of a kind.
func dialect(kind string) Dialect {
	allow := []model.Verdict{model.VerdictAllow}
	switch kind {
	case "AdminNetworkPolicy":
		return Dialect{
			Actions: map[string]model.Verdict{"Allow": model.VerdictAllow, "Deny": model.VerdictDeny, "Pass": model.VerdictPass},
			Tier:    Admin(), Priority: true, Ports: true, Nodes: true, Names: allow, Nested: true,
		}
	case "BaselineAdminNetworkPolicy":
		return Dialect{
			Actions: map[string]model.Verdict{"Allow": model.VerdictAllow, "Deny": model.VerdictDeny},
			Tier:    Baseline(), Ports: true, Nodes: true, Nested: true, Name: "default",
		}
	}
	// The first v1alpha2, which some CNIs shipped, had ports; protocols replaced them.
	return Dialect{Actions: Actions(), Priority: true, Ports: true, Protocols: true, Nodes: true, Names: allow}
}

// Actions are the words of ClusterNetworkPolicy.
func Actions() map[string]model.Verdict {
	return map[string]model.Verdict{"Accept": model.VerdictAllow, "Deny": model.VerdictDeny, "Pass": model.VerdictPass}
}

// Admin is the tier that is asked before NetworkPolicy.
func Admin() model.TierRef { return model.TierRef{Name: "admin", Order: model.TierAdmin} }

// Baseline is the tier that is asked after NetworkPolicy.
func Baseline() model.TierRef { return model.TierRef{Name: "baseline", Order: model.TierBaseline} }

// CheckName says what is wrong with a domainName: it is a name of two labels or more, "*." before it stands for one label or more.
func CheckName(name string) error {
	wrong := errors.New(`want a DNS name such as "example.com" or "*.example.com"`)
	labels := strings.Split(strings.TrimSuffix(strings.TrimPrefix(name, "*."), "."), ".")
	if len(labels) < 2 || len(name) > 255 {
		return fmt.Errorf("%q: %w", name, wrong)
	}
	const alnum = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	for _, l := range labels {
		inner := strings.Trim(l, alnum)
		if l == "" || strings.HasPrefix(l, inner) && inner != "" || strings.HasSuffix(l, inner) && inner != "" ||
			strings.Trim(inner, alnum+"-_") != "" {
			return fmt.Errorf("%q: %w", name, wrong)
		}
	}
	return nil
}
