package linux

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/datapath/linux/rtnl"
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

// Sentinels of making a pod's link. //nolint:gochecknoglobals
var (
	errNameTaken = errors.New("the name is taken")
	errWrongPeer = errors.New("the other end is elsewhere")
)

// setPodLink makes a pod's veth pair and its insides.
//
// The host side is ours by its alias "weft:<endpoint id>"; Sweep deletes it with all of its insides. If the agent dies
// before the alias is set, the link is known by our group and MAC and by having no alias; if it dies before the
// insides are complete, the endpoint is either asked for again, and completed, or swept.
func (a *apply) setPodLink(l *plan.PodLink) error {
	err := a.createPodLink(l)
	if !errors.Is(err, errNameTaken) {
		return err
	}
	host, err := a.nl.LinkByName(l.HostIf)
	switch {
	case err != nil:
		return fmt.Errorf("find link %s: %w", l.HostIf, err)
	case host == nil:
		return fmt.Errorf("make link %s: interface %s exists already in %s: %w", l.HostIf, l.IfName, l.Netns, unix.EEXIST)
	case !ours(host) || host.Kind != "veth":
		return fmt.Errorf("make link %s: a foreign interface has that name (kind %q, alias %q)", l.HostIf, host.Kind, host.Alias)
	}
	a.index[l.HostIf] = host.Index
	if host.Alias == podAlias(l) {
		if err := a.repairPodLink(l, host); !errors.Is(err, errWrongPeer) {
			return err
		}
	}
	if err := a.drop(host); err != nil {
		return err
	}
	if err := a.createPodLink(l); err != nil {
		return fmt.Errorf("make link %s anew: %w", l.HostIf, err)
	}
	return nil
}

// createPodLink makes the pair; it leaves nothing behind if it fails. A name that exists is errNameTaken.
func (a *apply) createPodLink(l *plan.PodLink) error {
	ns, err := rtnl.OpenNetns(l.Netns)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(ns) }()
	// Nothing but a question may follow in the same batch: the kernel would go on after a failure and change the
	// link that has the name.
	rep := a.nl.Do(vethRequest(l, ns), rtnl.GetLink(0, l.HostIf))
	switch err := rep[0].Err; {
	case rtnl.IsErrno(err, unix.EEXIST):
		return errNameTaken
	case err != nil:
		return fmt.Errorf("make link %s with %s in %s: %w", l.HostIf, l.IfName, l.Netns, err)
	case rep[1].Err != nil:
		return fmt.Errorf("find the new link %s: %w", l.HostIf, rep[1].Err)
	}
	host := rtnl.ParseLink(rep[1].Msgs[0])
	a.index[l.HostIf] = host.Index
	if err := a.finishPodLink(l, host, ns); err != nil {
		return errors.Join(err, a.drop(host))
	}
	return nil
}

// finishPodLink configures both ends of a new pair.
func (a *apply) finishPodLink(l *plan.PodLink, host *rtnl.Link, ns int) error {
	rep := a.nl.Do(
		rtnl.SetLink(host.Index, 0).Text(unix.IFLA_IFALIAS, podAlias(l)),
		noAddrGen(host.Index),
		hostConf(host.Index, a.localnet(l)),
		rtnl.SetLink(host.Index, unix.IFF_UP),
	)
	if err := errors.Join(rep[0].Err, rep[2].Err, rep[3].Err); err != nil { // rep[1] fails where IPv6 is off
		return fmt.Errorf("set up link %s: %w", l.HostIf, err)
	}
	if err := a.d.here(func() error { return refuseAdvertisements(l.HostIf) }); err != nil {
		return err
	}
	if a.d.shut != nil {
		if err := a.d.here(func() error { return a.d.shut(host.Index) }); err != nil {
			return fmt.Errorf("shut link %s: %w", l.HostIf, err)
		}
	}
	if err := a.shape(a.nl, host, l.Ingress, l.MTU); err != nil {
		return fmt.Errorf("limit the rate to %s: %w", l.IfName, err)
	}
	in, err := a.enterPod(l, ns)
	if err != nil {
		return err
	}
	defer in.nl.Close()
	if err := in.fill(&rtnl.Link{Index: host.Peer, Name: l.IfName, MTU: l.MTU, MAC: l.MAC}); err != nil {
		return err
	}
	return a.awaitLink(host)
}

