package bench

import (
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// udpDial opens a connected UDP socket.
func (c *client) udpDial() (socket, error) {
	s, err := open(c.remote, unix.SOCK_DGRAM, c.spec)
	if err != nil {
		return s, err
	}
	if err := s.connect(c.addr, time.Now().Add(stall)); err != nil {
		s.close()
		return s, fmt.Errorf("connect: %w", err)
	}
	return s, nil
}

// udpRR sends a numbered datagram and waits tick for its answer. Late answers to earlier ones are
// told apart by the number, of which a message shorter than eight bytes holds the low ones.
func (c *client) udpRR() error {
	s, err := c.udpDial()
	if err != nil {
		return err
	}
	defer s.close()
	out, in := make([]byte, c.spec.Size), make([]byte, c.spec.Size)
	var number uint64
	var id [8]byte
	k := min(len(out), len(id))
	lastAnswer := time.Now()
	return c.transact("", func() (bool, error) {
		number++
		binary.LittleEndian.PutUint64(id[:], number)
		copy(out, id[:])
		if _, e := s.write(out); e != 0 && !retry(e) {
			return false, e
		}
		for {
			n, e := s.read(in)
			switch {
			case e == unix.EINTR:
			case retry(e):
				if time.Since(lastAnswer) > stall {
					return false, unix.ETIMEDOUT
				}
				return false, nil
			case e != 0:
				return false, e
			case n == len(in) && string(in[:k]) == string(id[:k]):
				if number%1024 == 0 {
					lastAnswer = time.Now()
				}
				return true, nil
			}
		}
	})
}

// udpPPS sends without waiting. Transactions are all datagrams sent until merge replaces them.
func (c *client) udpPPS() error {
	s, err := c.udpDial()
	if err != nil {
		return err
	}
	defer s.close()
	buf := make([]byte, c.spec.Size)
	w := c.spec.window()
	for {
		_, e := s.write(buf)
		switch {
		case e == 0:
			c.result.Transactions++
		case !retry(e) && e != unix.ENOBUFS:
			return e
		}
		if c.result.Transactions%32 != 0 {
			continue
		}
		now, counts := w.at()
		if counts && now >= w.to {
			c.result.Seconds, c.result.Client = w.close(now, "")
			return nil
		}
		if c.ctx.Err() != nil {
			return c.ctx.Err()
		}
	}
}

// udp answers (udp-rr) or counts (udp-pps) datagrams until the client is done and nothing more comes.
func (s *session) udp(r *report) error {
	buf := make([]byte, s.spec.Size)
	var from sockaddr
	var w *window // begins with the first datagram
	closed := false
	finish := func(now time.Duration) {
		if !closed {
			closed = true
			r.Seconds, r.Side = w.close(now, "")
		}
	}
	for {
		_, e := s.data.receive(buf, &from)
		switch {
		case retry(e):
			if !s.stop.Load() {
				continue
			}
			if w == nil {
				return fmt.Errorf("no datagram arrived")
			}
			finish(time.Since(w.start))
			return nil
		case e != 0:
			return fmt.Errorf("receive: %w", e)
		case s.spec.Mode == UDPRR:
			_ = s.data.reply(buf, &from) // a lost answer is the client's to count
		}
		if w == nil {
			w = s.spec.window()
		}
		r.Total++
		if s.spec.Mode == UDPRR {
			if r.Total%16 == 0 {
				w.at()
			}
			continue
		}
		now, counts := w.at()
		switch {
		case closed || !counts:
		case now >= w.to:
			finish(now)
		default:
			r.Transactions++
			r.Bytes += uint64(len(buf))
		}
	}
}
