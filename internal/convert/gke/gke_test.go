package gke

import (
	"flag"
	"os"
	"testing"

	"weft/internal/convert/golden"
	"weft/internal/convert/object"
)

var update = flag.Bool("update", false, "write the goldens")

func TestConvert(t *testing.T) {
	const file = "testdata/policies.txt"
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	cases := golden.Run(string(raw), func(data []byte) object.Result {
		r := Convert(data)
		if err := golden.Check(r); err != nil {
			t.Errorf("%s\n%v", data, err)
		}
		return r
	})
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			if c.Got != c.Want {
				t.Errorf("got\n%s\nwant\n%s", c.Got, c.Want)
			}
		})
	}
	if *update {
		if err := os.WriteFile(file, []byte(golden.File(cases)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzConvert(f *testing.F) {
	raw, err := os.ReadFile("testdata/policies.txt")
	if err != nil {
		f.Fatal(err)
	}
	golden.Run(string(raw), func(data []byte) object.Result {
		f.Add(data)
		return Convert(data)
	})
	f.Fuzz(func(t *testing.T, raw []byte) {
		if err := golden.Check(Convert(raw)); err != nil {
			t.Fatal(err)
		}
	})
}
