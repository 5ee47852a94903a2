package cilium

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"weft/internal/convert/object"
	"weft/internal/model"
)

// converter collects what one object becomes.
type converter struct {
	ref         model.Ref
	policies    []*model.Policy
	unsupported []string // of the policy that is being read
	errs        []error
}

// faults are the parts of a rule or selector that were not understood: of each the path of the first field, "" if there is none.
type faults struct {
	peers string // who is meant is not known
	ports string // which protocols and ports are meant is not known
	rest  string // something narrows what is known
}

// first returns one of the fields, "" if everything was understood.
func (f *faults) first() string {
	for _, s := range []string{f.peers, f.ports, f.rest} {
		if s != "" {
			return s
		}
	}
	return ""
}

// mistake notes what is wrong with a field, for the user, and in the part that is not understood because of it.
func (c *converter) mistake(part *string, field, format string, a ...any) {
	c.wrap(part, field, fmt.Errorf("%s: %w", field, fmt.Errorf(format, a...)))
}

// wrap is mistake with an error that names the field already.
func (c *converter) wrap(part *string, field string, err error) {
	c.errs = append(c.errs, err)
	note(part, field)
}

func note(part *string, field string) {
	if *part == "" {
		*part = field
	}
}

// missing notes a field that weft does not enforce yet.
func (c *converter) missing(field string) {
	if !slices.Contains(c.unsupported, field) {
		c.unsupported = append(c.unsupported, field)
	}
}

// decode decodes what is there, and reports whether it could: of a mistake it says so in part, and into is not to be used. Of
// a field that nobody knows it says so in rest.
func (c *converter) decode(field string, raw json.RawMessage, into any, part, rest *string) bool {
	if absent(raw) {
		return true
	}
	want, begins := "", byte(0)
	switch reflect.TypeOf(into).Elem().Kind() {
	case reflect.Struct, reflect.Map:
		want, begins = "an object", '{'
	case reflect.Slice:
		want, begins = "a list", '['
	default: // decoding says it well enough
	}
	if want != "" && raw[0] != begins {
		c.mistake(part, field, "is not %s", want)
		return false
	}
	err := object.Decode(field, raw, into)
	var unknown *object.UnknownField
	switch {
	case err == nil:
		return true
	case errors.As(err, &unknown):
		c.wrap(rest, unknown.Field+"."+unknown.Name, err)
		return true
	}
	c.wrap(part, field, err)
	return false
}

// absent reports whether a field is not there or null, which Kubernetes does not tell apart.
func absent(raw json.RawMessage) bool {
	return len(raw) == 0 || bytes.Equal(raw, []byte("null"))
}

// fields are the fields of one JSON object that nobody has taken yet. Taking them one by one names all that nobody
// knows, each with the path of where it is.
type fields struct {
	c    *converter
	at   string
	left map[string]json.RawMessage
}

// fields reads an object; what is none is a mistake in part.
func (c *converter) fields(at string, raw json.RawMessage, part *string) *fields {
	f := &fields{c: c, at: at}
	if absent(raw) {
		c.mistake(part, at, "is null")
		return f
	}
	c.decode(at, raw, &f.left, part, part)
	return f
}

// path of a field.
func (f *fields) path(name string) string { return f.at + "." + name }

// raw takes a field; nil if it is absent or null.
func (f *fields) raw(name string) json.RawMessage {
	raw := f.left[name]
	delete(f.left, name)
	if absent(raw) {
		return nil
	}
	return raw
}

// take takes a field and decodes it, as decode does.
func (f *fields) take(name string, into any, part, rest *string) bool {
	return f.c.decode(f.path(name), f.raw(name), into, part, rest)
}

// list takes a list. There is false if it is absent, which is not the same as empty.
func (f *fields) list(name string, part *string) (items []json.RawMessage, there bool) {
	raw := f.raw(name)
	if raw == nil {
		return nil, false
	}
	f.c.decode(f.path(name), raw, &items, part, part)
	return items, true
}

// rest says of what nobody took that nobody knows it.
func (f *fields) rest(part *string) (unknown bool) {
	for _, name := range slices.Sorted(maps.Keys(f.left)) {
		f.c.wrap(part, f.path(name), &object.UnknownField{Field: f.at, Name: name})
	}
	return len(f.left) > 0
}
