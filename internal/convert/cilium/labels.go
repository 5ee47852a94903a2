package cilium

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"weft/internal/convert/object"
	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/selector"
)

// The sources of labels, which stand before the key. A label of another source (container:, cidr:, fqdn: …) is one that nothing has:
// with its source it is no Kubernetes key.
const (
	sourceAny      = "any" // also where none is written
	sourceK8s      = "k8s"
	sourceNode     = "node"
	sourceReserved = "reserved"
)

// The keys of k8s: that are not the pod's own.
const (
	keyNamespace       = "io.kubernetes.pod.namespace"
	keyNamespaceLabels = "io.cilium.k8s.namespace.labels."
	keyServiceAccount  = "io.cilium.k8s.policy.serviceaccount"
	keyCluster         = "io.cilium.k8s.policy.cluster"
)

// apiServer is a fact of addresses that the kube-apiserver is at.
const apiServer = selector.Service + "default/kubernetes"

// term is one condition of a label selector.
type term struct {
	at          string // its path
	source, key string
	op          selector.Op // In, NotIn, Has or HasNot
	values      []string
}

// on is the condition on a key of the model.
func (t *term) on(key string) *selector.Expr {
	switch t.op {
	case selector.In:
		return selector.OneOf(key, t.values...)
	case selector.NotIn:
		return selector.NoneOf(key, t.values...)
	case selector.Has:
		return selector.Exists(key)
	default:
		return selector.Absent(key)
	}
}

// flag decides a condition on a label that has no value, as those of reserved: are: whether the label must be there or must not, or
// neither, which is always true or never.
func (t *term) flag() (must, mustNot, never bool) {
	hasEmpty := slices.Contains(t.values, "")
	switch t.op {
	case selector.In:
		return hasEmpty, false, !hasEmpty
	case selector.NotIn:
		return false, hasEmpty, false
	case selector.Has:
		return true, false, false
	default:
		return false, true, false
	}
}

// kubernetes reports whether the condition is on a label that Kubernetes may have given.
func (t *term) kubernetes() bool { return t.source == sourceAny || t.source == sourceK8s }

// scopes reports whether the condition says which namespaces are meant.
func (t *term) scopes() bool {
	return t.kubernetes() && (t.key == keyNamespace || strings.HasPrefix(t.key, keyNamespaceLabels))
}

// splitKey splits a label's key from its source.
func splitKey(s string) (source, key string) {
	if key, ok := strings.CutPrefix(s, "$"); ok {
		return sourceReserved, key
	}
	source, key, ok := strings.Cut(s, ":")
	if ok && source != "" {
		return source, key
	}
	if ok {
		return sourceAny, key
	}
	if key, ok := strings.CutPrefix(s, sourceReserved+"."); ok {
		return sourceReserved, key
	}
	return sourceAny, s
}

// readSelector reads a label selector; nil, with a mistake, if it is null or none.
func (c *converter) readSelector(at string, raw json.RawMessage, bad *faults) *object.LabelSelector {
	if absent(raw) {
		c.mistake(&bad.peers, at, "is null")
		return nil
	}
	s := new(object.LabelSelector)
	c.decode(at, raw, s, &bad.peers, &bad.rest)
	return s
}

