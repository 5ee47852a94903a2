// Package binaries builds every program of the test cluster from Go modules alone: Kubernetes, etcd,
// containerd, runc, CoreDNS, the reference CNI plugins, helm and the upstream test suites.
//
// It does not download programs, and it does not build weft itself. The result is kept in a directory whose
// name is a hash of the cluster's versions, so that a changed version never meets an old program. The first build takes
// about twelve minutes on two cores; later ones, seconds.
package binaries

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// Dir is where the programs of these versions are: $XDG_CACHE_HOME or ~/.cache, weft-e2e/bin/<hash>.
func Dir() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("directory of binaries: %w", err)
	}
	recipe, err := json.Marshal(Modules())
	if err != nil {
		return "", fmt.Errorf("directory of binaries: %w", err)
	}
	sum := sha256.Sum256(append(recipe, runtime.Version()+runtime.GOARCH...))
	return filepath.Join(cache, "weft-e2e", "bin", fmt.Sprintf("%x", sum[:6])), nil
}

// Build makes sure that the named programs are there, without a name all but those of further suites, and returns their
// directory. progress is told what is being built. An interrupted build goes on where it was: each program
// appears under its name only when it is complete. Two builds at once take turns.
func Build(ctx context.Context, progress func(string), names ...string) (string, error) {
	dir, err := Dir()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Join(dir, "cni"), 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	wanted := map[string]bool{}
	for _, n := range names {
		wanted[n] = true
	}
	modules := Modules()
	if len(names) > 0 {
		modules = append(modules, Suites()...)
	}
	for _, m := range modules {
		used := len(names) == 0
		for _, p := range m.Programs {
			if len(names) > 0 && !wanted[p.Name] {
				continue
			}
			used = true
			delete(wanted, p.Name)
			if _, err := os.Stat(filepath.Join(dir, p.Name)); err == nil {
				continue
			}
			progress(p.Name)
			if err := m.build(ctx, dir, p); err != nil {
				return "", err
			}
		}
		if !used {
			continue
		}
		if err := m.copyFiles(ctx, dir); err != nil {
			return "", fmt.Errorf("files of %s: %w", m.Name, err)
		}
	}
	for n := range wanted {
		return "", fmt.Errorf("build %s: there is no such program", n)
	}
	return dir, nil
}

// build makes one program in a module made for the purpose.
func (m Module) build(ctx context.Context, dir string, p Program) error {
	work := filepath.Join(dir, ".build", m.Name)
	if err := m.initialise(ctx, work); err != nil {
		return fmt.Errorf("module of %s: %w", p.Name, err)
	}
	if p.Cgo {
		if _, err := os.Stat(p.Header); err != nil {
			return fmt.Errorf("build %s: %s is missing: run hack/deps.sh e2e", p.Name, p.Header)
		}
	}
	for name, text := range m.Sources {
		if err := os.MkdirAll(filepath.Join(work, filepath.Dir(name)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(work, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	flags := "-s -w"
	if p.Stamp {
		flags += " " + stamp()
	}
	if p.Cgo {
		flags += " -extldflags -static"
	}
	tmp := filepath.Join(dir, p.Name+".tmp")
	args := []string{"build"}
	if p.Test {
		args = []string{"test", "-c", "-vet=off"}
	}
	args = append(args, "-mod=mod", "-buildvcs=false", "-tags="+p.Tags, "-ldflags="+flags, "-o", tmp, p.Package)
	if err := goCommand(ctx, work, p.Cgo, args...); err != nil {
		return fmt.Errorf("build %s: %w", p.Name, err)
	}
	return os.Rename(tmp, filepath.Join(dir, p.Name))
}

// copyFiles copies the module's files, unless they are there.
func (m Module) copyFiles(ctx context.Context, dir string) error {
	for name, path := range m.Files {
		dst := filepath.Join(dir, name)
		if _, err := os.Stat(dst); err == nil {
			continue
		}
		module, _, _ := strings.Cut(m.Requires[len(m.Requires)-1], "@")
		cmd := exec.CommandContext(ctx, "go", "list", "-mod=mod", "-m", "-f", "{{.Dir}}", module)
		cmd.Dir, cmd.Env = filepath.Join(dir, ".build", m.Name), append(os.Environ(), "GOFLAGS=", "GOWORK=off")
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("directory of %s: %w", module, err)
		}
		b, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), path))
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(dst+".tmp", b, 0o644); err != nil {
			return err
		}
		if err := os.Rename(dst+".tmp", dst); err != nil {
			return err
		}
	}
	return nil
}

// initialise writes a go.mod that requires the module, unless there is one.
func (m Module) initialise(ctx context.Context, work string) error {
	if _, err := os.Stat(filepath.Join(work, "go.sum")); err == nil {
		return nil
	}
	if err := os.RemoveAll(work); err != nil {
		return err
	}
	if err := os.MkdirAll(work, 0o755); err != nil {
		return err
	}
	if err := goCommand(ctx, work, false, "mod", "init", "weft-e2e/"+m.Name); err != nil {
		return err
	}
	if m.Replaced {
		if err := m.replace(ctx, work); err != nil {
			return err
		}
	}
	return goCommand(ctx, work, false, append([]string{"get"}, m.Requires...)...)
}

// replace pins the companions of the first module to the published modules of the same release.
func (m Module) replace(ctx context.Context, work string) error {
	path, version, _ := strings.Cut(m.Requires[0], "@")
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", m.Requires[0])
	cmd.Dir = work
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("download %s: %w", path, errors.Join(err, errors.New(string(out))))
	}
	var at struct{ GoMod string }
	if err := json.Unmarshal(out, &at); err != nil {
		return fmt.Errorf("download %s: %w", path, err)
	}
	out, err = exec.CommandContext(ctx, "go", "mod", "edit", "-json", at.GoMod).Output()
	if err != nil {
		return fmt.Errorf("read go.mod of %s: %w", path, err)
	}
	var file struct {
		Go      string
		Replace []struct{ Old, New struct{ Path string } }
	}
	if err := json.Unmarshal(out, &file); err != nil {
		return fmt.Errorf("read go.mod of %s: %w", path, err)
	}
	edit := []string{"mod", "edit", "-go=" + file.Go, "-godebug=default=go1.26", "-require=" + m.Requires[0]}
	companion := "v0." + strings.TrimPrefix(version, "v1.")
	for _, r := range file.Replace {
		if strings.HasPrefix(r.New.Path, "./") {
			edit = append(edit, fmt.Sprintf("-replace=%[1]s=%[1]s@%[2]s", r.Old.Path, companion))
		}
	}
	return goCommand(ctx, work, false, edit...)
}

// stamp is what the Kubernetes release build links in.
func stamp() string {
	parts := strings.SplitN(strings.TrimPrefix(Kubernetes, "v"), ".", 3)
	const v = "k8s.io/component-base/version."
	return fmt.Sprintf("-X %sgitVersion=%s -X %sgitMajor=%s -X %sgitMinor=%s -X k8s.io/client-go/pkg/version.gitVersion=%s",
		v, Kubernetes, v, parts[0], v, parts[1], Kubernetes)
}

func goCommand(ctx context.Context, dir string, cgo bool, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	enabled := "0"
	if cgo {
		enabled = "1"
	}
	cmd.Env = append(os.Environ(), "CGO_ENABLED="+enabled, "GOFLAGS=", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}
