package ebpf

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/netset"
	"weft/internal/testkit"
)

// SCTP differs from the others in two things: its checksum is a CRC32c over the packet and no sum that can be mended, and its
// superpackets are lists of packets (gso_size is GSO_BY_FRAGS).

// associate sends size bytes over SCTP and checks that the other side received just these.
func associate(t *testing.T, from, to place, f netset.Family, size int) {
	t.Helper()
	var l net.Listener
	within(t, to.netns(), func() (err error) {
		l, err = testkit.ListenSCTP(netip.AddrPortFrom(to.addr(f), 0))
		return err
	})
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		h := sha256.New()
		_, _ = io.CopyN(h, c, int64(size))
		_, _ = c.Write(h.Sum(nil))
	}()
	c, err := dialSCTP(t, from, 0, l.Addr().(*net.TCPAddr).AddrPort())
	if err != nil {
		t.Fatalf("%s: %v\n%s\n%s", f, err, from.dump(), to.dump())
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	h := sha256.New()
	message := bytes.Repeat([]byte("weft carries pods "), 2048)
	for left := size; left > 0; left -= len(message) {
		message = message[:min(left, len(message))]
		h.Write(message)
		if _, err := c.Write(message); err != nil {
			t.Fatalf("%s: %v\n%s\n%s", f, err, from.dump(), to.dump())
		}
	}
	got := make([]byte, sha256.Size)
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, h.Sum(nil)) {
		t.Fatalf("%s: received %x, %v, want %x\n%s\n%s", f, got, err, h.Sum(nil), from.dump(), to.dump())
	}
}

func dialSCTP(tb testing.TB, from place, port uint16, to netip.AddrPort) (c net.Conn, err error) {
	tb.Helper()
	from.netns().Do(tb, func() { c, err = testkit.DialSCTP(port, to, patience) })
	return c, err
}

// TestSCTP: pods of one node, of two nodes, and pods and nodes.
func TestSCTP(t *testing.T) {
	testkit.RequireSCTP(t)
	both := func(t *testing.T, a, b place) {
		t.Helper()
		for _, f := range netset.Families() {
			associate(t, a, b, f, 512<<10)
			associate(t, b, a, f, 128<<10)
		}
	}
	for name, with := range modes() {
		t.Run(name+"/sameNode", func(t *testing.T) {
			n, _ := network(t, 1500, with...)
			a, b := n.addPod(1500), n.addPod(1500)
			n.want(n.settings())
			n.apply()
			both(t, a, b)
			n.counted(t, "local", 100)
			n.never(t, "stack", "stack_mtu", "drop_spoof", "drop_not_ip")
			both(t, a, n)
		})
		for _, w := range ways() {
			t.Run(name+"/"+w.name, func(t *testing.T) {
				a, b := network(t, 1500, with...)
				p, q := w.join(a, b)
				both(t, p, q)
				for _, n := range []*node{a, b} {
					n.counted(t, w.counter(), 20)
					n.counted(t, "local", 100)
					n.never(t, "stack", "stack_mtu", "drop_spoof", "drop_not_ip")
				}
				if name == "tcx" {
					both(t, p, b)
					both(t, a, q)
				}
			})
		}
	}
}

// TestSCTPWire: every SCTP packet between nodes bears its checksum where no device below can make it, whatever header was
// pushed before it and whoever cut it out of a superpacket; and pods take these for right.
func TestSCTPWire(t *testing.T) {
	testkit.RequireSCTP(t)
	for _, w := range ways() {
		t.Run(w.name, func(t *testing.T) { testSCTPWire(t, network, w) })
	}
	t.Run("tagged", func(t *testing.T) {
		testkit.RequireVLAN(t)
		for _, w := range ways() {
			t.Run(w.name, func(t *testing.T) { testSCTPWire(t, tagged, w) })
		}
	})
}

