package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"weft/internal/lab/objects"
)

// Change is what apply or delete did with one object.
type Change struct {
	Object string   // "pod/default/web"
	What   string   // created, configured, replaced, unchanged, deleted
	Notes  []string // what the user should know
}

// Apply makes the lab's objects as given; namespace is for objects that name none.
// Nothing is changed if one of them cannot be. Workloads become pods at once; a pod
// whose spec changed is replaced. It does not wait: see AwaitReady.
func (l *Lab) Apply(namespace string, objs []*objects.Object) ([]Change, error) {
	var changes []Change
	err := l.store.Locked(func() error {
		want, notes, err := l.prepare(namespace, objs)
		if err != nil {
			return err
		}
		load, err := l.load()
		if err != nil {
			return err
		}
		for _, o := range want {
			c, err := l.applyOne(o, load)
			if err != nil {
				return err
			}
			c.Notes = notes[objects.RefOf(o)]
			changes = append(changes, c)
			more, err := l.applyPods(o, load)
			if err != nil {
				return err
			}
			changes = append(changes, more...)
		}
		return nil
	})
	return changes, err
}

// prepare checks all objects before the first is written.
func (l *Lab) prepare(namespace string, objs []*objects.Object) ([]*objects.Object, map[objects.Ref][]string, error) {
	var out []*objects.Object
	var errs []error
	notes := map[objects.Ref][]string{}
	have := map[objects.Ref]bool{}
	for _, o := range objs {
		o = o.DeepCopy()
		objects.Settle(o, namespace)
		r := objects.RefOf(o)
		if have[r] {
			errs = append(errs, fmt.Errorf("%s is given twice", r))
			continue
		}
		have[r] = true
		if err := l.checkObject(o, notes); err != nil {
			errs = append(errs, err)
			continue
		}
		out = append(out, o)
	}
	var spaces []*objects.Object
	for _, o := range out {
		ns := objects.Ref{Kind: "Namespace", Name: o.GetNamespace()}
		if ns.Name == "" || have[ns] {
			continue
		}
		have[ns] = true
		if old, err := l.store.Get(ns); old == nil && err == nil {
			spaces = append(spaces, newNamespace(ns.Name))
		}
	}
	return append(spaces, out...), notes, errors.Join(errs...)
}

func newNamespace(name string) *objects.Object {
	o := &objects.Object{Object: map[string]any{"apiVersion": "v1", "kind": "Namespace"}}
	o.SetName(name)
	o.SetLabels(map[string]string{"kubernetes.io/metadata.name": name})
	return o
}

// checkObject refuses what the lab cannot do and notes what it does not do.
func (l *Lab) checkObject(o *objects.Object, notes map[objects.Ref][]string) error {
	r := objects.RefOf(o)
	switch kind := o.GetKind(); {
	case kind == "Pod":
		w, err := l.checkPod(o)
		notes[r] = w
		return err
	case workloadKinds()[kind] != nil:
		pods, err := l.pods(o)
		if err != nil || len(pods) == 0 {
			return err
		}
		w, err := l.checkPod(pods[0])
		notes[r] = w
		if err != nil {
			return fmt.Errorf("%s: spec.template: %w", r, err)
		}
	case kind == "Namespace":
		ls := o.GetLabels()
		if ls == nil {
			ls = map[string]string{}
		}
		ls["kubernetes.io/metadata.name"] = o.GetName()
		o.SetLabels(ls)
	case kind == "Node":
		if !slices.Contains(l.NodeNames(), o.GetName()) {
			return fmt.Errorf("%s: the lab makes its nodes itself (%s); only labels and annotations of these can be applied",
				r, strings.Join(l.NodeNames(), ", "))
		}
	default:
		is, refused, problem := objects.Policy(o)
		switch {
		case refused:
			return problem
		case problem != nil:
			notes[r] = []string{problem.Error() + " (what is wrong fails closed)"}
		}
		if is {
			return nil
		}
		notes[r] = []string{fmt.Sprintf("%s: stored for the agents, but this version of weft does nothing with objects of kind %s", r, kind)}
	}
	return nil
}

// load counts the pods of each node.
func (l *Lab) load() (map[string]int, error) {
	pods, err := l.store.List("Pod")
	load := map[string]int{}
	for _, p := range pods {
		n, _, _ := unstructured.NestedString(p.Object, "spec", "nodeName")
		load[n]++
	}
	return load, err
}

