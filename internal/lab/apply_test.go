package lab

import (
	"fmt"
	"strings"
	"testing"
)

const podA = `
apiVersion: v1
kind: Pod
metadata: {name: a, labels: {app: a}}
spec:
  containers: [{name: c, ports: [{containerPort: 80}]}]
`

func deployment(replicas int, image string) string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: %d
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: c, image: %s, ports: [{containerPort: 80}]}]
`, replicas, image)
}

// told is what apply said, one word an object.
func told(changes []Change) string {
	var out []string
	for _, c := range changes {
		out = append(out, c.Object+" "+c.What)
	}
	return strings.Join(out, "\n")
}

func apply(t *testing.T, l *Lab, manifest, want string) {
	t.Helper()
	changes, err := l.Apply("default", parse(t, manifest))
	if err != nil {
		t.Fatal(err)
	}
	if got := told(changes); got != strings.TrimSpace(want) {
		t.Errorf("apply said:\n%s\nwant:\n%s", got, want)
	}
}

func TestApply(t *testing.T) {
	l := testLab(t, Options{Name: "a", Nodes: 2})
	apply(t, l, podA, "namespace/default created\npod/default/a created")
	apply(t, l, podA, "pod/default/a unchanged")
	pod, err := l.Pod("default", "a")
	if err != nil || pod.Spec.NodeName != "node1" || pod.UID == "" {
		t.Fatalf("%+v, %v", pod, err)
	}
	// Labels change in place, the spec does not.
	apply(t, l, strings.Replace(podA, "app: a", "app: b", 1), "pod/default/a configured")
	if same, _ := l.Pod("default", "a"); same.UID != pod.UID || same.Labels["app"] != "b" {
		t.Errorf("after a change of labels: %+v", same.ObjectMeta)
	}
	apply(t, l, strings.Replace(podA, "80", "81", 1), "pod/default/a replaced")
	if other, _ := l.Pod("default", "a"); other.UID == pod.UID {
		t.Error("a pod with another spec has the same UID")
	}

	apply(t, l, deployment(3, "v1"), "namespace/shop created\ndeployment/shop/web created\npod/shop/web-0 created\npod/shop/web-1 created\npod/shop/web-2 created")
	apply(t, l, deployment(3, "v1"), "deployment/shop/web unchanged\npod/shop/web-0 unchanged\npod/shop/web-1 unchanged\npod/shop/web-2 unchanged")
	load, err := l.load()
	if err != nil || load["node1"] != 2 || load["node2"] != 2 {
		t.Errorf("pods are not spread: %v, %v", load, err)
	}
	apply(t, l, deployment(1, "v1"), "deployment/shop/web configured\npod/shop/web-0 unchanged\npod/shop/web-1 deleted\npod/shop/web-2 deleted")
	apply(t, l, deployment(1, "v2"), "deployment/shop/web configured\npod/shop/web-0 replaced")
	if p, err := l.Pod("shop", "web"); err != nil || p.Name != "web-0" {
		t.Errorf("a workload's name: %v, %v", p, err)
	}
	_, err = l.Pod("default", "web-0")
	wantError(t, err, "pod default/web-0", "shop/web-0")

	changes, err := l.Delete("default", parse(t, deployment(1, "v2")))
	if got := told(changes); err != nil || got != "deployment/shop/web deleted\npod/shop/web-0 deleted" {
		t.Errorf("delete said %q, %v", got, err)
	}
	_, err = l.Delete("default", parse(t, deployment(1, "v2")))
	wantError(t, err, "deployment/shop/web is not there")
}

func TestDaemonSetAndSelectors(t *testing.T) {
	l := testLab(t, Options{Name: "a", Nodes: 3})
	apply(t, l, "apiVersion: v1\nkind: Node\nmetadata: {name: node3, labels: {disk: ssd}}", "node/node3 configured")
	const ds = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: d}
spec:
  selector: {matchLabels: {app: d}}
  template:
    metadata: {labels: {app: d}}
    spec:
      containers: [{name: c}]
`
	apply(t, l, ds, "namespace/default created\ndaemonset/default/d created\npod/default/d-node1 created\npod/default/d-node2 created\npod/default/d-node3 created")
	apply(t, l, strings.Replace(ds, "containers:", "nodeSelector: {disk: ssd}\n      containers:", 1),
		"daemonset/default/d configured\npod/default/d-node3 replaced\npod/default/d-node1 deleted\npod/default/d-node2 deleted")
	const pinned = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  nodeSelector: {kubernetes.io/hostname: node2}\n  containers: [{name: c}]"
	apply(t, l, pinned, "pod/default/p created")
	if p, _ := l.Pod("default", "p"); p.Spec.NodeName != "node2" {
		t.Errorf("pod is on %s", p.Spec.NodeName)
	}
	_, err := l.Apply("default", parse(t, strings.Replace(pinned, "node2", "node9", 1)))
	wantError(t, err, "pod/default/p", "spec.nodeSelector", "node9")
}

