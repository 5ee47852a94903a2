package ipam

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// FS is what the journal needs of a directory. It is an interface so that tests can fail and crash at every step.
type FS interface {
	// ReadFile returns the whole file; the error is os.ErrNotExist where there is none.
	ReadFile(name string) ([]byte, error)
	// Create opens an empty file, emptying one that is there.
	Create(name string) (File, error)
	// Rename replaces a file atomically, and returns when that is on disk.
	Rename(from, to string) error
}

// File is a file that is written from start to end.
type File interface {
	io.Writer
	// Sync returns when everything written is on disk.
	Sync() error
	io.Closer
}

// Dir returns the file system's directory as an FS. It creates it, with mode 0700, when it first writes.
func Dir(path string) FS { return dirFS(path) }

type dirFS string

func (d dirFS) ReadFile(name string) ([]byte, error) {
	return os.ReadFile(filepath.Join(string(d), name))
}

func (d dirFS) Create(name string) (File, error) {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return nil, err
	}
	return os.OpenFile(filepath.Join(string(d), name), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
}

func (d dirFS) Rename(from, to string) error {
	if err := os.Rename(filepath.Join(string(d), from), filepath.Join(string(d), to)); err != nil {
		return err
	}
	dir, err := os.Open(string(d))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// replace makes data the content of the file, or leaves the old content, and returns the open file to append to. After
// an error, unsure says that the old file may be no longer the one of that name.
func replace(fs FS, name string, data []byte) (f File, unsure bool, err error) {
	tmp := name + ".new"
	if f, err = fs.Create(tmp); err != nil {
		return nil, false, fmt.Errorf("create %s: %w", tmp, err)
	}
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	if err == nil {
		if err = fs.Rename(tmp, name); err == nil {
			return f, false, nil
		}
		unsure = true
	}
	f.Close()
	if empty, fail := fs.Create(tmp); fail == nil {
		empty.Close() // gives a full disk its space back
	}
	return nil, unsure, fmt.Errorf("write %s: %w", name, err)
}
