package kube

import (
	"fmt"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"weft/internal/model"
)

// TestTakenBack: what nodes have taken back is in the object's conditions, with their names and what had broken, until they have not any
// more; and Antrea's policies are in force on fewer nodes.
func TestTakenBack(t *testing.T) {
	f := newFake(t)
	cluster(f)
	const cnps, acnps = "ciliumnetworkpolicies.cilium.io", "clusternetworkpolicies.crd.antrea.io"
	f.set(definition(cnps, "v2"), definition(acnps, "v1beta1"),
		object("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {namespace: default, name: x}\nspec: {endpointSelector: {}, egress: []}"),
		object("apiVersion: crd.antrea.io/v1beta1\nkind: ClusterNetworkPolicy\nmetadata: {name: z, generation: 1}\nspec: {priority: 5, appliedTo: [{podSelector: {}}]}"))
	agents := map[string]*policed{}
	for _, node := range []string{"n1", "n2"} {
		agents[node] = startPolicy(t, f.config(), node, "cilium", "antrea")
		awaitClosed(t, agents[node].complete)
	}
	conditions := func(want, not string) func(*unstructured.Unstructured) bool {
		return func(o *unstructured.Unstructured) bool {
			all := fmt.Sprint(withoutTimes(o.DeepCopy().Object["status"]))
			return strings.Contains(all, want) && (not == "" || !strings.Contains(all, not))
		}
	}
	awaitObject(t, f, acnps+"//z", conditions("currentNodesRealized:2", ""))
	x := model.Ref{Group: "cilium.io", Kind: "CiliumNetworkPolicy", Namespace: "default", Name: "x"}
	y := model.Ref{Group: "crd.antrea.io", Kind: "ClusterNetworkPolicy", Name: "z"}
	agents["n1"].SetTakenBack(map[model.Ref]string{x: "DNS 10.96.0.10"})
	agents["n2"].SetTakenBack(map[model.Ref]string{x: "API server a:6443", y: "agent of n1"})
	awaitObject(t, f, cnps+"/default/x", conditions("message:not in force on n1: DNS 10.96.0.10; n2: API server a:6443 reason:RolledBack status:False type:weft.io/Enforced", ""))
	awaitObject(t, f, acnps+"//z", conditions("message:not in force on n2: agent of n1 reason:RolledBack", ""))
	awaitObject(t, f, acnps+"//z", conditions("currentNodesRealized:1", ""))
	for _, a := range agents {
		a.SetTakenBack(nil)
	}
	awaitObject(t, f, cnps+"/default/x", conditions("Valid", "Enforced"))
	awaitObject(t, f, acnps+"//z", conditions("currentNodesRealized:2", "Enforced"))
}
