package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
)

const (
	loopback  = 1 // index of lo in every namespace
	ifaProto  = 11
	addrFlags = unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE
)

// inside is a pod's namespace while we configure it.
type inside struct {
	a  *apply
	l  *plan.PodLink
	ns int
	nl *conn // in ns
}

// enterPod opens a netlink socket in the pod's namespace. The thread is there for that moment only; everything
// else goes through the socket.
func (a *apply) enterPod(l *plan.PodLink, ns int) (*inside, error) {
	in := &inside{a: a, l: l, ns: ns}
	err := inNetns(ns, func() error {
		var err error
		if in.nl, err = dial(a.nl.buf); err != nil {
			return err
		}
		if !in.wants(netset.V6) {
			return nil
		}
		// Without a link-local address no advertisement is asked for, and the host sends none; this is for the rest.
		return refuseAdvertisements(l.IfName)
	})
	if err != nil {
		if in.nl != nil {
			in.nl.close()
		}
		return nil, fmt.Errorf("in %s: %w", l.Netns, err)
	}
	return in, nil
}

func (in *inside) wants(f netset.Family) bool { return netset.First(in.l.Addrs, f).IsValid() }

// piece is one thing inside a pod: what it is called and the message that makes it.
type piece struct {
	what string
	req  *request
}

// fill configures a new interface by one system call.
func (in *inside) fill(dev *link) error {
	pieces := []piece{{"loopback up", setLink(loopback, unix.IFF_UP)}, {"address generation", noAddrGen(dev.index)}, {"up", setLink(dev.index, unix.IFF_UP)}}
	pieces = append(pieces, in.addrs(dev)...)
	pieces = append(pieces, in.receiving(dev)...)
	pieces = append(pieces, in.neighbours(dev)...)
	pieces = append(pieces, in.routes(dev)...)
	if err := in.make(pieces); err != nil {
		return err
	}
	return in.limit(dev)
}

// limit shapes what the pod sends.
func (in *inside) limit(dev *link) error {
	if err := in.a.shape(in.nl, dev, in.l.Egress, in.l.MTU); err != nil {
		return fmt.Errorf("limit the rate from %s: %w", in.l.IfName, err)
	}
	return nil
}

// make sends the messages. Runtimes switch IPv6 off in a pod's namespace by default; where the kernel refuses an
// address for that, it is switched on for this interface and the refused pieces are tried again.
func (in *inside) make(pieces []piece) error {
	rep := in.send(pieces)
	if slices.ContainsFunc(rep, func(r reply) bool { return isErrno(r.err, unix.EACCES) }) {
		if err := in.switchOn(); err != nil {
			return err
		}
		var again []piece
		for i, r := range rep {
			if r.err != nil {
				again = append(again, pieces[i])
			}
		}
		pieces = again
		rep = in.send(pieces)
	}
	for i, r := range rep {
		if isErrno(r.err, unix.EAFNOSUPPORT) && !in.wants(netset.V6) {
			continue // address generation, where there is no IPv6
		}
		if r.err != nil {
			return fmt.Errorf("%s of %s in %s: %w", pieces[i].what, in.l.IfName, in.l.Netns, r.err)
		}
	}
	return nil
}

func (in *inside) send(pieces []piece) []reply {
	reqs := make([]*request, len(pieces))
	for i, p := range pieces {
		reqs[i] = p.req
	}
	return in.nl.do(reqs...)
}

func (in *inside) switchOn() error {
	return inNetns(in.ns, func() error {
		p := "net/ipv6/conf/" + in.l.IfName + "/disable_ipv6"
		if err := writeSysctl(p, "0"); err != nil {
			return fmt.Errorf("in %s: set sysctl %s: %w", in.l.Netns, p, err)
		}
		return nil
	})
}

func (in *inside) addrs(dev *link) []piece {
	var out []piece
	for _, a := range in.l.Addrs {
		r := newRequest(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, ifaddr(a, dev.index))
		r.addr(unix.IFA_LOCAL, a).addr(unix.IFA_ADDRESS, a).u32(unix.IFA_FLAGS, addrFlags).bytes(ifaProto, Protocol)
		out = append(out, piece{"address " + a.String(), r})
	}
	return out
}

// receiving makes local routes to IPv6 addresses. The kernel makes its own in a worker, as it does for every address that is not
// to be checked for duplicates, and on a loaded machine that is much later than the pod's start: what arrives
// before would be lost. Both may be there; the kernel's is preferred.
func (in *inside) receiving(dev *link) []piece {
	var out []piece
	for _, a := range in.l.Addrs {
		if netset.Of(a) == netset.V6 {
			out = append(out, piece{"local route " + a.String(), localRoute(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, a, dev.index)})
		}
	}
	return out
}

func localRoute(typ, flags uint16, a netip.Addr, index int) *request {
	msg := rtmsg(afOf(netset.Of(a)), netset.Of(a).Bits(), unix.RT_SCOPE_UNIVERSE)
	msg[4], msg[7] = unix.RT_TABLE_LOCAL, unix.RTN_LOCAL
	return newRequest(typ, flags, msg).addr(unix.RTA_DST, a).u32(unix.RTA_OIF, index)
}

// ifaddr is struct ifaddrmsg of a host address.
func ifaddr(a netip.Addr, index int) []byte {
	b := make([]byte, unix.SizeofIfAddrmsg)
	b[0], b[1] = afOf(netset.Of(a)), uint8(netset.Of(a).Bits())
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	return b
}

