// Package image writes container images as OCI archives, without a container engine and without a registry.
//
// The bytes depend on the content alone: the same files give the same archive, whoever builds it and when. It
// does not build programs, and it does not push anything; any OCI tool (ctr images import, skopeo, podman load)
// takes the archive from there.
package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Image is one image, which may have several names.
type Image struct {
	Names      []string // full references, such as localhost/weft:1.0; at least one
	Arch       string   // GOARCH
	Layers     []*Layer // lowest first; a layer that several images share is written once
	Entrypoint []string
	Cmd        []string
	Env        []string
	User       string
	Labels     map[string]string
	// Plain leaves the layers uncompressed: for archives that are imported on the same machine. A layer
	// that several images share is as the first of them wants it.
	Plain bool
}

// Write writes an OCI archive that holds the images.
func Write(w io.Writer, images ...Image) error {
	a := archive{tw: tar.NewWriter(w), have: map[string]bool{}, layers: map[*Layer]v1.Layer{}}
	if err := a.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	for _, im := range images {
		d, err := a.image(im)
		if err != nil {
			return fmt.Errorf("image %s: %w", strings.Join(im.Names, ","), err)
		}
		for _, n := range im.Names {
			one := d
			one.Annotations = map[string]string{
				"io.containerd.image.name":          n, // containerd's importer
				"org.opencontainers.image.ref.name": n[strings.LastIndexByte(n, ':')+1:],
			}
			index.Manifests = append(index.Manifests, one)
		}
	}
	b, err := json.Marshal(index)
	if err != nil {
		return fmt.Errorf("image index: %w", err)
	}
	if err := a.file("index.json", b); err != nil {
		return err
	}
	return a.tw.Close()
}

// archive is an OCI layout that is being written as a tar stream.
type archive struct {
	tw     *tar.Writer
	have   map[string]bool     // blobs written, by digest
	layers map[*Layer]v1.Layer // layers converted
}

func (a *archive) file(name string, b []byte) error {
	if err := a.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(b))}); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if _, err := a.tw.Write(b); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

func (a *archive) blob(h v1.Hash, b []byte) error {
	if a.have[h.Hex] {
		return nil
	}
	a.have[h.Hex] = true
	return a.file("blobs/"+h.Algorithm+"/"+h.Hex, b)
}

// image writes the image's blobs and returns the descriptor of its manifest.
func (a *archive) image(im Image) (v1.Descriptor, error) {
	img, err := a.assemble(im)
	if err != nil {
		return v1.Descriptor{}, err
	}
	layers, err := img.Layers()
	if err != nil {
		return v1.Descriptor{}, err
	}
	for _, l := range layers {
		if err := a.layer(l); err != nil {
			return v1.Descriptor{}, err
		}
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return v1.Descriptor{}, err
	}
	name, err := img.ConfigName()
	if err != nil {
		return v1.Descriptor{}, err
	}
	if err := a.blob(name, config); err != nil {
		return v1.Descriptor{}, err
	}
	manifest, err := img.RawManifest()
	if err != nil {
		return v1.Descriptor{}, err
	}
	digest, err := img.Digest()
	if err != nil {
		return v1.Descriptor{}, err
	}
	return v1.Descriptor{
		MediaType: types.OCIManifestSchema1, Digest: digest, Size: int64(len(manifest)),
		Platform: &v1.Platform{OS: "linux", Architecture: im.Arch},
	}, a.blob(digest, manifest)
}

func (a *archive) layer(l v1.Layer) error {
	h, err := l.Digest()
	if err != nil {
		return err
	}
	if a.have[h.Hex] {
		return nil
	}
	r, err := l.Compressed()
	if err != nil {
		return err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	return a.blob(h, b)
}

// assemble puts layers and configuration together.
func (a *archive) assemble(im Image) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, l := range im.Layers {
		if a.layers[l] == nil {
			converted, err := convert(l, im.Plain)
			if err != nil {
				return nil, err
			}
			a.layers[l] = converted
		}
		var err error
		if img, err = mutate.AppendLayers(img, a.layers[l]); err != nil {
			return nil, err
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.History = "linux", im.Arch, nil
	config.Config = v1.Config{
		Entrypoint: im.Entrypoint, Cmd: im.Cmd, User: im.User, WorkingDir: "/", Labels: im.Labels,
		Env: append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, im.Env...),
	}
	return mutate.ConfigFile(img, config)
}

func convert(l *Layer, plain bool) (v1.Layer, error) {
	var buf bytes.Buffer
	if err := l.write(&buf); err != nil {
		return nil, err
	}
	if plain {
		return static.NewLayer(buf.Bytes(), types.OCIUncompressedLayer), nil
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil }
	return tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer),
		tarball.WithCompressionLevel(gzip.BestCompression), tarball.WithCompressedCaching)
}
