package antrea

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"weft/internal/convert/object"
	"weft/internal/model"
	"weft/internal/selector"
)

// groupSpec is the spec of a ClusterGroup or Group of any version.
type groupSpec struct {
	PodSelector            *object.LabelSelector `json:"podSelector"`
	NamespaceSelector      *object.LabelSelector `json:"namespaceSelector"`
	ExternalEntitySelector *object.LabelSelector `json:"externalEntitySelector"`
	NodeSelector           *object.LabelSelector `json:"nodeSelector"`
	IPBlock                *json.RawMessage      `json:"ipBlock"` // until v1alpha2
	IPBlocks               []json.RawMessage     `json:"ipBlocks"`
	ServiceReference       *namespacedName       `json:"serviceReference"`
	ChildGroups            []string              `json:"childGroups"`
}

// ways returns the fields by which members are selected that are set; a namespaceSelector belongs to its neighbour.
func (s *groupSpec) ways() []string {
	var out []string
	for _, f := range []struct {
		name string
		set  bool
	}{
		{fieldPods, s.PodSelector != nil},
		{fieldExternal, s.ExternalEntitySelector != nil},
		{fieldNamespace, s.NamespaceSelector != nil && s.PodSelector == nil && s.ExternalEntitySelector == nil},
		{fieldNodes, s.NodeSelector != nil},
		{fieldBlock, s.IPBlock != nil},
		{"ipBlocks", len(s.IPBlocks) > 0},
		{"serviceReference", s.ServiceReference != nil},
		{"childGroups", len(s.ChildGroups) > 0},
	} {
		if f.set {
			out = append(out, f.name)
		}
	}
	return out
}

// group converts a ClusterGroup or Group. A group with a mistake is there all the same, with the members that are certain: rules that
// deny must know that there may be others.
func (c *conversion) group() []model.Object {
	g := &model.Group{Ref: c.obj.Ref()}
	var spec groupSpec
	// What is not understood may narrow the rest, so that no member is certain.
	if !c.decode("spec", c.obj.Spec, &spec) {
		g.Unsupported = []string{"spec"}
		return []model.Object{g}
	}
	if ways := spec.ways(); len(ways) > 1 {
		c.mistake("spec", "%s cannot be set together", strings.Join(ways, " and "))
		g.Unsupported = []string{"spec"}
		return []model.Object{g}
	}
	c.members(g, &spec)
	g.Unsupported = append(g.Unsupported, c.unsupported...)
	return []model.Object{g}
}

// members fills in the members and children of a group whose spec has one way to select them, or none.
func (c *conversion) members(g *model.Group, spec *groupSpec) {
	byLabels := func(field string, e *selector.Expr, ok bool) {
		if !ok {
			c.notYet(field)
			return
		}
		g.Members = append(g.Members, model.Peer{Select: e})
	}
	switch {
	case spec.ExternalEntitySelector != nil:
		c.notYet("spec." + fieldExternal)
	case spec.PodSelector != nil || spec.NamespaceSelector != nil:
		e, ok := c.pods("spec", spec.PodSelector, spec.NamespaceSelector)
		byLabels("spec", e, ok)
	case spec.NodeSelector != nil:
		e, ok := c.nodes("spec", spec.NodeSelector, selector.KindHost, selector.KindRemoteNode)
		byLabels("spec."+fieldNodes, e, ok)
	case spec.ServiceReference != nil:
		field := "spec.serviceReference"
		if !c.complete(field, spec.ServiceReference) {
			c.notYet(field)
			return
		}
		// What is behind a service is known apart from what it is, so that no expression is true of both.
		g.Members = append(g.Members, model.Peer{
			Select:    backends(spec.ServiceReference),
			NotSelect: selector.OneOf(selector.Kind, selector.KindHost, selector.KindRemoteNode, selector.KindWorld),
		})
	case spec.IPBlock != nil:
		c.memberBlock(g, "spec."+fieldBlock, *spec.IPBlock)
	case len(spec.IPBlocks) > 0:
		for i, raw := range spec.IPBlocks {
			c.memberBlock(g, fmt.Sprintf("spec.ipBlocks[%d]", i), raw)
		}
	}
	for i, name := range spec.ChildGroups {
		field := fmt.Sprintf("spec.childGroups[%d]", i)
		ref := c.groupRef(name)
		switch {
		case name == "":
			c.mistake(field, "is empty")
			c.notYet(field)
		case ref == g.Ref:
			c.mistake(field, "a group cannot be its own child")
			c.notYet(field)
		case !slices.Contains(g.Children, ref):
			g.Children = append(g.Children, ref)
		}
	}
}

// memberBlock adds a block of addresses to a group. One of which a part is not understood is no certain member.
func (c *conversion) memberBlock(g *model.Group, field string, raw json.RawMessage) {
	var b ipBlock
	if !c.decode(field, raw, &b) {
		c.notYet(field)
		return
	}
	p, wrong := c.block(field, &b)
	if wrong != "" {
		c.notYet(wrong)
		return
	}
	g.Members = append(g.Members, *p)
}
