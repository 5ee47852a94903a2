package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"weft/internal/netset"
)

// Pods are in two maps: locals has them all, by address; slots is an array in which a program finds nearly all of them
// faster (bpf/lib/maps.h). A slot belongs to the first address that came; it says when there are more.

// slotOf is addr_slot of bpf/lib/ip.h.
func (d *Driver) slotOf(a netip.Addr) uint32 {
	b, size := netset.As16(a), d.slots.m.MaxEntries()
	low := binary.BigEndian.Uint32(b[12:])
	if netset.Of(a) != netset.V4 {
		low ^= size / 2
	}
	return low & (size - 1)
}

// putAddr makes a pod known under an address.
func (d *Driver) putAddr(a netip.Addr, v weftWeftLocal) error {
	if err := d.locals.put(addrOf(a), v); err != nil {
		return err
	}
	key := d.slotOf(a)
	slot, err := d.slot(key)
	if err != nil {
		return err
	}
	if slot.Addr == addrOf(a) || slot.Addr == (weftWeftAddr{}) {
		slot.Addr, slot.Local = addrOf(a), v
	} else {
		slot.More = 1
	}
	return d.slots.put(key, slot)
}

// dropAddr makes an address unknown. The slot still says that there are more, if there were: Sweep looks again.
func (d *Driver) dropAddr(a netip.Addr) error {
	key := d.slotOf(a)
	slot, err := d.slot(key)
	if err != nil {
		return err
	}
	if slot.Addr == addrOf(a) {
		slot.Addr, slot.Local = weftWeftAddr{}, weftWeftLocal{}
		if err := d.slots.put(key, slot); err != nil {
			return err
		}
	}
	return d.locals.drop(addrOf(a))
}

func (d *Driver) slot(key uint32) (s weftWeftSlot, err error) {
	if err := d.slots.m.Lookup(key, &s); err != nil {
		return s, fmt.Errorf("read map %s: %w", d.slots.name, err)
	}
	return s, nil
}

// rebuildSlots makes the slots agree with what is in locals. A slot whose owner is still there keeps it.
func (d *Driver) rebuildSlots() error {
	want := make([]weftWeftSlot, d.slots.m.MaxEntries())
	var addr weftWeftAddr
	var local weftWeftLocal
	entries := d.locals.m.Iterate()
	for entries.Next(&addr, &local) {
		key := d.slotOf(addrFrom(addr))
		now, err := d.slot(key)
		if err != nil {
			return err
		}
		w := &want[key]
		if w.Addr != (weftWeftAddr{}) {
			w.More = 1
		}
		if w.Addr == (weftWeftAddr{}) || now.Addr == addr {
			w.Addr, w.Local = addr, local
		}
	}
	if err := entries.Err(); err != nil {
		return fmt.Errorf("list map %s: %w", d.locals.name, err)
	}
	var errs []error
	for i, s := range want {
		errs = append(errs, d.slots.put(uint32(i), s))
	}
	return errors.Join(errs...)
}
