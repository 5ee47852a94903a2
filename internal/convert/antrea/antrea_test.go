package antrea

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"sigs.k8s.io/yaml"

	"weft/internal/convert/object"
	"weft/internal/model"
	"weft/internal/selector"
)

var update = flag.Bool("update", false, "write the goldens")

// TestGolden converts the YAML documents of testdata/*.txtar and compares what became of each with its golden.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no goldens: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			out := &txtar.Archive{Comment: ar.Comment}
			for i, f := range ar.Files {
				name, isCase := strings.CutSuffix(f.Name, ".yaml")
				if !isCase {
					continue
				}
				out.Files = append(out.Files, f)
				got := show(Convert(toJSON(t, f.Data)))
				out.Files = append(out.Files, txtar.File{Name: name + ".want", Data: []byte(got)})
				if *update {
					continue
				}
				if i+1 >= len(ar.Files) || ar.Files[i+1].Name != name+".want" {
					t.Errorf("%s has no golden; run with -update", name)
					continue
				}
				if want := string(ar.Files[i+1].Data); got != want {
					t.Errorf("%s:\n%s\ngot:\n%s\nwant:\n%s", name, f.Data, got, want)
				}
			}
			if *update {
				if err := os.WriteFile(file, txtar.Format(out), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func toJSON(t testing.TB, doc []byte) []byte {
	t.Helper()
	raw, err := yaml.YAMLToJSON(doc)
	if err != nil {
		t.Fatalf("%s: %v", doc, err)
	}
	return raw
}

// show is a result as people read it.
func show(r object.Result) string {
	var b strings.Builder
	for _, o := range r.Objects {
		switch o := o.(type) {
		case *model.Policy:
			showPolicy(&b, o)
		case *model.Tier:
			fmt.Fprintf(&b, "tier %s/%s order %.2f pass %v\n", o.API, o.Name, o.Order, o.Pass)
		case *model.Group:
			fmt.Fprintf(&b, "group %s\n", o.Ref)
			line(&b, "  members", showPeers(o.Members))
			line(&b, "  children", refs(o.Children))
			line(&b, "  unsupported", strings.Join(o.Unsupported, ", "))
		}
		if err := o.Validate(); err != nil {
			fmt.Fprintf(&b, "INVALID %v\n", err)
		}
	}
	if r.Err != nil {
		for l := range strings.SplitSeq(r.Err.Error(), "\n") {
			fmt.Fprintf(&b, "error %s\n", l)
		}
	}
	return b.String()
}

func line(b *strings.Builder, name, text string) {
	if text != "" {
		fmt.Fprintf(b, "%s: %s\n", name, text)
	}
}

func showPolicy(b *strings.Builder, p *model.Policy) {
	fmt.Fprintf(b, "policy %s\n", p.Ref)
	rank := fmt.Sprintf("tier %s/%s, order %g, tie %s", p.Tier.API, p.Tier.Name, p.Order, p.Tie)
	if p.Hook == model.HookService {
		rank += ", hook service"
	}
	if p.Part != 0 {
		rank += fmt.Sprintf(", part %d", p.Part)
	}
	line(b, "  rank", rank)
	if p.Subject != nil {
		line(b, "  subject", p.Subject.String())
	}
	line(b, "  groups", refs(p.Groups))
	line(b, "  unsupported", strings.Join(p.Unsupported, ", "))
	for _, s := range []*model.Section{p.Ingress, p.Egress} {
		if s == nil {
			continue
		}
		for i := range s.Rules {
			showRule(b, &s.Rules[i])
		}
		if s.Isolates {
			b.WriteString("  isolates\n")
		}
	}
}

func showRule(b *strings.Builder, r *model.Rule) {
	fmt.Fprintf(b, "  %s %s", r.Field, r.Verdict)
	if r.Verdict == model.VerdictPass {
		fmt.Fprintf(b, " to %g", r.PassTo)
	}
	if r.Name != "" {
		fmt.Fprintf(b, " %q", r.Name)
	}
	if r.Log != nil {
		fmt.Fprintf(b, " log %q", r.Log.Prefix)
	}
	b.WriteString("\n")
	if r.Subject != nil {
		line(b, "    subject", r.Subject.String())
	}
	line(b, "    groups", refs(r.Groups))
	line(b, "    local", showPeers(r.Local))
	if r.Peers != nil && len(r.Peers) == 0 {
		line(b, "    peers", "nobody")
	}
	line(b, "    peers", showPeers(r.Peers))
	if r.L4 != nil && len(r.L4) == 0 {
		line(b, "    l4", "nothing")
	}
	var l4 []string
	for i := range r.L4 {
		l4 = append(l4, showL4(&r.L4[i]))
	}
	line(b, "    l4", strings.Join(l4, "; "))
	line(b, "    unsupported", r.Unsupported)
}

func refs(list []model.Ref) string {
	var out []string
	for _, r := range list {
		out = append(out, r.String())
	}
	return strings.Join(out, ", ")
}

func showPeers(list []model.Peer) string {
	var out []string
	for i := range list {
		out = append(out, showPeer(&list[i]))
	}
	return strings.Join(out, "; ")
}

func showPeer(p *model.Peer) string {
	var out []string
	if p.Select != nil {
		out = append(out, p.Select.String())
	}
	if p.SameNamespace {
		out = append(out, "same namespace")
	}
	if p.SameLabels != nil {
		out = append(out, fmt.Sprintf("same labels %v", p.SameLabels))
	}
	if p.Nets != nil {
		out = append(out, fmt.Sprint(p.Nets))
	}
	if p.NotNets != nil {
		out = append(out, fmt.Sprintf("except %v", p.NotNets))
	}
	if p.Group != nil {
		out = append(out, p.Group.String())
	}
	if p.Names != nil {
		out = append(out, fmt.Sprintf("names %v", p.Names))
	}
	if out == nil {
		return "anybody"
	}
	return strings.Join(out, " and ")
}

func showL4(l *model.L4) string {
	name, ok := map[int]string{model.ProtoTCP: "tcp", model.ProtoUDP: "udp", model.ProtoSCTP: "sctp", model.ProtoICMP: "icmp", model.ProtoICMPv6: "icmpv6", protoIGMP: "igmp"}[l.Proto]
	if !ok {
		name = fmt.Sprintf("proto %d", l.Proto)
	}
	var ports []string
	for _, r := range l.Ports {
		if l.Proto == model.ProtoICMP || l.Proto == model.ProtoICMPv6 {
			ports = append(ports, fmt.Sprintf("type %d/%d-%d", r.First>>8, r.First&0xff, r.Last&0xff))
			continue
		}
		ports = append(ports, r.String())
	}
	if len(ports) > 3 {
		ports = append(ports[:2:2], fmt.Sprintf("… %d ranges", len(ports)))
	}
	ports = append(ports, l.Named...)
	if len(ports) > 0 {
		name += " " + strings.Join(ports, ",")
	}
	for _, r := range l.SrcPorts {
		name += " from " + r.String()
	}
	return name
}

// TestTierOrder holds what every policy relies on: no two tiers that can be have one place, and the tiers of other APIs lie where
// Antrea's documents say.
func TestTierOrder(t *testing.T) {
	order := model.AntreaTierOrder
	for p := 1; p <= priorityBaseline; p++ {
		if order(p) <= order(p-1) && p != priorityBaseline { // 252 cannot be
			t.Errorf("tier %d at %v is not after tier %d at %v", p, order(p), p-1, order(p-1))
		}
	}
	for p, want := range map[int]float64{0: 0, priorityAdmin: model.TierAdmin, 251: model.TierNormal, priorityBaseline: model.TierLate} {
		if got := order(p); got != want {
			t.Errorf("tier %d is at %v, want %v", p, got, want)
		}
	}
	for p, want := range map[int]float64{50: 227.27, 100: 454.55, 150: 681.82, 200: 909.09, 250: 967774.19} { // features.md 3.3
		if got := order(p); math.Abs(got-want) > 0.01 {
			t.Errorf("tier %d is at %.2f, want %.2f", p, got, want)
		}
	}
}

// nothing is a snapshot without objects.
type nothing struct{ model.Snapshot }

func (nothing) Get(model.Key) model.Object { return nil }

// TestStaticTiers: whether their objects are there or not makes no difference to where the static tiers are.
func TestStaticTiers(t *testing.T) {
	last := -1.0
	for _, name := range statics() {
		p, _ := staticPriority(name)
		with, without := newTier(name, p), model.FindTier(nothing{}, tierRef(strings.ToUpper(name)))
		if with.Order != without.Order || with.Name != without.Name || with.API != without.API {
			t.Errorf("with an object %+v, without %+v", with, without)
		}
		if with.Order <= last {
			t.Errorf("tier %s is not after its predecessor", name)
		}
		last = with.Order
	}
	if got := tierRef(""); got != tierRef("application") {
		t.Errorf("the default tier is %+v", got)
	}
}

// TestKinds: what is listed is converted, in every version, and the first version of a kind is the current one.
func TestKinds(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range Kinds() {
		if !seen[k.Type.Kind] && k.Type.Version != "v1beta1" {
			t.Errorf("%s comes before v1beta1", k.Type)
		}
		seen[k.Type.Kind] = true
		raw := fmt.Sprintf(`{"apiVersion": %q, "kind": %q, "metadata": {"name": "x"}, "spec": {
			"priority": 5, "appliedTo": [{"podSelector": {}}], "podSelector": {}}}`, k.Type.Group+"/"+k.Type.Version, k.Type.Kind)
		r := Convert([]byte(raw))
		if len(r.Objects) == 0 {
			t.Errorf("%s became nothing: %v", k.Type, r.Err)
			continue
		}
		want := ""
		if k.Namespaced {
			want = "/default/"
		}
		if key := r.Objects[0].Key().Name; want != "" && !strings.Contains(key, want) {
			t.Errorf("%s: key %s is not in namespace default", k.Type, key)
		}
	}
	for _, doc := range []string{
		`{"apiVersion": "crd.antrea.io/v1beta1", "kind": "Egress", "metadata": {"name": "x"}}`,
		`{"apiVersion": "crd.antrea.io/v7", "kind": "Tier", "metadata": {"name": "x"}}`,
		`{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "x"}}`,
		`{"apiVersion": "crd.antrea.io/v1beta1", "kind": "Tier", "metadata": {}}`,
		`{}`, `[]`, `null`, `7`, ``, `{"metadata": 5}`,
	} {
		if r := Convert([]byte(doc)); len(r.Objects) != 0 || r.Err == nil {
			t.Errorf("%s: %s", doc, show(r))
		}
	}
}

// TestTie: between equal priorities the older policy goes first, and then the name decides.
func TestTie(t *testing.T) {
	tie := func(meta string) string {
		r := Convert(toJSON(t, []byte(`{apiVersion: crd.antrea.io/v1beta1, kind: NetworkPolicy, metadata: {`+meta+`},
			spec: {priority: 5, appliedTo: [{podSelector: {}}], ingress: [{action: Drop}]}}`)))
		if r.Err != nil {
			t.Fatal(r.Err)
		}
		return r.Objects[0].(*model.Policy).Tie
	}
	order := []string{
		`name: z1, namespace: ns, creationTimestamp: "2023-12-31T23:59:59Z"`,
		`name: y1, namespace: ns, creationTimestamp: "2024-01-01T00:00:00Z"`,
		`name: aa, namespace: ms, creationTimestamp: "2024-01-01T00:00:01Z"`,
		`name: aa, namespace: ns, creationTimestamp: "2024-01-01T00:00:01Z"`,
		`name: bb, namespace: ns, creationTimestamp: "2024-01-01T00:00:01Z"`,
	}
	for i := 1; i < len(order); i++ {
		if a, b := tie(order[i-1]), tie(order[i]); a >= b {
			t.Errorf("%s (%s) is not before %s (%s)", a, order[i-1], b, order[i])
		}
	}
}

// TestHuge: long lists are converted in one piece, in the user's order, and every mistake in them is named.
func TestHuge(t *testing.T) {
	const n = 20000
	var peers, subjects []string
	for i := range n {
		peers = append(peers, fmt.Sprintf(`{"ipBlock": {"cidr": "10.%d.%d.%d/32"}}`, i>>16, i>>8&0xff, i&0xff))
		subjects = append(subjects, fmt.Sprintf(`{"podSelector": {"matchLabels": {"app": "a%d"}}}`, i%100))
	}
	peers[n-1] = `{"ipBlock": {"cidr": "nonsense"}}`
	raw := `{"apiVersion": "crd.antrea.io/v1beta1", "kind": "ClusterNetworkPolicy", "metadata": {"name": "huge"}, "spec": {"priority": 1,
		"appliedTo": [` + strings.Join(subjects, ",") + `], "egress": [{"action": "Drop", "to": [` + strings.Join(peers, ",") + `]}]}}`
	r := Convert([]byte(raw))
	p := r.Objects[0].(*model.Policy)
	got := p.Egress.Rules[0].Peers
	if len(got) != n || got[1].Nets[0].String() != "10.0.0.1/32" || showPeer(&got[n-1]) != "anybody" {
		t.Errorf("%d peers, %s … %s", len(got), showPeer(&got[1]), showPeer(&got[len(got)-1]))
	}
	if r.Err == nil || !strings.Contains(r.Err.Error(), fmt.Sprintf("spec.egress[0].to[%d].ipBlock.cidr", n-1)) {
		t.Errorf("error %v", r.Err)
	}
	if got := len(p.Subject.Sub); got != 100 {
		t.Errorf("%d subjects, want 100", got)
	}
}

// stranger is a pod of a namespace that no test names.
func stranger() selector.Map {
	return selector.Map{selector.Kind: selector.KindPod, selector.NamespaceName: "a namespace of nobody", selector.Name: "stranger"}
}

// FuzzConvert: whatever comes, there is a result, the same each time, and it keeps the promises that the rest of weft builds on.
func FuzzConvert(f *testing.F) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		ar, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for _, doc := range ar.Files {
			if strings.HasSuffix(doc.Name, ".yaml") {
				f.Add(toJSON(f, doc.Data))
			}
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		r := Convert(raw)
		if again := show(Convert(raw)); again != show(r) {
			t.Errorf("not the same twice:\n%s\n%s", show(r), again)
		}
		if len(r.Objects) == 0 && r.Err == nil {
			t.Error("neither an object nor an error")
		}
		for _, o := range r.Objects {
			if err := o.Validate(); err != nil {
				t.Errorf("invalid: %v", err)
			}
			if p, ok := o.(*model.Policy); ok {
				promises(t, p)
			}
		}
	})
}

