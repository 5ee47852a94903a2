package gke

import (
	"flag"
	"os"
	"testing"

	"weft/internal/convert/golden"
)

var update = flag.Bool("update", false, "write the goldens")

func TestConvert(t *testing.T) {
	const file = "testdata/policies.txt"
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	now := golden.Test(t, string(raw), Convert)
	if *update {
		if err := os.WriteFile(file, []byte(now), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzConvert(f *testing.F) {
	raw, err := os.ReadFile("testdata/policies.txt")
	if err != nil {
		f.Fatal(err)
	}
	golden.Fuzz(f, string(raw), Convert)
}
