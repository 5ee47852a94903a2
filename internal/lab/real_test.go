package lab_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// binDir holds weft and weft-cni, built once for all tests of this package.
var binDir string

func TestMain(m *testing.M) {
	code := 1
	defer func() { os.Exit(code) }()
	dir, err := os.MkdirTemp("", "weft-lab-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	defer os.RemoveAll(dir)
	binDir = dir
	if os.Geteuid() == 0 {
		build := exec.Command("go", "build", "-o", dir, "weft/cmd/weft", "weft/cmd/weft-cni")
		build.Stderr = os.Stderr
		if build.Run() != nil {
			return
		}
	}
	code = m.Run()
}

// world is a directory of labs of one test; at its end nothing may be left of them.
type world struct {
	t   *testing.T
	dir string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	w := &world{t, filepath.Join(t.TempDir(), "labs")}
	t.Cleanup(func() {
		w.weft("lab", "down", "--all")
		w.nothingLeft()
	})
	return w
}

func (w *world) command(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(binDir, "weft"), args...)
	cmd.Env = append(os.Environ(), "WEFT_LAB_DIR="+w.dir)
	return cmd
}

func (w *world) try(args ...string) (string, error) {
	b, err := w.command(args...).CombinedOutput()
	return string(b), err
}

// weft runs the command line and fails the test if it fails.
func (w *world) weft(args ...string) string {
	w.t.Helper()
	out, err := w.try(args...)
	if err != nil {
		w.t.Fatalf("weft %s: %v\n%s%s", strings.Join(args, " "), err, out, w.logs())
	}
	return out
}

// logs are the ends of all logs, for failures.
func (w *world) logs() string {
	var b strings.Builder
	files, _ := filepath.Glob(w.dir + "/*/hosts/*/log/*.log")
	for _, f := range files {
		text, _ := os.ReadFile(f)
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		fmt.Fprintf(&b, "--- %s\n%s\n", f, strings.Join(lines[max(0, len(lines)-5):], "\n"))
	}
	return b.String()
}

