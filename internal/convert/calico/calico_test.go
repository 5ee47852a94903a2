package calico

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"weft/internal/convert/object"
	"weft/internal/model"
	"weft/internal/selector"
)

var update = flag.Bool("update", false, "write what objects became into the files of testdata")

// TestConvert holds the files of testdata: cases of a line "=== name", an object, a line "---" and what it becomes.
func TestConvert(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no files", err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		head, rest, _ := strings.Cut(string(raw), "=== ")
		out.WriteString(head)
		for part := range strings.SplitSeq(rest, "\n=== ") {
			name, body, _ := strings.Cut(part, "\n")
			in, want, _ := strings.Cut(body, "---\n")
			want = strings.TrimRight(want, "\n") + "\n"
			data, err := yaml.YAMLToJSONStrict([]byte(in))
			if err != nil {
				t.Fatalf("%s: %s: %v", file, name, err)
			}
			got := show(Convert(data))
			if got != want && !*update {
				t.Errorf("%s: %s\ngot\n%s\nwant\n%s", file, name, got, want)
			}
			check(t, data, Convert(data))
			if out.Len() > len(head) {
				out.WriteByte('\n')
			}
			out.WriteString("=== " + name + "\n" + in + "---\n" + got)
		}
		if *update {
			if err := os.WriteFile(file, []byte(out.String()), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// check says what no result may be, whatever the object was.
func check(t *testing.T, raw []byte, r object.Result) {
	t.Helper()
	for _, o := range r.Objects {
		if err := o.Validate(); err != nil {
			t.Errorf("%s\n%v", raw, err)
		}
		p, ok := o.(*model.Policy)
		if !ok {
			continue
		}
		kinds := p.Subject.Require(selector.Kind)
		if len(kinds) == 0 && p.Subject.Op != selector.None {
			t.Errorf("%s\nsubject %s is of no kind", raw, p.Subject)
		}
		for _, s := range []*model.Section{p.Ingress, p.Egress} {
			if s == nil {
				continue
			}
			for _, rule := range s.Rules {
				deny := rule.Verdict == model.VerdictDeny
				if rule.Field == "" || deny && slices.ContainsFunc(rule.Peers, func(p model.Peer) bool { return p.Names != nil }) {
					t.Errorf("%s\nrule %+v", raw, rule)
				}
			}
		}
	}
}

// show prints a result as a person would read it.
func show(r object.Result) string {
	var b strings.Builder
	for _, o := range r.Objects {
		switch o := o.(type) {
		case *model.Policy:
			showPolicy(&b, o)
		case *model.Tier:
			fmt.Fprintf(&b, "%s: order %v, pass %v\n", o.Key(), o.Order, o.Pass)
		case *model.AddressSet:
			fmt.Fprintf(&b, "%s: [%s]\n%s", o.Ref, nets(o.Nets), labels(o.Labels))
		case *model.HostEndpoint:
			fmt.Fprintf(&b, "%s: node %q, interface %q, addresses %v, ports %v, profiles %v\n%s", o.Ref, o.Node, o.Interface, o.Addrs, o.Ports, o.Profiles, labels(o.Labels))
		}
	}
	if r.Err != nil {
		for line := range strings.SplitSeq(r.Err.Error(), "\n") {
			b.WriteString("error: " + line + "\n")
		}
	}
	if b.Len() == 0 {
		return "nothing\n"
	}
	return b.String()
}

func labels(m selector.Map) string {
	var out []string
	for k, v := range m {
		out = append(out, fmt.Sprintf("  %s=%s\n", k, v))
	}
	slices.Sort(out)
	return strings.Join(out, "")
}

func showPolicy(b *strings.Builder, p *model.Policy) {
	fmt.Fprintf(b, "%s: tier %s/%s, order %v, tie %q", p.Ref, p.Tier.API, p.Tier.Name, p.Order, p.Tie)
	b.WriteString(map[bool]string{true: " set"}[p.Set] + map[bool]string{true: " staged"}[p.Staged])
	hook := [...]string{"workload", "forward", "preDNAT", "untracked", "service"}[p.Hook]
	fmt.Fprintf(b, "\n  %s of %s\n", hook, p.Subject)
	showSection(b, "ingress", "from", p.Ingress)
	showSection(b, "egress", "to", p.Egress)
	if p.Unsupported != nil {
		fmt.Fprintf(b, "  not enforced yet: %s\n", strings.Join(p.Unsupported, " "))
	}
}

func showSection(b *strings.Builder, name, side string, s *model.Section) {
	if s == nil {
		return
	}
	fmt.Fprintf(b, "  %s%s\n", name, map[bool]string{true: ", isolates"}[s.Isolates])
	for _, r := range s.Rules {
		fmt.Fprintf(b, "    %s %s", r.Field, r.Verdict)
		if r.Family != 0 {
			fmt.Fprintf(b, " %s", r.Family)
		}
		if r.Log != nil {
			fmt.Fprintf(b, " %q", r.Log.Prefix)
		}
		if r.Unsupported != "" {
			fmt.Fprintf(b, ", closed by %s", r.Unsupported)
		}
		b.WriteByte('\n')
		if r.Peers != nil && len(r.Peers) == 0 {
			fmt.Fprintf(b, "      %s nothing\n", side)
		}
		for _, p := range r.Peers {
			fmt.Fprintf(b, "      %s %s\n", side, peer(p))
		}
		for _, p := range r.Local {
			fmt.Fprintf(b, "      of %s\n", peer(p))
		}
		for _, l := range r.L4 {
			fmt.Fprintf(b, "      %s\n", portsOf(l))
		}
	}
}

func peer(p model.Peer) string {
	var parts []string
	if p.Select != nil {
		parts = append(parts, p.Select.String())
	}
	if p.NotSelect != nil {
		parts = append(parts, "not "+p.NotSelect.String())
	}
	if p.Nets != nil {
		parts = append(parts, "in "+nets(p.Nets))
	}
	if p.NotNets != nil {
		parts = append(parts, "not in "+nets(p.NotNets))
	}
	if p.Names != nil {
		parts = append(parts, fmt.Sprintf("named %q", p.Names))
	}
	return strings.Join(parts, "; ")
}

func nets(ps []netip.Prefix) string {
	return strings.Trim(fmt.Sprint(ps), "[]")
}

func portsOf(l model.L4) string {
	names := map[int]string{model.ProtoAny: "any", model.ProtoICMP: "icmp", model.ProtoICMPv6: "icmpv6", model.ProtoTCP: "tcp", model.ProtoUDP: "udp", model.ProtoSCTP: "sctp"}
	out := names[l.Proto]
	if out == "" {
		out = fmt.Sprint(l.Proto)
	}
	for _, p := range l.NotProto {
		out += fmt.Sprintf(" !%d", p)
	}
	for _, x := range []struct {
		word   string
		ranges []model.PortRange
		names  []string
	}{{"", l.Ports, l.Named}, {"!", l.NotPorts, l.NotNamed}, {"from ", l.SrcPorts, nil}, {"from !", l.NotSrcPorts, nil}} {
		for _, p := range x.ranges {
			out += " " + x.word + p.String()
		}
		for _, n := range x.names {
			out += " " + x.word + n
		}
	}
	if l.Service != "" {
		out += " at a backend's port of " + l.Service
	}
	return out
}

func TestConvertRefuses(t *testing.T) {
	for in, want := range map[string]string{
		``:   "unexpected end of JSON input",
		`[]`: "got a JSON array",
		`{"apiVersion":"projectcalico.org/v3","kind":"NetworkPolicy"}`:                                        "metadata.name is missing",
		`{"apiVersion":"projectcalico.org/v3","kind":"BGPPeer","metadata":{"name":"a"}}`:                      "projectcalico.org/v3 BGPPeer is not a kind",
		`{"apiVersion":"projectcalico.org/v1","kind":"NetworkPolicy","metadata":{"name":"a"}}`:                "is not a kind",
		`{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"a"}}`:                "is not a kind",
		`{"apiVersion":"projectcalico.org/v3","kind":"NetworkPolicy","metadata":{"name":"a"},"spec":"x"}`:     "spec: want",
		`{"apiVersion":"crd.projectcalico.org/v1","kind":"Profile","metadata":{"name":"a"}}`:                  "is not a kind",
		`{"apiVersion":"projectcalico.org/v3","kind":"GlobalNetworkPolicy","metadata":{"name":"a"},"spec":1}`: "spec: want",
	} {
		r := Convert([]byte(in))
		if r.Err == nil || !strings.Contains(r.Err.Error(), want) || len(r.Objects) != 0 {
			t.Errorf("%s\ngot %v and %d objects, want the error %q", in, r.Err, len(r.Objects), want)
		}
	}
}

func TestKinds(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range Kinds() {
		if seen[k.Type.String()] || k.Plural == "" {
			t.Errorf("%+v", k)
		}
		seen[k.Type.String()] = true
		raw := fmt.Appendf(nil, `{"apiVersion":"%s/%s","kind":"%s","metadata":{"name":"n","namespace":"ns"}}`, k.Type.Group, k.Type.Version, k.Type.Kind)
		r := Convert(raw)
		check(t, raw, r)
		if len(r.Objects) == 0 && k.Type.Kind != "HostEndpoint" {
			t.Errorf("%s without a spec: %v", k.Type, r.Err)
		}
		for _, o := range r.Objects {
			if p, ok := o.(*model.Policy); ok && (p.Ref.Namespace == "ns") != k.Namespaced {
				t.Errorf("%s: %s", k.Type, p.Ref)
			}
		}
	}
}

// TestLists: length costs no more than its own.
func TestLists(t *testing.T) {
	const n = 20_000
	var many, values []string
	for i := range n {
		many = append(many, fmt.Sprintf(`{"action":"Allow","source":{"nets":["10.%d.%d.0/24"]}}`, i/256, i%256))
		values = append(values, fmt.Sprintf(`'v%d'`, i))
	}
	sel, err := json.Marshal("a in {" + strings.Join(values, ",") + "}")
	if err != nil {
		t.Fatal(err)
	}
	raw := fmt.Appendf(nil, `{"apiVersion":"projectcalico.org/v3","kind":"NetworkPolicy","metadata":{"name":"n"},"spec":{"selector":%s,"ingress":[%s]}}`, sel, strings.Join(many, ","))
	r := Convert(raw)
	if r.Err != nil || len(r.Objects) != 1 {
		t.Fatal(r.Err)
	}
	p, ok := r.Objects[0].(*model.Policy)
	if !ok || len(p.Ingress.Rules) != n || p.Ingress.Rules[n-1].Field != "spec.ingress[19999]" {
		t.Error("rules are missing")
	}
}

// TestOwnPolicies holds the policies that a host endpoint has without an object.
func TestOwnPolicies(t *testing.T) {
	h := &model.HostEndpoint{Ref: model.Ref{Group: apiGroup, Kind: "HostEndpoint", Name: "n1-eth0"}}
	var b strings.Builder
	for _, p := range h.Policies() {
		if err := p.Validate(); err != nil {
			t.Error(err)
		}
		showPolicy(&b, p)
	}
	const file = "testdata/hostendpoint.golden"
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func FuzzConvert(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.txt")
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for _, part := range strings.Split(string(raw), "\n=== ") {
			_, body, _ := strings.Cut(part, "\n")
			in, _, _ := strings.Cut(body, "---\n")
			if data, err := yaml.YAMLToJSON([]byte(in)); err == nil {
				f.Add(data)
			}
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		check(t, raw, Convert(raw))
	})
}
