package kube

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	kruntime "k8s.io/apimachinery/pkg/runtime"

	"weft/internal/crd"
)

// get reads an object; false if it is not there.
func (r *realAPI) get(t *testing.T, path string) (map[string]any, bool) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, realURL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := r.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	var o map[string]any
	if err != nil || resp.StatusCode == http.StatusNotFound {
		return nil, false
	}
	if err := json.Unmarshal(b, &o); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("get %s: %s: %s", path, resp.Status, b)
	}
	return o, true
}

// await gets an object until it is as wanted.
func (r *realAPI) await(t *testing.T, path, what string, ok func(map[string]any) bool) {
	t.Helper()
	for deadline := time.Now().Add(90 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		o, found := r.get(t, path)
		if found && ok(o) {
			return
		}
		if time.Now().After(deadline) {
			b, _ := json.Marshal(o)
			t.Fatalf("%s: waited for %s: %s", path, what, b)
		}
	}
}

// sample is one object of a policy API, with a field in a rule that no release has.
type sample struct{ path, yaml, key, status string }

func samples() []sample {
	const (
		knp   = "podSelector: {matchLabels: {a: b}}"
		rule  = "unheardOf: {x: 1}"
		peers = "[{namespaces: {matchLabels: {a: b}}}]"
	)
	sig := "/apis/policy.networking.k8s.io/"
	return []sample{
		{sig + "v1alpha2/clusternetworkpolicies", "kind: ClusterNetworkPolicy\nspec: {tier: Admin, priority: 7, subject: {namespaces: {}}, ingress: [{action: Deny, from: " + peers + ", " + rule + "}]}", "policies/policy.networking.k8s.io/ClusterNetworkPolicy//x", "weft.io/Accepted=False"},
		{sig + "v1alpha1/adminnetworkpolicies", "kind: AdminNetworkPolicy\nspec: {priority: 7, subject: {namespaces: {}}, ingress: [{action: Pass, from: " + peers + "}]}", "policies/policy.networking.k8s.io/AdminNetworkPolicy//x", "weft.io/Accepted=True"},
		{"/apis/projectcalico.org/v3/namespaces/default/networkpolicies", "kind: NetworkPolicy\nspec: {selector: all(), ingress: [{action: Allow, protocol: 6, destination: {ports: [80, '90:91']}, " + rule + "}]}", "policies/projectcalico.org/NetworkPolicy/default/x", ""},
		{"/apis/projectcalico.org/v3/tiers", "kind: Tier\nspec: {order: 5.5}", "tiers/calico/x", "Ready=True"},
		{"/apis/projectcalico.org/v3/globalnetworksets", "kind: GlobalNetworkSet\nspec: {nets: [10.0.0.0/8]}", "addresssets/projectcalico.org/GlobalNetworkSet//x", ""},
		{"/apis/projectcalico.org/v3/hostendpoints", "kind: HostEndpoint\nspec: {node: n1, interfaceName: eth0, ports: [{name: a, protocol: TCP, port: 1}]}", "hostendpoints/projectcalico.org/HostEndpoint//x", ""},
		{"/apis/cilium.io/v2/namespaces/default/ciliumnetworkpolicies", "kind: CiliumNetworkPolicy\nspec: {endpointSelector: {}, ingress: [{fromEntities: [world]}]}", "policies/cilium.io/CiliumNetworkPolicy/default/x", "Valid=True"},
		{"/apis/cilium.io/v2/ciliumcidrgroups", "kind: CiliumCIDRGroup\nspec: {externalCIDRs: [10.0.0.0/8]}", "addresssets/cilium.io/CiliumCIDRGroup//x", ""},
		{"/apis/crd.antrea.io/v1beta1/clusternetworkpolicies", "kind: ClusterNetworkPolicy\nspec: {priority: 5, appliedTo: [{podSelector: {}}], ingress: [{action: Drop, from: [{podSelector: {}}]}]}", "policies/crd.antrea.io/ClusterNetworkPolicy//x", "Realizable=True"},
		{"/apis/crd.antrea.io/v1beta1/tiers", "kind: Tier\nspec: {priority: 5}", "tiers/antrea/x", ""},
		{"/apis/crd.antrea.io/v1beta1/clustergroups", "kind: ClusterGroup\nspec: {podSelector: {}}", "groups/crd.antrea.io/ClusterGroup//x", ""},
		{"/apis/networking.k8s.aws/v1alpha1/namespaces/default/applicationnetworkpolicies", "kind: ApplicationNetworkPolicy\nspec: {" + knp + ", policyTypes: [Egress], egress: [{to: [{domainNames: [a.example.com]}]}]}", "policies/networking.k8s.aws/ApplicationNetworkPolicy/default/x", "weft.io/Accepted=False"},
		{"/apis/networking.gke.io/v1alpha1/namespaces/default/fqdnnetworkpolicies", "kind: FQDNNetworkPolicy\nspec: {" + knp + ", egress: [{matches: [{name: a.example.com}]}]}", "policies/networking.gke.io/FQDNNetworkPolicy/default/x", ""},
	}
}

