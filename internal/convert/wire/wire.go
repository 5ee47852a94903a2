// Package wire walks protobuf messages field by field (encoding: protobuf.dev/programming-guides/encoding).
//
// It exists so that objects can be read from the API server without decoding what is
// not wanted: a field that no one asks for is skipped and never allocated. It is not a
// protobuf library: it knows no schema, writes nothing, and reads no groups.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrMalformed is returned for bytes that are not a protobuf message.
var ErrMalformed = errors.New("malformed protobuf message")

// The wire types that a field may have.
const (
	varint  = 0
	fixed8  = 1
	counted = 2
	fixed4B = 5
)

// Field is one field of a message. It refers to the message's bytes.
type Field struct {
	Num     int // the field's number
	typ     int
	num     uint64
	data    []byte
	strings *Strings
}

// Walk calls each for every field of the message in order. A field that each ignores costs nothing.
// Strings, when not nil, keeps one copy of each text that is read through Field.Shared.
func Walk(msg []byte, strings *Strings, each func(Field) error) error {
	for len(msg) > 0 {
		tag, n := binary.Uvarint(msg)
		if n <= 0 || tag>>3 == 0 || tag>>3 > 1<<29-1 {
			return fmt.Errorf("%w: bad tag", ErrMalformed)
		}
		msg = msg[n:]
		f := Field{Num: int(tag >> 3), typ: int(tag & 7), strings: strings}
		used, err := f.read(msg)
		if err != nil {
			return err
		}
		msg = msg[used:]
		if err := each(f); err != nil {
			return err
		}
	}
	return nil
}

// read takes the field's value from the start of b and returns its length.
func (f *Field) read(b []byte) (int, error) {
	switch f.typ {
	case varint:
		v, n := binary.Uvarint(b)
		if n <= 0 {
			return 0, fmt.Errorf("%w: field %d: bad varint", ErrMalformed, f.Num)
		}
		f.num = v
		return n, nil
	case counted:
		v, n := binary.Uvarint(b)
		if n <= 0 || v > uint64(len(b)-n) {
			return 0, fmt.Errorf("%w: field %d: length exceeds the message", ErrMalformed, f.Num)
		}
		f.data = b[n : n+int(v)]
		return n + int(v), nil
	case fixed8, fixed4B:
		n := 8
		if f.typ == fixed4B {
			n = 4
		}
		if len(b) < n {
			return 0, fmt.Errorf("%w: field %d: truncated", ErrMalformed, f.Num)
		}
		return n, nil
	}
	return 0, fmt.Errorf("%w: field %d: wire type %d", ErrMalformed, f.Num, f.typ)
}

// Int returns the value of an integer field.
func (f Field) Int() int64 { return int64(f.num) }

// Bool returns the value of a boolean field.
func (f Field) Bool() bool { return f.num != 0 }

// Bytes returns the value of a counted field; it is valid as long as the message is.
func (f Field) Bytes() []byte { return f.data }

// Text returns a copy of a string field.
func (f Field) Text() string { return string(f.data) }

// Shared returns a string field of which many messages have the same value, as one copy.
func (f Field) Shared() string { return f.strings.Get(f.data) }

// Message walks the field as an embedded message.
func (f Field) Message(each func(Field) error) error { return Walk(f.data, f.strings, each) }

// Entry reads the field as an entry of a map<string, string> and stores it in m, which is made if nil.
func (f Field) Entry(m *map[string]string) error {
	var k, v string
	err := f.Message(func(f Field) error {
		switch f.Num {
		case 1:
			k = f.Shared()
		case 2:
			v = f.Shared()
		}
		return nil
	})
	if *m == nil {
		*m = make(map[string]string)
	}
	(*m)[k] = v
	return err
}

// maxStrings bounds what a Strings remembers; then it starts anew.
const maxStrings = 1024

// Strings keeps one copy of equal strings. Nil is valid and keeps none. Not for concurrent use.
type Strings struct{ known map[string]string }

// Get returns b as a string, the same one for the same bytes.
func (s *Strings) Get(b []byte) string {
	if s == nil || len(b) == 0 {
		return string(b)
	}
	if v, ok := s.known[string(b)]; ok {
		return v
	}
	if s.known == nil || len(s.known) >= maxStrings {
		s.known = make(map[string]string)
	}
	v := string(b)
	s.known[v] = v
	return v
}
