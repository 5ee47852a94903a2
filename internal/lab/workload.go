package lab

import (
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"

	"weft/internal/lab/kubelet"
	"weft/internal/lab/objects"
)

// maxReplicas bounds what one typing error can start on this machine.
const maxReplicas = 1000

// ownerUID stands in owner references: the same for all, so that applying a workload
// again leaves its pods as they are.
const ownerUID = "lab"

// workload is what all workload kinds have in common.
type workload struct {
	replicas int // -1: one on each node
	template corev1.PodTemplateSpec
	selector *metav1.LabelSelector // nil: the kind makes its own
}

// workloadKinds decode the kinds that are expanded to pods. A workload's pods are
// named <name>-0, <name>-1 … (a DaemonSet's <name>-<node>), so that scripts can name them.
func workloadKinds() map[string]func(*objects.Object) (workload, error) {
	return map[string]func(*objects.Object) (workload, error){
		"Deployment": func(o *objects.Object) (workload, error) {
			return expand(o, func(d *appsv1.Deployment) workload {
				return workload{count(d.Spec.Replicas), d.Spec.Template, d.Spec.Selector}
			})
		},
		"ReplicaSet": func(o *objects.Object) (workload, error) {
			return expand(o, func(d *appsv1.ReplicaSet) workload {
				return workload{count(d.Spec.Replicas), d.Spec.Template, d.Spec.Selector}
			})
		},
		"StatefulSet": func(o *objects.Object) (workload, error) {
			return expand(o, func(d *appsv1.StatefulSet) workload {
				return workload{count(d.Spec.Replicas), d.Spec.Template, d.Spec.Selector}
			})
		},
		"DaemonSet": func(o *objects.Object) (workload, error) {
			return expand(o, func(d *appsv1.DaemonSet) workload { return workload{-1, d.Spec.Template, d.Spec.Selector} })
		},
		"Job": func(o *objects.Object) (workload, error) {
			return expand(o, func(d *batchv1.Job) workload { return workload{count(d.Spec.Parallelism), d.Spec.Template, nil} })
		},
	}
}

func expand[T any](o *objects.Object, f func(*T) workload) (workload, error) {
	v, err := objects.Decode[T](o)
	if err != nil {
		return workload{}, err
	}
	w := f(v)
	if w.replicas > maxReplicas {
		return w, fmt.Errorf("%s: replicas: %d is more than %d", objects.RefOf(o), w.replicas, maxReplicas)
	}
	if w.selector != nil {
		s, err := metav1.LabelSelectorAsSelector(w.selector)
		if err != nil {
			return w, fmt.Errorf("%s: spec.selector: %w", objects.RefOf(o), err)
		}
		if s.Empty() || !s.Matches(labels.Set(w.template.Labels)) {
			return w, fmt.Errorf("%s: spec.selector does not match spec.template.metadata.labels", objects.RefOf(o))
		}
	}
	return w, nil
}

func count(n *int32) int {
	if n == nil {
		return 1
	}
	return int(max(*n, 0))
}

