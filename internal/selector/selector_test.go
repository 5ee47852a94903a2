package selector

import "testing"

// TestMatch holds each operator against a key that is there, is there with another value, and is absent.
func TestMatch(t *testing.T) {
	l := Map{"app": "web-1", "tier": "a"}
	for _, c := range []struct {
		e    *Expr
		text string
		want bool
	}{
		{&Expr{}, "all()", true},
		{Equal("tier", "a"), `tier == "a"`, true},
		{Equal("tier", "b"), `tier == "b"`, false},
		{Equal("none", ""), `none == ""`, false},
		{OneOf("tier", "b", "a", "b"), `tier in {"a", "b"}`, true},
		{OneOf("tier"), "none()", false},
		{NoneOf("tier", "b"), `tier != "b"`, true},
		{NoneOf("none", "b"), `none != "b"`, true},
		{NoneOf("tier", "a", "b"), `tier not in {"a", "b"}`, false},
		{NoneOf("tier"), "all()", true},
		{Exists("app"), "has(app)", true},
		{Absent("app"), "!has(app)", false},
		{&Expr{Op: Contains, Key: "app", Values: []string{"b-"}}, `app contains "b-"`, true},
		{&Expr{Op: HasPrefix, Key: "app", Values: []string{"web"}}, `app starts with "web"`, true},
		{&Expr{Op: HasSuffix, Key: "app", Values: []string{"2"}}, `app ends with "2"`, false},
		{Negate(&Expr{Op: HasSuffix, Key: "none", Values: []string{"2"}}), `!(none ends with "2")`, true},
		{AllOf(Equal("tier", "a"), nil, Exists("app")), `has(app) && tier == "a"`, true},
		{AllOf(), "all()", true},
		{AllOf(Equal("tier", "a"), &Expr{Op: None}), "none()", false},
		{AllOf(Exists("app"), AllOf(Exists("app"), Exists("tier"))), "has(app) && has(tier)", true},
		{AnyOf(), "none()", false},
		{AnyOf(Equal("tier", "b"), Exists("app")), `has(app) || tier == "b"`, true},
		{AnyOf(AllOf(Exists("x"), Exists("y")), Absent("z")), "!has(z) || (has(x) && has(y))", true},
		{Negate(Negate(AnyOf(Exists("x"), Exists("y")))), "has(x) || has(y)", false},
		{Negate(OneOf("tier", "a")), `tier != "a"`, false},
	} {
		if got := c.e.String(); got != c.text {
			t.Errorf("%s is written %s", c.text, got)
		}
		if got := c.e.Match(l); got != c.want {
			t.Errorf("%s of %v is %v", c.text, l, got)
		}
	}
}

// TestMust: what an expression demands must be necessary for it.
func TestMust(t *testing.T) {
	e := AllOf(Equal(Kind, KindPod), Equal(NamespaceName, "x"), OneOf("app", "a", "b"), Exists("other"))
	if key, values, ok := e.Must(); !ok || key != "app" || len(values) != 2 {
		t.Errorf("%s demands %s %v, want a label of its own", e, key, values)
	}
	if v := e.Require(NamespaceName); len(v) != 1 || v[0] != "x" {
		t.Errorf("%s requires namespace %v", e, v)
	}
	for _, e := range []*Expr{AnyOf(Equal("a", "1"), Equal("b", "1")), NoneOf("a", "1"), Negate(AllOf(Equal("a", "1"), Equal("b", "1"))), {}} {
		if key, _, ok := e.Must(); ok || e.Require("a") != nil {
			t.Errorf("%s demands %s", e, key)
		}
	}
}

func TestMapKeys(t *testing.T) {
	e := AnyOf(AllOf(Equal("a", "1"), Exists("b")), Negate(AllOf(Exists("c"), Exists("d"))))
	if got, want := e.WithPrefix(Namespace).String(), `!(has(namespace:c) && has(namespace:d)) || (has(namespace:b) && namespace:a == "1")`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	n := 0
	e.Keys(func(string) { n++ })
	if n != 4 {
		t.Errorf("%d keys, want 4", n)
	}
}
