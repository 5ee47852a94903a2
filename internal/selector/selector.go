// Package selector holds boolean expressions over labels: the one form into which the selectors of every policy
// language are converted, and in which a policy's subjects and peers are decided.
//
// It does not parse: each language has its own converter. It does not know what an endpoint is; whoever asks
// brings the labels. Keys are those of Kubernetes, or, of things that are not an object's own
// labels, with a prefix that no Kubernetes key can have: see Key and the constants.
package selector

import (
	"fmt"
	"slices"
	"strings"
)

// The prefixes of keys that are not labels of the endpoint itself, and the keys of facts about it. A
// Kubernetes key has no ':' and does not begin with '@'.
const (
	Namespace      = "namespace:"      // + key: a label of the endpoint's namespace
	ServiceAccount = "serviceaccount:" // + key: a label of the endpoint's service account

	NamespaceName      = "@namespace"      // name of the endpoint's namespace
	ServiceAccountName = "@serviceaccount" // name of the endpoint's service account
	Name               = "@name"           // name of the object
	Kind               = "@kind"           // one of the kinds below
	Node               = "@node"           // name of the node that the endpoint is on
	Port               = "@port:"          // + "tcp/http": number of the named port of that protocol
	Service            = "@service:"       // + "namespace/name": "" if the address is a backend of the service
	Profile            = "@profile:"       // + name: its place among the profiles of a host endpoint
)

// The values of Kind. Every address is of exactly one.
const (
	KindPod          = "pod"
	KindHost         = "host"         // this node; its labels are the node's
	KindRemoteNode   = "remote-node"  // another node; its labels are the node's
	KindHostEndpoint = "hostendpoint" // an interface of a node, described by a HostEndpoint
	KindSet          = "set"          // a named set of prefixes, such as a NetworkSet
	KindWorld        = "world"        // everything else
)

// Labels answers for one endpoint. A map is the usual implementation; see Map.
type Labels interface {
	// Get returns the value of a key, and whether there is one.
	Get(key string) (string, bool)
}

// Map is a set of labels.
type Map map[string]string

// Get implements Labels.
func (m Map) Get(key string) (string, bool) {
	v, ok := m[key]
	return v, ok
}

// Op is what an expression does.
type Op uint8

// The operators. As in Kubernetes and Calico, NotIn is true where the key is absent.
const (
	All       Op = iota // true
	None                // false
	In                  // the key's value is one of Values
	NotIn               // the key is absent, or its value is none of Values
	Has                 // the key is there
	HasNot              // the key is not there
	Contains            // the key's value contains Values[0]
	HasPrefix           // the key's value begins with Values[0]
	HasSuffix           // the key's value ends with Values[0]
	And                 // every one of Sub is true
	Or                  // one of Sub is true
	Not                 // Sub[0] is false
)

// Expr is an expression; immutable once made. Which fields are used depends on Op. The zero value is All. A nil
// *Expr is no expression: what it means is the field's affair, and it must not be asked.
type Expr struct {
	Op     Op
	Key    string
	Values []string // sorted and unique for In and NotIn
	Sub    []*Expr
}

// Equal is key == value.
func Equal(key, value string) *Expr { return OneOf(key, value) }

// OneOf is key in values; None if there are no values.
func OneOf(key string, values ...string) *Expr {
	if len(values) == 0 {
		return &Expr{Op: None}
	}
	return &Expr{Op: In, Key: key, Values: sorted(values)}
}

// NoneOf is key not in values.
func NoneOf(key string, values ...string) *Expr {
	if len(values) == 0 {
		return &Expr{}
	}
	return &Expr{Op: NotIn, Key: key, Values: sorted(values)}
}

// Exists is has(key).
func Exists(key string) *Expr { return &Expr{Op: Has, Key: key} }

// Absent is !has(key).
func Absent(key string) *Expr { return &Expr{Op: HasNot, Key: key} }

// AllOf is the conjunction; nil operands are left out, and without operands it is true.
func AllOf(sub ...*Expr) *Expr { return join(And, All, None, sub) }

// AnyOf is the disjunction; nil operands are left out, and without operands it is false.
func AnyOf(sub ...*Expr) *Expr { return join(Or, None, All, sub) }

// Negate is the negation.
func Negate(e *Expr) *Expr {
	switch e.Op {
	case All:
		return &Expr{Op: None}
	case None:
		return &Expr{Op: All}
	case Has:
		return Absent(e.Key)
	case HasNot:
		return Exists(e.Key)
	case In:
		return &Expr{Op: NotIn, Key: e.Key, Values: e.Values}
	case NotIn:
		return &Expr{Op: In, Key: e.Key, Values: e.Values}
	case Not:
		return e.Sub[0]
	default:
		return &Expr{Op: Not, Sub: []*Expr{e}}
	}
}

// join makes And or Or: nested ones of the same kind are flattened, neutral operands left out, equal ones merged.
func join(op, neutral, absorbing Op, sub []*Expr) *Expr {
	out := make([]*Expr, 0, len(sub))
	seen := map[string]bool{}
	for _, s := range sub {
		if s == nil || s.Op == neutral {
			continue
		}
		if s.Op == absorbing {
			return &Expr{Op: absorbing}
		}
		parts := []*Expr{s}
		if s.Op == op {
			parts = s.Sub
		}
		for _, p := range parts {
			if text := p.String(); !seen[text] {
				seen[text] = true
				out = append(out, p)
			}
		}
	}
	switch len(out) {
	case 0:
		return &Expr{Op: neutral}
	case 1:
		return out[0]
	}
	slices.SortFunc(out, func(a, b *Expr) int { return strings.Compare(a.String(), b.String()) })
	return &Expr{Op: op, Sub: out}
}

