package ipam_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"syscall"

	"weft/internal/ipam"
)

// errCrash is what every file step returns once the machine has crashed: nothing happens any more.
var errCrash = errors.New("crashed")

// disk is a file system in memory that can crash after any step, tear writes, and be full.
type disk struct {
	rng   *rand.Rand
	files map[string]*inode
	steps int // file steps so far
	crash int // crash at this step; 0: never
	full  bool
	down  bool
}

// inode has what survives a crash, and what was written since.
type inode struct{ synced, unsynced []byte }

func newDisk(rng *rand.Rand) *disk { return &disk{rng: rng, files: map[string]*inode{}} }

// step counts one file step and says whether it happens.
func (d *disk) step() error {
	if d.down {
		return errCrash
	}
	d.steps++
	if d.steps == d.crash {
		d.down = true
		return errCrash
	}
	return nil
}

// reboot is what the next agent finds. A power cut loses or tears what was not synced; the death of the process alone
// loses nothing that was written.
func (d *disk) reboot(power bool) {
	d.down, d.crash = false, 0
	for _, f := range d.files {
		keep := len(f.unsynced)
		if power {
			keep = d.rng.IntN(keep + 1)
		}
		f.synced, f.unsynced = append(f.synced, f.unsynced[:keep]...), nil
	}
}

func (d *disk) ReadFile(name string) ([]byte, error) {
	f := d.files[name]
	if f == nil {
		return nil, os.ErrNotExist
	}
	return append(bytes.Clone(f.synced), f.unsynced...), nil
}

func (d *disk) Create(name string) (ipam.File, error) {
	if err := d.step(); err != nil {
		return nil, err
	}
	f := &inode{}
	d.files[name] = f
	return &file{d, f}, nil
}

func (d *disk) Rename(from, to string) error {
	err := d.step()
	// A crash in a rename is a rename that happened or not.
	if err == nil || d.steps == d.crash && d.rng.IntN(2) == 0 {
		if d.files[from] != nil {
			d.files[to] = d.files[from]
			delete(d.files, from)
		}
	}
	return err
}

type file struct {
	d *disk
	f *inode
}

func (f *file) Write(p []byte) (int, error) {
	if f.d.full && !f.d.down {
		n := f.d.rng.IntN(len(p))
		f.f.unsynced = append(f.f.unsynced, p[:n]...)
		return n, syscall.ENOSPC
	}
	if err := f.d.step(); err != nil {
		if f.d.steps == f.d.crash {
			f.f.unsynced = append(f.f.unsynced, p[:f.d.rng.IntN(len(p)+1)]...)
		}
		return 0, err
	}
	f.f.unsynced = append(f.f.unsynced, p...)
	return len(p), nil
}

func (f *file) Sync() error {
	if err := f.d.step(); err != nil {
		return err
	}
	f.f.synced, f.f.unsynced = append(f.f.synced, f.f.unsynced...), nil
	return nil
}

func (f *file) Close() error { return nil }
