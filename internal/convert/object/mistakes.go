package object

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
)

// Mistakes are what is wrong with a part of an object, or not enforced of it.
type Mistakes struct {
	Field string // the path of the first; "" if there is none
	Errs  []error
}

// Add notes a mistake in a field.
func (m *Mistakes) Add(field, format string, a ...any) {
	m.Wrap(field, fmt.Errorf("%s: %w", field, fmt.Errorf(format, a...)))
}

// Wrap notes an error that names the field already.
func (m *Mistakes) Wrap(field string, err error) {
	var unknown *UnknownField
	if errors.As(err, &unknown) {
		field = unknown.Field + "." + unknown.Name
	}
	m.Lack(field)
	m.Errs = append(m.Errs, err)
}

// Lack notes a field that is right, but not enforced.
func (m *Mistakes) Lack(field string) {
	if m.Field == "" {
		m.Field = field
	}
}

// Decode decodes a part of an object, and notes what is wrong with it; ok is false if it was not decoded. What is absent
// leaves into as it is.
func (m *Mistakes) Decode(field string, raw json.RawMessage, into any) (ok bool) {
	if Absent(raw) {
		return true
	}
	switch kind := reflect.TypeOf(into).Elem().Kind(); {
	case kind == reflect.Struct && raw[0] != '{':
		m.Add(field, "want an object")
		return false
	case kind == reflect.Slice && raw[0] != '[':
		m.Add(field, "want a list")
		return false
	}
	err := Decode(field, raw, into)
	if err == nil {
		return true
	}
	m.Wrap(field, err)
	var unknown *UnknownField
	return errors.As(err, &unknown)
}

// Absent reports whether a field is not there or null, which Kubernetes does not tell apart.
func Absent(raw json.RawMessage) bool {
	return len(raw) == 0 || bytes.Equal(raw, []byte("null"))
}
