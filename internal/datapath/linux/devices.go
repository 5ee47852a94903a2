package linux

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"weft/internal/datapath/linux/rtnl"
	"weft/internal/model"
	"weft/internal/netset"
)

// devices is what the host has in interfaces that are not ours.
type devices struct {
	links map[int]*rtnl.Link
	addrs map[int]map[netip.Prefix]bool
}

// WatchDevices calls changed with every interface of the host that is not ours, at once and after each change
// of one of them. It returns when ctx ends.
func (d *Driver) WatchDevices(ctx context.Context, changed func([]model.Device)) error {
	m, err := d.monitor(unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
	if err != nil {
		return err
	}
	defer m.Close()
	var all *devices
	var told []model.Device
	for lost := true; ; {
		if lost {
			if all, err = d.devices(); err != nil {
				return err
			}
		}
		if now := all.list(); told == nil || !reflect.DeepEqual(told, now) {
			told = now
			changed(slices.Clone(now))
		}
		var events []rtnl.Event
		if events, lost, err = m.Next(ctx); err != nil {
			return err
		}
		for _, e := range events {
			all.event(e.Type, e.Body)
		}
	}
}

// devices reads all interfaces and addresses.
func (d *Driver) devices() (*devices, error) {
	var nl *rtnl.Conn
	err := d.here(func() (err error) {
		nl, err = rtnl.Dial(make([]byte, rtnl.BufferSize))
		return err
	})
	if err != nil {
		return nil, err
	}
	defer nl.Close()
	all := &devices{links: map[int]*rtnl.Link{}, addrs: map[int]map[netip.Prefix]bool{}}
	for _, r := range []*rtnl.Request{
		rtnl.NewRequest(unix.RTM_GETLINK, 0, rtnl.IfInfo(0, 0, 0)).U32(unix.IFLA_EXT_MASK, rtnl.SkipStats),
		rtnl.NewRequest(unix.RTM_GETADDR, 0, make([]byte, unix.SizeofIfAddrmsg)),
	} {
		if err := nl.Dump(r, all.event); err != nil {
			return nil, fmt.Errorf("list the interfaces: %w", err)
		}
	}
	return all, nil
}

// event takes in a notification or an entry of a list.
func (s *devices) event(typ uint16, body []byte) {
	switch typ {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		l := rtnl.ParseLink(body)
		if l == nil || body[0] != unix.AF_UNSPEC { // a bridge's view of its port
			return
		}
		// The group is set when a link of ours is made, the alias a moment later.
		if typ == unix.RTM_DELLINK || ours(l) || l.Group == Group {
			delete(s.links, l.Index)
			delete(s.addrs, l.Index)
			return
		}
		l.Data = nil
		s.links[l.Index] = l
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		a := rtnl.ParseAddr(body)
		// An address that is being checked for duplicates cannot be used yet; the kernel tells when it can.
		if typ == unix.RTM_DELADDR || a.Unusable {
			delete(s.addrs[a.Index], a.Prefix)
			return
		}
		if s.addrs[a.Index] == nil {
			s.addrs[a.Index] = map[netip.Prefix]bool{}
		}
		s.addrs[a.Index][a.Prefix] = true
	}
}

// list is in the order of names; addresses are in order.
func (s *devices) list() []model.Device {
	out := []model.Device{}
	for _, l := range s.links {
		addrs := slices.SortedFunc(maps.Keys(s.addrs[l.Index]), netset.ComparePrefix)
		out = append(out, model.Device{Name: l.Name, Index: l.Index, Kind: l.Kind, MTU: l.MTU, MAC: l.MAC, Up: l.Up, Addrs: addrs})
	}
	slices.SortFunc(out, func(a, b model.Device) int { return strings.Compare(a.Name, b.Name) })
	return out
}
