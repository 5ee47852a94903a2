package linux

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"weft/internal/plan"
)

// setSysctl writes a value if another one is there.
//
// Turning on IPv6 forwarding makes the kernel ignore router advertisements and forget the default routes that it
// learned from them, unless accept_ra is 2; so accept_ra is raised first on interfaces where it is 1
// (kernel: Documentation/networking/ip-sysctl.rst).
func (a *apply) setSysctl(s *plan.Sysctl) error {
	return a.d.here(func() error {
		if old, err := readSysctl(s.Path); err == nil && old == s.Value {
			return nil
		}
		if on, dev := strings.CutSuffix(s.Path, "/forwarding"); dev && s.Value != "0" {
			if err := keepAdvertisements(on); err != nil {
				return err
			}
		}
		if err := writeSysctl(s.Path, s.Value); err != nil {
			return fmt.Errorf("set sysctl %s: %w", s.Path, err)
		}
		return nil
	})
}

// keepAdvertisements raises accept_ra from 1 to 2 below net/ipv6/conf/<dev>; for "all", on every interface.
func keepAdvertisements(conf string) error {
	dir, dev := path.Split(conf)
	if dir != "net/ipv6/conf/" {
		return nil
	}
	devs := []string{dev}
	if dev == "all" {
		entries, err := os.ReadDir(sysPath(dir))
		if err != nil {
			return fmt.Errorf("list %s: %w", dir, err)
		}
		devs = nil
		for _, e := range entries {
			// Interfaces to come take their value from "default". It stays, lest pods' links learn routes from pods.
			if e.Name() != "all" && e.Name() != "default" && e.Name() != "lo" {
				devs = append(devs, e.Name())
			}
		}
	}
	for _, dev := range devs {
		p := dir + dev + "/accept_ra"
		switch old, err := readSysctl(p); {
		case errors.Is(err, os.ErrNotExist):
		case err != nil:
			return fmt.Errorf("read sysctl %s: %w", p, err)
		case old == "1":
			if err := writeSysctl(p, "2"); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("set sysctl %s: %w", p, err)
			}
		}
	}
	return nil
}

// sysPath is where a sysctl of the plan is found.
func sysPath(path string) string { return "/proc/sys/" + path }

// readSysctl returns a value without its newline. Like writeSysctl it is three system calls, which package os is not: this is
// part of every pod's start. The thread must be in the namespace that is meant.
func readSysctl(path string) (string, error) {
	fd, err := unix.Open(sysPath(path), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: sysPath(path), Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	b := make([]byte, 256)
	n, err := unix.Read(fd, b)
	if err != nil {
		return "", &os.PathError{Op: "read", Path: sysPath(path), Err: err}
	}
	return strings.TrimSpace(string(b[:n])), nil
}

// writeSysctl writes a value. A file that is not there is os.ErrNotExist.
func writeSysctl(path, value string) error {
	fd, err := unix.Open(sysPath(path), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: sysPath(path), Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return &os.PathError{Op: "write", Path: sysPath(path), Err: err}
	}
	return nil
}