// awaitLink waits until the host side sends. It came up before its peer, so the kernel finishes it in a worker, and what
// is sent until then is lost: the answers to the pod's first packets. From Linux 6.8 on the question itself finishes it;
// elsewhere the worker is awaited, but not for ever: losing a packet is better than losing the pod.
func (a *apply) awaitLink(host *rtnl.Link) error {
	const tries, pause = 400, 500 * time.Microsecond
	for range tries {
		l, err := a.nl.LinkByIndex(host.Index)
		if err != nil || l == nil {
			return errors.Join(fmt.Errorf("link %s went away", host.Name), err)
		}
		if l.Running {
			return nil
		}
		time.Sleep(pause)
	}
	return nil
}

// refuseAdvertisements keeps an interface from taking routes from whoever is at its other end.
func refuseAdvertisements(dev string) error {
	p := "net/ipv6/conf/" + dev + "/accept_ra"
	if err := writeSysctl(p, "0"); err != nil && !rtnl.IsErrno(err, unix.ENOENT) {
		return fmt.Errorf("set sysctl %s: %w", p, err)
	}
	return nil
}

// vethRequest is the one message that makes the pair with the peer in its place.
func vethRequest(l *plan.PodLink, ns int) *rtnl.Request {
	r := rtnl.NewRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, rtnl.IfInfo(0, 0, 0))
	// One queue: the default is one for each possible CPU, allocated and never used.
	end := func(name string, mac model.MAC) {
		r.Text(unix.IFLA_IFNAME, name).Bytes(unix.IFLA_ADDRESS, mac[:]...).U32(unix.IFLA_MTU, l.MTU)
		r.U32(unix.IFLA_NUM_TX_QUEUES, 1).U32(unix.IFLA_NUM_RX_QUEUES, 1)
	}
	end(l.HostIf, model.GatewayMAC)
	r.U32(unix.IFLA_GROUP, Group)
	return r.Nest(unix.IFLA_LINKINFO, func() {
		r.Text(unix.IFLA_INFO_KIND, "veth")
		r.Nest(unix.IFLA_INFO_DATA, func() {
			r.Nest(vethPeer, func() {
				r.Raw(rtnl.IfInfo(0, 0, 0))
				end(l.IfName, l.MAC)
				r.U32(unix.IFLA_NET_NS_FD, ns)
			})
		})
	})
}

// localnet reports whether a pod may answer to 127.0.0.1 because it has host ports: see the chain "guard" of
// datapath/nft, which drops everything else from pods to 127.0.0.0/8 and is there before the pod runs.
func (a *apply) localnet(l *plan.PodLink) bool {
	for h := range plan.All[*plan.HostPort](a.want, plan.KindHostPort) {
		if h.Owner() == l.Owner() && netset.Of(h.Pod.Addr()) == netset.V4 {
			return true
		}
	}
	return false
}

// hostConf sets what IPv4 needs of the host side. Forwarding is per device, and a "default" of 0 must not
// cut pods off. Reverse path filtering follows "all": routes to pods are symmetric, so strict is safe as well.
func hostConf(index int, localnet bool) *rtnl.Request {
	r := rtnl.SetLink(index, 0)
	return r.Nest(unix.IFLA_AF_SPEC, func() {
		r.Nest(unix.AF_INET, func() {
			r.Nest(unix.IFLA_INET_CONF, func() {
				for _, c := range wantedConf(localnet) {
					r.U32(c.id, c.value)
				}
			})
		})
	})
}

type conf struct {
	id    uint16
	value int
}

func wantedConf(localnet bool) []conf {
	out := []conf{{confForwarding, 1}, {confSendRedirects, 0}, {confRPFilter, 0}, {confRouteLocalnet, 0}}
	if localnet {
		out[3].value = 1
	}
	return out
}

