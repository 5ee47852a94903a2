package ebpf

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/netset"
)

// Sockets for the tests with real packets.

// serve answers on TCP: it reads to the end of the stream and sends back the sum of what it read.
func serve(t *testing.T, p place, f netset.Family) netip.AddrPort {
	t.Helper()
	var l net.Listener
	within(t, p.netns(), func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(p.addr(f), 0).String())
		return err
	})
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				h := sha256.New()
				_, _ = io.Copy(h, c)
				_, _ = c.Write(h.Sum(nil))
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// dial connects to a socket of a place.
func dial(tb testing.TB, from, dest place, network string, to netip.AddrPort) (c net.Conn, err error) {
	tb.Helper()
	if v, ok := dest.(*through); ok {
		to = v.reachedAt(to)
	}
	from.netns().Do(tb, func() { c, err = (&net.Dialer{Timeout: patience}).Dial(network, to.String()) })
	return c, err
}

// transfer sends size bytes over TCP and checks that the other side received just these.
func transfer(t *testing.T, from, to place, f netset.Family, size int) {
	t.Helper()
	c, err := dial(t, from, to, "tcp", serve(t, to, f))
	if err != nil {
		t.Fatalf("%s: %v\n%s\n%s", f, err, from.dump(), to.dump())
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	h := sha256.New()
	chunk := bytes.Repeat([]byte("weft carries pods "), 4096)
	for left := size; left > 0; left -= len(chunk) {
		chunk = chunk[:min(left, len(chunk))]
		h.Write(chunk)
		if _, err := c.Write(chunk); err != nil {
			t.Fatalf("%s: %v\n%s\n%s", f, err, from.dump(), to.dump())
		}
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, h.Sum(nil)) {
		t.Fatalf("%s: received %x, %v, want %x", f, got, err, h.Sum(nil))
	}
}

// echoes sends UDP datagrams of a size and wants each back.
func echoes(t *testing.T, from, to place, f netset.Family, size, n int) {
	t.Helper()
	if err := udpEcho(t, from, to, f, size, n); err != nil {
		t.Fatalf("%s: %v\n%s\n%s", f, err, from.dump(), to.dump())
	}
}

func udpEcho(tb testing.TB, from, to place, f netset.Family, size, n int) error {
	tb.Helper()
	var pc net.PacketConn
	within(tb, to.netns(), func() (err error) {
		pc, err = net.ListenPacket("udp", netip.AddrPortFrom(to.addr(f), 0).String())
		return err
	})
	defer pc.Close()
	go func() {
		buf := make([]byte, 65536)
		for {
			n, a, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(buf[:n], a)
		}
	}()
	c, err := dial(tb, from, to, "udp", pc.LocalAddr().(*net.UDPAddr).AddrPort())
	if err != nil {
		return err
	}
	defer c.Close()
	buf := make([]byte, 65536)
	for i := range n {
		want := bytes.Repeat([]byte{byte(i), 7}, size/2)
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		if _, err := c.Write(want); err != nil {
			return fmt.Errorf("datagram %d: %w", i, err)
		}
		got, err := c.Read(buf)
		if err != nil {
			return fmt.Errorf("datagram %d: %w", i, err)
		}
		if !bytes.Equal(buf[:got], want) {
			return errors.New("the echo differs")
		}
	}
	return nil
}

// segments sends UDP superpackets (UDP_SEGMENT, as QUIC does) and wants every datagram.
func segments(t *testing.T, from, to place, f netset.Family, size int) {
	t.Helper()
	const each, times = 40, 20
	var pc *net.UDPConn
	within(t, to.netns(), func() (err error) {
		pc, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.addr(f), 0)))
		return err
	})
	defer pc.Close()
	_ = pc.SetReadBuffer(4 << 20)
	c, err := dial(t, from, to, "udp", pc.LocalAddr().(*net.UDPAddr).AddrPort())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	buf := make([]byte, 65536)
	_ = pc.SetDeadline(time.Now().Add(5 * time.Second))
	for round := range times {
		big := make([]byte, each*size)
		for i := range each {
			binary.BigEndian.PutUint32(big[i*size:], uint32(round*each+i))
		}
		if _, err := c.Write(big); err != nil {
			t.Fatalf("%s: send a superpacket: %v", f, err)
		}
		for i := range each {
			n, err := pc.Read(buf)
			if err != nil || n != size || binary.BigEndian.Uint32(buf) != uint32(round*each+i) {
				t.Fatalf("%s: datagram %d of superpacket %d: %d bytes, %v\n%s\n%s", f, i, round, n, err, from.dump(), to.dump())
			}
		}
	}
}

// ping sends one ICMP echo request with a payload and wants the reply.
func ping(t *testing.T, from, to place, f netset.Family, size int) {
	t.Helper()
	from.netns().Sysctl(t, "net/ipv4/ping_group_range", "0 0")
	fd := -1
	within(t, from.netns(), func() (err error) {
		if f == netset.V4 {
			fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP)
		} else {
			fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6)
		}
		return err
	})
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2}); err != nil {
		t.Fatal(err)
	}
	request := append([]byte{8, 0, 0, 0, 0, 1, 0, 1}, bytes.Repeat([]byte{0xa5}, size)...)
	if f == netset.V6 {
		request[0] = 128
	}
	if err := unix.Sendto(fd, request, 0, sockaddr(to.addr(f), 0)); err != nil {
		t.Fatalf("%s: ping: %v", f, err)
	}
	buf := make([]byte, 2048)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil || n != len(request) || !bytes.Equal(buf[8:n], request[8:]) {
		t.Fatalf("%s: ping with %d bytes: %d bytes back, %v\n%s\n%s", f, size, n, err, from.dump(), to.dump())
	}
}

func sockaddr(a netip.Addr, port int) unix.Sockaddr {
	if netset.Of(a) == netset.V4 {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: port}
	}
	return &unix.SockaddrInet6{Addr: a.As16(), Port: port}
}

// discover sends a datagram that makes an IP packet of the size and must not be fragmented, waits for the error that comes back, and
// returns the MTU that the sender has learned from it.
func discover(t *testing.T, from, to place, f netset.Family, size int) int {
	t.Helper()
	level, discoverOpt, do, mtuOpt, header := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO, unix.IP_MTU, 20
	if f == netset.V6 {
		level, discoverOpt, do, mtuOpt, header = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO, unix.IPV6_MTU, 40
	}
	c, err := dial(t, from, to, "udp", netip.AddrPortFrom(to.addr(f), 9))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, discoverOpt, do) })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(make([]byte, size-header-8)); err != nil {
		t.Fatalf("%s: send: %v", f, err)
	}
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.EMSGSIZE) {
		t.Fatalf("%s: waiting for an ICMP error: %v\n%s", f, err, from.dump())
	}
	var mtu int
	_ = raw.Control(func(fd uintptr) { mtu, err = unix.GetsockoptInt(int(fd), level, mtuOpt) })
	if err != nil {
		t.Fatal(err)
	}
	return mtu
}
