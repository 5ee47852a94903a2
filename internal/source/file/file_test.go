package file

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/internal/model"
)

// sink is a Writer that holds the rows.
type sink struct {
	mu      sync.Mutex
	rows    map[model.Kind][]model.Object // guarded by mu
	reports []string                      // guarded by mu
	src     *Source
	changed chan struct{} // guarded by mu: closed and replaced by each write
}

func (s *sink) note(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *sink) Replace(kind model.Kind, objs []model.Object) { s.note(func() { s.rows[kind] = objs }) }

func (s *sink) Refuse(o model.Object, problem error) {
	s.note(func() {
		s.rows[o.Key().Kind] = append(s.rows[o.Key().Kind], o)
		s.reports = append(s.reports, "refused: "+problem.Error())
	})
}

func (s *sink) report(what, action string) {
	s.note(func() { s.reports = append(s.reports, what+" ("+action+")") })
}

// state is what is there, on one line; a node with its first CIDR.
func (s *sink) state() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, objs := range s.rows {
		for _, o := range objs {
			text := o.Key().String()
			if n, ok := o.(*model.Node); ok && len(n.PodCIDRs) > 0 {
				text += "=" + n.PodCIDRs[0].String()
			}
			out = append(out, text)
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func (s *sink) until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
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
			t.Fatalf("waited for\n%s\nhave\n%s\nreports\n%s", what, s.state(), strings.Join(s.reports, "\n"))
		}
	}
}

func (s *sink) await(t *testing.T, want string) {
	t.Helper()
	s.until(t, want, func() bool { return s.state() == want })
}

func (s *sink) awaitReport(t *testing.T, want string) {
	t.Helper()
	s.until(t, want, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return slices.ContainsFunc(s.reports, func(r string) bool { return strings.Contains(r, want) })
	})
}

// start runs a source on dir.
func start(t *testing.T, dir string) *sink {
	t.Helper()
	s := &sink{rows: map[model.Kind][]model.Object{}, changed: make(chan struct{})}
	complete := make(chan struct{})
	src := New(dir, s, func() { close(complete) }, s.report, slog.New(slog.DiscardHandler))
	s.src = src
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- src.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
	})
	select {
	case <-complete:
	case <-time.After(10 * time.Second):
		t.Fatal("not complete")
	}
	return s
}

// write puts a file in place in one step.
func write(t *testing.T, dir, name, text string) {
	t.Helper()
	tmp := filepath.Join(dir, "."+name+".tmp")
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func node(name, cidr string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Node\nmetadata: {name: %s}\nspec: {podCIDRs: [%q]}\n", name, cidr)
}

func pod(name string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec: {nodeName: n1}\n", name)
}

func TestFollowsADirectory(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "nodes.yaml", node("n1", "10.244.1.0/24")+"---\n"+node("n2", "10.244.2.0/24"))
	write(t, dir, "pods.yml", "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: a, namespace: x}}\n")
	write(t, dir, "notes.txt", node("no", "10.0.0.0/24"))
	write(t, dir, "pods.yml~", pod("no"))
	if err := os.MkdirAll(filepath.Join(dir, "sub.yaml"), 0o700); err != nil {
		t.Fatal(err)
	}
	s := start(t, dir)
	s.await(t, "nodes/n1=10.244.1.0/24 nodes/n2=10.244.2.0/24 pods/x/a")

	write(t, dir, "ns.json", `{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}}`)
	s.await(t, "namespaces/x nodes/n1=10.244.1.0/24 nodes/n2=10.244.2.0/24 pods/x/a")
	write(t, dir, "nodes.yaml", node("n1", "10.244.9.0/24"))
	s.await(t, "namespaces/x nodes/n1=10.244.9.0/24 pods/x/a")
	remove(t, filepath.Join(dir, "pods.yml"))
	s.await(t, "namespaces/x nodes/n1=10.244.9.0/24")
	if err := os.WriteFile(filepath.Join(dir, "nodes.yaml"), []byte(node("n3", "10.244.3.0/24")), 0o600); err != nil {
		t.Fatal(err)
	}
	s.await(t, "namespaces/x nodes/n3=10.244.3.0/24")
	remove(t, filepath.Join(dir, "nodes.yaml"))
	remove(t, filepath.Join(dir, "ns.json"))
	s.await(t, "")
	if len(s.reports) > 0 {
		t.Errorf("reported %q", s.reports)
	}
}