func testSCTPWire(t *testing.T, join func(testing.TB, int, ...setup) (*node, *node), w way) {
	t.Helper()
	a, b := join(t, 1500)
	plainCards(t, a, b)
	if out := a.ns.Run(t, "ethtool", "-k", uplink); !strings.Contains(out, "tx-checksum-sctp: off") {
		t.Fatalf("%s still leaves SCTP's checksum to the other end:\n%s", uplink, out)
	}
	p, q := w.join(a, b)
	frames := capture(t, b.ns, uplink)
	for _, f := range netset.Families() {
		associate(t, p, q, f, 256<<10)
		associate(t, q, p, f, 128<<10)
	}
	seen, wrong, long := 0, 0, 0
	for _, frame := range frames() {
		if packet := carried(frame); packet != nil {
			seen++
			if !sumOK(packet) {
				wrong++
			}
			if len(frame) > 1518 {
				long++
			}
		}
	}
	if seen < 500 || wrong+long > 0 {
		t.Errorf("of %d SCTP packets %d have a wrong checksum, %d are too long", seen, wrong, long)
	}
	for _, x := range []*pod{p, q} {
		if bad, all := x.sctp(t, "SctpChecksumErrors"), x.sctp(t, "SctpInSCTPPacks"); bad > 0 || all < 100 {
			t.Errorf("of %d packets the pod on node %d saw %d with a wrong checksum", all, x.node.id, bad)
		}
	}
	a.never(t, "stack", "stack_mtu")
	b.never(t, "stack", "stack_mtu")
}

// sctp reads a counter of SCTP.
func (p *pod) sctp(t *testing.T, name string) int {
	t.Helper()
	for line := range strings.Lines(p.ns.Run(t, "cat", "/proc/net/sctp/snmp")) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == name {
			v, _ := strconv.Atoi(f[1])
			return v
		}
	}
	t.Fatalf("no counter %s", name)
	return 0
}

// capture copies every frame that a device receives or sends. What it returns gives those until it is called.
func capture(t *testing.T, ns *testkit.Netns, dev string) func() [][]byte {
	t.Helper()
	fd := -1
	within(t, ns, func() (err error) {
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		i, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: bigEndian(unix.ETH_P_ALL), Ifindex: i.Index}))
	})
	t.Cleanup(func() { _ = unix.Close(fd) })
	return func() (out [][]byte) {
		buf := make([]byte, 1<<16)
		for {
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				return out
			}
			out = append(out, bytes.Clone(buf[:n]))
		}
	}
}

// carried returns the SCTP packet that a frame carries, in VXLAN or not; nil if there is none.
func carried(frame []byte) []byte {
	for len(frame) > 18 {
		ip := frame[14:]
		if binary.BigEndian.Uint16(frame[12:]) == unix.ETH_P_8021Q {
			ip = frame[18:]
		}
		var proto byte
		var from, to int
		switch {
		case len(ip) > 20 && ip[0]>>4 == 4:
			proto, from, to = ip[9], 20, int(binary.BigEndian.Uint16(ip[2:]))
		case len(ip) > 40 && ip[0]>>4 == 6:
			proto, from, to = ip[6], 40, 40+int(binary.BigEndian.Uint16(ip[4:]))
		}
		if to > len(ip) || to-from < 16 {
			return nil
		}
		body := ip[from:to]
		switch {
		case proto == unix.IPPROTO_SCTP:
			return body
		case proto != unix.IPPROTO_UDP || binary.BigEndian.Uint16(body[2:]) != vxlanPort:
			return nil
		}
		frame = body[16:]
	}
	return nil
}

// sumOK compares a packet's checksum with its CRC32c (RFC 9260 appendix A), which is in the order of a little-endian number.
func sumOK(packet []byte) bool {
	p := bytes.Clone(packet)
	clear(p[8:12])
	return crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)) == binary.LittleEndian.Uint32(packet[8:])
}

