package testkit

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/netset"
)

// ListenSCTP returns a listener at an address, in the calling thread's network namespace. Its connections are
// one-to-one associations (RFC 6458 §4): streams of messages, of which none can be closed in one direction only.
//
// Both ends must be bound to one address, which DialSCTP does: an end that has more tells the other of
// them, and an association with several addresses does not survive address translation.
func ListenSCTP(at netip.AddrPort) (net.Listener, error) {
	f, err := socketSCTP(at)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := unix.Listen(int(f.Fd()), 16); err != nil {
		return nil, fmt.Errorf("listen at sctp %s: %w", at, err)
	}
	return net.FileListener(f)
}

// DialSCTP connects to an address from the calling thread's network namespace and from the given port, 0: any.
func DialSCTP(port uint16, to netip.AddrPort, within time.Duration) (net.Conn, error) {
	from, err := sourceFor(to)
	if err != nil {
		return nil, err
	}
	f, err := socketSCTP(netip.AddrPortFrom(from, port))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fd := int(f.Fd())
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, sockaddr(to)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return nil, fmt.Errorf("connect to sctp %s: %w", to, err)
	}
	for end := time.Now().Add(within); ; {
		left := time.Until(end)
		if left <= 0 {
			return nil, fmt.Errorf("connect to sctp %s: %w", to, os.ErrDeadlineExceeded)
		}
		ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		if n, err := unix.Poll(ready, int(left.Milliseconds())+1); n > 0 && err == nil {
			break
		}
	}
	no, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && no != 0 {
		err = unix.Errno(no)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to sctp %s: %w", to, err)
	}
	return net.FileConn(f)
}

// socketSCTP makes a socket that is bound.
func socketSCTP(at netip.AddrPort) (*os.File, error) {
	domain := unix.AF_INET
	if netset.Of(at.Addr()) == netset.V6 {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return nil, fmt.Errorf("make an SCTP socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "sctp")
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		f.Close()
		return nil, err
	}
	if err := unix.Bind(fd, sockaddr(at)); err != nil {
		f.Close()
		return nil, fmt.Errorf("bind to sctp %s: %w", at, err)
	}
	return f, nil
}

// sourceFor is the address that the kernel sends from to another one.
func sourceFor(to netip.AddrPort) (netip.Addr, error) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to)) // sends nothing
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if netset.Of(a.Addr()) == netset.V4 {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}
