// Package lab runs weft on one machine, as on real nodes and without Kubernetes:
// nodes are namespaces (package host) joined by an underlay, each runs `weft agent`
// and a small stand-in for kubelet that starts pods through the real CNI plugin.
// Objects are plain Kubernetes YAML in a directory, which the agents watch.
//
// It is not a cluster: there is no API server, no controller beyond what apply does
// (expand workloads to pods, assign nodes), and there are no images: a container is a
// program of this machine, or a built-in responder on its ports.
//
// Everything of a lab is below its directory, in its hosts' namespaces and in its
// cgroup. Down finds it by these, with no memory of its own; whatever was killed in
// between, Up completes and Down removes the rest.
package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"

	"weft/internal/host"
	"weft/internal/lab/objects"
	"weft/internal/netset"
)

// Options are what a lab is made of. They are kept in <dir>/lab.json.
type Options struct {
	Name     string         `json:"name"`
	Nodes    int            `json:"nodes"`
	MTU      []int          `json:"mtu"`     // of subnet 1, 2 …; used again from the first when there are fewer
	Subnets  int            `json:"subnets"` // the nodes take turns on them; a router is between them
	IPFamily string         `json:"ipFamily"`
	Backend  string         `json:"backend"`
	Config   map[string]any `json:"config,omitempty"` // of the agents, merged over what the lab sets
}

// defaultName is the lab of those who need only one.
const defaultName = "lab"

// SetDefaults fills what is not set: 3 nodes, MTU 1500, 1 subnet, dual stack, vxlan.
func (o *Options) SetDefaults() {
	if o.Name == "" {
		o.Name = defaultName
	}
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	if len(o.MTU) == 0 {
		o.MTU = []int{1500}
	}
	if o.Subnets == 0 {
		o.Subnets = 1
	}
	if o.IPFamily == "" {
		o.IPFamily = "46"
	}
	if o.Backend == "" {
		o.Backend = "vxlan"
	}
}

// Validate reports every option that cannot be.
func (o *Options) Validate() error {
	var errs []error
	bad := func(f string, a ...any) { errs = append(errs, fmt.Errorf(f, a...)) }
	if len(o.Name) > 40 || !isDNSLabel(o.Name) {
		bad("name: %q: want up to 40 of a-z, 0-9 and -", o.Name)
	}
	if o.Nodes < 1 || o.Nodes > 200 {
		bad("nodes: %d is not in 1..200", o.Nodes)
	}
	for _, m := range o.MTU {
		if m < 1280 || m > 65535 {
			bad("mtu: %d is not in 1280..65535", m)
		}
	}
	if o.Subnets < 1 || o.Subnets > 250 || o.Subnets > max(o.Nodes, 1) {
		bad("subnets: %d is not in 1..%d, the number of nodes", o.Subnets, o.Nodes)
	}
	if len(o.families()) == 0 {
		bad("ip-family: %q is not 4, 6, 46 or 64", o.IPFamily)
	}
	if o.Backend != "vxlan" && o.Backend != "direct" {
		bad("backend: %q is not vxlan or direct", o.Backend)
	}
	return errors.Join(errs...)
}

// families are the lab's address families, the preferred one first.
func (o *Options) families() []netset.Family {
	switch o.IPFamily {
	case "4":
		return []netset.Family{netset.V4}
	case "6":
		return []netset.Family{netset.V6}
	case "46":
		return []netset.Family{netset.V4, netset.V6}
	case "64":
		return []netset.Family{netset.V6, netset.V4}
	}
	return nil
}

func isDNSLabel(s string) bool {
	return s != "" && !strings.HasPrefix(s, "-") && !strings.HasSuffix(s, "-") &&
		strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// Lab is one lab on disk; it may be up or not.
type Lab struct {
	dir   string
	opts  Options
	store *objects.Store
}

// Dir is the directory of the lab of that name: below $WEFT_LAB_DIR or /run/weft-lab.
func Dir(name string) string {
	root := os.Getenv("WEFT_LAB_DIR")
	if root == "" {
		root = "/run/weft-lab"
	}
	abs, err := filepath.Abs(filepath.Join(root, name))
	if err != nil { // no working directory
		return filepath.Join(root, name)
	}
	return abs
}

// ErrNoLab means that there is no lab of the name.
var ErrNoLab = errors.New("no such lab")

const optionsFile = "lab.json"

// Open finds a lab that exists. An empty name is the only lab there is.
func Open(name string) (*Lab, error) {
	if name == "" {
		names, err := List()
		if err != nil {
			return nil, err
		}
		switch len(names) {
		case 0:
			return nil, fmt.Errorf("%w: there is none yet; start one with `weft lab up`", ErrNoLab)
		case 1:
			name = names[0]
		default:
			return nil, fmt.Errorf("there are several labs: choose one with --name (%s)", strings.Join(names, ", "))
		}
	}
	dir := Dir(name)
	b, err := os.ReadFile(filepath.Join(dir, optionsFile))
	if errors.Is(err, fs.ErrNotExist) || !isDNSLabel(name) {
		return nil, fmt.Errorf("%w: %q; `weft lab list` shows all, `weft lab up --name %s` starts one", ErrNoLab, name, name)
	}
	if err != nil {
		return nil, err
	}
	l := &Lab{dir: dir}
	if err := json.Unmarshal(b, &l.opts); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, optionsFile), err)
	}
	l.store, err = objects.New(filepath.Join(dir, "cluster"))
	return l, err
}

