package main

import (
	"bytes"
	"encoding/binary"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestVerdict: a run is a success only if every package ended with status 0 and ran a test.
func TestVerdict(t *testing.T) {
	for _, c := range []struct{ name, output, want, shown string }{
		{"passes", "@weft begin p\n=== RUN   TestA\n--- PASS: TestA (0.00s)\nPASS\n@weft end p 0\n", "", "1 passed, 0 skipped"},
		{"carriage returns", "@weft begin p\r\n--- PASS: TestA (0.00s)\r\n@weft end p 0\r\n", "", "1 passed"},
		{"fails", "@weft begin p\n--- FAIL: TestA (0.00s)\n@weft end p 1\n", "exit status 1", "FAIL p"},
		{"nothing ran", "@weft begin p\ntesting: warning: no tests to run\nPASS\n@weft end p 0\n", "no test ran", "FAIL p"},
		{"panics half-way", "@weft begin p\n--- PASS: TestA (0.00s)\nfatal error\n", "did not end", ""},
		{"kernel died early", "", "p was not run", ""},
		{"skips", "@weft begin p\n--- PASS: TestA (0.00s)\n=== RUN   TestB\n    a_test.go:3: no netkit\n--- SKIP: TestB (0.00s)\n@weft end p 0\n", "", "TestB: a_test.go:3: no netkit"},
		{
			"skips within", "@weft begin p\n=== RUN   TestA\n=== RUN   TestA/x\n    a_test.go:3: no netkit\n=== RUN   TestA/y\n    a_test.go:5: done\n" +
				"--- PASS: TestA (0.00s)\n    --- SKIP: TestA/x (0.00s)\n    --- PASS: TestA/y (0.00s)\n@weft end p 0\n", "", "TestA/x: a_test.go:3: no netkit",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			var shown strings.Builder
			v := verdict{out: &shown, want: []testBinary{{Package: "p"}}}
			v.read("6.1", strings.NewReader(c.output))
			err := v.err()
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("verdict %v, want %q", err, c.want)
			}
			if !strings.Contains(shown.String(), c.shown) {
				t.Errorf("printed %q, want %q in it", shown.String(), c.shown)
			}
		})
	}
}

// TestVersions picks the newest package by its numbers, not its letters.
func TestVersions(t *testing.T) {
	for _, c := range [][2]string{
		{"linux-image-6.12.9+deb12-cloud-amd64", "linux-image-6.12.43+deb12-cloud-amd64"},
		{"linux-image-6.1.0-47-cloud-amd64", "linux-image-6.1.0-150-cloud-amd64"},
		{"linux-image-6.12.90+deb12-cloud-amd64", "linux-image-6.12.90+deb12.1-cloud-amd64"},
	} {
		if versions(c[0], c[1]) >= 0 || versions(c[1], c[0]) <= 0 {
			t.Errorf("%s is not older than %s", c[0], c[1])
		}
	}
}

// TestUnsigned cuts a signature off, and nothing else.
func TestUnsigned(t *testing.T) {
	module, signature := []byte("\x7fELF a module"), []byte("a signature")
	info := make([]byte, 12)
	binary.BigEndian.PutUint32(info[8:], uint32(len(signature)))
	signed := bytes.Join([][]byte{module, signature, info, []byte("~Module signature appended~\n")}, nil)
	binary.BigEndian.PutUint32(info[8:], 1<<30)
	wrong := bytes.Join([][]byte{module, info, []byte("~Module signature appended~\n")}, nil)
	for _, c := range []struct{ in, want []byte }{{signed, module}, {module, module}, {wrong, wrong}, {nil, nil}} {
		if got := unsigned(c.in); !bytes.Equal(got, c.want) {
			t.Errorf("%q became %q, want %q", c.in, got, c.want)
		}
	}
}

// TestArchive lets cpio read what the kernel would.
func TestArchive(t *testing.T) {
	if _, err := exec.LookPath("cpio"); err != nil {
		t.Skip("needs cpio")
	}
	file := filepath.Join(t.TempDir(), "x.cpio")
	a, err := newArchive(file)
	if err != nil {
		t.Fatal(err)
	}
	a.add("/a/b/odd", 0o755, []byte("x"))
	a.add("/a/b/odd", 0o755, []byte("a second time"))
	a.link("bin", "/usr/bin")
	a.add("/z", 0o644, bytes.Repeat([]byte("y"), 4097))
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "cpio", "-itv", "-F", file).CombinedOutput()
	if err != nil {
		t.Fatalf("cpio: %v\n%s", err, out)
	}
	var got []string
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) > 8 {
			got = append(got, f[0]+" "+f[4]+" "+strings.Join(f[8:], " "))
		}
	}
	want := "drwxr-xr-x 0 a\ndrwxr-xr-x 0 a/b\n-rwxr-xr-x 1 a/b/odd\nlrwxrwxrwx 8 bin -> /usr/bin\n-rw-r--r-- 4097 z"
	if strings.Join(got, "\n") != want {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
}