func (in *inside) neighbours(dev *link) []piece {
	var out []piece
	for _, f := range netset.FamiliesOf(in.l.Addrs) {
		n := &plan.Neighbour{Addr: netset.Gateway(f), MAC: model.GatewayMAC}
		out = append(out, piece{"neighbour " + n.Addr.String(), neighbourRequest(n, dev.index)})
	}
	return out
}

// wanted lists the routes inside the pod, in the order in which the kernel accepts them.
func (in *inside) wanted(dev *link) []route {
	var out []route
	for _, f := range netset.FamiliesOf(in.l.Addrs) {
		gw := netset.Gateway(f)
		out = append(out, route{dst: netset.Host(gw), dev: dev.index}, route{dst: netset.Default(f), dev: dev.index, via: gw})
	}
	for _, n := range in.l.Narrow {
		if in.wants(netset.OfPrefix(n.Dst)) {
			out = append(out, route{dst: n.Dst.Masked(), dev: dev.index, via: netset.Gateway(netset.OfPrefix(n.Dst)), mtu: n.MTU})
		}
	}
	return out
}

func (in *inside) routes(dev *link) []piece {
	var out []piece
	for _, r := range in.wanted(dev) {
		out = append(out, piece{"route " + r.dst.String(), r.request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL)})
	}
	return out
}

// repair makes an existing interface equal to the row: what is missing is made, what differs replaced, and
// what bears our mark and is not wanted removed. What the pod itself configured stays.
func (in *inside) repair(dev *link) error {
	// The device first: the kernel forgets routes of a device that is down or changes its address.
	var pieces []piece
	if dev.mac != in.l.MAC {
		pieces = append(pieces, piece{"MAC", setLink(dev.index, 0).bytes(unix.IFLA_ADDRESS, in.l.MAC[:]...)})
	}
	if dev.mtu != in.l.MTU {
		pieces = append(pieces, piece{"MTU", setLink(dev.index, 0).u32(unix.IFLA_MTU, in.l.MTU)})
	}
	if !dev.up {
		pieces = append(pieces, piece{"address generation", noAddrGen(dev.index)}, piece{"up", setLink(dev.index, unix.IFF_UP)})
	}
	if len(pieces) > 0 {
		if err := in.make(append(pieces, piece{"loopback up", setLink(loopback, unix.IFF_UP)})); err != nil {
			return err
		}
	}
	addrs, err := in.addrChanges(dev)
	neighs, err2 := in.neighbourChanges(dev)
	routes, err3 := in.routeChanges(dev)
	if err := errors.Join(err, err2, err3); err != nil {
		return fmt.Errorf("inspect %s in %s: %w", in.l.IfName, in.l.Netns, err)
	}
	if pieces = slices.Concat(addrs, neighs, routes); len(pieces) > 0 {
		if err := in.make(pieces); err != nil {
			return err
		}
	}
	return in.limit(dev)
}

func (in *inside) addrChanges(dev *link) ([]piece, error) {
	has := map[netip.Addr]bool{}
	var out []piece
	var stale []netip.Addr
	err := in.nl.dump(newRequest(unix.RTM_GETADDR, 0, make([]byte, unix.SizeofIfAddrmsg)), func(_ uint16, b []byte) {
		a := parseAddr(b)
		switch {
		case a.index != dev.index:
		case slices.Contains(in.l.Addrs, a.prefix.Addr()) && a.prefix.IsSingleIP():
			has[a.prefix.Addr()] = true
		case a.proto == Protocol:
			r := newRequest(unix.RTM_DELADDR, 0, ifaddr(a.prefix.Addr(), dev.index))
			out = append(out, piece{"removal of address " + a.prefix.String(), r.addr(unix.IFA_LOCAL, a.prefix.Addr())})
			stale = append(stale, a.prefix.Addr())
		}
	})
	for i, p := range in.addrs(dev) {
		if !has[in.l.Addrs[i]] {
			out = append(out, p)
		}
	}
	for _, a := range stale {
		if netset.Of(a) == netset.V6 { // its local route may be gone already: then there is nothing to tell
			_ = in.nl.one(localRoute(unix.RTM_DELROUTE, 0, a, dev.index))
		}
	}
	return out, err
}

func (in *inside) neighbourChanges(dev *link) ([]piece, error) {
	has := map[netip.Addr]bool{}
	err := in.nl.dump(newRequest(unix.RTM_GETNEIGH, 0, ndmsg(0, 0, 0)), func(_ uint16, b []byte) {
		if n := parseNeighbour(b); n.dev == dev.index && n.permanent && n.mac == model.GatewayMAC {
			has[n.addr] = true
		}
	})
	var out []piece
	for i, f := range netset.FamiliesOf(in.l.Addrs) {
		if !has[netset.Gateway(f)] {
			out = append(out, in.neighbours(dev)[i])
		}
	}
	return out, err
}

func (in *inside) routeChanges(dev *link) ([]piece, error) {
	var have []route
	err := in.nl.dump(newRequest(unix.RTM_GETROUTE, 0, rtmsg(0, 0, 0)), func(_ uint16, b []byte) {
		if r := parseRoute(b); r.proto == Protocol && r.table == unix.RT_TABLE_MAIN && r.dev == dev.index {
			have = append(have, r)
		}
	})
	wanted := in.wanted(dev)
	var out []piece
	for _, r := range wanted {
		if !slices.ContainsFunc(have, r.same) {
			out = append(out, piece{"route " + r.dst.String(), r.request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE)})
		}
	}
	for _, h := range have {
		if !slices.ContainsFunc(wanted, func(r route) bool { return r.dst == h.dst }) {
			out = append(out, piece{"removal of route " + h.dst.String(), h.request(unix.RTM_DELROUTE, 0)})
		}
	}
	return out, err
}
