package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Builtin is a service inside pid 1 of a host that is not worth a process of its own.
// It returns when it serves, in goroutines of its own, before Start does; its error is
// Start's.
type Builtin func(ctx context.Context, spec *Spec) error

// Init is pid 1 of a host: the program that Start executes calls it with the
// directory that it was given, and exits with the result. It returns only if the
// host could not be built.
func Init(dir string, builtins ...Builtin) error {
	ready := os.NewFile(3, "ready") // the starter reads: EOF after "ok", or the reason
	if ready == nil || os.Getpid() != 1 {
		return errors.New("this command is started by weft itself, as pid 1 of a new host")
	}
	unix.CloseOnExec(3)
	ctx := context.Background()
	s, err := build(dir)
	for _, b := range builtins {
		if err == nil {
			err = b(ctx, s.spec)
		}
	}
	if err != nil {
		if errors.Is(err, ErrRunning) {
			fmt.Fprint(ready, ErrRunning)
		} else {
			fmt.Fprint(ready, err)
		}
		return err
	}
	go s.serve(ctx)
	go s.startAll()
	fmt.Fprint(ready, "ok")
	ready.Close()
	s.reap() // never returns
	return nil
}

// build makes the host and returns its supervisor, which listens but does not serve yet.
func build(dir string) (*supervisor, error) {
	// A mount of its own, so that it can stay writable. It is seen by this host only.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return nil, fmt.Errorf("bind %s: %w", dir, err)
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	stay := "/proc/self/fd/" + strconv.Itoa(fd) // valid whatever is mounted over dir
	// Not open for writing: that would keep the mount from becoming read-only for a moment.
	lock, err := os.OpenFile(filepath.Join(stay, lockFile), os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("%w: another process holds %s", ErrRunning, filepath.Join(dir, lockFile))
	}
	spec, err := readSpec(stay)
	if err != nil {
		return nil, err
	}
	if err := unix.Sethostname([]byte(spec.Name)); err != nil {
		return nil, fmt.Errorf("set host name %q: %w", spec.Name, err)
	}
	if err := (&tree{spec: spec, dir: stay}).build(); err != nil {
		return nil, fmt.Errorf("host %s: %w", spec.Name, err)
	}
	if spec.System && spec.Cgroup != "" {
		if err := leafCgroup(); err != nil {
			return nil, err
		}
	}
	if spec.Netns == "" {
		if err := loopbackUp(); err != nil {
			return nil, err
		}
	}
	if err := sysctls(spec.Sysctls); err != nil {
		return nil, err
	}
	if err := os.Mkdir(filepath.Join(stay, logDir), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	socket := filepath.Join(stay, socketFile)
	_ = os.Remove(socket) // of a life before; the lock says that it is over
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: socket})
	if err != nil {
		return nil, err
	}
	// Everything below is held for life: l, lock and the directory's descriptor.
	return newSupervisor(spec, stay, l, lock), nil
}

// loopbackUp brings lo up in this network namespace.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}