func TestBrokenDocumentKeepsItsLastVersion(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "all.yaml", node("n1", "10.244.1.0/24")+"---\n"+pod("a")+"---\n"+pod("b"))
	s := start(t, dir)
	s.await(t, "nodes/n1=10.244.1.0/24 pods/default/a pods/default/b")

	// No YAML: the other documents of the file are followed, what is missing is kept.
	write(t, dir, "all.yaml", node("n1", "10.244.7.0/24")+"---\nkind: [\n---\n"+pod("c"))
	s.await(t, "nodes/n1=10.244.7.0/24 pods/default/a pods/default/b pods/default/c")
	s.awaitReport(t, "all.yaml:6: not YAML: line 6: ")

	// A malformed field: the last good version of the object.
	write(t, dir, "all.yaml", node("n1", "10.244.8")+"---\n"+pod("c"))
	s.awaitReport(t, `all.yaml:1: node n1: spec.podCIDRs: "10.244.8" is not a prefix in CIDR notation`)
	s.await(t, "nodes/n1=10.244.7.0/24 pods/default/c")

	// An empty file is one that is being written.
	write(t, dir, "all.yaml", "")
	s.awaitReport(t, "all.yaml: the file is empty")
	s.await(t, "nodes/n1=10.244.7.0/24 pods/default/c")

	write(t, dir, "all.yaml", node("n1", "10.244.1.0/24"))
	s.await(t, "nodes/n1=10.244.1.0/24")
	n := len(s.reports)
	write(t, dir, "other.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n---\n"+pod("d"))
	s.awaitReport(t, "other.yaml:1: apps/v1 Deployment: not a kind that weft uses (ignored)")
	s.await(t, "nodes/n1=10.244.1.0/24 pods/default/d")
	write(t, dir, "third.yaml", pod("e"))
	s.await(t, "nodes/n1=10.244.1.0/24 pods/default/d pods/default/e")
	if len(s.reports) != n+1 {
		t.Errorf("an old problem was reported again: %q", s.reports[n:])
	}
}

func TestBrokenFromTheStart(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", "\tnot yaml")
	write(t, dir, "b.yaml", pod("b"))
	if err := os.Symlink("nowhere", filepath.Join(dir, "c.yaml")); err != nil {
		t.Fatal(err)
	}
	s := start(t, dir)
	s.await(t, "pods/default/b")
	s.awaitReport(t, "a.yaml:1: not YAML: ")
}

func TestDuplicatesNameBothFiles(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", node("n1", "10.244.1.0/24")+"---\n"+node("n1", "10.244.3.0/24"))
	write(t, dir, "b.yaml", pod("x")+"---\n"+node("n1", "10.244.2.0/24"))
	s := start(t, dir)
	s.await(t, "nodes/n1=10.244.1.0/24 pods/default/x")
	s.awaitReport(t, "b.yaml:6: nodes/n1 is in a.yaml:1 already (the one in a.yaml is used)")
	s.awaitReport(t, "a.yaml:6: Node n1 is in line 1 already (the first one is used)")
	if p := s.src.Problems(); len(p) != 2 {
		t.Errorf("problems %q", p)
	}
	remove(t, filepath.Join(dir, "a.yaml"))
	s.await(t, "nodes/n1=10.244.2.0/24 pods/default/x")
	write(t, dir, "b.yaml", pod("z")) // a scan that begins after the last one has ended
	s.await(t, "pods/default/z")
	if p := s.src.Problems(); len(p) != 0 {
		t.Errorf("problems %q although all is right", p)
	}
}

// TestConfigMapMount swaps the directory behind the links as the kubelet does.
func TestConfigMapMount(t *testing.T) {
	dir := t.TempDir()
	version := func(name, text string) {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "nodes.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(name, filepath.Join(dir, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	version("..v1", node("n1", "10.244.1.0/24"))
	if err := os.Symlink("..data/nodes.yaml", filepath.Join(dir, "nodes.yaml")); err != nil {
		t.Fatal(err)
	}
	s := start(t, dir)
	s.await(t, "nodes/n1=10.244.1.0/24")
	version("..v2", node("n1", "10.244.2.0/24"))
	s.await(t, "nodes/n1=10.244.2.0/24")
}

func TestDirectoryGone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "objects")
	s := &sink{rows: map[model.Kind][]model.Object{}, changed: make(chan struct{})}
	completed := make(chan struct{}, 9)
	src := New(dir, s, func() { completed <- struct{}{} }, s.report, slog.New(slog.DiscardHandler))
	if err := src.Run(t.Context()); err == nil || !strings.Contains(err.Error(), dir) {
		t.Fatalf("no directory: %v", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "a.yaml", pod("a"))
	done := make(chan error)
	go func() { done <- src.Run(t.Context()) }()
	<-completed
	s.await(t, "pods/default/a")
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil || !strings.Contains(err.Error(), "the directory is gone") {
		t.Fatalf("directory renamed: %v", err)
	}
	s.await(t, "pods/default/a")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- src.Run(ctx) }()
	<-completed
	s.await(t, "")
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

