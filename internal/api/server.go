package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// requestWait bounds how long a connection may take to send its request.
const requestWait = 5 * time.Second

// Handler serves one call of a method. It sends any number of results and returns nil, or an error
// (see AsError for how it travels). ctx ends with the caller's connection or deadline.
type Handler func(ctx context.Context, params json.RawMessage, send func(any) error) error

// Server answers calls. Create it with NewServer.
type Server struct {
	mu      sync.RWMutex
	methods map[string]Handler
}

// NewServer returns a server that knows no method.
func NewServer() *Server { return &Server{methods: map[string]Handler{}} }

// Handle makes h serve the method. It replaces an earlier handler and may be called while serving.
func (s *Server) Handle(method string, h func(ctx context.Context, params json.RawMessage, send func(any) error) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.methods[method] = h
}

// Func adapts a function with one typed parameter and one result to a Handler. Unknown fields are ignored.
func Func[P, R any](f func(context.Context, P) (R, error)) Handler {
	return func(ctx context.Context, params json.RawMessage, send func(any) error) error {
		var p P
		if len(params) > 0 {
			if err := json.Unmarshal(params, &p); err != nil {
				return Errorf(CodeDecode, "parameters: %v", err)
			}
		}
		r, err := f(ctx, p)
		if err != nil {
			return err
		}
		return send(r)
	}
}

// Serve answers on l until ctx ends; then it closes l, cancels the handlers, waits for them, and
// returns nil. It returns an error only if l fails.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	var calls sync.WaitGroup
	defer calls.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil
		case errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE):
			// Descriptors come back when calls end; the caller waits in the backlog meanwhile.
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
			continue
		case err != nil:
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		}
		calls.Go(func() { s.serve(ctx, conn) })
	}
}

func (s *Server) serve(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	var req request
	_ = conn.SetReadDeadline(time.Now().Add(requestWait))
	if err := readFrame(conn, &req); err != nil {
		if errors.Is(err, ErrFrame) {
			_ = writeFrame(conn, reply{Error: Errorf(CodeDecode, "%v", err)})
		}
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	call := ctx
	if req.TimeoutMillis > 0 {
		var done context.CancelFunc
		call, done = context.WithTimeout(ctx, time.Duration(req.TimeoutMillis)*time.Millisecond)
		defer done()
	}
	if err := writeFrame(conn, reply{Accepted: true}); err != nil {
		return
	}
	// The caller has nothing more to say: the next thing to be read is that it left.
	go func() {
		_, _ = conn.Read(make([]byte, 1))
		cancel()
	}()

	send := func(v any) error {
		raw, err := json.Marshal(v)
		if err != nil {
			return fmt.Errorf("encode result of %s: %w", req.Method, err)
		}
		return writeFrame(conn, reply{Result: raw})
	}
	s.mu.RLock()
	h := s.methods[req.Method]
	s.mu.RUnlock()
	end := reply{End: true}
	if h == nil {
		end = reply{Error: Errorf(CodeUnknownMethod, "the agent has no method %q", req.Method)}
	} else if err := h(call, req.Params, send); err != nil {
		end = reply{Error: AsError(err)}
	}
	_ = writeFrame(conn, end)
}

// ErrSecondAgent is wrapped by Lock's error when another agent uses the directory.
var ErrSecondAgent = errors.New("another agent is running")

// Lock makes the caller the only agent on the run directory, which it creates with mode 0700. The lock is the
// kernel's (flock), so it ends with the process however that ends; release ends it early. Callers take it before they
// touch anything that two agents could fight for.
func Lock(dir string) (release func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create run directory: %w", err)
	}
	path := filepath.Join(dir, "agent.lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		pid, _ := os.ReadFile(path)
		return nil, fmt.Errorf("%w: process %s holds %s; stop it, or give this one its own paths.run",
			ErrSecondAgent, strings.TrimSpace(string(pid)), path)
	}
	// Who holds it is only for the message above; a lock without it is as good.
	if f.Truncate(0) == nil {
		_, _ = fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	return func() { f.Close() }, nil
}

// Listen returns a listener on the unix socket path with mode 0600, in a directory that it creates with 0700. What a dead
// agent left there is replaced atomically, so a caller never finds no socket. Hold Lock when
// calling it. The socket stays when the listener is closed: connecting is then refused, which is what Away means.
func Listen(path string) (net.Listener, error) {
	// sockaddr_un has room for 107 bytes and a zero (unix(7)).
	tmp := path + ".new"
	if len(tmp) > 107 {
		return nil, fmt.Errorf("listen on %s: the path has %d bytes, a socket's can have %d", path, len(path), 107-len(".new"))
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("create run directory: %w", err)
	}
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	// The mode of a socket before bind is the mode of the file that bind makes: never open to others.
	private := func(_, _ string, c syscall.RawConn) error {
		var mode error
		if err := c.Control(func(fd uintptr) { mode = syscall.Fchmod(int(fd), 0o600) }); err != nil {
			return err
		}
		return mode
	}
	l, err := (&net.ListenConfig{Control: private}).Listen(context.Background(), "unix", tmp)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	if err := os.Rename(tmp, path); err != nil {
		l.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}
