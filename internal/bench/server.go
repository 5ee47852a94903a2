package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// The control connection carries one JSON value a step: Spec, ready, done, report.
type ready struct {
	Port  uint16 `json:"port,omitempty"` // of the test's traffic
	Error string `json:"error,omitempty"`
}

type done struct{}

// report is what the server counted; the modes fill what they have.
type report struct {
	Seconds      float64 `json:"seconds"`
	Bytes        uint64  `json:"bytes"`
	Transactions uint64  `json:"transactions"` // udp-pps: in the window
	Total        uint64  `json:"total"`        // udp-pps: with warm-up
	Longest      []Gap   `json:"longest,omitempty"`
	Side         Side    `json:"side"`
	Error        string  `json:"error,omitempty"`
}

// session is the server's half of one test. It runs in a locked, pinned thread of its own.
type session struct {
	spec Spec
	data socket      // listening, or bound for UDP
	stop atomic.Bool // the client is done or gone
}

// Serve answers tests one at a time until ctx ends: control connections on lis, the test's traffic
// on the following port, or one that the kernel chooses if that is in use. It keeps no state, but
// turns garbage collection off for the process, as Run does, until it holds 256 MB. Clients may
// choose the priority of its thread only if priority is true.
func Serve(ctx context.Context, lis net.Listener, priority bool) error {
	quiet()
	stop := context.AfterFunc(ctx, func() { _ = lis.Close() })
	defer stop()
	free := make(chan struct{}, 1)
	for {
		conn, err := lis.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept on %s: %w", lis.Addr(), err)
		}
		go func() {
			defer func() { _ = conn.Close() }()
			select {
			case free <- struct{}{}:
				serveOne(ctx, conn, priority)
				<-free
			case <-time.After(patience):
				_ = json.NewEncoder(conn).Encode(ready{Error: "the server is busy with another test"})
			}
		}()
	}
}

// patience is how long a client waits for the test before it to end.
const patience = time.Second

// quiet keeps the Go runtime out of the figures: processors for goroutines beside the measuring
// threads, which never yield, and no garbage collection until the process holds far more than a
// test needs.
func quiet() {
	if n := max(4, runtime.NumCPU()); runtime.GOMAXPROCS(0) < n {
		runtime.GOMAXPROCS(n)
	}
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(256 << 20)
}

// serveOne runs one test. Errors go to the client: only it knows what was meant.
func serveOne(ctx context.Context, conn net.Conn, priority bool) {
	in, out := json.NewDecoder(conn), json.NewEncoder(conn)
	_ = conn.SetReadDeadline(time.Now().Add(stall))
	s := &session{}
	if err := in.Decode(&s.spec); err != nil {
		_ = out.Encode(ready{Error: fmt.Sprintf("not a test: %v", err)})
		return
	}
	if s.spec.Priority != 0 && !priority {
		_ = out.Encode(ready{Error: "priority: the server was not started with --allow-priority"})
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	port, err := s.listen(conn.LocalAddr().(*net.TCPAddr).AddrPort())
	if err != nil {
		_ = out.Encode(ready{Error: err.Error()})
		return
	}
	cancel := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer cancel()
	placed, result := make(chan error, 1), make(chan report, 1)
	go locked(func() {
		err := place(s.spec.ServerCPU, s.spec.Priority)
		if placed <- err; err == nil {
			result <- s.run()
		}
		s.data.close()
	})
	if err := <-placed; err != nil {
		_ = out.Encode(ready{Error: err.Error()})
		return
	}
	_ = out.Encode(ready{Port: port})
	over := make(chan struct{})
	go func() { // the client says that it is done, or vanishes
		var d done
		_ = in.Decode(&d)
		s.stop.Store(true)
		close(over)
	}()
	_ = out.Encode(<-result)
	_ = conn.SetReadDeadline(time.Now().Add(stall))
	<-over // closing before the client's last word is read would reset the connection, and the report with it
}

// locked runs f in a thread of its own, which ends with the goroutine, and the CPU mask with it.
func locked(f func()) {
	runtime.LockOSThread()
	f()
}

// listen opens the data socket beside the control connection's local address.
func (s *session) listen(control netip.AddrPort) (uint16, error) {
	s.spec.Defaults()
	if err := s.spec.Validate(); err != nil {
		return 0, err
	}
	kind := unix.SOCK_STREAM
	if s.spec.Mode == UDPRR || s.spec.Mode == UDPPPS {
		kind = unix.SOCK_DGRAM
	}
	ip := control.Addr().Unmap()
	var err error
	for _, port := range []uint16{control.Port() + 1, 0} {
		at := netip.AddrPortFrom(ip, port)
		if s.data, err = open(at, kind, &s.spec); err != nil {
			return 0, err
		}
		if err = s.data.bind(at, kind); err == nil {
			break
		}
		s.data.close()
		if !errors.Is(err, unix.EADDRINUSE) {
			return 0, err
		}
	}
	if err != nil {
		return 0, err
	}
	sa, err := unix.Getsockname(s.data.fd)
	if err != nil {
		return 0, fmt.Errorf("getsockname: %w", err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return uint16(sa.Port), nil
	case *unix.SockaddrInet6:
		return uint16(sa.Port), nil
	}
	return 0, fmt.Errorf("getsockname: unexpected %T", sa)
}

// run measures; it is called in the locked thread.
func (s *session) run() report {
	var r report
	var err error
	switch s.spec.Mode {
	case Stream:
		err = s.stream(&r)
	case RR:
		err = s.rr(&r)
	case CRR:
		err = s.crr(&r)
	case UDPRR, UDPPPS:
		err = s.udp(&r)
	case Flows:
		err = s.flows(&r)
	}
	if err != nil {
		r.Error = err.Error()
	}
	return r
}

// accept waits for a connection until the client is done.
func (s *session) accept() (socket, error) {
	for {
		c, e := s.data.accept()
		switch {
		case e == 0:
			return c, c.setup(unix.SOCK_STREAM, &s.spec)
		case !retry(e):
			return socket{}, fmt.Errorf("accept: %w", e)
		case s.stop.Load():
			return socket{}, errors.New("the client made no connection")
		}
	}
}

// window is the counted part of a test on one side's clock.
type window struct {
	start    time.Time     // of the warm-up
	from, to time.Duration // since start; to is moved to when the window really closed
	before   usage
	isOpen   bool
}

func (s *Spec) window() *window {
	return &window{start: time.Now(), from: s.Warmup, to: s.Warmup + s.Duration}
}

// at says whether something that happened now counts. It opens the window at the first call after the warm-up.
func (w *window) at() (now time.Duration, counts bool) {
	now = time.Since(w.start)
	if !w.isOpen && now >= w.from {
		w.isOpen, w.before, w.from = true, used(), now
		return now, false
	}
	return now, w.isOpen
}

// close fills in the time and CPU of the window that ends now.
func (w *window) close(now time.Duration, congestion string) (seconds float64, side Side) {
	if !w.isOpen {
		return 0, thisSide(usage{}, usage{}, congestion)
	}
	return (now - w.from).Seconds(), thisSide(w.before, used(), congestion)
}
