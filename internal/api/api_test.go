package api

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// serve runs a server with the handlers on a socket until the test ends.
func serve(t *testing.T, handlers map[string]Handler) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "run", SocketName)
	l, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer()
	for name, h := range handlers {
		s.Handle(name, h)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return socket
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestCall(t *testing.T) {
	socket := serve(t, map[string]Handler{
		"double": Func(func(_ context.Context, n int) (int, error) { return 2 * n, nil }),
		"refuse": Func(func(context.Context, int) (int, error) {
			return 0, fmt.Errorf("add pod a/b: %w", &Error{Code: CodeExhausted, Msg: "no address", Details: "top: x"})
		}),
		"plain": Func(func(context.Context, int) (int, error) { return 0, errors.New("oops") }),
		"none":  func(context.Context, json.RawMessage, func(any) error) error { return nil },
	})
	ctx := within(t)
	var n int
	if err := Call(ctx, socket, "double", 21, &n); err != nil || n != 42 {
		t.Fatalf("double: %d, %v", n, err)
	}
	if err := Call(ctx, socket, "none", nil, nil); err != nil {
		t.Fatalf("none: %v", err)
	}
	for method, want := range map[string]Error{
		"refuse":  {Code: CodeExhausted, Msg: "add pod a/b: no address: top: x"},
		"plain":   {Code: CodeInternal, Msg: "oops"},
		"missing": {Code: CodeUnknownMethod, Msg: `the agent has no method "missing"`},
	} {
		var e *Error
		if err := Call(ctx, socket, method, 1, &n); !errors.As(err, &e) || *e != want || Away(err) {
			t.Errorf("%s: got %#v, want %#v", method, e, want)
		}
	}
	var e *Error
	if err := Call(ctx, socket, "double", "word", &n); !errors.As(err, &e) || e.Code != CodeDecode {
		t.Errorf("wrong type: %v", err)
	}
}

func TestStream(t *testing.T) {
	socket := serve(t, map[string]Handler{
		"count": func(_ context.Context, _ json.RawMessage, send func(any) error) error {
			for i := range 100 {
				if err := send(i); err != nil {
					return err
				}
			}
			return nil
		},
	})
	sum := 0
	err := Stream(within(t), socket, "count", nil, func(raw json.RawMessage) error {
		var i int
		sum += i
		err := json.Unmarshal(raw, &i)
		sum += i
		return err
	})
	if err != nil || sum != 4950 {
		t.Fatalf("sum %d, %v", sum, err)
	}
	stop := errors.New("enough")
	if err := Stream(within(t), socket, "count", nil, func(json.RawMessage) error { return stop }); !errors.Is(err, stop) {
		t.Fatalf("got %v", err)
	}
}

// TestGone checks that a handler's context ends with its caller and with the caller's deadline, and that the caller
// learns of an agent that dies.
func TestGone(t *testing.T) {
	started, ended := make(chan struct{}), make(chan error)
	socket := serve(t, map[string]Handler{
		"wait": func(ctx context.Context, _ json.RawMessage, _ func(any) error) error {
			started <- struct{}{}
			<-ctx.Done()
			ended <- ctx.Err()
			return ctx.Err()
		},
	})
	await := func() error {
		t.Helper()
		select {
		case err := <-ended:
			return err
		case <-time.After(5 * time.Second):
			t.Fatal("the handler's context did not end")
			return nil
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- Call(ctx, socket, "wait", nil, nil) }()
	<-started
	cancel()
	if err := await(); !errors.Is(err, context.Canceled) {
		t.Errorf("disconnect: handler saw %v", err)
	}
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("disconnect: caller saw %v", err)
	}

	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	go func() { result <- Call(ctx, socket, "wait", nil, nil) }()
	<-started
	await()
	if err := <-result; !errors.Is(err, context.DeadlineExceeded) {
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("deadline: caller saw %v", err)
		}
	}
}

func TestAway(t *testing.T) {
	dir := t.TempDir()
	missing := Call(within(t), filepath.Join(dir, "no.sock"), "x", nil, nil)
	if !Away(missing) {
		t.Errorf("no socket: %v", missing)
	}
	// A closed listener leaves its file, as a killed agent does.
	path := filepath.Join(dir, "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := Call(within(t), path, "x", nil, nil); !Away(err) {
		t.Errorf("stale socket: %v", err)
	}
	if l, err = Listen(path); err != nil {
		t.Fatalf("replace the stale socket: %v", err)
	}
	go func() {
		conn, err := l.Accept()
		if err == nil {
			var r request
			_ = readFrame(conn, &r)
			conn.Close()
		}
	}()
	if err := Call(within(t), path, "x", nil, nil); !Away(err) {
		t.Errorf("agent died: %v", err)
	}

	// A stopped agent's kernel still accepts connections.
	before := time.Now()
	if err := Call(within(t), path, "x", nil, nil); !Away(err) || !strings.Contains(err.Error(), "hangs") {
		t.Errorf("agent hangs: %v", err)
	}
	if d := time.Since(before); d > 2*time.Second {
		t.Errorf("a hanging agent was noticed after %s", d)
	}
	l.Close()
}

