// Command weft-image packs weft and weft-cni into an OCI archive. It builds neither, and needs no container
// engine; `make image` calls it for each architecture.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"weft/internal/image"
)

func main() {
	name := flag.String("name", "localhost/weft:dev", "the image's `references`, separated by commas")
	arch := flag.String("arch", "amd64", "architecture of the programs, as `GOARCH`")
	from := flag.String("from", "bin", "`directory` with the programs weft and weft-cni")
	out := flag.String("o", "", "archive to write")
	flag.Parse()
	if err := run(*name, *arch, *from, *out); err != nil {
		fmt.Fprintf(os.Stderr, "weft-image: %v\n", err)
		os.Exit(1)
	}
}

func run(name, arch, from, out string) error {
	if out == "" {
		return fmt.Errorf("-o: the archive to write is missing")
	}
	f, err := os.CreateTemp(filepath.Dir(out), ".weft-image-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	err = image.Write(f, image.Weft(strings.Split(name, ","), arch, from))
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() > image.Limit {
		return fmt.Errorf("%s has %d bytes, more than the %d allowed", out, st.Size(), image.Limit)
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	fmt.Printf("%s  %s  %.1f MB\n", out, name, float64(st.Size())/(1<<20))
	return os.Rename(f.Name(), out)
}
