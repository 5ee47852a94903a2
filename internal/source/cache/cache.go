// Package cache keeps the last known objects on disk, so that an agent that starts while the
// API server is away still knows nodes, pods and services.
//
// It is a source of the second rank: its rows give way to those of a live source, and it withdraws them
// as soon as that one is complete. It does not hold what the node itself decided: addresses are
// in ipam's journal and endpoints in the kernel.
//
// The file is objects.jsonl in the state directory. An agent without memory recognises it by its first line. It
// is replaced by rename, so that a death at any point leaves the old or the new one; a file
// that is not whole is kept as objects.jsonl.bad and not used.
package cache

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"weft/internal/model"
)

const (
	fileName = "objects.jsonl"
	format   = "weft objects"
	version  = 1 // of the format; a file of another one is not used
	interval = time.Minute
)

// ErrCorrupt is wrapped by Load's error about a file that is not whole, not ours, or of another version.
var ErrCorrupt = errors.New("the file of last known objects cannot be used")

// Kinds are the kinds that are kept.
func Kinds() []model.Kind {
	return []model.Kind{model.KindNode, model.KindPod, model.KindNamespace, model.KindService, model.KindBackends}
}

// header is the first line, padded with blanks to headerSize.
type header struct {
	Format  string `json:"format"`
	Version int    `json:"version"`
	Objects int    `json:"objects"`
	SHA256  string `json:"sha256"` // of everything after the line
}

const headerSize = 160

// Save writes the objects of the snapshot into dir, which is made if it is not there: all of Kinds.
func Save(dir string, snap model.Snapshot) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("save the last known objects: %w", err)
	}
	tmp, err := os.OpenFile(filepath.Join(dir, fileName+".tmp"), os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("save the last known objects: %w", err)
	}
	if err := save(tmp, filepath.Join(dir, fileName), snap); err != nil {
		return errors.Join(fmt.Errorf("save the last known objects: %w", err), tmp.Close(), os.Remove(tmp.Name()))
	}
	return nil
}

func save(tmp *os.File, to string, snap model.Snapshot) error {
	if _, err := tmp.Write(bytes.Repeat([]byte(" "), headerSize)); err != nil {
		return err
	}
	sum := sha256.New()
	buf := bufio.NewWriter(io.MultiWriter(tmp, sum))
	n, err := encode(buf, snap)
	if err := errors.Join(err, buf.Flush()); err != nil {
		return err
	}
	line, err := json.Marshal(header{format, version, n, hex.EncodeToString(sum.Sum(nil))})
	if err != nil {
		return err
	}
	line = append(line, bytes.Repeat([]byte(" "), headerSize-1-len(line))...)
	if _, err := tmp.WriteAt(append(line, '\n'), 0); err != nil {
		return err
	}
	if err := tmp.Sync(); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), to); err != nil {
		return err
	}
	return tmp.Close()
}

// encode writes the objects, a line each, and returns their number.
func encode(w io.Writer, snap model.Snapshot) (int, error) {
	n := 0
	enc := json.NewEncoder(w)
	for _, kind := range Kinds() {
		for o := range snap.All(kind) {
			if err := enc.Encode(toLine(kind, o)); err != nil {
				return n, fmt.Errorf("%s: %w", o.Key(), err)
			}
			n++
		}
	}
	return n, nil
}

// digest is the hash of what Save would write.
func digest(snap model.Snapshot) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	_, err = encode(h, snap)
	return [sha256.Size]byte(h.Sum(nil)), err
}

// Load reads what was saved in dir: nothing if nothing was. A file that cannot be used is renamed, so
// that it can be looked at, and the error names it.
func Load(dir string) ([]model.Object, error) {
	path := filepath.Join(dir, fileName)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("load the last known objects: %w", err)
	}
	objs, err := decode(raw)
	if err != nil {
		err = fmt.Errorf("%w: %s, kept as %s.bad: %w", ErrCorrupt, path, path, err)
		return nil, errors.Join(err, os.Rename(path, path+".bad"))
	}
	return objs, nil
}

