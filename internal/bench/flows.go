package bench

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// events is how many ready connections one epoll_wait may return.
const events = 256

// poller is an epoll instance over many sockets, keyed by their descriptors.
type poller struct {
	fd    int
	ready [events]unix.EpollEvent
}

func newPoller() (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	return &poller{fd: fd}, nil
}

func (p *poller) add(s socket) error {
	return unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, s.fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(s.fd)})
}

// wait returns the ready descriptors, none after tick. It blocks in a scheduled system call: many
// flows hide its cost, and the two sides may share a process.
func (p *poller) wait() ([]unix.EpollEvent, error) {
	n, err := unix.EpollWait(p.fd, p.ready[:], int(tick.Milliseconds()))
	if err != nil && !errors.Is(err, unix.EINTR) {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	return p.ready[:max(n, 0)], nil
}

func (p *poller) close() { _ = unix.Close(p.fd) }

// flows keeps one message under way on each of spec.Flows connections.
func (c *client) flows() error {
	p, err := newPoller()
	if err != nil {
		return err
	}
	defer p.close()
	started := time.Now()
	sent := map[int32]time.Duration{} // by descriptor; since w.start
	defer func() {
		for fd := range sent {
			socket{int(fd)}.close()
		}
	}()
	for i := range c.spec.Flows {
		s, err := c.dial()
		if err != nil {
			return fmt.Errorf("flow %d of %d: %w", i+1, c.spec.Flows, err)
		}
		sent[int32(s.fd)] = 0
		if err := errors.Join(s.reset(), p.add(s)); err != nil {
			return fmt.Errorf("flow %d of %d: %w", i+1, c.spec.Flows, err)
		}
	}
	c.result.Setup = time.Since(started)
	buf := make([]byte, c.spec.Size)
	h, w := new(Histogram), c.spec.window()
	for fd := range sent {
		if err := (socket{int(fd)}).writeFull(buf); err != nil {
			return err
		}
		sent[fd] = time.Since(w.start)
	}
	last := time.Duration(0)
	for {
		ready, err := p.wait()
		if err != nil {
			return err
		}
		now, counts := w.at()
		if len(ready) == 0 && now-last > stall {
			return unix.ETIMEDOUT
		}
		for _, ev := range ready {
			s := socket{int(ev.Fd)}
			if err := s.readFull(buf); err != nil {
				return err
			}
			now = time.Since(w.start)
			last = now
			if counts {
				h.Record(now - sent[ev.Fd])
			}
			sent[ev.Fd] = now
			if err := s.writeFull(buf); err != nil {
				return err
			}
		}
		if counts && now >= w.to {
			c.result.Seconds, c.result.Client = w.close(now, "")
			c.result.Latency, c.result.Transactions = h.Summary(), h.n
			return nil
		}
		if c.ctx.Err() != nil {
			return c.ctx.Err()
		}
	}
}

// flows answers on all connections until the client is done.
func (s *session) flows(r *report) error {
	p, err := newPoller()
	if err != nil {
		return err
	}
	defer p.close()
	if err := errors.Join(unix.SetNonblock(s.data.fd, true), p.add(s.data)); err != nil {
		return err
	}
	open := map[int32]bool{}
	defer func() {
		for fd := range open {
			socket{int(fd)}.close()
		}
	}()
	buf := make([]byte, s.spec.Size)
	w := s.spec.window()
	for {
		ready, err := p.wait()
		if err != nil {
			return err
		}
		now, _ := w.at()
		if len(ready) == 0 && s.stop.Load() || len(open) == 0 && now > stall {
			r.Seconds, r.Side = w.close(now, "")
			return nil
		}
		for _, ev := range ready {
			if int(ev.Fd) == s.data.fd {
				if c, e := s.data.accept(); e == 0 {
					open[int32(c.fd)] = true
					if err := errors.Join(c.setup(unix.SOCK_STREAM, &s.spec), p.add(c)); err != nil {
						return err
					}
				}
				continue
			}
			c := socket{int(ev.Fd)}
			if c.readFull(buf) != nil || c.writeFull(buf) != nil {
				delete(open, ev.Fd)
				c.close()
			}
		}
	}
}
