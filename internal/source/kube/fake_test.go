package kube

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"weft/internal/convert/language"
)

// fakeAPI is an API server: list with pages, watch, watch list, protobuf and JSON, encoded by Kubernetes' own types; and for
// objects of CustomResourceDefinitions in JSON only.
type fakeAPI struct {
	*httptest.Server
	json      bool // answers in JSON whatever is accepted
	watchList bool

	mu       sync.Mutex
	version  int                       // guarded by mu
	objs     map[string]runtime.Object // guarded by mu; by resource/namespace/name
	history  []past                    // guarded by mu
	oldest   int                       // guarded by mu: watches from before get 410
	changed  chan struct{}             // guarded by mu: closed and replaced by each change
	broken   bool                      // guarded by mu: every request fails
	kill     chan struct{}             // guarded by mu: closed to cut every watch
	requests []string                  // guarded by mu
	down     func(http.ResponseWriter) // guarded by mu: what to answer where broken
	withheld bool                      // guarded by mu: definitions are there, and not served
}

// past is one event.
type past struct {
	version  int
	typ      string
	resource string
	obj      runtime.Object
	before   runtime.Object // nil if it is new
}

func newFake(t testing.TB) *fakeAPI {
	f := &fakeAPI{watchList: true, version: 100, objs: map[string]runtime.Object{}, changed: make(chan struct{}), kill: make(chan struct{})}
	f.Server = httptest.NewUnstartedServer(f)
	f.Server.EnableHTTP2 = true
	f.Server.Config.ErrorLog = log.New(io.Discard, "", 0) // connections are cut on purpose
	f.Server.StartTLS()
	t.Cleanup(func() {
		f.cut()
		f.Server.Close()
	})
	return f
}

func (f *fakeAPI) config() *rest.Config {
	return &rest.Config{Host: f.URL, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
}

// types are the resources that every API server has.
func types() map[string]struct{ apiVersion, kind string } {
	return map[string]struct{ apiVersion, kind string }{
		"nodes": {"v1", "Node"}, "namespaces": {"v1", "Namespace"}, "pods": {"v1", "Pod"}, "services": {"v1", "Service"},
		"serviceaccounts": {"v1", "ServiceAccount"}, "endpointslices": {"discovery.k8s.io/v1", "EndpointSlice"},
		"networkpolicies.networking.k8s.io": {"networking.k8s.io/v1", "NetworkPolicy"},
		"customresourcedefinitions":         {"apiextensions.k8s.io/v1", "CustomResourceDefinition"},
		"leases":                            {"coordination.k8s.io/v1", "Lease"},
	}
}

func resourceName(o runtime.Object) string {
	switch o := o.(type) {
	case *corev1.Node:
		return "nodes"
	case *corev1.Namespace:
		return "namespaces"
	case *corev1.Pod:
		return "pods"
	case *corev1.Service:
		return "services"
	case *corev1.ServiceAccount:
		return "serviceaccounts"
	case *discoveryv1.EndpointSlice:
		return "endpointslices"
	case *networkingv1.NetworkPolicy:
		return "networkpolicies.networking.k8s.io"
	case *unstructured.Unstructured:
		switch o.GetKind() {
		case "CustomResourceDefinition":
			return "customresourcedefinitions"
		case "Lease":
			return "leases"
		}
		for _, k := range language.Kinds() {
			if gvk := o.GroupVersionKind(); k.Type.Kind == gvk.Kind && k.Type.Group == gvk.Group {
				return k.CRD()
			}
		}
	}
	panic(fmt.Sprintf("%T", o))
}

func apiVersion(resource string) string { return types()[resource].apiVersion }

func kindName(resource string) string { return types()[resource].kind }

// set stores objects; remove deletes them.
func (f *fakeAPI) set(objs ...runtime.Object)    { f.put(false, objs) }
func (f *fakeAPI) remove(objs ...runtime.Object) { f.put(true, objs) }

func (f *fakeAPI) put(remove bool, objs []runtime.Object) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, o := range objs {
		o = o.DeepCopyObject()
		m := o.(metav1.Object)
		f.version++
		m.SetResourceVersion(strconv.Itoa(f.version))
		res := resourceName(o)
		key := res + "/" + m.GetNamespace() + "/" + m.GetName()
		typ := modified
		if _, ok := f.objs[key]; !ok {
			typ = added
		}
		before := f.objs[key]
		f.objs[key] = o
		if remove {
			typ = deleted
			delete(f.objs, key)
		}
		f.history = append(f.history, past{f.version, typ, res, o, before})
	}
	close(f.changed)
	f.changed = make(chan struct{})
}

