package trial

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
)

// Connects returns an invariant: somebody accepts TCP connections from this node at the address, "host:port".
func Connects(name, addr string) Invariant {
	return Invariant{name, func(ctx context.Context) error {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		return conn.Close()
	}}
}

// Resolves returns an invariant: somebody answers DNS queries from this node at the address. What the answer is does not matter: whether names
// are right is not the network's affair.
func Resolves(name string, server netip.AddrPort) Invariant {
	return Invariant{name, func(ctx context.Context) error {
		conn, err := new(net.Dialer).DialContext(ctx, "udp", server.String())
		if err != nil {
			return err
		}
		defer conn.Close()
		if deadline, ok := ctx.Deadline(); ok {
			_ = conn.SetDeadline(deadline) // a socket that is open takes one
		}
		q := query()
		if _, err := conn.Write(q); err != nil {
			return fmt.Errorf("query %s: %w", server, err)
		}
		answer := make([]byte, 1500)
		for {
			n, err := conn.Read(answer)
			if err != nil {
				return fmt.Errorf("query %s: %w", server, err)
			}
			if n >= 2 && [2]byte(answer) == [2]byte(q) {
				return nil
			}
		}
	}}
}

// query asks for the name servers of the root (RFC 1035, section 4): whoever is a DNS server has something to say to that.
func query() []byte {
	q := []byte{
		0, 0, // identifier
		1, 0, // recursion desired
		0, 1, 0, 0, 0, 0, 0, 0, // one question
		0,    // the root
		0, 2, // NS
		0, 1, // IN
	}
	_, _ = rand.Read(q[:2]) // never fails
	return q
}
