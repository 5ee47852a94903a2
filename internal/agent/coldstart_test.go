package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"weft/internal/api"
	"weft/internal/model"
	"weft/internal/run"
	"weft/internal/selector"
	"weft/internal/source/cache"
	"weft/internal/store"
	"weft/internal/testkit"
)

// agentEnv has the configuration for TestMain to run an agent instead of tests: it needs a mount
// namespace of its own for its bpffs.
const agentEnv = "WEFT_TEST_AGENT"

func TestMain(m *testing.M) {
	text := os.Getenv(agentEnv)
	if text == "" {
		os.Exit(m.Run())
	}
	var cfg model.Config
	err := json.Unmarshal([]byte(text), &cfg)
	if err == nil {
		cfg.SetDefaults()
		err = Run(context.Background(), cfg, "test", os.Stderr)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// startAgent runs an agent in the namespace until the test ends.
func startAgent(t *testing.T, ns *testkit.Netns, cfg model.Config) {
	t.Helper()
	text, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), agentEnv+"="+string(text))
	cmd.Stderr = &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	ns.Do(t, func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("the agent's log:\n%s", log.String())
		}
	})
}

// TestColdStartWithTheAPIServerAway starts an agent that has nothing but its disk: it serves ADD and DEL from the
// objects that were known last.
func TestColdStartWithTheAPIServerAway(t *testing.T) {
	ns := testkit.New(t)
	dir := t.TempDir()
	ns.IP(t, "link add eth0 type veth peer name wire")
	ns.IP(t, "addr add 10.9.0.1/24 dev eth0")
	ns.IP(t, "link set eth0 up")
	ns.IP(t, "link set wire up")

	before, err := store.New(run.System())
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	before.Writer("kube").Upsert(
		&model.Node{Name: "n1", Addrs: []netip.Addr{netip.MustParseAddr("10.9.0.1")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}},
		&model.Node{Name: "n2", Addrs: []netip.Addr{netip.MustParseAddr("10.9.0.2")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24")}},
		&model.Pod{PodRef: model.PodRef{Namespace: "default", Name: "web"}, Node: "n1", WantAddrs: []netip.Addr{netip.MustParseAddr("10.244.1.77")}},
		&model.Policy{
			Ref: model.Ref{Group: "networking.k8s.io", Kind: "NetworkPolicy", Namespace: "default", Name: "closed"}, Set: true,
			Tier: model.TierRef{Name: "normal", Order: model.TierNormal}, Subject: selector.Equal(selector.NamespaceName, "default"), Ingress: &model.Section{Isolates: true},
		},
	)
	state := filepath.Join(dir, "state")
	if err := cache.Save(state, before.Snapshot()); err != nil {
		t.Fatal(err)
	}
	kubeconfig := filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(kubeconfig, []byte(`{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: k, user: u}}],
		clusters: [{name: k, cluster: {server: "http://10.9.0.1:6443"}}], users: [{name: u, user: {token: x}}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := model.Config{
		NodeName: "n1", Source: model.SourceConfig{Kubeconfig: kubeconfig}, CNI: model.CNI{BinDir: "off"}, MetricsAddress: "off", LogLevel: "debug",
		Paths: model.Paths{Run: filepath.Join(dir, "run"), State: state, BPF: filepath.Join(dir, "bpf")},
	}
	pod := testkit.Named(t, "weft-cold-start") // before the agent, which has its own mounts
	began := time.Now()
	startAgent(t, ns, cfg)
	socket := filepath.Join(dir, "run", "weft.sock")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var s api.Status
	for !s.Ready {
		err := api.Call(ctx, socket, api.MethodStatus, struct{}{}, &s)
		if ctx.Err() != nil {
			t.Fatalf("not ready: %+v, %v", s, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Logf("ready after %s", time.Since(began).Round(time.Millisecond))
	if len(s.Problems) == 0 || !strings.Contains(strings.Join(s.Problems, "\n"), "watch nodes: API server 10.9.0.1:6443: ") {
		t.Errorf("status does not say that the API server is away: %q", s.Problems)
	}

	attach := api.Attachment{ContainerID: "c1", IfName: "eth0", Netns: pod.Path(), Network: "weft"}
	var reply api.AddReply
	if err := api.Call(ctx, socket, api.MethodCNIAdd, api.AddRequest{Attachment: attach, Pod: api.PodRef{Namespace: "default", Name: "web"}}, &reply); err != nil {
		t.Fatalf("ADD: %v", err)
	}
	if len(reply.IPs) != 1 || reply.IPs[0].Addr.String() != "10.244.1.77" {
		t.Errorf("the annotation that was known was not honoured: %+v", reply)
	}
	ns.Run(t, "ping", "-c1", "-W2", "10.244.1.77")
	if sets := show(ctx, t, socket, "policysets"); !strings.Contains(sets, "Done") || !strings.Contains(sets, "closed") {
		t.Errorf("the policy that was known is not in force: %s", sets)
	}
	if routes := ns.IP(t, "route"); !strings.Contains(routes, "10.244.2.0/24") {
		t.Errorf("no route to the other node:\n%s", routes)
	}
	// The API server comes back and knows another cluster: what is gone goes, the pod notices nothing.
	serveNodes(t, ns, "n1", "n3")
	ping := ns.Run(t, "ping", "-i0.01", "-c200", "-W2", "10.244.1.77")
	if !strings.Contains(ping, " 0% packet loss") {
		t.Errorf("packets were lost while the API server came back:\n%s", ping)
	}
	for len(s.Problems) > 0 {
		before := s
		s = api.Status{}
		if err := api.Call(ctx, socket, api.MethodStatus, struct{}{}, &s); err != nil {
			t.Fatalf("%v, before that %+v", err, before)
		}
		time.Sleep(20 * time.Millisecond)
	}
	for sets := "closed"; strings.Contains(sets, "closed"); time.Sleep(20 * time.Millisecond) {
		if sets = show(ctx, t, socket, "policysets"); ctx.Err() != nil {
			t.Fatalf("a policy that is gone is in force: %s", sets)
		}
	}
	for routes := ""; strings.Contains(routes, "10.244.2.0/24") || !strings.Contains(routes, "10.244.3.0/24"); time.Sleep(20 * time.Millisecond) {
		if routes = ns.IP(t, "route"); ctx.Err() != nil {
			t.Fatalf("routes after the API server came back:\n%s", routes)
		}
	}
	if err := api.Call(ctx, socket, api.MethodCNIDel, attach, nil); err != nil {
		t.Errorf("DEL: %v", err)
	}
	if links := ns.IP(t, "link"); strings.Contains(links, reply.HostIf) {
		t.Errorf("DEL left %s:\n%s", reply.HostIf, links)
	}
}

// show returns a table as text.
func show(ctx context.Context, t *testing.T, socket, table string) string {
	t.Helper()
	var out api.Table
	if err := api.Call(ctx, socket, api.MethodShow, api.ShowRequest{Table: table}, &out); err != nil {
		t.Errorf("show %s: %v", table, err)
	}
	return fmt.Sprint(out.Rows)
}

// serveNodes is an API server at 10.9.0.1:6443 that has these nodes and nothing else, and in which nothing changes.
func serveNodes(t *testing.T, ns *testkit.Netns, names ...string) {
	t.Helper()
	var items []string
	for _, name := range names {
		number := strings.TrimPrefix(name, "n")
		items = append(items, fmt.Sprintf(`{"metadata": {"name": %q}, "spec": {"podCIDRs": ["10.244.%s.0/24"]},
			"status": {"addresses": [{"type": "InternalIP", "address": "10.9.0.%s"}]}}`, name, number, number))
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch q := r.URL.Query(); {
		case q.Get("sendInitialEvents") != "":
			w.WriteHeader(http.StatusUnprocessableEntity)
		case q.Get("watch") != "":
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		case r.URL.Path == "/api/v1/nodes":
			fmt.Fprintf(w, `{"metadata": {"resourceVersion": "1"}, "items": [%s]}`, strings.Join(items, ","))
		default:
			fmt.Fprint(w, `{"metadata": {"resourceVersion": "1"}, "items": []}`)
		}
	})
	var l net.Listener
	var err error
	ns.Do(t, func() { l, err = net.Listen("tcp", "10.9.0.1:6443") })
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
}
