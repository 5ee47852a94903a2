package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Will is what `traffic heir` is to do, as JSON on standard input: a pod with these addresses connects to servers, is deleted, and another pod gets its
// addresses, and goes on with its connections where they were.
type Will struct {
	Old     string   `json:"old"` // "namespace/name"
	New     string   `json:"new"`
	Addrs   []string `json:"addrs"`
	Servers []string `json:"servers"` // address:port of echo servers, one for each of Addrs
	Port    uint16   `json:"port"`    // on which the old pod serves, over UDP
}

// Heir is what became of it. All but Old should be 0.
type Heir struct {
	Old         int            `json:"old"`         // of its own connections that worked, TCP and UDP
	Established int            `json:"established"` // of its TCP connections that the new pod could use
	Connected   int            `json:"connected"`   // of its sockets that the new pod could open again, at the same ports
	Answered    int            `json:"answered"`    // of its datagrams
	Arrived     map[string]int `json:"arrived"`     // packets to the old pod's port that reached the new one, by sender
	Waited      time.Duration  `json:"waited"`      // until the addresses were given again
}

// heirPort is the local port of the pods' sockets.
const heirPort = 40000

// inherit plays both pods. It writes {"ready":true} when the old one is at work and when it is dead, and goes on after a line of input.
func inherit() error {
	in := json.NewDecoder(os.Stdin)
	var w Will
	if err := in.Decode(&w); err != nil {
		return err
	}
	var h Heir
	states, err := h.old(&w, in)
	if err != nil {
		return err
	}
	ns, err := newNamespace("traffic-new")
	if err != nil {
		return err
	}
	defer ns.remove()
	began := time.Now()
	for {
		if _, err = ns.plugin("ADD", w.New, w.Addrs); err == nil {
			break
		}
		if time.Since(began) > 10*time.Second {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
	h.Waited = time.Since(began)
	err = ns.do(func() error {
		arrivals, err := newWatcher([]uint16{w.Port})
		if err != nil {
			return err
		}
		go arrivals.run()
		if err := h.new(&w, states); err != nil {
			return err
		}
		time.Sleep(time.Second) // what others send
		h.Arrived = arrivals.counts().From
		return nil
	})
	if err != nil {
		return err
	}
	if _, err := ns.plugin("DEL", w.New, nil); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(h)
}

// old is the first pod's life. It returns where its connections were.
func (h *Heir) old(w *Will, in *json.Decoder) ([]tcpState, error) {
	ns, err := newNamespace("traffic-old")
	if err != nil {
		return nil, err
	}
	defer ns.remove()
	if _, err := ns.plugin("ADD", w.Old, w.Addrs); err != nil {
		return nil, err
	}
	var states []tcpState
	err = ns.do(func() error {
		port, err := socket(netip.AddrPortFrom(netip.IPv6Unspecified(), w.Port), unix.SOCK_DGRAM)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(port) }()
		go echo(port)
		for i, s := range w.Servers {
			to := netip.MustParseAddrPort(s)
			local := netip.AddrPortFrom(netip.MustParseAddr(w.Addrs[i]), heirPort)
			fd, err := reach(local, to)
			if err != nil {
				return fmt.Errorf("the old pod to %s: %w", to, err)
			}
			defer func() { _ = unix.Close(fd) }() // in repair mode by then: says nothing to anybody
			if talks(fd) {
				h.Old++
			}
			if datagram(local, to) {
				h.Old++
			}
			st, err := freeze(fd)
			if err != nil {
				return fmt.Errorf("freeze: %w", err)
			}
			states = append(states, st)
		}
		if err := json.NewEncoder(os.Stdout).Encode(map[string]bool{"ready": true}); err != nil {
			return err
		}
		var line any
		if err := in.Decode(&line); err != nil {
			return err
		}
		_, err = ns.plugin("DEL", w.Old, nil)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := json.NewEncoder(os.Stdout).Encode(map[string]bool{"ready": true}); err != nil {
		return nil, err
	}
	var line any
	return states, in.Decode(&line)
}

// new tries to use what the old pod had.
func (h *Heir) new(w *Will, states []tcpState) error {
	for i, s := range w.Servers {
		to := netip.MustParseAddrPort(s)
		local := netip.AddrPortFrom(netip.MustParseAddr(w.Addrs[i]), heirPort)
		fd, err := thaw(local, to, states[i])
		if err != nil {
			return fmt.Errorf("thaw: %w", err)
		}
		if talks(fd) {
			h.Established++
		}
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1) // to close it silently
		_ = unix.Close(fd)
		if fd, err = socket(local, unix.SOCK_STREAM); err != nil {
			return err
		}
		if unix.Connect(fd, sockaddr(to)) == nil {
			h.Connected++
		}
		_ = unix.Close(fd)
		if datagram(local, to) {
			h.Answered++
		}
	}
	return nil
}

// reach connects, again if need be: the server's node may not know the pod yet.
func reach(local, to netip.AddrPort) (int, error) {
	for try := 0; ; try++ {
		fd, err := socket(local, unix.SOCK_STREAM)
		if err != nil {
			return -1, err
		}
		if err = unix.Connect(fd, sockaddr(to)); err == nil {
			return fd, nil
		}
		_ = unix.Close(fd)
		if try == 20 {
			return -1, err
		}
	}
}

// socket is a bound socket of the calling thread, with a time limit.
func socket(local netip.AddrPort, kind int) (int, error) {
	fd, err := unix.Socket(domain(local.Addr().Is6()), kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	limit := unix.NsecToTimeval(int64(300 * time.Millisecond))
	for _, o := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, o, &limit)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err := unix.Bind(fd, sockaddr(local)); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("bind to %s: %w", local, err)
	}
	return fd, nil
}

// echo answers datagrams until the socket is closed.
func echo(fd int) {
	buf := make([]byte, 64)
	for {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if err == nil {
			_ = unix.Sendto(fd, buf[:n], 0, from)
		} else if err != unix.EAGAIN && err != unix.EINTR { //nolint:errorlint // errnos as they are
			return
		}
	}
}

// talks reports whether a message comes back.
func talks(fd int) bool {
	if _, err := unix.Write(fd, []byte("hello")); err != nil {
		return false
	}
	n, err := unix.Read(fd, make([]byte, 16))
	return err == nil && n > 0
}

func datagram(local, to netip.AddrPort) bool {
	fd, err := socket(local, unix.SOCK_DGRAM)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(fd) }()
	return unix.Connect(fd, sockaddr(to)) == nil && talks(fd)
}

