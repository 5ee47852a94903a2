package trial

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"weft/internal/model"
	"weft/internal/source/cache"
)

// version is that of the file's format; a file of another one is not used.
const version = 1

// file is what is on disk.
type file struct {
	Version int         `json:"version"`
	Held    []string    `json:"held"`
	Trials  []diskTrial `json:"trials"`
}

// diskTrial is a trial; objects are as package cache writes them.
type diskTrial struct {
	Before json.RawMessage `json:"before,omitempty"`
	After  json.RawMessage `json:"after"`
	Back   bool            `json:"back,omitempty"`
	Since  time.Time       `json:"since"`
	Open   bool            `json:"open,omitempty"` // not decided: on trial, or not known yet whether taking back helped
	Why    []string        `json:"why,omitempty"`
}

// Restore goes on with the trials of an earlier agent: what was taken back stays so, and what is on trial has all of its time
// again. It is called once, before any source writes.
func (t *Trials) Restore() error {
	b, err := os.ReadFile(t.o.File)
	if errors.Is(err, fs.ErrNotExist) || t.o.Mode == model.ConfirmOff {
		return nil
	}
	if err != nil {
		return fmt.Errorf("restore trials of policies: %w", err)
	}
	var f file
	if err := json.Unmarshal(b, &f); err != nil {
		return fmt.Errorf("restore trials of policies: %s: %w", t.o.File, err)
	}
	if f.Version != version {
		return fmt.Errorf("restore trials of policies: %s: version %d, want %d", t.o.File, f.Version, version)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, d := range f.Trials {
		x, err := d.trial()
		if err != nil {
			return fmt.Errorf("restore trials of policies: %s: %w", t.o.File, err)
		}
		if d.Open {
			x.until = t.o.Clock.Now().Add(t.o.Window)
		}
		t.all[x.key] = x
	}
	for _, name := range f.Held {
		t.held[name] = true
	}
	t.show()
	return nil
}

// show writes what is to be seen of all trials, and what is in force instead. The caller holds mu.
func (t *Trials) show() {
	for _, x := range t.all {
		t.w.Upsert(x.row())
		if !x.back {
			continue
		}
		if o, _ := x.instead(); o != nil {
			t.w.Upsert(o)
		} else {
			t.w.Refuse(x.after, x.problem())
		}
	}
}

func (d diskTrial) trial() (*trial, error) {
	after, err := cache.Decode(d.After)
	if err != nil {
		return nil, err
	}
	x := &trial{key: after.Key(), after: after, back: d.Back, since: d.Since, why: d.Why}
	if d.Before != nil {
		x.before, err = cache.Decode(d.Before)
	}
	return x, err
}

// save writes the file; none if there is no trial. That it cannot be written is reported: a restart would forget. The caller holds mu.
func (t *Trials) save() {
	err := t.write()
	if err != nil && !t.failing {
		t.o.Report(fmt.Sprintf("trials of policies are not on disk: %v", err), "an agent that starts anew will not know of them")
	}
	t.failing = err != nil
}

func (t *Trials) write() error {
	if len(t.all) == 0 {
		if err := os.Remove(t.o.File); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	f := file{Version: version, Held: slices.Sorted(maps.Keys(t.held))}
	byName := func(a, b *trial) int { return strings.Compare(a.key.String(), b.key.String()) }
	for _, x := range slices.SortedFunc(maps.Values(t.all), byName) {
		d := diskTrial{After: encode(x.after), Back: x.back, Since: x.since, Open: !x.until.IsZero(), Why: x.why}
		if x.before != nil {
			d.Before = encode(x.before)
		}
		f.Trials = append(f.Trials, d)
	}
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(t.o.File), 0o700); err != nil {
		return err
	}
	return replace(t.o.File, b)
}

// replace writes a file so that a death at any point leaves the old or the new one.
func replace(path string, b []byte) error {
	tmp, err := os.OpenFile(path+".tmp", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = tmp.Write(b)
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return os.Rename(tmp.Name(), path)
}
