package file

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"weft/internal/convert/k8s"
	"weft/internal/convert/language"
	"weft/internal/convert/object"
	"weft/internal/model"
)

// document is one object of a file.
type document struct {
	name string // "Node n1", "Tier.projectcalico.org ops"; for messages, and to find its former version
	line int    // counted from 1
	objs []model.Object
	err  error
	// stand is what stands for a policy of which nothing can be used; nil for everything else.
	stand  model.Object
	policy bool // the object is of a policy API
}

// documents converts every object of a file.
func documents(raw []byte) []document {
	var out []document
	for _, d := range k8s.Documents(raw) {
		if d.Raw != nil {
			if found := policies(d); found != nil {
				out = append(out, found...)
				continue
			}
		}
		doc := document{name: d.Name(), line: d.Line, err: d.Err}
		if d.Object != nil {
			doc.objs = []model.Object{d.Object}
		}
		out = append(out, doc)
	}
	return out
}

// policies converts what convert/k8s does not know; nil if it is of no policy API either.
func policies(d k8s.Document) []document {
	group, version, _ := strings.Cut(d.Type.APIVersion, "/")
	t := object.Type{Group: group, Version: version, Kind: d.Type.Kind}
	if k, ok := language.Find(t); ok {
		return []document{policy(k, d.Raw, d.Line)}
	}
	name, list := strings.CutSuffix(t.Kind, "List")
	t.Kind = name
	k, ok := language.Find(t)
	if !list || !ok {
		return nil
	}
	var items struct {
		Items []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(d.Raw, &items); err != nil {
		return []document{{line: d.Line, err: fmt.Errorf("%s: %w", d.Type.Kind, object.Explain("", err))}}
	}
	out := []document{}
	for i, raw := range items.Items {
		doc := policy(k, raw, d.Line)
		if doc.err != nil {
			doc.err = fmt.Errorf("items[%d]: %w", i, doc.err)
		}
		out = append(out, doc)
	}
	return out
}

func policy(k language.Kind, raw []byte, line int) document {
	r := k.Convert(raw)
	doc := document{line: line, objs: r.Objects, err: r.Err, policy: true}
	if r.Ref.IsZero() {
		return doc
	}
	if doc.name = r.Ref.String(); r.Refused() {
		doc.stand = k.Stand(r.Ref)
	}
	return doc
}

// unknown reports whether nobody uses objects of the document's kind.
func (d *document) unknown() bool { return errors.Is(d.err, k8s.ErrUnsupported) }

// action is what is done about a document with an error.
func (d *document) action() string {
	switch {
	case d.unknown():
		return "ignored"
	case errors.Is(d.err, errTwice):
		return "the first one is used"
	case d.policy && len(d.objs) > 0:
		return "used without what was not understood"
	}
	return "its last version is used, if there was one"
}
