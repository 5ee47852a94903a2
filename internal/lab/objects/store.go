// Package objects is the lab's stand-in for an API server: Kubernetes objects as YAML
// files in a directory, which every agent and every node's kubelet watch, and the
// reading of users' manifests.
//
// It has no process and no schemas: what it does not know it keeps as it is. It knows
// nothing of labs, nodes or networks.
package objects

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"weft/internal/convert/language"
)

// Object is any Kubernetes object.
type Object = unstructured.Unstructured

// Store is a directory with one YAML file for each object. Files are replaced by
// rename, so that a reader never sees half of one. Whoever reads to write takes the
// lock file; a writer that dies releases it and leaves at most a file in tmp.
type Store struct {
	dir string

	mu    sync.Mutex
	cache map[string]cached // by file name; what List read last
}

// cached is one file's content. A replaced file has another inode.
type cached struct {
	inode uint64
	mtime time.Time
	obj   *Object // not modified by anyone
}

const (
	objectsDir = "objects"
	tmpDir     = "tmp" // on the same mount: rename needs that
)

// New returns the store in the directory, which is created.
func New(dir string) (*Store, error) {
	for _, d := range []string{objectsDir, tmpDir} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	return &Store{dir: dir, cache: map[string]cached{}}, nil
}

// Ref names an object: "pod/default/web", "node/node1", "tier.projectcalico.org/ops".
type Ref struct {
	Kind, Namespace, Name string
	// Group is the API group of a policy, of which several have kinds of one name; "" for everything else.
	Group string
}

// RefOf names the object.
func RefOf(o *Object) Ref {
	r := Ref{Kind: o.GetKind(), Namespace: o.GetNamespace(), Name: o.GetName()}
	if k, ok := policyKind(o); ok && k.Language != language.Kubernetes {
		r.Group = k.Type.Group
	}
	return r
}

// kind is the kind in lower case, with the group if that belongs to it.
func (r Ref) kind() string {
	return strings.TrimSuffix(strings.ToLower(r.Kind)+"."+r.Group, ".")
}

// String returns "kind/namespace/name", or "kind/name" without a namespace; the kind in lower case.
func (r Ref) String() string {
	if r.Namespace == "" {
		return r.kind() + "/" + r.Name
	}
	return r.kind() + "/" + r.Namespace + "/" + r.Name
}

// Path is the store's directory.
func (s *Store) Path() string { return s.dir }

// Dir is the directory of the objects' files: what a file source watches.
func (s *Store) Dir() string { return Dir(s.dir) }

// Dir is the directory of the objects' files of a store at that path.
func Dir(store string) string { return filepath.Join(store, objectsDir) }

// file is the object's path. Names have no "_" in Kubernetes.
func (s *Store) file(r Ref) string {
	return filepath.Join(s.dir, objectsDir, r.kind()+"_"+r.Namespace+"_"+r.Name+".yaml")
}

// Locked runs f while nobody else changes objects.
func (s *Store) Locked(f func() error) error {
	l, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer l.Close()
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = unix.Flock(int(l.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", l.Name(), err)
	}
	return f()
}

// Get returns the object, or nil if there is none.
func (s *Store) Get(r Ref) (*Object, error) {
	o, err := readObject(s.file(r))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return o, err
}

func readObject(path string) (*Object, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	o := &Object{}
	if err := yaml.Unmarshal(b, &o.Object); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return o, nil
}

// Put writes the object whole. The caller holds the lock if it read it before.
func (s *Store) Put(o *Object) error {
	b, err := yaml.Marshal(o.Object)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Join(s.dir, tmpDir), "object")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err == nil {
		err = os.Rename(f.Name(), s.file(RefOf(o)))
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// Update changes one object under the lock; change returns false to leave it alone.
// No-op if the object is not there or has another UID.
func (s *Store) Update(r Ref, uid string, change func(*Object) bool) error {
	return s.Locked(func() error {
		o, err := s.Get(r)
		if err != nil || o == nil || string(o.GetUID()) != uid || !change(o) {
			return err
		}
		return s.Put(o)
	})
}

// Remove deletes the object's file; no error if there is none.
func (s *Store) Remove(r Ref) error {
	err := os.Remove(s.file(r))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// List returns the objects of a kind, or all for "", sorted by kind, namespace and name.
// They are shared with other callers: whoever changes one copies it before.
func (s *Store) List(kind string) ([]*Object, error) {
	prefix := ""
	if kind != "" {
		prefix = strings.ToLower(kind) + "_"
	}
	entries, err := os.ReadDir(filepath.Join(s.dir, objectsDir))
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*Object
	next := make(map[string]cached, len(entries))
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".yaml") {
			continue
		}
		if !strings.HasPrefix(e.Name(), prefix) {
			next[e.Name()] = s.cache[e.Name()]
			continue
		}
		c, err := s.read(e)
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted meanwhile
		}
		if err != nil {
			return nil, err
		}
		next[e.Name()] = c
		out = append(out, c.obj)
	}
	s.cache = next
	slices.SortFunc(out, func(a, b *Object) int {
		return slices.Compare(
			[]string{a.GetKind(), a.GetNamespace(), a.GetName(), a.GetAPIVersion()},
			[]string{b.GetKind(), b.GetNamespace(), b.GetName(), b.GetAPIVersion()})
	})
	return out, nil
}

