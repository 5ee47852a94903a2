package rtnl

import (
	"fmt"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// OpenNetns opens a namespace's file. What is no namespace fails later, on entering it.
func OpenNetns(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	return fd, nil
}

// InNetns runs f on this thread inside the namespace and comes back. A thread that cannot come back is
// left locked, so that the runtime ends it with its goroutine and nobody runs in the wrong place.
func InNetns(fd int, f func() error) error {
	runtime.LockOSThread()
	back, err := OpenNetns("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() { _ = unix.Close(back) }()
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter a network namespace: %w", err)
	}
	defer func() {
		if unix.Setns(back, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return f()
}

// Everywhere reports whether all threads of the process are in the namespace.
func Everywhere(fd int) bool {
	var mine unix.Stat_t
	threads, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil || unix.Fstat(fd, &mine) != nil {
		return false
	}
	for _, t := range threads {
		var s unix.Stat_t
		if err := unix.Stat(t, &s); err == nil && (s.Ino != mine.Ino || s.Dev != mine.Dev) {
			return false
		}
	}
	return true
}
