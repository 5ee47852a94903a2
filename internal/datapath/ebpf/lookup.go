package ebpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// The program to_node is attached to the node's network namespace while policy is enforced. Its link is pinned, as node-lookup:
// a later agent replaces the program in place. A link of another namespace (a machine's lab, restarted) is dead and replaced.

func (d *Driver) lookupPin() string { return filepath.Join(d.dir, "node-lookup") }

// sockets attaches to_node, or detaches it.
func (d *Driver) sockets(on bool) error {
	if on {
		return d.watchSockets()
	}
	return d.ignoreSockets()
}

// watchSockets attaches to_node, or replaces what an earlier agent attached.
func (d *Driver) watchSockets() error {
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("open the network namespace: %w", err)
	}
	defer func() { _ = ns.Close() }()
	old, err := link.LoadPinnedLink(d.lookupPin(), nil)
	switch {
	case err == nil:
		defer func() { _ = old.Close() }()
		if ok, err := d.adoptSockets(old, ns); ok || err != nil {
			return err
		}
		if err := old.Unpin(); err != nil {
			return fmt.Errorf("unpin dead link of to_node: %w", err)
		}
	case !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("open pinned link of to_node: %w", err)
	}
	l, err := link.AttachNetNs(int(ns.Fd()), d.objs.ToNode)
	if err != nil {
		return fmt.Errorf("attach to_node to the network namespace: %w", err)
	}
	defer func() { _ = l.Close() }()
	if err := l.Pin(d.lookupPin()); err != nil {
		return fmt.Errorf("pin the link of to_node: %w", err)
	}
	return nil
}

// adoptSockets makes an existing link run our program. It reports false if the link is of no namespace, or another one.
func (d *Driver) adoptSockets(l link.Link, ns *os.File) (bool, error) {
	info, err := l.Info()
	if err != nil {
		return false, fmt.Errorf("read pinned link of to_node: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(ns.Fd()), &st); err != nil {
		return false, fmt.Errorf("identify the network namespace: %w", err)
	}
	if at := info.NetNs(); at == nil || uint64(at.NetnsInode) != st.Ino {
		return false, nil
	}
	mine, err := d.objs.ToNode.Info()
	if err != nil {
		return false, fmt.Errorf("read program: %w", err)
	}
	if id, ok := mine.ID(); ok && id == info.Program {
		return true, nil
	}
	if err := l.Update(d.objs.ToNode); err != nil {
		return false, fmt.Errorf("replace the program to_node: %w", err)
	}
	return true, nil
}

// ignoreSockets detaches it.
func (d *Driver) ignoreSockets() error {
	if err := os.Remove(d.lookupPin()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the link of to_node: %w", err)
	}
	return nil
}
