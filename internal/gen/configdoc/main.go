// Command configdoc writes docs/reference/configuration.md from the comments of model.Config and its
// parts, with the defaults that SetDefaults fills in.
//
// It is run by `go generate ./internal/gen/...`; a test fails where the page is not what it
// would write. It documents no other type.
package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"slices"
	"strings"
	"unicode"

	"weft/internal/model"
)

//go:generate go run . -source ../../model/config.go -out ../../../docs/reference/configuration.md

func main() {
	source := flag.String("source", "", "file that declares model.Config")
	out := flag.String("out", "", "page to write")
	flag.Parse()
	if err := write(*source, *out); err != nil {
		fmt.Fprintln(os.Stderr, "configdoc: "+err.Error())
		os.Exit(1)
	}
}

func write(source, out string) error {
	page, err := render(source)
	if err != nil {
		return err
	}
	return os.WriteFile(out, page, 0o644) //nolint:gosec // a page of the documentation
}

const intro = `# Configuration

<!-- Generated from internal/model/config.go by internal/gen/configdoc. Do not edit; run go generate ./internal/gen/... -->

The agent reads one YAML document (` + "`weft agent --config FILE`" + `); in the cluster it is the key ` + "`config.yaml`" + ` of the
ConfigMap that the chart writes. A file that does not exist stands for all defaults. An unknown field, and a value that is not
allowed, is an error that names the field, and the agent does not start. Every field has a default or may be left
out. ` + "`weft show config`" + ` prints what an agent runs with.

A configuration that is often all there is:

` + "```yaml" + `
clusterCIDRs: [10.244.0.0/16]
backend:
  type: vxlan        # or direct, where the underlay delivers pod addresses
  crossSubnet: true  # tunnel only to nodes of other subnets
` + "```" + `
`

// section is one struct with its fields.
type section struct {
	path, doc string
	fields    []field
}

// field is one line of a table.
type field struct{ name, typ, def, doc string }

// render returns the page.
func render(source string) ([]byte, error) {
	docs, err := comments(source)
	if err != nil {
		return nil, err
	}
	var cfg model.Config
	cfg.SetDefaults()
	var sections []section
	if err := walk(reflect.ValueOf(cfg), "", docs, &sections); err != nil {
		return nil, err
	}
	var b strings.Builder
	b.WriteString(intro)
	for _, s := range sections {
		title := "Top level"
		if s.path != "" {
			title = "`" + s.path + "`"
		}
		fmt.Fprintf(&b, "\n## %s\n\n", title)
		if s.doc != "" && s.path != "" {
			fmt.Fprintf(&b, "%s\n\n", s.doc)
		}
		b.WriteString("| field | type | default | meaning |\n|---|---|---|---|\n")
		for _, f := range s.fields {
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.name, f.typ, f.def, f.doc)
		}
	}
	return []byte(b.String()), nil
}

// comments returns the comment of every struct ("Config") and field ("Config.MTU") of the file.
func comments(source string) (map[string]string, error) {
	f, err := parser.ParseFile(token.NewFileSet(), source, nil, parser.ParseComments)
	if err != nil {
		return nil, fmt.Errorf("read the declaration: %w", err)
	}
	out, names := map[string]string{}, map[string]string{}
	for _, d := range f.Decls {
		decl, ok := d.(*ast.GenDecl)
		if !ok || decl.Tok != token.TYPE {
			continue
		}
		for _, spec := range decl.Specs {
			t := spec.(*ast.TypeSpec) //nolint:forcetypeassert // of a type declaration
			s, ok := t.Type.(*ast.StructType)
			if !ok {
				continue
			}
			out[t.Name.Name] = oneLine(decl.Doc)
			for _, f := range s.Fields.List {
				for _, n := range f.Names {
					out[t.Name.Name+"."+n.Name] = oneLine(f.Doc)
					names[n.Name] = jsonName(f.Tag)
				}
			}
		}
	}
	spell(out, names)
	return out, nil
}

