package host_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/host"
)

// The test binary is the program that hosts execute.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "host-init" {
		fmt.Fprintln(os.Stderr, host.Init(os.Args[2]))
		os.Exit(1)
	}
	if len(os.Args) == 3 && os.Args[1] == "host-nested" {
		os.Exit(nested(os.Args[2]))
	}
	os.Exit(m.Run())
}

// nested starts a host with an overlay from inside another one, and writes to it.
func nested(dir string) int {
	ctx := context.Background()
	h, err := host.Start(ctx, dir, host.Spec{Name: "inner", Overlay: []string{"/etc"}}, "/proc/self/exe", "host-init")
	if err == nil {
		_, err = h.Output(ctx, "sh", "-c", "ls /etc/hostname && touch /etc/written")
		err = errors.Join(err, host.Destroy(ctx, dir))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func start(t *testing.T, spec host.Spec) *host.Host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	return startIn(t, filepath.Join(t.TempDir(), spec.Name), spec)
}

func startIn(t *testing.T, dir string, spec host.Spec) *host.Host {
	t.Helper()
	t.Cleanup(func() {
		if err := host.Destroy(context.Background(), dir); err != nil {
			t.Error(err)
		}
	})
	h, err := host.Start(t.Context(), dir, spec, "/proc/self/exe", "host-init")
	if err != nil {
		b, _ := os.ReadFile(filepath.Join(dir, "log/init.log"))
		t.Fatalf("%v\n%s", err, b)
	}
	return h
}

func out(t *testing.T, h *host.Host, args ...string) string {
	t.Helper()
	s, err := h.Output(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(s)
}

func nodeSpec(t *testing.T, name string) host.Spec {
	t.Helper()
	return host.Spec{
		Name: name, System: true, Cgroup: fmt.Sprintf("weft-test-%d/%s", os.Getpid(), name),
		Private: []string{"/var/lib", "/opt"}, Overlay: []string{"/etc"}, Volatile: []string{"/run"},
		Files:   map[string]string{"/etc/weft/config.yaml": "x: 1\n"},
		Masks:   map[string]string{"/proc/sys/kernel/panic": "10\n"},
		Sysctls: map[string]string{"net/ipv4/ip_forward": "1", "net/no/such": "1"},
		Env:     []string{"NODE=" + name},
	}
}

func TestHostHasItsOwnOfEverything(t *testing.T) {
	h := start(t, nodeSpec(t, "n1"))
	for _, c := range []struct{ cmd, want string }{
		{"uname -n", "n1"},
		{"cat /etc/weft/config.yaml", "x: 1"},
		{"cat /proc/sys/net/ipv4/ip_forward", "1"},
		{"cat /proc/sys/kernel/panic", "10"},
		{"echo $NODE", "n1"},
		{"tr '\\0' ' ' </proc/1/cmdline | cut -d' ' -f1,2", "/proc/self/exe host-init"},
		{"ls /sys/class/net", "lo"},
		{"stat -f -c %T /sys/fs/bpf", "bpf_fs"},
		{"ls /var/lib /opt", "/opt:\n\n/var/lib:"},
		{"ls /run/", ""},
		{"cut -d: -f3 /proc/self/cgroup | sort -u", "/"},
		{"echo new >/etc/only-here && cat /etc/only-here", "new"},
	} {
		if got := out(t, h, "sh", "-c", c.cmd); got != c.want {
			t.Errorf("%s:\n%q, want %q", c.cmd, got, c.want)
		}
	}
	if _, err := os.Stat("/etc/only-here"); err == nil {
		t.Error("a file written on the host is on the machine")
	}
	if b, _ := os.ReadFile("/proc/sys/kernel/panic"); strings.TrimSpace(string(b)) == "10" {
		t.Error("a mask changed the machine")
	}
	if again, err := host.Start(t.Context(), h.Dir(), nodeSpec(t, "n1"), "/bin/false"); err != nil || again.Pid() != h.Pid() {
		t.Errorf("second start: %v, %v", again, err)
	}
	// A restart keeps what is private and empties what is volatile.
	out(t, h, "sh", "-c", "touch /var/lib/kept /run/gone")
	if err := h.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := host.Open(h.Dir()); !errors.Is(err, host.ErrNotRunning) {
		t.Errorf("open after stop: %v", err)
	}
	h = startIn(t, h.Dir(), nodeSpec(t, "n1"))
	if got := out(t, h, "sh", "-c", "ls /var/lib /run; cat /etc/only-here"); got != "/run:\n\n/var/lib:\nkept\nnew" {
		t.Errorf("after a restart: %q", got)
	}
}

func TestDestroyLeavesNothing(t *testing.T) {
	spec := nodeSpec(t, "n1")
	spec.Processes = []host.Process{{Name: "sleep", Args: []string{"sh", "-c", "sleep 1000 & sleep 1000"}}}
	h := start(t, spec)
	// A command that joined, in its own session, is in the cgroup and dies as well.
	joined := exec.Command("sleep", "1000")
	if err := h.Start(joined); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- joined.Wait() }()
	if err := host.Destroy(t.Context(), h.Dir()); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil || err.Error() != "signal: killed" {
		t.Errorf("the joined command was not killed: %v", err)
	}
	if _, err := os.Stat(h.Dir()); err == nil {
		t.Error("the directory is left")
	}
	left, _ := filepath.Glob("/sys/fs/cgroup/*/" + filepath.Dir(spec.Cgroup))
	if len(left) > 0 {
		t.Errorf("cgroups left: %v", left)
	}
	if err := host.Destroy(t.Context(), h.Dir()); err != nil {
		t.Errorf("destroy twice: %v", err)
	}
}

func TestReadOnlyMachine(t *testing.T) {
	shared := t.TempDir()
	h := start(t, host.Spec{
		Name: "ro", ReadOnly: true, Private: []string{"/opt"}, Volatile: []string{"/run"}, Overlay: []string{"/etc"},
		Binds:     []host.Bind{{Source: shared, Target: "/run/shared"}},
		Masks:     map[string]string{"/etc/hosts": "x"},
		Processes: []host.Process{{Name: "p", Args: []string{"sh", "-c", "echo up; exec sleep 1000"}}},
	})
	for _, dir := range []string{"/opt", "/run", "/etc", "/run/shared"} {
		out(t, h, "touch", dir+"/written")
	}
	out(t, h, "sh", "-c", "echo y >/etc/hosts; echo 1 >/proc/sys/net/ipv4/ip_forward; echo >/dev/null")
	for _, dir := range []string{"/usr", "/root", shared} {
		if s, err := h.Output(t.Context(), "touch", dir+"/written"); err == nil || !strings.Contains(s, "Read-only file system") {
			t.Errorf("%s can be written: %s %v", dir, s, err)
		}
	}
	if _, err := os.Stat(shared + "/written"); err != nil {
		t.Error(err)
	}
	await(t, h, func(m map[string]host.Status) bool { return m["p"].State == host.Running })
}

// In a container the machine's files are themselves an overlay.
func TestDirectoryOnOverlay(t *testing.T) {
	h := start(t, host.Spec{Name: "outer", Overlay: []string{"/usr", "/etc"}})
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out(t, h, exe, "host-nested", "/usr/nested")
	if got := out(t, h, "sh", "-c", "ls -d /etc/written /usr/nested 2>/dev/null || true"); got != "" {
		t.Errorf("left in the outer host: %s", got)
	}
}

// await returns when a status of the host's processes satisfies ok.
func await(t *testing.T, h *host.Host, ok func(map[string]host.Status) bool) map[string]host.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	found := errors.New("found")
	var last map[string]host.Status
	err := h.Watch(ctx, func(list []host.Status) error {
		last = map[string]host.Status{}
		for _, st := range list {
			last[st.Name] = st
		}
		if ok(last) {
			return found
		}
		return nil
	})
	if !errors.Is(err, found) {
		t.Fatalf("%v; last: %+v", err, last)
	}
	return last
}

