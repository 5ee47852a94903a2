package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// suite is what a machine runs.
type suite struct {
	init  string // path of the static init program
	tests []testBinary
}

// testBinary is one package's tests; the exported fields are told to init.
type testBinary struct {
	Package string
	Dir     string // in the machine: working directory, holds "test" and "testdata"
	Args    []string
	binary  string
	source  string
}

// build compiles init and every package's tests, statically.
func build(ctx context.Context, dir string, o options) (suite, error) {
	s := suite{init: filepath.Join(dir, "init")}
	gobuild := func(args ...string) error {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
		}
		return nil
	}
	if err := gobuild("build", "-trimpath", "-ldflags", "-s -w", "-o", s.init, "weft/test/vm/init"); err != nil {
		return s, err
	}
	for i, p := range o.packages {
		out, err := exec.CommandContext(ctx, "go", "list", "-f", "{{.ImportPath}} {{.Dir}}", p).Output()
		if err != nil {
			return s, fmt.Errorf("no package %s: %w", p, err)
		}
		f := strings.Fields(string(out))
		t := testBinary{
			Package: f[0], source: f[1], Dir: path.Join("/src", f[0]), binary: filepath.Join(dir, fmt.Sprintf("%d.test", i)),
			Args: []string{"-test.v", "-test.run=" + o.run, "-test.skip=" + o.skip, "-test.timeout=" + o.timeout.String()},
		}
		if err := gobuild("test", "-c", "-trimpath", "-ldflags", "-s -w", "-o", t.binary, f[0]); err != nil {
			return s, err
		}
		if _, err := os.Stat(t.binary); err != nil {
			return s, fmt.Errorf("package %s has no tests", f[0])
		}
		s.tests = append(s.tests, t)
	}
	return s, nil
}

// boot runs the suite under one kernel and judges what it printed.
func boot(ctx context.Context, dir string, k kernel, s suite, o options) error {
	ramdisk := filepath.Join(dir, k.release+".cpio")
	if err := initramfs(ctx, ramdisk, k, s); err != nil {
		return fmt.Errorf("write the initramfs: %w", err)
	}
	defer os.Remove(ramdisk)
	log := filepath.Join(dir, k.release+".log")
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	// The tests have the first serial line to themselves; the kernel talks on the second. The guest's clock
	// counts its instructions (icount), so that a busy host does not make its timers expire, and waiting costs
	// nothing. QEMU 7.2 breaks the flags after cmpxchg16b, on which the kernel's allocator of 6.12 dies.
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max,-cx16", "-m", o.memory,
		"-smp", strconv.Itoa(o.cpus), "-nodefaults", "-icount", "shift=1,sleep=off", "-display", "none", "-no-reboot", "-serial", "stdio", "-serial", "file:"+log,
		"-kernel", k.image, "-initrd", ramdisk,
		"-append", "console=ttyS1 panic=-1 oops=panic loglevel=6 random.trust_cpu=on mitigations=off nokaslr tsc=reliable cryptomgr.notests audit=0 rdinit=/init")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("qemu (Debian: qemu-system-x86): %w", err)
	}
	v := verdict{verbose: o.verbose, start: start, out: os.Stdout, want: s.tests}
	v.read(k.release, out)
	err = cmd.Wait()
	if ctx.Err() != nil {
		err = fmt.Errorf("the machine did not end within %s", o.timeout)
	}
	if err = errors.Join(err, v.err()); err == nil {
		return nil
	}
	return fmt.Errorf("%w\n%s-- the end of the kernel's console:\n%s", err, stderr.String(), tail(log, 25))
}

// verdict judges a machine's output line by line.
type verdict struct {
	verbose bool
	start   time.Time
	out     io.Writer
	want    []testBinary

	pkg     string            // that runs now
	ended   map[string]string // package → exit status
	passed  int
	skipped []string
	failed  []string
	held    []string // lines of the test that runs now, shown if it fails
}

