package linux_test

import (
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/model"
	"weft/internal/testkit"
)

// stream sends by TCP from one namespace to an address of another until stop is called.
func stream(t *testing.T, from, to *testkit.Netns, addr netip.Addr) (received *atomic.Int64, stop func()) {
	t.Helper()
	var l net.Listener
	var err error
	to.Do(t, func() { l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 0))) })
	if err != nil {
		t.Fatal(err)
	}
	received = &atomic.Int64{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		buf := make([]byte, 256<<10)
		for {
			n, err := c.Read(buf)
			received.Add(int64(n))
			if err != nil {
				return
			}
		}
	}()
	// The default here may be one that paces, and that hides what a queue does.
	d := net.Dialer{Timeout: 3 * time.Second, Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic") })
	}}
	var c net.Conn
	from.Do(t, func() { c, err = d.Dial("tcp", l.Addr().String()) })
	if err != nil {
		t.Fatal(err)
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = io.Copy(c, zeros{})
	}()
	return received, func() {
		_ = c.Close()
		<-sent
		_ = l.Close()
		<-done
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

// rate measures what arrives, in bits per second.
func rate(received *atomic.Int64, during time.Duration) float64 {
	began, before := time.Now(), received.Load()
	time.Sleep(during)
	return float64(received.Load()-before) * 8 / time.Since(began).Seconds()
}

func TestShaping(t *testing.T) {
	n, a := newNode(t), testkit.New(t)
	l := podLink(a, 1)
	l.Ingress, l.Egress = model.Rate{Bits: 50e6}, model.Rate{Bits: 20e6}
	n.apply(podRows(l)...)
	changed := *l
	for i, hostAddr := range addrs("192.0.2.1", "fd99::1") {
		down, stop := stream(t, n.Netns, a, l.Addrs[i])
		within10(t, "ingress", down, 50e6)
		if i == 0 {
			changed.Ingress.Bits = 10e6
			n.apply(&changed)
			within10(t, "ingress, changed live", down, 10e6)
			changed.Ingress = model.Rate{}
			n.apply(&changed)
			if r := rate(down, 500*time.Millisecond); r < 100e6 {
				t.Errorf("without a limit: %.1f Mbit/s", r/1e6)
			}
		}
		stop()
		up, stop := stream(t, a, n.Netns, hostAddr)
		within10(t, "egress", up, 20e6)
		if i == 1 {
			changed.Egress.Bits = 100e6
			n.apply(&changed)
			within10(t, "egress, changed live", up, 100e6)
		}
		stop()
		n.apply(l)
	}
	// At a small rate a superpacket is many times the burst, at a large one the burst is many superpackets.
	l.Ingress.Bits, l.Egress.Bits = 500e6, 1e6
	n.apply(l)
	down, stop := stream(t, n.Netns, a, l.Addrs[0])
	within10(t, "ingress", down, 500e6)
	stop()
	up, stop := stream(t, a, n.Netns, addrs("192.0.2.1")[0])
	within10(t, "egress", up, 1e6)
	stop()
	// From a burst of superpackets to a small one while the queue is full: it must not stand still.
	l.Egress.Bits = 50e6
	n.apply(l)
	up, stop = stream(t, a, n.Netns, addrs("192.0.2.1")[0])
	_ = rate(up, 300*time.Millisecond)
	l.Egress.Bits = 2e6
	n.apply(l)
	within10(t, "egress, from many superpackets to none", up, 2e6)
	stop()
}

// within10 expects a rate of TCP payload within 10 %. On a busy machine a receiver may be late, and then catch up, so
// there are several windows.
func within10(t *testing.T, what string, received *atomic.Int64, want float64) {
	t.Helper()
	_ = rate(received, time.Second) // a new queue fills, or the old one drains at the new rate
	var got float64
	for range 5 {
		got = rate(received, 2*time.Second)
		t.Logf("%s %.0f Mbit/s: got %.2f (%+.1f %%)", what, want/1e6, got/1e6, (got/want-1)*100)
		if got >= 0.9*want && got <= 1.1*want {
			return
		}
	}
	t.Errorf("%s: %.2f Mbit/s, want %.0f", what, got/1e6, want/1e6)
}
