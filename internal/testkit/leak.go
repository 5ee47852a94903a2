package testkit

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// NoLeaks compares, when the test ends, what this process and the given namespaces hold with what they held
// when it was called: sockets and namespace handles, mounts of the process below the directories, links
// and nft tables of the namespaces, and files below the directories. Call it after making the namespaces and before
// making the subject. It cannot be used in tests that run in parallel with others of the process.
func NoLeaks(tb testing.TB, in []*Netns, dirs ...string) {
	tb.Helper()
	before := held(tb, in, dirs)
	tb.Cleanup(func() {
		var after []string
		// Namespaces and links die asynchronously, so what is left may be on its way out.
		for range 50 {
			if after = held(tb, in, dirs); slices.Equal(before, after) {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		tb.Errorf("left behind:\n  before: %s\n  after:  %s", strings.Join(before, "\n          "), strings.Join(after, "\n          "))
	})
}

// held lists what NoLeaks compares, sorted, one thing a line.
func held(tb testing.TB, in []*Netns, dirs []string) []string {
	tb.Helper()
	var out []string
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	for _, fd := range fds {
		to, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if kind, _, found := strings.Cut(to, ":["); err == nil && found && (kind == "socket" || kind == "net") {
			out = append(out, "open "+kind)
		}
	}
	for _, n := range in {
		if n.file == nil {
			continue
		}
		for line := range strings.Lines(n.Run(tb, "ip", "-o", "link")) {
			_, rest, _ := strings.Cut(line, ": ")
			name, _, _ := strings.Cut(rest, ": ")
			out = append(out, n.path+" link "+name)
		}
		for line := range strings.Lines(n.Run(tb, "nft", "list", "tables")) {
			out = append(out, n.path+" "+strings.TrimSpace(line))
		}
	}
	for _, dir := range dirs {
		_ = filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
			if err == nil {
				out = append(out, path)
			}
			return nil
		})
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		for _, dir := range dirs {
			if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir) {
				out = append(out, "mount "+f[4])
			}
		}
	}
	slices.Sort(out)
	return out
}
