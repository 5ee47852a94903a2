package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"weft/internal/ipam"
)

// nsfsMagic is the file system of namespaces (NSFS_MAGIC in linux/magic.h).
const nsfsMagic = 0x6e736673

// identify returns device and inode of the namespace that is mounted at the path: they are the namespace's own, whatever
// path leads to it, as long as it lives.
func identify(path string) (string, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return "", &os.PathError{Op: "stat", Path: path, Err: err}
	}
	var vfs syscall.Statfs_t
	if err := syscall.Statfs(path, &vfs); err != nil {
		return "", &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	if uint32(vfs.Type) != nsfsMagic {
		return "", fmt.Errorf("%s is not a network namespace: %w", path, fs.ErrNotExist)
	}
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino), nil
}

// alive reports whether the lease's network namespace still is there. It doubts only what it can see: a path whose
// directory is missing as well says, in the same boot, that the agent does not see the host's namespaces.
func (s *Source) alive(l *ipam.Lease) bool {
	path := l.Endpoint.Netns
	id, err := s.cfg.Identify(path)
	switch {
	case err == nil:
		return l.NetnsID == "" || id == l.NetnsID
	case !errors.Is(err, fs.ErrNotExist):
		return true
	case l.Boot != s.cfg.Boot || strings.HasPrefix(path, "/proc/"):
		return false
	}
	_, err = os.Stat(filepath.Dir(path))
	return err != nil
}