// promises checks what holds of every policy.
func promises(t *testing.T, p *model.Policy) {
	t.Helper()
	subject := func(e *selector.Expr, where string) {
		switch {
		case e == nil:
		case e.Match(selector.Map{}):
			t.Errorf("%s: %s does not say which kind", where, e)
		case p.Ref.Namespace != "" && e.Match(stranger()):
			t.Errorf("%s: %s selects a pod of another namespace", where, e)
		}
	}
	subject(p.Subject, "spec")
	for _, s := range []*model.Section{p.Ingress, p.Egress} {
		if s == nil {
			continue
		}
		if s.Isolates || len(s.Rules) == 0 {
			t.Errorf("section %+v", s)
		}
		for i := range s.Rules {
			r := &s.Rules[i]
			subject(r.Subject, r.Field)
			if p.Ref.Namespace != "" && (len(p.Groups) > 0 && r.Subject == nil || len(r.Groups) > 0) && r.Local == nil {
				t.Errorf("%s: groups reach other namespaces", r.Field)
			}
			if r.Verdict == model.VerdictNone || r.Verdict == model.VerdictLog || r.Hosts {
				t.Errorf("%s: verdict %s, hosts %v", r.Field, r.Verdict, r.Hosts)
			}
		}
	}
}

// TestClosed breaks one place after another of a policy in many ways, and looks at what is left: a rule that allows must not allow
// more, and a rule that denies must not deny less.
func TestClosed(t *testing.T) {
	const doc = `{apiVersion: crd.antrea.io/v1beta1, kind: ClusterNetworkPolicy, metadata: {name: x}, spec: {priority: 5, appliedTo: [{podSelector: {}}],
		egress: [{action: %s, to: [{podSelector: {matchLabels: {app: a}}}, {ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}],
			ports: [{protocol: TCP, port: 80, endPort: 90, sourcePort: 1000}], protocols: [{icmp: {icmpType: 8}}]}]}}`
	for _, action := range []string{"Allow", "Pass", "Drop", "Reject"} {
		base := toJSON(t, fmt.Appendf(nil, doc, action))
		if r := Convert(base); r.Err != nil {
			t.Fatal(r.Err)
		}
		broken := 0
		breakJSON(t, base, func(path string, raw []byte) {
			if !strings.HasPrefix(path, "spec.egress") {
				return
			}
			broken++
			r := Convert(raw)
			if r.Err == nil {
				return // what is left is valid, and means something else
			}
			if len(r.Objects) != 1 {
				t.Errorf("%s %s: %s", action, path, show(r))
				return
			}
			rules := r.Objects[0].(*model.Policy).Egress
			if rules == nil { // the list of rules itself
				return
			}
			for _, rule := range rules.Rules {
				if rule.Unsupported == "" {
					t.Errorf("%s, broken at %s:\n%s", action, path, show(r))
				}
			}
		})
		if broken < 100 {
			t.Errorf("only %d things to break", broken)
		}
	}
}