// terms returns the conditions of a selector; keys are taken as they are if plain, and else split from their source.
func (c *converter) terms(at string, s *object.LabelSelector, plain bool, bad *faults) []term {
	var out []term
	add := func(at, keyAt, key string, op selector.Op, values []string) {
		t := term{at: at, source: "", key: key, op: op, values: values}
		if !plain {
			t.source, t.key = splitKey(key)
		}
		if !validKey(strings.TrimPrefix(t.key, keyNamespaceLabels)) {
			c.mistake(&bad.peers, keyAt, "%q is not a label's key", key)
			return
		}
		for _, v := range values {
			if !validValue(v) {
				c.mistake(&bad.peers, at, "%q is not a label's value", v)
				return
			}
		}
		out = append(out, t)
	}
	for _, k := range slices.Sorted(maps.Keys(s.MatchLabels)) {
		path := fmt.Sprintf("%s.matchLabels[%s]", at, k)
		add(path, path, k, selector.In, []string{s.MatchLabels[k]})
	}
	for i, r := range s.MatchExpressions {
		path := fmt.Sprintf("%s.matchExpressions[%d]", at, i)
		op, ok := map[string]selector.Op{
			"In": selector.In, "NotIn": selector.NotIn, "Exists": selector.Has, "DoesNotExist": selector.HasNot,
		}[r.Operator]
		takes := op == selector.In || op == selector.NotIn
		switch {
		case !ok:
			c.mistake(&bad.peers, path+".operator", "%q is not In, NotIn, Exists or DoesNotExist", r.Operator)
		case takes && len(r.Values) == 0:
			c.mistake(&bad.peers, path+".values", "operator %s needs values", r.Operator)
		case !takes && len(r.Values) > 0:
			c.mistake(&bad.peers, path+".values", "operator %s takes no values", r.Operator)
		default:
			add(path, path+".key", r.Key, op, r.Values)
		}
	}
	return out
}

// view is what a selector looks at.
type view struct {
	kinds []string // what it may select
	own   []string // the sources of labels that those things have
	// Of a peer: the namespace that it is limited to unless it names others; "": none.
	namespace string
	// A selector of labels of reserved: may select anything.
	reserved bool
}

func viewPods(namespace string) view {
	return view{kinds: []string{selector.KindPod}, own: []string{sourceAny, sourceK8s}, namespace: namespace, reserved: true}
}

func viewSubjects() view {
	return view{kinds: []string{selector.KindPod}, own: []string{sourceAny, sourceK8s}}
}

func viewNodeSubjects() view {
	return view{kinds: []string{selector.KindHost}, own: []string{sourceAny, sourceK8s}}
}

// viewNodes is for fromNodes and toNodes, which look at other nodes.
func viewNodes() view {
	return view{kinds: []string{selector.KindRemoteNode}, own: []string{sourceAny, sourceNode}}
}

// selected collects what a selector means while its conditions are read.
type selected struct {
	kinds     []string // that are still possible
	and       []*selector.Expr
	not       []*selector.Expr
	families  []netset.Family // nil: any
	apiServer string          // the path of a condition that demands to be the kube-apiserver
}

// match turns a selector into a peer. Names says whether it names nodes.
func (c *converter) match(at string, s *object.LabelSelector, v view, bad *faults) (peer model.Peer, names bool) {
	terms := c.terms(at, s, false, bad)
	has := func(f func(*term) bool) bool {
		return slices.ContainsFunc(terms, func(t term) bool { return f(&t) })
	}
	if v.reserved && has(func(t *term) bool { return t.source == sourceReserved }) {
		// Neither is it then limited to a namespace.
		v = view{
			kinds: []string{selector.KindPod, selector.KindHost, selector.KindRemoteNode, selector.KindWorld},
			own:   []string{sourceAny, sourceK8s, sourceNode},
		}
	}
	m := selected{kinds: v.kinds}
	if v.namespace != "" && !has((*term).scopes) {
		m.and = append(m.and, selector.Equal(selector.NamespaceName, v.namespace))
	}
	for i := range terms {
		t := &terms[i]
		switch {
		case t.source == sourceReserved:
			names = c.addReserved(&m, t, bad) || names
		case t.kubernetes() && t.key == keyCluster:
			// Which cluster this is, is not known here.
			c.missing(t.at)
			note(&bad.rest, t.at)
		default:
			m.and = append(m.and, t.on(modelKey(t, v)))
		}
	}
	return c.peer(&m, bad), names
}

