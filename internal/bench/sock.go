package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/internal/netset"
)

// socket is one raw blocking socket. Its hot-path methods use RawSyscall: the runtime does not
// see them block, so it neither moves the thread nor takes its processor away. Every such
// call ends within tick, with EAGAIN, which is what lets the runtime interrupt it.
type socket struct{ fd int }

// sockaddr is an address as the kernel takes it, ready for raw calls.
type sockaddr struct {
	raw  [unix.SizeofSockaddrInet6]byte
	size uint32
}

// rawAddr encodes ap (sockaddr_in, sockaddr_in6 of ip(7) and ipv6(7)).
func rawAddr(ap netip.AddrPort) *sockaddr {
	var s sockaddr
	ip := ap.Addr().Unmap()
	binary.BigEndian.PutUint16(s.raw[2:], ap.Port())
	if netset.Of(ip) == netset.V4 {
		binary.NativeEndian.PutUint16(s.raw[:], unix.AF_INET)
		copy(s.raw[4:], ip.AsSlice())
		s.size = unix.SizeofSockaddrInet4
		return &s
	}
	binary.NativeEndian.PutUint16(s.raw[:], unix.AF_INET6)
	copy(s.raw[8:], ip.AsSlice())
	binary.NativeEndian.PutUint32(s.raw[24:], zoneIndex(ip))
	s.size = unix.SizeofSockaddrInet6
	return &s
}

// zoneIndex is the interface index of a link-local address's zone, 0 without one.
func zoneIndex(ip netip.Addr) uint32 {
	if n, err := strconv.Atoi(ip.Zone()); err == nil {
		return uint32(n)
	}
	if ifi, err := net.InterfaceByName(ip.Zone()); err == nil {
		return uint32(ifi.Index)
	}
	return 0
}

// domain is the socket domain of ap.
func domain(ap netip.AddrPort) int {
	if netset.Of(ap.Addr()) == netset.V4 {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// open makes a socket (kind SOCK_STREAM or SOCK_DGRAM) with the spec's buffers and the time limit of tick.
func open(ap netip.AddrPort, kind int, spec *Spec) (socket, error) {
	fd, err := unix.Socket(domain(ap), kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return socket{}, fmt.Errorf("socket: %w", err)
	}
	s := socket{fd}
	if err := s.setup(kind, spec); err != nil {
		s.close()
		return socket{}, err
	}
	return s, nil
}

func (s socket) setup(kind int, spec *Spec) error {
	wait := unix.NsecToTimeval(tick.Nanoseconds())
	for _, o := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, o, &wait); err != nil {
			return fmt.Errorf("socket timeout: %w", err)
		}
	}
	if spec.Buffer > 0 {
		for force, plain := range map[int]int{unix.SO_SNDBUFFORCE: unix.SO_SNDBUF, unix.SO_RCVBUFFORCE: unix.SO_RCVBUF} {
			if unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, force, spec.Buffer) == nil {
				continue // as root; otherwise rmem_max and wmem_max cap it
			}
			if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, plain, spec.Buffer); err != nil {
				return fmt.Errorf("socket buffer of %d bytes: %w", spec.Buffer, err)
			}
		}
	}
	if kind != unix.SOCK_STREAM {
		return nil
	}
	if spec.Congestion != "" { // may be refused: the result says what was used
		_ = unix.SetsockoptString(s.fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, spec.Congestion)
	}
	return unix.SetsockoptInt(s.fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
}

// congestion is the congestion control in use, "" if the socket has none.
func (s socket) congestion() string {
	v, err := unix.GetsockoptString(s.fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	if err != nil {
		return ""
	}
	return v
}

// reset makes close send a RST, which leaves neither side in TIME_WAIT.
func (s socket) reset() error {
	return unix.SetsockoptLinger(s.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
}

func (s socket) close() { _, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(s.fd), 0, 0) }

// bind binds and, for TCP, listens.
func (s socket) bind(ap netip.AddrPort, kind int) error {
	if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	a := rawAddr(ap)
	_, _, e := unix.Syscall(unix.SYS_BIND, uintptr(s.fd), uintptr(unsafe.Pointer(&a.raw[0])), uintptr(a.size))
	if e != 0 {
		return fmt.Errorf("bind %s: %w", ap, e)
	}
	if kind == unix.SOCK_STREAM {
		return unix.Listen(s.fd, 4096)
	}
	return nil
}

// connect is connect(2); a connection that is under way when the time limit strikes is waited for.
func (s socket) connect(a *sockaddr, until time.Time) error {
	for {
		_, _, e := unix.RawSyscall(unix.SYS_CONNECT, uintptr(s.fd), uintptr(unsafe.Pointer(&a.raw[0])), uintptr(a.size))
		switch {
		case e == 0 || e == unix.EISCONN:
			return nil
		case retry(e) && time.Now().Before(until):
		case retry(e):
			return unix.ETIMEDOUT
		default:
			return e
		}
	}
}

// accept takes one connection; EAGAIN after tick.
func (s socket) accept() (socket, unix.Errno) {
	fd, _, e := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(s.fd), 0, 0, unix.SOCK_CLOEXEC, 0, 0)
	return socket{int(fd)}, e
}

// read and write are the system calls.
func (s socket) read(b []byte) (int, unix.Errno) {
	n, _, e := unix.RawSyscall(unix.SYS_READ, uintptr(s.fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return int(n), e
}

func (s socket) write(b []byte) (int, unix.Errno) {
	n, _, e := unix.RawSyscall(unix.SYS_WRITE, uintptr(s.fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return int(n), e
}

// receive and reply are recvfrom and sendto: the peer's address is kept in from.
func (s socket) receive(b []byte, from *sockaddr) (int, unix.Errno) {
	from.size = uint32(len(from.raw))
	n, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(s.fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0,
		uintptr(unsafe.Pointer(&from.raw[0])), uintptr(unsafe.Pointer(&from.size)))
	return int(n), e
}

func (s socket) reply(b []byte, to *sockaddr) unix.Errno {
	_, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(s.fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0,
		uintptr(unsafe.Pointer(&to.raw[0])), uintptr(to.size))
	return e
}

// retry says that the call did nothing and may be made again: a time limit or a signal.
func retry(e unix.Errno) bool {
	return e == unix.EAGAIN || e == unix.EINTR || e == unix.EINPROGRESS || e == unix.EALREADY
}

var errClosed = errors.New("the other side closed the connection")

// readFull reads len(b) bytes. It gives up with ETIMEDOUT when nothing came for stall.
func (s socket) readFull(b []byte) error {
	var since time.Time
	for len(b) > 0 {
		n, e := s.read(b)
		switch {
		case e == 0 && n == 0:
			return errClosed
		case e == 0:
			b, since = b[n:], time.Time{}
		case !retry(e):
			return e
		case since.IsZero():
			since = time.Now()
		case time.Since(since) > stall:
			return unix.ETIMEDOUT
		}
	}
	return nil
}

// writeFull writes all of b, with the same patience.
func (s socket) writeFull(b []byte) error {
	var since time.Time
	for len(b) > 0 {
		n, e := s.write(b)
		switch {
		case e == 0:
			b, since = b[n:], time.Time{}
		case !retry(e):
			return e
		case since.IsZero():
			since = time.Now()
		case time.Since(since) > stall:
			return unix.ETIMEDOUT
		}
	}
	return nil
}
