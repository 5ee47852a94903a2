package cilium

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"weft/internal/convert/object"
	"weft/internal/model"
	"weft/internal/selector"
)

var update = flag.Bool("update", false, "write the goldens of testdata/*.txt anew")

// A file of testdata has cases: "=== name", an object in YAML, "---", and what it became, as show writes it.
type golden struct{ name, yaml, want string }

func readGoldens(t testing.TB, file string) []golden {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out []golden
	for _, part := range strings.Split("\n"+string(data), "\n=== ")[1:] {
		name, rest, _ := strings.Cut(part, "\n")
		doc, want, _ := strings.Cut(rest, "\n---\n")
		out = append(out, golden{name, doc, strings.TrimSpace(want)})
	}
	return out
}

// object completes the short form of the goldens: kind and name may be left out.
func (g golden) json(t testing.TB) []byte {
	t.Helper()
	var o map[string]any
	if err := yaml.Unmarshal([]byte(g.yaml), &o); err != nil {
		t.Fatalf("%s: %v", g.name, err)
	}
	set := func(k string, v any) {
		if _, ok := o[k]; !ok {
			o[k] = v
		}
	}
	set("apiVersion", "cilium.io/v2")
	set("kind", kindPolicy)
	set("metadata", map[string]any{"name": "p", "namespace": "shop"})
	raw, err := yaml.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	if raw, err = yaml.YAMLToJSON(raw); err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestGoldens(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		var out strings.Builder
		for _, g := range readGoldens(t, file) {
			got := show(Convert(g.json(t)))
			fmt.Fprintf(&out, "=== %s\n%s\n---\n%s\n\n", g.name, g.yaml, got)
			if got != g.want && !*update {
				t.Errorf("%s: %s\n%s\ngot:\n%s\n\nwant:\n%s", file, g.name, g.yaml, got, g.want)
			}
		}
		if *update {
			if err := os.WriteFile(file, []byte(strings.TrimRight(out.String(), "\n")+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// show writes a result in lines that a reader can compare with the object.
func show(r object.Result) string {
	var b strings.Builder
	for _, o := range r.Objects {
		switch o := o.(type) {
		case *model.Policy:
			showPolicy(&b, o)
		case *model.AddressSet:
			fmt.Fprintf(&b, "%s: labels %v nets %v\n", o.Ref, o.Labels, o.Nets)
		}
	}
	if len(r.Objects) == 0 {
		b.WriteString("nothing\n")
	}
	if r.Err != nil {
		for _, line := range strings.Split(r.Err.Error(), "\n") {
			fmt.Fprintf(&b, "error: %s\n", line)
		}
	}
	return strings.TrimSpace(b.String())
}

func showPolicy(b *strings.Builder, p *model.Policy) {
	fmt.Fprintf(b, "%s part %d order %v: %s\n", p.Ref, p.Part, p.Order, p.Subject)
	if len(p.Unsupported) > 0 {
		fmt.Fprintf(b, "  unsupported: %s\n", strings.Join(p.Unsupported, ", "))
	}
	for _, d := range []struct {
		name string
		*model.Section
	}{{"ingress", p.Ingress}, {"egress", p.Egress}} {
		if d.Section == nil {
			continue
		}
		fmt.Fprintf(b, "  %s%s\n", d.name, map[bool]string{true: " isolates"}[d.Isolates])
		for i := range d.Rules {
			showRule(b, &d.Rules[i])
		}
	}
}

func showRule(b *strings.Builder, r *model.Rule) {
	fmt.Fprintf(b, "    %s [%d] %s", r.Field, r.Index, r.Verdict)
	var peers []string
	for _, p := range r.Peers {
		peers = append(peers, showPeer(p))
	}
	switch {
	case r.Peers == nil:
		b.WriteString(" anybody")
	case len(peers) == 0:
		b.WriteString(" nobody")
	default:
		fmt.Fprintf(b, " {%s}", strings.Join(peers, " | "))
	}
	var ports []string
	for _, l := range r.L4 {
		name := fmt.Sprint(l.Proto)
		if s, ok := map[int]string{model.ProtoTCP: "tcp", model.ProtoUDP: "udp", model.ProtoSCTP: "sctp", model.ProtoICMP: "icmp", model.ProtoICMPv6: "icmpv6"}[l.Proto]; ok {
			name = s
		}
		for _, p := range l.Ports {
			name += "/" + p.String()
		}
		for _, n := range l.Named {
			name += "/" + n
		}
		ports = append(ports, name)
	}
	switch {
	case r.L4 == nil:
	case len(ports) == 0:
		b.WriteString(" no ports")
	default:
		b.WriteString(" " + strings.Join(ports, ","))
	}
	if r.Hosts {
		b.WriteString(" hosts")
	}
	if r.Log != nil {
		fmt.Fprintf(b, " log %q", r.Log.Prefix)
	}
	if r.Unsupported != "" {
		fmt.Fprintf(b, " (not understood: %s)", r.Unsupported)
	}
	b.WriteString("\n")
}

func showPeer(p model.Peer) string {
	var out []string
	if p.Select != nil {
		out = append(out, p.Select.String())
	}
	if p.NotSelect != nil {
		out = append(out, "not ("+p.NotSelect.String()+")")
	}
	if p.Nets != nil {
		out = append(out, fmt.Sprint(p.Nets))
	}
	if p.NotNets != nil {
		out = append(out, "except "+fmt.Sprint(p.NotNets))
	}
	if p.Names != nil {
		out = append(out, "names "+fmt.Sprint(p.Names))
	}
	if p.External {
		out = append(out, "outside")
	}
	if len(out) == 0 {
		return "anything"
	}
	return strings.Join(out, " ")
}

// check is what holds of every result, whatever the object was.
func check(t *testing.T, raw []byte) {
	t.Helper()
	r := Convert(raw)
	if again := Convert(raw); !reflect.DeepEqual(r.Objects, again.Objects) || fmt.Sprint(r.Err) != fmt.Sprint(again.Err) {
		t.Fatalf("not the same twice:\n%s\n%s", show(r), show(again))
	}
	keys := map[model.Key]bool{}
	for _, o := range r.Objects {
		if err := o.Validate(); err != nil {
			t.Fatalf("%v\n%s", err, show(r))
		}
		if keys[o.Key()] {
			t.Fatalf("two objects with the key %v", o.Key())
		}
		keys[o.Key()] = true
		p, ok := o.(*model.Policy)
		if !ok {
			continue
		}
		if kinds := p.Subject.Require(selector.Kind); kinds == nil && p.Subject.Op != selector.None {
			t.Fatalf("the subject may be of any kind: %s", p.Subject)
		}
		for _, s := range []*model.Section{p.Ingress, p.Egress} {
			if s == nil {
				continue
			}
			for i := range s.Rules {
				checkRule(t, &s.Rules[i])
			}
		}
	}
}

func checkRule(t *testing.T, r *model.Rule) {
	t.Helper()
	if r.Field == "" || r.Verdict == model.VerdictNone {
		t.Fatalf("%+v", r)
	}
	for _, p := range r.Peers {
		if len(p.Names) > 0 && r.Unsupported == "" {
			t.Fatalf("%s has names, and does not say that they are not enforced", r.Field)
		}
		for _, n := range append(slices.Clone(p.Nets), p.NotNets...) {
			if !n.IsValid() || n != n.Masked() || n.Addr().Is4In6() {
				t.Fatalf("%s has a prefix that is none: %v", r.Field, n)
			}
		}
	}
	if r.Unsupported == "" && r.Verdict == model.VerdictAllow && r.Peers == nil && r.L4 == nil {
		t.Fatalf("%s allows everything, which no rule of Cilium does", r.Field)
	}
}

func FuzzConvert(f *testing.F) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		for _, g := range readGoldens(f, file) {
			f.Add(g.json(f))
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) { check(t, raw) })
}

// TestMutations takes fields away from the objects of the goldens, renames them and gives them values of other types: nothing
// that was a mistake to begin with may allow more.
func TestMutations(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewSource(1)) // the same ones every time
	for _, file := range files {
		for _, g := range readGoldens(t, file) {
			doc := g.json(t)
			for range 30 {
				var o any
				if err := json.Unmarshal(doc, &o); err != nil {
					t.Fatal(err)
				}
				raw, err := json.Marshal(mutate(rnd, o, 0))
				if err != nil {
					t.Fatal(err)
				}
				check(t, raw)
			}
		}
	}
}

func mutate(rnd *rand.Rand, v any, depth int) any {
	if depth > 1 && rnd.Intn(30) == 0 {
		return []any{nil, map[string]any{}, []any{}, "", "x", 7.0, -1.0, true, []any{nil}, map[string]any{"x": "y"}}[rnd.Intn(10)]
	}
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			x := v[k]
			if delete(v, k); depth < 2 || rnd.Intn(40) > 0 {
				if depth > 1 && rnd.Intn(40) == 0 {
					k += "X"
				}
				v[k] = mutate(rnd, x, depth+1)
			}
		}
	case []any:
		for i := range v {
			v[i] = mutate(rnd, v[i], depth+1)
		}
	}
	return v
}

