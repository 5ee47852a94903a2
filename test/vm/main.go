// Command vm runs the tests of packages under another Linux kernel, in a small virtual machine.
//
//	go run ./test/vm -kernel 6.1 -pkg ./internal/datapath/ebpf -run TestName
//
// Kernels are Debian's own packages, unpacked into the user's cache and never installed. The
// machine is emulated (no /dev/kvm is needed), has no disk and no network, and boots straight
// into the test binaries. It is not for benchmarks: its clock counts instructions.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"time"
)

// options are the command line.
type options struct {
	kernels  []string // series, "6.1"
	packages []string
	run      string        // of go test
	skip     string        // of go test
	memory   string        // of qemu, "1G"
	cpus     int           // emulated
	timeout  time.Duration // of one machine
	verbose  bool
}

// series are the kernels that are tested by default, with the Debian release that has each.
func series() map[string]string {
	return map[string]string{"6.1": "bookworm", "6.12": "bookworm-backports"}
}

// packages are tested by default: what depends on the kernel, and whole agents.
func packages() []string {
	return []string{"./internal/datapath/linux", "./internal/datapath/nft", "./internal/datapath/ebpf", "./internal/mesh", "./internal/agent"}
}

func main() {
	o := options{}
	kernels := flag.String("kernel", "6.1,6.12", "kernel series, comma-separated")
	pkgs := flag.String("pkg", strings.Join(packages(), ","), "packages, comma-separated")
	flag.StringVar(&o.run, "run", "", "regular expression of test names")
	flag.StringVar(&o.skip, "skip", "", "regular expression of test names that are left out")
	flag.StringVar(&o.memory, "memory", "1536M", "memory of the machine")
	flag.IntVar(&o.cpus, "cpus", 1, "processors of the machine; 6.1 does not boot with more")
	flag.DurationVar(&o.timeout, "timeout", 30*time.Minute, "limit for one machine")
	flag.BoolVar(&o.verbose, "v", false, "show every line that the tests print")
	flag.Parse()
	o.kernels, o.packages = strings.Split(*kernels, ","), strings.Split(*pkgs, ",")

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := test(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		stop()
		os.Exit(1)
	}
}

// test builds everything once and boots a machine for each kernel.
func test(ctx context.Context, o options) error {
	dir, err := os.MkdirTemp("", "weft-vm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	suite, err := build(ctx, dir, o)
	if err != nil {
		return err
	}
	// A machine takes one processor of the host. Lines of several would be mixed up.
	limit := max(1, runtime.NumCPU())
	if o.verbose {
		limit = 1
	}
	turn := make(chan struct{}, limit)
	errs := make([]error, len(o.kernels))
	var wg sync.WaitGroup
	for i, s := range o.kernels {
		k, err := fetch(ctx, s)
		if err != nil {
			errs[i] = fmt.Errorf("kernel %s: %w", s, err)
			continue
		}
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			if err := boot(ctx, dir, k, suite, o); err != nil {
				errs[i] = fmt.Errorf("kernel %s: %w", k.release, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
