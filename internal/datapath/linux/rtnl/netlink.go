// Package rtnl speaks rtnetlink: it builds and reads messages, sends them in batches, and hears of changes.
//
// It knows the formats of links, addresses, routes, rules and neighbours, but not what any of them should be: that is
// package linux. It holds no state but its sockets.
package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"

	"weft/internal/netset"
)

// Request is one rtnetlink message under construction: header, fixed part, attributes (rtnetlink(7)).
type Request struct {
	buf    []byte
	Answer bool // the kernel answers with data, so an acknowledgement is not needed
}

const headerLen = unix.SizeofNlMsghdr

// NewRequest starts a message. Flags are added to NLM_F_REQUEST; fixed is the struct after the header.
func NewRequest(typ, flags uint16, fixed []byte) *Request {
	r := &Request{buf: make([]byte, headerLen, 256)}
	binary.NativeEndian.PutUint16(r.buf[4:], typ)
	binary.NativeEndian.PutUint16(r.buf[6:], flags|unix.NLM_F_REQUEST)
	r.buf = append(r.buf, fixed...)
	return r
}

// Bytes appends an attribute.
func (r *Request) Bytes(typ uint16, data ...byte) *Request {
	r.buf = binary.NativeEndian.AppendUint16(r.buf, uint16(4+len(data)))
	r.buf = binary.NativeEndian.AppendUint16(r.buf, typ)
	r.buf = append(r.buf, data...)
	for len(r.buf)%4 != 0 {
		r.buf = append(r.buf, 0)
	}
	return r
}

// U32 appends a 32-bit number in the host's byte order.
func (r *Request) U32(typ uint16, v int) *Request {
	return r.Bytes(typ, binary.NativeEndian.AppendUint32(nil, uint32(v))...)
}

// Text appends a string with its zero byte.
func (r *Request) Text(typ uint16, s string) *Request {
	return r.Bytes(typ, append([]byte(s), 0)...)
}

// Addr appends an address in network byte order.
func (r *Request) Addr(typ uint16, a netip.Addr) *Request {
	return r.Bytes(typ, a.Unmap().AsSlice()...)
}

// Nest appends an attribute that holds what inside appends.
func (r *Request) Nest(typ uint16, inside func()) *Request {
	at := len(r.buf)
	r.Bytes(typ)
	inside()
	binary.NativeEndian.PutUint16(r.buf[at:], uint16(len(r.buf)-at))
	return r
}

// Raw appends bytes that are no attribute, such as the struct inside a nest.
func (r *Request) Raw(b []byte) { r.buf = append(r.buf, b...) }

// Body is the message without its header.
func (r *Request) Body() []byte { return r.buf[headerLen:] }

// IfInfo is struct ifinfomsg. An index of 0 means: by name.
func IfInfo(index int, flags, change uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	binary.NativeEndian.PutUint32(b[8:], flags)
	binary.NativeEndian.PutUint32(b[12:], change)
	return b
}

