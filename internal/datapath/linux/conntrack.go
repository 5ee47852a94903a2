package linux

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/internal/datapath/linux/rtnl"
	"weft/internal/netset"
	"weft/internal/plan"
)

// ForgetFlows ends the tracked flows to host ports that do not end at the ports' pods: those that a change left with
// another translation, or with none. The pod's port is 0 where a host port went away; its address tells the family. Flows to other
// ports, and those that pass through the host, are not touched. It works in the calling thread's network namespace
// and leaves no state of ours; dying half way leaves entries that time out.
func ForgetFlows(ports []plan.HostPort) error {
	mine, err := net.InterfaceAddrs()
	if err != nil {
		return fmt.Errorf("list the host's addresses: %w", err)
	}
	local := map[netip.Addr]bool{}
	for _, a := range mine {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			local[p.Addr().Unmap()] = true
		}
	}
	var errs []error
	for _, f := range netset.Families() {
		m := staleFlows{local: local, pods: map[flowPort][]plan.HostPort{}}
		for _, h := range ports {
			n, ok := map[string]uint8{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}[h.Protocol]
			if !ok {
				errs = append(errs, fmt.Errorf("forget flows to %s: protocol %q is not tcp, udp or sctp", h.String(), h.Protocol))
			} else if netset.Of(h.Pod.Addr()) == f {
				m.pods[flowPort{n, h.Port}] = append(m.pods[flowPort{n, h.Port}], h)
			}
		}
		if len(m.pods) == 0 {
			continue
		}
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.InetFamily(rtnl.AF(f)), m); err != nil {
			errs = append(errs, fmt.Errorf("forget %s flows: %w", f, err))
		}
	}
	return errors.Join(errs...)
}

type flowPort struct {
	protocol uint8
	port     uint16
}

// staleFlows matches flows to host ports whose answers come from elsewhere than the pod.
type staleFlows struct {
	local map[netip.Addr]bool
	pods  map[flowPort][]plan.HostPort
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (m staleFlows) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	hosts := m.pods[flowPort{f.Forward.Protocol, f.Forward.DstPort}]
	if len(hosts) == 0 {
		return false
	}
	to, _ := netip.AddrFromSlice(f.Forward.DstIP)
	from, _ := netip.AddrFromSlice(f.Reverse.SrcIP)
	to, from = to.Unmap(), from.Unmap()
	for _, h := range hosts {
		here := to == h.HostIP
		if !h.HostIP.IsValid() || h.HostIP.IsUnspecified() {
			here = m.local[to] || to.IsLoopback()
		}
		if here && netip.AddrPortFrom(from, f.Reverse.SrcPort) != h.Pod {
			return true
		}
	}
	return false
}
