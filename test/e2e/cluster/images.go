package cluster

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"weft/internal/image"
	"weft/test/e2e/binaries"
)

const (
	pauseImage   = "registry.k8s.io/pause:3.10.2"
	coreDNSImage = "registry.k8s.io/coredns/coredns:" + binaries.CoreDNS
	suite        = "registry.k8s.io/e2e-test-images/"

	// ToolboxImage has a shell, agnhost, the usual network tools and test/e2e/traffic.
	ToolboxImage = "localhost/toolbox:latest"
)

// images are all images that the nodes have. They are one shared layer under the names that the
// upstream suites of these versions ask for; nothing is ever pulled.
func images(toolbox *image.Layer) []image.Image {
	tb := []*image.Layer{toolbox}
	agnhost := []string{"/agnhost"}
	list := []image.Image{
		{Names: []string{pauseImage, "registry.k8s.io/pause:3.10.1"}, Layers: tb, Entrypoint: []string{"/usr/bin/pause"}},
		{Names: []string{suite + "agnhost:2.66.1", suite + "agnhost:2.55", suite + "agnhost:2.45", suite + "agnhost:2.43"}, Layers: tb, Entrypoint: agnhost, Cmd: []string{"pause"}},
		{Names: []string{suite + "busybox:1.37.0-2", ToolboxImage}, Layers: tb, Cmd: []string{"/bin/sh"}},
		{Names: []string{suite + "nginx:1.27.0-2"}, Layers: tb, Entrypoint: agnhost, Cmd: []string{"netexec", "--http-port=80", "--udp-port=-1"}},
		{Names: []string{suite + "glibc-dns-testing:2.1.1"}, Layers: tb, Entrypoint: []string{"/bin/sleep"}, Cmd: []string{"100000"}},
		{Names: []string{"registry.k8s.io/build-image/distroless-iptables:v0.9.9"}, Layers: tb},
		{Names: []string{coreDNSImage}, Layers: tb, Entrypoint: []string{"/coredns"}},
	}
	for i := range list {
		list[i].Arch, list[i].Plain = arch(), true
	}
	return list
}

// archive is the path of an image archive, which clusters may share.
func (c *Cluster) archive(name string) string {
	if c.Images != "" {
		return filepath.Join(c.Images, name+".tar")
	}
	return c.path(name + ".tar")
}

// buildImages writes the images' archive, unless it is there.
func (c *Cluster) buildImages(ctx context.Context) error {
	dst := c.archive("images")
	if _, err := os.Stat(dst); err == nil {
		return nil
	}
	own := c.path("programs")
	if err := buildOwn(ctx, own); err != nil {
		return err
	}
	toolbox, err := c.toolbox(own)
	if err != nil {
		return err
	}
	return writeArchive(dst, images(toolbox)...)
}

func writeArchive(dst string, list ...image.Image) error {
	f, err := os.Create(dst + ".new")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := image.Write(f, list...); err != nil {
		return err
	}
	return os.Rename(f.Name(), dst)
}

// buildOwn builds the small programs of this directory that run in pods.
func buildOwn(ctx context.Context, dir string) error {
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", dir+"/",
		"./test/e2e/agnhost", "./test/e2e/first", "./test/e2e/pause", "./test/e2e/traffic")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build programs of the toolbox: %w\n%s", err, out)
	}
	return nil
}

// toolbox is the shared layer: agnhost (with SCTP where the kernel has none), our own programs, and tools of this machine with their libraries.
func (c *Cluster) toolbox(own string) (*image.Layer, error) {
	l := image.NewLayer()
	for _, d := range []string{"proc", "sys", "dev", "run", "root", "uploads", "usr/local/bin"} {
		l.Dir(d, 0o755)
	}
	l.Dir("tmp", 0o1777)
	l.Bytes("/etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"))
	l.Bytes("/etc/group", 0o644, []byte("root:x:0:\nnogroup:x:65534:\n"))
	l.Bytes("/etc/nsswitch.conf", 0o644, []byte("hosts: files dns\npasswd: files\ngroup: files\n"))
	l.File("/agnhost", 0o755, filepath.Join(own, "agnhost")) // hands over to the next
	l.File("/usr/bin/agnhost", 0o755, c.program("agnhost"))
	l.File("/coredns", 0o755, c.program("coredns")) // the suite expects it in agnhost's image
	l.File("/usr/bin/pause", 0o755, filepath.Join(own, "pause"))
	l.File("/usr/bin/first", 0o755, filepath.Join(own, "first"))
	l.Symlink("/pause", "/usr/bin/pause")
	l.File("/usr/bin/traffic", 0o755, filepath.Join(own, "traffic"))
	for _, tool := range []string{"bash", "dash", "curl", "nc.openbsd", "dig", "nslookup", "host", "ip", "ss", "ping", "getent", "tcpdump", "nft"} {
		src, err := exec.LookPath(tool)
		if err != nil {
			return nil, fmt.Errorf("toolbox: %w: run hack/deps.sh e2e", err)
		}
		if err := addELF(l, "/usr/bin/"+strings.TrimSuffix(tool, ".openbsd"), src); err != nil {
			return nil, fmt.Errorf("toolbox: %s: %w", tool, err)
		}
	}
	for _, lib := range []string{"libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2"} { // opened by name at run time
		if src, err := library(lib); err == nil {
			if err := addELF(l, "/lib/"+lib, src); err != nil {
				return nil, fmt.Errorf("toolbox: %s: %w", lib, err)
			}
		}
	}
	l.Symlink("/bin/bash", "/usr/bin/bash")
	l.Symlink("/bin/sh", "/usr/bin/dash") // busybox's shell would run busybox's own tools whatever PATH says
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return nil, fmt.Errorf("toolbox: %w: run hack/deps.sh e2e", err)
	}
	l.File("/bin/busybox", 0o755, busybox)
	list, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("toolbox: busybox --list: %w", err)
	}
	for _, applet := range strings.Fields(string(list)) {
		if !l.Has("/usr/bin/" + applet) {
			l.Symlink("/bin/"+applet, "busybox")
		}
	}
	return l, nil
}

// addELF adds a program or library with the libraries that it needs.
func addELF(l *image.Layer, dst, src string) error {
	src, err := filepath.EvalSymlinks(src)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(src)
	if err != nil {
		return err
	}
	l.Bytes(dst, 0o755, b)
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return err
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		interp, err := io.ReadAll(p.Open())
		if err != nil {
			return err
		}
		if ld := strings.TrimRight(string(interp), "\x00"); !l.Has(ld) {
			if err := addELF(l, ld, ld); err != nil {
				return err
			}
		}
	}
	libs, err := f.ImportedLibraries()
	if err != nil {
		return err
	}
	for _, lib := range libs {
		if l.Has("/lib/" + lib) {
			continue
		}
		p, err := library(lib)
		if err != nil {
			return err
		}
		if err := addELF(l, "/lib/"+lib, p); err != nil {
			return err
		}
	}
	return nil
}

// library finds a shared library of this machine.
func library(name string) (string, error) {
	for _, pattern := range []string{"/lib/*-linux-gnu*/", "/usr/lib/*-linux-gnu*/", "/lib64/", "/usr/lib64/", "/lib/", "/usr/lib/"} {
		if m, _ := filepath.Glob(pattern + name); len(m) > 0 {
			return m[0], nil
		}
	}
	return "", errors.New("no library " + name)
}