const cnp = `apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: a}
specs:
- endpointSelector: {}
  ingress: [{fromEntities: [world]}]
- endpointSelector: {}
  ingress: [{fromEntities: [cluster]}]
`

// TestPoliciesOfEveryLanguage: all kinds of a directory are read, several objects a file.
func TestPoliciesOfEveryLanguage(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: a, namespace: x}
spec: {podSelector: {}}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: a}
spec: {tier: Admin, priority: 1, subject: {namespaces: {}}}
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: a, namespace: x}
spec: {selector: all()}
---
apiVersion: crd.antrea.io/v1beta1
kind: Tier
metadata: {name: ops}
spec: {priority: 20}
---
apiVersion: networking.k8s.aws/v1alpha1
kind: ApplicationNetworkPolicy
metadata: {name: a, namespace: x}
spec: {podSelector: {}, policyTypes: [Egress]}
---
apiVersion: networking.gke.io/v1alpha1
kind: FQDNNetworkPolicy
metadata: {name: a, namespace: x}
spec: {podSelector: {}, egress: []}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicyList
items:
- metadata: {name: b, namespace: x}
- {metadata: {name: c, namespace: x}, spec: {podSelector: {matchLabels: {a: b}}}}
---
`+cnp)
	s := start(t, dir)
	s.await(t, "policies/cilium.io/CiliumNetworkPolicy/default/a policies/cilium.io/CiliumNetworkPolicy/default/a/1 "+
		"policies/networking.gke.io/FQDNNetworkPolicy/x/a policies/networking.k8s.aws/ApplicationNetworkPolicy/x/a "+
		"policies/networking.k8s.io/NetworkPolicy/x/a policies/networking.k8s.io/NetworkPolicy/x/b policies/networking.k8s.io/NetworkPolicy/x/c "+
		"policies/policy.networking.k8s.io/ClusterNetworkPolicy//a policies/projectcalico.org/NetworkPolicy/x/a tiers/antrea/ops")
	if len(s.reports) > 0 {
		t.Errorf("reported %q", s.reports)
	}
	remove(t, filepath.Join(dir, "a.yaml"))
	s.await(t, "")
}

// TestBrokenPolicies: what is wrong is shown and hurts nothing else; a former version stays with all its parts.
func TestBrokenPolicies(t *testing.T) {
	const broken = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: b}\nspec: {podSelector: 7}\n"
	dir := t.TempDir()
	write(t, dir, "a.yaml", broken+"---\n"+node("n1", "10.244.1.0/24")+"---\n"+cnp)
	s := start(t, dir)
	const others = "nodes/n1=10.244.1.0/24 policies/cilium.io/CiliumNetworkPolicy/default/a policies/cilium.io/CiliumNetworkPolicy/default/a/1"
	const shown = others + " policies/networking.k8s.io/NetworkPolicy/default/b" // what was refused is in the sink, too
	s.await(t, shown)
	s.awaitReport(t, "refused: NetworkPolicy.networking.k8s.io default/b: spec.podSelector")
	s.awaitReport(t, "a.yaml:1: NetworkPolicy.networking.k8s.io default/b: spec.podSelector")

	write(t, dir, "a.yaml", broken+"---\n"+strings.Replace(cnp, "endpointSelector: {}", "endpointSelector: 7", 2))
	s.awaitReport(t, "CiliumNetworkPolicy.cilium.io default/a: ")
	s.until(t, "no node", func() bool { return !strings.Contains(s.state(), "nodes/") })
	if s.state() != strings.TrimPrefix(shown, "nodes/n1=10.244.1.0/24 ") {
		t.Errorf("have %s", s.state())
	}
	write(t, dir, "a.yaml", strings.Replace(broken, "podSelector: 7", "ingress: [{from: [{ipBlock: {cidr: x}}]}]", 1))
	s.awaitReport(t, "spec.ingress[0].from[0].ipBlock")
	s.awaitReport(t, "(used without what was not understood)")
}
