package host

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	minDelay  = 100 * time.Millisecond // before the first restart; doubles
	maxDelay  = 5 * time.Second
	wellAfter = 10 * time.Second // a run that long resets the delay
)

// supervisor starts, restarts and reaps the processes of a host.
type supervisor struct {
	spec   *Spec
	dir    string
	listen net.Listener
	lock   *os.File // flock, held for life

	mu      sync.Mutex
	procs   []*proc
	waiters map[int]chan int // exit codes by pid; under mu, so that no exit is missed
	changed chan struct{}    // closed and replaced at each status change
}

// proc is one supervised process. Its fields are guarded by supervisor.mu.
type proc struct {
	Process
	status Status
	want   bool // to run: cleared by stop, set by start
	runs   int
	goOn   chan struct{}
}

func newSupervisor(spec *Spec, dir string, l net.Listener, lock *os.File) *supervisor {
	s := &supervisor{
		spec: spec, dir: dir, listen: l, lock: lock,
		waiters: map[int]chan int{}, changed: make(chan struct{}),
	}
	for _, p := range spec.Processes {
		s.procs = append(s.procs, newProc(p))
	}
	return s
}

func newProc(p Process) *proc {
	return &proc{
		Process: p, want: !p.Down, goOn: make(chan struct{}, 1),
		status: Status{Name: p.Name, State: Waiting, Since: time.Now()},
	}
}

func (s *supervisor) logf(f string, a ...any) {
	fmt.Fprintf(os.Stderr, "%s %s\n", time.Now().Format("15:04:05.000"), fmt.Sprintf(f, a...))
}

// startAll starts the spec's processes in order; a Once holds up those after it.
func (s *supervisor) startAll() {
	for i, p := range s.procs {
		if !p.Once {
			go s.run(p)
			continue
		}
		if code := s.runOnce(p); code != 0 {
			for _, q := range s.procs[i+1:] {
				s.set(q, Status{State: Failed, Message: fmt.Sprintf("%s exited with %d", p.Name, code)})
			}
			return
		}
	}
}

func (s *supervisor) runOnce(p *proc) int {
	s.waitFor(p)
	code, err := s.runToEnd(p)
	if err != nil {
		s.set(p, Status{State: Failed, ExitCode: 127, Message: err.Error()})
		return 127
	}
	s.set(p, Status{State: Exited, ExitCode: code})
	return code
}

// run keeps a process running as its policy and the operator want it.
func (s *supervisor) run(p *proc) {
	s.waitFor(p)
	delay := minDelay
	for {
		s.awaitWanted(p)
		began := time.Now()
		code, err := s.runToEnd(p)
		st := Status{State: Waiting, ExitCode: code}
		if err != nil {
			st = Status{State: Waiting, ExitCode: 127, Message: err.Error()}
		}
		s.logf("%s: exit code %d %s", p.Name, code, st.Message)
		again := p.Restart != RestartNever && (p.Restart != RestartOnFailure || st.ExitCode != 0)
		if !again {
			st.State = Exited
			if err != nil {
				st.State = Failed
			}
			s.mu.Lock()
			p.want = false
			s.mu.Unlock()
		}
		s.set(p, st)
		if !again {
			continue
		}
		if time.Since(began) > wellAfter {
			delay = minDelay
		}
		select { // a start or restart by hand does not wait
		case <-p.goOn:
		case <-time.After(delay):
		}
		delay = min(2*delay, maxDelay)
	}
}

// awaitWanted returns when the process is to run.
func (s *supervisor) awaitWanted(p *proc) {
	for {
		s.mu.Lock()
		want := p.want
		if !want && p.status.State == Waiting {
			s.setLocked(p, Status{State: Stopped, ExitCode: p.status.ExitCode})
		}
		s.mu.Unlock()
		if want {
			return
		}
		<-p.goOn
	}
}

func (s *supervisor) waitFor(p *proc) {
	for p.WaitFor != "" {
		if _, err := os.Stat(p.WaitFor); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// runToEnd starts the process once and returns its exit code.
func (s *supervisor) runToEnd(p *proc) (int, error) {
	done, err := s.spawn(p)
	if err != nil {
		return 127, err
	}
	return <-done, nil
}

func (s *supervisor) spawn(p *proc) (<-chan int, error) {
	env := append(s.spec.environ(), p.Env...)
	path, err := lookPath(p.Args[0], env)
	if err != nil {
		return nil, err
	}
	out, err := os.OpenFile(filepath.Join(s.dir, logDir, p.Name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	dir := p.Dir
	if dir == "" {
		dir = "/"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	pid, err := syscall.ForkExec(path, p.Args, &syscall.ProcAttr{
		Dir: dir, Env: env,
		Files: []uintptr{null.Fd(), out.Fd(), out.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	done := make(chan int, 1)
	s.waiters[pid] = done
	p.runs++
	s.setLocked(p, Status{State: Running, PID: pid, ExitCode: p.status.ExitCode})
	return done, nil
}

// set replaces the status of a process.
func (s *supervisor) set(p *proc, st Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setLocked(p, st)
}

func (s *supervisor) setLocked(p *proc, st Status) {
	st.Name, st.Since, st.Restarts = p.Name, time.Now(), max(p.runs-1, 0)
	p.status = st
	close(s.changed)
	s.changed = make(chan struct{})
}

// statuses returns what all processes do, and a channel that closes at the next change.
func (s *supervisor) statuses() ([]Status, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Status, 0, len(s.procs))
	for _, p := range s.procs {
		out = append(out, p.status)
	}
	return out, s.changed
}

// reap collects exit codes of the host's processes and of orphans. It is pid 1's last
// call and never returns.
func (s *supervisor) reap() {
	ch := make(chan os.Signal, 64)
	signal.Notify(ch, unix.SIGCHLD)
	// Caught and dropped, not ignored: what is ignored stays so in every child.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT, unix.SIGTERM)
	for {
		for s.reapOne() {
		}
		<-ch
	}
}

func (s *supervisor) reapOne() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ws unix.WaitStatus
	pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
	if err != nil || pid <= 0 {
		return false
	}
	if done := s.waiters[pid]; done != nil {
		delete(s.waiters, pid)
		code := ws.ExitStatus()
		if ws.Signaled() {
			code = 128 + int(ws.Signal())
		}
		done <- code
	}
	return true
}

// lookPath finds a program as execvp does, in the PATH of env.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	path := defaultPath
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			path = v
		}
	}
	for _, dir := range filepath.SplitList(path) {
		p := filepath.Join(dir, name)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, exec.ErrNotFound)
}
