package calico

import (
	"strings"
	"testing"

	"weft/internal/selector"
)

func everywhere() language {
	l := endpointLanguage(selector.AllOf())
	l.global = selector.AllOf()
	return l
}

// sets parses "a=1 b=2 | c=3", sets of labels; "-" is the empty one.
func sets(text string) []selector.Map {
	var out []selector.Map
	for part := range strings.SplitSeq(text, "|") {
		m := selector.Map{}
		for _, f := range strings.Fields(part) {
			if k, v, ok := strings.Cut(f, "="); ok {
				m[k] = v
			}
		}
		out = append(out, m)
	}
	return out
}

// TestSelector: the operators, how closely they bind, and where white space may be.
func TestSelector(t *testing.T) {
	for _, tc := range []struct{ in, yes, no string }{
		{`app == "web"`, "app=web | app=web x=y", "- | app=db | x=web"},
		{`app=='web'`, "app=web", "- | app=db"},
		{`app != "web"`, "- | app=db | x=web", "app=web"},
		{`app in {"web", 'db'}`, "app=web | app=db", "- | app=cache"},
		{`app in{"web"}`, "app=web", "-"},
		{`app in {'web',}`, "app=web", "-"},
		{`app in {}`, "", "- | app=web"},
		{`app not in {"web", "db"}`, "- | app=cache", "app=web | app=db"},
		{`app notin{"web"}`, "- | app=db", "app=web"},
		{`app not  in {}`, "- | app=web", ""},
		{`has(app)`, "app=web | app=", "- | x=app"},
		{`has( app )`, "app=web", "-"},
		{`! has(app)`, "- | x=y", "app=web"},
		{`app contains "e"`, "app=web | app=e", "- | app=db"},
		{`app contains"e"`, "app=web", "app=db"},
		{`app contains ""`, "app=web | app=", "-"},
		{`app starts with 'we'`, "app=web | app=we", "- | app=awe"},
		{`app startswith 'we'`, "app=web", "app=awe"},
		{`app ends  with 'eb'`, "app=web | app=eb", "- | app=ebb"},
		{"app\t==\t'web' ", "app=web", "-"},
		{``, "- | app=web", ""},
		{"  \t", "-", ""},
		{`all()`, "- | app=web", ""},
		{` all( ) `, "-", ""},
		{`!all()`, "", "- | app=web"},
		{`global()`, "- | app=web", ""},
		{`a == 'b' && c == 'd'`, "a=b c=d", "- | a=b | c=d | a=b c=e"},
		{`a == 'b' || c == 'd'`, "a=b | c=d | a=b c=d", "- | a=x c=x"},
		{`a == '1' || b == '1' && c == '1'`, "a=1 | b=1 c=1", "b=1 | c=1 | -"},
		{`(a == '1' || b == '1') && c == '1'`, "a=1 c=1 | b=1 c=1", "a=1 | b=1"},
		{`a=='1'&&b=='1'||c=='1'`, "a=1 b=1 | c=1", "a=1"},
		{`!a == '1'`, "- | a=2", "a=1"},
		{`!!a == '1'`, "a=1", "- | a=2"},
		{`!! ! has(a)`, "-", "a=1"},
		{`!(has(a) && has(b))`, "- | a=1 | b=1", "a=1 b=1"},
		{`!(!has(a) || has(b))`, "a=1", "- | a=1 b=1 | b=1"},
		{`!has(a) && !has(b)`, "-", "a=1 | b=1"},
		{`((((a == '1'))))`, "a=1", "-"},
		// Words of the language are labels as well, where a label is wanted.
		{`contains contains "contains"`, "contains=xcontainsx", "contains=x"},
		{`has == 'x' && all != 'y' && in in {'z'}`, "has=x in=z", "has=x in=z all=y"},
		{`startswith starts with "a" && not not in {"b"}`, "startswith=ab", "startswith=ab not=b"},
		// Quotes of one kind may be in those of the other. A backslash is one.
		{`a in {"'", '"', '\'}`, `a=' | a=" | a=\`, "a=x"},
		{`example.com/a_b-c.1/x == "1"`, "example.com/a_b-c.1/x=1", "-"},
		{`1 == "2"`, "1=2", "-"},
		// Calico's own labels are facts, and namespaces' and accounts' labels have a prefix.
		{`projectcalico.org/namespace == "prod"`, "@namespace=prod", "projectcalico.org/namespace=prod"},
		{`!has(projectcalico.org/namespace)`, "-", "@namespace=prod"},
		{`projectcalico.org/serviceaccount in {"a"}`, "@serviceaccount=a", "-"},
		{`projectcalico.org/name == "n"`, "projectcalico.org/name=n", "@name=n"},
		{`pcns.env == "prod"`, "namespace:env=prod", "env=prod"},
		{`pcns.projectcalico.org/name == "prod"`, "@namespace=prod", "-"},
		{`pcsa.role == "x"`, "serviceaccount:role=x", "role=x"},
		{`pcsa.projectcalico.org/name == "x"`, "@serviceaccount=x", "-"},
		{`projectcalico.org/orchestrator == 'k8s'`, "@kind=pod", "@kind=hostendpoint | @kind=set"},
		{`projectcalico.org/orchestrator != 'k8s'`, "@kind=hostendpoint", "@kind=pod"},
		{`projectcalico.org/orchestrator == 'openstack'`, "", "@kind=pod | @kind=hostendpoint"},
		{`projectcalico.org/orchestrator not in {'openstack'}`, "@kind=pod | @kind=hostendpoint", ""},
		{`has(projectcalico.org/orchestrator)`, "@kind=pod", "@kind=set"},
		{`!has(projectcalico.org/orchestrator)`, "@kind=set", "@kind=pod"},
		{`projectcalico.org/orchestrator starts with 'k'`, "@kind=pod", "@kind=set"},
	} {
		e, err := parseSelector(tc.in, everywhere())
		if err != nil {
			t.Errorf("%s: %v", tc.in, err)
			continue
		}
		for want, text := range map[bool]string{true: tc.yes, false: tc.no} {
			if text == "" {
				continue
			}
			for _, m := range sets(text) {
				if e.Match(m) != want {
					t.Errorf("%s, as %s, of %v: got %v", tc.in, e, m, !want)
				}
			}
		}
	}
}

func TestSelectorMistakes(t *testing.T) {
	for in, want := range map[string]string{
		`a`:                      "want an operator after the label a at the end",
		`a b`:                    `want an operator after the label a at character 3, got "b"`,
		`a == b`:                 `want a string in quotes at character 6, got "b"`,
		`a contains b`:           "want a string in quotes",
		`a = 'b'`:                "want an operator",
		`a == 'b`:                "want a string in quotes at character 6",
		`a == "b'`:               "want a string in quotes",
		`'a' == b`:               "want a label, has(), all() or a bracket at character 1",
		`a == 'b' &`:             `want &&, || or the end at character 10, got "&"`,
		`a == 'b' &&`:            "want a label, has(), all() or a bracket at the end",
		`a == 'b' || ||`:         "want a label",
		`a == 'b' c == 'd'`:      "want &&, || or the end at character 10",
		`a == 'b' %`:             "want &&, || or the end",
		`%`:                      "want a label",
		`!`:                      "want a label",
		`!= 'a'`:                 "want a label",
		`()`:                     "want a label",
		`(`:                      "want a label",
		`)`:                      "want a label",
		`(a == 'b'`:              "want ) at the end",
		`a == 'b')`:              "want &&, || or the end",
		`has(`:                   "want a label at the end",
		`has()`:                  "want a label",
		`has(a`:                  "want ) at the end",
		`has (a)`:                "want an operator after the label has",
		`all(x)`:                 "want )",
		`all ()`:                 "want an operator after the label all",
		`a in 'b'`:               "want {",
		`a in {b}`:               "want } or a string in quotes",
		`a in {'b' 'c'}`:         "want } or a string in quotes",
		`a in {,}`:               "want } or a string in quotes",
		`a in {'b'`:              "want } or a string in quotes at the end",
		`a not {'b'}`:            "want an operator",
		`a starts 'b'`:           "want an operator",
		`a squiggles "b"`:        "want an operator",
		"a ==\n'b'":              "want a string in quotes",
		`é == 'b'`:               "want a label",
		`global() && has(a)`:     "global() must stand alone",
		`!global()`:              "global() must stand alone",
		strings.Repeat("(", 1e5): "brackets within each other",
		`a == '` + strings.Repeat("x", maxSelector) + `'`: "the most are",
	} {
		l := everywhere()
		l.global = selector.Absent(selector.NamespaceName)
		if e, err := parseSelector(in, l); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: got %v and the error %v, want %q", in, e, err, want)
		}
	}
	if _, err := parseSelector("global()", endpointLanguage(selector.AllOf())); err == nil || !strings.Contains(err.Error(), "of a rule only") {
		t.Errorf("global() of an endpoint: %v", err)
	}
}

// TestSelectorText: what is printed is understood again, and means the same.
func TestSelectorText(t *testing.T) {
	for _, in := range []string{
		`a == 'b' && (c != 'd' || !(e in {'f', 'g'} && h contains 'i'))`,
		`!(a starts with 'b' || has(c)) && d ends with 'e' && !has(f)`,
		`all()`,
		`a not in {'z', 'b', 'z'}`,
	} {
		e, err := parseSelector(in, everywhere())
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseSelector(e.String(), everywhere())
		if err != nil || again.String() != e.String() {
			t.Errorf("%s became %s, and that %v, %v", in, e, again, err)
		}
	}
}

func FuzzSelector(f *testing.F) {
	for _, s := range []string{`a == 'b' && !(c in {"d"} || has(e))`, `global()`, `projectcalico.org/orchestrator != 'k8s'`, "!!!!(((", `a not in {}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		e, err := parseSelector(text, everywhere())
		if (e == nil) != (err != nil) {
			t.Fatalf("%q: %v, %v", text, e, err)
		}
		if e != nil {
			e.Match(selector.Map{"a": "b", "@kind": "pod"})
		}
	})
}
