package laws

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// pkg is one package as `go list` and the parser see it.
type pkg struct {
	ImportPath  string
	Dir         string
	Name        string
	Imports     []string
	GoFiles     []string
	CgoFiles    []string
	TestGoFiles []string
	XTestGoFiles,
	IgnoredGoFiles []string

	short string
	fset  *token.FileSet
	files map[string]*ast.File // hand-written non-test files by path; comments kept
}

// TestLaws fails where a law is broken and names the reason. Every subtest reads the
// whole module, so that one run tells everything.
func TestLaws(t *testing.T) {
	root := moduleRoot(t)
	pkgs := load(t, root)
	if len(pkgs) < 5 {
		t.Fatalf("go list found only %d packages in %s", len(pkgs), root)
	}
	t.Run("layers", func(t *testing.T) { checkLayers(t, pkgs) })
	t.Run("libraries", func(t *testing.T) { checkOwners(t, pkgs) })
	t.Run("pure", func(t *testing.T) { checkPure(t, pkgs) })
	t.Run("drivers", func(t *testing.T) { checkDrivers(t, pkgs) })
	t.Run("names", func(t *testing.T) { checkNames(t, pkgs) })
	t.Run("state", func(t *testing.T) { checkState(t, pkgs) })
	t.Run("family", func(t *testing.T) { checkFamily(t, pkgs) })
	t.Run("docs", func(t *testing.T) { checkDocs(t, pkgs) })
	t.Run("plugin", func(t *testing.T) { checkPlugin(t, root) })
	t.Run("paths", func(t *testing.T) { checkPaths(t, root) })
	t.Run("budgets", func(t *testing.T) { printBudgets(t, root, pkgs) })
}

// moduleRoot is the directory of go.mod.
func moduleRoot(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(strings.TrimSpace(string(out)))
}

// load lists and parses every package of the module.
func load(t *testing.T, root string) []*pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Dir,Name,Imports,GoFiles,CgoFiles,TestGoFiles,XTestGoFiles,IgnoredGoFiles", "./...")
	cmd.Dir = root
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []*pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		p := &pkg{fset: token.NewFileSet(), files: map[string]*ast.File{}}
		if err := dec.Decode(p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		p.short = short(p.ImportPath)
		// A file for another platform obeys the same laws, so IgnoredGoFiles count.
		for _, f := range slices.Concat(p.GoFiles, p.CgoFiles, p.IgnoredGoFiles) {
			if strings.HasSuffix(f, "_test.go") {
				continue
			}
			name := filepath.Join(p.Dir, f)
			parsed, err := parser.ParseFile(p.fset, name, nil, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				t.Errorf("%v", err)
				continue
			}
			if !ast.IsGenerated(parsed) {
				p.files[name] = parsed
			}
		}
		pkgs = append(pkgs, p)
	}
}

// reporter is what a check tells its findings to.
type reporter interface {
	Errorf(format string, args ...any)
	Logf(format string, args ...any)
}

// at is a position relative to the module, "internal/x/y.go:12".
func (p *pkg) at(n token.Pos) string {
	pos := p.fset.Position(n)
	pos.Filename = path.Join(strings.TrimPrefix(p.ImportPath, "weft/"), filepath.Base(pos.Filename))
	pos.Column = 0
	return pos.String()
}

func checkLayers(t reporter, pkgs []*pkg) {
	allowed := siblings()
	for _, p := range pkgs {
		mine, ok := layerOf(p.short)
		if !ok {
			t.Errorf("%s is in no layer: give it a line in internal/laws/layers.go, in the lowest layer that can hold it", p.ImportPath)
			continue
		}
		for _, imp := range p.Imports {
			if !strings.HasPrefix(imp, "weft/") {
				continue
			}
			name := short(imp)
			theirs, ok := layerOf(name)
			if !ok || strings.HasPrefix(name, p.short+"/") || slices.Contains(allowed[p.short], name) {
				continue
			}
			if mine != tools && theirs >= mine {
				t.Errorf("%s (layer %d) imports %s (layer %d): data flows one way, a package imports lower layers only; "+
					"declare the interface that you need where you use it and let package agent wire it", p.short, mine, name, theirs)
			}
		}
	}
}

// uses reports whether an import path is the library or a package of it.
func uses(imp, library string) bool {
	return imp == library || strings.HasPrefix(imp, library+"/")
}

