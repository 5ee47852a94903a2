//go:build e2e

package e2e

import (
	"os"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"weft/test/e2e/cluster"
)

// The committed manifest is the chart with its defaults: no custom resources, and no right but to read.
func TestManifest(t *testing.T) {
	rendered, err := cluster.RenderChart(t.Context(), shared.Bin)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile("../../deploy/weft.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if _, body, _ := strings.Cut(string(b), "\n"); body != rendered {
		t.Error("deploy/weft.yaml is not what the chart renders to: run make manifest")
	}
	var kinds []string
	for _, doc := range strings.Split(rendered, "\n---\n") {
		var o struct {
			Kind  string
			Rules []struct{ Verbs []string }
		}
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, o.Kind)
		for _, r := range o.Rules {
			for _, v := range r.Verbs {
				if v != "list" && v != "watch" {
					t.Errorf("the agents may %s", v)
				}
			}
		}
	}
	slices.Sort(kinds)
	if want := []string{"ClusterRole", "ClusterRoleBinding", "ConfigMap", "DaemonSet", "ServiceAccount"}; !slices.Equal(kinds, want) {
		t.Errorf("the manifest has %v, want %v", kinds, want)
	}
}

// A value that does not exist, or cannot be, is refused before anything is applied.
func TestBadValues(t *testing.T) {
	for value, want := range map[string]string{
		"image.tagg=1":        "tagg",
		"apiServer=http://x":  "apiServer",
		"config.cni.binDir=x": "cni",
		"paths.bpf=/tmp":      "bpf",
	} {
		if _, err := cluster.RenderChart(t.Context(), shared.Bin, value); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", value, err)
		}
	}
}
