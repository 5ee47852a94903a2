// Package calico turns Calico's policy objects into the model: NetworkPolicy and GlobalNetworkPolicy, their staged twins,
// tiers, network sets, host endpoints and the profiles that those name, of projectcalico.org/v3 and of crd.projectcalico.org/v1.
//
// It is pure and imports nothing of Calico's. It does not evaluate anything, does not know which tiers exist, and looks
// into no other object: what a policy refers to is found by whoever compiles it. docs/policy/calico.md says what users may expect.
//
// What is not understood fails closed: a policy keeps isolating, a rule that allows or passes matches nothing, and one that denies
// is no narrower than the parts of it that were understood.
package calico

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"weft/internal/convert/object"
	"weft/internal/selector"
)

// The API groups: what users write, and how Calico's Kubernetes datastore keeps it where nothing serves the former.
const (
	apiGroup   = "projectcalico.org"
	storeGroup = "crd.projectcalico.org"
)

// Kinds lists the object types that are converted, for sources and CRDs.
func Kinds() []object.Kind {
	var out []object.Kind
	for _, gv := range []object.Type{{Group: apiGroup, Version: "v3"}, {Group: storeGroup, Version: "v1"}} {
		add := func(kind, plural string, namespaced bool) {
			out = append(out, object.Kind{Type: object.Type{Group: gv.Group, Version: gv.Version, Kind: kind}, Plural: plural, Namespaced: namespaced})
		}
		add("NetworkPolicy", "networkpolicies", true)
		add("GlobalNetworkPolicy", "globalnetworkpolicies", false)
		add("Tier", "tiers", false)
		add("NetworkSet", "networksets", true)
		add("GlobalNetworkSet", "globalnetworksets", false)
		add("StagedNetworkPolicy", "stagednetworkpolicies", true)
		add("StagedGlobalNetworkPolicy", "stagedglobalnetworkpolicies", false)
		add("StagedKubernetesNetworkPolicy", "stagedkubernetesnetworkpolicies", true)
		add("HostEndpoint", "hostendpoints", false)
		if gv.Group == apiGroup { // the Kubernetes datastore keeps no profiles
			add("Profile", "profiles", false)
		}
	}
	return out
}

// Convert turns one object (JSON) into the model.
func Convert(raw []byte) object.Result {
	o, err := object.Parse(raw, true)
	if err != nil {
		return object.Result{Err: err}
	}
	kinds := Kinds()
	i := slices.IndexFunc(kinds, func(k object.Kind) bool { return k.Type == o.Type })
	if i < 0 {
		return object.Result{Err: fmt.Errorf("%s is not a kind of Calico's that weft converts", o.Type)}
	}
	if !kinds[i].Namespaced {
		o.Meta.Namespace = ""
	}
	switch o.Type.Kind {
	case "Tier":
		return tier(o)
	case "NetworkSet", "GlobalNetworkSet":
		return networkSet(o)
	case "HostEndpoint":
		return hostEndpoint(o)
	case "Profile":
		return profile(o)
	case "StagedKubernetesNetworkPolicy":
		return stagedKubernetes(o)
	default:
		return policy(o)
	}
}

// report gathers what is wrong with an object, and what of it is not enforced yet.
type report struct {
	errs        []error
	unsupported []string // field paths
}

func (r *report) errorf(field, format string, args ...any) {
	r.errs = append(r.errs, fmt.Errorf("%s: %s", field, fmt.Sprintf(format, args...)))
}

func (r *report) err() error { return errors.Join(r.errs...) }

// absent reports whether a field is not there. Calico tells null from absent nowhere.
func absent(raw json.RawMessage) bool { return len(raw) == 0 || string(raw) == "null" }

// decode decodes a field; absent ones give the zero value. If ok is false, the report has the mistake, and v is what could be
// understood all the same.
func decode[T any](r *report, field string, raw json.RawMessage) (v T, ok bool) {
	if absent(raw) {
		return v, true
	}
	if err := object.Decode(field, raw, &v); err != nil {
		r.errs = append(r.errs, err)
		return v, false
	}
	return v, true
}

// structure decodes a struct as decode does.
func structure[T any](r *report, field string, raw json.RawMessage) (v T, ok bool) {
	if !absent(raw) && raw[0] != '{' {
		r.errorf(field, "want an object with fields")
		return v, false
	}
	return decode[T](r, field, raw)
}

// list returns the items of a list; none of an absent or empty one, which mean the same everywhere in Calico.
func (r *report) list(field string, raw json.RawMessage) (items []json.RawMessage, ok bool) {
	if absent(raw) {
		return nil, true
	}
	if json.Unmarshal(raw, &items) != nil {
		r.errorf(field, "want a list")
		return nil, false
	}
	return items, true
}

// each calls f with the path and the value of each item of a list of strings; ok is false if some are none.
func (r *report) each(field string, raw json.RawMessage, f func(at, text string)) (ok bool) {
	items, ok := r.list(field, raw)
	for i, item := range items {
		at := fmt.Sprintf("%s[%d]", field, i)
		s, good := decode[string](r, at, item)
		if good && absent(item) {
			r.errorf(at, "want string, got a JSON null")
			good = false
		}
		if good {
			f(at, s)
		}
		ok = ok && good
	}
	return ok
}

// texts returns the items of a list of strings that are strings; ok is false if some are none.
func (r *report) texts(field string, raw json.RawMessage) (out []string, ok bool) {
	ok = r.each(field, raw, func(_, text string) { out = append(out, text) })
	return out, ok
}

// ownLabels returns an object's labels without those that could be taken for weft's facts.
func ownLabels(labels map[string]string) selector.Map {
	out := selector.Map{}
	for k, v := range labels {
		if !strings.HasPrefix(k, "@") && !strings.Contains(k, ":") {
			out[k] = v
		}
	}
	return out
}