// cut ends every watch in the middle.
func (f *fakeAPI) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.kill)
	f.kill = make(chan struct{})
}

// fail makes every request fail, nil heals.
func (f *fakeAPI) fail(how func(http.ResponseWriter)) {
	f.mu.Lock()
	f.broken, f.down = how != nil, how
	f.mu.Unlock()
	if how != nil {
		f.cut()
	}
}

// compact forgets history, as etcd's compaction does.
func (f *fakeAPI) compact() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.version++
	f.oldest, f.history = f.version, nil
}

// count returns how many requests contained s.
func (f *fakeAPI) count(s string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, r := range f.requests {
		if strings.Contains(r, s) {
			n++
		}
	}
	return n
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.requests = append(f.requests, r.URL.String())
	broken, down := f.broken, f.down
	f.mu.Unlock()
	if broken {
		down(w)
		return
	}
	q := r.URL.Query()
	at := place(r.URL.Path)
	selector := q.Get("fieldSelector")
	if at.namespace != "" && r.Method == http.MethodGet {
		selector += " in " + at.namespace
	}
	proto := strings.Contains(r.Header.Get("Accept"), protobuf) && !f.json && types()[at.res].kind != "" &&
		at.res != "customresourcedefinitions" && at.res != "leases"
	switch {
	case f.unserved(at):
		f.status(w, proto, 404, "NotFound", "the server could not find the requested resource")
	case r.Method != http.MethodGet:
		f.change(w, r, at)
	case at.name != "":
		f.one(w, at)
	case q.Get("watch") != "true":
		f.list(w, proto, at.res, selector, q.Get("limit"), q.Get("continue"))
	case q.Get("sendInitialEvents") == "true" && !f.watchList:
		f.status(w, proto, 422, "Invalid", "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled")
	default:
		f.watch(w, r, proto, at.res)
	}
}

// spot is what a path names.
type spot struct{ group, version, res, namespace, name, sub string }

func place(path string) spot {
	parts := strings.Split(strings.TrimPrefix(path, "/"), "/")
	at := spot{group: parts[1], version: parts[2]}
	if parts[0] == "api" {
		at.group, at.version, parts = "", parts[1], parts[2:]
	} else {
		parts = parts[3:]
	}
	if len(parts) > 2 && parts[0] == "namespaces" {
		at.namespace, parts = parts[1], parts[2:]
	}
	parts = append(parts, "", "")
	at.res, at.name, at.sub = parts[0], parts[1], parts[2]
	if at.res == "networkpolicies" || types()[at.res].kind == "" {
		at.res += "." + at.group
	}
	return at
}

// one answers with one object.
func (f *fakeAPI) one(w http.ResponseWriter, at spot) {
	f.mu.Lock()
	o := f.objs[at.res+"/"+at.namespace+"/"+at.name]
	f.mu.Unlock()
	if o == nil {
		f.status(w, false, 404, "NotFound", at.name+" not found")
		return
	}
	reply(w, false, 200, encode(o, apiVersion(at.res), kindName(at.res), false))
}

// change creates, replaces or patches an object, with the checks of resource versions that the source counts on.
func (f *fakeAPI) change(w http.ResponseWriter, r *http.Request, at spot) {
	body, _ := io.ReadAll(r.Body)
	var m map[string]any
	if err := json.Unmarshal(body, &m); err != nil {
		f.status(w, false, 400, "BadRequest", err.Error())
		return
	}
	next := &unstructured.Unstructured{Object: m}
	name := cmp.Or(at.name, next.GetName())
	f.mu.Lock()
	old, _ := f.objs[at.res+"/"+at.namespace+"/"+name].(*unstructured.Unstructured)
	f.mu.Unlock()
	code, reason := 200, ""
	switch {
	case r.Method == http.MethodPost && old != nil:
		code, reason = 409, "AlreadyExists"
	case r.Method != http.MethodPost && old == nil:
		code, reason = 404, "NotFound"
	case old != nil && next.GetResourceVersion() != "" && next.GetResourceVersion() != old.GetResourceVersion():
		code, reason = 409, "Conflict"
	}
	if code != 200 {
		f.status(w, false, code, reason, reason+" "+name)
		return
	}
	if r.Method == http.MethodPatch {
		merged := old.DeepCopy().Object
		mergeInto(merged, m)
		next = &unstructured.Unstructured{Object: merged}
	}
	if r.Method == http.MethodDelete {
		f.remove(old)
	} else {
		f.set(next)
	}
	at.name = name
	f.one(w, at)
}