func decode(raw []byte) ([]model.Object, error) {
	first, body, found := bytes.Cut(raw, []byte("\n"))
	var h header
	if err := json.Unmarshal(first, &h); !found || err != nil || h.Format != format {
		return nil, errors.New("the first line is not a header")
	}
	if h.Version != version {
		return nil, fmt.Errorf("version %d, want %d", h.Version, version)
	}
	if sum := sha256.Sum256(body); hex.EncodeToString(sum[:]) != h.SHA256 {
		return nil, errors.New("the checksum does not match")
	}
	objs := make([]model.Object, 0, min(h.Objects, len(body)))
	dec := json.NewDecoder(bytes.NewReader(body))
	for {
		var l line
		err := dec.Decode(&l)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("object %d: %w", len(objs)+1, err)
		}
		o, err := l.object()
		if err != nil {
			return nil, fmt.Errorf("object %d: %w", len(objs)+1, err)
		}
		objs = append(objs, o)
	}
	if len(objs) != h.Objects {
		return nil, fmt.Errorf("%d objects, the header says %d", len(objs), h.Objects)
	}
	return objs, nil
}

// Writer is where the loaded objects go.
type Writer interface {
	Upsert(objs ...model.Object)
	Replace(kind model.Kind, objs []model.Object)
}

// Source brings the saved objects into the store at start, and keeps the file up to date.
type Source struct {
	dir   string
	w     Writer
	log   *slog.Logger
	pause time.Duration // least time between two writes of the file

	once     sync.Once
	live     chan struct{} // closed by Withdraw
	restored atomic.Bool   // objects of Restore are in the store

	saved   [sha256.Size]byte // digest of the file; of Keep
	failing bool              // the last Save failed; of Keep
}

// New returns a source that keeps its file in dir. It reads and writes nothing yet.
func New(dir string, w Writer, log *slog.Logger) *Source {
	return &Source{dir: dir, w: w, log: log, pause: interval, live: make(chan struct{})}
}

// Restore writes the saved objects to the store. An error leaves the store as it is.
func (s *Source) Restore() error {
	objs, err := Load(s.dir)
	if err != nil || len(objs) == 0 {
		return err
	}
	s.w.Upsert(objs...)
	s.restored.Store(true)
	s.log.Info("restored the last known objects", "count", len(objs))
	return nil
}

// Withdraw is called when the live source is complete: the restored objects go, and Keep begins to save. Further
// calls do nothing.
func (s *Source) Withdraw() {
	s.once.Do(func() {
		for _, k := range Kinds() {
			s.w.Replace(k, nil)
		}
		s.restored.Store(false)
		close(s.live)
	})
}

// Serving reports whether restored objects are in the store.
func (s *Source) Serving() bool { return s.restored.Load() }

// Keep saves what the store holds until ctx ends, and then once more: when it has changed, at most once a minute, and
// not before Withdraw, since what is not complete is worth less than what is on disk. Changed returns a channel
// that is closed when objects of the kind change.
func (s *Source) Keep(ctx context.Context, snapshot func() model.Snapshot, changed func(model.Kind) <-chan struct{}) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-s.live:
	}
	for {
		woken := anyOf(changed)
		s.save(snapshot())
		select {
		case <-ctx.Done():
		case <-time.After(s.pause):
		}
		if !s.failing {
			woken(ctx)
		}
		if ctx.Err() != nil {
			s.save(snapshot())
			return ctx.Err()
		}
	}
}

// anyOf looks at every kind now and returns a function that waits until one of them has changed since, or ctx ends.
func anyOf(changed func(model.Kind) <-chan struct{}) func(context.Context) {
	var cases []reflect.SelectCase
	for _, k := range Kinds() {
		cases = append(cases, reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(changed(k))})
	}
	return func(ctx context.Context) {
		reflect.Select(append(cases, reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(ctx.Done())}))
	}
}

// save writes the file if it is not up to date.
func (s *Source) save(snap model.Snapshot) {
	sum, err := digest(snap)
	if err == nil && sum == s.saved {
		return
	}
	if err == nil {
		err = Save(s.dir, snap)
	}
	if err != nil && !s.failing {
		s.log.Warn("the last known objects are not on disk", "err", err)
	}
	if s.failing = err != nil; !s.failing {
		s.saved = sum
	}
}
