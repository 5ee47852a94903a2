package ebpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"weft/internal/datapath/linux"
	"weft/internal/model"
	"weft/internal/plan"
)

// errNoTCX says that this kernel has no TCX (Linux before 6.6).
var errNoTCX = errors.New("the kernel has no TCX")

// attacher puts programs on devices. With TCX a program is held by a link that is pinned under the name of its
// device and direction: a later agent finds it there and replaces the program in place. A link whose device is gone, or
// was made again, is dead and replaced. With clsact a filter with our name holds it, as long as the device lives.
type attacher struct {
	links  string // directory of pinned links
	clsact bool
}

// direction is ingress or egress, as seen from the device.
type direction struct {
	name   string
	attach ebpf.AttachType
}

func directions() [2]direction {
	return [2]direction{{"ingress", ebpf.AttachTCXIngress}, {"egress", ebpf.AttachTCXEgress}}
}

// attach makes a row's device run both programs.
func (d *Driver) attach(key plan.Key, on hooked, ingress, egress *ebpf.Program) error {
	for i, prog := range []*ebpf.Program{ingress, egress} {
		dir := directions()[i]
		err := errNoTCX
		if !d.mode.clsact {
			err = d.mode.tcx(on.dev, on.index, dir, prog)
		}
		if errors.Is(err, errNoTCX) {
			d.useClsact()
			err = linux.AttachClsact(on.index, i == 0, prog.FD(), filterName(prog))
		}
		if err != nil {
			return fmt.Errorf("attach %s to %s of %s: %w", programName(prog), dir.name, on.dev, err)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hooked[key] = on
	if d.mode.clsact {
		d.features["tcx"] = &model.Feature{Name: "tcx", State: "fallback", Detail: "programs are attached as clsact filters"}
	} else {
		d.features["tcx"] = &model.Feature{Name: "tcx", State: "active"}
	}
	return nil
}

func (d *Driver) useClsact() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mode.clsact = true
}

func (d *Driver) detach(key plan.Key, dev string) error {
	d.mu.Lock()
	delete(d.hooked, key)
	d.mu.Unlock()
	return d.mode.detach(dev)
}

func programName(p *ebpf.Program) string {
	_, name, _ := strings.Cut(p.String(), "(")
	name, _, _ = strings.Cut(name, ")")
	return name
}

func filterName(p *ebpf.Program) string { return "weft_" + programName(p) }

// pin is the path of a link. A bpffs refuses names with dots, and a device's name has no colon.
func (a attacher) pin(dev string, dir direction) string {
	return filepath.Join(a.links, strings.ReplaceAll(dev, ".", ":")+"-"+dir.name)
}

// tcx attaches a program by a pinned link, or puts it into the link that is there.
func (a attacher) tcx(dev string, index int, dir direction, prog *ebpf.Program) error {
	path := a.pin(dev, dir)
	old, err := link.LoadPinnedLink(path, nil)
	switch {
	case err == nil:
		defer old.Close()
		if done, err := adopt(old, index, prog); done || err != nil {
			return err
		}
		if err := old.Unpin(); err != nil {
			return fmt.Errorf("unpin dead link %s: %w", path, err)
		}
	case !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("open pinned link: %w", err)
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: index, Program: prog, Attach: dir.attach})
	switch {
	case errors.Is(err, ebpf.ErrNotSupported):
		return errNoTCX
	case err != nil:
		return err
	}
	defer l.Close()
	if err := l.Pin(path); err != nil {
		return fmt.Errorf("pin link %s: %w", path, err)
	}
	return nil
}

// adopt makes an existing link run the program. It reports false if the link is on no device or another one.
func adopt(l link.Link, index int, prog *ebpf.Program) (bool, error) {
	info, err := l.Info()
	if err != nil {
		return false, fmt.Errorf("read pinned link: %w", err)
	}
	if tcx := info.TCX(); tcx == nil || int(tcx.Ifindex) != index {
		return false, nil
	}
	mine, err := prog.Info()
	if err != nil {
		return false, fmt.Errorf("read program: %w", err)
	}
	if id, ok := mine.ID(); ok && id == info.Program {
		return true, nil
	}
	if err := l.Update(prog); err != nil {
		return false, fmt.Errorf("replace the program of a link: %w", err)
	}
	return true, nil
}

// detach takes our programs off a device, which may be gone.
func (a attacher) detach(dev string) error {
	var errs []error
	for _, dir := range directions() {
		if err := os.Remove(a.pin(dev, dir)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove pinned link: %w", err))
		}
	}
	if a.clsact {
		if index, err := interfaceIndex(dev); err == nil {
			errs = append(errs, linux.DetachClsact(index))
		}
	}
	return errors.Join(errs...)
}

// keep takes our programs off every device that is not in want.
func (a attacher) keep(want map[string]bool) error {
	pins, err := os.ReadDir(a.links)
	if err != nil {
		return fmt.Errorf("list pinned links: %w", err)
	}
	var errs []error
	for _, p := range pins {
		dev := p.Name()
		for _, dir := range directions() {
			dev = strings.TrimSuffix(dev, "-"+dir.name)
		}
		if dev = strings.ReplaceAll(dev, ":", "."); !want[dev] || a.clsact {
			errs = append(errs, os.Remove(filepath.Join(a.links, p.Name())))
		}
	}
	if a.clsact {
		errs = append(errs, linux.SweepClsact(func(dev string) bool { return want[dev] }))
	}
	return errors.Join(errs...)
}

// interfaceIndex returns the index of an Ethernet device of this network namespace, without listing them all.
func interfaceIndex(name string) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open a socket: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return 0, fmt.Errorf("device name %q: %w", name, err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFHWADDR, req); err != nil {
		return 0, fmt.Errorf("find device %s: %w", name, err)
	}
	if kind := req.Uint16(); kind != unix.ARPHRD_ETHER {
		return 0, fmt.Errorf("device %s has no Ethernet header (ARPHRD type %d), which weft's programs need", name, kind)
	}
	return linux.IndexByName(name)
}
