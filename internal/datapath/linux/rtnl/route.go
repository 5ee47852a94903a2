package rtnl

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"weft/internal/netset"
)

// Protocol is the number that what we make bears (rtnetlink(7), rtm_protocol).
const Protocol = 0x77

const (
	rtaVia      = 18      // RTA_VIA: a next hop of another family
	rtmFibMatch = 1 << 13 // RTM_F_FIB_MATCH: answer with the route itself, not with what a lookup makes of it
)

// Route is a unicast route as rtnetlink has it.
type Route struct {
	Dst   netip.Prefix
	Dev   int // index
	Via   netip.Addr
	Src   netip.Addr
	MTU   int
	Proto int
	Table int
	Kind  int  // RTN_*
	Other bool // it is no plain unicast route, or has several next hops
}

// Same reports whether another route sends packets the same way.
func (r Route) Same(o Route) bool {
	return r.Dst == o.Dst && r.Dev == o.Dev && r.Via == o.Via && r.MTU == o.MTU && (r.Src == o.Src || !r.Src.IsValid()) && !o.Other
}

// RtMsg is struct rtmsg for table main and our protocol.
func RtMsg(family uint8, bits int, scope uint8) []byte {
	return []byte{family, uint8(bits), 0, 0, unix.RT_TABLE_MAIN, Protocol, scope, unix.RTN_UNICAST, 0, 0, 0, 0}
}

// Request makes, replaces or deletes the route, as typ and flags say. Next hops are always "onlink".
func (r Route) Request(typ, flags uint16) *Request {
	family := netset.OfPrefix(r.Dst)
	scope := uint8(unix.RT_SCOPE_UNIVERSE)
	if family == netset.V4 && !r.Via.IsValid() {
		scope = unix.RT_SCOPE_LINK
	}
	msg := RtMsg(AF(family), r.Dst.Bits(), scope)
	if r.Via.IsValid() {
		binary.NativeEndian.PutUint32(msg[8:], unix.RTNH_F_ONLINK)
	}
	req := NewRequest(typ, flags, msg).Addr(unix.RTA_DST, r.Dst.Addr()).U32(unix.RTA_OIF, r.Dev)
	switch {
	case !r.Via.IsValid():
	case netset.Of(r.Via) == family:
		req.Addr(unix.RTA_GATEWAY, r.Via)
	default:
		hop := binary.NativeEndian.AppendUint16(nil, uint16(AF(netset.Of(r.Via))))
		req.Bytes(rtaVia, append(hop, r.Via.AsSlice()...)...)
	}
	if r.Src.IsValid() {
		req.Addr(unix.RTA_PREFSRC, r.Src)
	}
	if r.MTU != 0 {
		req.Nest(unix.RTA_METRICS, func() { req.U32(unix.RTAX_MTU, r.MTU) })
	}
	return req
}

// ParseRoute reads the body of an RTM_NEWROUTE message.
func ParseRoute(b []byte) Route {
	if len(b) < unix.SizeofRtMsg {
		return Route{Other: true}
	}
	base := netip.IPv4Unspecified()
	if b[0] == unix.AF_INET6 {
		base = netip.IPv6Unspecified()
	}
	r := Route{Proto: int(b[5]), Table: int(b[4]), Kind: int(b[7]), Other: b[7] != unix.RTN_UNICAST}
	for typ, v := range Attrs(b[unix.SizeofRtMsg:]) {
		switch typ {
		case unix.RTA_DST:
			base = Addr(v)
		case unix.RTA_OIF:
			r.Dev = Uint(v)
		case unix.RTA_GATEWAY:
			r.Via = Addr(v)
		case rtaVia:
			if len(v) > 2 {
				r.Via = Addr(v[2:])
			}
		case unix.RTA_PREFSRC:
			r.Src = Addr(v)
		case unix.RTA_TABLE:
			r.Table = Uint(v)
		case unix.RTA_MULTIPATH:
			r.Other = true
		case unix.RTA_METRICS:
			for typ, v := range Attrs(v) {
				if typ == unix.RTAX_MTU {
					r.MTU = Uint(v)
				}
			}
		}
	}
	r.Dst = netip.PrefixFrom(base, int(b[1]))
	return r
}

// RoutesTo returns the routes of table main with exactly this destination.
func (c *Conn) RoutesTo(dst netip.Prefix) ([]Route, error) {
	r, err := c.RouteTo(dst)
	if err != nil || r.Dst == dst && r.Table == unix.RT_TABLE_MAIN {
		return []Route{r}, err
	}
	// A longer prefix or another table answers for the first address of dst: look through the list.
	var out []Route
	err = c.Dump(NewRequest(unix.RTM_GETROUTE, 0, RtMsg(AF(netset.OfPrefix(dst)), 0, 0)), func(_ uint16, b []byte) {
		if r := ParseRoute(b); r.Dst == dst && r.Table == unix.RT_TABLE_MAIN {
			out = append(out, r)
		}
	})
	return out, err
}

// RouteTo returns the route that the first address of dst takes; the zero route if there is none.
func (c *Conn) RouteTo(dst netip.Prefix) (Route, error) {
	msg := make([]byte, unix.SizeofRtMsg)
	msg[0], msg[1] = AF(netset.OfPrefix(dst)), uint8(netset.OfPrefix(dst).Bits())
	binary.NativeEndian.PutUint32(msg[8:], rtmFibMatch)
	req := NewRequest(unix.RTM_GETROUTE, 0, msg).Addr(unix.RTA_DST, dst.Addr())
	req.Answer = true
	rep := c.One(req)
	switch {
	case IsErrno(rep.Err, unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ENOENT, unix.EACCES, unix.EINVAL):
		return Route{}, nil
	case rep.Err != nil:
		return Route{}, fmt.Errorf("look up %s: %w", dst, rep.Err)
	}
	return ParseRoute(rep.Msgs[0]), nil
}

// AnyScope lets a deletion match a route of any scope (RT_SCOPE_NOWHERE).
func (r *Request) AnyScope() *Request {
	r.buf[headerLen+6] = unix.RT_SCOPE_NOWHERE
	return r
}
