package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"weft/internal/model"
)

// sink is a Writer that holds the rows of one source as the store does.
type sink struct {
	mu      sync.Mutex
	rows    map[model.Key]model.Object // guarded by mu
	changed chan struct{}              // guarded by mu: closed and replaced by each write
	writes  int                        // guarded by mu
}

func newSink() *sink {
	return &sink{rows: map[model.Key]model.Object{}, changed: make(chan struct{})}
}

func (s *sink) write(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	s.writes++
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *sink) Upsert(objs ...model.Object) {
	s.write(func() {
		for _, o := range objs {
			s.rows[o.Key()] = o
		}
	})
}

func (s *sink) Delete(keys ...model.Key) {
	s.write(func() {
		for _, k := range keys {
			delete(s.rows, k)
		}
	})
}

func (s *sink) Replace(kind model.Kind, objs []model.Object) {
	s.write(func() {
		maps.DeleteFunc(s.rows, func(k model.Key, _ model.Object) bool { return k.Kind == kind })
		for _, o := range objs {
			s.rows[o.Key()] = o
		}
	})
}

// keys lists what is there.
func (s *sink) keys() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for k := range s.rows {
		out = append(out, k.String())
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// await waits until the keys are exactly those.
func (s *sink) await(t testing.TB, want ...string) {
	t.Helper()
	slices.Sort(want)
	text := strings.Join(want, " ")
	s.until(t, text, func() bool { return s.keys() == text })
}

func (s *sink) until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if ok() {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("waited for %s, have %s", what, s.keys())
		}
	}
}

func (s *sink) get(k model.Key) model.Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rows[k]
}

// running is a source at work.
type running struct {
	*Source
	*sink
	complete chan struct{}
	reports  func() string
}

func start(t testing.TB, f *fakeAPI, o Options) running {
	t.Helper()
	return startWith(t, f.config(), o)
}

func startWith(t testing.TB, cfg *rest.Config, o Options) running {
	t.Helper()
	var mu sync.Mutex
	var reports []string
	o.Report = func(what, action string) {
		mu.Lock()
		defer mu.Unlock()
		reports = append(reports, what+": "+action)
	}
	r := running{sink: newSink(), complete: make(chan struct{}), reports: func() string {
		mu.Lock()
		defer mu.Unlock()
		return strings.Join(reports, "\n")
	}}
	s, err := New(cfg, o, r.sink, func() { close(r.complete) }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	r.Source = s
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
	})
	return r
}

func awaitClosed(t testing.TB, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(20 * time.Second):
		t.Fatal("not complete")
	}
}

// watching waits until the watch of nodes delivers.
func (r running) watching(t testing.TB, f *fakeAPI) {
	t.Helper()
	f.set(node("probe", "10.244.99.0/24"))
	r.until(t, "the probe", func() bool { return r.get(model.NodeKey("probe")) != nil })
	f.remove(node("probe", ""))
	r.until(t, "the probe gone", func() bool { return r.get(model.NodeKey("probe")) == nil })
}

func node(name, cidr string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}},
		Spec:       corev1.NodeSpec{PodCIDRs: []string{cidr}},
		Status: corev1.NodeStatus{
			Addresses: []corev1.NodeAddress{{Type: "InternalIP", Address: "10.0.0.1"}, {Type: "InternalIP", Address: "fd00::1"}},
			Images:    []corev1.ContainerImage{{Names: []string{strings.Repeat("x", 300)}}},
		},
	}
}

func pod(name, node string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: corev1.PodSpec{NodeName: node}}
}

// variants runs a test against a server of each kind: with watch lists and without, in protobuf and in JSON.
func variants(t *testing.T, test func(t *testing.T, f *fakeAPI)) {
	for _, json := range []bool{false, true} {
		for _, watchList := range []bool{true, false} {
			t.Run(fmt.Sprintf("json=%v,watchList=%v", json, watchList), func(t *testing.T) {
				f := newFake(t)
				f.json, f.watchList = json, watchList
				test(t, f)
			})
		}
	}
}

func TestFollowsEveryKind(t *testing.T) {
	variants(t, func(t *testing.T, f *fakeAPI) {
		f.set(node("n1", "10.244.1.0/24"), node("n2", "10.244.2.0/24"), pod("mine", "n1"), pod("other", "n2"),
			&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}},
			&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: corev1.ServiceSpec{ClusterIPs: []string{"10.96.0.1"}}},
			&discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web-1"}, AddressType: "IPv4"})
		r := start(t, f, Options{Node: "n1", Kinds: Kinds()})
		awaitClosed(t, r.complete)
		base := []string{"nodes/n1", "nodes/n2", "pods/default/mine", "namespaces/default", "services/default/web", "backends/default/web-1"}
		r.await(t, base...)

		f.set(node("n3", "10.244.3.0/24"), pod("late", "n1"), pod("far", "n2"))
		f.remove(node("n2", ""), pod("mine", "n1"))
		r.await(t, "nodes/n1", "nodes/n3", "pods/default/late", "namespaces/default", "services/default/web", "backends/default/web-1")
		n := node("n3", "10.244.33.0/24")
		f.set(n)
		r.until(t, "the changed CIDR", func() bool {
			n, _ := r.get(model.NodeKey("n3")).(*model.Node)
			return n != nil && n.PodCIDRs[0].String() == "10.244.33.0/24" && len(n.Addrs) == 2
		})
		for _, st := range r.Status() {
			if !st.Synced || st.Err != nil {
				t.Errorf("status %+v", st)
			}
		}
		if r.reports() != "" {
			t.Errorf("reported: %s", r.reports())
		}
	})
}

