package mesh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/netset"
)

// socket is the one UDP socket, for both families where the host has both. Its datagrams are
// never fragmented and ignore the kernel's own idea of a path's MTU (PMTUDISC_PROBE).
type socket struct {
	*net.UDPConn
	domain int
	source map[netset.Family][]byte // control message that sets the source address; absent: the kernel chooses
}

// listen opens the socket on every address of the host: addresses come and go.
func listen(port uint16) (*socket, error) {
	s := &socket{}
	var optErr error
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		err := c.Control(func(fd uintptr) { optErr = s.setOptions(int(fd)) })
		return errors.Join(err, optErr)
	}}
	pc, err := lc.ListenPacket(context.Background(), "udp", fmt.Sprintf(":%d", port))
	if err != nil {
		return nil, fmt.Errorf("listen on UDP port %d for path MTU probes: %w", port, err)
	}
	s.UDPConn = pc.(*net.UDPConn)
	return s, nil
}

func (s *socket) setOptions(fd int) (err error) {
	if s.domain, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil {
		return err
	}
	if err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE); err != nil {
		return err
	}
	if s.domain != unix.AF_INET6 {
		return nil
	}
	return errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1),
	)
}

// setSource makes the first address of each family the source: it is the one that peers know.
func (s *socket) setSource(own []netip.Addr) {
	s.source = map[netset.Family][]byte{}
	for _, f := range netset.Families() {
		a := netset.First(own, f)
		switch {
		case !a.IsValid():
		case s.domain == unix.AF_INET6:
			s.source[f] = unix.PktInfo6(&unix.Inet6Pktinfo{Addr: a.As16()})
		case f == netset.V4:
			s.source[f] = unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: a.As4()})
		}
	}
}

// send sends one datagram. If the own address is on no device now then the kernel chooses one.
func (s *socket) send(b []byte, to netip.AddrPort) error {
	oob := s.source[netset.Of(to.Addr())]
	_, _, err := s.WriteMsgUDPAddrPort(b, oob, to)
	if oob != nil && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EADDRNOTAVAIL)) {
		_, _, err = s.WriteMsgUDPAddrPort(b, nil, to)
	}
	return err
}

// receive waits for one datagram; a longer one than b is cut.
func (s *socket) receive(b []byte) (int, netip.AddrPort, error) {
	return s.ReadFromUDPAddrPort(b)
}

// wakeAt ends a coming receive at t with os.ErrDeadlineExceeded.
func (s *socket) wakeAt(t time.Time) { _ = s.SetReadDeadline(t) }

// interrupt ends a receive now.
func (s *socket) interrupt() { s.wakeAt(time.Unix(1, 0)) }
