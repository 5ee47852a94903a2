package laws

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"
)

// findings records what a check reports.
type findings []string

func (f *findings) Errorf(format string, args ...any) { *f = append(*f, fmt.Sprintf(format, args...)) }
func (f *findings) Logf(string, ...any)               {}

// fixture makes a package out of one file's source.
func fixture(t *testing.T, importPath, src string) *pkg {
	t.Helper()
	p := &pkg{ImportPath: importPath, short: short(importPath), fset: token.NewFileSet(), files: map[string]*ast.File{}}
	f, err := parser.ParseFile(p.fset, "x.go", src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	p.Name = f.Name.Name
	for _, i := range f.Imports {
		path, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		p.Imports = append(p.Imports, path)
	}
	p.files["x.go"] = f
	return p
}

// TestLawsCatch breaks each law once and obeys it once.
func TestLawsCatch(t *testing.T) {
	const doc = "// Package p is a fixture and not more.\npackage p\n"
	checks := []func(reporter, []*pkg){checkLayers, checkOwners, checkPure, checkDrivers, checkNames, checkState, checkFamily, checkDocs}
	for _, c := range []struct{ name, path, src, want string }{
		{"unknown package", "weft/internal/nosuch", doc, "is in no layer"},
		{"upward import", "weft/internal/model", doc + `import _ "weft/internal/store"`, "imports lower layers only"},
		{"sideways import", "weft/internal/mesh", doc + `import _ "weft/internal/flow"`, "imports lower layers only"},
		{"wanted sibling", "weft/internal/plan", doc + `import _ "weft/internal/model"`, ""},
		{"netlink elsewhere", "weft/internal/mesh", doc + `import _ "github.com/vishvananda/netlink/nl"`, "only datapath/linux and host may"},
		{"client-go elsewhere", "weft/internal/agent", doc + `import _ "k8s.io/client-go/rest"`, "only source/kube may"},
		{"clock in a compiler", "weft/internal/compile/route", doc + `import _ "time"`, "arithmetic"},
		{"netip in a compiler", "weft/internal/compile/route", doc + `import _ "net/netip"`, ""},
		{"driver with a store", "weft/internal/datapath/nft", doc + `import _ "weft/internal/api"`, "compiled rows"},
		{"two drivers", "weft/internal/lab", doc + `import (_ "weft/internal/datapath/nft"; _ "weft/internal/datapath/ebpf")`, "only agent names"},
		{"name", "weft/internal/test/util", strings.ReplaceAll(doc, "package p", "package util"), "attracts everything"},
		{"init", "weft/internal/model", doc + "func init() {}", "init()"},
		{"init method", "weft/internal/model", doc + "type t int\nfunc (t) init() {}", ""},
		{"variable", "weft/internal/model", doc + "var cache = map[string]int{}", "package variable cache"},
		{"excused variable", "weft/internal/model", doc + "var mac = [2]int{1} //nolint:gochecknoglobals // a constant", ""},
		{"excuse without a reason", "weft/internal/model", doc + "var mac = [2]int{1} //nolint:gochecknoglobals", "package variable mac"},
		{"sentinel", "weft/internal/model", doc + "import \"errors\"\n// ErrX is.\nvar ErrX = errors.New(\"x\")", ""},
		{"sentinel that is set later", "weft/internal/model", doc + "// ErrX is.\nvar ErrX error", "package variable ErrX"},
		{"assertion", "weft/internal/model", doc + "var _ error = nil", ""},
		{"embedded", "weft/internal/model", doc + "import _ \"embed\"\n//go:embed x.o\nvar object []byte", ""},
		{"family in a function", "weft/internal/model", doc + "func route4() {}", "one address family"},
		{"family in a field", "weft/internal/model", doc + "type t struct{ addrV6 int }", "one address family"},
		{"family in a local", "weft/internal/model", doc + "func f() { ip6 := 1; _ = ip6 }", "one address family"},
		{"family in a range", "weft/internal/model", doc + "func f() { for _, p4 := range []int{} { _ = p4 } }", "one address family"},
		{"a number is no family", "weft/internal/model", doc + "func f() { u64, x16, sha256 := 1, 2, 3; _, _, _ = u64, x16, sha256 }", ""},
		{"excused family", "weft/internal/model", doc + "type t struct{ mreq6 int } //weft:family the kernel's struct", ""},
		{"netset knows families", "weft/internal/netset", doc + "func fold4() {}", ""},
		{"no package comment", "weft/internal/model", "package p", "no package comment"},
		{"no comment", "weft/internal/model", doc + "type X int", "have a comment"},
		{"no comment on a method", "weft/internal/model", doc + "// X is.\ntype X int\nfunc (X) Do() {}", "have a comment"},
		{"known method", "weft/internal/model", doc + "// X is.\ntype X int\nfunc (X) String() string { return \"\" }", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got findings
			for _, check := range checks {
				check(&got, []*pkg{fixture(t, c.path, c.src)})
			}
			if all := strings.Join(got, "\n"); c.want == "" && all != "" || !strings.Contains(all, c.want) {
				t.Errorf("found %q, want %q", all, c.want)
			}
		})
	}
}
