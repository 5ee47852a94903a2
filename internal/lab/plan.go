package lab

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"weft/internal/host"
	"weft/internal/netset"
)

// Names of the hosts that every lab has beside its nodes.
const (
	wireHost    = "wire"    // the underlay: a bridge for each subnet, and the router between them
	OutsideHost = "outside" // the world beyond the router
)

// Outside addresses of the documentation ranges (RFC 5737, RFC 3849); nodes reach
// them through the router, which has no route to pods unless the backend is direct.
func outsideAddrs() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
}

// The lab's prefixes. Each lab is a world of its own, so all use the same.
func clusterCIDRs() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")}
}

// inFamilies keeps what is of one of the families, in the order of the families.
func inFamilies[T any](fams []netset.Family, of func(T) netset.Family, all []T) []T {
	var out []T
	for _, f := range fams {
		for _, x := range all {
			if of(x) == f {
				out = append(out, x)
			}
		}
	}
	return out
}

func addrsOf(fams []netset.Family, all ...netip.Addr) []netip.Addr {
	return inFamilies(fams, netset.Of, all)
}

func prefixesOf(fams []netset.Family, all ...netip.Prefix) []netip.Prefix {
	return inFamilies(fams, netset.OfPrefix, all)
}

// node is the i-th node (from 1) of a lab.
type node struct {
	Index  int
	Name   string
	Subnet int // from 1
	MTU    int // of the underlay interface
}

// nodes lists the lab's nodes: they take turns on the subnets.
func (o Options) nodes() []node {
	out := make([]node, o.Nodes)
	for i := range out {
		subnet := i%o.Subnets + 1
		out[i] = node{Index: i + 1, Name: "node" + strconv.Itoa(i+1), Subnet: subnet, MTU: o.mtu(subnet)}
	}
	return out
}

// mtu is the MTU of a subnet.
func (o Options) mtu(subnet int) int { return o.MTU[(subnet-1)%len(o.MTU)] }

// in is the address with that number in an underlay subnet.
func in(subnet, n int) []netip.Prefix {
	return []netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 30, byte(subnet), byte(n)}), 24),
		netip.MustParsePrefix(fmt.Sprintf("fd00:172:30:%x::%x/64", subnet, n)),
	}
}

// addrs are the node's addresses on the underlay, with the subnet's length.
func (n node) addrs() []netip.Prefix { return in(n.Subnet, 10+n.Index) }

// gateways are the router's addresses on the node's subnet.
func (n node) gateways() []netip.Addr { return hostsOf(in(n.Subnet, 1)) }

// podCIDRs are the prefixes of the node's pods.
func (n node) podCIDRs() []netip.Prefix {
	return []netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(n.Index), 0}), 24),
		netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%x::/64", n.Index)),
	}
}

func hostsOf(ps []netip.Prefix) []netip.Addr {
	out := make([]netip.Addr, len(ps))
	for i, p := range ps {
		out[i] = p.Addr()
	}
	return out
}

// connect gives the node its place on the wire.
func (l *Lab) connect(wire, h *host.Host, n node) error {
	fams := l.opts.families()
	br := "br" + strconv.Itoa(n.Subnet)
	mac := net.HardwareAddr{0x02, 0x1a, 0xb0, 0, byte(n.Subnet), byte(10 + n.Index)}
	err := host.Connect(h,
		host.Port{Name: "eth0", MAC: mac, MTU: n.MTU, Addrs: prefixesOf(fams, n.addrs()...), Via: addrsOf(fams, n.gateways()...)},
		wire, host.Port{Name: n.Name, MTU: n.MTU, Bridge: br})
	if err != nil || l.opts.Backend != "direct" {
		return err
	}
	// A fabric that routes pod prefixes: what the direct backend needs beyond one subnet.
	for i, p := range n.podCIDRs() {
		if len(prefixesOf(fams, p)) > 0 {
			if err := wire.AddRoute(p, n.addrs()[i].Addr()); err != nil {
				return err
			}
		}
	}
	return nil
}

// underlay makes the bridges and the way to the outside.
func (l *Lab) underlay(wire, outside *host.Host) error {
	fams := l.opts.families()
	for s := 1; s <= l.opts.Subnets; s++ {
		if err := wire.AddBridge("br"+strconv.Itoa(s), l.opts.mtu(s), prefixesOf(fams, in(s, 1)...)...); err != nil {
			return err
		}
	}
	const uplink = 255 // its subnet number
	err := host.Connect(outside,
		host.Port{Name: "eth0", MTU: 1500, Addrs: prefixesOf(fams, in(uplink, 2)...), Via: addrsOf(fams, hostsOf(in(uplink, 1))...)},
		wire, host.Port{Name: OutsideHost, MTU: 1500, Addrs: prefixesOf(fams, in(uplink, 1)...)})
	if err != nil {
		return err
	}
	for i, a := range outsideAddrs() {
		if len(addrsOf(fams, a)) == 0 {
			continue
		}
		if err := outside.AddAddr("lo", netset.Host(a)); err != nil {
			return err
		}
		if err := wire.AddRoute(netset.Host(a), in(uplink, 2)[i].Addr()); err != nil {
			return err
		}
	}
	return nil
}
