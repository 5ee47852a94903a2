// Package testkit is what tests share: network namespaces, veth pairs, and a check
// that nothing was left behind.
//
// It is for tests only and no program may import it. It never touches the network
// namespace that the test process was started in. It is not the lab, which runs whole
// nodes (see internal/lab).
package testkit

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// NamedDir is where `ip netns` looks for namespaces.
const NamedDir = "/run/netns"

// Netns is a network namespace that a test made. It lives as long as its file is open or a
// process is in it; a test process that is killed leaves none behind, unless it is named.
type Netns struct {
	name string   // "" if anonymous
	file *os.File // nil once deleted
	path string
}

// RequireRoot skips the test for anyone but root.
func RequireRoot(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root")
	}
}

// New makes an anonymous namespace with its loopback up. It is gone when the test ends.
func New(tb testing.TB) *Netns {
	tb.Helper()
	RequireRoot(tb)
	f, err := newNetns()
	if err != nil {
		tb.Fatalf("make a network namespace: %v", err)
	}
	n := &Netns{file: f, path: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())}
	tb.Cleanup(n.Delete)
	n.Run(tb, "ip", "link", "set", "lo", "up")
	return n
}

// Named makes a namespace that `ip netns exec NAME` finds. It is gone when the test ends.
func Named(tb testing.TB, name string) *Netns {
	tb.Helper()
	n := New(tb)
	path := filepath.Join(NamedDir, name)
	if err := os.MkdirAll(NamedDir, 0o755); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		tb.Fatal(err)
	}
	if err := unix.Mount(n.path, path, "", unix.MS_BIND, ""); err != nil {
		_ = os.Remove(path)
		tb.Fatalf("bind %s to %s: %v", n.path, path, err)
	}
	n.name, n.path = name, path
	return n
}

// newNetns opens a new namespace and leaves the caller where it was.
func newNetns() (*os.File, error) {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return nil, err
	}
	defer home.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return nil, err
	}
	f, err := os.Open("/proc/thread-self/ns/net")
	leave(home)
	return f, err
}

// leave brings the locked thread home. If it cannot, the thread stays locked, so that the
// runtime throws it away with its goroutine.
func leave(home *os.File) {
	if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
		runtime.UnlockOSThread()
	}
}

// Path is a file that opens the namespace, also for other processes, until Delete.
func (n *Netns) Path() string { return n.path }

// Delete lets go of the namespace; the kernel destroys it when no process and no socket is left in it.
// More calls do nothing.
func (n *Netns) Delete() {
	if n.file == nil {
		return
	}
	if n.name != "" {
		_ = unix.Unmount(n.path, unix.MNT_DETACH)
		_ = os.Remove(n.path)
	}
	_ = n.file.Close()
	n.file = nil
}

// Do runs f in the namespace on the calling goroutine, so f may fail the test. Goroutines that f starts run
// outside: what they need must be opened by f itself.
func (n *Netns) Do(tb testing.TB, f func()) {
	tb.Helper()
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		tb.Fatal(err)
	}
	defer home.Close()
	if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		tb.Fatalf("enter %s: %v", n.path, err)
	}
	defer leave(home)
	f()
}

// start starts a command whose process is in the namespace.
func (n *Netns) start(tb testing.TB, cmd *exec.Cmd) error {
	tb.Helper()
	var err error
	n.Do(tb, func() { err = cmd.Start() })
	return err
}

// Try runs a command in the namespace and returns its output, both streams.
func (n *Netns) Try(tb testing.TB, name string, args ...string) (string, error) {
	tb.Helper()
	cmd := exec.CommandContext(context.Background(), name, args...) // cleanups run commands when the test's own context has ended
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := n.start(tb, cmd); err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out.String())
	}
	return out.String(), nil
}

// Run is Try for a command that must succeed.
func (n *Netns) Run(tb testing.TB, name string, args ...string) string {
	tb.Helper()
	out, err := n.Try(tb, name, args...)
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

// IP runs `ip` with the words of a line.
func (n *Netns) IP(tb testing.TB, line string) string {
	tb.Helper()
	return n.Run(tb, "ip", strings.Fields(line)...)
}

// Sysctl writes a value below /proc/sys of the namespace: Sysctl(t, "net/ipv4/ip_forward", "1").
func (n *Netns) Sysctl(tb testing.TB, path, value string) {
	tb.Helper()
	n.Do(tb, func() {
		if err := os.WriteFile("/proc/sys/"+path, []byte(value), 0o644); err != nil {
			tb.Fatal(err)
		}
	})
}

// ReadSysctl returns a value below /proc/sys of the namespace.
func (n *Netns) ReadSysctl(tb testing.TB, path string) string {
	tb.Helper()
	var out []byte
	n.Do(tb, func() {
		var err error
		if out, err = os.ReadFile("/proc/sys/" + path); err != nil {
			tb.Fatal(err)
		}
	})
	return strings.TrimSpace(string(out))
}

// Veth joins two namespaces by a veth pair; both ends are up, without DAD, and have the given
// addresses ("10.0.0.1/24", "fd00::1/64").
func Veth(tb testing.TB, a *Netns, aName string, aAddrs []string, b *Netns, bName string, bAddrs []string) {
	tb.Helper()
	a.Run(tb, "ip", "link", "add", aName, "type", "veth", "peer", "name", bName, "netns", b.procPath())
	for _, end := range []struct {
		ns    *Netns
		name  string
		addrs []string
	}{{a, aName, aAddrs}, {b, bName, bAddrs}} {
		end.ns.Sysctl(tb, "net/ipv6/conf/"+end.name+"/accept_dad", "0")
		for _, x := range end.addrs {
			args := []string{"addr", "add", x, "dev", end.name}
			if strings.Contains(x, ":") {
				args = append(args, "nodad")
			}
			end.ns.Run(tb, "ip", args...)
		}
	}
	a.IP(tb, "link set "+aName+" up")
	b.IP(tb, "link set "+bName+" up")
}

// procPath is a path of the namespace that `ip` takes for a name.
func (n *Netns) procPath() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd())
}
