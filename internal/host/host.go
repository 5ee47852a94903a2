package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrNotRunning means that no pid 1 serves the host's directory.
	ErrNotRunning = errors.New("host is not running")
	// ErrRunning means that the directory already has a running host.
	ErrRunning = errors.New("host is running already")
)

// Host is a running host. Its methods may be called from any goroutine, and by any
// process that shares the pid namespace in which it was started, or an outer one.
type Host struct {
	dir  string
	spec *Spec
	pid  int // of pid 1, in the caller's pid namespace
}

// Start builds the host and returns when it is complete and its processes are being
// started. dir holds all its files and is created. initArgs is the command that
// calls Init; the host's directory is appended to it. A program starts itself:
// []string{"/proc/self/exe", "lab", "init"}. The host outlives its starter. If it
// runs already, the running one is returned, whatever its spec is.
func Start(ctx context.Context, dir string, spec Spec, initArgs ...string) (*Host, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if h, err := Open(dir); !errors.Is(err, ErrNotRunning) {
		return h, err
	}
	if err := os.MkdirAll(filepath.Join(dir, logDir), 0o755); err != nil {
		return nil, err
	}
	if err := writeSpec(dir, &spec); err != nil {
		return nil, err
	}
	if spec.Cgroup != "" {
		if err := makeCgroups(spec.Cgroup); err != nil {
			return nil, fmt.Errorf("host %s: %w", spec.Name, err)
		}
	}
	err = launch(ctx, dir, &spec, initArgs)
	if errors.Is(err, ErrRunning) { // another starter was faster, and may have died
		return awaitOpen(ctx, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("start host %s: %w", spec.Name, err)
	}
	return Open(dir)
}

// awaitOpen opens a host that is being built.
func awaitOpen(ctx context.Context, dir string) (*Host, error) {
	for end := time.Now().Add(10 * time.Second); ; {
		h, err := Open(dir)
		if !errors.Is(err, ErrNotRunning) || ctx.Err() != nil || time.Now().After(end) {
			return h, err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// launch executes pid 1 and waits until it has built the host.
func launch(ctx context.Context, dir string, spec *Spec, initArgs []string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	log, err := os.OpenFile(filepath.Join(dir, logDir, "init.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		w.Close()
		return err
	}
	defer log.Close()
	// The host outlives its starter.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), initArgs[0], append(initArgs[1:len(initArgs):len(initArgs)], dir)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = "/", log, log, []*os.File{w}
	cmd.Env = spec.environ()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWNS |
		unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC}
	err = onThread(func() error { return enterAndStart(cmd, spec) })
	w.Close()
	if err != nil {
		return err
	}
	go cmd.Wait() //nolint:errcheck // a long-lived starter must not keep a zombie
	defer context.AfterFunc(ctx, func() { r.SetReadDeadline(time.Unix(1, 0)) })()
	msg, err := io.ReadAll(r)
	switch {
	case string(msg) == "ok":
		return nil
	case string(msg) == ErrRunning.Error():
		return ErrRunning
	case err != nil:
		_ = cmd.Process.Kill()
		return errors.Join(err, ctx.Err())
	case len(msg) == 0:
		return fmt.Errorf("its pid 1 ended; see %s", log.Name())
	}
	return errors.New(string(msg))
}

// enterAndStart starts pid 1 from a thread that is thrown away. The cgroup namespace's
// root is the cgroup of its creator: the thread goes into the version 1 cgroups, the
// child is born into the version 2 cgroup and unshares there, before it executes.
func enterAndStart(cmd *exec.Cmd, spec *Spec) error {
	if spec.Netns == "" {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNET
	} else if err := setns(spec.Netns, unix.CLONE_NEWNET); err != nil {
		return err
	}
	if spec.Cgroup == "" {
		return cmd.Start()
	}
	cmd.SysProcAttr.Unshareflags = unix.CLONE_NEWCGROUP
	dirs, unified, err := namedCgroups(spec.Cgroup)
	if err != nil {
		return err
	}
	if err := joinThread(dirs); err != nil {
		return err
	}
	closeCgroup, err := bornIn(cmd, unified)
	if err != nil {
		return err
	}
	defer closeCgroup()
	return cmd.Start()
}

// bornIn makes cmd start in a version 2 cgroup, which a thread cannot enter alone.
func bornIn(cmd *exec.Cmd, dir string) (done func(), err error) {
	if dir == "" {
		return func() {}, nil
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("enter cgroup %s: %w", dir, err)
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, fd
	return func() { _ = unix.Close(fd) }, nil
}

// Open finds the running host of a directory, or returns ErrNotRunning.
func Open(dir string) (*Host, error) {
	c, err := dial(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(cerr, err); err != nil {
		return nil, err
	}
	spec, err := readSpec(dir)
	if err != nil {
		return nil, err
	}
	if cred.Pid <= 0 {
		return nil, fmt.Errorf("host %s runs outside of this pid namespace", spec.Name)
	}
	return &Host{dir: dir, spec: spec, pid: int(cred.Pid)}, nil
}

// Name is the host's name.
func (h *Host) Name() string { return h.spec.Name }

// Dir is the directory of the host's files.
func (h *Host) Dir() string { return h.dir }

// Pid is the pid of the host's pid 1, seen from here.
func (h *Host) Pid() int { return h.pid }

// Netns is a path of the host's network namespace, valid while it runs.
func (h *Host) Netns() string { return fmt.Sprintf("/proc/%d/ns/net", h.pid) }

// Root is a path under which the host's file system is seen from here, valid while it runs.
func (h *Host) Root() string { return fmt.Sprintf("/proc/%d/root", h.pid) }

// LogFile is the path of a process's log; "init" is that of pid 1.
func (h *Host) LogFile(process string) string { return filepath.Join(h.dir, logDir, process+".log") }

// Path is where a file of a Private directory is seen from outside, whether the host runs or not.
func Path(dir, file string) string { return filepath.Join(dir, fsDir, file) }

// Start starts a command inside the host: all its namespaces, its cgroups, its PATH
// and environment (unless cmd.Env is set) and the directory / (unless cmd.Dir is).
// The caller waits for it. The command is killed with the host.
func (h *Host) Start(cmd *exec.Cmd) error {
	dirs, unified, err := cgroupsOf(h.pid)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotRunning, err)
	}
	return onThread(func() error {
		if err := joinThread(dirs); err != nil {
			return err
		}
		closeCgroup, err := bornIn(cmd, unified)
		if err != nil {
			return err
		}
		defer closeCgroup()
		if err := h.enter(); err != nil {
			return err
		}
		if cmd.Env == nil {
			cmd.Env = h.spec.environ()
		}
		if cmd.Dir == "" {
			cmd.Dir = "/"
		}
		path, err := lookPath(cmd.Args[0], cmd.Env)
		if err != nil {
			return fmt.Errorf("on %s: %w", h.spec.Name, err)
		}
		cmd.Path, cmd.Err = path, nil
		return cmd.Start()
	})
}

// Run starts the command inside the host and waits for its end.
func (h *Host) Run(cmd *exec.Cmd) error {
	if err := h.Start(cmd); err != nil {
		return err
	}
	return cmd.Wait()
}

// Output runs a command inside the host and returns what it wrote to both outputs.
// Its error has the command's last words.
func (h *Host) Output(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := h.Run(cmd); err != nil {
		return out.String(), fmt.Errorf("%s: %s: %w: %s", h.spec.Name, strings.Join(args, " "), err, strings.TrimSpace(out.String()))
	}
	return out.String(), nil
}

// Do calls f on a thread in the host's network namespace. Sockets that f itself
// opens are the host's; goroutines that it starts are not.
func (h *Host) Do(f func() error) error { return Within(h.Netns(), f) }

// Within calls f on a thread in the network namespace at that path, like Do.
func Within(netns string, f func() error) error {
	return onThread(func() error {
		if err := setns(netns, unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

// enter moves the calling thread into the host's namespaces. For the pid namespace
// that concerns its children only.
func (h *Host) enter() error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // a mount namespace is entered alone
		return fmt.Errorf("unshare: %w", err)
	}
	fd, err := unix.PidfdOpen(h.pid, 0)
	if err != nil {
		return fmt.Errorf("%w: pid %d: %w", ErrNotRunning, h.pid, err)
	}
	defer func() { _ = unix.Close(fd) }()
	const all = unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWCGROUP
	if err := unix.Setns(fd, all); err != nil {
		return fmt.Errorf("enter %s: %w", h.spec.Name, err)
	}
	return nil
}

func setns(path string, kind int) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open namespace %s: %w", path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Setns(fd, kind); err != nil {
		return fmt.Errorf("enter namespace %s: %w", path, err)
	}
	return nil
}

// onThread runs f on a thread of its own that ends with it, so that f may change
// what belongs to the thread.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread cannot end: it would stay where f brought it, and be what
			// /proc/<pid> shows of this process. Hold it, so that the next one is another.
			done <- onThread(f)
			runtime.UnlockOSThread()
			return
		}
		done <- f() // never unlocked: the thread dies with the goroutine
	}()
	return <-done
}

// Stop kills the host's pid 1, and with it everything in its pid namespace, and
// returns when all of it is gone. Its directory and cgroups stay for the next Start.
func (h *Host) Stop(ctx context.Context) error {
	fd, err := unix.PidfdOpen(h.pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stop %s: %w", h.spec.Name, err)
	}
	p := os.NewFile(uintptr(fd), "pidfd")
	defer p.Close()
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill %s: %w", h.spec.Name, err)
	}
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 50)
		switch {
		case n > 0:
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("wait for %s: %w", h.spec.Name, err)
		case ctx.Err() != nil:
			return fmt.Errorf("%s does not end: %w", h.spec.Name, ctx.Err())
		}
	}
}

