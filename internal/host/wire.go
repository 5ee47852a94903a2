package host

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"weft/internal/netset"
)

// Port is one end of a wire.
type Port struct {
	Name   string           // interface name
	MAC    net.HardwareAddr // nil: random
	MTU    int              // 0: 1500
	Bridge string           // bridge of the host to join, "" for none
	Addrs  []netip.Prefix   // with the host bits kept
	Via    []netip.Addr     // default gateways, at most one a family
}

// AddBridge creates a bridge with addresses in the host, or completes one that is there.
func (h *Host) AddBridge(name string, mtu int, addrs ...netip.Prefix) error {
	nl, err := h.netlink()
	if err != nil {
		return err
	}
	defer nl.Close()
	if _, err := nl.LinkByName(name); err == nil {
		return nil
	}
	off := false
	// Without an address of its own a bridge takes one of its ports', and another when ports come and go, of
	// which its neighbours are not told.
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 0}
	if _, err := rand.Read(mac[1:]); err != nil {
		return err
	}
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: mtu, HardwareAddr: mac}, MulticastSnooping: &off}
	if err := nl.LinkAdd(br); err != nil {
		return fmt.Errorf("create bridge %s on %s: %w", name, h.spec.Name, err)
	}
	return h.configure(nl, Port{Name: name, MTU: mtu, Addrs: addrs})
}

// Connect joins two hosts with a veth pair, or completes one that is there: a starter
// may have died between its steps.
func Connect(a *Host, pa Port, b *Host, pb Port) error {
	na, err := a.netlink()
	if err != nil {
		return err
	}
	defer na.Close()
	nb, err := b.netlink()
	if err != nil {
		return err
	}
	defer nb.Close()
	ns, err := netns.GetFromPath(b.Netns())
	if err != nil {
		return fmt.Errorf("open network namespace of %s: %w", b.spec.Name, err)
	}
	defer func() { _ = ns.Close() }()
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: pa.Name, MTU: pa.mtu(), HardwareAddr: pa.MAC},
		PeerName:  pb.Name, PeerHardwareAddr: pb.MAC, PeerNamespace: netlink.NsFd(ns), PeerMTU: uint32(pb.mtu()),
	}
	err = na.LinkAdd(veth)
	if errors.Is(err, unix.EEXIST) && (!remains(na, pa.Name) || !remains(nb, pb.Name)) {
		// One end is left of a host that died: its namespace is being taken down.
		removeLink(na, pa.Name)
		removeLink(nb, pb.Name)
		err = na.LinkAdd(veth)
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("connect %s on %s with %s on %s: %w", pa.Name, a.spec.Name, pb.Name, b.spec.Name, err)
	}
	return errors.Join(a.configure(na, pa), b.configure(nb, pb))
}

func remains(nl *netlink.Handle, name string) bool {
	_, err := nl.LinkByName(name)
	return err == nil
}

// removeLink deletes a link if it is there; that it vanished meanwhile is as good.
func removeLink(nl *netlink.Handle, name string) {
	if link, err := nl.LinkByName(name); err == nil {
		_ = nl.LinkDel(link)
	}
}

// AddRoute makes the host reach a prefix through a gateway. It replaces a route to the prefix.
func (h *Host) AddRoute(to netip.Prefix, via netip.Addr) error {
	nl, err := h.netlink()
	if err != nil {
		return err
	}
	defer nl.Close()
	return h.addRoute(nl, to, via)
}

// SetMTU changes the MTU of an interface of the host.
func (h *Host) SetMTU(name string, mtu int) error {
	nl, err := h.netlink()
	if err != nil {
		return err
	}
	defer nl.Close()
	link, err := nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s on %s: %w", name, h.spec.Name, err)
	}
	if err := nl.LinkSetMTU(link, mtu); err != nil {
		return fmt.Errorf("set MTU of %s on %s to %d: %w", name, h.spec.Name, mtu, err)
	}
	return nil
}

// AddAddr gives an address to an interface of the host; no-op if it has it.
func (h *Host) AddAddr(name string, addr netip.Prefix) error {
	nl, err := h.netlink()
	if err != nil {
		return err
	}
	defer nl.Close()
	link, err := nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s on %s: %w", name, h.spec.Name, err)
	}
	return h.addAddr(nl, link, addr)
}

func (p Port) mtu() int {
	if p.MTU == 0 {
		return 1500
	}
	return p.MTU
}

func (h *Host) netlink() (*netlink.Handle, error) {
	ns, err := netns.GetFromPath(h.Netns())
	if err != nil {
		return nil, fmt.Errorf("%w: network namespace of %s: %w", ErrNotRunning, h.spec.Name, err)
	}
	defer func() { _ = ns.Close() }()
	nl, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink on %s: %w", h.spec.Name, err)
	}
	return nl, nil
}

// configure brings a link up with what its port says.
func (h *Host) configure(nl *netlink.Handle, p Port) error {
	link, err := nl.LinkByName(p.Name)
	if err != nil {
		return fmt.Errorf("%s on %s: %w", p.Name, h.spec.Name, err)
	}
	if p.Bridge != "" {
		br, err := nl.LinkByName(p.Bridge)
		if err != nil {
			return fmt.Errorf("%s on %s: %w", p.Bridge, h.spec.Name, err)
		}
		if err := nl.LinkSetMaster(link, br); err != nil {
			return fmt.Errorf("add %s to %s on %s: %w", p.Name, p.Bridge, h.spec.Name, err)
		}
	}
	// Duplicate address detection would take the link's first second, and finds none here.
	err = h.Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv6/conf/"+p.Name+"/accept_dad", []byte("0"), 0)
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s on %s: %w", p.Name, h.spec.Name, err)
	}
	if err := nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up on %s: %w", p.Name, h.spec.Name, err)
	}
	for _, a := range p.Addrs {
		if err := h.addAddr(nl, link, a); err != nil {
			return err
		}
	}
	for _, gw := range p.Via {
		if err := h.addRoute(nl, netset.Default(netset.Of(gw)), gw); err != nil {
			return err
		}
	}
	return nil
}

func (h *Host) addAddr(nl *netlink.Handle, link netlink.Link, addr netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(addr)}
	if addr.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD // usable at once
	}
	if err := nl.AddrReplace(link, a); err != nil {
		return fmt.Errorf("add address %s to %s on %s: %w", addr, link.Attrs().Name, h.spec.Name, err)
	}
	return nil
}

func (h *Host) addRoute(nl *netlink.Handle, to netip.Prefix, via netip.Addr) error {
	if err := nl.RouteReplace(&netlink.Route{Dst: ipNet(to), Gw: via.AsSlice()}); err != nil {
		return fmt.Errorf("replace route %s via %s on %s: %w", to, via, h.spec.Name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
