package linux

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"weft/internal/netset"
	"weft/internal/plan"
)

const (
	rtaVia      = 18      // RTA_VIA: a next hop of another family
	rtmFibMatch = 1 << 13 // RTM_F_FIB_MATCH: answer with the route itself, not with what a lookup makes of it
)

// route is a unicast route as rtnetlink has it.
type route struct {
	dst   netip.Prefix
	dev   int // index
	via   netip.Addr
	src   netip.Addr
	mtu   int
	proto int
	table int
	kind  int  // RTN_*
	other bool // it is no plain unicast route, or has several next hops
}

// same reports whether another route sends packets the same way.
func (r route) same(o route) bool {
	return r.dst == o.dst && r.dev == o.dev && r.via == o.via && r.mtu == o.mtu && (r.src == o.src || !r.src.IsValid()) && !o.other
}

// rtmsg is struct rtmsg for table main and our protocol.
func rtmsg(family uint8, bits int, scope uint8) []byte {
	return []byte{family, uint8(bits), 0, 0, unix.RT_TABLE_MAIN, Protocol, scope, unix.RTN_UNICAST, 0, 0, 0, 0}
}

// request makes, replaces or deletes the route, as typ and flags say. Next hops are always "onlink".
func (r route) request(typ, flags uint16) *request {
	family := netset.OfPrefix(r.dst)
	scope := uint8(unix.RT_SCOPE_UNIVERSE)
	if family == netset.V4 && !r.via.IsValid() {
		scope = unix.RT_SCOPE_LINK
	}
	msg := rtmsg(afOf(family), r.dst.Bits(), scope)
	if r.via.IsValid() {
		binary.NativeEndian.PutUint32(msg[8:], unix.RTNH_F_ONLINK)
	}
	req := newRequest(typ, flags, msg).addr(unix.RTA_DST, r.dst.Addr()).u32(unix.RTA_OIF, r.dev)
	switch {
	case !r.via.IsValid():
	case netset.Of(r.via) == family:
		req.addr(unix.RTA_GATEWAY, r.via)
	default:
		hop := binary.NativeEndian.AppendUint16(nil, uint16(afOf(netset.Of(r.via))))
		req.bytes(rtaVia, append(hop, r.via.AsSlice()...)...)
	}
	if r.src.IsValid() {
		req.addr(unix.RTA_PREFSRC, r.src)
	}
	if r.mtu != 0 {
		req.nest(unix.RTA_METRICS, func() { req.u32(unix.RTAX_MTU, r.mtu) })
	}
	return req
}

func parseRoute(b []byte) route {
	if len(b) < unix.SizeofRtMsg {
		return route{other: true}
	}
	base := netip.IPv4Unspecified()
	if b[0] == unix.AF_INET6 {
		base = netip.IPv6Unspecified()
	}
	r := route{proto: int(b[5]), table: int(b[4]), kind: int(b[7]), other: b[7] != unix.RTN_UNICAST}
	for typ, v := range attrs(b[unix.SizeofRtMsg:]) {
		switch typ {
		case unix.RTA_DST:
			base = getAddr(v)
		case unix.RTA_OIF:
			r.dev = getUint(v)
		case unix.RTA_GATEWAY:
			r.via = getAddr(v)
		case rtaVia:
			if len(v) > 2 {
				r.via = getAddr(v[2:])
			}
		case unix.RTA_PREFSRC:
			r.src = getAddr(v)
		case unix.RTA_TABLE:
			r.table = getUint(v)
		case unix.RTA_MULTIPATH:
			r.other = true
		case unix.RTA_METRICS:
			for typ, v := range attrs(v) {
				if typ == unix.RTAX_MTU {
					r.mtu = getUint(v)
				}
			}
		}
	}
	r.dst = netip.PrefixFrom(base, int(b[1]))
	return r
}

// plan returns the route of a row; false if its device is not there.
func (a *apply) planned(row *plan.Route) (route, bool) {
	r := route{dst: row.Dst.Masked(), dev: a.linkIndex(row.Dev), src: row.Src, mtu: row.MTU}
	if row.Via.IsValid() {
		r.via = row.Via.Unmap()
	}
	return r, r.dev != 0
}

// setRoutes makes the host's routes. They are ours by their protocol number in table main, and Sweep deletes those
// that nobody wants. A dead agent's routes go on working until their device is deleted.
func (a *apply) setRoutes(rows []*plan.Route) {
	var reqs []*request
	var asked []*plan.Route
	for _, row := range rows {
		r, ok := a.planned(row)
		if !ok {
			a.res[row.Key()] = fmt.Errorf("add route %s: there is no interface %s", row.Dst, row.Dev)
			continue
		}
		reqs = append(reqs, r.request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL))
		asked = append(asked, row)
	}
	for i, rep := range a.nl.do(reqs...) {
		err := rep.err
		if isErrno(err, unix.EEXIST) {
			err = a.replaceRoute(asked[i])
		}
		if err != nil {
			err = fmt.Errorf("add route %s: %w", asked[i], err)
		}
		a.res[asked[i].Key()] = err
	}
}