// pods are the pods of a workload object; none if its kind is not one.
func (l *Lab) pods(o *objects.Object) ([]*objects.Object, error) {
	f := workloadKinds()[o.GetKind()]
	if f == nil {
		return nil, nil
	}
	w, err := f(o)
	if err != nil {
		return nil, err
	}
	var names, nodes []string
	if w.replicas < 0 {
		for _, n := range l.opts.nodes() {
			if ok, err := l.matches(n.Name, w.template.Spec.NodeSelector); err != nil {
				return nil, err
			} else if ok {
				names, nodes = append(names, o.GetName()+"-"+n.Name), append(nodes, n.Name)
			}
		}
	}
	for i := range max(w.replicas, 0) {
		names, nodes = append(names, fmt.Sprintf("%s-%d", o.GetName(), i)), append(nodes, "")
	}
	out := make([]*objects.Object, 0, len(names))
	for i, name := range names {
		pod := corev1.Pod{ObjectMeta: *w.template.ObjectMeta.DeepCopy(), Spec: *w.template.Spec.DeepCopy()}
		pod.Name, pod.Namespace = name, o.GetNamespace()
		if nodes[i] != "" {
			pod.Spec.NodeName = nodes[i]
		}
		pod.OwnerReferences = []metav1.OwnerReference{{
			APIVersion: o.GetAPIVersion(), Kind: o.GetKind(), Name: o.GetName(), UID: ownerUID,
		}}
		p, err := objects.Encode("v1", "Pod", &pod)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// checkPod refuses pods that the lab cannot run, and says what it does not do.
func (l *Lab) checkPod(o *objects.Object) (warnings []string, err error) {
	pod, err := objects.Decode[corev1.Pod](o)
	if err != nil {
		return nil, err
	}
	r := objects.RefOf(o)
	if len(pod.Spec.Containers) == 0 {
		return nil, fmt.Errorf("%s: spec.containers: at least one is needed", r)
	}
	if n := pod.Spec.NodeName; n != "" && !slices.Contains(l.NodeNames(), n) {
		return nil, fmt.Errorf("%s: spec.nodeName: lab %s has no node %q, only %s", r, l.opts.Name, n, strings.Join(l.NodeNames(), ", "))
	}
	seen := map[string]bool{}
	for i, c := range pod.Spec.Containers {
		field := fmt.Sprintf("%s: spec.containers[%d]", r, i)
		if c.Name == "" || seen[c.Name] {
			return nil, fmt.Errorf("%s.name: %q is empty or used twice", field, c.Name)
		}
		seen[c.Name] = true
		for j, p := range c.Ports {
			if p.ContainerPort < 1 || p.ContainerPort > 65535 || p.HostPort < 0 || p.HostPort > 65535 {
				return nil, fmt.Errorf("%s.ports[%d]: containerPort %d, hostPort %d: want 1..65535", field, j, p.ContainerPort, p.HostPort)
			}
			if p.Protocol != "" && !slices.Contains([]corev1.Protocol{"TCP", "UDP", "SCTP"}, p.Protocol) {
				return nil, fmt.Errorf("%s.ports[%d].protocol: %q is not TCP, UDP or SCTP", field, j, p.Protocol)
			}
		}
		if len(c.Command) == 0 && len(c.Args) > 0 {
			warnings = append(warnings, fmt.Sprintf("%s: args without command: the lab has no images; the responder serves its ports", field))
		}
		if len(c.VolumeMounts) > 0 && len(c.Command) > 0 {
			warnings = append(warnings, fmt.Sprintf("%s.volumeMounts: ignored", field))
		}
	}
	for _, a := range []string{"kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"} {
		if _, err := kubelet.Rate(pod, a); err != nil {
			return nil, fmt.Errorf("%s: %w", r, err)
		}
	}
	return warnings, nil
}

// schedule binds a pod that names no node: to the matching node with the fewest pods.
func (l *Lab) schedule(pod *objects.Object, load map[string]int) error {
	if name, _, _ := unstructured.NestedString(pod.Object, "spec", "nodeName"); name != "" {
		load[name]++
		return nil
	}
	sel, _, err := unstructured.NestedStringMap(pod.Object, "spec", "nodeSelector")
	if err != nil {
		return fmt.Errorf("%s: %w", objects.RefOf(pod), err)
	}
	best := ""
	for _, n := range l.opts.nodes() {
		ok, err := l.matches(n.Name, sel)
		if err != nil {
			return err
		}
		if ok && (best == "" || load[n.Name] < load[best]) {
			best = n.Name
		}
	}
	if best == "" {
		return fmt.Errorf("%s: spec.nodeSelector: no node of lab %s has the labels %v", objects.RefOf(pod), l.opts.Name, sel)
	}
	load[best]++
	return unstructured.SetNestedField(pod.Object, best, "spec", "nodeName")
}

// matches reports whether a node has the labels.
func (l *Lab) matches(node string, sel map[string]string) (bool, error) {
	if len(sel) == 0 {
		return true, nil
	}
	o, err := l.store.Get(objects.Ref{Kind: "Node", Name: node})
	if err != nil || o == nil {
		return false, err
	}
	return labels.SelectorFromSet(sel).Matches(labels.Set(o.GetLabels())), nil
}
