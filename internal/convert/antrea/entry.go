package antrea

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weft/internal/convert/object"
	"weft/internal/model"
	"weft/internal/selector"
)

// entry is one element of appliedTo, from or to. The types of Antrea have most fields in common; which of them an element may have
// depends on where it is.
type entry struct {
	PodSelector            *object.LabelSelector `json:"podSelector"`
	NamespaceSelector      *object.LabelSelector `json:"namespaceSelector"`
	ExternalEntitySelector *object.LabelSelector `json:"externalEntitySelector"`
	NodeSelector           *object.LabelSelector `json:"nodeSelector"`
	Namespaces             *peerNamespaces       `json:"namespaces"`
	Group                  string                `json:"group"`
	ServiceAccount         *namespacedName       `json:"serviceAccount"`
	Service                *namespacedName       `json:"service"`
	IPBlock                *ipBlock              `json:"ipBlock"`
	FQDN                   string                `json:"fqdn"`
	Scope                  string                `json:"scope"`
}

// peerNamespaces selects namespaces by the one of the subject.
type peerNamespaces struct {
	Match      string   `json:"match"`
	SameLabels []string `json:"sameLabels"`
}

// namespacedName names a service or a service account.
type namespacedName struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
}

// ipBlock is a block of addresses. Antrea has except since 2.2.
type ipBlock struct {
	CIDR   string   `json:"cidr"`
	Except []string `json:"except"`
}

// The fields of entry that select something.
const (
	fieldPods       = "podSelector"
	fieldNamespace  = "namespaceSelector"
	fieldExternal   = "externalEntitySelector"
	fieldNodes      = "nodeSelector"
	fieldNamespaces = "namespaces"
	fieldGroup      = "group"
	fieldAccount    = "serviceAccount"
	fieldService    = "service"
	fieldBlock      = "ipBlock"
	fieldName       = "fqdn"
)

// fields returns the fields that select something and are set.
func (e *entry) fields() []string {
	var out []string
	for _, f := range []struct {
		name string
		set  bool
	}{
		{fieldPods, e.PodSelector != nil},
		{fieldExternal, e.ExternalEntitySelector != nil},
		{fieldNamespace, e.NamespaceSelector != nil},
		{fieldNamespaces, e.Namespaces != nil},
		{fieldNodes, e.NodeSelector != nil},
		{fieldGroup, e.Group != ""},
		{fieldAccount, e.ServiceAccount != nil},
		{fieldService, e.Service != nil},
		{fieldBlock, e.IPBlock != nil},
		{fieldName, e.FQDN != ""},
	} {
		if f.set {
			out = append(out, f.name)
		}
	}
	return out
}

// entry decodes an element and checks that its fields are allowed there and fit together. Mistakes are noted; then wrong is the
// field of the first.
func (c *conversion) entry(field string, raw json.RawMessage, allowed []string) (e *entry, wrong string) {
	e = &entry{}
	if !c.decode(field, raw, e) {
		return e, field
	}
	set := e.fields()
	for _, name := range set {
		if !slices.Contains(allowed, name) {
			c.mistake(field+"."+name, "is not allowed here")
			return e, field + "." + name
		}
	}
	switch {
	case len(set) == 0:
		c.mistake(field, "selects nothing: it needs one of %s", strings.Join(allowed, ", "))
		return e, field
	case len(set) > 1 && !together(set):
		c.mistake(field, "%s cannot be set together", strings.Join(set, " and "))
		return e, field
	}
	return e, ""
}

// together says whether fields, in the order of entry.fields, make one selector: pods or external entities, and their namespaces.
func together(set []string) bool {
	return len(set) == 2 &&
		(set[0] == fieldPods || set[0] == fieldExternal) &&
		(set[1] == fieldNamespace || set[1] == fieldNamespaces)
}

// pods returns the expression for the pods that a podSelector and a namespaceSelector select, one of which may be nil. Without
// a namespaceSelector they are those of the object's namespace, which of cluster-scoped objects is every one.
func (c *conversion) pods(field string, pods, namespaces *object.LabelSelector) (*selector.Expr, bool) {
	var parts []*selector.Expr
	home := c.namespace
	if pods != nil {
		e, err := pods.Expr(field + "." + fieldPods)
		if err != nil {
			c.errs = append(c.errs, err)
			return nil, false
		}
		parts = append(parts, e)
	}
	if namespaces != nil {
		e, err := namespaces.ExprKeys(field+"."+fieldNamespace, namespaceKey)
		if err != nil {
			c.errs = append(c.errs, err)
			return nil, false
		}
		home, parts = "", append(parts, e)
	}
	return object.Pods(home, selector.AllOf(parts...)), true
}

// namespaceKey is the key of a label of a namespace. On old clusters Antrea itself labelled every namespace with its name; weft knows
// the name and need not.
func namespaceKey(key string) string {
	if key == "antrea.io/metadata.name" {
		return selector.NamespaceName
	}
	return selector.Namespace + key
}

// nodes returns the expression for the nodes of the given kinds that a nodeSelector selects.
func (c *conversion) nodes(field string, s *object.LabelSelector, kinds ...string) (*selector.Expr, bool) {
	e, err := s.Expr(field + "." + fieldNodes)
	if err != nil {
		c.errs = append(c.errs, err)
		return nil, false
	}
	return selector.AllOf(selector.OneOf(selector.Kind, kinds...), e), true
}

// account returns the expression for the pods of a service account.
func (c *conversion) account(field string, a *namespacedName) (*selector.Expr, bool) {
	if !c.complete(field, a) {
		return nil, false
	}
	return object.Pods(a.Namespace, selector.Equal(selector.ServiceAccountName, a.Name)), true
}

// complete checks that a name has both parts.
func (c *conversion) complete(field string, n *namespacedName) bool {
	if n.Name == "" || n.Namespace == "" {
		c.mistake(field, "name and namespace are both needed")
		return false
	}
	return true
}

// backends returns the expression for what is behind a service.
func backends(s *namespacedName) *selector.Expr {
	return selector.Exists(selector.Service + s.Namespace + "/" + s.Name)
}

// block converts a block of addresses. Wrong is "" or the field with the first mistake; if the block itself is understood and only
// an exception is not, the peer is not nil and matches more than was meant.
func (c *conversion) block(field string, b *ipBlock) (p *model.Peer, wrong string) {
	cidr, ok := c.prefix(field+".cidr", b.CIDR)
	if !ok {
		return nil, field + ".cidr"
	}
	p = &model.Peer{Nets: []netip.Prefix{cidr}}
	for i, s := range b.Except {
		at := fmt.Sprintf("%s.except[%d]", field, i)
		x, ok := c.prefix(at, s)
		switch {
		case !ok:
		case x.Addr().BitLen() != cidr.Addr().BitLen() || x.Bits() < cidr.Bits() || !cidr.Contains(x.Addr()):
			c.mistake(at, "%s is not in %s", x, cidr)
		default:
			p.NotNets = append(p.NotNets, x)
			continue
		}
		if wrong == "" {
			wrong = at
		}
	}
	return p, wrong
}

// prefix parses an address block and notes what is wrong with it.
func (c *conversion) prefix(field, s string) (netip.Prefix, bool) {
	p, err := object.Prefix(field, s)
	if err != nil {
		c.errs = append(c.errs, err)
		return p, false
	}
	return p, true
}