// mergeInto applies a merge patch.
func mergeInto(to, patch map[string]any) {
	for k, v := range patch {
		below, is := v.(map[string]any)
		old, has := to[k].(map[string]any)
		if is && has {
			mergeInto(old, below)
		} else {
			to[k] = v
		}
	}
}

// unserved reports whether it is of a definition that is not there, or of a version that it has not.
func (f *fakeAPI) unserved(at spot) bool {
	if types()[at.res].kind != "" {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	crd, ok := f.objs["customresourcedefinitions//"+at.res].(*unstructured.Unstructured)
	if !ok || f.withheld {
		return true
	}
	served := strings.Fields(crd.GetAnnotations()["versions"])
	versions, _, _ := unstructured.NestedSlice(crd.Object, "spec", "versions")
	for _, v := range versions {
		served = append(served, v.(map[string]any)["name"].(string))
	}
	return !slices.Contains(served, at.version)
}

// encode returns the object as the server would send it.
func encode(o runtime.Object, apiVersion, kind string, proto bool) []byte {
	if !proto {
		b, err := json.Marshal(o)
		if err != nil {
			panic(err)
		}
		if _, whole := o.(*unstructured.Unstructured); whole {
			return b
		}
		head := fmt.Sprintf(`{"kind":%q,"apiVersion":%q,`, kind, apiVersion)
		return append([]byte(head), b[1:]...)
	}
	raw, err := o.(interface{ Marshal() ([]byte, error) }).Marshal()
	if err != nil {
		panic(err)
	}
	b, err := (&runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: apiVersion, Kind: kind}, Raw: raw}).Marshal()
	if err != nil {
		panic(err)
	}
	return append([]byte(magic), b...)
}

func reply(w http.ResponseWriter, proto bool, code int, body []byte) {
	w.Header().Set("Content-Type", map[bool]string{true: protobuf, false: "application/json"}[proto])
	w.WriteHeader(code)
	_, _ = w.Write(body)
}

func (f *fakeAPI) status(w http.ResponseWriter, proto bool, code int, reason, message string) {
	s := &metav1.Status{Status: "Failure", Code: int32(code), Reason: metav1.StatusReason(reason), Message: message}
	reply(w, proto, code, encode(s, "v1", "Status", proto))
}

// matching returns the objects of a resource in order.
func (f *fakeAPI) matching(res, selector string) []runtime.Object {
	var out []runtime.Object
	for _, k := range slices.Sorted(maps.Keys(f.objs)) {
		if strings.HasPrefix(k, res+"/") && selected(f.objs[k], selector) {
			out = append(out, f.objs[k])
		}
	}
	return out
}

// selected knows the selectors that the source uses.
func selected(o runtime.Object, selector string) bool {
	p, ok := o.(*corev1.Pod)
	if !ok || selector == "" {
		return true
	}
	if node, is := strings.CutPrefix(selector, "spec.nodeName!="); is {
		node, _, _ = strings.Cut(node, ",")
		return p.Spec.NodeName != node && p.Spec.NodeName != "" && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed
	}
	if node, is := strings.CutPrefix(selector, "spec.nodeName="); is {
		return p.Spec.NodeName == node
	}
	return selector == "metadata.name="+p.Name+" in "+p.Namespace
}

func (f *fakeAPI) list(w http.ResponseWriter, proto bool, res, selector, limit, cont string) {
	f.mu.Lock()
	objs, version := f.matching(res, selector), strconv.Itoa(f.version)
	f.mu.Unlock()
	meta := metav1.ListMeta{ResourceVersion: version}
	start, _ := strconv.Atoi(cont)
	if n, _ := strconv.Atoi(limit); n > 0 && len(objs) > start+n {
		objs, meta.Continue = objs[:start+n], strconv.Itoa(start+n)
	}
	objs = objs[start:]
	list, kind := listOf(res, objs, meta), kindName(res)+"List"
	reply(w, proto, 200, encode(list, apiVersion(res), kind, proto))
}

