package kube

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"

	"weft/internal/convert/wire"
	"weft/internal/model"
)

// heap returns the live heap in bytes.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// realistic fills what a real object carries beside what weft reads.
func realistic(o metav1.Object, i int) {
	o.SetUID("5c1a7f0e-1111-2222-3333-444455556666")
	o.SetAnnotations(map[string]string{"kubectl.kubernetes.io/last-applied-configuration": string(make([]byte, 1500))})
	o.SetManagedFields([]metav1.ManagedFieldsEntry{{Manager: "kubelet", FieldsV1: metav1.NewFieldsV1(string(make([]byte, 1000)))}})
	o.SetLabels(map[string]string{
		"kubernetes.io/hostname": fmt.Sprintf("worker-%05d", i), "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
		"topology.kubernetes.io/zone": fmt.Sprintf("zone-%d", i%3), "topology.kubernetes.io/region": "region-1", "node.kubernetes.io/instance-type": "m5.large",
	})
}

// TestBytesPerObject measures what an object of the cluster costs in the agent's heap, without the store's index.
func TestBytesPerObject(t *testing.T) {
	const n = 5000
	nodes, pods, slices := &corev1.NodeList{}, &corev1.PodList{}, &discoveryv1.EndpointSliceList{}
	for i := range n {
		o := node(fmt.Sprintf("worker-%05d", i), fmt.Sprintf("10.%d.%d.0/24", i/256, i%256))
		realistic(o, i)
		nodes.Items = append(nodes.Items, *o)
		p := pod(fmt.Sprintf("web-7d9c5b6f4-%05d", i), "n1")
		realistic(p, i)
		p.Labels = map[string]string{"app": "web", "pod-template-hash": "7d9c5b6f4"}
		p.Status.PodIPs = []corev1.PodIP{{IP: "10.244.1.2"}}
		p.Spec.Containers = make([]corev1.Container, 3)
		pods.Items = append(pods.Items, *p)
		s := discoveryv1.EndpointSlice{AddressType: "IPv4", ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("web-%05d", i)}}
		for j := range 10 {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.244.1.%d", j)}, TargetRef: &corev1.ObjectReference{Name: "x"}})
		}
		slices.Items = append(slices.Items, s)
	}
	for _, tc := range []struct {
		kind  model.Kind
		list  kruntime.Object
		limit int64 // bytes
	}{{model.KindNode, nodes, 700}, {model.KindPod, pods, 800}, {model.KindBackends, slices, 800}} {
		r, err := coreResource(tc.kind, "")
		if err != nil {
			t.Fatal(err)
		}
		body := encode(tc.list, "v1", "List", true)
		var strs wire.Strings
		before := heap()
		p, err := readPage(&http.Response{Header: http.Header{"Content-Type": {protobuf}}, Body: io.NopCloser(bytes.NewReader(body))}, r.forms[0].decode, &strs)
		if err != nil || len(p.items) != n {
			t.Fatalf("%d items, %v", len(p.items), err)
		}
		objs := make([]model.Object, 0, n)
		for _, item := range p.items {
			objs = append(objs, item.objs...)
		}
		p = page{}
		per := (heap() - before) / n
		t.Logf("%s: %d bytes each in the heap, %d on the wire", tc.kind, per, len(body)/n)
		if per > tc.limit {
			t.Errorf("%s: %d bytes each, want at most %d", tc.kind, per, tc.limit)
		}
		runtime.KeepAlive(objs)
		runtime.KeepAlive(body)
	}
	runtime.KeepAlive([]any{nodes, pods, slices})
}

// TestBytesPerPeer measures a pod of another node: 100,000 of them are in every agent of a large cluster with policy.
func TestBytesPerPeer(t *testing.T) {
	const n = 5000
	pods := &corev1.PodList{}
	for i := range n {
		p := pod(fmt.Sprintf("web-7d9c5b6f4-%05d", i), fmt.Sprintf("n%d", i/100))
		realistic(p, i)
		p.Labels = map[string]string{"app": "web", "pod-template-hash": fmt.Sprint(i / 20)}
		p.Status.PodIPs = []corev1.PodIP{{IP: "10.244.1.2"}, {IP: "fd00::1:2"}}
		p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80}}}}
		pods.Items = append(pods.Items, *p)
	}
	r := remotePods("n1")
	body := encode(pods, "v1", "List", true)
	var strs wire.Strings
	before := heap()
	p, err := readPage(&http.Response{Header: http.Header{"Content-Type": {protobuf}}, Body: io.NopCloser(bytes.NewReader(body))}, r.forms[0].decode, &strs)
	if err != nil || len(p.items) != n {
		t.Fatalf("%d items, %v", len(p.items), err)
	}
	objs := make([]model.Object, 0, n)
	for _, item := range p.items {
		objs = append(objs, item.objs...)
	}
	p = page{}
	per := (heap() - before) / n
	t.Logf("%d bytes each in the heap", per)
	if per > 600 {
		t.Errorf("%d bytes each, want at most 600", per)
	}
	runtime.KeepAlive(objs)
	runtime.KeepAlive(body)
	runtime.KeepAlive(pods)
}

// TestChurnLeavesTheHeap adds and removes 1,000 nodes: what the source keeps must not grow.
func TestChurnLeavesTheHeap(t *testing.T) {
	f := newFake(t)
	for i := range 200 {
		f.set(node(fmt.Sprintf("base-%d", i), "10.244.1.0/24"))
	}
	r := start(t, f, Options{Kinds: []model.Kind{model.KindNode}})
	awaitClosed(t, r.complete)
	base := r.keys()
	churn := func(n int) {
		for i := range n {
			name := fmt.Sprintf("churn-%d", i)
			f.set(node(name, "10.244.2.0/24"))
			r.until(t, name, func() bool { return r.get(model.NodeKey(name)) != nil })
			f.remove(node(name, ""))
			r.until(t, name+" gone", func() bool { return r.get(model.NodeKey(name)) == nil })
			f.forget()
		}
	}
	churn(1000) // fills what is bounded, as the strings are
	before := heap()
	churn(1000)
	after := heap()
	t.Logf("heap %d before, %d after", before, after)
	if after > before+before/20 {
		t.Errorf("the heap grew from %d to %d bytes", before, after)
	}
	if r.keys() != base {
		t.Errorf("nodes differ after all were removed")
	}
}
