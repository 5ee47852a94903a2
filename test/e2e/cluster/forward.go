package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/host"
)

// The forwarder is a process on the machine that listens on 127.0.0.1 and connects to the API server inside
// the control plane's network namespace. It holds a lock on <dir>/forward.pid for life: whoever finds that
// file locked has found the process, and a stale file is never taken for one.

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("port for the API server: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

func (c *Cluster) startForwarder() error {
	if pid, err := c.forwarder(); pid != 0 || err != nil {
		return err
	}
	log, err := os.OpenFile(c.path("forward.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command("/proc/self/exe", forwardVerb, c.Dir)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the API server's forwarder: %w", err)
	}
	go cmd.Wait() //nolint:errcheck // it outlives us, or is told to end
	return nil
}

func (c *Cluster) stopForwarder() error {
	pid, err := c.forwarder()
	if pid == 0 || err != nil {
		return err
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		return fmt.Errorf("end the API server's forwarder: %w", err)
	}
	return nil
}

// forwarder returns the pid of the running forwarder, 0 if there is none.
func (c *Cluster) forwarder() (int, error) {
	f, err := os.Open(c.path("forward.pid"))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil {
		return 0, nil // nobody holds it
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// forward is the forwarder's main.
func forward(dir string) error {
	c, err := Open(dir, func(string, ...any) {})
	if err != nil {
		return err
	}
	pid, err := os.OpenFile(c.path("forward.pid"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer pid.Close()
	if err := unix.Flock(int(pid.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil // another one is there
	}
	if err := pid.Truncate(0); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(pid, os.Getpid()); err != nil {
		return err
	}
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", c.Port))
	if err != nil {
		return err
	}
	for {
		in, err := l.Accept()
		if err != nil {
			return err
		}
		go c.relay(in)
	}
}

func (c *Cluster) relay(in net.Conn) {
	defer in.Close()
	out, err := c.DialControlPlane(context.Background(), fmt.Sprintf("127.0.0.1:%d", apiPort))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	defer out.Close()
	done := make(chan struct{}, 2)
	pipe := func(to, from net.Conn) {
		_, _ = io.Copy(to, from)
		if t, ok := to.(*net.TCPConn); ok {
			_ = t.CloseWrite()
		}
		done <- struct{}{}
	}
	go pipe(out, in)
	go pipe(in, out)
	<-done
	<-done
}

// DialControlPlane connects to a TCP address from the control plane's host.
func (c *Cluster) DialControlPlane(ctx context.Context, address string) (net.Conn, error) {
	h, err := host.Open(c.path(ControlPlane))
	if err != nil {
		return nil, err
	}
	var conn net.Conn
	err = h.Do(func() error {
		d := net.Dialer{Timeout: 5 * time.Second, FallbackDelay: -1} // in this thread, not in a second one
		conn, err = d.DialContext(ctx, "tcp", address)
		return err
	})
	return conn, err
}
