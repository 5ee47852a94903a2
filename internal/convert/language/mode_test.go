package language

import (
	"strings"
	"testing"

	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft/internal/convert/object"
	"weft/internal/model"
)

// TestMode: the annotation that makes any policy count instead of decide, or says whether a node may take it back, is read from both encodings.
func TestMode(t *testing.T) {
	k, ok := Find(object.TypeOf("networking.k8s.io/v1", "NetworkPolicy"))
	if !ok {
		t.Fatal("NetworkPolicy is not known")
	}
	for _, c := range []struct {
		mode    string
		staged  bool
		confirm model.Confirm
		err     string
	}{
		{"", false, model.ConfirmDefault, ""},
		{"enforce", false, model.ConfirmNever, ""},
		{"confirm", false, model.ConfirmAlways, ""},
		{"shadow", true, model.ConfirmDefault, ""},
		{"shadows", false, model.ConfirmDefault, `metadata.annotations[weft.io/policy-mode]: "shadows" is none`},
	} {
		p := networking.NetworkPolicy{ObjectMeta: meta.ObjectMeta{Name: "a", Namespace: "b", Annotations: map[string]string{"other": "shadow", ModeAnnotation: c.mode}}}
		p.Spec.PolicyTypes = []networking.PolicyType{"Ingress"}
		raw, err := p.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		json := `{"metadata": {"name": "a", "namespace": "b", "annotations": {"other": "shadow", "weft.io/policy-mode": "` + c.mode + `"}}, "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}}`
		for how, r := range map[string]Result{"JSON": k.Convert([]byte(json)), "protobuf": k.FromProto("a", "b", raw, nil)} {
			if len(r.Objects) != 1 || r.Objects[0].(*model.Policy).Staged != c.staged || r.Objects[0].(*model.Policy).Confirm != c.confirm {
				t.Errorf("%s, mode %q: %+v, want staged %v, confirm %v", how, c.mode, r.Objects, c.staged, c.confirm)
			}
			if (r.Err != nil) != (c.err != "") || r.Err != nil && !strings.Contains(r.Err.Error(), c.err) {
				t.Errorf("%s, mode %q: error %v, want %q", how, c.mode, r.Err, c.err)
			}
		}
	}
}
