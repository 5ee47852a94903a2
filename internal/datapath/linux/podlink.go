package linux

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
)

const vethPeer = 1 // VETH_INFO_PEER: struct ifinfomsg and attributes of the other end

// IPv4 settings of a device that can be set by netlink (IFLA_INET_CONF, linux/ip.h).
const (
	confForwarding    = 1
	confSendRedirects = 6
	confRPFilter      = 8
	confRouteLocalnet = 26
)

// setPodLink makes a pod's veth pair and its insides.
//
// The host side is ours by its alias "weft:<endpoint id>", which is set in the same system call that
// makes the link; Sweep deletes it with all of its insides. If the agent dies before the insides are
// complete, the endpoint is either asked for again, and completed, or swept.
func (a *apply) setPodLink(l *plan.PodLink) error {
	err := a.createPodLink(l)
	if !isErrno(err, unix.EEXIST) {
		return err
	}
	host, found := a.nl.link(l.HostIf)
	switch {
	case found != nil:
		return fmt.Errorf("find link %s: %w", l.HostIf, found)
	case host == nil:
		return fmt.Errorf("make link %s: interface %s exists already in %s", l.HostIf, l.IfName, l.Netns)
	case !host.ours() || host.kind != "veth":
		return fmt.Errorf("make link %s: a foreign interface has that name (kind %q, alias %q)", l.HostIf, host.kind, host.alias)
	}
	a.index[l.HostIf] = host.index
	if host.alias == podAlias(l) {
		if err := a.repairPodLink(l, host); !errors.Is(err, errWrongPeer) {
			return err
		}
	}
	if err := a.drop(host); err != nil {
		return err
	}
	return a.createPodLink(l)
}

// createPodLink makes the pair; it leaves nothing behind if it fails.
func (a *apply) createPodLink(l *plan.PodLink) error {
	ns, err := openNetns(l.Netns)
	if err != nil {
		return err
	}
	defer unix.Close(ns)
	rep := a.nl.do(
		vethRequest(l, ns),
		named(l.HostIf, 0).text(unix.IFLA_IFALIAS, podAlias(l)),
		a.hostConf(l),
		noAddrGenNamed(l.HostIf),
		named(l.HostIf, unix.IFF_UP),
		getLinkRequest(0, l.HostIf),
	)
	if err := rep[0].err; err != nil {
		return fmt.Errorf("make link %s with %s in %s: %w", l.HostIf, l.IfName, l.Netns, err)
	}
	var host *link
	for _, i := range []int{1, 2, 4, 5} { // 3 fails where IPv6 is off
		if err = rep[i].err; err != nil {
			err = fmt.Errorf("set up link %s: %w", l.HostIf, err)
			break
		}
	}
	if err == nil {
		host = parseLink(rep[5].msgs[0])
		a.index[l.HostIf] = host.index
		err = a.finishPodLink(l, host, ns)
	}
	if err != nil {
		delete(a.index, l.HostIf)
		undo := a.nl.one(named(l.HostIf, 0).asDelete()).err
		if gone(undo) {
			undo = nil // with the pod's namespace, most likely
		}
		return errors.Join(err, undo)
	}
	return nil
}

// finishPodLink does what needs the link's indexes.
func (a *apply) finishPodLink(l *plan.PodLink, host *link, ns int) error {
	if err := a.d.here(func() error { return refuseAdvertisements(l.HostIf) }); err != nil {
		return err
	}
	if err := a.shape(a.nl, host, l.Ingress, l.MTU); err != nil {
		return fmt.Errorf("limit the rate to %s: %w", l.IfName, err)
	}
	in, err := a.enterPod(l, ns)
	if err != nil {
		return err
	}
	defer in.nl.close()
	return in.fill(&link{index: host.peer, name: l.IfName, mtu: l.MTU, mac: l.MAC})
}

// refuseAdvertisements keeps an interface from taking routes from whoever is at its other end.
func refuseAdvertisements(dev string) error {
	p := "net/ipv6/conf/" + dev + "/accept_ra"
	if err := writeSysctl(p, "0"); err != nil && !isErrno(err, unix.ENOENT) {
		return fmt.Errorf("set sysctl %s: %w", p, err)
	}
	return nil
}

