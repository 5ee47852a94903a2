package image

import (
	"archive/tar"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
)

// Layer is a tree of files under construction. The zero value is not usable; see NewLayer. What is added
// first stays: a second entry of the same path is ignored, so that general content can follow special content.
type Layer struct {
	entries map[string]entry // by path without leading slash; directories without a trailing one
}

type entry struct {
	mode   int64
	typ    byte   // tar.TypeDir, tar.TypeReg or tar.TypeSymlink
	source string // file on disk whose content it has, or the symlink's target
	data   []byte // content where source is empty
}

// NewLayer returns an empty layer.
func NewLayer() *Layer { return &Layer{entries: map[string]entry{}} }

// Has says whether something was added under this path.
func (l *Layer) Has(p string) bool {
	_, found := l.entries[clean(p)]
	return found
}

// Dir adds a directory and those above it.
func (l *Layer) Dir(p string, mode os.FileMode) { l.add(p, entry{mode: int64(mode), typ: tar.TypeDir}) }

// Bytes adds a file with this content.
func (l *Layer) Bytes(p string, mode os.FileMode, data []byte) {
	l.add(p, entry{mode: int64(mode), typ: tar.TypeReg, data: data})
}

// File adds a file with the content that the file src has when the image is written.
func (l *Layer) File(p string, mode os.FileMode, src string) {
	l.add(p, entry{mode: int64(mode), typ: tar.TypeReg, source: src})
}

// Symlink adds a symbolic link to target.
func (l *Layer) Symlink(p, target string) {
	l.add(p, entry{mode: 0o777, typ: tar.TypeSymlink, source: target})
}

func (l *Layer) add(p string, e entry) {
	p = clean(p)
	if p == "" || p == "." || l.Has(p) {
		return
	}
	l.add(path.Dir(p), entry{mode: 0o755, typ: tar.TypeDir})
	l.entries[p] = e
}

// clean turns any spelling of a path into the key of entries; the root is "".
func clean(p string) string { return strings.TrimPrefix(path.Clean("/"+p), "/") }

// write writes the layer as a tar stream that depends on nothing but the content: sorted, without times,
// owned by root.
func (l *Layer) write(w io.Writer) error {
	tw := tar.NewWriter(w)
	for _, p := range slices.Sorted(maps.Keys(l.entries)) {
		if err := l.entries[p].write(tw, p); err != nil {
			return fmt.Errorf("layer: %s: %w", p, err)
		}
	}
	return tw.Close()
}

func (e entry) write(tw *tar.Writer, p string) error {
	h := &tar.Header{Typeflag: e.typ, Name: p, Mode: e.mode, Size: int64(len(e.data)), Format: tar.FormatPAX}
	switch {
	case e.typ == tar.TypeDir:
		h.Name += "/"
		return tw.WriteHeader(h)
	case e.typ == tar.TypeSymlink:
		h.Linkname = e.source
		return tw.WriteHeader(h)
	case e.source == "":
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		_, err := tw.Write(e.data)
		return err
	}
	f, err := os.Open(e.source)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	h.Size = st.Size()
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(tw, f)
	return err
}
