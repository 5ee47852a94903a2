package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"weft/test/bench/lab"
)

// binariesEnv tells the isolated half of a test where the programs are that its other half has built. Set
// it to use programs of your own.
const binariesEnv = "WEFT_BENCH_TEST_BINARIES"

// isolated runs the rest of a test as pid 1 of its own namespaces, with weft and weft-cni built. It returns
// the rig there, and nil in the process that only waits for it.
func isolated(t *testing.T) (*rig, *options) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	if os.Getenv(lab.IsolatedEnv) == "" {
		if os.Getenv(binariesEnv) == "" {
			t.Setenv(binariesEnv, t.TempDir())
			cmd := lab.Program("go", "build", "-trimpath", "-o", os.Getenv(binariesEnv)+"/", "weft/cmd/weft", "weft/cmd/weft-cni")
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("build: %v\n%s", err, out)
			}
		}
		if err := lab.Isolate([]string{"-test.run=^" + t.Name() + "$", "-test.v", "-test.timeout=120s"}); err != nil {
			t.Fatalf("in its own namespaces: %v", err)
		}
		return nil, nil
	}
	if err := lab.PrivateMounts(); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{&lab.Lab{Ctx: context.Background(), Dir: t.TempDir(), Self: self, Weft: os.Getenv(binariesEnv), Log: t.Logf}}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r, &options{weft: os.Getenv(binariesEnv), rounds: 1, pods: 20}
}

// systemCalls counts the system calls of a program that strace follows, by name. What the Go runtime does for its
// own scheduling is left out: it depends on the weather.
func systemCalls(trace string) map[string]int {
	raw, _ := os.ReadFile(trace)
	counts := map[string]int{}
	for _, l := range strings.Split(string(raw), "\n") {
		fields := strings.Fields(l)
		if len(fields) < 2 || strings.Contains(l, "resumed>") {
			continue
		}
		name, _, found := strings.Cut(fields[1], "(")
		if !found || name == "" {
			continue
		}
		switch name {
		case "futex", "nanosleep", "epoll_pwait", "sched_yield", "tgkill", "getpid", "rt_sigreturn", "madvise", "mmap",
			"munmap", "clone", "clone3", "rt_sigprocmask", "sigaltstack", "gettid", "timer_settime", "restart_syscall", "rt_sigaction":
			continue
		}
		counts[name]++
	}
	return counts
}

func total(counts map[string]int) (n int) {
	for _, c := range counts {
		n += c
	}
	return n
}

// What one ADD and one DEL cost in system calls, in the plugin and in the agent. Time depends on the machine,
// these numbers do not; system calls are what an ADD consists of.
func TestSystemCallsPerADD(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("needs strace")
	}
	r, o := isolated(t)
	if r == nil {
		return
	}
	s, err := r.weftSubject(o, "weft", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.weft.Stop()
	for i := range 3 { // what is done once
		if err := lab.InNS(s.node, func() error { return s.add(i) }); err != nil {
			t.Fatal(err)
		}
	}
	trace := filepath.Join(r.Dir, "plugin.trace")
	plain := s.weft.Plugin.Binary
	wrapper := filepath.Join(r.Dir, "traced")
	script := fmt.Sprintf("#!/bin/sh\nexec strace -f -qq -o %s %s\n", trace, plain)
	if err := os.WriteFile(wrapper, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	s.weft.Plugin.Binary = wrapper
	if err := lab.InNS(s.node, func() error { return s.add(3) }); err != nil {
		t.Fatal(err)
	}
	s.weft.Plugin.Binary = plain
	inPlugin := systemCalls(trace)

	const pods = 10
	inAgent := r.traceAgent(t, s, func() error {
		for i := 4; i < 4+pods; i++ {
			if err := s.add(i); err != nil {
				return err
			}
		}
		return nil
	})
	t.Logf("plugin, one ADD: %d: %v", total(inPlugin), inPlugin)
	t.Logf("agent, %d ADDs: %d each: %v", pods, total(inAgent)/pods, inAgent)
	if total(inPlugin) == 0 || total(inAgent) == 0 {
		t.Fatal("strace saw nothing: the test is broken")
	}
	const pluginBound, agentBound = 65, 260 // 243 with policy: the shut link, identity, guard and their numbers
	if n := total(inPlugin); n > pluginBound {
		t.Errorf("the plugin makes %d system calls in an ADD, more than %d", n, pluginBound)
	}
	if n := total(inAgent) / pods; n > agentBound {
		t.Errorf("the agent makes %d system calls for an ADD, more than %d", n, agentBound)
	}
	if n := inPlugin["execve"] + inAgent["execve"] + inAgent["vfork"]; n > 1 {
		t.Errorf("an ADD executes %d programs, not just the plugin", n)
	}
}

// traceAgent counts the agent's system calls while f runs in the node's namespace.
func (r *rig) traceAgent(t *testing.T, s *subject, f func() error) map[string]int {
	t.Helper()
	trace := filepath.Join(r.Dir, "agent.trace")
	cmd := lab.Program("strace", "-f", "-qq", "-o", trace, "-p", strconv.Itoa(s.weft.Agent.Process.Pid))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tracer := func() string { return strconv.Itoa(cmd.Process.Pid) }
	if err := lab.Await("strace to attach", 10*time.Second, nil, func() bool {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", s.weft.Agent.Process.Pid))
		for _, task := range tasks {
			raw, _ := os.ReadFile(task)
			if !strings.Contains(string(raw), "TracerPid:\t"+tracer()+"\n") {
				return false
			}
		}
		return len(tasks) > 0
	}); err != nil {
		t.Fatal(err)
	}
	if err := lab.InNS(s.node, f); err != nil {
		t.Error(err)
	}
	_ = cmd.Process.Signal(syscall.SIGINT)
	_ = cmd.Wait()
	return systemCalls(trace)
}