func checkOwners(t reporter, pkgs []*pkg) {
	for _, p := range pkgs {
		if l, _ := layerOf(p.short); l == tools {
			continue
		}
		for _, imp := range p.Imports {
			for _, o := range owners() {
				if uses(imp, o.library) && !slices.Contains(o.packages, p.short) {
					t.Errorf("%s imports %s, which only %s may: %s", p.short, imp, strings.Join(o.packages, " and "), o.why)
				}
			}
		}
	}
}

func checkPure(t reporter, pkgs []*pkg) {
	banned := []string{"time", "context", "os", "net", "os/exec", "syscall", "log", "log/slog", "math/rand", "math/rand/v2", "net/http"}
	for _, p := range pkgs {
		if !strings.HasPrefix(p.short, "compile/") && !strings.HasPrefix(p.short, "convert/") {
			continue
		}
		for _, imp := range p.Imports {
			if slices.Contains(banned, imp) {
				t.Errorf("%s imports %q: compilers and converters are arithmetic, the same input gives the same bytes, with no clock, wait or I/O", p.short, imp)
			}
		}
	}
}

func checkDrivers(t reporter, pkgs []*pkg) {
	allowed := []string{"plan", "model", "delta", "netset", "run", "datapath/linux"}
	for _, p := range pkgs {
		var named []string
		for _, imp := range p.Imports {
			name := short(imp)
			if !strings.HasPrefix(imp, "weft/") {
				continue
			}
			if strings.HasPrefix(name, "datapath/") && !strings.HasPrefix(name, p.short+"/") {
				named = append(named, name)
			}
			if strings.HasPrefix(p.short, "datapath/") && !slices.Contains(allowed, name) && !strings.HasPrefix(name, p.short+"/") {
				t.Errorf("%s imports %s: a driver gets compiled rows handed in and knows only %s", p.short, name, strings.Join(allowed, ", "))
			}
		}
		if l, _ := layerOf(p.short); len(named) > 1 && p.short != "agent" && l != tools {
			t.Errorf("%s imports %s: only agent names more than one driver, so that no code depends on which is active", p.short, strings.Join(named, " and "))
		}
	}
}

func checkNames(t reporter, pkgs []*pkg) {
	banned := []string{"util", "utils", "common", "types", "helpers", "helper", "manager", "misc", "shared"}
	for _, p := range pkgs {
		if slices.Contains(banned, p.Name) || slices.Contains(banned, path.Base(p.ImportPath)) {
			t.Errorf("%s: a package is named after what it provides; %q attracts everything", p.ImportPath, p.Name)
		}
	}
}

// checkState finds init functions and package variables that could change.
func checkState(t reporter, pkgs []*pkg) {
	for _, p := range pkgs {
		for _, f := range p.files {
			excused := lines(p.fset, f, regexp.MustCompile(`//nolint:(\S*,)?gochecknoglobals\S* // \S`))
			for _, d := range f.Decls {
				switch d := d.(type) {
				case *ast.FuncDecl:
					if d.Name.Name == "init" && d.Recv == nil {
						t.Errorf("%s: init(): what runs before main cannot be tested, ordered or given a context", p.at(d.Pos()))
					}
				case *ast.GenDecl:
					if d.Tok != token.VAR {
						continue
					}
					for _, s := range d.Specs {
						v := s.(*ast.ValueSpec)
						line := p.fset.Position(v.Pos()).Line
						if constantVar(d, v) || excused[line] || excused[p.fset.Position(v.End()).Line] || excused[p.fset.Position(d.Pos()).Line] {
							continue
						}
						t.Errorf("%s: package variable %s: several agents run in one process's tests, and state that outlives a function is a row in a table. "+
							"If it never changes, make it a function or add //nolint:gochecknoglobals // reason", p.at(v.Pos()), v.Names[0].Name)
					}
				}
			}
		}
	}
}

// constantVar reports whether a variable is a constant by custom: an error
// sentinel, an embedded file, or an assertion that a type has an interface.
func constantVar(d *ast.GenDecl, v *ast.ValueSpec) bool {
	for _, doc := range []*ast.CommentGroup{d.Doc, v.Doc} {
		if doc != nil {
			for _, c := range doc.List {
				if strings.HasPrefix(c.Text, "//go:embed ") {
					return true
				}
			}
		}
	}
	for i, n := range v.Names {
		if n.Name == "_" {
			continue
		}
		if !regexp.MustCompile(`^([eE]rr)[A-Z]?`).MatchString(n.Name) || i >= len(v.Values) {
			return false
		}
	}
	return true
}

