// Command agnhost is the agnhost of the suites' images. On a kernel without SCTP it does itself what the suites ask of agnhost with
// SCTP: it sends an INIT from a raw socket, and answers one with an INIT ACK. On the wire these are the packets that a kernel sends
// first, so that policy, services and connection tracking can be tested with them. All else is the real agnhost's, which takes over.
//
//	agnhost porter                                        with SERVE_SCTP_PORT_<n> in the environment
//	agnhost connect HOST:PORT --protocol=sctp --timeout=T  prints TIMEOUT or OTHER, as the suites expect
package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

// program is the real agnhost.
const program = "/usr/bin/agnhost"

// protocol is SCTP's number in IP.
const protocol = 132

func main() {
	args := os.Args[1:]
	switch {
	case len(args) > 1 && args[0] == "connect" && slices.Contains(args, "--protocol=sctp") && !kernel():
		if err := connect(args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case len(args) == 1 && args[0] == "porter" && len(ports()) > 0 && !kernel():
		fail, err := serve(ports())
		if err == nil {
			err = <-fail
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	default:
		err := syscall.Exec(program, os.Args, os.Environ())
		fmt.Fprintf(os.Stderr, "execute %s: %v\n", program, err)
		os.Exit(1)
	}
}

// kernel says that the kernel has SCTP.
func kernel() bool {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, protocol)
	if err != nil {
		return false
	}
	_ = syscall.Close(fd)
	return true
}

// ports are those that the environment asks for.
func ports() map[uint16]bool {
	out := map[uint16]bool{}
	for _, v := range os.Environ() {
		var port uint16
		if _, err := fmt.Sscanf(v, "SERVE_SCTP_PORT_%d=", &port); err == nil {
			out[port] = true
		}
	}
	return out
}

// Types of chunks.
const (
	initiate    = 1
	acknowledge = 2
)

// packet is a packet with one chunk: from port, to port, with the tag that the receiver wants, and this side's own tag.
func packet(from, to uint16, tag uint32, chunk byte, own uint32) []byte {
	p := binary.BigEndian.AppendUint16(nil, from)
	p = binary.BigEndian.AppendUint16(p, to)
	p = binary.BigEndian.AppendUint32(p, tag)
	p = binary.BigEndian.AppendUint32(p, 0) // checksum
	body := binary.BigEndian.AppendUint32(nil, own)
	body = binary.BigEndian.AppendUint32(body, 1<<16) // window
	body = append(body, 0, 1, 0, 1)                   // streams out and in
	body = binary.BigEndian.AppendUint32(body, own)   // first sequence number
	if chunk == acknowledge {
		body = append(body, 0, 7, 0, 8, 'w', 'e', 'f', 't') // the cookie
	}
	p = append(p, chunk, 0, 0, byte(4+len(body)))
	p = append(p, body...)
	binary.LittleEndian.PutUint32(p[8:], crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)))
	return p
}

// read takes a packet apart; ok is false if it is not of the wanted kind.
func read(p []byte, chunk byte) (from, to uint16, tag, own uint32, ok bool) {
	if len(p) < 32 || p[12] != chunk {
		return 0, 0, 0, 0, false
	}
	be := binary.BigEndian
	return be.Uint16(p), be.Uint16(p[2:]), be.Uint32(p[4:]), be.Uint32(p[16:]), true
}

// connect succeeds when a server acknowledges.
func connect(args []string) error {
	var timeout time.Duration
	var dest string
	for _, a := range args {
		if v, ok := strings.CutPrefix(a, "--timeout="); ok {
			timeout, _ = time.ParseDuration(v) // 0 as agnhost's own
		} else if !strings.HasPrefix(a, "-") {
			dest = a
		}
	}
	addr, err := net.ResolveTCPAddr("tcp", dest)
	if err != nil {
		return fmt.Errorf("DNS: %w", err)
	}
	conn, err := net.DialIP(network(addr.IP), nil, &net.IPAddr{IP: addr.IP})
	if err != nil {
		return fmt.Errorf("OTHER: %w", err)
	}
	defer conn.Close()
	from, own := uint16(32768+rand.IntN(28000)), rand.Uint32()|1
	end := time.Now().Add(timeout)
	buf := make([]byte, 2048)
	for time.Now().Before(end) {
		if _, err := conn.Write(packet(from, uint16(addr.Port), 0, initiate, own)); err != nil {
			return fmt.Errorf("OTHER: %w", err)
		}
		next := time.Now().Add(time.Second)
		if next.After(end) {
			next = end
		}
		_ = conn.SetReadDeadline(next)
		for {
			n, _, err := conn.ReadFromIP(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return fmt.Errorf("OTHER: %w", err)
			}
			if peer, to, tag, _, ok := read(buf[:n], acknowledge); ok && peer == uint16(addr.Port) && to == from && tag == own {
				return nil
			}
		}
	}
	return errors.New("TIMEOUT")
}

// serve answers on the ports, in both families. The channel has the error that ends it.
func serve(ports map[uint16]bool) (<-chan error, error) {
	fail := make(chan error, 2)
	for _, on := range []net.IP{net.IPv4zero, net.IPv6zero} {
		conn, err := net.ListenIP(network(on), &net.IPAddr{IP: on})
		if err != nil {
			return nil, err
		}
		go func() { fail <- answer(conn, ports) }()
	}
	return fail, nil
}

func answer(conn *net.IPConn, ports map[uint16]bool) error {
	defer conn.Close()
	buf := make([]byte, 2048)
	for {
		n, peer, err := conn.ReadFromIP(buf)
		if err != nil {
			return err
		}
		if from, to, tag, theirs, ok := read(buf[:n], initiate); ok && tag == 0 && ports[to] {
			_, _ = conn.WriteToIP(packet(to, from, theirs, acknowledge, rand.Uint32()|1), peer)
		}
	}
}

func network(a net.IP) string {
	if a.To4() != nil {
		return fmt.Sprintf("ip4:%d", protocol)
	}
	return fmt.Sprintf("ip6:%d", protocol)
}