// tcpState is where a connection is in both directions.
type tcpState struct{ send, receive uint32 }

// The queues of TCP_REPAIR_QUEUE (linux/tcp.h).
const receiveQueue, sendQueue = 1, 2

// freeze reads where a connection is; the socket is as good as dead afterwards.
func freeze(fd int) (st tcpState, err error) {
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1); err != nil {
		return st, err
	}
	for queue, seq := range map[int]*uint32{receiveQueue: &st.receive, sendQueue: &st.send} {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE, queue); err != nil {
			return st, err
		}
		v, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
		if err != nil {
			return st, err
		}
		*seq = uint32(v)
	}
	return st, nil
}

// thaw makes a socket that is in the middle of a connection, without a handshake.
func thaw(local, to netip.AddrPort, st tcpState) (int, error) {
	fd, err := socket(local, unix.SOCK_STREAM)
	if err != nil {
		return -1, err
	}
	set := func(option int, v uint32) {
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, option, int(v))
		}
	}
	set(unix.TCP_REPAIR, 1)
	set(unix.TCP_REPAIR_QUEUE, receiveQueue)
	set(unix.TCP_QUEUE_SEQ, st.receive)
	set(unix.TCP_REPAIR_QUEUE, sendQueue)
	set(unix.TCP_QUEUE_SEQ, st.send)
	if err == nil {
		err = unix.Connect(fd, sockaddr(to))
	}
	set(unix.TCP_REPAIR, 0)
	if err != nil {
		_ = unix.Close(fd)
	}
	return fd, err
}