// lines returns the lines that bear a comment matching the pattern.
func lines(fset *token.FileSet, f *ast.File, pattern *regexp.Regexp) map[int]bool {
	found := map[int]bool{}
	for _, g := range f.Comments {
		for _, c := range g.List {
			if pattern.MatchString(c.Text) {
				found[fset.Position(c.Pos()).Line] = true
			}
		}
	}
	return found
}

// checkFamily finds names that are made for one address family.
func checkFamily(t reporter, pkgs []*pkg) {
	perFamily := regexp.MustCompile(`^(.*[^0-9])?[46]$`)
	other := regexp.MustCompile(`([lL]4|ICMPv6)$`) // a layer, and a protocol whose name it is
	for _, p := range pkgs {
		if p.short == "netset" || p.short == "datapath/nft" {
			continue
		}
		for _, f := range p.files {
			excused := lines(p.fset, f, regexp.MustCompile(`//weft:family \S`))
			check := func(id *ast.Ident) {
				if id != nil && perFamily.MatchString(id.Name) && !other.MatchString(id.Name) && !excused[p.fset.Position(id.Pos()).Line] {
					t.Errorf("%s: %s is named after one address family: family is data, IPv4 and IPv6 are one code path that loops over "+
						"netset.Families(); where a kernel interface leaves no choice, add //weft:family reason", p.at(id.Pos()), id.Name)
				}
			}
			ast.Inspect(f, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.FuncDecl:
					check(n.Name)
				case *ast.TypeSpec:
					check(n.Name)
				case *ast.Field:
					each(n.Names, check)
				case *ast.ValueSpec:
					each(n.Names, check)
				case *ast.AssignStmt:
					if n.Tok == token.DEFINE {
						for _, l := range n.Lhs {
							id, _ := l.(*ast.Ident)
							check(id)
						}
					}
				case *ast.RangeStmt:
					if n.Tok == token.DEFINE {
						key, _ := n.Key.(*ast.Ident)
						value, _ := n.Value.(*ast.Ident)
						check(key)
						check(value)
					}
				}
				return true
			})
		}
	}
}

func each[T any](vs []T, f func(T)) {
	for _, v := range vs {
		f(v)
	}
}

// checkPaths finds what belongs to one developer's machine in tracked files.
func checkPaths(t *testing.T, root string) {
	if _, err := os.Stat(filepath.Join(root, ".git")); err != nil {
		t.Skip("not a git checkout: which files are tracked is not known")
	}
	cmd := exec.Command("git", "ls-files", "-z")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git ls-files: %v", err)
	}
	// Written in pieces, or this file would be found.
	private := regexp.MustCompile(`(^|[\s"'(=:])/` + `work/|\.` + `library/|/` + `root/|/` + `home/[a-z]`)
	for f := range strings.SplitSeq(strings.TrimRight(string(out), "\x00"), "\x00") {
		b, err := os.ReadFile(filepath.Join(root, f))
		if err != nil {
			continue // deleted in the work tree, or a link
		}
		if at := private.FindIndex(b); at != nil {
			t.Errorf("%s:%d: %q is a path of one machine: it means nothing on another",
				f, 1+strings.Count(string(b[:at[0]]), "\n"), b[at[0]:min(at[1]+20, len(b))])
		}
	}
}

// checkPlugin holds what kubelet executes for each pod small: it may not
// even link the libraries that the agent lives on.
func checkPlugin(t *testing.T, root string) {
	if src, _ := filepath.Glob(filepath.Join(root, "cmd/weft-cni/*.go")); len(src) == 0 {
		t.Skip("cmd/weft-cni is not there yet")
	}
	cmd := exec.Command("go", "list", "-deps", "./cmd/weft-cni")
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("go list -deps ./cmd/weft-cni: %v\n%s", err, out)
	}
	for dep := range strings.SplitSeq(string(out), "\n") {
		for _, lib := range []string{"k8s.io", "github.com/cilium", "github.com/vishvananda", "github.com/google/nftables", "github.com/spf13", "github.com/prometheus", "net/http"} {
			if uses(dep, lib) {
				t.Errorf("cmd/weft-cni depends on %s: the plugin starts once a pod and stays small and quick; the agent does the work", dep)
			}
		}
	}
}
