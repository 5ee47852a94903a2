// Package cache keeps the last known objects on disk, so that an agent that starts while the
// API server is away still knows nodes, pods, services and policies.
//
// It is a source of the second rank: its rows give way to those of a live source, and it withdraws them
// as soon as that one is complete. It does not hold what the node itself decided: addresses are
// in ipam's journal and endpoints in the kernel.
//
// There are two files in the state directory: objects.jsonl, and peers.jsonl with the pods of other nodes, which policies
// need, and which are many and change all the time. An agent without memory recognises them by their first line. Each
// is replaced by rename, so that a death at any point leaves the old or the new one; a file
// that is not whole is kept with .bad at the end of its name, and then neither is used: pods without the policies
// would be open.
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
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weft/internal/model"
)

const (
	fileName  = "objects.jsonl"
	peersName = "peers.jsonl"
	format    = "weft objects"
	version   = 2 // of the format; a file of another one is not used. 1 had no policies
	interval  = time.Minute
	rate      = 20_000 // bytes a second that a file may be written with, on average
)

// ErrCorrupt is wrapped by Load's error about a file that is not whole, not ours, or of another version.
var ErrCorrupt = errors.New("the file of last known objects cannot be used")

// Kinds are the kinds that are kept.
func Kinds() []model.Kind {
	return []model.Kind{
		model.KindNode, model.KindPod, model.KindNamespace, model.KindService, model.KindBackends, model.KindServiceAccount,
		model.KindPolicy, model.KindTier, model.KindGroup, model.KindAddressSet, model.KindHostEndpoint,
	}
}

// part is what one file holds.
type part struct {
	file  string
	kinds []model.Kind
	// holds says which objects of the kinds; nil: all.
	holds func(model.Object) bool
	// optional: no object means no file.
	optional bool
}

// parts divides the objects for a node; without a name there is one file.
func parts(node string) []part {
	if node == "" {
		return []part{{file: fileName, kinds: Kinds()}}
	}
	peer := func(o model.Object) bool {
		p, ok := o.(*model.Pod)
		return ok && p.Node != node
	}
	return []part{
		{file: fileName, kinds: Kinds(), holds: func(o model.Object) bool { return !peer(o) }},
		{file: peersName, kinds: []model.Kind{model.KindPod}, holds: peer, optional: true},
	}
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
	_, err := parts("")[0].save(dir, snap)
	return err
}

// save writes the file and returns its size in bytes.
func (p part) save(dir string, snap model.Snapshot) (int64, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, fmt.Errorf("save the last known objects: %w", err)
	}
	path := filepath.Join(dir, p.file)
	tmp, err := os.OpenFile(path+".tmp", os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return 0, fmt.Errorf("save the last known objects: %w", err)
	}
	n, size, err := p.write(tmp, snap)
	if err == nil {
		err = tmp.Close()
	}
	switch {
	case err != nil:
		return 0, errors.Join(fmt.Errorf("save the last known objects: %w", err), tmp.Close(), os.Remove(tmp.Name()))
	case n == 0 && p.optional:
		err = os.Remove(tmp.Name())
		if gone := os.Remove(path); !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, gone)
		}
	default:
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return 0, fmt.Errorf("save the last known objects: %w", err)
	}
	return size, nil
}

// write fills the file, and returns the number of objects and bytes.
func (p part) write(tmp *os.File, snap model.Snapshot) (n int, size int64, err error) {
	if _, err := tmp.Write(bytes.Repeat([]byte(" "), headerSize)); err != nil {
		return 0, 0, err
	}
	sum := sha256.New()
	buf := bufio.NewWriter(io.MultiWriter(tmp, sum))
	n, err = p.encode(buf, snap)
	if err := errors.Join(err, buf.Flush()); err != nil {
		return 0, 0, err
	}
	line, err := json.Marshal(header{format, version, n, hex.EncodeToString(sum.Sum(nil))})
	if err != nil {
		return 0, 0, err
	}
	line = append(line, bytes.Repeat([]byte(" "), headerSize-1-len(line))...)
	if _, err := tmp.WriteAt(append(line, '\n'), 0); err != nil {
		return 0, 0, err
	}
	st, err := tmp.Stat()
	if err != nil {
		return 0, 0, err
	}
	return n, st.Size(), tmp.Sync()
}