// TestSCTPPathMTU: the path to the peer is narrower than the devices on both ends. Nothing larger is sent: not in
// superpackets either, of which only the stack knows the largest part.
func TestSCTPPathMTU(t *testing.T) {
	testkit.RequireSCTP(t)
	const mtu = 1350
	a, b := network(t, 1500)
	plainCards(t, a, b)
	p, q := a.addPod(1450), b.addPod(1450)
	for _, n := range []*node{a, b} {
		n.overlay(1450)
	}
	a.reach(b, netset.V4, true, mtu)
	b.reach(a, netset.V4, true, mtu)
	a.apply()
	b.apply()
	frames := capture(t, b.ns, uplink)
	for _, f := range netset.Families() {
		associate(t, p, q, f, 256<<10)
		associate(t, q, p, f, 128<<10)
	}
	seen := 0
	for _, frame := range frames() {
		if carried(frame) == nil {
			continue
		}
		if seen++; len(frame) > mtu+50+14 {
			t.Errorf("a packet of %d bytes was sent", len(frame)-50-14)
		}
	}
	if seen < 500 {
		t.Errorf("%d SCTP packets were sent", seen)
	}
	a.counted(t, "stack_mtu", 1)
	a.counted(t, "tunnel", 100)
}

// greet answers each association with a line, on a pod's port 80.
func greet(t *testing.T, p *pod) {
	t.Helper()
	for _, f := range netset.Families() {
		var l net.Listener
		within(t, p.ns, func() (err error) {
			l, err = testkit.ListenSCTP(netip.AddrPortFrom(p.addr(f), 80))
			return err
		})
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, "hello\n")
				_ = c.Close()
			}
		}()
	}
}

// greeting reads the line.
func greeting(t *testing.T, from place, port uint16, to netip.AddrPort) error {
	t.Helper()
	c, err := dialSCTP(t, from, port, to)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	line, err := io.ReadAll(c)
	if err == nil && string(line) != "hello\n" {
		err = fmt.Errorf("read %q", line)
	}
	return err
}

// TestSCTPTracked: what TestTracked shows of TCP, for SCTP: replies of translated flows go back through the stack.
func TestSCTPTracked(t *testing.T) {
	testkit.RequireSCTP(t)
	for _, w := range ways() {
		t.Run(w.name, func(t *testing.T) {
			a, b := network(t, 1500)
			client, far := w.join(a, b)
			near := a.addPod(1450)
			greet(t, near)
			greet(t, far)
			services := []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd96::1")}
			for i, s := range services {
				a.translate("sctp", s, 1000, near)
				a.translate("sctp", s, 1001, far)
				b.translate("sctp", b.addrs[i], 1002, far) // a host port
			}
			for _, n := range []*node{a, b} {
				s := n.settings()
				s.Tracked = true
				n.want(s)
				n.apply()
			}
			for i := range services {
				for j, c := range []struct {
					name   string
					to     netip.AddrPort
					direct *pod
				}{
					{"service with a pod of the node", netip.AddrPortFrom(services[i], 1000), near},
					{"service with a pod of another node", netip.AddrPortFrom(services[i], 1001), far},
					{"host port of another node", netip.AddrPortFrom(b.addrs[i], 1002), far},
				} {
					port := uint16(40000 + i*10 + j)
					if err := greeting(t, client, port, c.to); err != nil {
						t.Errorf("%s (%s): %v\n%s\n%s", c.name, c.to, err, a.dump(), b.dump())
					}
					direct := netip.AddrPortFrom(c.direct.addr(netset.Families()[i]), 80)
					if err := greeting(t, client, port, direct); err != nil {
						t.Errorf("%s from port %d, which an association with %s had: %v", direct, port, c.to, err)
					}
				}
			}
			a.counted(t, "stack_tracked", 6)
			for _, f := range netset.Families() {
				associate(t, client, far, f, 128<<10)
				associate(t, client, near, f, 128<<10)
			}
		})
	}
}
