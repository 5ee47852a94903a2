package wire

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"unsafe"
)

func TestWalk(t *testing.T) {
	for name, tc := range map[string]struct{ in, want string }{
		"empty":             {"", ""},
		"varint":            {"\x08\x96\x01", "1=150 "},
		"string":            {"\x12\x07testing", `2="testing" `},
		"fixed are skipped": {"\x0d1234\x11\x31\x32\x33\x34\x35\x36\x37\x38\x08\x01", "1=0 2=0 1=1 "},
		"truncated varint":  {"\x08\x96", "bad varint"},
		"truncated string":  {"\x12\x07test", "length exceeds"},
		"huge length":       {"\x12\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "length exceeds"},
		"truncated fixed":   {"\x0d12", "truncated"},
		"group":             {"\x0b\x0c", "wire type 3"},
		"field zero":        {"\x00\x01", "bad tag"},
		"no tag":            {"\x80", "bad tag"},
	} {
		t.Run(name, func(t *testing.T) {
			var got strings.Builder
			err := Walk([]byte(tc.in), nil, func(f Field) error {
				if f.Bytes() != nil {
					fmt.Fprintf(&got, "%d=%q ", f.Num, f.Text())
				} else {
					fmt.Fprintf(&got, "%d=%d ", f.Num, f.Int())
				}
				return nil
			})
			switch {
			case err != nil && (!errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("error %v, want %q", err, tc.want)
			case err == nil && got.String() != tc.want:
				t.Errorf("got %q, want %q", &got, tc.want)
			}
		})
	}
}

func TestStringsShareOneCopy(t *testing.T) {
	var s Strings
	a, b := s.Get([]byte("kubernetes.io/os")), s.Get([]byte("kubernetes.io/os"))
	if a != "kubernetes.io/os" || unsafe.StringData(a) != unsafe.StringData(b) {
		t.Error("two copies of one string")
	}
	for i := range 3 * maxStrings {
		s.Get(fmt.Append(nil, i))
		if len(s.known) > maxStrings {
			t.Fatalf("%d strings kept", len(s.known))
		}
	}
}

func FuzzWalk(f *testing.F) {
	f.Add([]byte("\x08\x96\x01\x12\x07testing"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		n := 0
		_ = Walk(raw, nil, func(f Field) error {
			n += 1 + len(f.Bytes())
			return nil
		})
		if n > len(raw) {
			t.Fatalf("%d bytes of fields in a message of %d", n, len(raw))
		}
	})
}