func TestWatchesOnlyWhatIsAsked(t *testing.T) {
	f := newFake(t)
	f.set(node("n1", "10.244.1.0/24"), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}})
	r := start(t, f, Options{Kinds: []model.Kind{model.KindNode}})
	awaitClosed(t, r.complete)
	r.await(t, "nodes/n1")
	if n := f.count(""); n != 1 || f.count("/api/v1/nodes?") != 1 {
		t.Errorf("%d requests, want the one watch list: %v", n, f.requests)
	}
	if _, err := New(f.config(), Options{Kinds: []model.Kind{model.KindDevice}}, r.sink, func() {}, slog.Default()); err == nil {
		t.Error("a kind that is not the API server's was accepted")
	}
}

func TestLongListsComeInPages(t *testing.T) {
	f := newFake(t)
	f.watchList = false
	for i := range 3*pageSize + 1 {
		f.set(node(fmt.Sprintf("n%04d", i), "10.244.1.0/24"))
	}
	r := start(t, f, Options{Kinds: []model.Kind{model.KindNode}})
	awaitClosed(t, r.complete)
	if n := len(strings.Fields(r.keys())); n != 3*pageSize+1 {
		t.Errorf("%d nodes", n)
	}
	if n := f.count("continue="); n != 3 {
		t.Errorf("%d requests for further pages, want 3", n)
	}
}

func TestSurvivesALostConnection(t *testing.T) {
	variants(t, func(t *testing.T, f *fakeAPI) {
		f.set(node("n1", "10.244.1.0/24"), node("n2", "10.244.2.0/24"))
		r := start(t, f, Options{Kinds: []model.Kind{model.KindNode}})
		awaitClosed(t, r.complete)
		r.watching(t, f)
		lists := f.count("sendInitialEvents") + f.count("limit=")

		f.fail(func(w http.ResponseWriter) { panic(http.ErrAbortHandler) })
		f.set(node("n3", "10.244.3.0/24"))
		f.remove(node("n1", ""))
		f.fail(nil)
		r.await(t, "nodes/n2", "nodes/n3")
		if n := f.count("sendInitialEvents") + f.count("limit="); n != lists {
			t.Errorf("%d complete lists, want %d: it could have continued", n, lists)
		}
	})
}

func TestSurvivesAnExpiredVersion(t *testing.T) {
	variants(t, func(t *testing.T, f *fakeAPI) {
		f.set(node("n1", "10.244.1.0/24"), node("n2", "10.244.2.0/24"))
		r := start(t, f, Options{Kinds: []model.Kind{model.KindNode}})
		awaitClosed(t, r.complete)
		r.watching(t, f)
		f.fail(func(w http.ResponseWriter) { w.WriteHeader(http.StatusServiceUnavailable) })
		f.remove(node("n1", ""))
		f.set(node("n3", "10.244.3.0/24"))
		f.compact()
		f.fail(nil)
		r.await(t, "nodes/n2", "nodes/n3")
	})
}

func TestServerAwayAtStart(t *testing.T) {
	f := newFake(t)
	f.set(node("n1", "10.244.1.0/24"))
	f.fail(func(w http.ResponseWriter) { w.WriteHeader(http.StatusInternalServerError) })
	r := start(t, f, Options{Kinds: []model.Kind{model.KindNode, model.KindPod}})
	deadline := time.Now().Add(20 * time.Second)
	for r.reports() == "" && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond) // nothing is written that could be awaited
	}
	if got := r.reports(); strings.Count(got, "\n") != 0 || !strings.Contains(got, "cannot be used: the last known objects are used, ") || !strings.Contains(got, "HTTP status 500") {
		t.Errorf("reports of the outage:\n%s", got)
	}
	if p := r.Problems(); len(p) != 2 || !strings.Contains(p[0], "watch nodes: HTTP status 500") {
		t.Errorf("problems %q", p)
	}
	for _, st := range r.Status() {
		if st.Synced || st.Err == nil {
			t.Errorf("status %+v", st)
		}
	}
	select {
	case <-r.complete:
		t.Fatal("complete without having seen anything")
	default:
	}
	if !r.Away() {
		t.Error("not away")
	}
	f.fail(nil)
	awaitClosed(t, r.complete)
	r.await(t, "nodes/n1")
	if r.Away() {
		t.Error("away although complete")
	}
}