func sorted(values []string) []string {
	out := slices.Clone(values)
	slices.Sort(out)
	return slices.Compact(out)
}

// Match says whether the expression is true of the labels.
func (e *Expr) Match(l Labels) bool {
	switch e.Op {
	case All:
		return true
	case None:
		return false
	case And:
		for _, s := range e.Sub {
			if !s.Match(l) {
				return false
			}
		}
		return true
	case Or:
		for _, s := range e.Sub {
			if s.Match(l) {
				return true
			}
		}
		return false
	case Not:
		return !e.Sub[0].Match(l)
	default:
		v, ok := l.Get(e.Key)
		return e.matchKey(v, ok)
	}
}

// matchKey decides the operators that look at one key.
func (e *Expr) matchKey(v string, ok bool) bool {
	switch e.Op {
	case In:
		return ok && slices.Contains(e.Values, v)
	case NotIn:
		return !ok || !slices.Contains(e.Values, v)
	case Has:
		return ok
	case HasNot:
		return !ok
	case Contains:
		return ok && strings.Contains(v, e.Values[0])
	case HasPrefix:
		return ok && strings.HasPrefix(v, e.Values[0])
	case HasSuffix:
		return ok && strings.HasSuffix(v, e.Values[0])
	default: // not an operator on a key
		return false
	}
}

// Keys calls each for every key that the expression looks at; a key may come several times.
func (e *Expr) Keys(each func(key string)) {
	if e.Key != "" {
		each(e.Key)
	}
	for _, s := range e.Sub {
		s.Keys(each)
	}
}

// MapKeys returns the expression with other keys.
func (e *Expr) MapKeys(f func(key string) string) *Expr {
	out := *e
	if e.Key != "" {
		out.Key = f(e.Key)
	}
	if len(e.Sub) == 0 {
		return &out
	}
	sub := make([]*Expr, len(e.Sub))
	for i, s := range e.Sub {
		sub[i] = s.MapKeys(f)
	}
	switch e.Op {
	case And:
		return AllOf(sub...)
	case Or:
		return AnyOf(sub...)
	default:
		return Negate(sub[0])
	}
}

// WithPrefix returns the expression with the prefix before every key.
func (e *Expr) WithPrefix(prefix string) *Expr {
	return e.MapKeys(func(k string) string { return prefix + k })
}

// Must returns a key and values of which one is necessary for the expression to be true, for an index: what
// has none of the values cannot match. ok is false where there is no such key.
func (e *Expr) Must() (key string, values []string, ok bool) {
	switch e.Op {
	case In:
		return e.Key, e.Values, true
	case And:
		for _, s := range e.Sub {
			// A namespace or a kind selects many endpoints, a label of their own fewer.
			k, v, found := s.Must()
			if found && (!ok || better(k, key) || !better(key, k) && len(v) < len(values)) {
				key, values, ok = k, v, true
			}
		}
	default: // the others need no particular value
	}
	return key, values, ok
}

// better says whether a key selects fewer endpoints than another, by its nature.
func better(a, b string) bool { return rank(a) < rank(b) }

func rank(key string) int {
	switch {
	case key == Kind:
		return 3
	case strings.HasPrefix(key, Namespace):
		return 2
	case key == NamespaceName:
		return 1
	}
	return 0
}

// String is the expression in the notation of Calico's selectors, which has all operators. Equal strings are
// equal expressions.
func (e *Expr) String() string {
	switch e.Op {
	case All:
		return "all()"
	case None:
		return "none()"
	case In:
		if len(e.Values) == 1 {
			return fmt.Sprintf("%s == %q", e.Key, e.Values[0])
		}
		return fmt.Sprintf("%s in {%s}", e.Key, quoted(e.Values))
	case NotIn:
		if len(e.Values) == 1 {
			return fmt.Sprintf("%s != %q", e.Key, e.Values[0])
		}
		return fmt.Sprintf("%s not in {%s}", e.Key, quoted(e.Values))
	case Has:
		return "has(" + e.Key + ")"
	case HasNot:
		return "!has(" + e.Key + ")"
	case Contains:
		return fmt.Sprintf("%s contains %q", e.Key, e.Values[0])
	case HasPrefix:
		return fmt.Sprintf("%s starts with %q", e.Key, e.Values[0])
	case HasSuffix:
		return fmt.Sprintf("%s ends with %q", e.Key, e.Values[0])
	case Not:
		return "!(" + e.Sub[0].String() + ")"
	default:
		word := map[Op]string{And: " && ", Or: " || "}[e.Op]
		parts := make([]string, len(e.Sub))
		for i, s := range e.Sub {
			parts[i] = s.String()
			if s.Op == Or || s.Op == And {
				parts[i] = "(" + parts[i] + ")"
			}
		}
		return strings.Join(parts, word)
	}
}

func quoted(values []string) string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = fmt.Sprintf("%q", v)
	}
	return strings.Join(out, ", ")
}

// Require returns the values of a key of which one is necessary for the expression to be true; nil if it demands none.
func (e *Expr) Require(key string) []string {
	switch e.Op {
	case In:
		if e.Key == key {
			return e.Values
		}
	case And:
		for _, s := range e.Sub {
			if v := s.Require(key); v != nil {
				return v
			}
		}
	default: // the others demand no value
	}
	return nil
}
