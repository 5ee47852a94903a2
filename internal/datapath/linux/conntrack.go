package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
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
		if err := endFlows(f, m.match); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// endFlows deletes the tracked flows of a family that match.
func endFlows(f netset.Family, match func(flow) bool) error {
	all, err := conntrack(f, nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP, nil)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // then some may be missing
		return fmt.Errorf("list %s flows: %w", f, err)
	}
	errs := []error{err}
	for _, msg := range all {
		if len(msg) < nl.SizeofNfgenmsg || !match(parseFlow(msg[nl.SizeofNfgenmsg:])) {
			continue
		}
		// Named by all that the kernel told of it, which includes its number: another flow of the same ends stays.
		_, err := conntrack(f, nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK, msg[nl.SizeofNfgenmsg:])
		if err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("end a %s flow: %w", f, err))
		}
	}
	return errors.Join(errs...)
}

// conntrack makes one request about tracked flows and returns the messages of the answer.
func conntrack(f netset.Family, operation, flags int, attrs []byte) ([][]byte, error) {
	req := nl.NewNetlinkRequest(int(netlink.ConntrackTable)<<8|operation, flags)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: rtnl.AF(f), Version: nl.NFNETLINK_V0})
	if len(attrs) > 0 {
		req.AddRawData(attrs)
	}
	return req.Execute(unix.NETLINK_NETFILTER, 0)
}

// flow is a tracked flow as far as it matters: where its first packet went, and where the answers come from. The
// library's own has ports for TCP and UDP only.
type flow struct {
	protocol uint8
	to, from netip.AddrPort
}

// parseFlow reads the attributes of a message (linux/netfilter/nfnetlink_conntrack.h).
func parseFlow(b []byte) (f flow) {
	for typ, tuple := range rtnl.Attrs(b) {
		switch typ {
		case nl.CTA_TUPLE_ORIG:
			f.protocol, _, f.to = parseTuple(tuple)
		case nl.CTA_TUPLE_REPLY:
			_, f.from, _ = parseTuple(tuple)
		}
	}
	return f
}

func parseTuple(b []byte) (protocol uint8, src, dst netip.AddrPort) {
	var from, to netip.Addr
	var sport, dport uint16
	for typ, part := range rtnl.Attrs(b) {
		for inner, v := range rtnl.Attrs(part) {
			switch {
			case typ == nl.CTA_TUPLE_IP && (inner == nl.CTA_IP_V4_SRC || inner == nl.CTA_IP_V6_SRC):
				from = rtnl.Addr(v)
			case typ == nl.CTA_TUPLE_IP && (inner == nl.CTA_IP_V4_DST || inner == nl.CTA_IP_V6_DST):
				to = rtnl.Addr(v)
			case typ == nl.CTA_TUPLE_PROTO && inner == nl.CTA_PROTO_NUM && len(v) == 1:
				protocol = v[0]
			case typ == nl.CTA_TUPLE_PROTO && inner == nl.CTA_PROTO_SRC_PORT && len(v) == 2:
				sport = binary.BigEndian.Uint16(v)
			case typ == nl.CTA_TUPLE_PROTO && inner == nl.CTA_PROTO_DST_PORT && len(v) == 2:
				dport = binary.BigEndian.Uint16(v)
			}
		}
	}
	return protocol, netip.AddrPortFrom(from, sport), netip.AddrPortFrom(to, dport)
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

func (m staleFlows) match(f flow) bool {
	to := f.to.Addr()
	for _, h := range m.pods[flowPort{f.protocol, f.to.Port()}] {
		here := to == h.HostIP
		if !h.HostIP.IsValid() || h.HostIP.IsUnspecified() {
			here = m.local[to] || to.IsLoopback()
		}
		if here && f.from != h.Pod {
			return true
		}
	}
	return false
}
