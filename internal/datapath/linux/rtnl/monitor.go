package rtnl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Monitor is a socket that hears of changes in the driver's namespace. It waits without a thread.
type Monitor struct {
	file *os.File
	raw  syscall.RawConn
	buf  []byte
}

// Event is one notification.
type Event struct {
	Type uint16
	Body []byte
}

// monitorBuffer is what the kernel may queue for us: some ten thousand events, allocated only while they wait.
const monitorBuffer = 8 << 20

// Listen joins multicast groups (unix.RTNLGRP_*) in the namespace of the calling thread.
func Listen(groups ...int) (*Monitor, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("watch the kernel: %w", err)
	}
	m := &Monitor{file: os.NewFile(uintptr(fd), "rtnetlink"), buf: make([]byte, BufferSize)}
	// More than net.core.rmem_max needs a privilege; less is not wrong, only less patient.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, monitorBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, monitorBuffer)
	}
	// A socket without an address of its own hears nothing that the kernel itself did.
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	for _, g := range groups {
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g)
		}
	}
	if err == nil {
		m.raw, err = m.file.SyscallConn()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("watch the kernel: %w", err), m.file.Close())
	}
	return m, nil
}

// Close closes the socket.
func (m *Monitor) Close() { _ = m.file.Close() }

// Next waits for events and returns all that are there. lost says that the kernel had to drop some.
func (m *Monitor) Next(ctx context.Context) (events []Event, lost bool, err error) {
	stop := context.AfterFunc(ctx, func() { _ = m.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		n, err := m.read(len(events) == 0 && !lost)
		switch {
		case ctx.Err() != nil:
			return nil, false, ctx.Err()
		case errors.Is(err, unix.EAGAIN):
			return events, lost, nil
		case errors.Is(err, unix.ENOBUFS):
			lost = true
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, false, fmt.Errorf("watch the kernel: %w", err)
		default:
			c := Conn{}
			err := c.messages(m.buf[:n], func(typ, _ uint16, _ uint32, body []byte) {
				events = append(events, Event{typ, append([]byte(nil), body...)})
			})
			if err != nil {
				return nil, false, err
			}
		}
	}
}

// read reads one datagram; without wait, or with EAGAIN where there is none.
func (m *Monitor) read(wait bool) (n int, err error) {
	failed := m.raw.Read(func(fd uintptr) bool {
		n, _, err = unix.Recvfrom(int(fd), m.buf, 0)
		return !wait || !errors.Is(err, unix.EAGAIN)
	})
	if failed != nil {
		return 0, failed
	}
	return n, err
}
