package kube

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"weft/internal/model"
	"weft/internal/testkit"
	"weft/test/e2e/binaries"
)

// realAPI is a kube-apiserver with its etcd in a network namespace of the test.
type realAPI struct {
	ns   *testkit.Netns
	bin  string
	dir  string
	http *http.Client
	api  *exec.Cmd

	mu    sync.Mutex
	asked []string // guarded by mu
}

const (
	realAddr = "10.99.0.1"
	realURL  = "https://" + realAddr + ":6443"
)

// newReal starts both, or skips where `make e2e` has not built them yet.
func newReal(t *testing.T) *realAPI {
	t.Helper()
	testkit.RequireRoot(t)
	bin, err := binaries.Dir()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"etcd", "kube-apiserver"} {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			t.Skipf("%s is not built (make e2e builds it)", name)
		}
	}
	r := &realAPI{ns: testkit.New(t), bin: bin, dir: t.TempDir()}
	r.ns.IP(t, "addr add "+realAddr+"/32 dev lo")
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	pemKey := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	for name, text := range map[string][]byte{"sa.key": pemKey, "tokens": []byte("secret,admin,1,system:masters\n")} {
		if err := os.WriteFile(filepath.Join(r.dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.run(t, "etcd", "--data-dir="+filepath.Join(r.dir, "etcd"), "--unsafe-no-fsync", "--listen-peer-urls=http://127.0.0.1:2380", "--log-level=error")
	r.start(t)
	if r.http, err = rest.HTTPClientFor(r.config(t)); err != nil {
		t.Fatal(err)
	}
	return r
}

// run starts a program, which ends with the test.
func (r *realAPI) run(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(filepath.Join(r.bin, name), args...)
	log, err := os.Create(filepath.Join(r.dir, name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Dir, cmd.Stdout, cmd.Stderr = r.dir, log, log
	r.ns.Do(t, func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = log.Close()
	})
	return cmd
}

// start starts the API server and waits until it is ready.
func (r *realAPI) start(t *testing.T, extra ...string) {
	t.Helper()
	args := []string{
		"--etcd-servers=http://127.0.0.1:2379", "--bind-address=" + realAddr, "--advertise-address=" + realAddr, "--cert-dir=" + r.dir,
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + r.dir + "/sa.key",
		"--service-account-signing-key-file=" + r.dir + "/sa.key", "--token-auth-file=" + r.dir + "/tokens", "--authorization-mode=AlwaysAllow",
		"--disable-admission-plugins=ServiceAccount,NamespaceLifecycle", "--service-cluster-ip-range=10.96.0.0/16", "--endpoint-reconciler-type=none",
	}
	r.api = r.run(t, "kube-apiserver", append(args, extra...)...)
	client, err := rest.HTTPClientFor(r.config(t))
	if err != nil {
		t.Fatal(err)
	}
	defer client.CloseIdleConnections()
	for deadline := time.Now().Add(90 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		resp, err := client.Get(realURL + "/readyz")
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(filepath.Join(r.dir, "kube-apiserver.log"))
			t.Fatalf("API server is not ready: %v\n%s", err, log[max(0, len(log)-3000):])
		}
	}
}

// stop kills the API server.
func (r *realAPI) stop(t *testing.T) {
	t.Helper()
	if err := r.api.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = r.api.Wait()
}

func (r *realAPI) config(t *testing.T) *rest.Config {
	return &rest.Config{
		Host: realURL, BearerToken: "secret", TLSClientConfig: rest.TLSClientConfig{Insecure: true},
		Dial: func(ctx context.Context, network, addr string) (c net.Conn, err error) {
			r.ns.Do(t, func() { c, err = new(net.Dialer).DialContext(ctx, network, addr) })
			return c, err
		},
	}
}

// do sends one request and fails the test if it is not answered well.
func (r *realAPI) do(t *testing.T, method, path string, o kruntime.Object) {
	t.Helper()
	var body io.Reader
	if o != nil {
		b, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, realURL+path, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := r.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if answer, _ := io.ReadAll(resp.Body); resp.StatusCode >= 300 {
		t.Fatalf("%s %s: %s: %s", method, path, resp.Status, answer)
	}
}

const (
	nodesPath = "/api/v1/nodes"
	podsPath  = "/api/v1/namespaces/default/pods"
)

func realPod(name, node string) *corev1.Pod {
	p := pod(name, node)
	p.Spec.Containers = []corev1.Container{{Name: "c", Image: "i"}}
	return p
}

// startReal runs a source against the server.
func startReal(t *testing.T, r *realAPI, o Options) running {
	t.Helper()
	cfg := r.config(t)
	cfg.Wrap(func(rt http.RoundTripper) http.RoundTripper { return &recording{rt, r} })
	return startWith(t, cfg, o)
}

// recording notes how a source asks.
type recording struct {
	http.RoundTripper
	r *realAPI
}

func (rec *recording) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := rec.RoundTripper.RoundTrip(req)
	if err == nil {
		rec.r.mu.Lock()
		defer rec.r.mu.Unlock()
		rec.r.asked = append(rec.r.asked, fmt.Sprintf("%d %s %s", resp.StatusCode, resp.Header.Get("Content-Type"), req.URL.RawQuery))
	}
	return resp, err
}

// count returns how many requests of sources contained every one of the words.
func (r *realAPI) count(words ...string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, a := range r.asked {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(a, w) }) {
			n++
		}
	}
	return n
}

