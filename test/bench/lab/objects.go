package lab

import (
	"fmt"
	"strings"
)

// PodNamespace is that of all pods that plugins attach.
const PodNamespace = "bench"

// Policies are YAML of so many NetworkPolicies, and of the pods of these names that they let talk to each other and to nobody else.
// One of a hundred policies selects these pods as well, each with a peer and a port of its own; the one that allows what is measured
// has the last name. The others select pods in fifty namespaces, by label. 0 policies: the pods alone.
func Policies(count int, pods ...string) string {
	var b strings.Builder
	for _, p := range pods {
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: %s, labels: {role: bench}}\nspec: {nodeName: node-1}\n", p, PodNamespace)
	}
	for i := range 50 {
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: other-%d}\n", i)
	}
	for i := range count {
		ns, subject, app, port := fmt.Sprintf("other-%d", i%50), fmt.Sprintf("{matchLabels: {app: a%d}}", i/50), fmt.Sprintf("a%d", i/50+1), 8080
		if i%100 == 0 {
			ns, subject, app, port = PodNamespace, "{}", fmt.Sprintf("peer%d", i), 10000+i/100
		}
		if i == count-1 {
			fmt.Fprintf(&b, "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: zz, namespace: %s}\nspec:\n  podSelector: {}\n"+
				"  policyTypes: [Ingress, Egress]\n  ingress: [{from: [{podSelector: {matchLabels: {role: bench}}}]}]\n"+
				"  egress: [{to: [{podSelector: {matchLabels: {role: bench}}}]}]\n", PodNamespace)
			continue
		}
		fmt.Fprintf(&b, "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: np-%05d, namespace: %s}\nspec:\n  podSelector: %s\n"+
			"  policyTypes: [Ingress]\n  ingress: [{from: [{podSelector: {matchLabels: {app: %s}}}], ports: [{port: %d}]}]\n", i, ns, subject, app, port)
	}
	return b.String()
}