// Other kinds are kept as they are: the agents read them, or will.
func TestOtherKinds(t *testing.T) {
	l := testLab(t, Options{Name: "a"})
	const objs = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: shop}
spec: {podSelector: {}}
---
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: wide}
spec: {endpointSelector: {}, ingress: [{}]}
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: ConfigMap, metadata: {name: cm}}
- {apiVersion: batch/v1, kind: CronJob, metadata: {name: cj}}
`
	apply(t, l, objs, "namespace/shop created\nnamespace/default created\nnetworkpolicy/shop/deny created\nciliumclusterwidenetworkpolicy.cilium.io/wide created\nconfigmap/default/cm created\ncronjob/default/cj created")
	changes, err := l.Apply("shop", parse(t, "apiVersion: v1\nkind: Secret\nmetadata: {name: b}"))
	if err != nil || len(changes) != 1 || !strings.Contains(strings.Join(changes[0].Notes, ""), "Secret") {
		t.Errorf("a kind without effect is not noted: %+v, %v", changes, err)
	}
	got, err := l.Get("networkpolicies", "")
	if err != nil || len(got) != 1 {
		t.Errorf("%v, %v", got, err)
	}
	ns, err := l.Get("ns", "", "shop")
	if err != nil || ns[0].GetLabels()["kubernetes.io/metadata.name"] != "shop" {
		t.Errorf("%v, %v", ns, err)
	}
	changes, err = l.Delete("default", ns)
	if got := told(changes); err != nil || got != "namespace/shop deleted\nnetworkpolicy/shop/deny deleted\nsecret/shop/b deleted" {
		t.Errorf("%q, %v", got, err)
	}
}

// Bad input is refused as a whole, and the error names object and field.
func TestApplyRefuses(t *testing.T) {
	l := testLab(t, Options{Name: "a", Nodes: 1})
	pod := func(from, to string) string { return strings.Replace(podA, from, to, 1) }
	for _, c := range []struct {
		manifest string
		words    []string
	}{
		{pod("containers:", "containerz:"), []string{"pod/default/a", `unknown field "spec.containerz"`}},
		{pod("containerPort: 80", "containerPort: x"), []string{"pod/default/a", "containerPort"}},
		{pod("containerPort: 80", "containerPort: 70000"), []string{"pod/default/a", "spec.containers[0].ports[0]", "70000"}},
		{pod("containerPort: 80", "containerPort: 80, protocol: ICMP"), []string{"pod/default/a", "ports[0].protocol", "ICMP"}},
		{pod("spec:", "spec:\n  nodeName: node7"), []string{"pod/default/a", "spec.nodeName", "node7", "node1"}},
		{pod("[{name: c, ports: [{containerPort: 80}]}]", "[]"), []string{"pod/default/a", "spec.containers"}},
		{pod("labels: {app: a}", "annotations: {kubernetes.io/ingress-bandwidth: fast}"), []string{"pod/default/a", "kubernetes.io/ingress-bandwidth", "fast"}},
		{podA + "---" + podA, []string{"pod/default/a is given twice"}},
		{strings.Replace(deployment(1, "v1"), "matchLabels: {app: web}", "matchLabels: {app: db}", 1), []string{"deployment/shop/web", "spec.selector"}},
		{deployment(100000, "v1"), []string{"deployment/shop/web", "100000"}},
		{strings.Replace(deployment(1, "v1"), "name: c", "nme: c", 1), []string{"deployment/shop/web", `unknown field "spec.template.spec.containers[0].nme"`}},
		{"apiVersion: v1\nkind: Node\nmetadata: {name: mine}", []string{"node/mine", "node1"}},
	} {
		_, err := l.Apply("default", parse(t, c.manifest))
		wantError(t, err, c.words...)
		if pods, _ := l.Get("pods", ""); len(pods) > 0 {
			t.Fatalf("a refused manifest left %v", pods)
		}
	}
}