// TestRealAPIServer is the whole life against a real server: all kinds, changes, a killed server, a
// server without watch lists, and 1,000 nodes that come and go.
func TestRealAPIServer(t *testing.T) {
	if testing.Short() {
		t.Skip("half a minute")
	}
	r := newReal(t)
	r.do(t, "POST", nodesPath, node("n1", "10.244.1.0/24"))
	r.do(t, "POST", nodesPath, node("n2", "10.244.2.0/24"))
	r.do(t, "POST", podsPath, realPod("mine", "n1"))
	r.do(t, "POST", podsPath, realPod("other", "n2"))
	r.do(t, "POST", "/api/v1/namespaces/default/services", &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.9", Ports: []corev1.ServicePort{{Port: 80}}},
	})
	r.do(t, "POST", "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "web-1", Labels: map[string]string{"kubernetes.io/service-name": "web"}}, AddressType: "IPv4",
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.244.1.2"}}}, Ports: []discoveryv1.EndpointPort{{}},
	})

	began := time.Now()
	w := startReal(t, r, Options{Node: "n1", Kinds: []model.Kind{model.KindNode, model.KindPod, model.KindBackends}})
	awaitClosed(t, w.complete)
	t.Logf("complete after %s", time.Since(began).Round(time.Millisecond))
	w.await(t, "nodes/n1", "nodes/n2", "pods/default/mine", "backends/default/web-1")
	if got := r.count("200", protobuf, "sendInitialEvents=true"); got != 3 || r.count("") != 3 {
		t.Errorf("a server with watch lists was not asked for three of them: %q", r.asked)
	}
	n := w.get(model.NodeKey("n1")).(*model.Node)
	if n.PodCIDRs[0].String() != "10.244.1.0/24" || len(n.Addrs) != 2 || n.Labels["kubernetes.io/os"] != "linux" {
		t.Errorf("node %+v", n)
	}
	if b := w.get(model.Key{Kind: model.KindBackends, Name: "default/web-1"}).(*model.Backends); b.Service != "web" || !b.Backends[0].Ready {
		t.Errorf("backends %+v", b)
	}
	if p, err := w.PodByName(t.Context(), "default", "other"); err != nil || p.Node != "n2" || p.UID == "" {
		t.Errorf("pod by name: %+v, %v", p, err)
	}

	r.do(t, "POST", nodesPath, node("n3", "10.244.3.0/24"))
	r.do(t, "DELETE", podsPath+"/mine?gracePeriodSeconds=0", nil)
	w.await(t, "nodes/n1", "nodes/n2", "nodes/n3", "backends/default/web-1")

	r.stop(t)
	r.start(t, "--feature-gates=WatchList=false")
	r.do(t, "DELETE", nodesPath+"/n3", nil)
	w.await(t, "nodes/n1", "nodes/n2", "backends/default/web-1")

	old := startReal(t, r, Options{Kinds: Kinds()}) // has to list
	awaitClosed(t, old.complete)
	// More where the new server did not know the version from which the first source wanted to continue.
	if got := r.count("200", protobuf, "limit=500"); got < len(Kinds()) {
		t.Errorf("%d lists, want %d: %q", got, len(Kinds()), r.asked)
	}
	r.do(t, "POST", nodesPath, node("n4", "10.244.4.0/24"))
	w.await(t, "nodes/n1", "nodes/n2", "nodes/n4", "backends/default/web-1")
	old.until(t, "the new node and the service", func() bool {
		have := strings.Fields(old.keys())
		return slices.Contains(have, "nodes/n4") && slices.Contains(have, "services/default/web") && slices.Contains(have, "namespaces/default") &&
			slices.Contains(have, "pods/default/other")
	})
	if w.reports()+old.reports() != "" {
		t.Errorf("reported: %s%s", w.reports(), old.reports())
	}

	churn := func(n int) {
		for i := range n {
			name := fmt.Sprintf("churn-%d", i)
			r.do(t, "POST", nodesPath, node(name, "10.245.0.0/24"))
			r.do(t, "DELETE", nodesPath+"/"+name, nil)
		}
		r.do(t, "POST", nodesPath, node("end", "10.246.0.0/24"))
		w.until(t, "the end", func() bool { return w.get(model.NodeKey("end")) != nil })
		r.do(t, "DELETE", nodesPath+"/end", nil)
		w.await(t, "nodes/n1", "nodes/n2", "nodes/n4", "backends/default/web-1")
	}
	churn(1000) // fills what is bounded
	before := heap()
	churn(1000)
	after := heap()
	t.Logf("heap before 1000 nodes came and went: %d bytes, after: %d", before, after)
	if after > before+before/20 {
		t.Errorf("the heap grew from %d to %d bytes", before, after)
	}
	runtime.KeepAlive(w)
}