// repairPodLink puts right what is wrong of an existing link and leaves alone what is right.
func (a *apply) repairPodLink(l *plan.PodLink, host *rtnl.Link) error {
	ns, err := rtnl.OpenNetns(l.Netns)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(ns) }()
	in, err := a.enterPod(l, ns)
	if err != nil {
		return err
	}
	defer in.nl.Close()
	peer, err := in.nl.LinkByIndex(host.Peer)
	if err != nil {
		return fmt.Errorf("find %s in %s: %w", l.IfName, l.Netns, err)
	}
	if peer == nil || peer.Kind != "veth" || peer.Peer != host.Index || peer.Name != l.IfName {
		return errWrongPeer
	}
	if err := a.repairHost(l, host); err != nil {
		return err
	}
	return in.repair(peer)
}

func (a *apply) repairHost(l *plan.PodLink, host *rtnl.Link) error {
	var todo []*rtnl.Request
	if localnet := a.localnet(l); !hasConf(host, wantedConf(localnet)) {
		todo = append(todo, hostConf(host.Index, localnet))
	}
	if host.MAC != model.GatewayMAC {
		todo = append(todo, rtnl.SetLink(host.Index, 0).Bytes(unix.IFLA_ADDRESS, model.GatewayMAC[:]...))
	}
	if host.MTU != l.MTU {
		todo = append(todo, rtnl.SetLink(host.Index, 0).U32(unix.IFLA_MTU, l.MTU))
	}
	if host.Group != Group {
		todo = append(todo, rtnl.SetLink(host.Index, 0).U32(unix.IFLA_GROUP, Group))
	}
	if host.Master != 0 {
		todo = append(todo, rtnl.SetLink(host.Index, 0).U32(unix.IFLA_MASTER, 0))
	}
	if !host.Up {
		todo = append(todo, noAddrGen(host.Index), rtnl.SetLink(host.Index, unix.IFF_UP))
	}
	if err := first(a.nl.Do(todo...)); err != nil && !rtnl.IsErrno(err, unix.EAFNOSUPPORT) {
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
func first(rep []rtnl.Reply) error {
	for _, r := range rep {
		if r.Err != nil {
			return r.Err
		}
	}
	return nil
}

// doomed is a link group for links that are deleted together.
const doomed = 0x77656674

// deletePodLinks deletes the host sides, and so the pairs. The kernel waits for a grace period, under the lock of all
// links, for each deletion; deleting a group takes one for all.
func (a *apply) deletePodLinks(rows []*plan.PodLink) {
	var reqs []*rtnl.Request
	for _, l := range rows {
		reqs = append(reqs, rtnl.GetLink(0, l.HostIf))
	}
	var found []*rtnl.Link
	var mark []*rtnl.Request
	for i, rep := range a.nl.Do(reqs...) {
		l := rows[i]
		delete(a.index, l.HostIf)
		switch a.res[l.Key()] = nil; {
		case rtnl.IsErrno(rep.Err, unix.ENODEV):
		case rep.Err != nil:
			a.res[l.Key()] = fmt.Errorf("find link %s: %w", l.HostIf, rep.Err)
		default:
			if host := rtnl.ParseLink(rep.Msgs[0]); host.Alias == podAlias(l) {
				found = append(found, host)
				mark = append(mark, rtnl.SetLink(host.Index, 0).U32(unix.IFLA_GROUP, doomed))
			}
		}
	}
	if len(found) > 1 {
		_ = a.nl.Do(mark...)
		// What is not in the group yet, or no more, is deleted by itself below.
		_ = a.nl.One(rtnl.NewRequest(unix.RTM_DELLINK, 0, rtnl.IfInfo(0, 0, 0)).U32(unix.IFLA_GROUP, doomed))
	}
	for _, host := range found {
		if err := a.drop(host); err != nil {
			for _, l := range rows {
				if l.HostIf == host.Name {
					a.res[l.Key()] = err
				}
			}
		}
	}
}
