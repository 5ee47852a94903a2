// Package k8s turns Kubernetes objects into the model: Node, Namespace, Pod, Service, ServiceAccount (v1)
// and EndpointSlice (discovery.k8s.io/v1), from JSON, YAML or the API server's protobuf.
//
// It is pure: it reads no file and talks to no server (see source/file and source/kube), and it
// does not import Kubernetes' own types. It does not decide what an object means for the
// kernel; it keeps what the user said. An error names the object and the field.
//
// An error may come with an object: the object is usable, and the part of it that the
// error names was left out.
package k8s

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"weft/internal/convert/wire"
	"weft/internal/model"
)

// ErrUnsupported is wrapped by errors about objects of which weft uses none of their kind.
var ErrUnsupported = errors.New("not a kind that weft uses")

// Type is the type of a Kubernetes object.
type Type struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
}

// object is what the structs of this package have in common.
type object interface {
	read(wire.Field) error
	meta() *Meta
	// Model converts; the receiver's maps become the result's.
	Model() (model.Object, error)
}

func (n *Node) meta() *Meta           { return &n.Meta }
func (n *Namespace) meta() *Meta      { return &n.Meta }
func (p *Pod) meta() *Meta            { return &p.Meta }
func (s *Service) meta() *Meta        { return &s.Meta }
func (e *EndpointSlice) meta() *Meta  { return &e.Meta }
func (a *ServiceAccount) meta() *Meta { return &a.Meta }

// make returns an empty object of the type, or nil.
func (t Type) make() object {
	switch t {
	case Type{"v1", "Node"}:
		return new(Node)
	case Type{"v1", "Namespace"}:
		return new(Namespace)
	case Type{"v1", "Pod"}:
		return new(Pod)
	case Type{"v1", "Service"}:
		return new(Service)
	case Type{"v1", "ServiceAccount"}:
		return new(ServiceAccount)
	case Type{"discovery.k8s.io/v1", "EndpointSlice"}:
		return new(EndpointSlice)
	}
	return nil
}

// namespaced reports whether objects of the type live in a namespace.
func (t Type) namespaced() bool { return t.Kind != "Node" && t.Kind != "Namespace" }

// Item is what came of one object.
type Item struct {
	Type   Type
	Meta   Meta         // what could be read of it
	Object model.Object // nil where Err leaves nothing to use
	Err    error
}

// Name returns "Kind namespace/name", for messages.
func (i Item) Name() string {
	name := i.Meta.Name
	if i.Meta.Namespace != "" {
		name = i.Meta.Namespace + "/" + name
	}
	return strings.TrimSpace(i.Type.Kind + " " + name)
}

// FromProto converts an object of a known type from protobuf. Strings may be nil.
func FromProto(t Type, data []byte, s *wire.Strings) Item {
	o := t.make()
	if o == nil {
		return Item{Type: t, Err: unsupported(t)}
	}
	if err := wire.Walk(data, s, o.read); err != nil {
		return Item{Type: t, Meta: *o.meta(), Err: fmt.Errorf("%s %s: %w", t.Kind, o.meta().Name, err)}
	}
	return finish(t, o)
}

// FromJSON converts an object from JSON. Fallback is its type where the document does not say
// (the items of a list that the API server sends do not).
func FromJSON(data []byte, fallback Type) Item {
	var head struct {
		Type
		Meta struct {
			Name      any `json:"name"`
			Namespace any `json:"namespace"`
		} `json:"metadata"`
	}
	err := json.Unmarshal(data, &head)
	t := head.Type
	if t == (Type{}) {
		t = fallback
	}
	item := Item{Type: t}
	item.Meta.Name, _ = head.Meta.Name.(string)
	item.Meta.Namespace, _ = head.Meta.Namespace.(string)
	o := t.make()
	switch {
	case err != nil:
		item.Err = explain(item, err)
		return item
	case t.APIVersion == "" || t.Kind == "":
		item.Err = errors.New("apiVersion or kind is missing: not a Kubernetes object")
		return item
	case o == nil:
		item.Err = unsupported(t)
		return item
	}
	if err := json.Unmarshal(data, o); err != nil {
		item.Err = explain(item, err)
		return item
	}
	return finish(t, o)
}

// finish converts a decoded object.
func finish(t Type, o object) Item {
	m := o.meta()
	if t.namespaced() && m.Namespace == "" {
		m.Namespace = "default"
	}
	if m.Name == "" {
		return Item{Type: t, Meta: *m, Err: fmt.Errorf("%s: metadata.name is missing", strings.ToLower(t.Kind))}
	}
	obj, err := o.Model()
	return Item{Type: t, Meta: *m, Object: obj, Err: err}
}

func unsupported(t Type) error { return fmt.Errorf("%s %s: %w", t.APIVersion, t.Kind, ErrUnsupported) }

// explain words a JSON error for the user who wrote the document.
func explain(i Item, err error) error {
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		return fmt.Errorf("%s: %s: want %s, got a JSON %s", strings.ToLower(i.Name()), wrong.Field, wrong.Type, wrong.Value)
	}
	if i.Name() == "" {
		return err
	}
	return fmt.Errorf("%s: %w", strings.ToLower(i.Name()), err)
}
