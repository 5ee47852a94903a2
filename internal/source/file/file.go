// Package file is the source that reads the cluster's objects from a directory of Kubernetes YAML.
//
// It serves the lab, nodes without an API server, and tests: the same objects that kubectl would apply, policies of every
// language among them, in *.yaml, *.yml and *.json files, seen within milliseconds of a change. It is not a
// client of anything and does not look into subdirectories. It does not pick the pods of a node;
// every object of the directory goes to the store.
package file

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"weft/internal/model"
)

const (
	settle   = 20 * time.Millisecond  // quiet time after which changes are read
	patience = 200 * time.Millisecond // longest delay where changes do not stop
	maxFile  = 64 << 20               // bytes
)

// Writer is where objects go.
type Writer interface {
	Replace(kind model.Kind, objs []model.Object)
	// Refuse keeps an object that is not used, so that it is shown with the reason.
	Refuse(o model.Object, problem error)
}

// Source watches one directory. What it knows outlives a Run: the last good version of a file that
// has become wrong stays in use.
type Source struct {
	dir      string
	w        Writer
	complete func()
	report   func(what, action string)
	log      *slog.Logger
	files    map[string]*content // by name; nil before the first scan
	stands   map[model.Key]bool  // what stands for policies that were refused

	mu   sync.Mutex
	told []string // guarded by mu: the problems that exist, all of them reported
}

// content is one file as it was last read.
type content struct {
	raw    []byte
	docs   []document
	good   map[model.Key]entry // what the file says, with former versions in place of what is wrong now
	refuse []document          // policies that have no former version either
	broken bool                // a document of it gave no object
}

// errTwice is the error of an object that its file has twice.
var errTwice = errors.New("already")

// entry is an object with its place.
type entry struct {
	obj  model.Object
	line int
	doc  string // name of the document; one may have become several objects
}

// New returns a source; it reads nothing. Complete is called after the first scan of each Run. Report, which may be nil, is told
// of every document that is not understood, once as long as it is so.
func New(dir string, w Writer, complete func(), report func(what, action string), log *slog.Logger) *Source {
	if report == nil {
		report = func(what, action string) { log.Warn(what, "action", action) } //nolint:sloglint // a report is a sentence
	}
	return &Source{dir: dir, w: w, complete: complete, report: report, log: log}
}

// Run reads the directory and follows it until ctx ends. It fails if the directory does not exist or ceases to; run
// again, it goes on from what was known.
func (s *Source) Run(ctx context.Context) error {
	watch, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", s.dir, err)
	}
	defer watch.Close()
	if err := watch.Add(s.dir); err != nil {
		return fmt.Errorf("watch %s: %w", s.dir, err)
	}
	if err := s.scan(); err != nil {
		return err
	}
	s.complete()
	for {
		if err := s.changed(ctx, watch); err != nil {
			return err
		}
		if err := s.scan(); err != nil {
			return err
		}
	}
}

// changed waits for a change and then until changes have settled.
func (s *Source) changed(ctx context.Context, watch *fsnotify.Watcher) error {
	var quiet, late <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-quiet:
			return nil
		case <-late:
			return nil
		case err := <-watch.Errors:
			// An overflow lost events; a scan finds what they were.
			if !errors.Is(err, fsnotify.ErrEventOverflow) {
				return fmt.Errorf("watch %s: %w", s.dir, err)
			}
		case e := <-watch.Events:
			if e.Op == fsnotify.Chmod {
				continue
			}
			if filepath.Clean(e.Name) == filepath.Clean(s.dir) && e.Has(fsnotify.Remove|fsnotify.Rename) {
				return fmt.Errorf("watch %s: the directory is gone; its objects stay in use", s.dir)
			}
		}
		quiet = time.After(settle)
		if late == nil {
			late = time.After(patience)
		}
	}
}

// scan reads what has changed and writes the result to the store.
func (s *Source) scan() error {
	names, err := s.list()
	if err != nil {
		return err
	}
	var problems []problem
	next := make(map[string]*content, len(names))
	for _, name := range names {
		c, err := s.read(name, s.files[name])
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since
		}
		if err != nil {
			problems = append(problems, problem{err.Error(), "ignored"})
			continue
		}
		next[name] = c
		problems = append(problems, c.problems(name)...)
	}
	kinds, clashes := merge(names, next)
	// Pods last: a pod without the policies that select it would be open.
	for _, k := range append(slices.DeleteFunc(model.Kinds(), func(k model.Kind) bool { return k == model.KindPod }), model.KindPod) {
		if len(kinds[k]) > 0 || s.has(k) {
			s.w.Replace(k, kinds[k])
		}
	}
	s.files = next
	s.refuse(names)
	s.tell(append(problems, clashes...))
	return nil
}

// has reports whether an object of the kind was there before.
func (s *Source) has(k model.Kind) bool {
	for _, c := range s.files {
		for key := range c.good {
			if key.Kind == k {
				return true
			}
		}
	}
	for key := range s.stands {
		if key.Kind == k {
			return true
		}
	}
	return false
}

