package ebpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"weft/internal/datapath/linux"
	"weft/internal/model"
	"weft/internal/plan"
)

// errNoTCX says that this kernel has no TCX (Linux before 6.6).
var errNoTCX = errors.New("the kernel has no TCX")

// attacher puts programs on devices, by one of two means.
//
// A TCX link is pinned under the name of its device and direction: a later agent finds it there and replaces the program in
// place. A link whose device is gone, or was made again, is dead and replaced. A clsact filter with our name lives
// as long as its device and costs each packet about 80 ns more.
//
// To attach a TCX link the kernel waits for a grace period with the lock of all devices held, 8 to 16 ms each. Pods
// do not wait for that: they start with filters, and when the node is calm, what they send moves to a link.
type attacher struct {
	links  string // directory of pinned links
	clsact bool   // filters only
}

// direction is ingress or egress, as seen from the device.
type direction struct {
	name    string
	ingress bool
	attach  ebpf.AttachType
}

func directions() [2]direction {
	return [2]direction{{"ingress", true, ebpf.AttachTCXIngress}, {"egress", false, ebpf.AttachTCXEgress}}
}

// hooked is a device with our programs.
type hooked struct {
	dev    string
	index  int
	quick  bool    // a pod's
	filter [2]bool // by direction: held by a filter, not by a link
}

// attach makes a row's device run both programs.
func (d *Driver) attach(key plan.Key, on hooked, ingress, egress *ebpf.Program) error {
	d.mu.Lock()
	_, known := d.hooked[key]
	d.mu.Unlock()
	for i, prog := range []*ebpf.Program{ingress, egress} {
		var err error
		if on.filter[i], err = d.mode.attach(on, directions()[i], prog, known); err != nil {
			return fmt.Errorf("attach %s to %s of %s: %w", programName(prog), directions()[i].name, on.dev, err)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hooked[key] = on
	if d.mode.clsact {
		d.features["tcx"] = &model.Feature{Name: "tcx", State: "fallback", Detail: "programs are attached as clsact filters"}
	} else if d.features["tcx"] == nil && !on.quick {
		d.features["tcx"] = &model.Feature{Name: "tcx", State: "active"}
	}
	if on.quick && on.filter[0] && !d.mode.clsact {
		d.waiting[key] = true
	}
	return nil
}

// attach attaches one program and reports whether a filter holds it. known says that this process attached to
// the device before, so that nothing of an earlier agent can be left there.
func (a *attacher) attach(on hooked, dir direction, prog *ebpf.Program, known bool) (filter bool, err error) {
	if !a.clsact {
		err = a.tcx(on.dev, on.index, dir, prog, !on.quick)
		if err == nil && on.quick && !known {
			err = linux.DetachClsact(on.index, dir.ingress)
		}
		if !errors.Is(err, errNoTCX) && !errors.Is(err, os.ErrNotExist) {
			return false, err
		}
		a.clsact = errors.Is(err, errNoTCX)
	}
	return true, linux.AttachClsact(on.index, dir.ingress, prog.FD(), filterName(prog))
}

func (d *Driver) detach(key plan.Key, dev string) error {
	d.forget(key)
	return d.mode.detach(dev)
}

func (d *Driver) forget(key plan.Key) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.hooked, key)
	delete(d.waiting, key)
}

// gateName is the name of the filter that lets nothing pass.
const gateName = filterPrefix + "shut"

// newGate loads a program that drops everything.
func newGate() (*ebpf.Program, error) {
	const drop = 2 // TC_ACT_SHOT, linux/pkt_cls.h
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "shut", Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, drop), asm.Return()},
	})
	if err != nil {
		return nil, fmt.Errorf("load program shut: %w", err)
	}
	return p, nil
}

// Shut lets nothing pass from or to a pod, by filters in the place of those of the pod's programs: while a new pod's link is up and its row has not been
// applied, and from when the row is gone until the link is. Otherwise the stack would forward what nobody has decided about.
func (d *Driver) Shut(ifindex int) error {
	var errs []error
	for _, dir := range directions() {
		errs = append(errs, linux.AttachClsact(ifindex, dir.ingress, d.gate.FD(), gateName))
	}
	return errors.Join(errs...)
}

// shutPod takes a pod's programs off its link. The link stays shut.
func (d *Driver) shutPod(key plan.Key, dev string) error {
	d.forget(key)
	index, err := interfaceIndex(dev)
	if err != nil { // gone, and all that was on it
		return d.mode.unpin(dev)
	}
	return errors.Join(d.Shut(index), d.mode.unpin(dev))
}

