package lab

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Limit does what a pod's link needs with netlink alone: no process, no address management, no
// state. It is the limit of rows C1 and C2. Call it in a thread of the node's namespace.
type Limit struct{}

// gateways are what a pod sends to, by family.
func gateways() []string { return []string{"169.254.1.1", "fe80::1"} }

const gatewayMAC = "02:77:65:66:74:01"

// Add makes a veth with the peer in the pod's namespace, addresses, routes and neighbours on both sides.
func (Limit) Add(index int, pod string) error {
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer host.Close()
	fd, err := vnetns.GetFromPath(filepath.Join(NetnsDir, pod))
	if err != nil {
		return err
	}
	defer func() { _ = fd.Close() }()
	mac, err := net.ParseMAC(gatewayMAC)
	if err != nil {
		return err
	}
	name := fmt.Sprintf("lim%d", index)
	link := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: name, MTU: 1500, HardwareAddr: mac, Flags: net.FlagUp},
		PeerName:  "eth0", PeerNamespace: netlink.NsFd(int(fd)),
	}
	if err := host.LinkAdd(link); err != nil {
		return fmt.Errorf("add veth %s: %w", name, err)
	}
	inside, err := netlink.NewHandleAt(fd, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer inside.Close()
	eth, err := inside.LinkByName("eth0")
	if err != nil {
		return err
	}
	outside, err := host.LinkByName(name)
	if err != nil {
		return err
	}
	if err := inside.LinkSetUp(eth); err != nil {
		return err
	}
	for i, subnet := range Both(PodPrefix, 1) {
		addr := nth(subnet, 2+index).Addr()
		if err := addressing(host, inside, outside, eth, addr, netip.MustParseAddr(gateways()[i]), mac); err != nil {
			return err
		}
	}
	return nil
}

// addressing gives the pod one address, and both sides their routes and neighbours.
func addressing(host, inside *netlink.Handle, outside, eth netlink.Link, addr, gateway netip.Addr, mac net.HardwareAddr) error {
	single := &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())}
	only := &net.IPNet{IP: gateway.AsSlice(), Mask: net.CIDRMask(gateway.BitLen(), gateway.BitLen())}
	everything := &net.IPNet{IP: zero(addr).AsSlice(), Mask: net.CIDRMask(0, addr.BitLen())}
	in, out := eth.Attrs(), outside.Attrs()
	for _, err := range []error{
		inside.AddrAdd(eth, &netlink.Addr{IPNet: single, Flags: unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE}),
		inside.RouteAdd(&netlink.Route{LinkIndex: in.Index, Dst: only, Scope: netlink.SCOPE_LINK}),
		inside.RouteAdd(&netlink.Route{LinkIndex: in.Index, Dst: everything, Gw: gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}),
		inside.NeighSet(&netlink.Neigh{LinkIndex: in.Index, IP: gateway.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT}),
		host.RouteAdd(&netlink.Route{LinkIndex: out.Index, Dst: single, Scope: netlink.SCOPE_LINK}),
		host.NeighSet(&netlink.Neigh{LinkIndex: out.Index, IP: addr.AsSlice(), HardwareAddr: in.HardwareAddr, State: netlink.NUD_PERMANENT}),
	} {
		if err != nil {
			return fmt.Errorf("address %s: %w", addr, err)
		}
	}
	return nil
}

// Del removes the veth, and with it all the rest.
func (Limit) Del(index int) error {
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer host.Close()
	link, err := host.LinkByName(fmt.Sprintf("lim%d", index))
	if err != nil {
		return err
	}
	return host.LinkDel(link)
}