// refuse shows the policies of which nothing is used.
func (s *Source) refuse(names []string) {
	s.stands = map[model.Key]bool{}
	for _, name := range names {
		c := s.files[name]
		if c == nil {
			continue
		}
		for _, d := range c.refuse {
			if k := d.stand.Key(); !s.stands[k] && !s.good(k) {
				s.stands[k] = true
				s.w.Refuse(d.stand, d.err)
			}
		}
	}
}

// good reports whether a file has the object.
func (s *Source) good(k model.Key) bool {
	for _, c := range s.files {
		if _, ok := c.good[k]; ok {
			return true
		}
	}
	return false
}

// list returns the names of the directory's object files in order.
func (s *Source) list() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("read directory of objects: %w", err)
	}
	var out []string
	for _, e := range entries {
		ext := filepath.Ext(e.Name())
		if !strings.HasPrefix(e.Name(), ".") && !e.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, ext) {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// read reads a file; old is its former content, nil if it is new.
func (s *Source) read(name string, old *content) (*content, error) {
	path := filepath.Join(s.dir, name)
	st, err := os.Stat(path) // follows links, as those of a mounted ConfigMap
	switch {
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a file", path)
	case st.Size() > maxFile:
		return nil, fmt.Errorf("%s has %d bytes, more than %d", path, st.Size(), maxFile)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if old != nil && bytes.Equal(raw, old.raw) {
		return old, nil
	}
	return parse(raw, old), nil
}

// parse converts a file. Of what is wrong, the former version stays: an object that was read with an error, and,
// if a document gave no object at all, every object that the file had and has no more. A policy of which some is understood counts as
// it is: what is not, fails closed.
func parse(raw []byte, old *content) *content {
	c := &content{raw: raw, docs: documents(raw), good: map[model.Key]entry{}}
	former := map[model.Key]entry{}
	if old != nil {
		former = old.good
	}
	c.broken = len(raw) == 0 && len(former) > 0 // being written
	for i := range c.docs {
		d := &c.docs[i]
		switch {
		case len(d.objs) > 0:
			c.take(d, former)
		case d.err == nil || d.unknown(): // it stands for nothing
		case d.stand == nil:
			c.broken = true
		case !c.keep(d, former):
			c.refuse = append(c.refuse, *d)
		}
	}
	if c.broken {
		for k, e := range former {
			if _, ok := c.good[k]; !ok {
				c.good[k] = e
			}
		}
	}
	return c
}

// take adds a document's objects.
func (c *content) take(d *document, former map[model.Key]entry) {
	if first, twice := c.good[d.objs[0].Key()]; twice {
		d.err = fmt.Errorf("%s is in line %d %w", d.name, first.line, errTwice)
		return
	}
	for _, o := range d.objs {
		e := entry{o, d.line, d.name}
		if was, ok := former[o.Key()]; ok && d.err != nil && !d.policy {
			e = was
		}
		c.good[o.Key()] = e
	}
}

// keep puts the former version of a document in its place, and reports whether there is one.
func (c *content) keep(d *document, former map[model.Key]entry) bool {
	found := false
	for k, e := range former {
		if e.doc == d.name {
			c.good[k], found = e, true
		}
	}
	return found
}

// problem is something to tell the operator.
type problem struct{ what, action string }

// problems says what is wrong with a file.
func (c *content) problems(name string) []problem {
	var out []problem
	if len(c.raw) == 0 && c.broken {
		out = append(out, problem{name + ": the file is empty", "its last version is used; remove the file to remove its objects"})
	}
	for _, d := range c.docs {
		if d.err != nil {
			out = append(out, problem{fmt.Sprintf("%s:%d: %v", name, d.line, d.err), d.action()})
		}
	}
	return out
}

// merge joins the files' objects, by kind and in order. An object that is in two files counts as the first says.
func merge(names []string, files map[string]*content) (map[model.Kind][]model.Object, []problem) {
	from := map[model.Key]string{}
	kinds := map[model.Kind][]model.Object{}
	var clashes []problem
	for _, name := range names {
		c := files[name]
		if c == nil {
			continue
		}
		for _, k := range slices.SortedFunc(maps.Keys(c.good), byName) {
			e := c.good[k]
			if other, twice := from[k]; twice {
				what := fmt.Sprintf("%s:%d: %s is in %s:%d already", name, e.line, k, other, files[other].good[k].line)
				clashes = append(clashes, problem{what, "the one in " + other + " is used"})
				continue
			}
			from[k] = name
			kinds[k.Kind] = append(kinds[k.Kind], e.obj)
		}
	}
	return kinds, clashes
}

func byName(a, b model.Key) int { return strings.Compare(a.String(), b.String()) }

// tell reports the problems that are new.
func (s *Source) tell(problems []problem) {
	before := s.Problems()
	var now []string
	for _, p := range problems {
		if now = append(now, p.what); !slices.Contains(before, p.what) {
			s.report(p.what, p.action)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = now
}

// Problems says what is wrong now, by file and line.
func (s *Source) Problems() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.told)
}
