package linux

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	filterMark     = "weft_"
	filterHandle   = 1
	filterPriority = 0x7765 // "we": fixed, so that a filter is replaced and never doubled
)

// AttachClsact runs a BPF program on a device's ingress or egress by a direct-action filter of the clsact
// qdisc, which is made if it is not there. A filter of an earlier agent is replaced in place. It is recognised by its name,
// which begins with weft_, and goes with the device or by DetachClsact.
func AttachClsact(ifindex int, ingress bool, fd int, name string) error {
	if !strings.HasPrefix(name, filterMark) {
		return fmt.Errorf("filter %q: its name must begin with %s", name, filterMark)
	}
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add qdisc clsact to device %d: %w", ifindex, err)
	}
	filter := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: ifindex, Parent: clsactParent(ingress), Handle: filterHandle,
			Priority: filterPriority, Protocol: unix.ETH_P_ALL,
		},
		Fd: fd, Name: name, DirectAction: true,
	}
	if err := netlink.FilterReplace(filter); err != nil {
		return fmt.Errorf("replace filter %s on device %d: %w", name, ifindex, err)
	}
	return nil
}

func clsactParent(ingress bool) uint32 {
	if ingress {
		return netlink.HANDLE_MIN_INGRESS
	}
	return netlink.HANDLE_MIN_EGRESS
}

// DetachClsact removes our filters of one direction from a device. The qdisc stays: others may use it.
func DetachClsact(ifindex int, ingress bool) error {
	link, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return nil //nolint:nilerr // the device is gone, and its filters with it
	}
	ours, err := clsactFilters(link, ingress)
	if err != nil {
		return err
	}
	for _, f := range ours {
		if err := netlink.FilterDel(f); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("delete a filter of %s: %w", link.Attrs().Name, err)
		}
	}
	return nil
}

// clsactFilters returns our filters of one direction.
func clsactFilters(link netlink.Link, ingress bool) ([]netlink.Filter, error) {
	filters, err := netlink.FilterList(link, clsactParent(ingress))
	if err != nil {
		return nil, fmt.Errorf("list filters of %s: %w", link.Attrs().Name, err)
	}
	var ours []netlink.Filter
	for _, f := range filters {
		if b, ok := f.(*netlink.BpfFilter); ok && strings.HasPrefix(b.Name, filterMark) {
			ours = append(ours, f)
		}
	}
	return ours, nil
}

// HasClsact reports whether a device has a filter of ours in a direction.
func HasClsact(ifindex int, ingress bool) (bool, error) {
	link, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return false, fmt.Errorf("find device %d: %w", ifindex, err)
	}
	ours, err := clsactFilters(link, ingress)
	return len(ours) > 0, err
}

// WatchClsact calls changed with the index of a device of this network namespace from which a qdisc or filter was
// removed, or which was removed itself, until ctx ends; 0 stands for any, when messages got lost. It returns when
// it listens; what ends it early comes through the channel.
func WatchClsact(ctx context.Context, changed func(ifindex int)) (<-chan error, error) {
	sock, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_TC, unix.RTNLGRP_LINK)
	if err != nil {
		return nil, fmt.Errorf("listen for changes of filters: %w", err)
	}
	failed := make(chan error, 1)
	stop := context.AfterFunc(ctx, sock.Close)
	go func() {
		defer stop()
		for {
			msgs, _, err := sock.Receive()
			switch {
			case ctx.Err() != nil:
				return
			case errors.Is(err, unix.ENOBUFS):
				changed(0)
				continue
			case err != nil:
				failed <- fmt.Errorf("listen for changes of filters: %w", err)
				return
			}
			for _, m := range msgs {
				switch m.Header.Type {
				case unix.RTM_DELTFILTER, unix.RTM_DELQDISC, unix.RTM_DELLINK:
					// struct tcmsg and struct ifinfomsg both have the index behind four bytes.
					changed(int(int32(binary.NativeEndian.Uint32(m.Data[4:]))))
				}
			}
		}
	}()
	return failed, nil
}

// SweepClsact removes our filters from every device that keep does not want.
func SweepClsact(keep func(dev string) bool) error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	var errs []error
	for _, l := range links {
		if !keep(l.Attrs().Name) {
			errs = append(errs, DetachClsact(l.Attrs().Index, true), DetachClsact(l.Attrs().Index, false))
		}
	}
	return errors.Join(errs...)
}