// replaceRoute deals with a destination that has a route. Ours is made as it should be. Another's is replaced only
// if it took the place of ours.
func (a *apply) replaceRoute(row *plan.Route) error {
	want, _ := a.planned(row)
	old, err := a.nl.routesTo(want.dst)
	if err != nil {
		return err
	}
	mine := a.d.have[row.Key()] != nil
	for _, o := range old {
		if o.proto == Protocol && want.same(o) {
			return nil
		}
		mine = mine || o.proto == Protocol
	}
	if !mine {
		return fmt.Errorf("a foreign route is in the way (protocol %d, interface %d, via %v)", old[0].proto, old[0].dev, old[0].via)
	}
	return a.nl.one(want.request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE)).err
}

// routesTo returns the routes of table main with exactly this destination.
func (c *conn) routesTo(dst netip.Prefix) ([]route, error) {
	r, err := c.routeTo(dst)
	if err != nil || r.dst == dst && r.table == unix.RT_TABLE_MAIN {
		return []route{r}, err
	}
	// A longer prefix or another table answers for the first address of dst: look through the list.
	var out []route
	err = c.dump(newRequest(unix.RTM_GETROUTE, 0, rtmsg(afOf(netset.OfPrefix(dst)), 0, 0)), func(_ uint16, b []byte) {
		if r := parseRoute(b); r.dst == dst && r.table == unix.RT_TABLE_MAIN {
			out = append(out, r)
		}
	})
	return out, err
}

// routeTo returns the route that the first address of dst takes; the zero route if there is none.
func (c *conn) routeTo(dst netip.Prefix) (route, error) {
	msg := make([]byte, unix.SizeofRtMsg)
	msg[0], msg[1] = afOf(netset.OfPrefix(dst)), uint8(netset.OfPrefix(dst).Bits())
	binary.NativeEndian.PutUint32(msg[8:], rtmFibMatch)
	req := newRequest(unix.RTM_GETROUTE, 0, msg).addr(unix.RTA_DST, dst.Addr())
	req.answer = true
	rep := c.one(req)
	switch {
	case isErrno(rep.err, unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ENOENT, unix.EACCES, unix.EINVAL):
		return route{}, nil
	case rep.err != nil:
		return route{}, fmt.Errorf("look up %s: %w", dst, rep.err)
	}
	return parseRoute(rep.msgs[0]), nil
}

func (a *apply) deleteRoutes(rows []*plan.Route) {
	var reqs []*request
	var asked []*plan.Route
	for _, row := range rows {
		if r, ok := a.planned(row); ok {
			reqs = append(reqs, route{dst: r.dst, dev: r.dev}.request(unix.RTM_DELROUTE, 0).anyScope())
			asked = append(asked, row)
		} else {
			a.res[row.Key()] = nil // it went with its device
		}
	}
	for i, rep := range a.nl.do(reqs...) {
		if a.res[asked[i].Key()] = nil; rep.err != nil && !gone(rep.err) {
			a.res[asked[i].Key()] = fmt.Errorf("delete route %s: %w", asked[i], rep.err)
		}
	}
}

// anyScope lets a deletion match a route of any scope (RT_SCOPE_NOWHERE).
func (r *request) anyScope() *request {
	r.buf[headerLen+6] = unix.RT_SCOPE_NOWHERE
	return r
}

// sweepRoutes deletes routes of ours that are not wanted.
func (d *Driver) sweepRoutes(want plan.View) error {
	a := &apply{d: d, nl: d.nl, index: map[string]int{}}
	var reqs []*request
	for _, f := range netset.Families() {
		err := d.nl.dump(newRequest(unix.RTM_GETROUTE, 0, rtmsg(afOf(f), 0, 0)), func(_ uint16, b []byte) {
			r := parseRoute(b)
			if r.proto != Protocol || r.table != unix.RT_TABLE_MAIN || netset.OfPrefix(r.dst) != f {
				return
			}
			row := plan.Get[*plan.Route](want, (&plan.Route{Dst: r.dst}).Key())
			if row != nil && a.linkIndex(row.Dev) == r.dev {
				return
			}
			reqs = append(reqs, r.request(unix.RTM_DELROUTE, 0).anyScope())
			d.log.Info("sweeping route", "dst", r.dst.String())
		})
		if err != nil {
			return fmt.Errorf("list the routes: %w", err)
		}
	}
	for _, rep := range d.nl.do(reqs...) {
		if rep.err != nil && !gone(rep.err) {
			return fmt.Errorf("sweep routes: %w", rep.err)
		}
	}
	return nil
}
