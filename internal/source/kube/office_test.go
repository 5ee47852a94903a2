package kube

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"weft/internal/crd"
)

// find returns what the fake has of an object, nil if nothing.
func (f *fakeAPI) find(key string) *unstructured.Unstructured {
	f.mu.Lock()
	defer f.mu.Unlock()
	o, _ := f.objs[key].(*unstructured.Unstructured)
	return o
}

// awaitObject waits until the object is as wanted.
func awaitObject(t *testing.T, f *fakeAPI, key string, ok func(*unstructured.Unstructured) bool) *unstructured.Unstructured {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if o := f.find(key); o != nil && ok(o) {
			return o
		}
		if time.Now().After(deadline) {
			b, _ := json.Marshal(f.find(key))
			t.Fatalf("%s: %s", key, b)
		}
	}
}

func there(*unstructured.Unstructured) bool { return true }

// TestOneOfManyInstalls: of several agents one takes the office; definitions that are there are not touched.
func TestOneOfManyInstalls(t *testing.T) {
	f := newFake(t)
	cluster(f)
	foreign := definition("tiers.projectcalico.org", "v3")
	foreign.SetLabels(map[string]string{"made": "elsewhere"})
	f.set(foreign)
	var agents []*policed
	for _, node := range []string{"n1", "n2", "n3"} {
		p := startPolicy(t, f.config(), node, "calico", "cilium")
		awaitClosed(t, p.complete)
		agents = append(agents, p)
	}
	want := 0
	for _, language := range []string{"calico", "cilium"} {
		defs, err := crd.Of(language)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range defs {
			want++
			awaitObject(t, f, "customresourcedefinitions//"+d.Name, there)
		}
	}
	if o := f.find("customresourcedefinitions//tiers.projectcalico.org"); o.GetLabels()["made"] != "elsewhere" {
		t.Error("a definition that was there was touched")
	}
	holders := 0
	for _, p := range agents {
		if p.office.holds() {
			holders++
		}
	}
	if l := f.find("leases/kube-system/weft"); holders != 1 || l == nil {
		t.Errorf("%d agents hold the office, lease %v", holders, l)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	have := 0
	for k := range f.objs {
		if strings.HasPrefix(k, "customresourcedefinitions/") {
			have++
		}
	}
	if have != want {
		t.Errorf("%d definitions, want %d", have, want)
	}
}

// TestNothingIsWrittenUnasked: without languages there is no lease, no definition and no status.
func TestNothingIsWrittenUnasked(t *testing.T) {
	f := newFake(t)
	cluster(f)
	f.set(definition("ciliumnetworkpolicies.cilium.io", "v2"), object("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: a, namespace: default}\nspec: {endpointSelector: {}, ingress: [{}]}"))
	p := startPolicy(t, f.config(), "n1")
	awaitClosed(t, p.complete)
	p.until("the policy", func() bool { return strings.Contains(p.state(), "policies/cilium.io") })
	if f.count("/leases") != 0 || p.office != nil || f.find("ciliumnetworkpolicies.cilium.io/default/a").Object["status"] != nil {
		t.Errorf("requests %q", f.requests)
	}
}

// TestLeaseThatRunsOut is taken over; one that is renewed is not.
func TestLeaseThatRunsOut(t *testing.T) {
	f := newFake(t)
	f.set(object("apiVersion: coordination.k8s.io/v1\nkind: Lease\nmetadata: {name: weft, namespace: kube-system}\nspec: {holderIdentity: other, leaseDurationSeconds: 60, renewTime: '2020-01-01T00:00:00.000000Z', leaseTransitions: 4}"))
	s, err := New(f.config(), Options{Node: "n1", Kinds: Kinds(), Policy: &Policy{Languages: []string{"gke"}, Writer: func(string) PolicyWriter { return nil }}}, newSink(), func() {}, nil)
	if err != nil {
		t.Fatal(err)
	}
	turn := func(want bool) {
		t.Helper()
		if got, err := s.office.turn(t.Context()); got != want || err != nil {
			t.Fatalf("got %v, %v", got, err)
		}
	}
	turn(false) // however old it says that it is: clocks differ
	s.office.since = time.Now().Add(-2 * leaseTime)
	renewed := f.find("leases/kube-system/weft").DeepCopy()
	_ = unstructured.SetNestedField(renewed.Object, "2020-01-01T00:00:09.000000Z", "spec", "renewTime")
	f.set(renewed)
	turn(false)
	s.office.since = time.Now().Add(-2 * leaseTime)
	turn(true)
	turn(true)
	l := f.find("leases/kube-system/weft")
	holder, _, _ := unstructured.NestedString(l.Object, "spec", "holderIdentity")
	transitions, _, _ := unstructured.NestedFloat64(l.Object, "spec", "leaseTransitions")
	if holder != "n1" || transitions != 5 {
		t.Errorf("lease %v", l.Object["spec"])
	}
}

// TestStatuses: what each API's users look at says what became of their object, and is written once.
func TestStatuses(t *testing.T) {
	for name, c := range map[string]struct {
		crd, version, yaml string
		want               string // the status
	}{
		"cilium": {
			"ciliumnetworkpolicies.cilium.io", "v2",
			"apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {namespace: default}\nspec: {endpointSelector: {}, ingress: [{fromEntities: [world]}]}",
			`{"conditions":[{"message":"Policy validation succeeded","status":"True","type":"Valid"}]}`,
		},
		"cilium, wrong": {
			"ciliumnetworkpolicies.cilium.io", "v2",
			"apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {namespace: default}\nspec: {endpointSelector: {}, ingress: [{fromEntities: [moon]}]}",
			`{"conditions":[{"message":"CiliumNetworkPolicy.cilium.io default/x: spec.ingress[0].fromEntities[0]: `,
		},
		"calico": {
			"tiers.projectcalico.org", "v3", "apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {}\nspec: {order: 7}",
			`{"conditions":[{"message":"the tier is in force","observedGeneration":0,"reason":"Ready","status":"True","type":"Ready"}]}`,
		},
		"sig-network": {
			"clusternetworkpolicies.policy.networking.k8s.io", "v1alpha2",
			"apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {generation: 3}\nspec: {tier: Admin, priority: 1, subject: {namespaces: {}}}",
			`{"conditions":[{"message":"the policy is enforced","observedGeneration":3,"reason":"Accepted","status":"True","type":"weft.io/Accepted"}]}`,
		},
		"sig-network, not enforced": {
			"clusternetworkpolicies.policy.networking.k8s.io", "v1alpha2",
			"apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {}\n" +
				"spec: {tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Accept, to: [{domainNames: [example.com]}]}]}\n" +
				"status: {conditions: [{type: Other, status: 'True'}, {type: weft.io/Accepted, status: 'True', lastTransitionTime: '2020-01-01T00:00:00Z'}]}",
			`{"conditions":[{"status":"True","type":"Other"},{"message":"not enforced yet: spec.egress[0].to[0].domainNames","observedGeneration":0,"reason":"Unsupported","status":"False","type":"weft.io/Accepted"}]}`,
		},
		"aws, wrong": {
			"applicationnetworkpolicies.networking.k8s.aws", "v1alpha1",
			"apiVersion: networking.k8s.aws/v1alpha1\nkind: ApplicationNetworkPolicy\nmetadata: {namespace: default}\nspec: {podSelector: 7}",
			`{"conditions":[{"message":"ApplicationNetworkPolicy.networking.k8s.aws default/x: spec.podSelector: `,
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			cluster(f)
			o := object(c.yaml)
			o.SetName("x")
			f.set(definition(c.crd, c.version), o)
			p := startPolicy(t, f.config(), "n1", "cilium", "calico", "sig-network", "aws")
			awaitClosed(t, p.complete)
			key := c.crd + "/" + o.GetNamespace() + "/x"
			written := func(o *unstructured.Unstructured) bool {
				b, err := json.Marshal(withoutTimes(o.DeepCopy().Object["status"]))
				return err == nil && strings.HasPrefix(string(b), c.want)
			}
			awaitObject(t, f, key, written)
			version := f.find(key).GetResourceVersion()
			f.set(node("later", "10.244.9.0/24")) // something passes through after it
			p.until("the node", func() bool { return len(p.store.Intents("nodes")) == 3 })
			time.Sleep(50 * time.Millisecond)
			if v := f.find(key).GetResourceVersion(); v != version {
				t.Errorf("written again: version %s, then %s", version, v)
			}
		})
	}
}

