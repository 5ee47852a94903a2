// Package object reads what the objects of every policy API have in common: metadata, label selectors, and JSON decoded
// with nil and empty kept apart and every mistake named by its field.
//
// It knows no policy API: those are its siblings, which turn an object into the model. It reads no file and talks to no server.
package object

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"weft/internal/model"
	"weft/internal/selector"
)

// Type is the type of an object.
type Type struct {
	Group   string // API group, "" for the core
	Version string
	Kind    string
}

// String returns "group/version Kind".
func (t Type) String() string {
	return strings.TrimPrefix(t.Group+"/"+t.Version, "/") + " " + t.Kind
}

// TypeOf returns the type that an object's apiVersion and kind name.
func TypeOf(apiVersion, kind string) Type {
	group, version, found := strings.Cut(apiVersion, "/")
	if !found {
		group, version = "", group
	}
	return Type{group, version, kind}
}

// Meta is the metadata that policies need.
type Meta struct {
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace"`
	UID         string            `json:"uid"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	Created     string            `json:"creationTimestamp"` // RFC 3339 in UTC, so that the order of texts is that of times
	Generation  int64             `json:"generation"`
}

// Object is one object, its spec not decoded yet.
type Object struct {
	Type Type
	Meta Meta
	Raw  json.RawMessage // the whole object
	Spec json.RawMessage // nil: absent
}

// Ref names the object.
func (o *Object) Ref() model.Ref {
	return model.Ref{Group: o.Type.Group, Kind: o.Type.Kind, Namespace: o.Meta.Namespace, Name: o.Meta.Name}
}

// Parse reads an object's head. Namespaced says whether the kind lives in a namespace, which is then "default" if absent.
func Parse(raw []byte, namespaced bool) (*Object, error) {
	var o struct {
		APIVersion string          `json:"apiVersion"`
		Kind       string          `json:"kind"`
		Meta       Meta            `json:"metadata"`
		Spec       json.RawMessage `json:"spec"`
	}
	if err := json.Unmarshal(raw, &o); err != nil {
		return nil, Explain("", err)
	}
	out := &Object{Type: TypeOf(o.APIVersion, o.Kind), Meta: o.Meta, Raw: raw, Spec: o.Spec}
	switch {
	case o.Kind == "" || out.Type.Version == "":
		return nil, errors.New("apiVersion or kind is missing: not a Kubernetes object")
	case o.Meta.Name == "":
		return nil, fmt.Errorf("%s: metadata.name is missing", o.Kind)
	}
	switch {
	case !namespaced:
		out.Meta.Namespace = ""
	case out.Meta.Namespace == "":
		out.Meta.Namespace = "default"
	}
	return out, nil
}

// Decode decodes a part of an object whose field path is given. Unknown fields are errors of type *UnknownField: the
// value is decoded all the same, so that the caller may go on and fail closed.
func Decode(field string, data json.RawMessage, into any) error {
	if len(data) == 0 {
		data = json.RawMessage("{}")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	strict := d.Decode(into)
	if strict == nil {
		return nil
	}
	name, unknown := strings.CutPrefix(strict.Error(), "json: unknown field ")
	if !unknown {
		return Explain(field, strict)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return Explain(field, err)
	}
	return &UnknownField{Field: field, Name: strings.Trim(name, `"`)}
}

// UnknownField says that an object has a field that no version of its API had.
type UnknownField struct{ Field, Name string }

// Error implements error.
func (e *UnknownField) Error() string {
	return fmt.Sprintf("%s: unknown field %q", e.Field, e.Name)
}

// Explain words a JSON error for the user who wrote the object. Field is the path of what was decoded.
func Explain(field string, err error) error {
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		at := strings.Trim(field+"."+wrong.Field, ".")
		return fmt.Errorf("%s: want %s, got a JSON %s", at, wrong.Type, wrong.Value)
	}
	if field == "" {
		return err
	}
	return fmt.Errorf("%s: %w", field, err)
}

// LabelSelector is metav1.LabelSelector. An empty one matches everything; a nil one is the field's affair.
type LabelSelector struct {
	MatchLabels      map[string]string `json:"matchLabels"`
	MatchExpressions []Requirement     `json:"matchExpressions"`
}

// Requirement is metav1.LabelSelectorRequirement.
type Requirement struct {
	Key      string   `json:"key"`
	Operator string   `json:"operator"`
	Values   []string `json:"values"`
}

// Expr converts a selector that is not nil; field is its path, for the error.
func (s *LabelSelector) Expr(field string) (*selector.Expr, error) {
	return s.ExprKeys(field, func(k string) string { return k })
}

// ExprKeys is Expr with every key replaced.
func (s *LabelSelector) ExprKeys(field string, key func(string) string) (*selector.Expr, error) {
	var parts []*selector.Expr
	for k, v := range s.MatchLabels {
		parts = append(parts, selector.Equal(key(k), v))
	}
	for i, r := range s.MatchExpressions {
		e, err := r.expr(key)
		if err != nil {
			return nil, fmt.Errorf("%s.matchExpressions[%d]: %w", field, i, err)
		}
		parts = append(parts, e)
	}
	return selector.AllOf(parts...), nil
}

func (r *Requirement) expr(key func(string) string) (*selector.Expr, error) {
	if r.Key == "" {
		return nil, errors.New("key is missing")
	}
	k := key(r.Key)
	switch r.Operator {
	case "In", "NotIn":
		if len(r.Values) == 0 {
			return nil, fmt.Errorf("operator %s needs values", r.Operator)
		}
		if r.Operator == "In" {
			return selector.OneOf(k, r.Values...), nil
		}
		return selector.NoneOf(k, r.Values...), nil
	case "Exists", "DoesNotExist":
		if len(r.Values) != 0 {
			return nil, fmt.Errorf("operator %s takes no values", r.Operator)
		}
		if r.Operator == "Exists" {
			return selector.Exists(k), nil
		}
		return selector.Absent(k), nil
	}
	return nil, fmt.Errorf("operator %q is not one of In, NotIn, Exists, DoesNotExist", r.Operator)
}

// Prefix parses an address block. Bits beyond its length are cut off, as Kubernetes does.
func Prefix(field, s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return p, fmt.Errorf("%s: %q is not a prefix in CIDR notation", field, s)
	case p.Addr().Is4In6(): // no packet bears such an address
		return p, fmt.Errorf("%s: %q is an IPv4 prefix written as IPv6: write it as IPv4", field, s)
	}
	return p.Masked(), nil
}

// Pods is the expression for pods in a namespace (any if empty) that match e (all if nil).
func Pods(namespace string, e *selector.Expr) *selector.Expr {
	var ns *selector.Expr
	if namespace != "" {
		ns = selector.Equal(selector.NamespaceName, namespace)
	}
	return selector.AllOf(selector.Equal(selector.Kind, selector.KindPod), ns, e)
}

// Result is what an object became. Objects and Err may both be set: what is in Objects is to be used, and is what is left
// (failing closed) of an object in which Err names the mistakes.
type Result struct {
	Objects []model.Object
	Err     error
}

// Kind is a kind of objects that a converter understands, as the API server knows it.
type Kind struct {
	Type       Type
	Plural     string // of the resource, "networkpolicies"
	Namespaced bool
}
