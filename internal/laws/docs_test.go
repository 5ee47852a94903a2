package laws

import (
	"bytes"
	"go/ast"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// exportedShare is the share of exported names that must have a comment.
const exportedShare = 0.95

func checkDocs(t reporter, pkgs []*pkg) {
	var total int
	var bare []string
	for _, p := range pkgs {
		if len(p.files) == 0 {
			continue
		}
		doc := ""
		for _, f := range p.files {
			doc += f.Doc.Text()
		}
		switch {
		case doc == "":
			t.Errorf("%s has no package comment: it says what the package is and what it is not", p.ImportPath)
		case p.Name != "main" && !strings.HasPrefix(doc, "Package "+p.Name+" "):
			t.Errorf("%s: the package comment begins %q, want \"Package %s …\" and in one file only", p.ImportPath, first(doc), p.Name)
		case p.Name != "main" && !regexp.MustCompile(`(?i)\b(not|no|nothing|never|neither|nor|without)\b`).MatchString(doc):
			t.Logf("%s: the package comment does not say what the package is not", p.ImportPath)
		}
		if p.Name == "main" {
			continue
		}
		n, names := exported(p)
		total += n
		bare = append(bare, names...)
	}
	if share := 1 - float64(len(bare))/float64(max(total, 1)); share < exportedShare {
		t.Errorf("%.1f %% of %d exported names have a comment, want %.0f %%; these have none:\n%s",
			100*share, total, 100*exportedShare, strings.Join(bare, "\n"))
	} else if len(bare) > 0 {
		t.Logf("%.1f %% of %d exported names have a comment; these have none: %s", 100*share, total, strings.Join(bare, ", "))
	}
}

func first(doc string) string {
	line, _, _ := strings.Cut(doc, "\n")
	return line
}

// exported counts a package's exported names and lists those without a comment.
// Methods that every Go reader knows (String, Error …) need none.
func exported(p *pkg) (n int, bare []string) {
	known := []string{"String", "Error", "Unwrap", "Len", "Less", "Swap", "MarshalText", "UnmarshalText", "MarshalJSON", "UnmarshalJSON", "Close", "Write", "Read"}
	count := func(id *ast.Ident, docs ...*ast.CommentGroup) {
		if !id.IsExported() {
			return
		}
		n++
		if !slices.ContainsFunc(docs, func(d *ast.CommentGroup) bool { return d != nil }) {
			bare = append(bare, p.at(id.Pos())+" "+id.Name)
		}
	}
	for _, f := range p.files {
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Recv != nil && (!exportedReceiver(d.Recv) || slices.Contains(known, d.Name.Name)) {
					continue
				}
				count(d.Name, d.Doc)
			case *ast.GenDecl:
				for _, s := range d.Specs {
					switch s := s.(type) {
					case *ast.TypeSpec:
						count(s.Name, d.Doc, s.Doc, s.Comment)
					case *ast.ValueSpec:
						for _, id := range s.Names {
							count(id, d.Doc, s.Doc, s.Comment)
						}
					}
				}
			}
		}
	}
	return n, bare
}

func exportedReceiver(recv *ast.FieldList) bool {
	found := false
	ast.Inspect(recv.List[0].Type, func(n ast.Node) bool {
		if id, ok := n.(*ast.Ident); ok && !found {
			found = id.IsExported()
			return false
		}
		return true
	})
	return found
}

// Budgets: beyond them a thing is hard to hold in one's head.
const (
	budgetFile      = 500
	budgetTestFile  = 1200
	budgetFunc      = 80
	budgetPackage   = 2500
	budgetImports   = 8
	budgetC         = 600
	budgetDeps      = 30
	budgetTargets   = 14
	budgetInterface = 3
)

// printBudgets prints what exceeds its budget; it is a question to the author, not a failure.
func printBudgets(t *testing.T, root string, pkgs []*pkg) {
	over := func(what string, have, budget int, unit string) {
		if have > budget {
			t.Logf("over budget: %s: %d %s, budget %d", what, have, unit, budget)
		}
	}
	libraries := map[string]bool{}
	modules := required(t, root)
	for _, p := range pkgs {
		var sum, internal int
		for _, f := range p.files {
			lines := p.fset.File(f.Pos()).LineCount()
			sum += lines
			over(p.at(f.Package), lines, budgetFile, "lines")
			printShapes(over, p, f)
		}
		over(p.ImportPath, sum, budgetPackage, "lines")
		for _, imp := range p.Imports {
			if strings.HasPrefix(imp, "weft/") {
				internal++
				continue
			}
			for _, m := range modules {
				if uses(imp, m) {
					libraries[m] = true
					break
				}
			}
		}
		if l, _ := layerOf(p.short); l < 5 {
			over(p.ImportPath, internal, budgetImports, "internal imports")
		}
		for _, f := range slices.Concat(p.TestGoFiles, p.XTestGoFiles) {
			over(filepath.Join(p.short, f), countLines(t, filepath.Join(p.Dir, f)), budgetTestFile, "lines")
		}
	}
	for _, pattern := range []string{"bpf/*.[ch]", "bpf/*/*.[ch]", "bpf/*/*/*.[ch]"} {
		found, _ := filepath.Glob(filepath.Join(root, pattern))
		for _, f := range found {
			over(strings.TrimPrefix(f, root+"/"), countLines(t, f), budgetC, "lines")
		}
	}
	over("go.mod", len(libraries), budgetDeps, "modules imported directly")
	over("Makefile", makeTargets(t, root), budgetTargets, "targets")
}

// printShapes looks at each function and interface of a file.
func printShapes(over func(string, int, int, string), p *pkg, f *ast.File) {
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			lines := p.fset.Position(n.End()).Line - p.fset.Position(n.Pos()).Line + 1
			over(p.at(n.Pos())+" "+n.Name.Name, lines, budgetFunc, "lines")
		case *ast.TypeSpec:
			if i, ok := n.Type.(*ast.InterfaceType); ok {
				over(p.at(n.Pos())+" "+n.Name.Name, i.Methods.NumFields(), budgetInterface, "methods")
			}
		}
		return true
	})
}

func countLines(t *testing.T, file string) int {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if generated := regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`); generated.Match(b) {
		return 0
	}
	return bytes.Count(b, []byte("\n"))
}

// required lists the modules of go.mod, longest path first.
func required(t *testing.T, root string) []string {
	t.Helper()
	cmd := exec.Command("go", "list", "-m", "-f", "{{if not .Main}}{{.Path}}{{end}}", "all")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list -m all: %v", err)
	}
	mods := strings.Fields(string(out))
	slices.SortFunc(mods, func(a, b string) int { return len(b) - len(a) })
	return mods
}

func makeTargets(t *testing.T, root string) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	return len(regexp.MustCompile(`(?m)^[a-z][a-z-]*:([^=]|$)`).FindAll(b, -1))
}

// TestLayerTable checks the table itself: names are looked up as documented.
func TestLayerTable(t *testing.T) {
	for name, want := range map[string]layer{
		"netset": 0, "datapath/ebpf": 2, "source/kube": 4, "cmd/weft": mains, "test/vm": tools, "test/vm/init": tools,
	} {
		if got, ok := layerOf(name); !ok || got != want {
			t.Errorf("layerOf(%s) = %d, %t, want %d", name, got, ok, want)
		}
	}
	for _, name := range []string{"", "nosuch", "convert", "datapath/ebpf/x", "a/b/c/d"} {
		if got, ok := layerOf(name); ok {
			t.Errorf("layerOf(%q) = %d, want it unknown", name, got)
		}
	}
}
