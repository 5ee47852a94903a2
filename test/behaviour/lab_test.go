//go:build behaviour

// Package behaviour proves what users are promised on whole nodes: real agents, the real plugin and real
// packets in a lab of namespaces. It tests no package by itself; run it with `make test`, or
// `go test -tags behaviour ./test/behaviour` as root.
package behaviour

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// programs are built once for all tests.
var programs = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "weft-behaviour-")
	if err != nil {
		return "", err
	}
	for _, p := range [][3]string{
		{"weft", "./cmd/weft", "N"},
		{"weft-N", "./cmd/weft", "N"},
		{"weft-N+1", "./cmd/weft", "N+1"},
		{"weft-cni", "./cmd/weft-cni", "N"},
		{"traffic", "./test/e2e/traffic", "N"},
	} {
		name, pkg := p[0], p[1]
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.version="+p[2], "-o", filepath.Join(dir, name), pkg)
		cmd.Dir, cmd.Env = "../..", append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s: %w\n%s", pkg, err, out)
		}
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := programs(); err == nil {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

// lab is one running lab.
type lab struct {
	*testing.T
	name, bin string
	missed    []string // what did not become true in time
}

// up starts a lab that ends with the test.
func up(t *testing.T, args ...string) *lab {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{T: t, name: strings.ToLower(strings.NewReplacer("Test", "b-", "/", "-").Replace(t.Name())), bin: bin}
	t.Cleanup(func() {
		if t.Failed() {
			for _, n := range []string{"node1", "node2"} {
				out, _ := l.try("node", n, "agent", "logs")
				t.Logf("agent of %s:\n%s", n, tail(out))
			}
			for _, m := range l.missed { // again, at the end, where a reader of a cut log finds it
				t.Log(m)
			}
		}
		l.run("down")
	})
	if _, err := l.try("up", args...); err != nil {
		t.Fatal(err)
	}
	return l
}

func tail(s string) string {
	lines := strings.Split(s, "\n")
	return strings.Join(lines[max(0, len(lines)-25):], "\n")
}

// command is `weft lab VERB --name LAB …`.
func (l *lab) command(verb string, args ...string) *exec.Cmd {
	return exec.Command(filepath.Join(l.bin, "weft"), append([]string{"lab", verb, "--name", l.name}, args...)...)
}

func (l *lab) try(verb string, args ...string) (string, error) {
	cmd := l.command(verb, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &out, &errs, time.Second
	kill := time.AfterFunc(40*time.Second, func() { _ = cmd.Process.Kill() })
	defer kill.Stop()
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("weft lab %s %v: %w: %s", verb, args, err, errs.String())
	}
	return out.String(), nil
}

func (l *lab) run(verb string, args ...string) string {
	l.Helper()
	out, err := l.try(verb, args...)
	if err != nil {
		l.Error(err)
	}
	return out
}

// node runs a command on a node.
func (l *lab) node(node string, args ...string) string {
	l.Helper()
	return l.run("node", append([]string{node, "--"}, args...)...)
}

// pods starts one traffic server a line "name node [hostPort] [label=value…]" and waits for them.
func (l *lab) pods(lines ...string) {
	l.Helper()
	var b strings.Builder
	for _, line := range lines {
		f := strings.Fields(line)
		port := ""
		var labels []string
		for _, x := range f[2:] {
			if k, v, ok := strings.Cut(x, "="); ok {
				labels = append(labels, k+": "+v)
			} else {
				port = ", hostPort: " + x
			}
		}
		fmt.Fprintf(&b, `---
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: default, labels: {%s}}
spec:
  nodeName: %s
  containers: [{name: c, image: none, command: [%s, serve, "7"], ports: [{containerPort: 7%s}, {containerPort: 7, protocol: UDP%s}]}]
`, f[0], strings.Join(labels, ", "), f[1], "/opt/weft/bin/traffic", port, port)
	}
	l.apply(b.String())
}

// apply applies a manifest and waits for its pods.
func (l *lab) apply(manifest string) {
	l.Helper()
	cmd := l.command("apply", "-f", "-")
	cmd.Stdin = strings.NewReader(manifest)
	if out, err := cmd.CombinedOutput(); err != nil {
		l.Fatalf("apply: %v\n%s", err, out)
	}
}

// addrs returns a pod's addresses, IPv4 first.
func (l *lab) addrs(pod string) []string {
	l.Helper()
	var p struct {
		Status struct{ PodIPs []struct{ IP string } }
	}
	out := l.run("get", "pods", pod, "-o", "json")
	if err := json.Unmarshal([]byte(out), &p); err != nil {
		l.Fatalf("pod %s: %v\n%s", pod, err, out)
	}
	var as []string
	for _, ip := range p.Status.PodIPs {
		as = append(as, ip.IP)
	}
	if len(as) == 0 {
		l.Fatalf("pod %s has no address:\n%s", pod, out)
	}
	return as
}

// join writes an address and a port as a dialler wants them.
func join(addr, port string) string {
	if strings.Contains(addr, ":") {
		return "[" + addr + "]:" + port
	}
	return addr + ":" + port
}

// report is what the traffic program says at the end.
type report struct {
	Flows, Messages int
	Failed          []string
	Lost            int
	LostTo          map[string]int
	Gap             time.Duration
	Last, LastUDP   time.Time // when any flow had its last answer
}

// stream keeps traffic going from a pod while do runs.
func (l *lab) stream(pod string, conns int, to []string, do func()) report {
	l.Helper()
	p := l.traffic("exec", pod, append([]string{"stream", fmt.Sprint(conns)}, to...)...)
	p.ready()
	do()
	var r report
	p.end(&r)
	return r
}

// process is a running traffic program.
type process struct {
	*lab
	what string
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *json.Decoder
}

// traffic starts the traffic program in a pod ("exec"), or on a node ("node").
func (l *lab) traffic(verb, where string, args ...string) *process {
	l.Helper()
	p := &process{lab: l, what: fmt.Sprintf("traffic %v at %s", args, where)}
	program := "/opt/weft/bin/traffic"
	if where == "outside" {
		program = "/run/traffic"
	}
	p.cmd = l.command(verb, append([]string{where, "--", program}, args...)...)
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		l.Fatal(err)
	}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		l.Fatal(err)
	}
	p.out, p.cmd.Stderr = json.NewDecoder(out), os.Stderr
	if err := p.cmd.Start(); err != nil {
		l.Fatal(err)
	}
	return p
}

// ready waits until it says that it is at work.
func (p *process) ready() {
	p.Helper()
	var ready struct{ Ready bool }
	if err := p.out.Decode(&ready); err != nil || !ready.Ready {
		_ = p.cmd.Wait()
		p.Fatalf("%s did not start: %v", p.what, err)
	}
}

// end closes its input and takes its report.
func (p *process) end(report any) {
	p.Helper()
	_ = p.in.Close()
	if err := p.out.Decode(report); err != nil {
		p.Fatalf("no report of %s: %v", p.what, err)
	}
	_ = p.cmd.Wait()
}

// eventually polls until ok, and fails after the limit. It returns how long it took.
func (l *lab) eventually(limit time.Duration, what string, ok func() bool) time.Duration {
	l.Helper()
	began := time.Now()
	for !ok() {
		if time.Since(began) > limit {
			l.missed = append(l.missed, fmt.Sprintf("%s: not within %s", what, limit))
			l.Error(l.missed[len(l.missed)-1])
			return limit
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(began)
}
