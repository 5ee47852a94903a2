package k8s

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

// Document is one object of a file.
type Document struct {
	Item
	Line int             // of the file, counted from 1, where the object's document begins
	Raw  json.RawMessage // the object or list as JSON where Err is ErrUnsupported, for who knows more kinds; else nil
}

// Object converts one JSON or YAML document with one object in it.
func Object(raw []byte) Item {
	docs := Documents(raw)
	switch {
	case len(docs) == 0:
		return Item{Err: errors.New("no object in the document")}
	case len(docs) > 1:
		return Item{Err: fmt.Errorf("%d objects in the document, want one", len(docs))}
	}
	return docs[0].Item
}

// Documents converts every object of a file: YAML documents separated by "---" or JSON; a List
// counts as its items, empty documents as nothing.
func Documents(raw []byte) []Document {
	var out []Document
	for _, part := range split(raw) {
		data, err := yaml.YAMLToJSONStrict(part.data)
		switch {
		case err != nil:
			out = append(out, Document{Item: Item{Err: tidy(err, part.line)}, Line: part.line})
		case string(data) != "null":
			out = append(out, expand(data, part.line)...)
		}
	}
	return out
}

// expand converts an object, or the items of a list.
func expand(data []byte, line int) []Document {
	var list struct {
		Type
		Items []json.RawMessage `json:"items"`
	}
	// An error here is found again, and explained, by FromJSON.
	if json.Unmarshal(data, &list) != nil || !strings.HasSuffix(list.Kind, "List") {
		return []Document{document(FromJSON(data, Type{}), data, line)}
	}
	of := Type{list.APIVersion, strings.TrimSuffix(list.Kind, "List")}
	if of.Kind != "" && of.make() == nil {
		return []Document{document(Item{Type: list.Type, Err: unsupported(list.Type)}, data, line)}
	}
	var out []Document
	for i, raw := range list.Items {
		d := document(FromJSON(raw, of), raw, line)
		if d.Err != nil && d.Object == nil {
			d.Err = fmt.Errorf("items[%d]: %w", i, d.Err)
		}
		out = append(out, d)
	}
	return out
}

// document is an item with its place.
func document(item Item, raw json.RawMessage, line int) Document {
	d := Document{Item: item, Line: line}
	if errors.Is(item.Err, ErrUnsupported) {
		d.Raw = raw
	}
	return d
}

// part is one document of a YAML stream.
type part struct {
	data []byte
	line int
}

// split cuts a YAML stream at its "---" lines. Leading blank and comment lines are not counted to a document.
func split(raw []byte) []part {
	var out []part
	start, line, begin := 0, 1, 1
	flush := func(end int) {
		data := raw[start:end]
		first := begin
		for len(data) > 0 {
			head, rest, found := bytes.Cut(data, []byte("\n"))
			if t := bytes.TrimSpace(head); found && (len(t) == 0 || t[0] == '#') {
				data, first = rest, first+1
				continue
			}
			break
		}
		if len(bytes.TrimSpace(data)) > 0 {
			out = append(out, part{data, first})
		}
	}
	for pos := 0; pos < len(raw); line++ {
		end := len(raw)
		if i := bytes.IndexByte(raw[pos:], '\n'); i >= 0 {
			end = pos + i + 1
		}
		if separator(raw[pos:end]) {
			flush(pos)
			start, begin = end, line+1
		}
		pos = end
	}
	flush(len(raw))
	return out
}

// separator reports whether a line begins a new document.
func separator(line []byte) bool {
	rest, ok := bytes.CutPrefix(line, []byte("---"))
	if !ok {
		return false
	}
	rest = bytes.TrimSpace(rest)
	return len(rest) == 0 || rest[0] == '#'
}

// tidy drops the library's prefixes and makes its line numbers, which count from the document's first line,
// those of the file.
func tidy(err error, first int) error {
	msg := strings.TrimPrefix(err.Error(), "error converting YAML to JSON: ")
	msg = strings.TrimPrefix(msg, "yaml: ")
	return fmt.Errorf("not YAML: %s", regexp.MustCompile(`\bline \d+`).ReplaceAllStringFunc(msg, func(s string) string {
		n, err := strconv.Atoi(strings.TrimPrefix(s, "line "))
		if err != nil {
			return s
		}
		return fmt.Sprintf("line %d", first+n-1)
	}))
}
