package calico

import (
	"errors"
	"fmt"
	"strings"

	"weft/internal/selector"
)

// The labels that Calico gives to its endpoints itself, and the prefixes under which those of namespaces and service accounts
// are visible in every selector.
const (
	labelNamespace      = "projectcalico.org/namespace"
	labelServiceAccount = "projectcalico.org/serviceaccount"
	labelOrchestrator   = "projectcalico.org/orchestrator"
	labelName           = "projectcalico.org/name"
	labelKind           = "projectcalico.org/kind"

	prefixNamespace      = "pcns."
	prefixServiceAccount = "pcsa."
)

// Limits of a selector. Calico's newest CRDs stop at 1,024 characters, older ones nowhere.
const (
	maxSelector = 256 << 10
	maxDepth    = 200
)

// language is what a selector means where it stands.
type language struct {
	// leaf makes the test of one label.
	leaf   func(op selector.Op, label string, values []string) *selector.Expr
	all    *selector.Expr // what all() stands for
	global *selector.Expr // what global() stands for; nil: it may not be used here
}

// endpointLanguage is that of selectors of endpoints. All is what all() stands for.
func endpointLanguage(all *selector.Expr) language {
	return language{all: all, leaf: func(op selector.Op, label string, values []string) *selector.Expr {
		if label == labelOrchestrator {
			return orchestrator(op, values)
		}
		return test(op, endpointKey(label), values)
	}}
}

// namespaceLanguage is that of selectors of namespaces in rules. All() are the things that are in a namespace, global() those that are in none.
func namespaceLanguage(global bool) language {
	l := language{all: selector.Exists(selector.NamespaceName), leaf: func(op selector.Op, label string, values []string) *selector.Expr {
		return test(op, namespaceKey(label), values)
	}}
	if global {
		l.global = selector.Absent(selector.NamespaceName)
	}
	return l
}

// accountLanguage is that of selectors of service accounts.
func accountLanguage(all *selector.Expr) language {
	return language{all: all, leaf: func(op selector.Op, label string, values []string) *selector.Expr {
		return test(op, accountKey(label), values)
	}}
}

func endpointKey(label string) string {
	if k, ok := strings.CutPrefix(label, prefixNamespace); ok {
		return namespaceKey(k)
	}
	if k, ok := strings.CutPrefix(label, prefixServiceAccount); ok {
		return accountKey(k)
	}
	switch label {
	case labelNamespace:
		return selector.NamespaceName
	case labelServiceAccount:
		return selector.ServiceAccountName
	}
	return label
}

func namespaceKey(label string) string {
	// Both are the namespace's name. As a fact it is known before the Namespace object is.
	if label == labelName || label == "kubernetes.io/metadata.name" {
		return selector.NamespaceName
	}
	return selector.Namespace + label
}

func accountKey(label string) string {
	if label == labelName {
		return selector.ServiceAccountName
	}
	return selector.ServiceAccount + label
}

// orchestrator tests the label that has the value "k8s" on every pod and is on nothing else.
func orchestrator(op selector.Op, values []string) *selector.Expr {
	pod := selector.Equal(selector.Kind, selector.KindPod)
	value := selector.Map{labelOrchestrator: "k8s"}
	onPods := test(op, labelOrchestrator, values).Match(value)
	others := test(op, labelOrchestrator, values).Match(selector.Map{})
	switch {
	case onPods && others:
		return &selector.Expr{}
	case onPods:
		return pod
	case others:
		return selector.Negate(pod)
	}
	return &selector.Expr{Op: selector.None}
}

// test makes the test of one key.
func test(op selector.Op, key string, values []string) *selector.Expr {
	switch op {
	case selector.In:
		return selector.OneOf(key, values...)
	case selector.NotIn:
		return selector.NoneOf(key, values...)
	default:
		return &selector.Expr{Op: op, Key: key, Values: values}
	}
}

// parseSelector parses a selector. One that is empty, or blank, is all().
func parseSelector(text string, l language) (*selector.Expr, error) {
	if len(text) > maxSelector {
		return nil, fmt.Errorf("the selector has %d characters, the most are %d", len(text), maxSelector)
	}
	p := parser{text: text, language: l}
	if p.space(); p.pos == len(text) {
		return l.all, nil
	}
	e, err := p.or()
	switch {
	case err != nil:
		return nil, err
	case p.space() < len(text):
		return nil, p.want("&&, || or the end")
	case p.scoped && e != l.global:
		return nil, errors.New("global() must stand alone")
	}
	return e, nil
}

// parser is the state of parsing one selector by recursive descent.
type parser struct {
	language
	text   string
	pos    int
	depth  int
	scoped bool // global() was seen
}

// want is the error at the parser's position.
func (p *parser) want(what string) error {
	if p.pos >= len(p.text) {
		return fmt.Errorf("want %s at the end of %q", what, p.text)
	}
	rest := p.text[p.pos:]
	if len(rest) > 20 {
		rest = rest[:20] + "..."
	}
	return fmt.Errorf("want %s at character %d, got %q", what, p.pos+1, rest)
}

// space skips blanks and tabs, the only white space of the language, and returns the position.
func (p *parser) space() int {
	for p.pos < len(p.text) && (p.text[p.pos] == ' ' || p.text[p.pos] == '\t') {
		p.pos++
	}
	return p.pos
}

