package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// Object is any Kubernetes object.
type Object = unstructured.Unstructured

// store is the lab's "API server": a directory with one YAML file for each object,
// which every agent watches as its file source and every node's runtime as well.
// Files are replaced by rename, so that a reader never sees half of one. It has no
// process: whoever writes takes the lock file.
type store struct{ dir string }

const (
	objectsDir = "objects"
	tmpDir     = "tmp" // on the same mount as objectsDir: rename needs that
)

func newStore(dir string) (*store, error) {
	for _, d := range []string{objectsDir, tmpDir} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	return &store{dir: dir}, nil
}

// ref names an object: "pod/default/web", "node/node1".
type ref struct{ Kind, Namespace, Name string }

func refOf(o *Object) ref { return ref{o.GetKind(), o.GetNamespace(), o.GetName()} }

func (r ref) String() string {
	if r.Namespace == "" {
		return strings.ToLower(r.Kind) + "/" + r.Name
	}
	return strings.ToLower(r.Kind) + "/" + r.Namespace + "/" + r.Name
}

// file is the object's path. Names have no "_" in Kubernetes.
func (s *store) file(r ref) string {
	return filepath.Join(s.dir, objectsDir, strings.ToLower(r.Kind)+"_"+r.Namespace+"_"+r.Name+".yaml")
}

// locked runs f while nobody else changes objects.
func (s *store) locked(f func() error) error {
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

// get returns the object, or nil if there is none.
func (s *store) get(r ref) (*Object, error) {
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

// put writes the object whole. The caller holds the lock if it read it before.
func (s *store) put(o *Object) error {
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
		err = os.Rename(f.Name(), s.file(refOf(o)))
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// update changes one object under the lock; change returns false to leave it alone.
// No-op if the object is not there or has another UID.
func (s *store) update(r ref, uid string, change func(*Object) bool) error {
	return s.locked(func() error {
		o, err := s.get(r)
		if err != nil || o == nil || string(o.GetUID()) != uid || !change(o) {
			return err
		}
		return s.put(o)
	})
}

// remove deletes the object's file; no error if there is none.
func (s *store) remove(r ref) error {
	err := os.Remove(s.file(r))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// list returns the objects of a kind, or all for "", sorted by kind, namespace and name.
func (s *store) list(kind string) ([]*Object, error) {
	prefix := ""
	if kind != "" {
		prefix = strings.ToLower(kind) + "_"
	}
	entries, err := os.ReadDir(filepath.Join(s.dir, objectsDir))
	if err != nil {
		return nil, err
	}
	var out []*Object
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), prefix) || !strings.HasSuffix(e.Name(), ".yaml") {
			continue
		}
		o, err := readObject(filepath.Join(s.dir, objectsDir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted meanwhile
		}
		if err != nil {
			return nil, err
		}
		out = append(out, o)
	}
	slices.SortFunc(out, func(a, b *Object) int {
		return slices.Compare(
			[]string{a.GetKind(), a.GetNamespace(), a.GetName()},
			[]string{b.GetKind(), b.GetNamespace(), b.GetName()})
	})
	return out, nil
}

// await calls done now and after each change of the objects, until it returns true
// or an error, or ctx ends.
func (s *store) await(ctx context.Context, done func() (bool, error)) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer w.Close()
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
			drain(w.Events)
		case err := <-w.Errors:
			return err
		}
	}
}

// drain takes what is queued, and what follows at once: one look serves all.
func drain(events <-chan fsnotify.Event) {
	for quiet := time.After(2 * time.Millisecond); ; {
		select {
		case <-events:
		case <-quiet:
			return
		}
	}
}

// decode turns the object into the Go type of its kind. Unknown and wrong fields are
// errors that name the object and the field.
func decode[T any](o *Object) (*T, error) {
	b, err := json.Marshal(o.Object)
	if err != nil {
		return nil, err
	}
	v := new(T)
	strict, err := kjson.UnmarshalStrict(b, v)
	if err = errors.Join(append(strict, err)...); err != nil {
		return nil, fmt.Errorf("%s: %s", refOf(o), strings.TrimPrefix(err.Error(), "json: "))
	}
	return v, nil
}

// encode turns a typed object into a generic one.
func encode(apiVersion, kind string, v any) (*Object, error) {
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(v)
	if err != nil {
		return nil, err
	}
	o := &Object{Object: m}
	o.SetAPIVersion(apiVersion)
	o.SetKind(kind)
	return o, nil
}