func TestSupervision(t *testing.T) {
	h := start(t, host.Spec{Name: "h", Volatile: []string{"/run"}, Processes: []host.Process{
		{Name: "first", Args: []string{"sh", "-c", "touch /run/first"}, Once: true},
		{Name: "server", Args: []string{"sh", "-c", "test -e /run/first && echo up && exec sleep 1000"}},
		{Name: "late", Args: []string{"sleep", "1000"}, WaitFor: "/run/late"},
		{Name: "job", Args: []string{"sh", "-c", "exit 3"}, Restart: host.RestartNever},
		{Name: "missing", Args: []string{"no-such-program"}, Restart: host.RestartNever},
	}})
	st := await(t, h, func(m map[string]host.Status) bool {
		return m["server"].State == host.Running && m["job"].State == host.Exited && m["missing"].State == host.Failed
	})
	if st["first"].State != host.Exited || st["job"].ExitCode != 3 || !strings.Contains(st["missing"].Message, "no-such-program") || st["late"].State != host.Waiting {
		t.Errorf("%+v", st)
	}
	out(t, h, "touch", "/run/late")
	await(t, h, func(m map[string]host.Status) bool { return m["late"].State == host.Running })

	if err := h.SignalProcess(t.Context(), "server", unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	st = await(t, h, func(m map[string]host.Status) bool {
		return m["server"].State == host.Running && m["server"].Restarts == 1
	})
	if st["server"].ExitCode != 128+9 {
		t.Errorf("exit code of a killed process: %+v", st["server"])
	}
	if err := h.StopProcess(t.Context(), "server"); err != nil {
		t.Fatal(err)
	}
	await(t, h, func(m map[string]host.Status) bool { return m["server"].State == host.Stopped })
	if err := h.SignalProcess(t.Context(), "server", unix.SIGKILL); err == nil {
		t.Error("a signal to a stopped process was accepted")
	}
	if err := h.StartProcess(t.Context(), "server"); err != nil {
		t.Fatal(err)
	}
	await(t, h, func(m map[string]host.Status) bool { return m["server"].State == host.Running })
	if err := h.RestartProcess(t.Context(), "server"); err != nil {
		t.Fatal(err)
	}
	await(t, h, func(m map[string]host.Status) bool {
		return m["server"].State == host.Running && m["server"].Restarts == 3
	})
	if err := h.AddProcess(t.Context(), host.Process{Name: "more", Args: []string{"sleep", "1000"}}); err != nil {
		t.Fatal(err)
	}
	await(t, h, func(m map[string]host.Status) bool { return m["more"].State == host.Running })
	if b, _ := os.ReadFile(h.LogFile("server")); !strings.HasPrefix(string(b), "up\n") {
		t.Errorf("log: %q", b)
	}
	if err := h.StartProcess(t.Context(), "nobody"); err == nil || !strings.Contains(err.Error(), `"nobody"`) {
		t.Errorf("unknown process: %v", err)
	}
}

func TestStopIgnoringSIGTERM(t *testing.T) {
	h := start(t, host.Spec{Name: "h", Processes: []host.Process{{Name: "deaf", Args: []string{"sh", "-c", "trap '' TERM; echo up; while :; do sleep 1000; done"}}}})
	await(t, h, func(m map[string]host.Status) bool { return m["deaf"].State == host.Running })
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := h.StopProcess(ctx, "deaf"); err != nil {
		t.Fatal(err)
	}
	await(t, h, func(m map[string]host.Status) bool { return m["deaf"].State == host.Stopped })
}

func TestWires(t *testing.T) {
	sw := start(t, host.Spec{Name: "sw"})
	a := startIn(t, filepath.Join(t.TempDir(), "a"), host.Spec{Name: "a"})
	p := netip.MustParsePrefix
	if err := sw.AddBridge("br1", 1400, p("10.1.0.1/24"), p("fd00:1::1/64")); err != nil {
		t.Fatal(err)
	}
	for range 2 { // idempotent
		err := host.Connect(sw, host.Port{Name: "a", MTU: 1400, Bridge: "br1"}, a, host.Port{
			Name: "eth0", MTU: 1400, Addrs: []netip.Prefix{p("10.1.0.2/24"), p("fd00:1::2/64")},
			Via: []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd00:1::1")},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := sw.AddRoute(p("10.9.0.0/16"), netip.MustParseAddr("10.1.0.2")); err != nil {
		t.Fatal(err)
	}
	if got := out(t, a, "cat", "/sys/class/net/eth0/mtu"); got != "1400" {
		t.Errorf("mtu %s", got)
	}
	for _, dst := range []string{"10.1.0.1", "fd00:1::1"} {
		out(t, a, "ping", "-c1", "-W2", dst)
	}
}

// A pod is a host in a network namespace that somebody else made.
func TestGivenNetns(t *testing.T) {
	outer := start(t, host.Spec{Name: "outer"})
	inner := startIn(t, filepath.Join(t.TempDir(), "inner"), host.Spec{Name: "inner", Netns: outer.Netns(), Masks: map[string]string{"/etc/hosts": "10.0.0.1 inner\n"}})
	a, _ := os.Readlink(outer.Netns())
	b, _ := os.Readlink(inner.Netns())
	if a != b || a == "" {
		t.Errorf("network namespaces %q and %q", a, b)
	}
	if got := out(t, inner, "sh", "-c", "uname -n; cat /etc/hosts"); got != "inner\n10.0.0.1 inner" {
		t.Errorf("%q", got)
	}
}

func TestErrors(t *testing.T) {
	h := start(t, host.Spec{Name: "h"})
	if _, err := h.Output(t.Context(), "no-such-program"); err == nil || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("%v", err)
	}
	if _, err := h.Output(t.Context(), "sh", "-c", "echo oops >&2; exit 4"); err == nil || !strings.Contains(err.Error(), "oops") {
		t.Errorf("%v", err)
	}
	dir := filepath.Join(t.TempDir(), "bad")
	_, err := host.Start(t.Context(), dir, host.Spec{Name: "bad", Binds: []host.Bind{{Source: "/no/such", Target: "/mnt"}}}, "/proc/self/exe", "host-init")
	if err == nil || !strings.Contains(err.Error(), "/no/such") {
		t.Errorf("bind of what does not exist: %v", err)
	}
	err = (&host.Spec{Name: "a/b", Cgroup: "../x", Private: []string{"rel"}, Processes: []host.Process{{Name: "x"}, {Args: []string{"y"}}}}).Validate()
	for _, want := range []string{"a/b", "../x", "rel", "processes[0]: args", "processes[1]: name"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Validate does not mention %s: %v", want, err)
		}
	}
}