// encode writes the objects, a line each, and returns their number.
func (p part) encode(w io.Writer, snap model.Snapshot) (int, error) {
	n := 0
	for _, kind := range p.kinds {
		for o := range snap.All(kind) {
			if p.holds != nil && !p.holds(o) {
				continue
			}
			b, err := toLine(kind, o)
			if err == nil {
				_, err = w.Write(b)
			}
			if err != nil {
				return n, fmt.Errorf("%s: %w", o.Key(), err)
			}
			n++
		}
	}
	return n, nil
}

// digest is the hash of what save would write.
func (p part) digest(snap model.Snapshot) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	_, err = p.encode(h, snap)
	return [sha256.Size]byte(h.Sum(nil)), err
}

// Load reads what was saved in dir: nothing if nothing was. A file that cannot be used is renamed, so
// that it can be looked at, and the error names it; then nothing is used.
func Load(dir string) ([]model.Object, error) {
	objs, err := load(filepath.Join(dir, fileName))
	if err != nil || objs == nil {
		return nil, err
	}
	peers, err := load(filepath.Join(dir, peersName))
	if err != nil {
		return nil, err
	}
	return append(objs, peers...), nil
}

// load reads one file; nil if it is not there.
func load(path string) ([]model.Object, error) {
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

// Source brings the saved objects into the store at start, and keeps the files up to date.
type Source struct {
	dir   string
	w     Writer
	log   *slog.Logger
	files []*file

	once     sync.Once
	live     chan struct{} // closed by Withdraw
	restored atomic.Bool   // objects of Restore are in the store
}

// file is a part that is kept. Its fields belong to the goroutine of keep.
type file struct {
	part
	dir     string
	log     *slog.Logger
	pause   time.Duration     // least time between two writes
	saved   [sha256.Size]byte // digest of what is on disk
	failing bool              // the last save failed
	size    int64             // bytes that the last save wrote
}

// New returns a source that keeps its files in dir. Pods of other nodes than the named one are kept apart. It reads and writes
// nothing yet.
func New(dir, node string, w Writer, log *slog.Logger) *Source {
	s := &Source{dir: dir, w: w, log: log, live: make(chan struct{})}
	for _, p := range parts(node) {
		s.files = append(s.files, &file{part: p, dir: dir, log: log, pause: interval})
	}
	return s
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
		for _, k := range slices.Backward(Kinds()) { // policies before pods: one that is not known is closed while there are policies
			s.w.Replace(k, nil)
		}
		s.restored.Store(false)
		close(s.live)
	})
}

// Serving reports whether restored objects are in the store.
func (s *Source) Serving() bool { return s.restored.Load() }

// Keep saves what the store holds until ctx ends, and then once more: when it has changed, at most once a minute, less
// often what is large, and not before Withdraw, since what is not complete is worth less than what is on disk. Changed
// returns a channel that is closed when objects of the kind change.
func (s *Source) Keep(ctx context.Context, snapshot func() model.Snapshot, changed func(model.Kind) <-chan struct{}) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-s.live:
	}
	var wg sync.WaitGroup
	for _, f := range s.files {
		wg.Go(func() { f.keep(ctx, snapshot, changed) })
	}
	wg.Wait()
	return ctx.Err()
}

func (f *file) keep(ctx context.Context, snapshot func() model.Snapshot, changed func(model.Kind) <-chan struct{}) {
	for {
		woken := anyOf(f.kinds, changed)
		f.save(snapshot())
		select {
		case <-ctx.Done():
		case <-time.After(f.rest()):
		}
		if !f.failing {
			woken(ctx)
		}
		if ctx.Err() != nil {
			f.save(snapshot())
			return
		}
	}
}

// rest is how long the file is left alone after a save.
func (f *file) rest() time.Duration {
	return max(f.pause, time.Duration(f.size)*time.Second/rate)
}

// anyOf looks at the kinds now and returns a function that waits until one of them has changed since, or ctx ends.
func anyOf(kinds []model.Kind, changed func(model.Kind) <-chan struct{}) func(context.Context) {
	var cases []reflect.SelectCase
	for _, k := range kinds {
		cases = append(cases, reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(changed(k))})
	}
	return func(ctx context.Context) {
		reflect.Select(append(cases, reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(ctx.Done())}))
	}
}

// save writes the file if it is not up to date.
func (f *file) save(snap model.Snapshot) {
	sum, err := f.digest(snap)
	if err == nil && sum == f.saved {
		return
	}
	if err == nil {
		f.size, err = f.part.save(f.dir, snap)
	}
	if err != nil && !f.failing {
		f.log.Warn("the last known objects are not on disk", "err", err)
	}
	if f.failing = err != nil; !f.failing {
		f.saved = sum
	}
}
