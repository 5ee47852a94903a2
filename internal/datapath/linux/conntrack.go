package linux

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/internal/netset"
)

// ForgetFlows ends the host's connection tracking entries of translated flows toward a pod: those whose
// destination was something else and whose answers come from the pod. protocol is "tcp", "udp" or "sctp". It leaves
// no state of ours; dying half way leaves entries that time out.
func ForgetFlows(protocol string, pod netip.Addr) error {
	n, ok := map[string]uint8{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}[protocol]
	if !ok {
		return fmt.Errorf("forget flows to %s: protocol %q is not tcp, udp or sctp", pod, protocol)
	}
	family := netlink.InetFamily(unix.AF_INET)
	if netset.Of(pod) != netset.V4 {
		family = unix.AF_INET6
	}
	if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, translatedTo{n, pod}); err != nil {
		return fmt.Errorf("forget %s flows to %s: %w", protocol, pod, err)
	}
	return nil
}

// translatedTo matches flows of a protocol that were translated to a pod.
type translatedTo struct {
	protocol uint8
	pod      netip.Addr
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (m translatedTo) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	from, _ := netip.AddrFromSlice(f.Reverse.SrcIP)
	to, _ := netip.AddrFromSlice(f.Forward.DstIP)
	return f.Forward.Protocol == m.protocol && from.Unmap() == m.pod && to.Unmap() != m.pod
}
