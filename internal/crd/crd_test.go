package crd

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"weft/internal/convert/language"
	"weft/internal/convert/object"
)

// definition is what the tests look at.
type definition struct {
	Metadata struct {
		Name        string
		Labels      map[string]string
		Annotations map[string]string
	}
	Spec struct {
		Group, Scope string
		Names        struct{ Kind, ListKind, Plural, Singular string }
		Versions     []struct {
			Name                     string
			Served, Storage          bool
			Subresources             map[string]any
			AdditionalPrinterColumns []struct{ Name, JSONPath string }
			Schema                   struct {
				OpenAPIV3Schema map[string]any `json:"openAPIV3Schema"`
			}
		}
	}
}

// languages are those that need definitions.
func languages() []string { return []string{"sig-network", "calico", "cilium", "antrea", "aws", "gke"} }

func load(t *testing.T, language string) []definition {
	t.Helper()
	defs, err := Of(language)
	if err != nil {
		t.Fatal(err)
	}
	var out []definition
	for _, d := range defs {
		var v definition
		if err := json.Unmarshal(d.JSON, &v); err != nil {
			t.Fatal(err)
		}
		if v.Metadata.Name != d.Name {
			t.Errorf("%s is called %s", v.Metadata.Name, d.Name)
		}
		out = append(out, v)
	}
	return out
}

// TestEveryKindHasADefinition: what a converter reads, and nothing else, is defined in the versions that it reads. Calico's old
// group is Calico's own.
func TestEveryKindHasADefinition(t *testing.T) {
	want := map[string]string{}
	for _, k := range language.Kinds() {
		if k.Language != language.Kubernetes && k.Type.Group != "crd.projectcalico.org" {
			want[k.CRD()] = k.Language
		}
	}
	for _, l := range languages() {
		for _, d := range load(t, l) {
			name := d.Metadata.Name
			if want[name] != l {
				t.Errorf("%s is no kind of %s", name, l)
			}
			delete(want, name)
			n := d.Spec.Names
			if name != n.Plural+"."+d.Spec.Group || n.ListKind != n.Kind+"List" || n.Singular != strings.ToLower(n.Kind) {
				t.Errorf("%s: names %+v", name, n)
			}
			if strings.HasSuffix(d.Spec.Group, ".k8s.io") != strings.HasPrefix(d.Metadata.Annotations["api-approved.kubernetes.io"], "https://") {
				t.Errorf("%s: the API server wants to know who approved of it", name)
			}
			stored := 0
			for _, v := range d.Spec.Versions {
				k, ok := language.Find(object.Type{Group: d.Spec.Group, Version: v.Name, Kind: n.Kind})
				if !ok || k.Namespaced != (d.Spec.Scope == "Namespaced") || k.Plural != n.Plural || !v.Served {
					t.Errorf("%s %s: no kind, or another scope: %+v", name, v.Name, k)
				}
				if v.Storage {
					stored++
				}
				if len(v.AdditionalPrinterColumns) == 0 {
					t.Errorf("%s %s: no columns", name, v.Name)
				}
				checkOpen(t, name+" "+v.Name, v.Schema.OpenAPIV3Schema, true)
			}
			if stored != 1 {
				t.Errorf("%s: %d versions are stored", name, stored)
			}
		}
	}
	for name, l := range want {
		t.Errorf("%s of %s has no definition", name, l)
	}
}

// checkOpen fails where the API server would prune a field that it does not know: it may narrow a policy.
func checkOpen(t *testing.T, at string, schema map[string]any, root bool) {
	t.Helper()
	if schema["type"] == "object" && !root && schema["additionalProperties"] == nil && schema["x-kubernetes-preserve-unknown-fields"] != true &&
		!strings.HasSuffix(at, ".metadata") {
		t.Errorf("%s is pruned", at)
	}
	for name, p := range sub(schema, "properties") {
		checkOpen(t, at+"."+name, p.(map[string]any), false)
	}
	if items := sub(schema, "items"); items != nil {
		checkOpen(t, at+"[]", items, false)
	}
}

func sub(m map[string]any, key string) map[string]any {
	v, _ := m[key].(map[string]any)
	return v
}

// TestStatuses: what has a status in its API has the subresource.
func TestStatuses(t *testing.T) {
	var have []string
	for _, l := range languages() {
		for _, d := range load(t, l) {
			if _, ok := d.Spec.Versions[0].Subresources["status"]; ok {
				have = append(have, fmt.Sprintf("%s %s", l, d.Spec.Names.Kind))
			}
		}
	}
	want := []string{
		"sig-network ClusterNetworkPolicy", "sig-network AdminNetworkPolicy", "sig-network BaselineAdminNetworkPolicy", "calico Tier",
		"cilium CiliumNetworkPolicy", "cilium CiliumClusterwideNetworkPolicy", "antrea ClusterNetworkPolicy", "antrea NetworkPolicy",
		"antrea ClusterGroup", "antrea Group", "aws ApplicationNetworkPolicy", "aws ClusterNetworkPolicy", "gke FQDNNetworkPolicy",
	}
	if !slices.Equal(have, want) {
		t.Errorf("have %q\nwant %q", have, want)
	}
}

func TestLanguagesWithoutDefinitions(t *testing.T) {
	for _, l := range []string{"kubernetes", "", "esperanto", "../crd"} {
		if defs, err := Of(l); defs != nil || err != nil {
			t.Errorf("%q: %d, %v", l, len(defs), err)
		}
	}
}
