//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/internal/netset"
	"weft/test/e2e/cluster"
)

// fixture is a namespace of one test in a cluster.
type fixture struct {
	*testing.T
	*cluster.Cluster
	ctx context.Context
	ns  string
}

// newFixture makes a namespace, which is deleted with its pods when the test ends.
func newFixture(t *testing.T, c *cluster.Cluster, limit time.Duration) *fixture {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	name := strings.ToLower(strings.Map(func(r rune) rune {
		if r == '/' || r == '_' {
			return '-'
		}
		return r
	}, t.Name()))
	name += fmt.Sprintf("-%d", time.Now().Unix()%100000) // another one if a kept cluster is tested again
	f := &fixture{t, c, ctx, name}
	f.kubectl("create", "namespace", name)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if _, err := c.Kubectl(ctx, "delete", "namespace", name, "--ignore-not-found"); err != nil {
			t.Error(err)
		}
	})
	return f
}

// kubectl runs kubectl and fails the test if it fails.
func (f *fixture) kubectl(args ...string) string {
	f.Helper()
	out, err := f.Kubectl(f.ctx, args...)
	if err != nil {
		f.Fatal(err)
	}
	return out
}

// in runs a command in a pod.
func (f *fixture) in(pod string, args ...string) (string, error) {
	return f.Kubectl(f.ctx, append([]string{"-n", f.ns, "exec", "-q", pod, "--"}, args...)...)
}

// pod is what tests want to know of a pod.
type pod struct {
	Name, Node string
	IPs        []netip.Addr
	Ready      bool
	Restarts   int
}

// address returns the pod's address of a family.
func (p pod) address(f netset.Family) netip.Addr { return netset.First(p.IPs, f) }

// pods lists the namespace's pods by node and name.
func (f *fixture) pods(selector string) []pod {
	f.Helper()
	return listPods(f.T, f.ctx, f.Cluster, "-n", f.ns, "-l", selector)
}

func listPods(t *testing.T, ctx context.Context, c *cluster.Cluster, args ...string) []pod {
	t.Helper()
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Spec     struct{ NodeName string }
			Status   struct {
				PodIPs            []struct{ IP netip.Addr }
				Conditions        []struct{ Type, Status string }
				ContainerStatuses []struct{ RestartCount int }
			}
		}
	}
	if err := c.Get(ctx, &list, append([]string{"pods"}, args...)...); err != nil {
		t.Fatal(err)
	}
	var pods []pod
	for _, i := range list.Items {
		p := pod{Name: i.Metadata.Name, Node: i.Spec.NodeName}
		for _, a := range i.Status.PodIPs {
			p.IPs = append(p.IPs, a.IP)
		}
		for _, c := range i.Status.Conditions {
			p.Ready = p.Ready || c.Type == "Ready" && c.Status == "True"
		}
		for _, c := range i.Status.ContainerStatuses {
			p.Restarts += c.RestartCount
		}
		pods = append(pods, p)
	}
	slices.SortFunc(pods, func(a, b pod) int { return strings.Compare(a.Node+a.Name, b.Node+b.Name) })
	return pods
}

// manifest reads a file of testdata with @NAMESPACE@, @IMAGE@ and the given pairs replaced.
func (f *fixture) manifest(file string, pairs ...string) string {
	f.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		f.Fatal(err)
	}
	pairs = append(pairs, "@NAMESPACE@", f.ns, "@IMAGE@", cluster.ToolboxImage)
	return strings.NewReplacer(pairs...).Replace(string(b))
}

// apply applies a file of testdata.
func (f *fixture) apply(file string, pairs ...string) {
	f.Helper()
	if err := f.Apply(f.ctx, f.manifest(file, pairs...)); err != nil {
		f.Fatal(err)
	}
}

// echoPods starts one pod on each node that answers HTTP on 8080 and echoes on 9000, and returns them.
func (f *fixture) echoPods() []pod {
	f.Helper()
	f.apply("echo.yaml")
	f.kubectl("-n", f.ns, "rollout", "status", "daemonset/echo", "--timeout=120s")
	pods := f.pods("app=echo")
	if len(pods) != f.Nodes {
		f.Fatalf("%d pods run on %d nodes", len(pods), f.Nodes)
	}
	return pods
}

// eventually calls check until it returns nil, and fails the test with its last error when the time is over.
func (f *fixture) eventually(limit time.Duration, check func() error) time.Duration {
	f.Helper()
	begin := time.Now()
	for {
		err := check()
		if err == nil {
			return time.Since(begin)
		}
		if time.Since(begin) > limit || f.ctx.Err() != nil {
			f.Fatalf("not within %s: %v", limit, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func decode[T any](t *testing.T, s string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(s), &v); err != nil {
		t.Fatalf("%v in %q", err, s)
	}
	return v
}
