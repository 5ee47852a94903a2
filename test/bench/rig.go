package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// netnsDir is where `ip netns` keeps names. In the harness's own mount namespace it is a private tmpfs.
const netnsDir = "/run/netns"

// isolate runs this program again as pid 1 of its own pid, mount and network namespaces. When that
// process ends, however it ends, the kernel ends every process it started, and with them all
// namespaces and mounts: a run leaves nothing behind but its report.
func isolate(args []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := program(self, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), isolatedEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET,
		Pdeathsig:  syscall.SIGKILL,
	}
	runtime.LockOSThread() // Pdeathsig is the thread's death, not the process's
	defer runtime.UnlockOSThread()
	return cmd.Run()
}

const isolatedEnv = "WEFT_BENCH_ISOLATED"

// privateMounts gives the harness its own /proc (of its pid namespace), /sys (of its network
// namespace) and /run/netns. Mounts that appear there later reach the children's namespaces.
func privateMounts() error {
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	for _, m := range [][3]string{{"proc", "/proc", "proc"}, {"sysfs", "/sys", "sysfs"}, {"tmpfs", netnsDir, "tmpfs"}} {
		if err := unix.Mount(m[0], m[1], m[2], 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	return unix.Mount("", netnsDir, "", unix.MS_SHARED, "")
}

// rig is the network laboratory of one run. Everything in it dies with this process.
type rig struct {
	ctx  context.Context
	dir  string // scratch files, on disk
	self string // this program
	log  func(format string, a ...any)

	mounts []string
}

// mount mounts a filesystem below the scratch directory.
func (r *rig) mount(kind, path string) error {
	if err := unix.Mount(kind, path, kind, 0, ""); err != nil {
		return fmt.Errorf("mount %s on %s: %w", kind, path, err)
	}
	r.mounts = append(r.mounts, path)
	return nil
}

// close removes the scratch directory. All else goes with the process.
func (r *rig) close() error {
	for _, m := range r.mounts {
		_ = unix.Unmount(m, unix.MNT_DETACH) // RemoveAll tells if this did not work
	}
	return os.RemoveAll(r.dir)
}

// inNS runs f in a thread that is in the named network namespace. Children started by f are in it too.
func inNS(ns string, f func() error) error {
	return onThread(func() error {
		fd, err := unix.Open(filepath.Join(netnsDir, ns), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open network namespace %s: %w", ns, err)
		}
		defer func() { _ = unix.Close(fd) }()
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", ns, err)
		}
		return f()
	})
}

// onThread runs f in a thread that ends with it.
func onThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is thrown away
		result <- f()
	}()
	return <-result
}

// netns makes an empty network namespace with loopback up and duplicate address detection off, so
// that no plugin waits a second for it: what is measured is the plugin, not the timer.
func netns(name string) error {
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("new network namespace: %w", err)
		}
		path := filepath.Join(netnsDir, name)
		if err := os.WriteFile(path, nil, 0o444); err != nil {
			return err
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("name network namespace %s: %w", name, err)
		}
		for _, which := range []string{"all", "default"} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+which+"/accept_dad", []byte("0"), 0o644); err != nil {
				return err
			}
		}
		return loopbackUp()
	})
}

// loopbackUp sets lo up in the calling thread's namespace, as container runtimes do.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_LOOPBACK | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}

// program is a command that ends by itself, or with the harness: its pid namespace takes all children along.
func program(name string, args ...string) *exec.Cmd {
	return exec.CommandContext(context.Background(), name, args...)
}

// ip runs lines of `ip` commands in a namespace, stopping at the first that fails.
func ip(ns, lines string) error {
	cmd := program("ip", "-n", ns, "-batch", "-")
	cmd.Stdin = strings.NewReader(lines)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip -n %s: %w: %s\n%s", ns, err, bytes.TrimSpace(out), lines)
	}
	return nil
}

// sysctl sets a value in a namespace.
func sysctl(ns, name, value string) error {
	return inNS(ns, func() error {
		return os.WriteFile("/proc/sys/"+strings.ReplaceAll(name, ".", "/"), []byte(value), 0o644)
	})
}

// process is something started by the rig.
type process struct {
	*exec.Cmd
	name string
	log  string        // file
	done chan struct{} // closed when it has ended
}

// start runs a program in a namespace with its output in a log file.
func (r *rig) start(ns, name string, env []string, argv ...string) (*process, error) {
	p := &process{name: name, log: filepath.Join(r.dir, name+".log"), done: make(chan struct{})}
	file, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	p.Cmd = program(argv[0], argv[1:]...)
	p.Stdout, p.Stderr = file, file
	p.Env = append(os.Environ(), env...)
	if err := inNS(ns, p.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() { _ = p.Wait(); close(p.done) }()
	return p, nil
}

// stop sends a signal and waits.
func (p *process) stop(sig syscall.Signal) {
	if p == nil {
		return
	}
	_ = p.Process.Signal(sig)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		_ = p.Process.Kill()
		<-p.done
	}
}

// tail returns the end of the log, for errors.
func (p *process) tail() string {
	raw, _ := os.ReadFile(p.log)
	return strings.TrimSpace(string(raw[max(0, len(raw)-1500):]))
}

// await polls until ok, or the time is up, or the process (if any) has ended.
func await(what string, limit time.Duration, p *process, ok func() bool) error {
	deadline := time.Now().Add(limit)
	for !ok() {
		if p != nil {
			select {
			case <-p.done:
				return fmt.Errorf("%s: %s ended: %s", what, p.name, p.tail())
			default:
			}
		}
		if time.Now().After(deadline) {
			tail := ""
			if p != nil {
				tail = ": " + p.tail()
			}
			return fmt.Errorf("%s: not within %v%s", what, limit, tail)
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}
