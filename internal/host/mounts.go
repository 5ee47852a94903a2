package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// tree builds the file system of a host, as its pid 1. dir is a path of the host's
// directory that stays valid whatever is mounted over it (/proc/self/fd/N).
type tree struct {
	spec *Spec
	dir  string
}

func (t *tree) build() error {
	cgroups, err := hierarchies()
	if err != nil {
		return err
	}
	sources, err := t.openSources()
	if err != nil {
		return err
	}
	defer func() {
		for _, f := range sources {
			f.Close()
		}
	}()
	if err := releaseNamespaces(); err != nil {
		return err
	}
	steps := []func() error{
		t.readOnly,
		func() error { return mount("proc", "/proc", "proc", 0, "") },
		sysfs,
		func() error { return t.system(cgroups) },
		t.directories,
		func() error { return t.binds(sources) },
		t.files,
		t.masks,
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	if !t.spec.System {
		return nil
	}
	// Volume mounts of containers may want to propagate; it ends at this namespace.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make mounts shared: %w", err)
	}
	return nil
}

// readOnly makes every mount that came from the machine read-only, but for the host's
// own directory. Mounts that follow are writable.
func (t *tree) readOnly() error {
	if !t.spec.ReadOnly {
		return nil
	}
	ro := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, &ro); err != nil {
		return fmt.Errorf("make mounts read-only: %w", err)
	}
	return writable(t.dir)
}

// writable undoes readOnly for one mount.
func writable(path string) error {
	rw := unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, path, 0, &rw); err != nil {
		return fmt.Errorf("make %s writable: %w", path, err)
	}
	return nil
}

// openSources opens what Binds show before anything is mounted over it.
func (t *tree) openSources() ([]*os.File, error) {
	files := make([]*os.File, 0, len(t.spec.Binds))
	for _, b := range t.spec.Binds {
		fd, err := unix.Open(b.Source, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return files, fmt.Errorf("bind %s: %w", b.Source, err)
		}
		files = append(files, os.NewFile(uintptr(fd), b.Source))
	}
	return files, nil
}

// releaseNamespaces detaches the copies of other users' `ip netns` mounts, which
// would keep their network namespaces alive.
func releaseNamespaces() error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for _, line := range strings.Split(string(b), "\n") {
		left, right, _ := strings.Cut(line, " - ")
		if f := strings.Fields(left); len(f) > 4 && strings.HasPrefix(right, "nsfs ") {
			_ = unix.Unmount(f[4], unix.MNT_DETACH)
		}
	}
	return nil
}

// sysfs shows this network namespace. It is there already where the host shares one.
func sysfs() error {
	err := mount("sysfs", "/sys", "sysfs", 0, "")
	if errors.Is(err, unix.EBUSY) {
		return nil
	}
	return err
}

// system mounts the cgroup hierarchies where the machine has them, and bpffs.
func (t *tree) system(cgroups []hierarchy) error {
	if !t.spec.System {
		return nil
	}
	if !slices.ContainsFunc(cgroups, func(h hierarchy) bool { return h.mount == "/sys/fs/cgroup" }) {
		if err := mount("tmpfs", "/sys/fs/cgroup", "tmpfs", 0, "mode=755"); err != nil {
			return err
		}
	}
	for _, h := range cgroups {
		typ := "cgroup"
		if h.unified {
			typ = "cgroup2"
		}
		if err := mount(typ, h.mount, typ, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, h.options); err != nil {
			return err
		}
	}
	if err := mount("bpf", "/sys/fs/bpf", "bpf", 0, "mode=700"); err != nil {
		return err
	}
	_ = unix.Mount("tracefs", "/sys/kernel/tracing", "tracefs", 0, "") // not every kernel has it
	return nil
}

// directories mounts Private, Overlay and Volatile.
func (t *tree) directories() error {
	for _, d := range t.spec.Private {
		src := filepath.Join(t.dir, fsDir, d)
		if err := os.MkdirAll(src, 0o755); err != nil {
			return err
		}
		if err := mount(src, d, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	for _, d := range t.spec.Overlay {
		if err := t.overlay(d); err != nil {
			return err
		}
	}
	for _, d := range t.spec.Volatile {
		if err := mount("tmpfs", d, "tmpfs", 0, "mode=755"); err != nil {
			return err
		}
	}
	return nil
}

// overlay mounts one Overlay directory. Where the host's directory cannot hold the
// upper layer, as on the overlay root of a container, a tmpfs does: what is written
// then does not survive a restart.
func (t *tree) overlay(d string) error {
	err := t.overlayIn(t.dir, d)
	if !errors.Is(err, unix.EINVAL) {
		return err
	}
	volatile := filepath.Join(t.dir, "volatile", d)
	if err := mount("tmpfs", volatile, "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	return t.overlayIn(volatile, d)
}

func (t *tree) overlayIn(dir, d string) error {
	upper, work := filepath.Join(dir, fsDir, d), filepath.Join(dir, "work", d)
	for _, p := range []string{upper, work} {
		if err := os.MkdirAll(p, 0o755); err != nil {
			return err
		}
	}
	return mount("overlay", d, "overlay", 0, "lowerdir="+d+",upperdir="+upper+",workdir="+work)
}

func (t *tree) binds(sources []*os.File) error {
	for i, b := range t.spec.Binds {
		src := "/proc/self/fd/" + strconv.Itoa(int(sources[i].Fd()))
		st, err := os.Stat(src)
		if err != nil {
			return err
		}
		if st.IsDir() {
			err = os.MkdirAll(b.Target, 0o755)
		} else {
			err = touch(b.Target)
		}
		if err != nil {
			return err
		}
		if err := mount(src, b.Target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return err
		}
		switch {
		case b.ReadOnly:
			err = unix.Mount("", b.Target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
		case t.spec.ReadOnly:
			err = writable(b.Target) // it is a copy of what became read-only
		}
		if err != nil {
			return fmt.Errorf("bind %s: %w", b.Target, err)
		}
	}
	return nil
}

func (t *tree) files() error {
	for path, content := range t.spec.Files {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (t *tree) masks() error {
	for path, content := range t.spec.Masks {
		src := filepath.Join(t.dir, "masks", path)
		if err := os.MkdirAll(filepath.Dir(src), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(src, []byte(content), 0o644); err != nil {
			return err
		}
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			continue // nothing to hide
		}
		if err := mount(src, path, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	return nil
}

// sysctls sets what this kernel and this kind of namespace have.
func sysctls(values map[string]string) error {
	for k, v := range values {
		err := os.WriteFile(filepath.Join("/proc/sys", k), []byte(v), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("set sysctl %s to %q: %w", k, v, err)
		}
	}
	return nil
}

func touch(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

func mount(src, dst, typ string, flags uintptr, data string) error {
	// A mount point that exists may be on a read-only file system.
	if _, err := os.Stat(dst); err != nil {
		if err := os.MkdirAll(dst, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount(src, dst, typ, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s (%s %s): %w", src, dst, typ, data, err)
	}
	return nil
}