// withoutTimes drops the times of conditions.
func withoutTimes(status any) any {
	m, _ := status.(map[string]any)
	list, _ := m["conditions"].([]any)
	for _, c := range list {
		delete(c.(map[string]any), "lastTransitionTime")
	}
	return status
}

// TestRealizedNodes: Antrea's policies say on how many nodes they are in force, and every agent reports its own.
func TestRealizedNodes(t *testing.T) {
	f := newFake(t)
	cluster(f)
	const name = "clusternetworkpolicies.crd.antrea.io"
	f.set(definition(name, "v1beta1"))
	acnp := object("apiVersion: crd.antrea.io/v1beta1\nkind: ClusterNetworkPolicy\nmetadata: {name: x, generation: 1}\nspec: {priority: 5, appliedTo: [{podSelector: {}}]}")
	f.set(acnp)
	for _, node := range []string{"n1", "n2"} {
		p := startPolicy(t, f.config(), node, "antrea")
		awaitClosed(t, p.complete)
	}
	status := func(generation int) func(*unstructured.Unstructured) bool {
		return func(o *unstructured.Unstructured) bool {
			s, _ := o.Object["status"].(map[string]any)
			return s["phase"] == "Realized" && fmt.Sprint(s["currentNodesRealized"], s["desiredNodesRealized"], s["observedGeneration"]) == fmt.Sprintf("2 2 %d", generation)
		}
	}
	o := awaitObject(t, f, name+"//x", status(1)).DeepCopy()
	o.SetGeneration(2)
	f.set(o)
	awaitObject(t, f, name+"//x", status(2))
	if l := f.find("leases/kube-system/weft-n2"); l == nil || !strings.Contains(l.GetAnnotations()[realizedNote], name) {
		t.Errorf("report of n2: %v", l)
	}
}
