package cluster

import (
	"fmt"
	"net/netip"
	"strings"

	"weft/internal/netset"
)

// network is the use of an address range.
type network int

const (
	wire     network = iota // between the hosts
	pods                    // of the whole cluster
	services                //
	outside                 // beyond the gateway
)

// prefix is the address plan.
func prefix(n network, f netset.Family) netip.Prefix {
	plan := map[network][2]string{
		wire:     {"172.30.0.0/24", "fd00:172:30::/64"},
		pods:     {"10.244.0.0/16", "fd00:10:244::/56"},
		services: {"10.96.0.0/16", "fd00:10:96::/112"},
		outside:  {"192.0.2.0/24", "2001:db8::/64"},
	}
	i := 0
	if f == netset.V6 {
		i = 1
	}
	return netip.MustParsePrefix(plan[n][i])
}

// prefixes joins the ranges of the cluster's families with commas, as Kubernetes' flags want them.
func (c *Cluster) prefixes(n network) string {
	var s []string
	for _, f := range c.Families {
		s = append(s, prefix(n, f).String())
	}
	return strings.Join(s, ",")
}

// Address is a host's address of a family on the wire.
func Address(hostName string, f netset.Family) netip.Addr {
	n := uint64(1) // World
	if hostName == ControlPlane {
		n = 10
	} else if _, err := fmt.Sscanf(hostName, "n%d", &n); err == nil {
		n += 10
	}
	return netset.Nth(prefix(wire, f), n)
}

// addresses joins a host's addresses with commas.
func (c *Cluster) addresses(hostName string) string {
	var s []string
	for _, f := range c.Families {
		s = append(s, Address(hostName, f).String())
	}
	return strings.Join(s, ",")
}

// Outside is an address beyond the nodes' gateway, which answers HTTP on port 80.
func Outside(f netset.Family) netip.Addr { return netset.Nth(prefix(outside, f), 1) }

// apiServer is the API server's URL as nodes and pods see it.
func (c *Cluster) apiServer() string {
	return "https://" + netip.AddrPortFrom(Address(ControlPlane, c.Families[0]), apiPort).String()
}

const apiPort = 6443

// dnsService is the cluster's DNS service address of a family.
func dnsService(f netset.Family) netip.Addr { return netset.Nth(prefix(services, f), 10) }