// AF is the address family number of the socket API.
func AF(f netset.Family) uint8 {
	if f == netset.V4 {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// kernelError is an error of the kernel with its own words (NLMSGERR_ATTR_MSG).
type kernelError struct {
	errno syscall.Errno
	words string
}

func (e *kernelError) Error() string {
	if e.words == "" {
		return e.errno.Error()
	}
	return fmt.Sprintf("%s (%s)", e.errno, e.words)
}

func (e *kernelError) Unwrap() error { return e.errno }

// IsErrno reports whether err is one of the numbers.
func IsErrno(err error, nos ...syscall.Errno) bool {
	var no syscall.Errno
	if !errors.As(err, &no) {
		return false
	}
	for _, n := range nos {
		if no == n {
			return true
		}
	}
	return false
}

// Conn is a netlink socket in one network namespace. It has no lock: its owner serialises its use.
type Conn struct {
	fd  int
	seq uint32
	buf []byte // receive buffer
}

// replyTimeout bounds the wait for an answer that the kernel owes us; it normally is there before we ask.
const replyTimeout = 5 // seconds

// BufferSize is larger than any message that the kernel puts into one datagram of a dump.
const BufferSize = 64 << 10

// DialHere is Dial with this socket's receive buffer: the two may not be used at the same time.
func (c *Conn) DialHere() (*Conn, error) { return Dial(c.buf) }

// Dial opens an rtnetlink socket in the namespace of the calling thread. Sockets that are used by one
// goroutine may share a receive buffer; nil makes one.
func Dial(buf []byte) (*Conn, error) {
	if buf == nil {
		buf = make([]byte, BufferSize)
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	// A nicety of newer kernels: errors in words.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: replyTimeout}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("set the timeout of a netlink socket: %w", err)
	}
	return &Conn{fd: fd, buf: buf}, nil
}

// Close closes the socket.
func (c *Conn) Close() { _ = unix.Close(c.fd) }

// Reply is what came of one request: the kernel's error, or the messages that it answered with.
type Reply struct {
	Err  error
	Msgs [][]byte // bodies, without the header
}

// batchMax bounds how many requests are sent at once: the kernel must be able to queue
// an error for each of them in the socket's default receive buffer.
const batchMax = 100

// Do sends the requests in as few system calls as possible and returns a reply for each. The kernel works
// through them in order and goes on after an error.
func (c *Conn) Do(reqs ...*Request) []Reply {
	out := make([]Reply, 0, len(reqs))
	for len(reqs) > 0 {
		n := min(len(reqs), batchMax)
		out = append(out, c.send(reqs[:n])...)
		reqs = reqs[n:]
	}
	return out
}

// One is do for a single request.
func (c *Conn) One(r *Request) Reply { return c.Do(r)[0] }

func (c *Conn) send(reqs []*Request) []Reply {
	out := make([]Reply, len(reqs))
	first := c.seq + 1
	var all []byte
	for i, r := range reqs {
		c.seq++
		binary.NativeEndian.PutUint32(r.buf, uint32(len(r.buf)))
		binary.NativeEndian.PutUint32(r.buf[8:], c.seq)
		// Errors always come back; success is told for the last one alone, and that ends the wait.
		if i == len(reqs)-1 && !r.Answer {
			r.buf[6] |= unix.NLM_F_ACK
		}
		all = append(all, r.buf...)
	}
	fail := func(err error) []Reply {
		for i := range out {
			out[i].Err = err
		}
		return out
	}
	if err := unix.Sendto(c.fd, all, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fail(fmt.Errorf("send to the kernel: %w", err))
	}
	for done := false; !done; {
		err := c.receive(func(typ, flags uint16, seq uint32, body []byte) {
			i := int(seq - first)
			if i < 0 || i >= len(out) {
				return // the answer to an earlier request that we gave up on
			}
			last := i == len(out)-1
			switch typ {
			case unix.NLMSG_ERROR:
				out[i].Err = parseError(flags, body)
				done = done || last
			case unix.NLMSG_DONE:
				done = done || last
			default:
				out[i].Msgs = append(out[i].Msgs, append([]byte(nil), body...))
				done = done || last && reqs[i].Answer
			}
		})
		if err != nil {
			return fail(err)
		}
	}
	return out
}

// Dump asks for a list and calls f with the body of each entry.
func (c *Conn) Dump(r *Request, f func(typ uint16, body []byte)) error {
	c.seq++
	binary.NativeEndian.PutUint32(r.buf, uint32(len(r.buf)))
	binary.NativeEndian.PutUint32(r.buf[8:], c.seq)
	flags := binary.NativeEndian.Uint16(r.buf[6:])
	binary.NativeEndian.PutUint16(r.buf[6:], flags|unix.NLM_F_DUMP)
	if err := unix.Sendto(c.fd, r.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send to the kernel: %w", err)
	}
	want, done := c.seq, false
	var failed error
	for !done {
		err := c.receive(func(typ, flags uint16, seq uint32, body []byte) {
			switch {
			case seq != want:
			case typ == unix.NLMSG_ERROR:
				failed, done = parseError(flags, body), true
			case typ == unix.NLMSG_DONE:
				failed, done = parseError(flags, body), true
			default:
				f(typ, body)
			}
		})
		if err != nil {
			return err
		}
	}
	return failed
}

// receive calls f for each message of one read.
func (c *Conn) receive(f func(typ, flags uint16, seq uint32, body []byte)) error {
	var n int
	for {
		var err error
		if n, _, err = unix.Recvfrom(c.fd, c.buf, 0); err == nil {
			break
		} else if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("receive from the kernel: %w", err)
		}
	}
	return c.messages(c.buf[:n], f)
}

// messages calls f for each message in b.
func (*Conn) messages(b []byte, f func(typ, flags uint16, seq uint32, body []byte)) error {
	for len(b) >= headerLen {
		size := int(binary.NativeEndian.Uint32(b))
		if size < headerLen || size > len(b) {
			return fmt.Errorf("receive from the kernel: message of %d bytes in %d", size, len(b))
		}
		f(binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:]), binary.NativeEndian.Uint32(b[8:]), b[headerLen:size])
		b = b[min((size+3)&^3, len(b)):]
	}
	return nil
}

// parseError returns the error of an NLMSG_ERROR or NLMSG_DONE message; nil for an acknowledgement.
func parseError(flags uint16, body []byte) error {
	if len(body) < 4 {
		return nil
	}
	no := int32(binary.NativeEndian.Uint32(body))
	if no == 0 {
		return nil
	}
	e := &kernelError{errno: syscall.Errno(-no)}
	const ackTLVs, capped, msgAttr = 0x200, 0x100, 1 // NLM_F_ACK_TLVS, NLM_F_CAPPED, NLMSGERR_ATTR_MSG
	if flags&ackTLVs != 0 && len(body) >= 4+headerLen {
		skip := 4 + headerLen
		if flags&capped == 0 {
			skip = 4 + (int(binary.NativeEndian.Uint32(body[4:]))+3)&^3
		}
		for typ, v := range Attrs(body[min(skip, len(body)):]) {
			if typ == msgAttr && len(v) > 0 {
				e.words = string(v[:len(v)-1])
			}
		}
	}
	return e
}

// Attrs yields the attributes of b in order, their type without the flag bits.
func Attrs(b []byte) func(yield func(uint16, []byte) bool) {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= 4 {
			size := int(binary.NativeEndian.Uint16(b))
			if size < 4 || size > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[2:])&0x3fff, b[4:size]) {
				return
			}
			b = b[min((size+3)&^3, len(b)):]
		}
	}
}

// Uint reads a number of 1, 2, 4 or 8 bytes; 0 for any other length.
func Uint(b []byte) int {
	switch len(b) {
	case 1:
		return int(b[0])
	case 2:
		return int(binary.NativeEndian.Uint16(b))
	case 4:
		return int(binary.NativeEndian.Uint32(b))
	case 8:
		return int(binary.NativeEndian.Uint64(b))
	}
	return 0
}

// Text reads a string up to its zero byte.
func Text(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// Addr reads an address; the zero value if it is none.
func Addr(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}
