package host

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// hierarchy is one mounted cgroup tree: version 1 with some controllers or version 2.
type hierarchy struct {
	mount   string // where it is mounted
	unified bool   // version 2
	options string // version 1: what a further mount of it has to say
}

// hierarchies lists the cgroup mounts of this mount namespace in the order of their paths.
func hierarchies() ([]hierarchy, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var hs []hierarchy
	seen := map[string]bool{} // a tree that is mounted twice is one tree
	for sc := bufio.NewScanner(f); sc.Scan(); {
		left, right, ok := strings.Cut(sc.Text(), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(r) < 3 || !strings.HasPrefix(r[0], "cgroup") {
			continue
		}
		h := hierarchy{mount: l[4], unified: r[0] == "cgroup2"}
		var fs unix.Statfs_t // a mount may be hidden under another
		if unix.Statfs(h.mount, &fs) != nil || fs.Type != unix.CGROUP_SUPER_MAGIC && fs.Type != unix.CGROUP2_SUPER_MAGIC {
			continue
		}
		if !h.unified {
			var opts []string
			for _, o := range strings.Split(r[2], ",") {
				switch {
				case strings.HasPrefix(o, "name="):
					opts = append(opts, "none", o)
				case o != "rw" && o != "ro" && o != "xattr" && o != "clone_children" && !strings.HasPrefix(o, "release_agent="):
					opts = append(opts, o)
				}
			}
			h.options = strings.Join(opts, ",")
		}
		if id := fmt.Sprint(h.unified, h.options); !seen[id] {
			seen[id] = true
			hs = append(hs, h)
		}
	}
	slices.SortFunc(hs, func(a, b hierarchy) int { return strings.Compare(a.mount, b.mount) })
	return hs, nil
}

// makeCgroups creates the directory of that name in every hierarchy.
func makeCgroups(name string) error {
	hs, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range hs {
		dir := h.mount
		for _, part := range strings.Split(name, "/") {
			if h.unified && dir != h.mount { // what the machine offers at its root is its business
				delegate(dir)
			}
			up := dir
			dir = filepath.Join(dir, part)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("create cgroup: %w", err)
			}
			if strings.Contains(h.options, "cpuset") {
				inheritCpuset(up, dir)
			}
		}
	}
	return nil
}

// delegate offers all controllers of a version 2 cgroup to its children. What is
// not allowed there stays off: a host works without, only limits do not.
func delegate(dir string) {
	b, _ := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	for _, c := range strings.Fields(string(b)) {
		_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0)
	}
}

// inheritCpuset fills a new version 1 cpuset, which no process can enter while it is empty.
func inheritCpuset(from, to string) {
	for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
		if b, err := os.ReadFile(filepath.Join(from, f)); err == nil {
			_ = os.WriteFile(filepath.Join(to, f), b, 0)
		}
	}
	_ = os.WriteFile(filepath.Join(to, "cgroup.clone_children"), []byte("1"), 0)
}

// cgroupsOf returns the directories of the cgroups that the process is in, as
// they are seen by the caller.
func cgroupsOf(pid int) (dirs []string, unified string, err error) {
	hs, err := hierarchies()
	if err != nil {
		return nil, "", err
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return nil, "", err
	}
	for _, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		f := strings.SplitN(line, ":", 3)
		if len(f) != 3 {
			continue
		}
		for _, h := range hs {
			switch {
			case h.unified && f[0] == "0":
				unified = filepath.Join(h.mount, f[2])
			case !h.unified && sameControllers(f[1], h.options):
				dirs = append(dirs, filepath.Join(h.mount, f[2]))
			}
		}
	}
	return dirs, unified, nil
}

func sameControllers(a, b string) bool {
	norm := func(s string) []string {
		l := strings.Split(strings.TrimPrefix(s, "none,"), ",")
		slices.Sort(l)
		return l
	}
	return slices.Equal(norm(a), norm(b))
}

// namedCgroups returns the directories of the cgroup with that name.
func namedCgroups(name string) (dirs []string, unified string, err error) {
	hs, err := hierarchies()
	for _, h := range hs {
		if h.unified {
			unified = filepath.Join(h.mount, name)
		} else {
			dirs = append(dirs, filepath.Join(h.mount, name))
		}
	}
	return dirs, unified, err
}

// joinThread moves the calling thread, alone, into version 1 cgroups. What it forks
// afterwards is born there. The caller has locked the thread and lets it die.
func joinThread(dirs []string) error {
	tid := []byte(strconv.Itoa(unix.Gettid()))
	for _, d := range dirs {
		if err := os.WriteFile(filepath.Join(d, "tasks"), tid, 0); err != nil {
			return fmt.Errorf("enter cgroup: %w", err)
		}
	}
	return nil
}

// leafCgroup moves this process into a child of its cgroup namespace's root and
// offers the controllers to the root's children. On version 2 a cgroup with
// processes cannot do that, and a kubelet needs it. No-op with version 1 controllers.
func leafCgroup() error {
	hs, err := hierarchies()
	if err != nil || len(hs) != 1 || !hs[0].unified {
		return err
	}
	leaf := filepath.Join(hs[0].mount, "init")
	if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("create cgroup: %w", err)
	}
	if err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte("0"), 0); err != nil {
		return fmt.Errorf("enter cgroup: %w", err)
	}
	delegate(hs[0].mount)
	return nil
}

// killCgroup kills every process in the cgroup of that name and below.
func killCgroup(name string) error {
	return eachCgroup(name, func(dir string, _ bool) error {
		if os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0) == nil {
			return nil // version 2, Linux 5.14
		}
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		for _, f := range strings.Fields(string(b)) {
			if pid, _ := strconv.Atoi(f); pid > 0 && pid != os.Getpid() {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		return err
	})
}

// removeCgroup removes the cgroup of that name, and those below it, from every
// hierarchy. Processes that are dying there are waited for, up to five seconds.
func removeCgroup(name string) error {
	var err error
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		err = eachCgroup(name, func(dir string, _ bool) error { return os.Remove(dir) })
		if err == nil || time.Now().After(end) {
			return err
		}
	}
}

// eachCgroup calls do for the cgroup of that name and all below it, deepest first,
// in every hierarchy. What has vanished meanwhile is no error.
func eachCgroup(name string, do func(dir string, unified bool) error) error {
	if name == "" || !filepath.IsLocal(name) || name == "." {
		return fmt.Errorf("cgroup name %q", name)
	}
	hs, err := hierarchies()
	errs := []error{err}
	for _, h := range hs {
		var dirs []string
		_ = filepath.WalkDir(filepath.Join(h.mount, name), func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return nil // a directory that vanished is what we want
		})
		slices.Reverse(dirs)
		for _, d := range dirs {
			if err := do(d, h.unified); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}
