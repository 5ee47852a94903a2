package linux

import (
	"golang.org/x/sys/unix"

	"weft/internal/datapath/linux/rtnl"
	"weft/internal/model"
)

// Kinds of pods' links.
const (
	kindVeth   = "veth"
	kindNetkit = "netkit"
)

// Netkit says whether new pods can have netkit pairs. The kernel is asked once, by a message that it refuses either way: with
// EINVAL, for its policy, where it could make such a pair.
func (d *Driver) Netkit() *model.Feature {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.hasNetkit()
}

// hasNetkit is Netkit with the lock held.
func (d *Driver) hasNetkit() *model.Feature {
	if d.netkit != nil {
		return d.netkit
	}
	const noPolicy = 99
	d.netkit = &model.Feature{Name: kindNetkit, State: "active", Detail: "new pods get netkit pairs"}
	r := rtnl.NewRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, rtnl.IfInfo(0, 0, 0))
	r.Bytes(unix.IFLA_ADDRESS, model.GatewayMAC[:]...) // it may be chosen from Linux 6.10 on
	r.Nest(unix.IFLA_LINKINFO, func() {
		r.Text(unix.IFLA_INFO_KIND, kindNetkit)
		r.Nest(unix.IFLA_INFO_DATA, func() { r.U32(unix.IFLA_NETKIT_MODE, unix.NETKIT_L2).U32(unix.IFLA_NETKIT_POLICY, noPolicy) })
	})
	if err := d.nl.One(r).Err; !rtnl.IsErrno(err, unix.EINVAL) {
		d.netkit.State, d.netkit.Detail = "fallback", "new pods get veth pairs; netkit was refused"
		if err != nil {
			d.netkit.Detail += ": " + err.Error()
		}
	}
	return d.netkit
}

// closed lets nothing out of the pod while no program is attached. It is for a change of an existing pair as well.
func closed(r *rtnl.Request) { r.U32(unix.IFLA_NETKIT_PEER_POLICY, unix.NETKIT_DROP) }

// isClosed reports whether nothing leaves a link's pod without a program, which is a matter of netkit alone.
func isClosed(host *rtnl.Link) bool {
	for typ, v := range rtnl.Attrs(host.Data) {
		if host.Kind == kindNetkit && typ == unix.IFLA_NETKIT_PEER_POLICY {
			return rtnl.Uint(v) == unix.NETKIT_DROP
		}
	}
	return true
}

// closePod makes a netkit pair closed again.
func closePod(index int) *rtnl.Request {
	r := rtnl.SetLink(index, 0)
	return r.Nest(unix.IFLA_LINKINFO, func() {
		r.Text(unix.IFLA_INFO_KIND, kindNetkit)
		r.Nest(unix.IFLA_INFO_DATA, func() { closed(r) })
	})
}