func (s sample) object() *unstructured.Unstructured {
	parts := strings.Split(s.path, "/")
	return object("apiVersion: " + parts[2] + "/" + parts[3] + "\nmetadata: {name: x}\n" + s.yaml)
}

// conditionsOf lists "type=status".
func conditionsOf(o map[string]any) []string {
	list, _, _ := unstructured.NestedSlice(o, "status", "conditions")
	var out []string
	for _, c := range list {
		m := c.(map[string]any)
		out = append(out, fmt.Sprintf("%v=%v", m["type"], m["status"]))
	}
	return out
}

// TestRealPolicies is policy against a real server: definitions are installed, their objects arrive unpruned and get
// their statuses; watches of pods change; a definition goes, and its objects with it.
func TestRealPolicies(t *testing.T) {
	if testing.Short() {
		t.Skip("half a minute")
	}
	r := newReal(t)
	r.do(t, "POST", nodesPath, node("n1", "10.244.1.0/24"))
	for name, on := range map[string]string{"mine": "n1", "other": "n2", "pending": ""} {
		r.do(t, "POST", podsPath, realPod(name, on))
	}
	p := startPolicy(t, r.config(t), "n1")
	awaitClosed(t, p.complete)
	p.await(mine)
	if p.names() != basic {
		t.Errorf("watches without policies: %s", p.names())
	}

	// Kubernetes' own, without any right to write.
	r.do(t, "POST", "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies", netpol("a"))
	p.until("the policy and what it needs", func() bool {
		s := p.state()
		return strings.HasSuffix(s, " "+mine+" "+other+" "+knpA) && strings.Contains(s, nsMain)
	})
	done := realPod("other", "n2")
	done.Status.Phase = corev1.PodSucceeded
	r.do(t, "PUT", podsPath+"/other/status", done)
	p.until("the pod that has finished to go", func() bool { return !strings.Contains(p.state(), other) })

	// All languages: the agent installs and writes.
	all := []string{"sig-network", "calico", "cilium", "antrea", "aws", "gke"}
	w := startPolicy(t, r.config(t), "n1", all...)
	awaitClosed(t, w.complete)
	const crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
	for _, language := range all {
		defs, err := crd.Of(language)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range defs {
			r.await(t, crds+"/"+d.Name, "a definition that is served", func(o map[string]any) bool {
				cs := conditionsOf(o)
				return slices.Contains(cs, "Established=True") && slices.Contains(cs, "NamesAccepted=True")
			})
		}
	}
	for _, s := range samples() {
		var o kruntime.Object = s.object()
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) { // discovery lags
			if _, served := r.get(t, s.path); served || time.Now().After(deadline) {
				break
			}
		}
		r.do(t, "POST", s.path, o)
		for _, agent := range []*policed{p, w} {
			agent.until(s.key, func() bool { return strings.Contains(agent.state()+" ", s.key+" ") })
		}
		if s.status != "" {
			r.await(t, s.path+"/x", s.status, func(o map[string]any) bool { return slices.Contains(conditionsOf(o), s.status) })
		}
		if strings.Contains(s.yaml, "unheardOf") && !strings.Contains(w.report(), "unheardOf") {
			t.Errorf("%s: the field that nobody knows was pruned; reported %s", s.path, w.report())
		}
	}
	r.await(t, "/apis/crd.antrea.io/v1beta1/clusternetworkpolicies/x", "nodes that have it in force", func(o map[string]any) bool {
		phase, _, _ := unstructured.NestedString(o, "status", "phase")
		return phase == "Realized"
	})

	// A definition goes.
	r.do(t, "DELETE", crds+"/tiers.crd.antrea.io", nil)
	p.until("the tier to go", func() bool { return !strings.Contains(p.state(), "tiers/antrea/x") })
	for _, problem := range p.Problems() {
		if strings.HasPrefix(problem, "watch ") {
			t.Errorf("problem: %s", problem)
		}
	}
}
