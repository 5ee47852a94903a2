// Package probe tries whether one end of a network reaches another, from inside a
// network namespace, and holds the responder that such tries are answered by.
//
// It needs no program beside weft and starts none: a probe is sockets opened on a
// thread in the namespace. It knows addresses only; names are the lab's.
package probe

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/host"
	"weft/internal/netset"
)

// Target is what a probe tries to reach.
type Target struct {
	Addr     netip.Addr
	Protocol string // "tcp", "udp", "icmp" or "sctp"
	Port     uint16 // 0 with icmp
}

// String returns "tcp 10.244.1.2:80" or "icmp 10.244.1.2".
func (t Target) String() string {
	if t.Protocol == "icmp" {
		return "icmp " + t.Addr.String()
	}
	return t.Protocol + " " + netip.AddrPortFrom(t.Addr, t.Port).String()
}

// ErrCannot means that the probe could not be made: neither reachable nor not.
var ErrCannot = errors.New("cannot probe")

// ErrNoAnswer means that nothing came back, not even a refusal.
var ErrNoAnswer = errors.New("no answer")

// Try tries once to reach the target from the network namespace at that path. It
// returns how long an answer took and, if a responder answered, what it said. An
// error that is not ErrCannot means unreachable and says how.
func Try(ctx context.Context, netns string, t Target) (time.Duration, *Answer, error) {
	var took time.Duration
	var answer *Answer
	err := host.Within(netns, func() error {
		began := time.Now()
		var err error
		switch t.Protocol {
		case "tcp":
			answer, err = probeTCP(ctx, t, began, &took)
		case "udp":
			answer, err = probeUDP(ctx, t)
		case "icmp":
			err = probeICMP(ctx, t)
		case "sctp":
			err = probeSCTP()
		default:
			err = fmt.Errorf("%w: protocol %q is not tcp, udp, icmp or sctp", ErrCannot, t.Protocol)
		}
		if took == 0 {
			took = time.Since(began)
		}
		return err
	})
	return took, answer, plain(err)
}

// plain words a network error for people.
func plain(err error) error {
	var ne net.Error
	switch {
	case err == nil || errors.Is(err, ErrCannot):
		return err
	case errors.Is(err, unix.ECONNREFUSED):
		return errors.New("refused")
	case errors.Is(err, unix.EHOSTUNREACH):
		return errors.New("no route (host unreachable)")
	case errors.Is(err, unix.ENETUNREACH):
		return errors.New("no route (network unreachable)")
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return errors.New("prohibited")
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &ne) && ne.Timeout():
		return ErrNoAnswer
	}
	return err
}

// probeTCP measures the handshake; what is asked then is for information only.
func probeTCP(ctx context.Context, t Target, began time.Time, took *time.Duration) (*Answer, error) {
	// One literal address: the dialer makes its socket on this thread, in the namespace.
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", netip.AddrPortFrom(t.Addr, t.Port).String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	*took = time.Since(began)
	_ = c.SetDeadline(time.Now().Add(500 * time.Millisecond))
	if _, err := io.WriteString(c, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return nil, nil // it was reached; it need not speak HTTP
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return nil, nil
	}
	defer res.Body.Close()
	a := &Answer{}
	if json.NewDecoder(io.LimitReader(res.Body, 1<<16)).Decode(a) != nil {
		return nil, nil
	}
	return a, nil
}

// probeUDP sends the empty datagram, which a responder answers, and one that any echo
// server returns, three times within ctx.
func probeUDP(ctx context.Context, t Target) (*Answer, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "udp", netip.AddrPortFrom(t.Addr, t.Port).String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(time.Second)
	}
	wait := time.Until(deadline) / 3
	buf := make([]byte, 65536)
	for try := 1; ; try++ {
		for _, msg := range []string{"", "weft-probe"} {
			if _, err := c.Write([]byte(msg)); err != nil {
				return nil, err
			}
		}
		_ = c.SetReadDeadline(time.Now().Add(wait))
		n, err := c.Read(buf)
		if err != nil && try < 3 && errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil {
			return nil, err
		}
		a := &Answer{}
		if json.Unmarshal(buf[:n], a) != nil {
			return nil, nil
		}
		return a, nil
	}
}

// icmpEcho is what differs between the families (RFC 792, RFC 4443).
type icmpEcho struct {
	domain, protocol int
	request, reply   byte
	unreachable      byte
	header           int // bytes of the IP header in what an error quotes
}

func echoOf(f netset.Family) icmpEcho {
	if f == netset.V6 {
		return icmpEcho{unix.AF_INET6, unix.IPPROTO_ICMPV6, 128, 129, 1, 40}
	}
	return icmpEcho{unix.AF_INET, unix.IPPROTO_ICMP, 8, 0, 3, 20}
}

