package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

// archive writes a cpio archive in the "newc" format that the kernel unpacks into its first
// root (Documentation/driver-api/early-userspace/buffer-format.rst). Parent directories are
// made as needed; the same path twice is written once.
type archive struct {
	w    *bufio.Writer
	file *os.File
	seen map[string]bool
	ino  int
	at   int64
	err  error // the first one; later calls do nothing
}

func newArchive(file string) (*archive, error) {
	f, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	return &archive{w: bufio.NewWriterSize(f, 1<<20), file: f, seen: map[string]bool{}}, nil
}

// entry writes one header and its data, padded to four bytes.
func (a *archive) entry(name string, mode uint32, data []byte) {
	if a.err != nil {
		return
	}
	a.ino++
	h := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		a.ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	for _, b := range [][]byte{append(append([]byte(h), name...), 0), data} {
		n, err := a.w.Write(b)
		if a.at += int64(n); err != nil {
			a.err = err
			return
		}
		pad := -a.at & 3
		a.at += pad
		_, a.err = a.w.Write(make([]byte, pad))
	}
}

// add puts a file at an absolute path.
func (a *archive) add(name string, perm fs.FileMode, data []byte) {
	name = strings.TrimPrefix(path.Clean(name), "/")
	if a.seen[name] {
		return
	}
	a.dir(path.Dir(name))
	a.seen[name] = true
	a.entry(name, 0o100000|uint32(perm.Perm()), data)
}

// dir makes a directory and its parents.
func (a *archive) dir(name string) {
	name = strings.TrimPrefix(path.Clean(name), "/")
	if name == "." || name == "" || a.seen[name] {
		return
	}
	a.dir(path.Dir(name))
	a.seen[name] = true
	a.entry(name, 0o040755, nil)
}

// link makes a symbolic link.
func (a *archive) link(name, to string) {
	name = strings.TrimPrefix(path.Clean(name), "/")
	if a.seen[name] {
		return
	}
	a.dir(path.Dir(name))
	a.seen[name] = true
	a.entry(name, 0o120777, []byte(to))
}

// copy puts a file of this host at an absolute path.
func (a *archive) copy(name, from string) {
	b, err := os.ReadFile(from)
	if err != nil {
		a.fail(err)
		return
	}
	info, err := os.Stat(from)
	if err != nil {
		a.fail(err)
		return
	}
	a.add(name, info.Mode(), b)
}

// tree puts a directory of this host at an absolute path.
func (a *archive) tree(name, from string) {
	a.fail(filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			rel, _ := filepath.Rel(from, p)
			a.copy(path.Join(name, rel), p)
		}
		return err
	}))
}

func (a *archive) fail(err error) {
	if a.err == nil {
		a.err = err
	}
}

// program puts a program of this host, if there is one of that name, with the libraries that it
// needs, where it expects them.
func (a *archive) program(ctx context.Context, name string) {
	file, err := exec.LookPath(name)
	if err != nil {
		return // a test that needs it says so
	}
	if file, err = filepath.Abs(file); err != nil {
		a.fail(err)
		return
	}
	a.copy(path.Join("/usr/bin", name), file)
	out, err := exec.CommandContext(ctx, "ldd", file).Output()
	if err != nil {
		return // static, or a script
	}
	for line := range strings.Lines(string(out)) {
		for _, f := range strings.Fields(line) {
			if strings.HasPrefix(f, "/") {
				a.copy(f, f)
			}
		}
	}
}

func (a *archive) close() error {
	a.entry("TRAILER!!!", 0, nil)
	a.fail(a.w.Flush())
	a.fail(a.file.Close())
	return a.err
}

// programs are those of this host that tests may call.
func programs() []string {
	return strings.Fields(`ip tc bridge ss nstat nft ping ethtool conntrack sysctl unshare nsenter mount umount
		sh bash cat ls sleep true false echo env tcpdump iptables ip6tables iptables-legacy ip6tables-legacy ipset iperf3 find grep sed kill ps strace`)
}

// initramfs writes the machine's root file system.
func initramfs(ctx context.Context, file string, k kernel, s suite) error {
	a, err := newArchive(file)
	if err != nil {
		return err
	}
	for _, d := range []string{"/proc", "/sys", "/dev", "/tmp", "/run", "/root", "/var/lib", "/etc", "/modules"} {
		a.dir(d)
	}
	a.copy("/init", s.init)
	mods, err := modules(ctx, k.modules)
	if err != nil {
		return err
	}
	for i, m := range mods {
		a.add(fmt.Sprintf("/modules/%03d-%s", i, m.name), 0o644, m.image)
	}
	for _, link := range []string{"bin", "sbin", "usr/sbin"} {
		a.link(link, "/usr/bin")
	}
	for _, p := range programs() {
		a.program(ctx, p)
	}
	// What iptables loads for each target.
	if plugins, _ := filepath.Glob("/usr/lib/*/xtables"); len(plugins) == 1 {
		a.tree(plugins[0], plugins[0])
	}
	a.add("/etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\n"))
	a.add("/etc/group", 0o644, []byte("root:x:0:\n"))
	a.add("/etc/protocols", 0o644, []byte("icmp 1\ntcp 6\nudp 17\nipv6-icmp 58\nsctp 132\n")) // nft prints their names
	a.add("/etc/hosts", 0o644, []byte("127.0.0.1 localhost\n::1 localhost\n"))
	for _, t := range s.tests {
		a.copy(path.Join(t.Dir, "test"), t.binary)
		if _, err := os.Stat(filepath.Join(t.source, "testdata")); err == nil {
			a.tree(path.Join(t.Dir, "testdata"), filepath.Join(t.source, "testdata"))
		}
	}
	var plan bytes.Buffer
	if err := json.NewEncoder(io.Writer(&plan)).Encode(s.tests); err != nil {
		return err
	}
	a.add("/tests.json", 0o644, plan.Bytes())
	return a.close()
}