// take skips white space and then the token, if that comes next.
func (p *parser) take(token string) bool {
	p.space()
	if !strings.HasPrefix(p.text[p.pos:], token) {
		return false
	}
	p.pos += len(token)
	return true
}

// or parses terms with || between them.
func (p *parser) or() (*selector.Expr, error) {
	return p.series("||", p.and, selector.AnyOf)
}

// and parses operations with && between them, which bind closer.
func (p *parser) and() (*selector.Expr, error) {
	return p.series("&&", p.operation, selector.AllOf)
}

func (p *parser) series(operator string, operand func() (*selector.Expr, error), join func(...*selector.Expr) *selector.Expr) (*selector.Expr, error) {
	first, err := operand()
	if err != nil {
		return nil, err
	}
	all := []*selector.Expr{first}
	for p.take(operator) {
		next, err := operand()
		if err != nil {
			return nil, err
		}
		all = append(all, next)
	}
	if len(all) == 1 {
		return first, nil
	}
	return join(all...), nil
}

// operation parses a test, a function or a bracket, with any number of ! before it.
func (p *parser) operation() (*selector.Expr, error) {
	negate := false
	for p.take("!") {
		negate = !negate
	}
	e, err := p.primary()
	if err != nil {
		return nil, err
	}
	if negate {
		return selector.Negate(e), nil
	}
	return e, nil
}

func (p *parser) primary() (*selector.Expr, error) {
	switch {
	case p.take("("):
		return p.bracket()
	case p.take("has("): // no blank before the bracket: "has" may be a label as well
		label := p.label()
		if label == "" {
			return nil, p.want("a label")
		}
		if !p.take(")") {
			return nil, p.want(")")
		}
		return p.leaf(selector.Has, label, nil), nil
	case p.take("all("):
		if !p.take(")") {
			return nil, p.want(")")
		}
		return p.all, nil
	case p.take("global("):
		if !p.take(")") {
			return nil, p.want(")")
		}
		if p.global == nil {
			return nil, errors.New("global() is for the namespaceSelector of a rule only")
		}
		p.scoped = true
		return p.global, nil
	}
	return p.comparison()
}

func (p *parser) bracket() (*selector.Expr, error) {
	if p.depth++; p.depth > maxDepth {
		return nil, fmt.Errorf("more than %d brackets within each other", maxDepth)
	}
	e, err := p.or()
	if err != nil {
		return nil, err
	}
	if !p.take(")") {
		return nil, p.want(")")
	}
	p.depth--
	return e, nil
}

// comparison parses a label, an operator and what it is compared with.
func (p *parser) comparison() (*selector.Expr, error) {
	label := p.label()
	if label == "" {
		return nil, p.want("a label, has(), all() or a bracket")
	}
	op, set := p.operator()
	if op == selector.All {
		return nil, p.want("an operator after the label " + label)
	}
	if set {
		values, err := p.set()
		if err != nil {
			return nil, err
		}
		return p.leaf(op, label, values), nil
	}
	value, ok := p.literal()
	if !ok {
		return nil, p.want("a string in quotes")
	}
	return p.leaf(op, label, []string{value}), nil
}

// label skips white space and takes the characters of a label.
func (p *parser) label() string {
	start := p.space()
	for p.pos < len(p.text) && labelCharacter(p.text[p.pos]) {
		p.pos++
	}
	return p.text[start:p.pos]
}

func labelCharacter(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("_./-", c) >= 0
}

// operator takes an operator and says whether a set follows, or a string; All: there is none. Words need no white space
// after them, and none between them.
func (p *parser) operator() (op selector.Op, set bool) {
	second := func(word string, op selector.Op) selector.Op {
		if p.take(word) {
			return op
		}
		return selector.All
	}
	switch {
	case p.take("=="):
		return selector.In, false
	case p.take("!="):
		return selector.NotIn, false
	case p.take("contains"):
		return selector.Contains, false
	case p.take("starts"):
		return second("with", selector.HasPrefix), false
	case p.take("ends"):
		return second("with", selector.HasSuffix), false
	case p.take("not"):
		return second("in", selector.NotIn), true
	case p.take("in"):
		return selector.In, true
	}
	return selector.All, false
}

// set takes strings in braces. It may be empty, and a comma may follow the last one.
func (p *parser) set() ([]string, error) {
	if !p.take("{") {
		return nil, p.want("{")
	}
	var out []string
	for {
		s, ok := p.literal()
		if !ok {
			break
		}
		out = append(out, s)
		if !p.take(",") {
			break
		}
	}
	if !p.take("}") {
		return nil, p.want("} or a string in quotes")
	}
	return out, nil
}

// literal takes a string, which ends at the next quote of its kind: there are no escapes.
func (p *parser) literal() (string, bool) {
	if p.space(); p.pos == len(p.text) {
		return "", false
	}
	quote := p.text[p.pos]
	if quote != '"' && quote != '\'' {
		return "", false
	}
	end := strings.IndexByte(p.text[p.pos+1:], quote)
	if end < 0 {
		return "", false
	}
	s := p.text[p.pos+1 : p.pos+1+end]
	p.pos += end + 2
	return s, true
}