// probeICMP sends an echo request each 200 ms until one is answered or ctx ends.
func probeICMP(ctx context.Context, t Target) error {
	e := echoOf(netset.Of(t.Addr))
	fd, err := unix.Socket(e.domain, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, e.protocol)
	if err != nil {
		return fmt.Errorf("%w: raw socket: %w", ErrCannot, err)
	}
	f := os.NewFile(uintptr(fd), "icmp")
	defer f.Close()
	c, err := net.FilePacketConn(f)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCannot, err)
	}
	defer c.Close()
	msg := make([]byte, 24)
	msg[0] = e.request
	_, _ = rand.Read(msg[4:6]) // identifier; never fails
	_, _ = rand.Read(msg[8:])
	buf := make([]byte, 65536)
	for seq := uint16(1); ctx.Err() == nil; seq++ {
		binary.BigEndian.PutUint16(msg[6:], seq)
		msg[2], msg[3] = 0, 0
		binary.BigEndian.PutUint16(msg[2:], checksum(msg)) // of ICMPv6 the kernel's task, which overwrites it
		if _, err := c.WriteTo(msg, &net.IPAddr{IP: t.Addr.AsSlice()}); err != nil {
			return err
		}
		until := time.Now().Add(200 * time.Millisecond)
		if d, ok := ctx.Deadline(); ok && d.Before(until) {
			until = d
		}
		_ = c.SetReadDeadline(until)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				break
			}
			if isRefusal(buf[:n], e, msg) {
				return unix.EACCES
			}
			if isEchoReply(buf[:n], e, msg) && from.(*net.IPAddr).IP.Equal(t.Addr.AsSlice()) {
				return nil
			}
		}
	}
	return ctx.Err()
}

func isEchoReply(b []byte, e icmpEcho, sent []byte) bool {
	// The net package strips the IPv4 header of what a raw socket reads.
	return len(b) >= len(sent) && b[0] == e.reply && string(b[4:6]) == string(sent[4:6]) && string(b[8:len(sent)]) == string(sent[8:])
}

// isRefusal reports whether an error quotes what was sent, and says that it is not delivered.
func isRefusal(b []byte, e icmpEcho, sent []byte) bool {
	quoted := 8 + e.header
	return len(b) >= quoted+8 && b[0] == e.unreachable && b[quoted] == e.request && string(b[quoted+4:quoted+6]) == string(sent[4:6])
}

// checksum is the Internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

func probeSCTP() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCannot, errNoSCTP(err))
	}
	_ = unix.Close(fd)
	return fmt.Errorf("%w: the prober has no SCTP yet", ErrCannot)
}

// ParseTarget parses "ADDRESS[:PORT][/PROTOCOL]", an IPv6 address with a port in brackets.
func ParseTarget(s string) (Target, error) {
	hostPart, port, proto, err := SplitTarget(s)
	if err != nil {
		return Target{}, err
	}
	a, err := netip.ParseAddr(hostPart)
	if err != nil {
		return Target{}, fmt.Errorf("%q: %w", s, err)
	}
	return NewTarget(a, port, proto)
}

// NewTarget fills in what was not said: icmp without a port, tcp with one.
func NewTarget(a netip.Addr, port uint16, proto string) (Target, error) {
	if proto == "" {
		proto = "tcp"
		if port == 0 {
			proto = "icmp"
		}
	}
	switch {
	case proto == "icmp" && port != 0:
		return Target{}, errors.New("icmp has no port")
	case proto != "icmp" && port == 0:
		return Target{}, fmt.Errorf("%s needs a port", proto)
	}
	return Target{Addr: a, Protocol: proto, Port: port}, nil
}

// SplitTarget splits "NAME[:PORT][/PROTOCOL]"; NAME may have a "namespace/" before it,
// so that only a known protocol is one.
func SplitTarget(s string) (name string, port uint16, proto string, err error) {
	name = s
	if i := strings.LastIndexByte(s, '/'); i >= 0 {
		switch p := strings.ToLower(s[i+1:]); p {
		case "tcp", "udp", "icmp", "sctp":
			name, proto = s[:i], p
		}
	}
	if a, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
		return a.String(), 0, proto, nil
	}
	if i := strings.LastIndexByte(name, ':'); i >= 0 {
		var n int
		if _, err := fmt.Sscanf(name[i+1:]+"\n", "%d\n", &n); err != nil || n < 1 || n > 65535 {
			return "", 0, "", fmt.Errorf("%q: %q is not a port", s, name[i+1:])
		}
		name, port = strings.Trim(name[:i], "[]"), uint16(n)
	}
	if name == "" {
		return "", 0, "", fmt.Errorf("%q: want NAME[:PORT][/PROTOCOL]", s)
	}
	return name, port, proto, nil
}
