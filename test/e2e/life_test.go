//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// report is what test/e2e/traffic prints.
type report struct {
	Flows, Messages, Lost int
	Failed                []string
	Gap                   time.Duration
}

// stream runs traffic from a pod to all others of each family while act happens, and checks that no connection
// ended.
func (f *fixture) stream(pods []pod, act func()) report {
	f.Helper()
	args := []string{"-n", f.ns, "exec", "-q", "-i", pods[0].Name, "--", "traffic", "stream", "5"}
	for _, p := range pods[1:] {
		for _, a := range p.IPs {
			args = append(args, netip.AddrPortFrom(a, 9000).String())
		}
	}
	cmd := f.KubectlCommand(f.ctx, args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		f.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		f.Fatal(err)
	}
	var errout strings.Builder
	cmd.Stderr = &errout
	if err := cmd.Start(); err != nil {
		f.Fatal(err)
	}
	lines := bufio.NewReader(out)
	if _, err := lines.ReadString('\n'); err != nil {
		_ = cmd.Wait()
		f.Fatalf("traffic does not start: %v: %s", err, errout.String())
	}
	begin := time.Now()
	act()
	took := time.Since(begin)
	if err := in.Close(); err != nil {
		f.Fatal(err)
	}
	last, err := lines.ReadString('\n')
	if err != nil && err != io.EOF {
		f.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		f.Fatalf("traffic: %v: %s", err, errout.String())
	}
	var r report
	if err := json.Unmarshal([]byte(last), &r); err != nil {
		f.Fatalf("traffic: %v in %q", err, last)
	}
	if len(r.Failed) > 0 {
		f.Errorf("%d of %d connections ended: %v", len(r.Failed), r.Flows, r.Failed[:min(3, len(r.Failed))])
	}
	if r.Lost > lostLimit {
		f.Errorf("%d datagrams were lost, allowed are %d", r.Lost, lostLimit)
	}
	if r.Gap > gapLimit {
		f.Errorf("%s without an answer, allowed are %s", r.Gap, gapLimit)
	}
	f.Logf("%s of traffic: %d flows, %d messages, %d datagrams lost, longest gap %s", took.Round(time.Second), r.Flows, r.Messages, r.Lost, r.Gap.Round(time.Millisecond))
	return r
}

// What an interruption may be. Lost packets are counted, of one in 10 ms for each UDP flow: a path that is down for
// the blink of an eye shows there. The gap includes what two busy cores that run a whole cluster do to a process.
const (
	lostLimit = 5
	gapLimit  = 3 * time.Second
)

// streamPods returns an echo pod on each node, and a second one on the first pod's node by which traffic on one
// node is tested.
func (f *fixture) streamPods() []pod {
	f.Helper()
	pods := f.echoPods()
	f.apply("neighbour.yaml", "@NODE@", pods[0].Node)
	f.kubectl("-n", f.ns, "wait", "--for=condition=Ready", "pod/neighbour", "--timeout=60s")
	return append(pods, f.pods("app=neighbour")...)
}

// The agents are killed on all nodes: no connection ends, and afterwards pods come and go as before.
func TestAgentKilled(t *testing.T) {
	needsWeft(t)
	f := newFixture(t, shared, 5*time.Minute)
	pods := f.streamPods()
	f.stream(pods, func() {
		restarts := f.agentRestarts()
		for _, n := range f.NodeNames() {
			f.killAgent(n)
		}
		f.waitAgents(restarts + f.Nodes)
	})
	f.kubectl("-n", f.ns, "rollout", "restart", "daemonset/echo")
	f.kubectl("-n", f.ns, "rollout", "status", "daemonset/echo", "--timeout=120s")
	checkConnectivity(f, f.echoPods())
}

// killAgent kills the agent on a node with SIGKILL and returns when it is gone.
func (f *fixture) killAgent(node string) {
	f.Helper()
	out, err := f.Exec(f.ctx, node, "sh", "-c", `for p in /proc/[0-9]*; do [ "$(tr '\0' ' ' <$p/cmdline 2>/dev/null | cut -d' ' -f1,2)" = "/usr/bin/weft agent" ] && kill -9 ${p#/proc/} && echo ${p#/proc/}; done; true`)
	if err != nil || len(strings.Fields(out)) != 1 {
		f.Fatalf("kill the agent on %s: %q %v", node, out, err)
	}
}

func (f *fixture) agents() []pod {
	f.Helper()
	return listPods(f.T, f.ctx, f.Cluster, "-n", "kube-system", "-l", "app.kubernetes.io/name=weft")
}

// agentRestarts is how often agents have been restarted by their kubelets.
func (f *fixture) agentRestarts() (n int) {
	f.Helper()
	for _, p := range f.agents() {
		n += p.Restarts
	}
	return n
}

// waitAgents waits until every agent is Ready, and as many have been restarted.
func (f *fixture) waitAgents(restarts int) {
	f.Helper()
	f.eventually(2*time.Minute, func() error {
		ready := 0
		for _, p := range f.agents() {
			if p.Ready {
				ready++
			}
		}
		if n := f.agentRestarts(); ready != f.Nodes || n < restarts {
			return fmt.Errorf("%d of %d agents are Ready, after %d restarts", ready, f.Nodes, n)
		}
		return nil
	})
}

