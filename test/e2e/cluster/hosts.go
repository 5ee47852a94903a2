package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/internal/host"
	"weft/internal/netset"
)

// Verbs with which this package starts the program that uses it again.
const (
	initVerb    = "cluster-host"
	forwardVerb = "cluster-forward"
)

// Helper does this package's work in a process that was started for it; handled is false in every other
// process. A program that uses the package calls it first in main.
func Helper(args []string) (handled bool, err error) {
	if len(args) != 3 {
		return false, nil
	}
	switch args[1] {
	case initVerb:
		return true, host.Init(args[2])
	case forwardVerb:
		return true, forward(args[2])
	}
	return false, nil
}

// cgroup is the name of the cluster's cgroups. It follows from the directory, so that clusters are apart.
func (c *Cluster) cgroup(hostName string) string {
	return filepath.Join("weft-e2e", strings.ReplaceAll(strings.Trim(c.Dir, "/"), "/", "-"), hostName)
}

// startHost starts a host unless it runs, and plugs it into the wire.
func (c *Cluster) startHost(ctx context.Context, s host.Spec) error {
	h, err := host.Start(ctx, c.path(s.Name), s, "/proc/self/exe", initVerb)
	if err != nil {
		return err
	}
	if s.Name == World {
		err = makeWire(h)
	} else {
		err = c.plug(h)
	}
	if err != nil {
		return fmt.Errorf("connect %s: %w", s.Name, err)
	}
	return nil
}

func (c *Cluster) destroyHost(ctx context.Context, name string) error {
	if _, err := os.Stat(c.path(name)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return host.Destroy(ctx, c.path(name))
}

const (
	bridgeName = "br0"
	wireMTU    = 1500
)

// makeWire makes the bridge between the hosts. World is the gateway and the network beyond it.
func makeWire(world *host.Host) error {
	if err := world.AddBridge(bridgeName, wireMTU, onWire(World)...); err != nil {
		return err
	}
	for _, f := range netset.Families() {
		if err := world.AddAddr("lo", netset.Host(Outside(f))); err != nil {
			return err
		}
	}
	return nil
}

// plug joins a host to the wire by its eth0, unless it is: an address and a default route per family.
func (c *Cluster) plug(h *host.Host) error {
	world, err := host.Open(c.path(World))
	if err != nil {
		return err
	}
	eth := host.Port{Name: "eth0", MAC: hardwareAddress(h.Name()), MTU: wireMTU, Addrs: onWire(h.Name())}
	for _, f := range netset.Families() {
		eth.Via = append(eth.Via, Address(World, f))
	}
	// A node that was cut off a moment ago may still have its port here.
	if h.Do(func() error { _, err := netlink.LinkByName(eth.Name); return err }) != nil {
		if err := world.Do(func() error { return deleteLink(h.Name()) }); err != nil {
			return err
		}
	}
	return host.Connect(h, eth, world, host.Port{Name: h.Name(), MTU: wireMTU, Bridge: bridgeName})
}

func deleteLink(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return nil //nolint:nilerr // it is gone already
	}
	if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}

// onWire returns a host's addresses with the wire's prefix lengths.
func onWire(name string) []netip.Prefix {
	var ps []netip.Prefix
	for _, f := range netset.Families() {
		ps = append(ps, netip.PrefixFrom(Address(name, f), prefix(wire, f).Bits()))
	}
	return ps
}

// hardwareAddress is the same after a restart, as a machine's is.
func hardwareAddress(name string) net.HardwareAddr {
	a := Address(name, netset.V4).As4()
	return net.HardwareAddr{2, 0, a[0], a[1], a[2], a[3]}
}