func TestKinds(t *testing.T) {
	for _, k := range Kinds() {
		raw := fmt.Sprintf(`{"apiVersion": "%s/%s", "kind": %q, "metadata": {"name": "x"}, "spec": {"endpointSelector": {},
			"ingress": [{}], "externalCIDRs": []}}`, k.Type.Group, k.Type.Version, k.Type.Kind)
		r := Convert([]byte(raw))
		if len(r.Objects) != 1 {
			t.Errorf("%s: %s", k.Type, show(r))
		}
		if p, ok := r.Objects[0].(*model.Policy); ok && (p.Ref.Namespace == "") == k.Namespaced {
			t.Errorf("%s: namespace %q", k.Type, p.Ref.Namespace)
		}
	}
	for _, raw := range []string{
		`{"apiVersion": "cilium.io/v3", "kind": "CiliumNetworkPolicy", "metadata": {"name": "x"}}`,
		`{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}}`,
		`{"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": {}}`,
		`[]`, `7`, `{`, ``, `null`,
	} {
		if r := Convert([]byte(raw)); r.Err == nil || r.Objects != nil {
			t.Errorf("%s: %s", raw, show(r))
		}
	}
}

// TestHuge converts more than anybody writes, with a mistake in each rule.
func TestHuge(t *testing.T) {
	var b strings.Builder
	b.WriteString(`{"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": {"name": "x"}, "spec": {"endpointSelector": {}, "ingress": [`)
	const n = 5000
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"fromCIDR": ["10.%d.%d.0/24", "10.0.0.0/33"], "toPorts": [{"ports": [{"port": "%d"}]}]}`, i/256, i%256, i+1)
	}
	b.WriteString(`]}}`)
	r := Convert([]byte(b.String()))
	if len(r.Objects) != 1 || len(r.Objects[0].(*model.Policy).Ingress.Rules) != n {
		t.Fatal(len(r.Objects))
	}
	var many interface{ Unwrap() []error }
	if !errors.As(r.Err, &many) || len(many.Unwrap()) != n {
		t.Fatal("not every mistake is named")
	}
	var ports []string
	for i := range maxPorts + 1 {
		ports = append(ports, fmt.Sprintf(`{"port": "%d"}`, i+1))
	}
	raw := fmt.Sprintf(`{"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": {"name": "x"}, "spec": {"endpointSelector": {},
		"ingress": [{"toPorts": [{"ports": [%s]}]}]}}`, strings.Join(ports, ","))
	if r := Convert([]byte(raw)); r.Err == nil || r.Objects[0].(*model.Policy).Ingress.Rules[0].Unsupported == "" {
		t.Error(show(r))
	}
}
