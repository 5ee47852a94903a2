package language

import (
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft/internal/convert/object"
	"weft/internal/model"
	"weft/internal/selector"
)

// TestKinds: every kind is found by its type, has a place on the API server, and something to stand for it that no snapshot takes.
func TestKinds(t *testing.T) {
	names := map[string]bool{}
	for _, k := range Kinds() {
		names[k.Language] = true
		if found, ok := Find(k.Type); !ok || found.Plural != k.Plural || found.Language != k.Language {
			t.Errorf("%s is not found by its type", k.Type)
		}
		if k.Plural == "" || !strings.Contains(k.Type.Group, ".") || k.Path() != "/apis/"+k.Type.Group+"/"+k.Type.Version+"/"+k.Plural {
			t.Errorf("%s has no place on the API server: %s, %s", k.Type, k.CRD(), k.Path())
		}
		ref := model.Ref{Group: k.Type.Group, Kind: k.Type.Kind, Name: "x"}
		if o := k.Stand(ref); !strings.HasSuffix(o.Key().Name, "/x") {
			t.Errorf("%s: %s stands for x", k.Type, o.Key())
		}
		// Rubbish gives an error that names the object, and nothing else.
		r := k.Convert([]byte(`{"metadata": {"name": "x"}, "spec": 7}`))
		if r.Err == nil || !strings.HasPrefix(r.Err.Error(), r.Ref.String()+": ") || r.Ref.Name != "x" || r.Ref.Kind != k.Type.Kind {
			t.Errorf("%s: %v, %+v", k.Type, r.Err, r.Ref)
		}
		if (r.Ref.Namespace == "default") != k.Namespaced {
			t.Errorf("%s: namespace %q", k.Type, r.Ref.Namespace)
		}
	}
	if len(names) != 7 {
		t.Errorf("languages %v", names)
	}
	if _, ok := Find(object.Type{Group: "apps", Version: "v1", Kind: "Deployment"}); ok {
		t.Error("a Deployment is a policy")
	}
}

func TestNames(t *testing.T) {
	k, _ := Find(object.Type{Group: "networking.k8s.io", Version: "v1", Kind: "NetworkPolicy"})
	for text, want := range map[string]string{
		`{}`:               "metadata.name is missing",
		`[]`:               "NetworkPolicy: ",
		`null`:             "metadata.name is missing",
		`{"metadata": 7}`:  "metadata: want ",
		`{"metadata": {}}`: "metadata.name is missing",
		`{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": 7}}`: "metadata.name is missing",
	} {
		if r := k.Convert([]byte(text)); r.Err == nil || !strings.Contains(r.Err.Error(), want) || len(r.Objects) > 0 {
			t.Errorf("%s: %v, want %s", text, r.Err, want)
		}
	}
	want := model.Ref{Group: "networking.k8s.io", Kind: "NetworkPolicy", Namespace: "default", Name: "a"}
	for _, text := range []string{
		` {"metadata": {"name": "a"}}`,
		`{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "a", "namespace": "default"}}`,
	} {
		r := k.Convert([]byte(text))
		if r.Err != nil || r.Ref != want || len(r.Objects) != 1 || r.Objects[0].Key() != model.PolicyKey(want, 0) || r.Refused() {
			t.Errorf("%s: %+v", text, r)
		}
	}
	raw, err := (&networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "a"}}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if r := k.FromProto("a", "", raw, nil); r.Err != nil || r.Ref != want || len(r.Objects) != 1 {
		t.Errorf("protobuf: %+v", r)
	}
}

func TestNeeds(t *testing.T) {
	rule := func(r model.Rule) *model.Policy {
		return &model.Policy{Subject: selector.Exists("a"), Egress: &model.Section{Rules: []model.Rule{{}, r}}}
	}
	account := selector.AllOf(selector.Exists("a"), selector.Negate(selector.Exists(selector.ServiceAccount+"team")))
	service := selector.AnyOf(selector.Exists(selector.Service+"ns/web"), selector.Exists("b"))
	pods := Needs{Pods: true}
	for name, c := range map[string]struct {
		o    model.Object
		want Needs
	}{
		"a tier":                      {&model.Tier{}, Needs{}},
		"a set":                       {&model.AddressSet{}, Needs{}},
		"a policy":                    {&model.Policy{}, pods},
		"an account's name":           {&model.Policy{Subject: selector.Equal(selector.ServiceAccountName, "x")}, pods},
		"an account's labels":         {&model.Policy{Subject: account}, Needs{Pods: true, Accounts: true}},
		"of a rule's subject":         {rule(model.Rule{Subject: account}), Needs{Pods: true, Accounts: true}},
		"of a peer":                   {rule(model.Rule{Peers: []model.Peer{{}, {NotSelect: account}}}), Needs{Pods: true, Accounts: true}},
		"a service":                   {rule(model.Rule{Local: []model.Peer{{Select: service}}}), Needs{Pods: true, Backends: true}},
		"a service's ports":           {rule(model.Rule{L4: []model.L4{{Service: "ns/web"}}}), Needs{Pods: true, Backends: true}},
		"a group's members' services": {&model.Group{Members: []model.Peer{{Select: service}}}, Needs{Backends: true}},
	} {
		if got := NeedsOf(c.o); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}
