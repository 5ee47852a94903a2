package image

import "path/filepath"

// Limit is the largest archive of Weft that we promise, in bytes.
const Limit = 45 << 20

// Weft is weft's own image under the given names: the static programs weft and weft-cni of the directory
// from, and nothing else. The agent installs weft-cni, which lies beside it, on the node.
func Weft(names []string, arch, from string) Image {
	l := NewLayer()
	for _, p := range []string{"weft", "weft-cni"} {
		l.File("/usr/bin/"+p, 0o755, filepath.Join(from, p))
	}
	return Image{
		Names: names, Arch: arch, Layers: []*Layer{l},
		Entrypoint: []string{"/usr/bin/weft"}, Cmd: []string{"agent", "--config", "/etc/weft/config.yaml"},
		Labels: map[string]string{"org.opencontainers.image.title": "weft", "org.opencontainers.image.licenses": "Apache-2.0"},
	}
}
