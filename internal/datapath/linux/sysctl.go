package linux

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

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

// readSysctl returns a value without its newline.
func readSysctl(path string) (string, error) {
	b, err := os.ReadFile(sysPath(path))
	return strings.TrimSpace(string(b)), err
}