// calm moves the program of one pod that still has a filter to a link, and reports whether more pods wait. Packets
// see one of the two at any moment, or both: what the first leaves to the stack, the second leaves, too.
func (d *Driver) calm() (more bool) {
	d.apply.Lock()
	defer d.apply.Unlock()
	d.mu.Lock()
	var key plan.Key
	for key = range d.waiting {
		break
	}
	on, ok := d.hooked[key]
	delete(d.waiting, key)
	more = len(d.waiting) > 0
	d.mu.Unlock()
	if !ok {
		return more
	}
	dir := directions()[0]
	err := d.mode.tcx(on.dev, on.index, dir, d.objs.FromPod, true)
	if err == nil {
		err = linux.DetachClsact(on.index, dir.ingress)
	}
	if errors.Is(err, errNoTCX) {
		d.mode.clsact = true
	}
	if err != nil {
		// The filter does the same work. A device that has gone was the pod's end.
		d.log.Debug("a pod keeps its filter", "device", on.dev, "err", err)
		return more
	}
	on.filter[0] = false
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hooked[key] = on
	d.features["tcx"] = &model.Feature{Name: "tcx", State: "active"}
	return more
}

func programName(p *ebpf.Program) string {
	_, name, _ := strings.Cut(p.String(), "(")
	name, _, _ = strings.Cut(name, ")")
	return name
}

// filterPrefix begins the names of our filters.
const filterPrefix = "weft_"

func filterName(p *ebpf.Program) string { return filterPrefix + programName(p) }

// pin is the path of a link. A bpffs refuses names with dots, and a device's name has no colon.
func (a *attacher) pin(dev string, dir direction) string {
	return filepath.Join(a.links, strings.ReplaceAll(dev, ".", ":")+"-"+dir.name)
}

// deviceOf is the device of a pin's name.
func deviceOf(pin string) string {
	for _, dir := range directions() {
		pin = strings.TrimSuffix(pin, "-"+dir.name)
	}
	return strings.ReplaceAll(pin, ":", ".")
}

// tcx puts a program into the pinned link that is there. Where none is, it makes one, or returns os.ErrNotExist.
func (a *attacher) tcx(dev string, index int, dir direction, prog *ebpf.Program, create bool) error {
	path := a.pin(dev, dir)
	old, err := link.LoadPinnedLink(path, nil)
	switch {
	case err == nil:
		defer func() { _ = old.Close() }()
		if done, err := adopt(old, index, prog); done || err != nil {
			return err
		}
		if err := old.Unpin(); err != nil {
			return fmt.Errorf("unpin dead link %s: %w", path, err)
		}
	case !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("open pinned link: %w", err)
	}
	if !create {
		return os.ErrNotExist
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: index, Program: prog, Attach: dir.attach})
	switch {
	case errors.Is(err, ebpf.ErrNotSupported):
		return errNoTCX
	case err != nil:
		return err
	}
	defer func() { _ = l.Close() }()
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
func (a *attacher) detach(dev string) error {
	errs := []error{a.unpin(dev)}
	if index, err := interfaceIndex(dev); err == nil {
		for _, dir := range directions() {
			errs = append(errs, linux.DetachClsact(index, dir.ingress))
		}
	}
	return errors.Join(errs...)
}

func (a *attacher) unpin(dev string) error {
	var errs []error
	for _, dir := range directions() {
		if err := os.Remove(a.pin(dev, dir)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove pinned link: %w", err))
		}
	}
	return errors.Join(errs...)
}

// keep takes our programs off every device that is not in want.
func (a *attacher) keep(want map[string]bool) error {
	pins, err := os.ReadDir(a.links)
	if err != nil {
		return fmt.Errorf("list pinned links: %w", err)
	}
	var errs []error
	for _, p := range pins {
		if dev := deviceOf(p.Name()); !want[dev] || a.clsact {
			errs = append(errs, os.Remove(filepath.Join(a.links, p.Name())))
		}
	}
	errs = append(errs, linux.SweepClsact(func(dev string) bool { return want[dev] }))
	return errors.Join(errs...)
}

// interfaceIndex returns the index of an Ethernet device of this network namespace, without listing them all.
func interfaceIndex(name string) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open a socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	req, err := unix.NewIfreq(name)
	if err != nil {
		return 0, fmt.Errorf("device name %q: %w", name, err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFHWADDR, req); err != nil {
		return 0, fmt.Errorf("find device %s: %w", name, err)
	}
	if kind := req.Uint16(); kind != unix.ARPHRD_ETHER {
		return 0, fmt.Errorf("device %s is no Ethernet device (ARPHRD type %d): weft's programs need an Ethernet header", name, kind)
	}
	return linux.IndexByName(name)
}
