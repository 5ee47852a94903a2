package ebpf

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"weft/internal/model"
)

const (
	reasonType   = "weft_reason"
	reasonPrefix = "WEFT_"
	reasonEnd    = "WEFT_REASONS"
	layoutPrefix = "maps-"
	linksDir     = "links"
)

// ensureBPFFS makes dir and all above it, and mounts a bpffs if it would not be on one: on /sys/fs/bpf, where
// everybody expects it, if dir is below that, else on dir itself.
func ensureBPFFS(dir string) error {
	at := dir
	if std := "/sys/fs/bpf"; dir == std || strings.HasPrefix(dir, std+"/") {
		at = std
	}
	if err := os.MkdirAll(at, 0o700); err != nil {
		return fmt.Errorf("make directory %s for BPF pins: %w", at, err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(at, &fs); err != nil {
		return fmt.Errorf("find out what file system %s is on: %w", at, err)
	}
	if fs.Type != unix.BPF_FS_MAGIC {
		if err := unix.Mount("bpf", at, "bpf", 0, "mode=0700"); err != nil {
			return fmt.Errorf("%s is not on a BPF file system and none can be mounted there "+
				"(paths.bpf must be on one; in a container, mount the host's /sys/fs/bpf): %w", at, err)
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make directory %s for BPF pins: %w", dir, err)
	}
	return nil
}

// load loads all programs with the maps pinned for their layout, which are made if they are not there.
func (d *Driver) load() (*ebpf.CollectionSpec, error) {
	spec, err := loadWeft()
	if err != nil {
		return nil, fmt.Errorf("read the embedded BPF object: %w", err)
	}
	if d.names, err = reasonNames(spec); err != nil {
		return nil, err
	}
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinByName
	}
	d.layout = layoutOf(spec, d.salt)
	pins := filepath.Join(d.dir, layoutPrefix+d.layout)
	if err := os.MkdirAll(pins, 0o700); err != nil {
		return nil, fmt.Errorf("make directory for pinned maps: %w", err)
	}
	err = gently(func() error {
		return spec.LoadAndAssign(&d.objs, &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: pins}})
	})
	var rejected *ebpf.VerifierError
	switch {
	case errors.As(err, &rejected):
		return nil, fmt.Errorf("load BPF programs: this kernel's verifier refused one: %w\n%s", err, strings.Join(rejected.Log, "\n"))
	case errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("load BPF programs: %w (the agent needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, or CAP_SYS_ADMIN)", err)
	case err != nil:
		return nil, fmt.Errorf("load BPF programs with the maps in %s: %w", pins, err)
	}
	for _, helper := range []string{"redirect_peer", "redirect_neigh"} { // else the programs would not have loaded
		d.features[helper] = &model.Feature{Name: helper, State: "active"}
	}
	return spec, nil
}

// verifying is the niceness with which programs are loaded: the verifier takes a third of a second of a CPU, and packets and those
// who wait for them come first.
const verifying = 10

// gently calls f with less right to a CPU than others have. Its thread ends with it: only the mighty can take niceness back.
func gently(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, verifying) // of the thread; without it, it is as quick as anybody
		done <- f()
	}()
	return <-done
}

// layoutOf is a short hash of everything that must agree between programs and maps: names, kinds, sizes, and
// the types of keys and values with the names and places of their members.
func layoutOf(spec *ebpf.CollectionSpec, salt string) string {
	h := sha256.New()
	fmt.Fprint(h, salt)
	for _, name := range slices.Sorted(maps.Keys(spec.Maps)) {
		m := spec.Maps[name]
		fmt.Fprintf(h, "%s %s %d %d %d %d", name, m.Type, m.KeySize, m.ValueSize, m.MaxEntries, m.Flags)
		fmt.Fprintf(h, " %s %s\n", describe(m.Key), describe(m.Value))
		if in := m.InnerMap; in != nil { // whose size may differ
			fmt.Fprintf(h, "of %s %d %d %d %s %s\n", in.Type, in.KeySize, in.ValueSize, in.Flags, describe(in.Key), describe(in.Value))
		}
	}
	// The meaning of a counter is its place in the enumeration.
	names, _ := reasonNames(spec)
	fmt.Fprint(h, names)
	return fmt.Sprintf("%x", h.Sum(nil)[:6])
}

// describe writes a type out in full.
func describe(t btf.Type) string {
	if t == nil {
		return "-"
	}
	text, err := new(btf.GoFormatter).TypeDeclaration("T", t)
	if err != nil {
		return err.Error() // as good as a name: what cannot be written out differs from what can
	}
	return text
}

// reasonNames returns the names of the counters by their number.
func reasonNames(spec *ebpf.CollectionSpec) ([]string, error) {
	var reasons *btf.Enum
	if err := spec.Types.TypeByName(reasonType, &reasons); err != nil {
		return nil, fmt.Errorf("read the names of the counters: %w", err)
	}
	var out []string
	for _, v := range reasons.Values {
		if v.Name != reasonEnd {
			out = append(out, strings.ToLower(strings.TrimPrefix(v.Name, reasonPrefix)))
		}
	}
	return out, nil
}

// removeLayouts removes the maps of other layouts: no program that is attached uses them any more.
func (d *Driver) removeLayouts() error {
	dirs, err := filepath.Glob(filepath.Join(d.dir, layoutPrefix+"*"))
	if err != nil {
		return fmt.Errorf("list pinned maps: %w", err)
	}
	var errs []error
	for _, dir := range dirs {
		if filepath.Base(dir) != layoutPrefix+d.layout {
			errs = append(errs, os.RemoveAll(dir))
		}
	}
	return errors.Join(errs...)
}