func (v *verdict) read(release string, r io.Reader) {
	v.ended = map[string]string{}
	result := regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+)`)
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	var began time.Time
	for lines.Scan() {
		line := strings.TrimRight(lines.Text(), "\r")
		mark, isMark := strings.CutPrefix(line, "@weft ")
		f := strings.Fields(mark)
		switch {
		case isMark && len(f) == 2 && f[0] == "begin":
			if len(v.ended) == 0 {
				fmt.Fprintf(v.out, "kernel %s: up after %.1f s\n", release, time.Since(v.start).Seconds())
			}
			v.pkg, began, v.held = f[1], time.Now(), nil
			v.passed, v.skipped = 0, nil
			continue
		case isMark && len(f) == 3 && f[0] == "end":
			v.ended[v.pkg] = f[2]
			v.report(release, f[2], time.Since(began))
			continue
		case isMark:
			fmt.Fprintf(v.out, "kernel %s: %s\n", release, mark)
			continue
		}
		v.held = append(v.held, line)
		if v.verbose {
			fmt.Fprintln(v.out, line)
		}
		if m := result.FindStringSubmatch(line); m != nil {
			v.count(m[1], m[2])
		}
	}
}

func (v *verdict) count(result, name string) {
	switch result {
	case "PASS":
		v.passed++
	case "SKIP":
		v.skipped = append(v.skipped, name)
	case "FAIL":
		v.failed = append(v.failed, v.pkg+" "+name)
	}
}

// report prints one line for a package, and everything that it said if it failed.
func (v *verdict) report(release, status string, took time.Duration) {
	var b strings.Builder // written at once: another machine may be writing, too
	word := "ok  "
	if status != "0" || v.passed == 0 {
		word = "FAIL"
		if !v.verbose {
			fmt.Fprintln(&b, strings.Join(v.held, "\n"))
		}
	}
	if status == "0" && v.passed == 0 {
		v.failed = append(v.failed, v.pkg+": no test ran")
	}
	fmt.Fprintf(&b, "%s %s on %s: %d passed, %d skipped in %.1f s\n", word, v.pkg, release, v.passed, len(v.skipped), took.Seconds())
	for _, name := range v.skipped {
		fmt.Fprintf(&b, "     skipped: %s: %s\n", name, v.reason(name))
	}
	_, _ = io.WriteString(v.out, b.String())
}

// reason finds what a skipped test said last: while it ran, or beside its result.
func (v *verdict) reason(name string) string {
	said := regexp.MustCompile(`^\s*(\S+\.go:\d+: .*)`)
	now, why := "", "no reason given"
	for i, line := range v.held {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "===" {
			now = f[2]
		}
		near := strings.Contains(line, "--- SKIP: "+name+" ") && i+1 < len(v.held)
		if near {
			line = v.held[i+1]
		}
		if m := said.FindStringSubmatch(line); m != nil && (near || now == name) {
			why = m[1]
		}
	}
	return why
}

// err says why the run as a whole is no success, nil if it is.
func (v *verdict) err() error {
	var errs []error
	for _, t := range v.want {
		switch status, ended := v.ended[t.Package]; {
		case !ended && v.pkg == t.Package:
			errs = append(errs, fmt.Errorf("%s did not end; its last lines:\n%s", t.Package, strings.Join(v.held[max(0, len(v.held)-25):], "\n")))
		case !ended:
			errs = append(errs, fmt.Errorf("%s was not run", t.Package))
		case status != "0":
			errs = append(errs, fmt.Errorf("%s: exit status %s", t.Package, status))
		}
	}
	if len(v.failed) > 0 {
		errs = append(errs, fmt.Errorf("failed:\n  %s", strings.Join(v.failed, "\n  ")))
	}
	return errors.Join(errs...)
}

// tail returns the last n lines of a file.
func tail(file string, n int) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
