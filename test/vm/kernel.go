package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// kernel is an unpacked Debian kernel package.
type kernel struct {
	release string // "6.1.0-50-cloud-amd64"
	image   string // path of the bzImage
	modules string // directory below which the .ko files are
}

// fetch finds a kernel of the series in the cache, or downloads the newest.
func fetch(ctx context.Context, want string) (kernel, error) {
	suite, ok := series()[want]
	if !ok {
		return kernel{}, fmt.Errorf("no such series; known: %v", series())
	}
	if runtime.GOARCH != "amd64" {
		return kernel{}, fmt.Errorf("the machine is amd64, this host is %s", runtime.GOARCH)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return kernel{}, err
	}
	dir := filepath.Join(cache, "weft", "kernels", want)
	if k, err := unpacked(dir); err == nil {
		return k, nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return kernel{}, err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), want+"-")
	if err != nil {
		return kernel{}, err
	}
	defer os.RemoveAll(tmp)
	fmt.Printf("kernel %s: downloading Debian's package from %s\n", want, suite)
	deb, err := download(ctx, tmp, suite, "linux-image-"+want+".", "-cloud-amd64")
	if err != nil {
		return kernel{}, err
	}
	root := filepath.Join(tmp, "root")
	if err := command(ctx, "", "dpkg", "-x", deb, root); err != nil {
		return kernel{}, err
	}
	if _, err := unpacked(root); err != nil {
		return kernel{}, fmt.Errorf("%s: %w", filepath.Base(deb), err)
	}
	// Only a whole directory gets the final name. If another process was quicker, its is as good.
	if err := os.Rename(root, dir); err != nil && !errors.Is(err, os.ErrExist) {
		return kernel{}, err
	}
	return unpacked(dir)
}

// unpacked reads a directory that a kernel package was unpacked into.
func unpacked(dir string) (kernel, error) {
	images, _ := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if len(images) != 1 {
		return kernel{}, fmt.Errorf("%d kernel images in %s/boot, want one", len(images), dir)
	}
	k := kernel{image: images[0], release: strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")}
	for _, lib := range []string{"lib", "usr/lib"} {
		m := filepath.Join(dir, lib, "modules", k.release)
		if _, err := os.Stat(m); err == nil {
			k.modules = m
			return k, nil
		}
	}
	return kernel{}, fmt.Errorf("no modules of %s in %s", k.release, dir)
}

// download fetches the newest package whose name has the prefix and suffix. It asks the same
// mirror as the host's apt, but keeps sources, lists and cache of its own below dir, so that
// the host's package state is not touched.
func download(ctx context.Context, dir, suite, prefix, suffix string) (string, error) {
	mirror, err := mirror(ctx)
	if err != nil {
		return "", err
	}
	line := "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] " + mirror + " " + suite + " main\n"
	if err := os.WriteFile(filepath.Join(dir, "sources.list"), []byte(line), 0o644); err != nil {
		return "", err
	}
	for _, d := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return "", err
		}
	}
	private := []string{
		"-o", "Dir::Etc::sourcelist=" + dir + "/sources.list", "-o", "Dir::Etc::sourceparts=-",
		"-o", "Dir::State::lists=" + dir + "/lists", "-o", "Dir::Cache=" + dir + "/cache",
		"-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none", "-q",
	}
	if err := command(ctx, dir, "apt-get", append(private, "update")...); err != nil {
		return "", err
	}
	out, err := exec.CommandContext(ctx, "apt-cache", append(private, "pkgnames", prefix)...).Output()
	if err != nil {
		return "", fmt.Errorf("apt-cache pkgnames %s: %w", prefix, err)
	}
	names := slices.DeleteFunc(strings.Fields(string(out)), func(n string) bool { return !strings.HasSuffix(n, suffix) })
	if len(names) == 0 {
		return "", fmt.Errorf("%s has no package %s*%s", suite, prefix, suffix)
	}
	newest := slices.MaxFunc(names, versions)
	if err := command(ctx, dir, "apt-get", append(private, "download", newest)...); err != nil {
		return "", err
	}
	debs, _ := filepath.Glob(filepath.Join(dir, "*.deb"))
	if len(debs) != 1 {
		return "", fmt.Errorf("apt-get download %s left %d files", newest, len(debs))
	}
	return debs[0], nil
}

// mirror is the address of the host's Debian mirror.
func mirror(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages").Output()
	if err != nil {
		return "", fmt.Errorf("apt-get indextargets (kernels come as Debian packages): %w", err)
	}
	for line := range strings.Lines(string(out)) {
		// Security and updates live elsewhere or under longer names; the release itself is one word.
		if f := strings.Fields(line); len(f) == 3 && f[2] == "main" && !strings.Contains(f[1], "-") && strings.HasSuffix(strings.TrimRight(f[0], "/"), "/debian") {
			return f[0], nil
		}
	}
	return "", errors.New("apt has no Debian release among its sources, so there is no mirror to get kernels from")
}

// versions compares names by their numbers.
func versions(a, b string) int {
	fields := func(s string) (out []int) {
		s, _, _ = strings.Cut(s, "-cloud") // what follows has numbers that are no version
		for _, f := range strings.FieldsFunc(s, func(r rune) bool { return r < '0' || r > '9' }) {
			n, _ := strconv.Atoi(f)
			out = append(out, n)
		}
		return out
	}
	return slices.Compare(fields(a), fields(b))
}

// command runs a program and shows its output only if it fails.
func command(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// readModule returns a module's ELF image, decompressed if need be.
func readModule(ctx context.Context, path string) ([]byte, error) {
	var tool string
	switch filepath.Ext(path) {
	case ".xz":
		tool = "xz"
	case ".zst":
		tool = "zstd"
	default:
		return os.ReadFile(path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd := exec.CommandContext(ctx, tool, "-dc")
	cmd.Stdin = io.Reader(f)
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s -dc %s: %w", tool, path, err)
	}
	return out, nil
}