// Destroy ends the host of the directory in whatever state it is, and removes its
// cgroups and the directory. Nothing is left of it; no error if there was nothing.
func Destroy(ctx context.Context, dir string) error {
	h, err := Open(dir)
	if err == nil {
		err = h.Stop(ctx)
	}
	if err != nil && !errors.Is(err, ErrNotRunning) {
		return err
	}
	if spec, err := readSpec(dir); err == nil && spec.Cgroup != "" {
		if err := DestroyCgroup(spec.Cgroup); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}

// DestroyCgroup kills every process in the cgroup of that name and below, and removes
// it from every hierarchy, and its parents where they are empty then.
func DestroyCgroup(name string) error {
	if err := killCgroup(name); err != nil {
		return err
	}
	if err := removeCgroup(name); err != nil {
		return err
	}
	for up := filepath.Dir(name); up != "."; up = filepath.Dir(up) {
		dirs, unified, err := namedCgroups(up)
		if err != nil {
			return err
		}
		for _, d := range append(dirs, unified) {
			_ = os.Remove(d) // fails while others use it
		}
	}
	return nil
}

// NewNetns creates a network namespace with lo up, held by a bind mount on the file.
// It lives until the file is unmounted and nothing is in it.
func NewNetns(file string) error {
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("create network namespace: %w", err)
		}
		if err := loopbackUp(); err != nil {
			return err
		}
		if err := unix.Mount("/proc/thread-self/ns/net", file, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("keep network namespace at %s: %w", file, err)
		}
		return nil
	})
}