func (w *world) apply(lab, manifest string) string {
	w.t.Helper()
	file := filepath.Join(w.t.TempDir(), "m.yaml")
	if err := os.WriteFile(file, []byte(manifest), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return w.weft("lab", "apply", "--name", lab, "-f", file)
}

// nothingLeft looks for processes, cgroups, mounts and files of this test's labs.
func (w *world) nothingLeft() {
	w.t.Helper()
	exes, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, e := range exes {
		if target, _ := os.Readlink(e); !strings.HasPrefix(target, binDir) {
			continue
		}
		pid := filepath.Base(filepath.Dir(e))
		cmdline, _ := os.ReadFile("/proc/" + pid + "/cmdline")
		w.t.Errorf("process %s is left: %q", pid, strings.ReplaceAll(string(cmdline), "\x00", " "))
	}
	if _, err := os.Stat(w.dir); err == nil {
		w.t.Errorf("%s is left", w.dir)
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if strings.Contains(string(mounts), w.dir) {
		w.t.Errorf("mounts are left below %s", w.dir)
	}
	var groups []string
	for _, lab := range []string{"one", "two"} {
		more, _ := filepath.Glob("/sys/fs/cgroup/*/weft-lab/" + w.lab(lab) + "-*")
		groups = append(groups, more...)
	}
	if len(groups) > 0 {
		w.t.Errorf("cgroups are left: %v", groups)
	}
}

// lab makes a name unique to this test process: others run labs on this machine too.
func (w *world) lab(name string) string { return name + "-" + strconv.Itoa(os.Getpid()) }

const twoPods = `
apiVersion: v1
kind: Pod
metadata: {name: a}
spec: {nodeName: node1, containers: [{name: c, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: b}
spec: {nodeName: node2, containers: [{name: c, ports: [{containerPort: 80}]}, {name: run, command: [sh, -c, 'echo started; exec sleep 1000']}]}
`

func TestLifeOfALab(t *testing.T) {
	w := newWorld(t)
	one := w.lab("one")
	began := time.Now()
	w.weft("lab", "up", "--name", one, "--nodes", "3")
	t.Logf("3 nodes up in %v", time.Since(began).Round(time.Millisecond))
	pids := w.weft("lab", "node", "--name", one, "node1", "--", "readlink", "/proc/1/ns/net")
	w.weft("lab", "up", "--name", one) // again: the same lab
	if now := w.weft("lab", "node", "--name", one, "node1", "--", "readlink", "/proc/1/ns/net"); now != pids {
		t.Errorf("up again made another node: %s, %s", pids, now)
	}
	w.apply(one, twoPods)
	w.weft("lab", "probe", "--name", one, "a", "b:80")
	if out := w.weft("lab", "exec", "--name", one, "b", "--", "uname", "-n"); out != "b\n" {
		t.Errorf("host name in the pod: %q", out)
	}
	if out := w.weft("lab", "logs", "--name", one, "b"); out != "started\n" {
		t.Errorf("log: %q", out)
	}
	out, err := w.try("lab", "exec", "--name", one, "b", "--", "sh", "-c", "exit 7")
	if code := w.exitCode(err); code != 7 {
		t.Errorf("exit code %d, %s", code, out)
	}
	if out := w.weft("lab", "get", "--name", one, "pods", "-o", "json"); !strings.Contains(out, `"phase": "Running"`) {
		t.Errorf("get: %s", out)
	}
	if out := w.weft("lab", "list"); !strings.Contains(out, one) {
		t.Errorf("list: %s", out)
	}
	w.weft("lab", "delete", "--name", one, "pod", "a", "b")
	if out := w.weft("lab", "node", "--name", one, "node1", "--", "sh", "-c", "ls /run/netns /var/lib/weft-lab/pods"); out != "/run/netns:\n\n/var/lib/weft-lab/pods:\n" {
		t.Errorf("left of deleted pods: %q", out)
	}
}

func (w *world) exitCode(err error) int {
	if err == nil {
		return 0
	}
	if e := (*exec.ExitError)(nil); errors.As(err, &e) {
		return e.ExitCode()
	}
	return -1
}

// Two labs have the same addresses and do not know of each other.
func TestTwoLabs(t *testing.T) {
	w := newWorld(t)
	one, two := w.lab("one"), w.lab("two")
	up := func(name string) *exec.Cmd {
		cmd := w.command("lab", "up", "--name", name, "--nodes", "2")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	for _, c := range []*exec.Cmd{up(one), up(two)} {
		if err := c.Wait(); err != nil {
			t.Fatalf("%v: %v\n%s", c.Args, err, w.logs())
		}
	}
	w.apply(one, twoPods)
	w.apply(two, twoPods)
	w.weft("lab", "down", "--name", one)
	w.weft("lab", "probe", "--name", two, "a", "b:80")
	out, err := w.try("lab", "probe", "--name", one, "a", "b:80")
	if err == nil || !strings.Contains(out, "no such lab") {
		t.Errorf("probe of a lab that is down: %s", out)
	}
}

// Whatever is killed, up completes it again and down leaves nothing.
func TestKilled(t *testing.T) {
	w := newWorld(t)
	one := w.lab("one")
	// The starter dies on the way, at several moments.
	for _, after := range []int{5, 30, 80, 200} {
		cmd := w.command("lab", "up", "--name", one, "--nodes", "2")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(after) * time.Millisecond) // the moment is what is tested
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	w.weft("lab", "up", "--name", one, "--nodes", "2")
	w.apply(one, twoPods)
	w.weft("lab", "probe", "--name", one, "a", "b:80")

	// A pod's pid 1 dies: the pod is made again, with a new network.
	before := w.podIP(one, "a")
	w.killInit(w.dir + "/" + one + "/hosts/node1/fs/var/lib/weft-lab/pods/*")
	w.until("the pod is another", func() bool {
		_, err := w.try("lab", "probe", "--name", one, "b", "a:80")
		return err == nil && w.podIP(one, "a") != before
	})
	// A node's kubelet dies: its pods go on.
	before = w.podIP(one, "a")
	w.weft("lab", "node", "--name", one, "node1", "kubelet", "kill")
	w.weft("lab", "delete", "--name", one, "pod", "b")
	w.weft("lab", "probe", "--name", one, "node2", "a:80")
	if w.podIP(one, "a") != before {
		t.Error("the pod did not outlive its kubelet")
	}
	// A node dies, and is found missing.
	w.killInit(w.dir + "/" + one + "/hosts/node2")
	if out := w.weft("lab", "get", "--name", one, "nodes"); !strings.Contains(out, "node2  Down") {
		t.Errorf("get nodes: %s", out)
	}
	w.weft("lab", "up", "--name", one)
	w.apply(one, twoPods)
	w.weft("lab", "probe", "--name", one, "a", "b:80")
	// All die at once; down (at the test's end) has only what is on disk.
	w.killInit(w.dir + "/" + one + "/hosts/*")
}

// killInit sends SIGKILL to the pid 1 of each host directory that matches.
func (w *world) killInit(pattern string) {
	w.t.Helper()
	dirs, _ := filepath.Glob(pattern)
	if len(dirs) == 0 {
		w.t.Fatalf("no host matches %s", pattern)
	}
	for _, d := range dirs {
		if pid := initOf(d); pid > 0 {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// initOf finds the process whose last argument is the directory, seen from inside or outside.
func initOf(dir string) int {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		b, _ := os.ReadFile(f)
		args := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
		last := args[len(args)-1]
		if len(args) > 2 && args[len(args)-2] == "host-init" && (last == dir || filepath.Base(last) == filepath.Base(dir) && strings.Contains(dir, last)) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			return pid
		}
	}
	return 0
}

func (w *world) podIP(lab, pod string) string {
	out, err := w.try("lab", "get", "--name", lab, "pods", pod, "-o", "yaml")
	if err != nil {
		return ""
	}
	for _, line := range strings.Split(out, "\n") {
		if ip, ok := strings.CutPrefix(strings.TrimSpace(line), "podIP: "); ok {
			return ip
		}
	}
	return ""
}

// until waits for a condition that no event tells of from outside.
func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for !ok() {
		select {
		case <-ctx.Done():
			w.t.Fatalf("not in time: %s\n%s", what, w.logs())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// An agent that ends again and again is told of with its last words, before the time is over.
func TestAgentThatCannotRun(t *testing.T) {
	w := newWorld(t)
	config := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(config, []byte("paths: {run: /proc/nope}"), 0o600); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	out, err := w.try("lab", "up", "--name", w.lab("one"), "--nodes", "1", "--config", config, "--timeout", "50s")
	if err == nil || !strings.Contains(out, "mkdir /proc/nope") || !strings.Contains(out, "the agent of node1 is not ready: it exited with 1") {
		t.Errorf("%v\n%s", err, out)
	}
	if d := time.Since(began); d > 20*time.Second {
		t.Errorf("it took %v", d)
	}
	out, err = w.try("lab", "get", "--name", w.lab("one"), "nodes")
	if err != nil || !strings.Contains(out, "node1  NotReady") {
		t.Errorf("%v\n%s", err, out)
	}
}
