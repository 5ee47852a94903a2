package status

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"weft/internal/convert/language"
	"weft/internal/convert/object"
)

const (
	then  = "2020-01-01T00:00:00Z"
	later = "2026-01-01T00:00:00Z"
)

func kind(t *testing.T, group, version, name string) language.Kind {
	t.Helper()
	k, ok := language.Find(object.Type{Group: group, Version: version, Kind: name})
	if !ok {
		t.Fatalf("no kind %s", name)
	}
	return k
}

// observe converts an object and looks at it.
func observe(t *testing.T, k language.Kind, raw string) Observed {
	t.Helper()
	r := k.Convert([]byte(raw))
	o, err := Observe(k, []byte(raw), r.Objects, r.Err)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// TestConditions: each API's own words; written once.
func TestConditions(t *testing.T) {
	cnp := kind(t, "cilium.io", "v2", "CiliumNetworkPolicy")
	kcnp := kind(t, "policy.networking.k8s.io", "v1alpha2", "ClusterNetworkPolicy")
	for name, c := range map[string]struct {
		kind language.Kind
		raw  string // without type
		want string // of the patch; "" for none
	}{
		"valid": {
			cnp, `"spec": {"endpointSelector": {}, "ingress": [{"fromEntities": ["world"]}]}`,
			`"status":{"conditions":[{"lastTransitionTime":"` + later + `","message":"Policy validation succeeded","status":"True","type":"Valid"}]}`,
		},
		"wrong": {cnp, `"spec": {"endpointSelector": {}, "ingress": [{"fromEntities": ["moon"]}]}`, `"message":"CiliumNetworkPolicy.cilium.io default/x: spec.ingress[0].fromEntities[0]`},
		"not enforced": {
			cnp, `"spec": {"endpointSelector": {}, "egress": [{"toFQDNs": [{"matchName": "a.com"}]}]}`,
			`"message":"Policy validation succeeded; not enforced yet: spec.egress[0].toFQDNs`,
		},
		"a set has none":           {kind(t, "cilium.io", "v2", "CiliumCIDRGroup"), `"spec": {"externalCIDRs": []}`, ""},
		"a set of Calico has none": {kind(t, "projectcalico.org", "v3", "GlobalNetworkSet"), `"spec": {}`, ""},
		"a tier":                   {kind(t, "projectcalico.org", "v3", "Tier"), `"spec": {"order": 1}`, `"observedGeneration":4,"reason":"Ready","status":"True","type":"Ready"`},
		"accepted":                 {kcnp, `"spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}}`, `"reason":"Accepted","status":"True","type":"weft.io/Accepted"`},
		"invalid":                  {kcnp, `"spec": {"tier": "Admin", "priority": 1, "subject": 7}`, `"reason":"Invalid","status":"False","type":"weft.io/Accepted"`},
		"others' conditions": {
			kcnp, `"spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "egress": [{"action": "Accept", "to": [{"domainNames": ["a.com"]}]}]},
				"status": {"conditions": [{"type": "Other"}, {"type": "weft.io/Accepted", "status": "False", "lastTransitionTime": "` + then + `"}]}`,
			`"conditions":[{"type":"Other"},{"lastTransitionTime":"` + then + `","message":"not enforced yet: spec.egress[0].to[0].domainNames","observedGeneration":4,"reason":"Unsupported"`,
		},
		"a status that is none": {kcnp, `"spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}}, "status": {"conditions": 7}`, `"reason":"Accepted"`},
	} {
		raw := `{"apiVersion": "` + c.kind.Type.Group + "/" + c.kind.Type.Version + `", "kind": "` + c.kind.Type.Kind +
			`", "metadata": {"name": "x", "namespace": "default", "generation": 4, "resourceVersion": "9"}, ` + c.raw + `}`
		o := observe(t, c.kind, raw)
		patch := string(o.Conditions(later))
		if !strings.Contains(patch, c.want) || (patch == "") != (c.want == "") {
			t.Errorf("%s: %s", name, patch)
		}
		if patch == "" {
			continue
		}
		if !strings.Contains(patch, `"resourceVersion":"9"`) {
			t.Errorf("%s: not of one version: %s", name, patch)
		}
		var written struct{ Status json.RawMessage }
		if err := json.Unmarshal([]byte(patch), &written); err != nil {
			t.Fatal(err)
		}
		if o.Status = written.Status; o.Conditions("2027-01-01T00:00:00Z") != nil {
			t.Errorf("%s: written again: %s", name, o.Conditions("2027-01-01T00:00:00Z"))
		}
	}
}

func TestPaths(t *testing.T) {
	o := observe(t, kind(t, "cilium.io", "v2", "CiliumNetworkPolicy"), `{"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": {"name": "x", "namespace": "ns"}}`)
	if o.Path != "/apis/cilium.io/v2/namespaces/ns/ciliumnetworkpolicies/x/status" || !o.Refused {
		t.Errorf("%+v", o)
	}
	o = observe(t, kind(t, "crd.antrea.io", "v1alpha1", "Tier"), `{"apiVersion": "crd.antrea.io/v1alpha1", "kind": "Tier", "metadata": {"name": "x"}, "spec": {"priority": 3}}`)
	if o.Path != "/apis/crd.antrea.io/v1alpha1/tiers/x/status" || o.Refused {
		t.Errorf("%+v", o)
	}
	if _, err := Observe(kind(t, "cilium.io", "v2", "CiliumNetworkPolicy"), []byte("x"), nil, nil); err == nil {
		t.Error("no JSON, no error")
	}
}

// TestTransitionTimes: a condition keeps its time while its status is the same.
func TestTransitionTimes(t *testing.T) {
	old := []map[string]any{{"type": "A"}, {"type": "Valid", "status": "True", "message": "x", "lastTransitionTime": then}}
	got, changed := merge(old, condition{typ: "Valid", status: "True", message: "y"}, 1, later)
	if !changed || len(got) != 2 || got[1]["lastTransitionTime"] != then || got[1]["message"] != "y" {
		t.Errorf("%v, %v", got, changed)
	}
	if _, changed = merge(got, condition{typ: "Valid", status: "True", message: "y"}, 1, later); changed {
		t.Error("the same again is a change")
	}
	if got, _ = merge(got, condition{typ: "Valid", status: "False", message: "z"}, 1, later); got[1]["lastTransitionTime"] != later {
		t.Error("the time of another status was kept")
	}
	if long, _ := merge(nil, condition{typ: "Valid", message: strings.Repeat("é", 40_000)}, 1, later); len(long[0]["message"].(string)) > 32_768 {
		t.Error("a message that the API server refuses")
	}
}

// TestRealized: Antrea's policies say on how many nodes they are in force.
func TestRealized(t *testing.T) {
	k := kind(t, "crd.antrea.io", "v1beta1", "NetworkPolicy")
	if !Counts(k) || Counts(kind(t, "crd.antrea.io", "v1beta1", "Tier")) || Counts(kind(t, "networking.k8s.io", "v1", "NetworkPolicy")) {
		t.Error("Counts")
	}
	o := Observed{Kind: k, Generation: 2, Version: "9"}
	for _, c := range []struct {
		current, desired int
		want             string
	}{{0, 0, "Realizing"}, {1, 2, "Realizing"}, {2, 2, "Realized"}} {
		o.Status = nil
		patch := string(o.Realized(c.current, c.desired, then))
		if !strings.Contains(patch, `"phase":"`+c.want+`"`) || !strings.Contains(patch, `"resourceVersion":"9"`) {
			t.Errorf("%d of %d: %s", c.current, c.desired, patch)
		}
		var written struct{ Status json.RawMessage }
		if err := json.Unmarshal([]byte(patch), &written); err != nil {
			t.Fatal(err)
		}
		if o.Status = written.Status; o.Realized(c.current, c.desired, later) != nil {
			t.Errorf("%d of %d is written again", c.current, c.desired)
		}
	}
	o.Refused, o.Err = true, errors.New("spec.x: wrong")
	if p := string(o.Realized(2, 2, then)); !strings.Contains(p, `"phase":"Failed"`) || !strings.Contains(p, "spec.x: wrong") {
		t.Errorf("refused: %s", p)
	}
	o.Err, o.Missing = nil, []string{"spec.y"}
	if p := string(o.Realized(2, 2, then)); !strings.Contains(p, "not enforced yet: spec.y") {
		t.Errorf("not enforced: %s", p)
	}
}

// TestTakenBack: nodes that took a policy back are named in a condition beside the API's own, which goes when none has any more.
func TestTakenBack(t *testing.T) {
	const admin = `{"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": {"name": "x", "generation": 4},
		"spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}}`
	k := kind(t, "policy.networking.k8s.io", "v1alpha2", "ClusterNetworkPolicy")
	o := observe(t, k, admin+"}")
	o.TakenBack = "n1: API server 10.0.0.1:6443"
	patch := string(o.Conditions(later))
	if want := `{"lastTransitionTime":"` + later + `","message":"not in force on n1: API server 10.0.0.1:6443","reason":"RolledBack","status":"False","type":"weft.io/Enforced"}`; !strings.Contains(patch, want) {
		t.Errorf("patch %s, want %s", patch, want)
	}
	if !strings.Contains(patch, "weft.io/Accepted") {
		t.Errorf("the API's own condition is missing: %s", patch)
	}
	var written struct{ Status json.RawMessage }
	if err := json.Unmarshal([]byte(patch), &written); err != nil {
		t.Fatal(err)
	}
	again := observe(t, k, admin+`, "status": `+string(written.Status)+"}")
	again.TakenBack = o.TakenBack
	if p := again.Conditions(later); p != nil {
		t.Errorf("written again: %s", p)
	}
	again.TakenBack, again.Unreported = "", true
	if p := again.Conditions(later); p != nil {
		t.Errorf("written although nothing is known: %s", p)
	}
	again.Unreported = false
	if p := string(again.Conditions(later)); p == "" || strings.Contains(p, "weft.io/Enforced") {
		t.Errorf("it stays: %s", p)
	}
}