// jsonName is the name in a field's tag, "" if it has none.
func jsonName(tag *ast.BasicLit) string {
	if tag == nil {
		return ""
	}
	name, _, _ := strings.Cut(reflect.StructTag(strings.Trim(tag.Value, "`")).Get("json"), ",")
	return name
}

func oneLine(c *ast.CommentGroup) string {
	text := strings.Join(strings.Fields(c.Text()), " ")
	return strings.ReplaceAll(text, "|", `\|`)
}

// walk adds the struct v, and after it the structs in it, to the sections.
func walk(v reflect.Value, path string, docs map[string]string, out *[]section) error {
	t := v.Type()
	s := section{path: path, doc: about(docs[t.Name()], t.Name())}
	at := len(*out)
	*out = append(*out, s)
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" {
			return fmt.Errorf("%s.%s has no JSON name", t.Name(), f.Name)
		}
		text, full := docs[t.Name()+"."+f.Name], name
		if path != "" {
			full = path + "." + name
		}
		element, inner := v.Field(i), f.Type
		if inner.Kind() == reflect.Slice && inner.Elem().Kind() == reflect.Struct && inner.Elem().PkgPath() == t.PkgPath() {
			full, inner = full+"[]", inner.Elem()
			element = reflect.New(inner).Elem()
		}
		if inner.Kind() == reflect.Struct && inner.PkgPath() == t.PkgPath() {
			s.fields = append(s.fields, field{name, "[" + full + "](#" + anchor(full) + ")", "", cmp.Or(about(text, f.Name), about(docs[inner.Name()], inner.Name()))})
			if err := walk(element, full, docs, out); err != nil {
				return err
			}
			continue
		}
		s.fields = append(s.fields, field{name, typeName(f.Type), value(v.Field(i)), about(text, f.Name)})
	}
	(*out)[at] = s
	for _, f := range s.fields {
		if f.doc == "" {
			return errors.New(t.Name() + ": the field " + f.name + " has no comment")
		}
	}
	return nil
}

// about turns a type's comment, "IPAM says which…", into a sentence without the identifier.
func about(comment, name string) string {
	text, ok := strings.CutPrefix(comment, name+" ")
	if !ok {
		return comment
	}
	for _, verb := range []string{"is ", "are "} {
		text = strings.TrimPrefix(text, verb)
	}
	return strings.ToUpper(text[:1]) + text[1:]
}

// spell replaces the Go names of fields by their YAML names where they cannot be taken for words ("CrossSubnet").
func spell(docs, names map[string]string) {
	for of, text := range docs {
		words := strings.FieldsFunc(text, func(r rune) bool { return !unicode.IsLetter(r) })
		slices.Sort(words)
		for _, w := range slices.Compact(words) {
			_, own, _ := strings.Cut(of, ".")
			if name, ok := names[w]; ok && name != strings.ToLower(name) && w != own {
				text = strings.ReplaceAll(text, w, "`"+name+"`")
			}
		}
		docs[of] = text
	}
}

// anchor is the page's link to a section, as GitHub makes it.
func anchor(path string) string {
	return strings.ToLower(strings.NewReplacer(".", "", "[", "", "]", "", " ", "-").Replace(path))
}

// typeName is the type as YAML has it.
func typeName(t reflect.Type) string {
	switch {
	case t.Kind() == reflect.Slice:
		return "list of " + typeName(t.Elem())
	case t.PkgPath() == "net/netip" && t.Name() == "Prefix":
		return "CIDR"
	case t.PkgPath() == "net/netip":
		return "address"
	case t.Kind() == reflect.Bool:
		return "boolean"
	case t.Kind() == reflect.String:
		return "string"
	case t.Kind() >= reflect.Int && t.Kind() <= reflect.Uint64:
		return "integer"
	}
	return t.String()
}

// value is the default.
func value(v reflect.Value) string {
	if v.IsZero() && v.Kind() != reflect.Bool {
		return ""
	}
	return fmt.Sprintf("`%v`", v.Interface())
}