// applyOne writes one object. The caller holds the lock.
func (l *Lab) applyOne(o *objects.Object, load map[string]int) (Change, error) {
	c := Change{Object: objects.RefOf(o).String(), What: "configured"}
	old, err := l.store.Get(objects.RefOf(o))
	if err != nil {
		return c, err
	}
	if o.GetKind() == "Node" {
		o = relabel(old, o)
	}
	next := o.DeepCopy()
	if old != nil {
		// What the lab added stays.
		for _, path := range [][]string{{"status"}, {"metadata", "uid"}, {"metadata", "creationTimestamp"}} {
			if v, ok, _ := unstructured.NestedFieldCopy(old.Object, path...); ok {
				_ = unstructured.SetNestedField(next.Object, v, path...)
			}
		}
	} else {
		c.What = "created"
	}
	if o.GetKind() == "Pod" {
		replaced, err := l.place(old, next, load)
		if err != nil {
			return c, err
		}
		if replaced {
			c.What = "replaced"
		}
	}
	objects.Stamp(next)
	if old != nil && objects.Same(old.Object, next.Object) {
		c.What = "unchanged"
		return c, nil
	}
	return c, l.store.Put(next)
}

// place binds a pod to a node. A pod whose spec changed becomes another one.
func (l *Lab) place(old, next *objects.Object, load map[string]int) (replaced bool, err error) {
	if old == nil {
		return false, l.schedule(next, load)
	}
	moved := objects.NodeOf(next) != "" && objects.NodeOf(next) != objects.NodeOf(old)
	if old.GetDeletionTimestamp() == nil && !moved && objects.Same(plainSpec(old), plainSpec(next)) {
		return false, unstructured.SetNestedField(next.Object, objects.NodeOf(old), "spec", "nodeName")
	}
	for _, path := range [][]string{{"status"}, {"metadata", "uid"}, {"metadata", "creationTimestamp"}} {
		unstructured.RemoveNestedField(next.Object, path...)
	}
	load[objects.NodeOf(old)]--
	return true, l.schedule(next, load)
}

// plainSpec is the pod's spec without what the lab filled in.
func plainSpec(pod *objects.Object) map[string]any {
	spec, _, _ := unstructured.NestedMap(pod.Object, "spec")
	spec = maps.Clone(spec)
	delete(spec, "nodeName")
	return spec
}

// relabel is the lab's node with the labels and annotations of what was applied.
func relabel(old, o *objects.Object) *objects.Object {
	n := old.DeepCopy()
	ls, as := n.GetLabels(), n.GetAnnotations()
	if as == nil {
		as = map[string]string{}
	}
	maps.Copy(ls, o.GetLabels())
	maps.Copy(as, o.GetAnnotations())
	n.SetLabels(ls)
	if len(as) > 0 {
		n.SetAnnotations(as)
	}
	return n
}

// applyPods makes the pods of a workload what it says, and deletes those beyond.
func (l *Lab) applyPods(o *objects.Object, load map[string]int) ([]Change, error) {
	pods, err := l.pods(o)
	if err != nil || workloadKinds()[o.GetKind()] == nil {
		return nil, err
	}
	var out []Change
	keep := map[string]bool{}
	for _, p := range pods {
		keep[p.GetName()] = true
		c, err := l.applyOne(p, load)
		if err != nil {
			return out, err
		}
		out = append(out, c)
	}
	old, err := l.owned(o)
	if err != nil {
		return out, err
	}
	for _, p := range old {
		if !keep[p.GetName()] {
			if err := l.markDeleted(p); err != nil {
				return out, err
			}
			out = append(out, Change{Object: objects.RefOf(p).String(), What: "deleted"})
		}
	}
	return out, nil
}

// owned lists the pods of a workload.
func (l *Lab) owned(o *objects.Object) ([]*objects.Object, error) {
	pods, err := l.store.List("Pod")
	return slices.DeleteFunc(pods, func(p *objects.Object) bool {
		return p.GetNamespace() != o.GetNamespace() || !slices.ContainsFunc(p.GetOwnerReferences(), func(r metav1.OwnerReference) bool {
			return r.Kind == o.GetKind() && r.Name == o.GetName()
		})
	}), err
}

// markDeleted asks the pod's node to stop it and to remove the object then. A pod
// whose node is down goes at once.
func (l *Lab) markDeleted(pod *objects.Object) error {
	if _, err := l.Host(objects.NodeOf(pod)); err != nil {
		return l.store.Remove(objects.RefOf(pod))
	}
	pod = pod.DeepCopy()
	now := metav1.Now()
	pod.SetDeletionTimestamp(&now)
	return l.store.Put(pod)
}

