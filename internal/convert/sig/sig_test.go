package sig

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"weft/internal/convert/golden"
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

// TestNamesDecideBetweenEqualPriorities: a kind or group must not come before the name.
func TestNamesDecideBetweenEqualPriorities(t *testing.T) {
	tie := func(kind, version, name string) string {
		data := fmt.Sprintf(`{"apiVersion": "policy.networking.k8s.io/%s", "kind": %q, "metadata": {"name": %q}, "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}}}`,
			version, kind, name)
		return Convert([]byte(data)).Objects[0].(*model.Policy).Tie
	}
	sorted := []string{
		tie("AdminNetworkPolicy", "v1alpha1", "a"), tie("ClusterNetworkPolicy", "v1alpha2", "a"), tie("AdminNetworkPolicy", "v1alpha1", "a-b"),
		tie("ClusterNetworkPolicy", "v1alpha2", "a.b"), tie("AdminNetworkPolicy", "v1alpha1", "ab"),
	}
	for i := range sorted[1:] {
		if sorted[i] >= sorted[i+1] {
			t.Errorf("%q is not before %q", sorted[i], sorted[i+1])
		}
	}
}

func TestKindsHaveDialects(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range Kinds() {
		if seen[k.Type.String()] || k.Namespaced || k.Plural != plural(k.Type.Kind) {
			t.Errorf("%+v", k)
		}
		seen[k.Type.String()] = true
		if len(dialect(k.Type.Kind).Actions) < 2 {
			t.Errorf("%s has no actions", k.Type)
		}
	}
}

func plural(kind string) string { return strings.TrimSuffix(strings.ToLower(kind), "y") + "ies" }

// TestHugeListsCostLittle is far beyond what the CRD allows.
func TestHugeListsCostLittle(t *testing.T) {
	const n = 10000
	var b strings.Builder
	b.WriteString(`{"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": {"name": "huge"}, "spec": {
		"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "egress": [`)
	for i := range n {
		fmt.Fprintf(&b, `{"action": "Deny", "to": [{"networks": ["10.%d.%d.0/24"]}]},`, i/256%256, i%256)
	}
	b.WriteString(`{"action": "Accept", "to": [{"networks": ["ten"]}]}]}}`)
	r := Convert([]byte(b.String()))
	want := fmt.Sprintf(`spec.egress[%d].to[0].networks[0]: "ten" is not a prefix in CIDR notation`, n)
	if r.Err == nil || r.Err.Error() != want {
		t.Errorf("error %v, want %s", r.Err, want)
	}
	if rules := r.Objects[0].(*model.Policy).Egress.Rules; len(rules) != n+1 || rules[n-1].Unsupported != "" {
		t.Errorf("%d rules", len(rules))
	}
}

func FuzzConvert(f *testing.F) {
	raw, err := os.ReadFile("testdata/policies.txt")
	if err != nil {
		f.Fatal(err)
	}
	golden.Fuzz(f, string(raw), Convert)
}
