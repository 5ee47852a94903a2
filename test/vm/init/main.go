// Command init is the first and only program of the test machine: it mounts what Linux offers,
// loads the modules, runs the test binaries one after the other and powers the machine off.
//
// It is not for use outside of package vm's machine. It talks to it in lines "@weft …".
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/testkit"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "init: I am the first process of a test machine, or nothing")
		os.Exit(2)
	}
	defer off()
	console, err := setUp()
	if err != nil {
		// Nobody may be listening but the kernel's console.
		fmt.Printf("@weft problem: %v\n", err)
		return
	}
	// Else each new namespace would have a tunl0, sit0, gre0 … of its own.
	if err := os.WriteFile("/proc/sys/net/core/fb_tunnels_only_for_init_net", []byte("2"), 0o644); err != nil {
		fmt.Fprintf(console, "@weft %v\n", err)
	}
	kernel := uptime()
	for _, p := range load() {
		fmt.Fprintf(console, "@weft module not loaded: %v\n", p)
	}
	fmt.Fprintf(console, "@weft the kernel took %s of its own time, the modules %s\n", kernel, uptime()-kernel)
	if err := runAll(console); err != nil {
		fmt.Fprintf(console, "@weft problem: %v\n", err)
	}
	_ = console.Sync()
}

// off ends the machine. There is no disk to sync.
func off() { _ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) }

// uptime is how long the machine has been running by its own clock.
func uptime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano()).Round(10 * time.Millisecond)
}

// setUp makes the file systems that tests expect and opens the serial line.
func setUp() (*os.File, error) {
	mounts := []struct{ kind, at, data string }{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"devtmpfs", "/dev", ""},
		{"tmpfs", "/tmp", ""},
		{"tmpfs", "/run", ""},
		{"tmpfs", "/dev/shm", ""},
		{"devpts", "/dev/pts", ""},
		{"bpf", "/sys/fs/bpf", ""},
		{"cgroup2", "/sys/fs/cgroup", ""},
		{"tracefs", "/sys/kernel/tracing", ""},
	}
	var errs []error
	for _, m := range mounts {
		if strings.HasPrefix(m.at, "/dev/") {
			_ = os.Mkdir(m.at, 0o755)
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, m.data); err != nil && !errors.Is(err, unix.EBUSY) {
			errs = append(errs, fmt.Errorf("mount %s on %s: %w", m.kind, m.at, err))
		}
	}
	// Mounts of a test's namespaces must not come back here.
	errs = append(errs, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), unix.Sethostname([]byte("vm")))
	// Tests find their own file descriptors in /dev/fd.
	_ = os.Symlink("/proc/self/fd", "/dev/fd")
	console, err := os.OpenFile("/dev/ttyS0", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	for _, e := range errs {
		if e != nil {
			fmt.Fprintf(console, "@weft %v\n", e)
		}
	}
	return console, nil
}

// load loads the modules in the order of their file names and returns what went wrong.
func load() (problems []error) {
	files, _ := filepath.Glob("/modules/*")
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
			problems = append(problems, fmt.Errorf("%s: %w", filepath.Base(name), err))
		}
		f.Close()
	}
	return problems
}

// runAll runs every test binary with its output on the serial line.
func runAll(console *os.File) error {
	b, err := os.ReadFile("/tests.json")
	if err != nil {
		return err
	}
	var tests []struct {
		Package, Dir string
		Args         []string
	}
	if err := json.Unmarshal(b, &tests); err != nil {
		return fmt.Errorf("read /tests.json: %w", err)
	}
	if out, err := exec.Command("/usr/bin/ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		fmt.Fprintf(console, "@weft ip link set lo up: %v: %s\n", err, out)
	}
	for _, t := range tests {
		fmt.Fprintf(console, "@weft begin %s\n", t.Package)
		cmd := exec.Command(filepath.Join(t.Dir, "test"), t.Args...)
		cmd.Dir, cmd.Stdout, cmd.Stderr = t.Dir, console, console
		cmd.Env = []string{"PATH=/usr/bin", "HOME=/root", "TMPDIR=/tmp", "USER=root", testkit.RequiredEnv + "=" + testkit.SCTP + " " + testkit.VLAN}
		status := 0
		if err := cmd.Run(); err != nil {
			status = cmd.ProcessState.ExitCode()
			fmt.Fprintln(console, err)
		}
		fmt.Fprintf(console, "\n@weft end %s %d\n", t.Package, status)
	}
	return nil
}
