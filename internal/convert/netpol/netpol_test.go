package netpol

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/randfill"

	"weft/internal/convert/golden"
	"weft/internal/convert/wire"
	"weft/internal/model"
)

var update = flag.Bool("update", false, "write the goldens")

func TestConvert(t *testing.T) {
	const file = "testdata/policies.txt"
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	now := golden.Test(t, string(raw), Convert)
	if *update {
		if err := os.WriteFile(file, []byte(now), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestProtobufAgreesWithJSON encodes random policies both ways: this holds every field number and name to the real ones.
func TestProtobufAgreesWithJSON(t *testing.T) {
	// The last word is a mistake, and rare.
	pick := func(c randfill.Continue, words ...string) string {
		if c.Intn(20) == 0 {
			return words[len(words)-1]
		}
		return words[c.Intn(len(words)-1)]
	}
	fill := randfill.NewWithSeed(11).NilChance(.4).NumElements(0, 3).Funcs(
		func(m *metav1.ObjectMeta, c randfill.Continue) {
			*m = metav1.ObjectMeta{Name: "p", Namespace: pick(c, "prod", "test", ""), Generation: 7, Labels: map[string]string{"a": "b"}}
		},
		func(m *map[string]string, c randfill.Continue) {
			*m = map[string]string{"app": pick(c, "web", "db", "")}
		},
		func(r *metav1.LabelSelectorRequirement, c randfill.Continue) {
			c.FillNoCustom(r)
			r.Key, r.Operator = pick(c, "a", "b", ""), metav1.LabelSelectorOperator(pick(c, "In", "NotIn", "Exists", "DoesNotExist", "Is"))
			if r.Values = nil; strings.HasSuffix(string(r.Operator), "In") {
				r.Values = []string{"x", pick(c, "y", "z")}[:1+c.Intn(2)]
			}
		},
		func(p *networkingv1.PolicyType, c randfill.Continue) {
			*p = networkingv1.PolicyType(pick(c, "Ingress", "Egress", "Both"))
		},
		func(b *networkingv1.IPBlock, c randfill.Continue) {
			b.CIDR = pick(c, "10.0.0.0/8", "10.0.0.0/7", "ten")
			c.Fill(&b.Except)
			for i := range b.Except {
				b.Except[i] = pick(c, "10.1.0.0/16", "10.2.0.0/16", "fd00:1::/32")
			}
		},
		func(p *networkingv1.NetworkPolicyPeer, c randfill.Continue) {
			c.FillNoCustom(p) // which leaves nothing nil that has a function here
			switch c.Intn(10) {
			case 0: // all of it, which is wrong
			case 1, 2, 3:
				p.PodSelector, p.NamespaceSelector = nil, nil
			default:
				p.IPBlock = nil
			}
		},
		func(p *networkingv1.NetworkPolicyPort, c randfill.Continue) {
			if c.FillNoCustom(p); c.Intn(3) == 0 {
				p.Port = nil
			}
			if p.EndPort != nil {
				if *p.EndPort = int32(2000 - c.Intn(2003)); c.Intn(10) > 0 && (p.Port == nil || p.Port.Type == intstr.String) {
					p.EndPort = nil
				}
			}
			if p.Protocol != nil {
				*p.Protocol = corev1.Protocol(pick(c, "TCP", "UDP", "SCTP", "tcp"))
			}
		},
		func(v *intstr.IntOrString, c randfill.Continue) {
			if *v = intstr.FromString(pick(c, "http", "dns", "80")); c.Intn(2) == 0 {
				*v = intstr.FromInt32(int32(c.Intn(1000) - 3))
			}
		},
	)
	seen := map[string]bool{}
	for range 1000 {
		var p networkingv1.NetworkPolicy
		fill.Fill(&p)
		p.APIVersion, p.Kind = "networking.k8s.io/v1", "NetworkPolicy"
		pb, err := p.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		js, err := json.Marshal(&p)
		if err != nil {
			t.Fatal(err)
		}
		want := Convert(js)
		for _, strs := range []*wire.Strings{nil, {}} {
			got := FromProto(pb, strs)
			if g, w := golden.Result(got), golden.Result(want); g != w {
				t.Fatalf("%s\nprotobuf\n%s\nJSON\n%s", js, g, w)
			}
			if err := golden.Check(got); err != nil {
				t.Fatalf("%s\n%v", js, err)
			}
		}
		for _, word := range []string{
			"podSelector", "matchExpressions", "matchLabels", "ipBlock", "except", "endPort", "port\":\"", "port\":1", "protocol",
			"namespaceSelector", "policyTypes", "values",
		} {
			seen[word] = seen[word] || want.Err == nil && strings.Contains(string(js), word)
		}
	}
	for word, ok := range seen {
		if !ok {
			t.Errorf("%s was in no policy without mistakes: the test tests little", word)
		}
	}
}

// TestNewerProtobufFailsClosed adds a field that no Kubernetes has, at every level.
func TestNewerProtobufFailsClosed(t *testing.T) {
	p := networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "p"},
		Spec: networkingv1.NetworkPolicySpec{
			PolicyTypes: []networkingv1.PolicyType{"Ingress"},
			Ingress:     []networkingv1.NetworkPolicyIngressRule{{}},
		},
	}
	extra := []byte{15 << 3, 1} // field 15, varint 1
	message := func(num byte, parts ...[]byte) []byte {
		var in []byte
		for _, b := range parts {
			in = append(in, b...)
		}
		return append([]byte{num<<3 | 2, byte(len(in))}, in...)
	}
	meta, err := p.ObjectMeta.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for name, spec := range map[string][]byte{
		"spec":                                message(2, message(1), message(2), extra),
		"spec.podSelector":                    message(2, message(1, extra), message(2)),
		"spec.ingress[0]":                     message(2, message(1), message(2, extra)),
		"spec.ingress[0].from[0]":             message(2, message(1), message(2, message(2, message(1), extra))),
		"spec.ingress[0].from[0].podSelector": message(2, message(1), message(2, message(2, message(1, extra)))),
		"spec.ingress[0].from[0].ipBlock":     message(2, message(1), message(2, message(2, message(3, message(1, []byte("::/0")), extra)))),
		"spec.ingress[0].ports[0]":            message(2, message(1), message(2, message(1, extra))),
	} {
		r := FromProto(append(message(1, meta), spec...), nil)
		want := fmt.Sprintf("%s: unknown field number 15", name)
		if r.Err == nil || r.Err.Error() != want {
			t.Errorf("%s: error %v, want %s", name, r.Err, want)
		}
		if len(r.Objects) != 1 {
			t.Errorf("%s: no policy", name)
			continue
		}
		rule := r.Objects[0].(*model.Policy).Ingress.Rules[0]
		if rule.Unsupported != name || rule.Peers == nil || len(rule.Peers) > 0 {
			t.Errorf("%s: the rule is not closed: %+v", name, rule)
		}
	}
	for name, data := range map[string][]byte{"nothing": nil, "no name": message(2, message(1)), "malformed": {0xff}} {
		if r := FromProto(data, nil); r.Err == nil || r.Objects != nil {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// TestHugeListsCostLittle is a policy as large as an API server takes.
func TestHugeListsCostLittle(t *testing.T) {
	const n = 20000
	var b strings.Builder
	b.WriteString(`{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "huge"}, "spec": {"ingress": [{"from": [`)
	for i := range n {
		fmt.Fprintf(&b, `{"ipBlock": {"cidr": "10.%d.%d.0/24"}},`, i/256%256, i%256)
	}
	b.WriteString(`{"ipBlock": {"cidr": "ten"}}]}, {"from": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "In", "values": [`)
	for i := range n {
		fmt.Fprintf(&b, `"v%d",`, i)
	}
	b.WriteString(`"v"]}]}}]}]}}`)
	r := Convert([]byte(b.String()))
	want := fmt.Sprintf(`spec.ingress[0].from[%d].ipBlock.cidr: "ten" is not a prefix in CIDR notation`, n)
	if r.Err == nil || r.Err.Error() != want {
		t.Errorf("error %v, want %s", r.Err, want)
	}
	rules := r.Objects[0].(*model.Policy).Ingress.Rules
	if len(rules[0].Peers) != 0 || len(rules[1].Peers[0].Select.Sub[2].Values) != n+1 {
		t.Errorf("%d peers, selector %s", len(rules[0].Peers), rules[1].Peers[0].Select.Sub[2].Key)
	}
}

func FuzzConvert(f *testing.F) {
	raw, err := os.ReadFile("testdata/policies.txt")
	if err != nil {
		f.Fatal(err)
	}
	golden.Fuzz(f, string(raw), Convert)
}

func FuzzFromProto(f *testing.F) {
	p := networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p"}}
	port, end := intstr.FromInt32(80), int32(90)
	p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{
		From: []networkingv1.NetworkPolicyPeer{
			{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}},
			{IPBlock: &networkingv1.IPBlock{CIDR: "10.0.0.0/8", Except: []string{"10.1.0.0/16"}}},
		},
		Ports: []networkingv1.NetworkPolicyPort{{Port: &port, EndPort: &end}},
	}}
	seed, err := p.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, raw []byte) {
		if err := golden.Check(FromProto(raw, nil)); err != nil {
			t.Fatal(err)
		}
	})
}
