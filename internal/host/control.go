package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// request is one line of JSON from a client; the answer is one reply, or one at each
// change for "watch".
type request struct {
	Verb    string   `json:"verb"` // status, watch, start, stop, signal, restart, add
	Name    string   `json:"name,omitempty"`
	Signal  int      `json:"signal,omitempty"`
	Process *Process `json:"process,omitempty"`
}

type reply struct {
	Error    string   `json:"error,omitempty"`
	Statuses []Status `json:"statuses,omitempty"`
}

func (s *supervisor) serve(ctx context.Context) {
	for {
		c, err := s.listen.Accept()
		if err != nil {
			s.logf("control socket: %v", err)
			time.Sleep(minDelay) // out of descriptors, say
			continue
		}
		go s.answer(ctx, c)
	}
}

func (s *supervisor) answer(ctx context.Context, c net.Conn) {
	defer c.Close()
	dec, enc := json.NewDecoder(c), json.NewEncoder(c)
	for ctx.Err() == nil {
		var r request
		if dec.Decode(&r) != nil {
			return
		}
		if r.Verb == "watch" {
			s.stream(c, enc)
			return
		}
		var out reply
		if err := s.do(r); err != nil {
			out.Error = err.Error()
		}
		out.Statuses, _ = s.statuses()
		if enc.Encode(out) != nil {
			return
		}
	}
}

// stream sends the statuses at each change until the client hangs up.
func (s *supervisor) stream(c net.Conn, enc *json.Encoder) {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = c.Read(make([]byte, 1))
	}()
	for {
		list, changed := s.statuses()
		if enc.Encode(reply{Statuses: list}) != nil {
			return
		}
		select {
		case <-changed:
		case <-gone:
			return
		}
	}
}

func (s *supervisor) do(r request) error {
	if r.Verb == "status" {
		return nil
	}
	if r.Verb == "add" {
		return s.add(r.Process)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.procs, func(p *proc) bool { return p.Name == r.Name })
	if i < 0 {
		return fmt.Errorf("%s has no process %q", s.spec.Name, r.Name)
	}
	p := s.procs[i]
	running := p.status.State == Running
	switch r.Verb {
	case "stop":
		p.want = false
		p.poke()
	case "start", "restart":
		p.want = true
		p.poke()
	case "signal":
		if !running {
			return fmt.Errorf("%s on %s is not running: %s", r.Name, s.spec.Name, p.status.State)
		}
	default:
		return fmt.Errorf("unknown request %q", r.Verb)
	}
	if running && r.Verb != "start" && r.Signal != 0 {
		return unix.Kill(p.status.PID, unix.Signal(r.Signal))
	}
	return nil
}

// poke wakes the process's goroutine if it waits.
func (p *proc) poke() {
	select {
	case p.goOn <- struct{}{}:
	default:
	}
}

func (s *supervisor) add(spec *Process) error {
	if spec == nil {
		return errors.New("no process given")
	}
	if err := spec.validate(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.ContainsFunc(s.procs, func(p *proc) bool { return p.Name == spec.Name }) {
		return fmt.Errorf("%s already has a process %q", s.spec.Name, spec.Name)
	}
	p := newProc(*spec)
	s.procs = append(s.procs, p)
	if p.Once {
		go s.runOnce(p)
	} else {
		go s.run(p)
	}
	return nil
}

// dial connects to the control socket of the host in dir. A socket's path may be
// longer than the kernel's 108 bytes, so that the way leads through a descriptor.
func dial(dir string) (*net.UnixConn, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrNotRunning, dir, err)
	}
	defer func() { _ = unix.Close(fd) }()
	// This never waits: with too many connections queued it is an error.
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: filepath.Join("/proc/self/fd", strconv.Itoa(fd), socketFile)})
	switch {
	case err == nil:
		return c, nil
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("%w: %s", ErrNotRunning, dir)
	}
	return nil, err
}

// call sends one request and reads one reply.
func (h *Host) call(ctx context.Context, r request) ([]Status, error) {
	c, err := dial(h.dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	var out reply
	if err = json.NewEncoder(c).Encode(r); err == nil {
		err = json.NewDecoder(c).Decode(&out)
	}
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s does not answer: %w", h.spec.Name, ctx.Err())
	case err != nil: // it died just now
		return nil, fmt.Errorf("%w: %s: %w", ErrNotRunning, h.spec.Name, err)
	}
	if out.Error != "" {
		return nil, errors.New(out.Error)
	}
	return out.Statuses, nil
}

// Processes returns what the host's processes are doing, in the order of the spec.
func (h *Host) Processes(ctx context.Context) ([]Status, error) {
	return h.call(ctx, request{Verb: "status"})
}

// Watch calls f with the statuses now and after each change, until ctx ends or the
// host dies, which is ErrNotRunning, or f returns an error.
func (h *Host) Watch(ctx context.Context, f func([]Status) error) error {
	c, err := dial(h.dir)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	if err := json.NewEncoder(c).Encode(request{Verb: "watch"}); err != nil {
		return fmt.Errorf("%w: %w", ErrNotRunning, err)
	}
	for dec := json.NewDecoder(c); ; {
		var out reply
		if err := dec.Decode(&out); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("%w: %s: %w", ErrNotRunning, h.dir, err)
		}
		if err := f(out.Statuses); err != nil {
			return err
		}
	}
}

// AddProcess supervises one more process, until the host's end.
func (h *Host) AddProcess(ctx context.Context, p Process) error {
	_, err := h.call(ctx, request{Verb: "add", Process: &p})
	return err
}

// StartProcess starts a process that is stopped or has exited; no-op if it runs.
func (h *Host) StartProcess(ctx context.Context, name string) error {
	_, err := h.call(ctx, request{Verb: "start", Name: name})
	return err
}

// StopProcess sends SIGTERM and keeps the process stopped until StartProcess. It
// returns when it has ended; when ctx ends first, the process is killed.
func (h *Host) StopProcess(ctx context.Context, name string) error {
	if _, err := h.call(ctx, request{Verb: "stop", Name: name, Signal: int(unix.SIGTERM)}); err != nil {
		return err
	}
	errEnded := errors.New("ended")
	err := h.Watch(ctx, func(list []Status) error {
		for _, st := range list {
			if st.Name == name && st.State != Running {
				return errEnded
			}
		}
		return nil
	})
	if errors.Is(err, errEnded) {
		return nil
	}
	if ctx.Err() != nil {
		kctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_, kerr := h.call(kctx, request{Verb: "stop", Name: name, Signal: int(unix.SIGKILL)})
		return kerr
	}
	return err
}

// RestartProcess sends SIGTERM and starts the process again as soon as it has ended.
func (h *Host) RestartProcess(ctx context.Context, name string) error {
	_, err := h.call(ctx, request{Verb: "restart", Name: name, Signal: int(unix.SIGTERM)})
	return err
}

// SignalProcess sends a signal, SIGKILL for instance; what the process does then and
// whether it is restarted is its and its policy's business.
func (h *Host) SignalProcess(ctx context.Context, name string, sig unix.Signal) error {
	_, err := h.call(ctx, request{Verb: "signal", Name: name, Signal: int(sig)})
	return err
}
