// Package antrea converts the policy objects of Antrea (group crd.antrea.io): ClusterNetworkPolicy, NetworkPolicy, Tier,
// ClusterGroup and Group.
//
// It sees one object at a time: whether the tier or the group that a policy names is there, and whether a priority is unique among
// tiers, is found out where policies are compiled. It does not convert Antrea's other objects (Egress, IPPool, Traceflow
// and so on) and decides nothing about packets.
package antrea

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"weft/internal/convert/object"
	"weft/internal/model"
)

// apiGroup is the API group of everything here.
const apiGroup = "crd.antrea.io"

// The kinds of objects.
const (
	kindClusterPolicy = "ClusterNetworkPolicy"
	kindPolicy        = "NetworkPolicy"
	kindTier          = "Tier"
	kindClusterGroup  = "ClusterGroup"
	kindGroup         = "Group"
)

// Kinds lists the object types that are converted. Of the versions of a kind the first is the one to watch and to store: an API
// server that has several shows every object in each of them. The others are for manifests that users still have.
func Kinds() []object.Kind {
	var out []object.Kind
	add := func(kind, plural string, namespaced bool, versions ...string) {
		for _, v := range versions {
			out = append(out, object.Kind{Type: object.Type{Group: apiGroup, Version: v, Kind: kind}, Plural: plural, Namespaced: namespaced})
		}
	}
	add(kindClusterPolicy, "clusternetworkpolicies", false, "v1beta1", "v1alpha1")
	add(kindPolicy, "networkpolicies", true, "v1beta1", "v1alpha1")
	add(kindTier, "tiers", false, "v1beta1", "v1alpha1")
	add(kindClusterGroup, "clustergroups", false, "v1beta1", "v1alpha3", "v1alpha2")
	add(kindGroup, "groups", true, "v1beta1", "v1alpha3")
	return out
}

// Convert turns one object (JSON) into the model: a policy into one model.Policy, or two if some of its rules are applied to
// services; a tier into a model.Tier; a group into a model.Group. Error and objects may both be there, see object.Result.
func Convert(raw []byte) object.Result {
	obj, err := object.Parse(raw, true)
	if err != nil {
		return object.Result{Err: err}
	}
	i := slices.IndexFunc(Kinds(), func(k object.Kind) bool { return k.Type == obj.Type })
	if i < 0 {
		return object.Result{Err: fmt.Errorf("%s is not an object of Antrea that is converted", obj.Type)}
	}
	if !Kinds()[i].Namespaced {
		obj.Meta.Namespace = ""
	}
	c := &conversion{obj: obj, namespace: obj.Meta.Namespace}
	var out []model.Object
	switch obj.Type.Kind {
	case kindTier:
		out = c.tier()
	case kindClusterGroup, kindGroup:
		out = c.group()
	default:
		out = c.policy()
	}
	return object.Result{Objects: out, Err: errors.Join(c.errs...)}
}

// conversion is what is known while one object is converted.
type conversion struct {
	obj         *object.Object
	namespace   string   // of the object; "" for cluster-scoped kinds
	errs        []error  // every mistake, each with its field
	unsupported []string // fields that are not enforced yet, or wrong, in the order in which they were met
}

// mistake notes what is wrong with a field.
func (c *conversion) mistake(field, format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf("%s: %w", field, fmt.Errorf(format, args...)))
}

// notYet notes a field that is right and not enforced yet.
func (c *conversion) notYet(field string) {
	if !slices.Contains(c.unsupported, field) {
		c.unsupported = append(c.unsupported, field)
	}
}

// decode decodes a part of the object, and notes mistakes; what is understood is in into. It returns whether that is everything.
func (c *conversion) decode(field string, data json.RawMessage, into any) bool {
	if err := object.Decode(field, data, into); err != nil {
		c.errs = append(c.errs, err)
		return false
	}
	return true
}

// groupRef names a group that the object refers to: of policies of a namespace, and of groups in one, it is there as well.
func (c *conversion) groupRef(name string) model.Ref {
	kind := kindClusterGroup
	if c.namespace != "" {
		kind = kindGroup
	}
	return model.Ref{Group: apiGroup, Kind: kind, Namespace: c.namespace, Name: name}
}
