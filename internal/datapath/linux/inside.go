package linux

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"weft/internal/datapath/linux/rtnl"
	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
)

const (
	loopback  = 1 // index of lo in every namespace
	addrFlags = unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE
)

// inside is a pod's namespace while we configure it.
type inside struct {
	a  *apply
	l  *plan.PodLink
	ns int
	nl *rtnl.Conn // in ns
}

// enterPod opens a netlink socket in the pod's namespace. The thread is there for that moment only; everything
// else goes through the socket.
func (a *apply) enterPod(l *plan.PodLink, ns int) (*inside, error) {
	in := &inside{a: a, l: l, ns: ns}
	err := rtnl.InNetns(ns, func() error {
		var err error
		if in.nl, err = a.nl.DialHere(); err != nil {
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
			in.nl.Close()
		}
		return nil, fmt.Errorf("in %s: %w", l.Netns, err)
	}
	return in, nil
}

func (in *inside) wants(f netset.Family) bool { return netset.First(in.l.Addrs, f).IsValid() }

// piece is one thing inside a pod: what it is called and the message that makes it.
type piece struct {
	what string
	req  *rtnl.Request
}

// fill configures a new interface by one system call.
func (in *inside) fill(dev *rtnl.Link) error {
	pieces := []piece{{"loopback up", rtnl.SetLink(loopback, unix.IFF_UP)}, {"address generation", noAddrGen(dev.Index)}, {"up", rtnl.SetLink(dev.Index, unix.IFF_UP)}}
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
func (in *inside) limit(dev *rtnl.Link) error {
	if err := in.a.shape(in.nl, dev, in.l.Egress, in.l.MTU); err != nil {
		return fmt.Errorf("limit the rate from %s: %w", in.l.IfName, err)
	}
	return nil
}

// make sends the messages. Runtimes switch IPv6 off in a pod's namespace by default; where the kernel refuses an
// address for that, it is switched on for this interface and the refused pieces are tried again.
func (in *inside) make(pieces []piece) error {
	rep := in.send(pieces)
	if slices.ContainsFunc(rep, func(r rtnl.Reply) bool { return rtnl.IsErrno(r.Err, unix.EACCES) }) {
		if err := in.switchOn(); err != nil {
			return err
		}
		var again []piece
		for i, r := range rep {
			if r.Err != nil {
				again = append(again, pieces[i])
			}
		}
		pieces = again
		rep = in.send(pieces)
	}
	for i, r := range rep {
		if rtnl.IsErrno(r.Err, unix.EAFNOSUPPORT) && !in.wants(netset.V6) {
			continue // address generation, where there is no IPv6
		}
		if r.Err != nil {
			return fmt.Errorf("%s of %s in %s: %w", pieces[i].what, in.l.IfName, in.l.Netns, r.Err)
		}
	}
	return nil
}

func (in *inside) send(pieces []piece) []rtnl.Reply {
	reqs := make([]*rtnl.Request, len(pieces))
	for i, p := range pieces {
		reqs[i] = p.req
	}
	return in.nl.Do(reqs...)
}

func (in *inside) switchOn() error {
	return rtnl.InNetns(in.ns, func() error {
		p := "net/ipv6/conf/" + in.l.IfName + "/disable_ipv6"
		if err := writeSysctl(p, "0"); err != nil {
			return fmt.Errorf("in %s: set sysctl %s: %w", in.l.Netns, p, err)
		}
		return nil
	})
}

func (in *inside) addrs(dev *rtnl.Link) []piece {
	var out []piece
	for _, a := range in.l.Addrs {
		r := rtnl.NewRequest(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, rtnl.IfAddr(a, dev.Index))
		r.Addr(unix.IFA_LOCAL, a).Addr(unix.IFA_ADDRESS, a).U32(unix.IFA_FLAGS, addrFlags).Bytes(rtnl.IFAProto, rtnl.Protocol)
		out = append(out, piece{"address " + a.String(), r})
	}
	return out
}

// receiving makes local routes to IPv6 addresses. The kernel makes its own in a worker, as it does for every address that is not
// to be checked for duplicates, and on a loaded machine that is much later than the pod's start: what arrives
// before would be lost. Both may be there; the kernel's is preferred.
func (in *inside) receiving(dev *rtnl.Link) []piece {
	var out []piece
	for _, a := range in.l.Addrs {
		if netset.Of(a) == netset.V6 {
			out = append(out, piece{"local route " + a.String(), localRoute(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, a, dev.Index)})
		}
	}
	return out
}

func localRoute(typ, flags uint16, a netip.Addr, index int) *rtnl.Request {
	msg := rtnl.RtMsg(rtnl.AF(netset.Of(a)), netset.Of(a).Bits(), unix.RT_SCOPE_UNIVERSE)
	msg[4], msg[7] = unix.RT_TABLE_LOCAL, unix.RTN_LOCAL
	return rtnl.NewRequest(typ, flags, msg).Addr(unix.RTA_DST, a).U32(unix.RTA_OIF, index)
}

func (in *inside) neighbours(dev *rtnl.Link) []piece {
	var out []piece
	for _, f := range netset.FamiliesOf(in.l.Addrs) {
		n := &plan.Neighbour{Addr: netset.Gateway(f), MAC: model.GatewayMAC}
		out = append(out, piece{"neighbour " + n.Addr.String(), neighbourRequest(n, dev.Index)})
	}
	return out
}

// wanted lists the routes inside the pod, in the order in which the kernel accepts them.
func (in *inside) wanted(dev *rtnl.Link) []rtnl.Route {
	var out []rtnl.Route
	for _, f := range netset.FamiliesOf(in.l.Addrs) {
		gw := netset.Gateway(f)
		out = append(out, rtnl.Route{Dst: netset.Host(gw), Dev: dev.Index}, rtnl.Route{Dst: netset.Default(f), Dev: dev.Index, Via: gw})
	}
	for _, n := range in.l.Narrow {
		if in.wants(netset.OfPrefix(n.Dst)) {
			out = append(out, rtnl.Route{Dst: n.Dst.Masked(), Dev: dev.Index, Via: netset.Gateway(netset.OfPrefix(n.Dst)), MTU: n.MTU})
		}
	}
	return out
}

func (in *inside) routes(dev *rtnl.Link) []piece {
	var out []piece
	for _, r := range in.wanted(dev) {
		out = append(out, piece{"route " + r.Dst.String(), r.Request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL)})
	}
	return out
}

// repair makes an existing interface equal to the row: what is missing is made, what differs replaced, and
// what bears our mark and is not wanted removed. What the pod itself configured stays.
func (in *inside) repair(dev *rtnl.Link) error {
	// The device first: the kernel forgets routes of a device that is down or changes its address.
	var pieces []piece
	if dev.MAC != in.l.MAC {
		pieces = append(pieces, piece{"MAC", rtnl.SetLink(dev.Index, 0).Bytes(unix.IFLA_ADDRESS, in.l.MAC[:]...)})
	}
	if dev.MTU != in.l.MTU {
		pieces = append(pieces, piece{"MTU", rtnl.SetLink(dev.Index, 0).U32(unix.IFLA_MTU, in.l.MTU)})
	}
	if !dev.Up {
		pieces = append(pieces, piece{"address generation", noAddrGen(dev.Index)}, piece{"up", rtnl.SetLink(dev.Index, unix.IFF_UP)})
	}
	if len(pieces) > 0 {
		if err := in.make(append(pieces, piece{"loopback up", rtnl.SetLink(loopback, unix.IFF_UP)})); err != nil {
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

func (in *inside) addrChanges(dev *rtnl.Link) ([]piece, error) {
	has := map[netip.Addr]bool{}
	var out []piece
	var stale []netip.Addr
	err := in.nl.Dump(rtnl.NewRequest(unix.RTM_GETADDR, 0, make([]byte, unix.SizeofIfAddrmsg)), func(_ uint16, b []byte) {
		a := rtnl.ParseAddr(b)
		switch {
		case a.Index != dev.Index:
		case slices.Contains(in.l.Addrs, a.Prefix.Addr()) && a.Prefix.IsSingleIP():
			has[a.Prefix.Addr()] = true
		case a.Proto == rtnl.Protocol:
			r := rtnl.NewRequest(unix.RTM_DELADDR, 0, rtnl.IfAddr(a.Prefix.Addr(), dev.Index))
			out = append(out, piece{"removal of address " + a.Prefix.String(), r.Addr(unix.IFA_LOCAL, a.Prefix.Addr())})
			stale = append(stale, a.Prefix.Addr())
		}
	})
	for i, p := range in.addrs(dev) {
		if !has[in.l.Addrs[i]] {
			out = append(out, p)
		}
	}
	for _, a := range stale {
		if netset.Of(a) == netset.V6 { // its local route may be gone already: then there is nothing to tell
			_ = in.nl.One(localRoute(unix.RTM_DELROUTE, 0, a, dev.Index))
		}
	}
	return out, err
}

func (in *inside) neighbourChanges(dev *rtnl.Link) ([]piece, error) {
	has := map[netip.Addr]bool{}
	err := in.nl.Dump(rtnl.NewRequest(unix.RTM_GETNEIGH, 0, rtnl.NdMsg(0, 0, 0)), func(_ uint16, b []byte) {
		if n := rtnl.ParseNeighbour(b); n.Dev == dev.Index && n.Permanent && n.MAC == model.GatewayMAC {
			has[n.Addr] = true
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

func (in *inside) routeChanges(dev *rtnl.Link) ([]piece, error) {
	var have []rtnl.Route
	err := in.nl.Dump(rtnl.NewRequest(unix.RTM_GETROUTE, 0, rtnl.RtMsg(0, 0, 0)), func(_ uint16, b []byte) {
		if r := rtnl.ParseRoute(b); r.Proto == rtnl.Protocol && r.Table == unix.RT_TABLE_MAIN && r.Dev == dev.Index {
			have = append(have, r)
		}
	})
	wanted := in.wanted(dev)
	var out []piece
	for _, r := range wanted {
		if !slices.ContainsFunc(have, r.Same) {
			out = append(out, piece{"route " + r.Dst.String(), r.Request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE)})
		}
	}
	for _, h := range have {
		if !slices.ContainsFunc(wanted, func(r rtnl.Route) bool { return r.Dst == h.Dst }) {
			out = append(out, piece{"removal of route " + h.Dst.String(), h.Request(unix.RTM_DELROUTE, 0)})
		}
	}
	return out, err
}