// modelKey returns the model's key of a label.
func modelKey(t *term, v view) string {
	if !slices.Contains(v.own, t.source) {
		return t.source + ":" + t.key
	}
	switch {
	case t.key == keyNamespace:
		return selector.NamespaceName
	case t.key == keyServiceAccount:
		return selector.ServiceAccountName
	case strings.HasPrefix(t.key, keyNamespaceLabels):
		return selector.Namespace + strings.TrimPrefix(t.key, keyNamespaceLabels)
	}
	return t.key
}

// addReserved adds a condition on a label of reserved:, and says whether it names nodes.
func (c *converter) addReserved(m *selected, t *term, bad *faults) (names bool) {
	must, mustNot, never := t.flag()
	only := func(kind string) {
		m.kinds = slices.DeleteFunc(slices.Clone(m.kinds), func(k string) bool { return must && k != kind || mustNot && k == kind })
	}
	if never {
		m.kinds = nil
		return false
	}
	switch t.key {
	case "host":
		only(selector.KindHost)
		return true
	case "remote-node":
		only(selector.KindRemoteNode)
		return true
	case "world":
		only(selector.KindWorld)
	case "world-ipv4", "world-ipv6":
		if mustNot {
			c.missing(t.at)
			note(&bad.rest, t.at)
			return false
		}
		if must {
			only(selector.KindWorld)
			m.families = append(m.families, worldFamily(t.key))
		}
	case "kube-apiserver":
		if must {
			m.apiServer = t.at
		}
		if mustNot {
			m.not = append(m.not, selector.Exists(apiServer))
		}
		return true
	default: // health, ingress, init, unmanaged and the like, which nothing is
		if must {
			m.kinds = nil
		}
	}
	return false
}

// peer returns what the conditions mean together.
func (c *converter) peer(m *selected, bad *faults) model.Peer {
	p := model.Peer{}
	if len(m.not) > 0 {
		p.NotSelect = selector.AnyOf(m.not...)
	}
	for i, f := range m.families {
		if i == 0 || f == m.families[0] {
			p.Nets = []netip.Prefix{netset.Default(f)}
		} else { // of both families: nothing is
			p.Nets = []netip.Prefix{}
			break
		}
	}
	p.Select = selector.AllOf(append(m.and, selector.OneOf(selector.Kind, m.kinds...))...)
	switch {
	case m.apiServer == "" || p.Select.Op == selector.None:
		return p
	case slices.Equal(m.kinds, []string{selector.KindPod}): // no pod is
		return model.Peer{Select: &selector.Expr{Op: selector.None}}
	}
	if len(m.and) > 0 || len(m.kinds) == 1 || len(m.families) > 0 {
		// A service is not a label of what is behind it, so that both cannot be asked at once. What is asked is the larger part.
		c.missing(m.apiServer)
		note(&bad.rest, m.apiServer)
		return p
	}
	p.Select = selector.Exists(apiServer)
	return p
}

func worldFamily(name string) netset.Family {
	if strings.HasSuffix(name, "4") {
		return netset.V4
	}
	return netset.V6
}

// validKey reports whether Kubernetes takes a key: a name, after a DNS name and a slash or not.
func validKey(s string) bool {
	prefix, name, ok := strings.Cut(s, "/")
	if !ok {
		return validName(s)
	}
	if prefix == "" || len(prefix) > 253 || strings.Contains(name, "/") {
		return false
	}
	for _, label := range strings.Split(prefix, ".") {
		if !validName(label) || strings.ToLower(label) != label || strings.ContainsAny(label, "_.") {
			return false
		}
	}
	return validName(name)
}

// validValue reports whether Kubernetes takes a label's value.
func validValue(s string) bool { return s == "" || validName(s) }

func validName(s string) bool {
	const ends = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	if s == "" || len(s) > 63 || strings.Trim(s, ends+"-_.") != "" {
		return false
	}
	return strings.ContainsAny(s[:1], ends) && strings.ContainsAny(s[len(s)-1:], ends)
}