// breakJSON calls each with a document in which one value is replaced by something of another type, or has an unknown field more.
func breakJSON(t *testing.T, doc []byte, each func(path string, raw []byte)) {
	t.Helper()
	var root any
	if err := json.Unmarshal(doc, &root); err != nil {
		t.Fatal(err)
	}
	var walk func(path string, v any, set func(any))
	walk = func(path string, v any, set func(any)) {
		for _, other := range []any{nil, "nonsense", 70000, -1, 1.5, true, []any{}, map[string]any{}, map[string]any{"unknown": "x"}, []any{nil}} {
			set(other)
			raw, err := json.Marshal(root)
			if err != nil {
				t.Fatal(err)
			}
			each(fmt.Sprintf("%s=%v", path, other), raw)
		}
		set(v)
		switch v := v.(type) {
		case map[string]any:
			for _, k := range slices.Sorted(maps.Keys(v)) {
				walk(strings.TrimPrefix(path+"."+k, "."), v[k], func(x any) { v[k] = x })
			}
		case []any:
			for i := range v {
				walk(fmt.Sprintf("%s[%d]", path, i), v[i], func(x any) { v[i] = x })
			}
		}
	}
	walk("", root, func(x any) { root = x })
	if again, err := json.Marshal(root); err != nil || !bytes.Contains(again, []byte("egress")) {
		t.Fatalf("%s: %v", again, err)
	}
}