// Delete removes objects, the pods of workloads and everything in namespaces. Objects
// that are not there are reported. It does not wait: see AwaitGone.
func (l *Lab) Delete(namespace string, objs []*objects.Object) ([]Change, error) {
	var changes []Change
	var errs []error
	err := l.store.Locked(func() error {
		for _, o := range objs {
			o = o.DeepCopy()
			objects.Settle(o, namespace)
			c, err := l.deleteOne(o)
			changes, errs = append(changes, c...), append(errs, err)
		}
		return nil
	})
	return changes, errors.Join(append(errs, err)...)
}

func (l *Lab) deleteOne(o *objects.Object) ([]Change, error) {
	r := objects.RefOf(o)
	old, err := l.store.Get(r)
	if err != nil {
		return nil, err
	}
	if old == nil {
		return nil, fmt.Errorf("%s is not there", r)
	}
	switch r.Kind {
	case "Node":
		return nil, fmt.Errorf("%s: the lab's nodes stay; `weft lab node %s stop` takes one down", r, r.Name)
	case "Pod":
		return []Change{{Object: r.String(), What: "deleted"}}, l.markDeleted(old)
	}
	var below []*objects.Object
	if r.Kind == "Namespace" {
		all, err := l.store.List("")
		if err != nil {
			return nil, err
		}
		below = slices.DeleteFunc(all, func(x *objects.Object) bool { return x.GetNamespace() != r.Name })
	} else if below, err = l.owned(old); err != nil {
		return nil, err
	}
	changes := []Change{{Object: r.String(), What: "deleted"}}
	for _, x := range below {
		if x.GetKind() == "Pod" {
			err = l.markDeleted(x)
		} else {
			err = l.store.Remove(objects.RefOf(x))
		}
		if err != nil {
			return changes, err
		}
		changes = append(changes, Change{Object: objects.RefOf(x).String(), What: "deleted"})
	}
	return changes, l.store.Remove(r)
}

// AwaitReady returns when the pods among the changes, or without any all pods of the
// lab, are ready or have succeeded. When ctx ends first, the error says of each pod
// that is not why.
func (l *Lab) AwaitReady(ctx context.Context, changes ...Change) error {
	only := map[string]bool{}
	for _, c := range changes {
		only[c.Object] = c.What != "deleted"
	}
	var waiting []string
	err := l.store.Await(ctx, func() (bool, error) {
		waiting = waiting[:0]
		pods, err := l.store.List("Pod")
		for _, p := range pods {
			if len(only) > 0 && !only[objects.RefOf(p).String()] {
				continue
			}
			if ready, why := podReady(p); !ready {
				waiting = append(waiting, objects.RefOf(p).String()+" on "+objects.NodeOf(p)+": "+why)
			}
		}
		return len(waiting) == 0, err
	})
	return explain(ctx, err, "not ready", waiting)
}

// AwaitGone returns when none of the deleted pods is left.
func (l *Lab) AwaitGone(ctx context.Context) error {
	var waiting []string
	err := l.store.Await(ctx, func() (bool, error) {
		waiting = waiting[:0]
		pods, err := l.store.List("Pod")
		for _, p := range pods {
			if p.GetDeletionTimestamp() != nil {
				waiting = append(waiting, objects.RefOf(p).String()+" on "+objects.NodeOf(p))
			}
		}
		return len(waiting) == 0, err
	})
	return explain(ctx, err, "not stopped", waiting)
}

func explain(ctx context.Context, err error, what string, waiting []string) error {
	if err == nil || ctx.Err() == nil || len(waiting) == 0 {
		return err
	}
	return fmt.Errorf("%s in time:\n  %s", what, strings.Join(waiting, "\n  "))
}

// podReady reports whether a pod is done with starting, or why not.
func podReady(p *objects.Object) (bool, string) {
	pod, err := objects.Decode[corev1.Pod](p)
	if err != nil {
		return false, err.Error()
	}
	if pod.DeletionTimestamp != nil {
		return false, "being deleted"
	}
	if pod.Status.Phase == corev1.PodSucceeded {
		return true, ""
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return true, ""
		}
	}
	why := []string{strings.ToLower(cmp.Or(string(pod.Status.Phase), "pending"))}
	if pod.Status.Message != "" {
		why = append(why, pod.Status.Message)
	}
	for _, c := range pod.Status.ContainerStatuses {
		switch {
		case c.State.Waiting != nil:
			why = append(why, "container "+c.Name+" "+c.State.Waiting.Reason+" "+c.State.Waiting.Message)
		case c.State.Terminated != nil:
			why = append(why, fmt.Sprintf("container %s exited with %d", c.Name, c.State.Terminated.ExitCode))
		}
	}
	return false, strings.Join(why, "; ")
}
