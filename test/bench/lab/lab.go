// Package lab is where package bench measures: node and pod namespaces, and everything that connects them in them, weft, its
// peers and the bare links that are the limit. All of it dies with the process. It does not measure and does not judge.
package lab

import (
	"bytes"
	"context"
	"errors"
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

// NetnsDir is where `ip netns` keeps names. In the harness's own mount namespace it is a private tmpfs.
const NetnsDir = "/run/netns"

// Isolate runs this program again as pid 1 of its own pid, mount and network namespaces. When that
// process ends, however it ends, the kernel ends every process it started, and with them all
// namespaces and mounts: a run leaves nothing behind but its report.
func Isolate(args []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := Program(self, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), IsolatedEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET,
		Pdeathsig:  syscall.SIGKILL,
	}
	runtime.LockOSThread() // Pdeathsig is the thread's death, not the process's
	defer runtime.UnlockOSThread()
	return cmd.Run()
}

// IsolatedEnv is set in the process that Isolate has made.
const IsolatedEnv = "WEFT_BENCH_ISOLATED"

// PrivateMounts gives the harness its own /proc (of its pid namespace), /sys (of its network
// namespace) and /run/netns. Mounts that appear there later reach the children's namespaces.
func PrivateMounts() error {
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := os.MkdirAll(NetnsDir, 0o755); err != nil {
		return err
	}
	for _, m := range [][3]string{{"proc", "/proc", "proc"}, {"sysfs", "/sys", "sysfs"}, {"tmpfs", NetnsDir, "tmpfs"}} {
		if err := unix.Mount(m[0], m[1], m[2], 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	return unix.Mount("", NetnsDir, "", unix.MS_SHARED, "")
}

// Lab is the network laboratory of one run. Everything in it dies with this process.
type Lab struct {
	Ctx  context.Context
	Dir  string // scratch files, on disk
	Self string // this program
	Weft string // directory of weft and weft-cni
	Log  func(format string, a ...any)

	mounts []string
}

// Mount mounts a filesystem below the scratch directory.
func (r *Lab) Mount(kind, path string) error {
	if err := unix.Mount(kind, path, kind, 0, ""); err != nil {
		return fmt.Errorf("mount %s on %s: %w", kind, path, err)
	}
	r.mounts = append(r.mounts, path)
	return nil
}

// Close removes the scratch directory. All else goes with the process.
func (r *Lab) Close() error {
	for _, m := range r.mounts {
		_ = unix.Unmount(m, unix.MNT_DETACH) // RemoveAll tells if this did not work
	}
	return os.RemoveAll(r.Dir)
}

// InNS runs f in a thread that is in the named network namespace. Children started by f are in it too.
func InNS(ns string, f func() error) error {
	return onThread(func() error {
		fd, err := unix.Open(filepath.Join(NetnsDir, ns), unix.O_RDONLY|unix.O_CLOEXEC, 0)
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

// Netns makes an empty network namespace with loopback up and duplicate address detection off, so
// that no plugin waits a second for it: what is measured is the plugin, not the timer.
func Netns(name string) error {
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("new network namespace: %w", err)
		}
		path := filepath.Join(NetnsDir, name)
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

// Program is a command that ends by itself, or with the harness: its pid namespace takes all children along.
func Program(name string, args ...string) *exec.Cmd {
	return exec.CommandContext(context.Background(), name, args...)
}

// ip runs lines of `ip` commands in a namespace, stopping at the first that fails.
func ip(ns, lines string) error {
	cmd := Program("ip", "-n", ns, "-batch", "-")
	cmd.Stdin = strings.NewReader(lines)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip -n %s: %w: %s\n%s", ns, err, bytes.TrimSpace(out), lines)
	}
	return nil
}

// sysctl sets a value in a namespace.
func sysctl(ns, name, value string) error {
	return InNS(ns, func() error {
		return os.WriteFile("/proc/sys/"+strings.ReplaceAll(name, ".", "/"), []byte(value), 0o644)
	})
}

// Process is something started by the lab.
type Process struct {
	*exec.Cmd
	Name string
	log  string        // file
	Done chan struct{} // closed when it has ended
}

// Start runs a program in a namespace with its output in a log file.
func (r *Lab) Start(ns, name string, env []string, argv ...string) (*Process, error) {
	p := &Process{Name: name, log: filepath.Join(r.Dir, name+".log"), Done: make(chan struct{})}
	file, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	p.Cmd = Program(argv[0], argv[1:]...)
	p.Stdout, p.Stderr = file, file
	p.Env = append(os.Environ(), env...)
	if err := InNS(ns, p.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() { _ = p.Wait(); close(p.Done) }()
	return p, nil
}

// Stop sends a signal and waits.
func (p *Process) Stop(sig syscall.Signal) {
	if p == nil {
		return
	}
	_ = p.Process.Signal(sig)
	select {
	case <-p.Done:
	case <-time.After(10 * time.Second):
		_ = p.Process.Kill()
		<-p.Done
	}
}

// Tail returns the end of the log, for errors.
func (p *Process) Tail() string {
	raw, _ := os.ReadFile(p.log)
	return strings.TrimSpace(string(raw[max(0, len(raw)-1500):]))
}

// Await polls until ok, or the time is up, or the process (if any) has ended.
func Await(what string, limit time.Duration, p *Process, ok func() bool) error {
	deadline := time.Now().Add(limit)
	for !ok() {
		if p != nil {
			select {
			case <-p.Done:
				return fmt.Errorf("%s: %s ended: %s", what, p.Name, p.Tail())
			default:
			}
		}
		if time.Now().After(deadline) {
			tail := ""
			if p != nil {
				tail = ": " + p.Tail()
			}
			return fmt.Errorf("%s: not within %v%s", what, limit, tail)
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}

// Readable waits until a socket has something to read, at most so long; fd -1 only waits. The time limit of a socket (SO_RCVTIMEO)
// is counted in jiffies of up to 4 ms, this one is not. Call it in a locked thread.
func Readable(fd int, limit time.Duration) bool {
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0) // the kernel adds 50 us otherwise; it knows the option
	for deadline := time.Now().Add(limit); ; {
		rest := unix.NsecToTimespec(max(time.Until(deadline), 0).Nanoseconds())
		n, err := unix.Ppoll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, &rest, nil)
		if !errors.Is(err, unix.EINTR) {
			return n > 0
		}
	}
}