// TestServerThatDoesNotAnswer: a network that swallows packets gives no error for a long time.
func TestServerThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts nothing: TCP connects, TLS waits
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := &rest.Config{Host: "https://" + l.Addr().String(), TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	r := startWith(t, cfg, Options{Kinds: []model.Kind{model.KindNode}})
	began := time.Now()
	for !r.Away() {
		if time.Since(began) > 20*time.Second {
			t.Fatal("not away")
		}
		time.Sleep(50 * time.Millisecond)
	}
	if p := strings.Join(r.Problems(), "\n"); !strings.Contains(p, "watch nodes: API server "+l.Addr().String()+": no answer (since ") {
		t.Errorf("after %s: problems %q", time.Since(began), p)
	}
}

func TestMalformedObjectIsReportedOnce(t *testing.T) {
	variants(t, func(t *testing.T, f *fakeAPI) {
		f.set(node("bad", "10.244.1.0"), node("good", "10.244.2.0/24"))
		r := start(t, f, Options{Kinds: []model.Kind{model.KindNode}})
		awaitClosed(t, r.complete)
		r.await(t, "nodes/bad", "nodes/good")
		n := node("bad", "10.244.1.0")
		n.Labels["again"] = "1"
		f.set(n, node("last", "10.244.3.0/24"))
		r.await(t, "nodes/bad", "nodes/good", "nodes/last")
		want := `node bad: spec.podCIDRs: "10.244.1.0" is not a prefix in CIDR notation: used without what was not understood`
		if got := r.reports(); got != want {
			t.Errorf("reported %q, want %q", got, want)
		}
		if p := r.Problems(); len(p) != 1 || !strings.HasPrefix(want, p[0]) {
			t.Errorf("problems %q", p)
		}
		f.set(node("bad", "10.244.1.0/24"), node("end", "10.244.4.0/24"))
		r.await(t, "nodes/bad", "nodes/end", "nodes/good", "nodes/last")
		if p := r.Problems(); len(p) != 0 {
			t.Errorf("problems %q although all is right", p)
		}
	})
}

func TestBurstIsFewWrites(t *testing.T) {
	f := newFake(t)
	f.set(node("n0", "10.244.1.0/24"))
	r := start(t, f, Options{Kinds: []model.Kind{model.KindPod}, Node: "n0"})
	awaitClosed(t, r.complete)
	var want []string
	var pods []runtime.Object
	for i := range 250 {
		p := pod(fmt.Sprintf("p%03d", i), "n0")
		pods = append(pods, p)
		want = append(want, "pods/default/"+p.Name)
	}
	f.set(pods...)
	r.await(t, want...)
	r.sink.mu.Lock()
	defer r.sink.mu.Unlock()
	if r.writes > 60 {
		t.Errorf("%d transactions for 250 events", r.writes)
	}
}

func TestPodByName(t *testing.T) {
	for _, json := range []bool{false, true} {
		f := newFake(t)
		f.json = json
		f.set(pod("web", "n1"))
		s, err := New(f.config(), Options{Kinds: []model.Kind{model.KindNode}}, newSink(), func() {}, slog.Default())
		if err != nil {
			t.Fatal(err)
		}
		p, err := s.PodByName(t.Context(), "default", "web")
		if err != nil || p.Node != "n1" || p.Name != "web" {
			t.Errorf("got %+v, %v", p, err)
		}
		if _, err := s.PodByName(t.Context(), "default", "none"); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "default/none") {
			t.Errorf("got %v, want ErrNotFound that names the pod", err)
		}
		f.fail(func(w http.ResponseWriter) { w.WriteHeader(http.StatusForbidden) })
		if _, err := s.PodByName(t.Context(), "default", "web"); err == nil || errors.Is(err, ErrNotFound) {
			t.Errorf("got %v from a server that forbids", err)
		}
	}
}

func TestConfig(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(file, []byte(`apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: k, user: u}}]
clusters: [{name: k, cluster: {server: "https://10.0.0.1:6443"}}]
users: [{name: u, user: {token: secret}}]
`), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := Config(file, "")
	if err != nil || cfg.Host != "https://10.0.0.1:6443" || cfg.BearerToken != "secret" {
		t.Errorf("got %v, %v", cfg, err)
	}
	if cfg, err = Config(file, "https://127.0.0.1:6444"); err != nil || cfg.Host != "https://127.0.0.1:6444" || cfg.BearerToken != "secret" {
		t.Errorf("override: got %v, %v", cfg, err)
	}
	if _, err = Config(filepath.Join(dir, "none"), ""); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("missing file: %v", err)
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, err = Config("", ""); err == nil || !strings.Contains(err.Error(), "no kubeconfig is set") {
		t.Errorf("nothing at all: %v", err)
	}
	if cfg, err = Config("", "https://127.0.0.1:6444"); err != nil || cfg.Host != "https://127.0.0.1:6444" || cfg.BearerTokenFile == "" {
		t.Errorf("override without service variables: %v, %v", cfg, err)
	}
}