// read reads a file that is not the one read last. The caller holds mu.
func (s *Store) read(e fs.DirEntry) (cached, error) {
	st, err := e.Info()
	if err != nil {
		return cached{}, err
	}
	c := cached{mtime: st.ModTime()}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		c.inode = sys.Ino
	}
	if old := s.cache[e.Name()]; old.obj != nil && old.inode == c.inode && old.mtime.Equal(c.mtime) {
		return old, nil
	}
	c.obj, err = readObject(filepath.Join(s.dir, objectsDir, e.Name()))
	return c, err
}

// Await calls done now and after each change of the objects, until it returns true
// or an error, or ctx ends.
func (s *Store) Await(ctx context.Context, done func() (bool, error)) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer func() { _ = w.Close() }()
	if err := w.Add(filepath.Join(s.dir, objectsDir)); err != nil {
		return err
	}
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.Events:
			Drain(w.Events)
		case err := <-w.Errors:
			return err
		}
	}
}

// Drain takes what is queued, and what follows closely: one look serves all.
func Drain(events <-chan fsnotify.Event) {
	const quiet, patience = 3 * time.Millisecond, 30 * time.Millisecond
	for late := time.After(patience); ; {
		select {
		case <-events:
		case <-time.After(quiet):
			return
		case <-late:
			return
		}
	}
}

// Decode turns the object into the Go type of its kind. Unknown and wrong fields are
// errors that name the object and the field.
func Decode[T any](o *Object) (*T, error) {
	b, err := json.Marshal(o.Object)
	if err != nil {
		return nil, err
	}
	v := new(T)
	strict, err := kjson.UnmarshalStrict(b, v)
	if err = errors.Join(append(strict, err)...); err != nil {
		return nil, fmt.Errorf("%s: %s", RefOf(o), strings.TrimPrefix(err.Error(), "json: "))
	}
	return v, nil
}

// Encode turns a typed object into a generic one.
func Encode(apiVersion, kind string, v any) (*Object, error) {
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(v)
	if err != nil {
		return nil, err
	}
	o := &Object{Object: m}
	o.SetAPIVersion(apiVersion)
	o.SetKind(kind)
	return o, nil
}

// Stamp gives a new object its UID and time of creation.
func Stamp(o *Object) {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	h := hex.EncodeToString(b[:])
	if o.GetUID() == "" {
		_ = unstructured.SetNestedField(o.Object, strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-"), "metadata", "uid")
	}
	if ts := o.GetCreationTimestamp(); ts.IsZero() {
		_ = unstructured.SetNestedField(o.Object, time.Now().UTC().Format(time.RFC3339), "metadata", "creationTimestamp")
	}
}

// Same compares as JSON does, to which 1 and 1.0 are one number.
func Same(a, b any) bool {
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}

// NodeOf is the node that a pod is bound to, "" if none.
func NodeOf(pod *Object) string {
	n, _, _ := unstructured.NestedString(pod.Object, "spec", "nodeName")
	return n
}