func TestListenModes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "deep", SocketName)
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for p, want := range map[string]os.FileMode{path: 0o600 | os.ModeSocket, filepath.Dir(path): 0o700 | os.ModeDir} {
		if st, err := os.Stat(p); err != nil || st.Mode() != want {
			t.Errorf("%s: mode %v, %v; want %v", p, st.Mode(), err, want)
		}
	}
	if _, err := Listen("/" + strings.Repeat("x", 120)); err == nil || !strings.Contains(err.Error(), "121 bytes") {
		t.Errorf("long path: %v", err)
	}
}

// TestLock checks the lock against another process, because flock is per open file and death must end it.
func TestLock(t *testing.T) {
	if dir := os.Getenv("TEST_LOCK_DIR"); dir != "" {
		if _, err := Lock(dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("locked")
		_, _ = io.Copy(io.Discard, os.Stdin) // until killed
		return
	}
	dir := filepath.Join(t.TempDir(), "run")
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestLock$")
	cmd.Env = append(os.Environ(), "TEST_LOCK_DIR="+dir)
	in, _ := cmd.StdinPipe()
	defer in.Close()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, len("locked\n"))
	if _, err := io.ReadFull(out, line); err != nil || string(line) != "locked\n" {
		t.Fatalf("child: %q, %v", line, err)
	}
	_, err := Lock(dir)
	if !errors.Is(err, ErrSecondAgent) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", cmd.Process.Pid)) {
		t.Errorf("second agent: %v", err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	release, err := Lock(dir)
	if err != nil {
		t.Fatalf("after the holder died: %v", err)
	}
	release()
	if release, err = Lock(dir); err != nil {
		t.Fatalf("after release: %v", err)
	}
	release()
}

func TestFrameLimits(t *testing.T) {
	frame := func(n uint32, doc string) []byte { return append(binary.BigEndian.AppendUint32(nil, n), doc...) }
	for name, in := range map[string][]byte{
		"too long":    frame(MaxFrame+1, "{}"),
		"huge":        frame(0xffffffff, "{}"),
		"empty":       frame(0, ""),
		"short head":  {0, 0},
		"short body":  frame(10, "{}"),
		"no json":     frame(3, "{,}"),
		"wrong type":  frame(15, `{"method":true}`),
		"http client": []byte("GET / HTTP/1.1\r\n\r\n"),
	} {
		var r request
		if err := readFrame(bytes.NewReader(in), &r); !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var r request
	if err := readFrame(bytes.NewReader(nil), &r); !errors.Is(err, io.EOF) {
		t.Errorf("closed: %v", err)
	}
	if err := writeFrame(io.Discard, strings.Repeat("x", MaxFrame)); err == nil {
		t.Error("oversized frame was written")
	}
}

// TestParallel is the burst: many callers at once, each gets its own answer.
func TestParallel(t *testing.T) {
	socket := serve(t, map[string]Handler{
		"echo": Func(func(_ context.Context, n int) (int, error) { return n, nil }),
	})
	var wg sync.WaitGroup
	for i := range 250 {
		wg.Go(func() {
			var n int
			if err := Call(within(t), socket, "echo", i, &n); err != nil || n != i {
				t.Errorf("call %d: %d, %v", i, n, err)
			}
		})
	}
	wg.Wait()
}

// FuzzServer sends arbitrary bytes to a live server, which must answer the next caller.
func FuzzServer(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Add([]byte("\x00\x00\x00\x11{\"method\":\"echo\"}"))
	f.Add([]byte("\xff\xff\xff\xff{\"method\":\"echo\"}"))
	f.Add([]byte("\x00\x00\x00\x2b{\"method\":\"echo\",\"params\":7,\"timeoutMillis\":-1}"))
	s := NewServer()
	s.Handle("echo", Func(func(_ context.Context, n int) (int, error) { return n, nil }))
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, bytes := range [][]byte{in, append([]byte("\x00\x00\x00\x1c"), `{"method":"echo","params":7}`...)} {
			us, them := net.Pipe()
			done := make(chan struct{})
			go func() { s.serve(t.Context(), them); close(done) }()
			go func() { _, _ = us.Write(bytes) }()
			if len(bytes) < 4 || len(in) == len(bytes) {
				// Hang up: what a fuzzed frame gets as an answer is only that the server ends.
				go func() { _, _ = io.Copy(io.Discard, us) }()
				time.AfterFunc(time.Millisecond, func() { us.Close() })
			} else {
				for want := range []int{0, 1} {
					var rep reply
					if err := readFrame(us, &rep); err != nil || rep.Accepted != (want == 0) || want == 1 && string(rep.Result) != "7" {
						t.Fatalf("after %q: %+v, %v", in, rep, err)
					}
				}
				us.Close()
			}
			<-done
		}
	})
}
