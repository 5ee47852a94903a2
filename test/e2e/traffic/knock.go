package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Knocks is what knock prints at the end.
type Knocks struct {
	Tried     int            `json:"tried"`     // TCP connections, and as many datagrams
	Connected int            `json:"connected"` // connections
	Answered  int            `json:"answered"`  // datagrams
	Why       map[string]int `json:"why"`       // of the others
	Slowest   time.Duration  `json:"slowest"`   // connection, in ns
	Began     time.Time      `json:"began"`
	Went      []time.Time    `json:"went"` // when the last ones of those that went well were tried
}

// patience is how long a knock waits: a SYN that was lost is sent again after a second.
const patience = 900 * time.Millisecond

// knock makes new connections to each address until standard input ends.
func knock(interval time.Duration, addresses []string) error {
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(map[string]bool{"ready": true}); err != nil {
		return err
	}
	end := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(end)
	}()
	k := Knocks{Why: map[string]int{}, Began: time.Now()}
	var mu sync.Mutex
	var wg sync.WaitGroup
	tell := func(ok *int, took time.Duration, err error) {
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			k.Why[err.Error()]++
			return
		}
		*ok++
		if k.Went = append(k.Went, time.Now().Add(-took)); len(k.Went) > 20 {
			k.Went = k.Went[1:]
		}
		k.Slowest = max(k.Slowest, took)
	}
	for tick := time.Tick(interval); ; {
		for _, a := range addresses {
			mu.Lock()
			k.Tried++
			mu.Unlock()
			wg.Go(func() {
				began := time.Now()
				c, err := net.DialTimeout("tcp", a, patience)
				if err == nil {
					_ = c.(*net.TCPConn).SetLinger(0)
					_ = c.Close()
				} else {
					err = fmt.Errorf("tcp %s: %w", a, reason(err))
				}
				tell(&k.Connected, time.Since(began), err)
			})
			wg.Go(func() {
				if err := ask(a); err != nil {
					tell(nil, 0, fmt.Errorf("udp %s: %w", a, reason(err)))
				} else {
					tell(&k.Answered, 0, nil)
				}
			})
		}
		select {
		case <-end:
			wg.Wait()
			return out.Encode(k)
		case <-tick:
		}
	}
}

// reason leaves the addresses out of an error, so that alike ones can be counted.
func reason(err error) error {
	if op, ok := err.(*net.OpError); ok { //nolint:errorlint // what the net package returns itself
		return op.Err
	}
	return err
}

// ask sends one datagram and waits for its echo.
func ask(to string) error {
	c, err := net.Dial("udp", to)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("knock")); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 16))
	return err
}

// flood sends exactly n datagrams.
func flood(n int, to string) error {
	c, err := net.Dial("udp", to)
	if err != nil {
		return err
	}
	defer c.Close()
	for i := range n {
		if _, err := c.Write([]byte("flood")); err != nil {
			return fmt.Errorf("datagram %d: %w", i, err)
		}
	}
	return nil
}

// Counts is what count prints: packets by their sender, and those that were not looked at for want of space.
type Counts struct {
	From   map[string]int `json:"from"`
	Missed int            `json:"missed"`
}

// count watches all interfaces of the namespace and tells what has arrived so far, whenever a line is read.
func count(args []string) error {
	var ports []uint16
	for _, a := range args {
		p, err := strconv.ParseUint(a, 10, 16)
		if err != nil {
			return err
		}
		ports = append(ports, uint16(p))
	}
	w, err := newWatcher(ports)
	if err != nil {
		return err
	}
	go w.run()
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(map[string]bool{"ready": true}); err != nil {
		return err
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if err := out.Encode(w.counts()); err != nil {
			return err
		}
	}
	return nil
}

// watcher counts the TCP and UDP packets that arrive in a network namespace.
type watcher struct {
	fd    int
	ports map[uint16]bool // of the destination

	mu   sync.Mutex
	from map[string]int // guarded by mu
	miss int            // guarded by mu
}

// newWatcher watches the namespace of the calling thread.
func newWatcher(ports []uint16) (*watcher, error) {
	all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(all))
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
	w := &watcher{fd: fd, ports: map[uint16]bool{}, from: map[string]int{}}
	for _, p := range ports {
		w.ports[p] = true
	}
	return w, nil
}

func (w *watcher) run() {
	buf := make([]byte, 256)
	for {
		n, from, err := unix.Recvfrom(w.fd, buf, 0)
		if err == unix.EINTR { //nolint:errorlint // an errno as it is
			continue
		}
		if err != nil {
			return
		}
		if l, ok := from.(*unix.SockaddrLinklayer); ok && l.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if src, port, ok := parse(buf[:n]); ok && w.ports[port] {
			w.mu.Lock()
			w.from[src.String()]++
			w.mu.Unlock()
		}
	}
}

func (w *watcher) counts() Counts {
	time.Sleep(50 * time.Millisecond) // what is in the socket is counted as well
	w.mu.Lock()
	defer w.mu.Unlock()
	if st, err := unix.GetsockoptTpacketStats(w.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
		w.miss += int(st.Drops)
	}
	c := Counts{From: map[string]int{}, Missed: w.miss}
	for a, n := range w.from {
		c.From[a] = n
	}
	return c
}

// parse returns the sender and the destination port of a TCP or UDP packet.
func parse(b []byte) (src netip.Addr, port uint16, ok bool) {
	var proto byte
	var rest []byte
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		src, _ = netip.AddrFromSlice(b[12:16])
		proto, rest = b[9], b[min(len(b), int(b[0]&15)*4):]
	case len(b) >= 40 && b[0]>>4 == 6:
		src, _ = netip.AddrFromSlice(b[8:24])
		proto, rest = b[6], b[40:]
	}
	if len(rest) < 4 || proto != unix.IPPROTO_TCP && proto != unix.IPPROTO_UDP {
		return src, 0, false
	}
	return src, binary.BigEndian.Uint16(rest[2:]), true
}
