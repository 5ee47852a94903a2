package language

import (
	"strings"
	"testing"

	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft/internal/convert/object"
	"weft/internal/model"
)

// TestMode: the annotation that makes any policy count instead of decide is read from both encodings.
func TestMode(t *testing.T) {
	k, ok := Find(object.TypeOf("networking.k8s.io/v1", "NetworkPolicy"))
	if !ok {
		t.Fatal("NetworkPolicy is not known")
	}
	for _, c := range []struct {
		mode   string
		staged bool
		err    string
	}{{"", false, ""}, {"enforce", false, ""}, {"shadow", true, ""}, {"shadows", false, `metadata.annotations[weft.io/policy-mode]: "shadows" is neither`}} {
		p := networking.NetworkPolicy{ObjectMeta: meta.ObjectMeta{Name: "a", Namespace: "b", Annotations: map[string]string{"other": "shadow", ModeAnnotation: c.mode}}}
		p.Spec.PolicyTypes = []networking.PolicyType{"Ingress"}
		raw, err := p.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		json := `{"metadata": {"name": "a", "namespace": "b", "annotations": {"other": "shadow", "weft.io/policy-mode": "` + c.mode + `"}}, "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}}`
		for how, r := range map[string]Result{"JSON": k.Convert([]byte(json)), "protobuf": k.FromProto("a", "b", raw, nil)} {
			if len(r.Objects) != 1 || r.Objects[0].(*model.Policy).Staged != c.staged {
				t.Errorf("%s, mode %q: %+v, want staged %v", how, c.mode, r.Objects, c.staged)
			}
			if (r.Err != nil) != (c.err != "") || r.Err != nil && !strings.Contains(r.Err.Error(), c.err) {
				t.Errorf("%s, mode %q: error %v, want %q", how, c.mode, r.Err, c.err)
			}
		}
	}
}