// vethRequest is the one message that makes the pair with the peer in its place.
func vethRequest(l *plan.PodLink, ns int) *request {
	r := newRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, ifinfo(0, 0, 0))
	// One queue: the default is one for each possible CPU, allocated and never used.
	end := func(name string, mac model.MAC) {
		r.text(unix.IFLA_IFNAME, name).bytes(unix.IFLA_ADDRESS, mac[:]...).u32(unix.IFLA_MTU, l.MTU)
		r.u32(unix.IFLA_NUM_TX_QUEUES, 1).u32(unix.IFLA_NUM_RX_QUEUES, 1)
	}
	end(l.HostIf, model.GatewayMAC)
	r.u32(unix.IFLA_GROUP, Group)
	return r.nest(unix.IFLA_LINKINFO, func() {
		r.text(unix.IFLA_INFO_KIND, "veth")
		r.nest(unix.IFLA_INFO_DATA, func() {
			r.nest(vethPeer, func() {
				r.raw(ifinfo(0, 0, 0))
				end(l.IfName, l.MAC)
				r.u32(unix.IFLA_NET_NS_FD, ns)
			})
		})
	})
}

// named starts a change of an interface that is known by its name.
func named(name string, flags uint32) *request {
	return setLink(0, flags).text(unix.IFLA_IFNAME, name)
}

// asDelete turns a change of a link into its deletion.
func (r *request) asDelete() *request {
	del := newRequest(unix.RTM_DELLINK, 0, nil)
	del.raw(r.buf[headerLen:])
	return del
}

func noAddrGenNamed(name string) *request { return noAddrGen(0).text(unix.IFLA_IFNAME, name) }

// hostConf sets what IPv4 needs of the host side. Forwarding is per device and a "default" of 0 must not
// cut pods off. Reverse path filtering follows "all": routes to pods are symmetric, so strict is safe as
// well. A pod with host ports may send answers to 127.0.0.1 (see hostPorts in datapath/nft, which
// drops everything else from pods to 127.0.0.0/8 before the pod exists).
func (a *apply) hostConf(l *plan.PodLink) *request {
	localnet := 0
	for h := range plan.All[*plan.HostPort](a.want, plan.KindHostPort) {
		if h.Owner() == l.Owner() && netset.Of(h.Pod.Addr()) == netset.V4 {
			localnet = 1
			break
		}
	}
	r := named(l.HostIf, 0)
	return r.nest(unix.IFLA_AF_SPEC, func() {
		r.nest(unix.AF_INET, func() {
			r.nest(unix.IFLA_INET_CONF, func() {
				r.u32(confForwarding, 1).u32(confSendRedirects, 0).u32(confRPFilter, 0).u32(confRouteLocalnet, localnet)
			})
		})
	})
}

// errWrongPeer: the other end of a link is not where it belongs.
var errWrongPeer = errors.New("the other end is elsewhere") //nolint:gochecknoglobals // a sentinel

// repairPodLink puts right what is wrong of an existing link and leaves alone what is right.
func (a *apply) repairPodLink(l *plan.PodLink, host *link) error {
	ns, err := openNetns(l.Netns)
	if err != nil {
		return err
	}
	defer unix.Close(ns)
	in, err := a.enterPod(l, ns)
	if err != nil {
		return err
	}
	defer in.nl.close()
	peer, err := in.nl.linkByIndex(host.peer)
	if err != nil {
		return fmt.Errorf("find %s in %s: %w", l.IfName, l.Netns, err)
	}
	if peer == nil || peer.kind != "veth" || peer.peer != host.index || peer.name != l.IfName {
		return errWrongPeer
	}
	if err := a.repairHost(l, host); err != nil {
		return err
	}
	return in.repair(peer)
}

func (a *apply) repairHost(l *plan.PodLink, host *link) error {
	todo := []*request{a.hostConf(l)}
	if host.mac != model.GatewayMAC {
		todo = append(todo, setLink(host.index, 0).bytes(unix.IFLA_ADDRESS, model.GatewayMAC[:]...))
	}
	if host.mtu != l.MTU {
		todo = append(todo, setLink(host.index, 0).u32(unix.IFLA_MTU, l.MTU))
	}
	if host.group != Group {
		todo = append(todo, setLink(host.index, 0).u32(unix.IFLA_GROUP, Group))
	}
	if host.master != 0 {
		todo = append(todo, setLink(host.index, 0).u32(unix.IFLA_MASTER, 0))
	}
	if !host.up {
		todo = append(todo, setLink(host.index, unix.IFF_UP))
	}
	if err := first(a.nl.do(todo...)); err != nil {
		return fmt.Errorf("repair link %s: %w", l.HostIf, err)
	}
	if err := a.d.here(func() error { return refuseAdvertisements(l.HostIf) }); err != nil {
		return err
	}
	if err := a.shape(a.nl, host, l.Ingress, l.MTU); err != nil {
		return fmt.Errorf("limit the rate to %s: %w", l.IfName, err)
	}
	return nil
}

// first returns the first error of the replies.
func first(rep []reply) error {
	for _, r := range rep {
		if r.err != nil {
			return r.err
		}
	}
	return nil
}
