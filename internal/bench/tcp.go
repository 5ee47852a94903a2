package bench

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// dial opens and connects the client's data socket.
func (c *client) dial() (socket, error) {
	s, err := open(c.remote, unix.SOCK_STREAM, c.spec)
	if err != nil {
		return s, err
	}
	if err := s.connect(c.addr, time.Now().Add(stall)); err != nil {
		s.close()
		return s, fmt.Errorf("connect: %w", err)
	}
	return s, nil
}

// stream sends until the receiver, whose clock counts, closes.
func (c *client) stream() error {
	s, err := c.dial()
	if err != nil {
		return err
	}
	defer s.close()
	congestion := s.congestion()
	buf := make([]byte, c.spec.Size)
	w := c.spec.window()
	for {
		now, counts := w.at()
		if counts && now >= w.to { // once: the server may still count for a moment
			_, c.result.Client = w.close(now, congestion)
			w.to = c.spec.span()
		}
		if c.ctx.Err() != nil {
			return c.ctx.Err()
		}
		if err := s.writeFull(buf); err != nil {
			if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
				break
			}
			return err
		}
	}
	if c.result.Client.Kernel == "" {
		_, c.result.Client = w.close(time.Since(w.start), congestion)
	}
	return nil
}

// stream counts what arrives between warm-up and end, by the time since the first byte.
func (s *session) stream(r *report) error {
	c, err := s.accept()
	if err != nil {
		return err
	}
	defer c.close()
	buf := make([]byte, max(s.spec.Size, 128<<10))
	if err := c.readFull(buf[:1]); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	long := longest{keep: s.spec.Gaps}
	w := s.spec.window()
	var last time.Duration
	for {
		n, e := c.read(buf)
		now, counts := w.at()
		if e != 0 && !retry(e) || e == 0 && n == 0 {
			r.Seconds, r.Side = w.close(now, c.congestion())
			break // the client ended early: what there is counts
		}
		if counts && e == 0 {
			r.Bytes += uint64(n)
			long.add(now-last, w.start, now)
		}
		if e == 0 {
			last = now
		}
		if now >= w.to || now-last > stall {
			r.Seconds, r.Side = w.close(now, c.congestion())
			break
		}
	}
	r.Longest = long.sorted()
	return c.reset()
}

// rr sends one message and waits for its answer, again and again.
func (c *client) rr() error {
	s, err := c.dial()
	if err != nil {
		return err
	}
	defer s.close()
	buf := make([]byte, c.spec.Size)
	return c.transact(s.congestion(), func() (bool, error) {
		if err := s.writeFull(buf); err != nil {
			return false, err
		}
		return true, s.readFull(buf)
	})
}

// transact repeats one transaction for the spec's time and fills the result. once says whether it
// was answered; an unanswered one is a loss.
func (c *client) transact(congestion string, once func() (bool, error)) error {
	h, long := new(Histogram), longest{keep: c.spec.Gaps}
	w := c.spec.window()
	var last, paused, rested time.Duration
	for n := 0; ; n++ {
		answered, err := once()
		if err != nil {
			return err
		}
		now, counts := w.at()
		switch {
		case counts && answered:
			h.Record(now - last)
			long.add(now-last, w.start, now)
		case counts:
			c.result.Lost++
			long.add(now-last, w.start, now)
		}
		last = now
		if now >= w.to {
			c.result.Seconds, c.result.Client = w.close(now, congestion)
			c.result.Seconds -= paused.Seconds()
			break
		}
		if c.spec.Priority > 0 && now-rested > exertion {
			time.Sleep(rest)
			last, rested = time.Since(w.start), time.Since(w.start)
			if counts {
				paused += last - now
			}
		}
		if n%1024 == 0 && c.ctx.Err() != nil {
			return c.ctx.Err()
		}
	}
	c.result.Latency, c.result.Longest = h.Summary(), long.sorted()
	c.result.Transactions = h.n
	return nil
}

// Under SCHED_FIFO the client lets others run between two transactions. If it did not, the kernel would take
// the CPU away for 50 ms in every second (the deadline server of fair tasks), in the middle of one. The rest is
// not part of the measured time.
const (
	exertion = 15 * time.Millisecond
	rest     = time.Millisecond
)

// rr echoes until the client closes.
func (s *session) rr(r *report) error {
	c, err := s.accept()
	if err != nil {
		return err
	}
	defer c.close()
	buf := make([]byte, s.spec.Size)
	w := s.spec.window()
	for n := 0; ; n++ {
		if err = c.readFull(buf); err != nil {
			break
		}
		if err = c.writeFull(buf); err != nil {
			break
		}
		if n%16 == 0 {
			w.at()
		}
	}
	r.Seconds, r.Side = w.close(time.Since(w.start), c.congestion())
	if errors.Is(err, errClosed) || errors.Is(err, unix.ECONNRESET) {
		return nil
	}
	return err
}

// crr opens a connection for every transaction and closes it by RST, so that ports are free at once.
func (c *client) crr() error {
	buf := make([]byte, c.spec.Size)
	dom := domain(c.remote)
	plain := Spec{} // buffers and congestion control do not matter for one byte
	return c.transact("", func() (bool, error) {
		fd, _, e := unix.RawSyscall(unix.SYS_SOCKET, uintptr(dom), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if e != 0 {
			return false, fmt.Errorf("socket: %w", e)
		}
		s := socket{int(fd)}
		defer s.close()
		if err := s.setup(unix.SOCK_STREAM, &plain); err != nil {
			return false, err
		}
		if err := s.connect(c.addr, time.Now().Add(stall)); err != nil {
			return false, fmt.Errorf("connect: %w", err)
		}
		if err := s.writeFull(buf); err != nil {
			return false, err
		}
		if err := s.readFull(buf); err != nil {
			return false, err
		}
		return true, s.reset()
	})
}

// crr answers one message of each connection. The connection is closed when the next one has
// come: by then the client's RST has ended it, and closing is no part of what the client waits for.
func (s *session) crr(r *report) error {
	buf := make([]byte, s.spec.Size)
	previous := socket{-1}
	defer func() { previous.close() }()
	w := s.spec.window()
	for n := 0; ; n++ {
		c, e := s.data.accept()
		if e != 0 {
			if retry(e) && !s.stop.Load() {
				continue
			}
			r.Seconds, r.Side = w.close(time.Since(w.start), "")
			if retry(e) {
				return nil
			}
			return fmt.Errorf("accept: %w", e)
		}
		previous.close()
		previous = c
		if err := c.readFull(buf); err != nil {
			continue // this connection failed; the client knows
		}
		_ = c.writeFull(buf)
		if n%16 == 0 {
			w.at()
		}
	}
}
