// Package netpol turns Kubernetes' own NetworkPolicy (networking.k8s.io/v1) into the model, from JSON and from the API
// server's protobuf.
//
// It does not decide what a packet may do (see package oracle), and it knows no other API: those that are modelled on
// NetworkPolicy (AWS's ApplicationNetworkPolicy, GKE's FQDNNetworkPolicy) have packages of their own, which read their
// objects into the same Spec.
//
// Every policy of this kind is in one set, in the normal tier: what any of them allows is allowed, order means nothing, and a
// pod that one of them selects is isolated in that direction.
package netpol

import (
	"errors"
	"fmt"

	"weft/internal/convert/object"
	"weft/internal/convert/wire"
)

// Kinds lists the object types that are converted, for sources and CRDs.
func Kinds() []object.Kind {
	return []object.Kind{{
		Type:   object.Type{Group: "networking.k8s.io", Version: "v1", Kind: "NetworkPolicy"},
		Plural: "networkpolicies", Namespaced: true,
	}}
}

// Convert turns one object (JSON) into the model.
func Convert(raw []byte) object.Result {
	o, err := object.Parse(raw, true)
	if err != nil {
		return object.Result{Err: err}
	}
	if o.Type != Kinds()[0].Type {
		return object.Result{Err: fmt.Errorf("%s: not a NetworkPolicy of networking.k8s.io/v1", o.Type)}
	}
	return Parse(o, Dialect{}).Result()
}

// FromProto turns one object (the protobuf of networking.k8s.io/v1 NetworkPolicy) into the model. Strings may be nil.
//
// Protobuf does not keep a list that is empty and one that is absent apart. Only policyTypes would
// need it, and the API server fills those in.
func FromProto(data []byte, s *wire.Strings) object.Result {
	out := &Spec{}
	out.Ref.Group, out.Ref.Kind = Kinds()[0].Type.Group, Kinds()[0].Type.Kind
	err := wire.Walk(data, s, func(f wire.Field) error {
		switch f.Num {
		case 1:
			return f.Message(out.readMeta)
		case 2:
			return f.Message(out.read)
		}
		return nil // status, which Kubernetes 1.24 to 1.27 had
	})
	switch {
	case err != nil:
		return object.Result{Err: fmt.Errorf("NetworkPolicy %s: %w", out.Ref.Name, err)}
	case out.Ref.Name == "":
		return object.Result{Err: errors.New("NetworkPolicy: metadata.name is missing")}
	case out.Ref.Namespace == "":
		out.Ref.Namespace = "default"
	}
	return out.Result()
}
