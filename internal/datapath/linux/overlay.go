package linux

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"weft/internal/datapath/linux/rtnl"
	"weft/internal/plan"
)

// vxlan is what of a VXLAN device's settings matters here.
type vxlan struct {
	port     int
	external bool
}

func parseVXLAN(data []byte) vxlan {
	var v vxlan
	for typ, b := range rtnl.Attrs(data) {
		switch typ {
		case unix.IFLA_VXLAN_PORT:
			if len(b) == 2 {
				v.port = int(binary.BigEndian.Uint16(b))
			}
		case unix.IFLA_VXLAN_COLLECT_METADATA:
			v.external = rtnl.Uint(b) != 0
		}
	}
	return v
}

// setOverlay makes the VXLAN device, or puts right what differs.
//
// It is ours by its alias (or, if the agent dies just before that is set, by our group and MAC); Sweep deletes it. Without
// an agent it goes on receiving. It is made anew only where its port or its mode is wrong, which cannot be changed.
func (a *apply) setOverlay(o *plan.Overlay) error {
	l, err := a.nl.LinkByName(o.Name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", o.Name, err)
	}
	if l != nil {
		if !ours(l) {
			return fmt.Errorf("make overlay %s: a foreign interface has that name (kind %q, alias %q)", o.Name, l.Kind, l.Alias)
		}
		if v := parseVXLAN(l.Data); l.Kind == "vxlan" && l.Alias == overlayAlias && v.external && v.port == int(o.Port) {
			return a.repairOverlay(o, l)
		}
		if err := a.drop(l); err != nil {
			return err
		}
	}
	rep := a.nl.Do(overlayRequest(o), rtnl.GetLink(0, o.Name))
	if err := errors.Join(rep[0].Err, rep[1].Err); err != nil {
		return fmt.Errorf("make overlay %s: %w", o, errors.Join(err, a.rival(o)))
	}
	l = rtnl.ParseLink(rep[1].Msgs[0])
	delete(a.index, o.Name)
	rep = a.nl.Do(
		rtnl.SetLink(l.Index, 0).Text(unix.IFLA_IFALIAS, overlayAlias),
		noAddrGen(l.Index),
		rtnl.SetLink(l.Index, unix.IFF_UP),
	)
	if err := errors.Join(rep[0].Err, rep[2].Err); err != nil { // rep[1] fails where IPv6 is off
		return fmt.Errorf("set up overlay %s: %w", o, errors.Join(err, a.rival(o), a.drop(l)))
	}
	return a.d.here(func() error { return refuseAdvertisements(o.Name) })
}

func overlayRequest(o *plan.Overlay) *rtnl.Request {
	r := rtnl.NewRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, rtnl.IfInfo(0, unix.IFF_NOARP, unix.IFF_NOARP))
	r.Text(unix.IFLA_IFNAME, o.Name).Bytes(unix.IFLA_ADDRESS, o.MAC[:]...).U32(unix.IFLA_MTU, o.MTU).U32(unix.IFLA_GROUP, Group)
	return r.Nest(unix.IFLA_LINKINFO, func() {
		r.Text(unix.IFLA_INFO_KIND, "vxlan")
		r.Nest(unix.IFLA_INFO_DATA, func() {
			r.Bytes(unix.IFLA_VXLAN_COLLECT_METADATA, 1).Bytes(unix.IFLA_VXLAN_LEARNING, 0)
			r.Bytes(unix.IFLA_VXLAN_PORT, byte(o.Port>>8), byte(o.Port))
			// The inner packet has its own checksums. RFC 6935 allows the outer one to be absent over IPv6, and that is what the BPF
			// programs send, so the receiver must accept it.
			r.Bytes(unix.IFLA_VXLAN_UDP_CSUM, 0).Bytes(unix.IFLA_VXLAN_UDP_ZERO_CSUM6_TX, 1).Bytes(unix.IFLA_VXLAN_UDP_ZERO_CSUM6_RX, 1)
		})
	})
}

func (a *apply) repairOverlay(o *plan.Overlay, l *rtnl.Link) error {
	var todo []*rtnl.Request
	if l.MAC != o.MAC {
		todo = append(todo, rtnl.SetLink(l.Index, 0).Bytes(unix.IFLA_ADDRESS, o.MAC[:]...))
	}
	if l.MTU != o.MTU {
		todo = append(todo, rtnl.SetLink(l.Index, 0).U32(unix.IFLA_MTU, o.MTU))
	}
	if l.Group != Group {
		todo = append(todo, rtnl.SetLink(l.Index, 0).U32(unix.IFLA_GROUP, Group))
	}
	if l.Master != 0 {
		todo = append(todo, rtnl.SetLink(l.Index, 0).U32(unix.IFLA_MASTER, 0))
	}
	if !l.NoARP || !l.Up {
		todo = append(todo, rtnl.SetLink(l.Index, unix.IFF_UP|unix.IFF_NOARP))
	}
	if len(todo) == 0 {
		return nil
	}
	if err := first(a.nl.Do(todo...)); err != nil {
		return fmt.Errorf("repair overlay %s: %w", o, errors.Join(err, a.rival(o)))
	}
	return nil
}

// rival names the VXLAN device that has the port, as an error; nil if none is found.
func (a *apply) rival(o *plan.Overlay) error {
	all, _ := a.nl.Links() // the error that led here is told
	for _, l := range all {
		if v := parseVXLAN(l.Data); l.Kind == "vxlan" && l.Name != o.Name && v.port == int(o.Port) {
			return fmt.Errorf("UDP port %d belongs to VXLAN device %s: delete it or set backend.port", o.Port, l.Name)
		}
	}
	return nil
}