// The DaemonSet is upgraded, and taken back, under traffic: no connection ends.
func TestUpgrade(t *testing.T) {
	needsWeft(t)
	f := newFixture(t, shared, 8*time.Minute)
	pods := f.streamPods()
	if err := f.LoadWeft(f.ctx, versionNext); err != nil {
		t.Fatal(err)
	}
	f.stream(pods, func() {
		for _, v := range []string{versionNext, versionN} {
			m, err := f.RenderChart(f.ctx, v)
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Apply(f.ctx, m); err != nil {
				t.Fatal(err)
			}
			f.kubectl("-n", "kube-system", "rollout", "status", "daemonset/weft", "--timeout=60s")
			if out := f.kubectl("-n", "kube-system", "exec", "daemonset/weft", "--", "weft", "version"); !strings.Contains(out, v) {
				t.Errorf("the agents' version is %q, want %s", out, v)
			}
		}
	})
	checkConnectivity(f, pods[:f.Nodes])
}

// Without the API server a node still starts and removes pods, even if its agent was started after the loss.
func TestAPIServerAway(t *testing.T) {
	needsWeft(t)
	f := newFixture(t, shared, 5*time.Minute)
	node := "n1"
	pods := f.streamPods()
	cp, err := f.Host("cp")
	if err != nil {
		t.Fatal(err)
	}
	back := func() {
		if err := cp.StartProcess(f.ctx, "kube-apiserver"); err != nil {
			t.Error(err)
		}
		f.eventually(time.Minute, func() error { _, err := f.Kubectl(f.ctx, "get", "--raw", "/readyz"); return err })
	}
	// It would finish its clients' watches first, for a minute; when the time is over, it is killed.
	soon, cancel := context.WithTimeout(f.ctx, time.Second)
	defer cancel()
	if err := cp.StopProcess(soon, "kube-apiserver"); err != nil {
		t.Fatal(err)
	}
	defer back()
	f.killAgent(node)
	// A static pod needs nobody but the kubelet: ADD.
	const dir = "/etc/kubernetes/manifests/"
	f.host(node, "rm", "-rf", "/run/offline")
	f.host(node, "sh", "-c", "mkdir -p "+dir+" && cat >"+dir+"offline.yaml <<'EOF'\n"+f.manifest("offline.yaml")+"\nEOF")
	begin := time.Now()
	var address string
	f.eventually(90*time.Second, func() error {
		out, err := f.Exec(f.ctx, node, "cat", "/run/offline/address")
		address = strings.TrimSpace(out)
		if err == nil && address == "" {
			err = fmt.Errorf("no address yet")
		}
		return err
	})
	t.Logf("a pod started without the API server, and the agent killed, after %s: %s", time.Since(begin).Round(100*time.Millisecond), address)
	for _, a := range strings.Fields(address) {
		f.host(node, "curl", "-sS", "--retry", "20", "--retry-delay", "1", "--retry-connrefused", "--max-time", "30", httpURL(netip.MustParseAddr(a), 8080, "/hostname"))
		if other := pods[1]; other.Node != node { // and from another node, whose agent was not restarted
			f.host(other.Node, "curl", "-sS", "--retry", "20", "--retry-delay", "1", "--retry-connrefused", "--max-time", "30", httpURL(netip.MustParseAddr(a), 8080, "/hostname"))
		}
	}
	before := f.links(node)
	f.host(node, "rm", dir+"offline.yaml") // DEL
	f.eventually(60*time.Second, func() error {
		if n := f.links(node); n != before-1 {
			return fmt.Errorf("%s has %d links, %d with the pod", node, n, before)
		}
		return nil
	})
}

// host runs a command on a node and fails the test if it fails.
func (f *fixture) host(node string, args ...string) string {
	f.Helper()
	out, err := f.Exec(f.ctx, node, args...)
	if err != nil {
		f.Fatal(err)
	}
	return out
}

// A node loses power and comes back: its pods get networks again, with addresses of their own.
func TestReboot(t *testing.T) {
	f := newFixture(t, shared, 5*time.Minute)
	before := f.echoPods()
	node := "n3"
	begin := time.Now()
	if err := f.StopNode(f.ctx, node); err != nil {
		t.Fatal(err)
	}
	if err := f.StartNode(f.ctx, node); err != nil {
		t.Fatal(err)
	}
	if ptp() {
		if err := f.InstallPTP(f.ctx); err != nil { // its routes were in the memory of the node
			t.Fatal(err)
		}
	}
	f.eventually(2*time.Minute, func() error {
		for _, p := range f.pods("app=echo") {
			if p.Node == node && p.Ready && p.Restarts >= 2 {
				return nil
			}
		}
		return fmt.Errorf("the pod on %s is not running again: %v", node, f.pods("app=echo"))
	})
	t.Logf("power cut to pods Ready: %s", time.Since(begin).Round(100*time.Millisecond))
	after := f.echoPods()
	seen := map[netip.Addr]string{}
	for _, p := range listPods(t, f.ctx, f.Cluster, "-A", "--field-selector=status.phase=Running") {
		for _, a := range p.IPs {
			if o := seen[a]; o != "" && !strings.HasPrefix(a.String(), "172.30.") && !strings.HasPrefix(a.String(), "fd00:172:") {
				t.Errorf("%s and %s both have %s", o, p.Name, a)
			}
			seen[a] = p.Name
		}
	}
	checkConnectivity(f, after)
	if len(before) != len(after) {
		t.Errorf("%d pods before, %d after", len(before), len(after))
	}
}