// List returns the names of all labs.
func List() ([]string, error) {
	files, err := filepath.Glob(Dir("*") + "/" + optionsFile)
	names := make([]string, len(files))
	for i, f := range files {
		names[i] = filepath.Base(filepath.Dir(f))
	}
	return names, err
}

// Name is the lab's name.
func (l *Lab) Name() string { return l.opts.Name }

// Options are what the lab was started with.
func (l *Lab) Options() Options { return l.opts }

// NodeNames lists the lab's nodes.
func (l *Lab) NodeNames() []string {
	var out []string
	for _, n := range l.opts.nodes() {
		out = append(out, n.Name)
	}
	return out
}

func (l *Lab) hostDir(name string) string { return filepath.Join(l.dir, "hosts", name) }

// Host returns a running host of the lab: a node, "outside" or "wire".
func (l *Lab) Host(name string) (*host.Host, error) {
	if !slices.Contains(append(l.NodeNames(), OutsideHost, wireHost), name) {
		return nil, fmt.Errorf("lab %s has no node %q: it has %s, and the hosts outside and wire",
			l.opts.Name, name, strings.Join(l.NodeNames(), ", "))
	}
	h, err := host.Open(l.hostDir(name))
	if errors.Is(err, host.ErrNotRunning) {
		return nil, fmt.Errorf("%s of lab %s is down; `weft lab up --name %s` starts what is missing (%w)", name, l.opts.Name, l.opts.Name, err)
	}
	return h, err
}

// cgroup is the lab's part of every cgroup hierarchy. Labs of the same name may exist
// below different directories.
func (l *Lab) cgroup() string {
	h := fnv.New32a()
	h.Write([]byte(l.dir))
	return fmt.Sprintf("weft-lab/%s-%08x", l.opts.Name, h.Sum32())
}

// exclusive takes the lab's lock for what must not run twice at once: up and down.
// The lock file is beside the lab's directory, which down removes.
func exclusive(ctx context.Context, name string, f func() error) error {
	lock := Dir(".lock-" + name)
	if err := os.MkdirAll(filepath.Dir(lock), 0o755); err != nil {
		return err
	}
	for {
		file, err := os.OpenFile(lock, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && sameFile(file, lock) {
			defer func() {
				_ = os.Remove(lock)
				file.Close()
				_ = os.Remove(filepath.Dir(lock)) // if it was the last lab
			}()
			return f()
		}
		file.Close()
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("lock %s: %w", lock, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("another `weft lab up` or `down` of lab %s is running: %w", name, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// sameFile reports whether the open file is still the one at the path.
func sameFile(f *os.File, path string) bool {
	a, err1 := f.Stat()
	b, err2 := os.Stat(path)
	return err1 == nil && err2 == nil && os.SameFile(a, b)
}

// Down ends the lab of the name, in whatever state it is, and leaves nothing of it.
func Down(ctx context.Context, name string) error {
	if !isDNSLabel(name) {
		return fmt.Errorf("name: %q: want a-z, 0-9 and -", name)
	}
	return exclusive(ctx, name, func() error {
		l := &Lab{dir: Dir(name), opts: Options{Name: name}}
		if _, err := os.Stat(l.dir); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: %q", ErrNoLab, name)
		}
		dirs, err := filepath.Glob(l.hostDir("*"))
		if err != nil {
			return err
		}
		// Nodes whose wire is gone need no time to notice: all at once.
		err = each(dirs, func(dir string) error { return host.Destroy(ctx, dir) })
		return errors.Join(err, host.DestroyCgroup(l.cgroup()), os.RemoveAll(l.dir))
	})
}

// each calls f for all at once and joins the errors.
func each[T any](all []T, f func(T) error) error {
	errs := make(chan error, len(all))
	for _, x := range all {
		go func() { errs <- f(x) }()
	}
	var out []error
	for range all {
		out = append(out, <-errs)
	}
	return errors.Join(out...)
}

// ReadConfig reads a YAML file of agent configuration.
func ReadConfig(path string) (map[string]any, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	m := map[string]any{}
	if err := yaml.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// Unstarted is a lab that has nothing but its options: what Up returns when it fails.
func Unstarted(o Options) *Lab { return &Lab{dir: Dir(o.Name), opts: o} }