func listOf(res string, objs []runtime.Object, meta metav1.ListMeta) runtime.Object {
	switch res {
	case "nodes":
		return &corev1.NodeList{ListMeta: meta, Items: items[corev1.Node](objs)}
	case "namespaces":
		return &corev1.NamespaceList{ListMeta: meta, Items: items[corev1.Namespace](objs)}
	case "pods":
		return &corev1.PodList{ListMeta: meta, Items: items[corev1.Pod](objs)}
	case "services":
		return &corev1.ServiceList{ListMeta: meta, Items: items[corev1.Service](objs)}
	case "serviceaccounts":
		return &corev1.ServiceAccountList{ListMeta: meta, Items: items[corev1.ServiceAccount](objs)}
	case "endpointslices":
		return &discoveryv1.EndpointSliceList{ListMeta: meta, Items: items[discoveryv1.EndpointSlice](objs)}
	case "networkpolicies.networking.k8s.io":
		return &networkingv1.NetworkPolicyList{ListMeta: meta, Items: items[networkingv1.NetworkPolicy](objs)}
	}
	out := &unstructured.UnstructuredList{}
	out.SetAPIVersion("x/v1")
	out.SetKind("List")
	out.SetResourceVersion(meta.ResourceVersion)
	out.SetContinue(meta.Continue)
	out.Items = items[unstructured.Unstructured](objs)
	return out
}

func items[T any](objs []runtime.Object) []T {
	out := []T{}
	for _, o := range objs {
		out = append(out, *any(o).(*T))
	}
	return out
}

// send writes one watch event.
func send(w http.ResponseWriter, proto bool, typ string, o runtime.Object, apiVersion, kind string) {
	obj := encode(o, apiVersion, kind, proto)
	if proto {
		b, err := (&metav1.WatchEvent{Type: typ, Object: runtime.RawExtension{Raw: obj}}).Marshal()
		if err != nil {
			panic(err)
		}
		_, _ = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
		return
	}
	_, _ = fmt.Fprintf(w, `{"type":%q,"object":%s}`+"\n", typ, obj)
}

func (f *fakeAPI) watch(w http.ResponseWriter, r *http.Request, proto bool, res string) {
	q := r.URL.Query()
	since, _ := strconv.Atoi(q.Get("resourceVersion"))
	f.mu.Lock()
	kill, tooOld := f.kill, since > 0 && since < f.oldest
	var first []runtime.Object
	if since == 0 {
		first, since = f.matching(res, q.Get("fieldSelector")), f.version
	}
	f.mu.Unlock()

	typ := map[bool]string{true: protobuf + ";stream=watch", false: "application/json;stream=watch"}[proto]
	w.Header().Set("Content-Type", typ)
	w.WriteHeader(200)
	if tooOld {
		send(w, proto, failure, &metav1.Status{Code: 410, Reason: "Expired", Message: "too old resource version"}, "v1", "Status")
		return
	}
	for _, o := range first {
		send(w, proto, added, o, apiVersion(res), kindName(res))
	}
	if q.Get("sendInitialEvents") == "true" {
		end := metav1.ObjectMeta{ResourceVersion: strconv.Itoa(since), Annotations: map[string]string{"k8s.io/initial-events-end": "true"}}
		send(w, proto, bookmark, &corev1.Namespace{ObjectMeta: end}, cmp.Or(apiVersion(res), "x/v1"), cmp.Or(kindName(res), "X"))
	}
	for {
		w.(http.Flusher).Flush()
		select {
		case <-kill:
			panic(http.ErrAbortHandler)
		default:
		}
		f.mu.Lock()
		changed := f.changed
		if since < f.oldest { // a request that was between two locks while history was forgotten
			f.mu.Unlock()
			send(w, proto, failure, &metav1.Status{Code: 410, Reason: "Expired", Message: "too old resource version"}, "v1", "Status")
			return
		}
		var events []past
		for _, c := range f.history {
			if c.version <= since || c.resource != res {
				continue
			}
			switch is, was := selected(c.obj, q.Get("fieldSelector")), c.before != nil && selected(c.before, q.Get("fieldSelector")); {
			case is && !was && c.typ == modified:
				c.typ = added
			case was && !is:
				c.typ = deleted
			case !is:
				continue
			}
			events = append(events, c)
		}
		since = f.version
		f.mu.Unlock()
		for _, c := range events {
			send(w, proto, c.typ, c.obj, apiVersion(res), kindName(res))
		}
		if len(events) > 0 {
			continue
		}
		select {
		case <-r.Context().Done():
			return
		case <-kill:
			panic(http.ErrAbortHandler)
		case <-changed:
		}
	}
}

// forget drops history that every watch has seen, so that a test of memory measures the source.
func (f *fakeAPI) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.history = nil
}
