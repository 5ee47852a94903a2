package ebpf

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"weft/internal/netset"
)

// serve answers on TCP: it reads to the end of the stream and sends back the sum of what it read.
func serve(t *testing.T, p *pod, f netset.Family) netip.AddrPort {
	t.Helper()
	var l net.Listener
	within(t, p.ns, func() (err error) {
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

func dial(from *pod, network string, to netip.AddrPort) (c net.Conn, err error) {
	from.ns.Do(from.node.t, func() { c, err = (&net.Dialer{Timeout: 3 * time.Second}).Dial(network, to.String()) })
	return c, err
}

// transfer sends size bytes over TCP and checks that the other side received just these.
func transfer(t *testing.T, from, to *pod, f netset.Family, size int) {
	t.Helper()
	c, err := dial(from, "tcp", serve(t, to, f))
	if err != nil {
		t.Fatalf("%s: %v\n%s\n%s", f, err, from.node.dump(), to.node.dump())
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	h := sha256.New()
	chunk := bytes.Repeat([]byte("weft carries pods "), 4096)
	for left := size; left > 0; left -= len(chunk) {
		chunk = chunk[:min(left, len(chunk))]
		h.Write(chunk)
		if _, err := c.Write(chunk); err != nil {
			t.Fatalf("%s: %v\n%s\n%s", f, err, from.node.dump(), to.node.dump())
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
func echoes(t *testing.T, from, to *pod, f netset.Family, size, n int) {
	t.Helper()
	if err := udpEcho(t, from, to, f, size, n); err != nil {
		t.Fatalf("%s: %v\n%s\n%s", f, err, from.node.dump(), to.node.dump())
	}
}

func udpEcho(t *testing.T, from, to *pod, f netset.Family, size, n int) error {
	t.Helper()
	var pc net.PacketConn
	within(t, to.ns, func() (err error) {
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
	c, err := dial(from, "udp", pc.LocalAddr().(*net.UDPAddr).AddrPort())
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

// talk exercises a pair of pods in both directions and families.
func talk(t *testing.T, a, b *pod) {
	t.Helper()
	for _, f := range netset.Families() {
		transfer(t, a, b, f, 8<<20)
		transfer(t, b, a, f, 1<<20)
		echoes(t, a, b, f, 64, 20)
		echoes(t, b, a, f, 8000, 5) // fragmented by the sender
	}
}

func TestSameNode(t *testing.T) {
	n, _ := network(t, 1500)
	a, b := n.addPod(1500), n.addPod(1500)
	n.want(n.settings())
	n.apply()
	talk(t, a, b)
	st := n.driver.Stats()
	if st["stack"] != 0 || st["local"] < 100 {
		t.Errorf("packets between pods of one node left the fast path: %v", st)
	}
}

func TestDirect(t *testing.T) {
	a, b := network(t, 1500)
	p, q := a.addPod(1500), b.addPod(1500)
	a.reach(b, netset.V4, false, 1500)
	b.reach(a, netset.V4, false, 1500)
	a.apply()
	b.apply()
	talk(t, p, q)
	if st := a.driver.Stats(); st["stack"] != 0 || st["direct"] < 100 {
		t.Errorf("packets to another node left the fast path: %v", st)
	}
}

func TestTunnel(t *testing.T) {
	for _, outer := range netset.Families() {
		t.Run("over"+outer.String(), func(t *testing.T) {
			a, b := network(t, 1500)
			mtu := 1450
			if outer == netset.V6 {
				mtu = 1430
			}
			p, q := a.addPod(mtu), b.addPod(mtu)
			a.overlay(mtu)
			b.overlay(mtu)
			a.reach(b, outer, true, mtu)
			b.reach(a, outer, true, mtu)
			a.apply()
			b.apply()
			talk(t, p, q)
			if st := a.driver.Stats(); st["stack"] != 0 || st["tunnel"] < 100 || st["tunnel_device"] > 0 {
				t.Errorf("packets to another node left the fast path: %v", st)
			}
		})
	}
}
