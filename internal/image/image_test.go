package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func build(t *testing.T, when string) []byte {
	t.Helper()
	src := filepath.Join(t.TempDir(), when)
	if err := os.WriteFile(src, bytes.Repeat([]byte("weft "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	base, top := NewLayer(), NewLayer()
	base.File("/usr/bin/weft", 0o755, src)
	base.Symlink("/bin", "usr/bin")
	top.Bytes("/etc/motd", 0o644, []byte("hello\n"))
	var out bytes.Buffer
	err := Write(&out,
		Image{Names: []string{"localhost/a:1", "localhost/a:2"}, Arch: "arm64", Layers: []*Layer{base}, Entrypoint: []string{"/usr/bin/weft"}},
		Image{Names: []string{"localhost/b:1"}, Arch: "arm64", Layers: []*Layer{base, top}, Plain: true})
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// The same content gives the same bytes, wherever and whenever its files were made.
func TestDeterministic(t *testing.T) {
	if a, b := build(t, "first"), build(t, "second"); !bytes.Equal(a, b) {
		t.Fatal("two builds of the same content differ")
	}
}

// Another implementation of the OCI specification finds the archive valid, digest by digest.
func TestValid(t *testing.T) {
	dir := t.TempDir()
	names := unpack(t, build(t, "x"), dir)
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Manifests) != 3 {
		t.Fatalf("index has %d manifests, want one per name, 3", len(m.Manifests))
	}
	if got := m.Manifests[1].Annotations["io.containerd.image.name"]; got != "localhost/a:2" {
		t.Errorf("second name is %q", got)
	}
	compressed, err := index.Image(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(compressed); err != nil { // of compressed layers it checks the content, too
		t.Error(err)
	}
	img, err := index.Image(m.Manifests[2].Digest)
	if err != nil {
		t.Fatal(err)
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if c.Architecture != "arm64" || c.OS != "linux" || !c.Created.IsZero() {
		t.Errorf("config: architecture %s, os %s, created %s", c.Architecture, c.OS, c.Created)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	plain, err := layers[1].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if h, err := tar.NewReader(plain).Next(); err != nil || h.Name != "etc/" {
		t.Errorf("a plain layer does not start with a tar header: %v %v", h, err)
	}
	// One shared layer, one more, two configurations and two manifests.
	if len(names) != 6+2 {
		t.Errorf("archive has %d files, want 6 blobs, index.json and oci-layout: %v", len(names), names)
	}
}

func unpack(t *testing.T, b []byte, dir string) []string {
	t.Helper()
	var names []string
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		p := filepath.Join(dir, h.Name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, data, 0o644); err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
}

// A file that is missing is an error that names it, never an image without it.
func TestMissingFile(t *testing.T) {
	l := NewLayer()
	l.File("/usr/bin/weft", 0o755, "/nonexistent/weft")
	err := Write(io.Discard, Image{Names: []string{"localhost/a:1"}, Arch: "amd64", Layers: []*Layer{l}})
	if err == nil || !bytes.Contains([]byte(err.Error()), []byte("usr/bin/weft")) || !bytes.Contains([]byte(err.Error()), []byte("localhost/a:1")) {
		t.Fatalf("error %v does not name the image and the file", err)
	}
}

// What is added first stays, and parents come first.
func TestLayerOrder(t *testing.T) {
	l := NewLayer()
	l.Bytes("/b/c", 0o600, []byte("first"))
	l.Bytes("b//c/", 0o644, []byte("second"))
	l.Dir("/", 0o700)
	var buf bytes.Buffer
	if err := l.write(&buf); err != nil {
		t.Fatal(err)
	}
	var got []string
	for r := tar.NewReader(&buf); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, _ := io.ReadAll(r)
		got = append(got, h.Name+"="+string(data))
	}
	want, _ := json.Marshal([]string{"b/=", "b/c=first"})
	if have, _ := json.Marshal(got); !bytes.Equal(have, want) {
		t.Fatalf("layer is %s, want %s", have, want)
	}
}
