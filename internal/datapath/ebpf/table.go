package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"github.com/cilium/ebpf"

	"weft/internal/model"
	"weft/internal/netset"
)

// errFull says that a map has no room.
var errFull = errors.New("is full")

// outOfMemory is how long a write waits for memory of the kernel's.
const outOfMemory = 100 * time.Millisecond

// table is one BPF map. Entries survive the agent; whoever is in the map and not wanted goes with keep.
type table[K, V comparable] struct {
	m      *ebpf.Map
	name   string
	nest   *nest // nil: the map does not grow
	writes int   // entries written or removed, for tests
}

// put makes the entry of k be v. An entry that is right is not written.
func (t *table[K, V]) put(k K, v V) error {
	var have V
	switch err := t.m.Lookup(k, &have); {
	case err == nil && have == v:
		return nil
	case err != nil && !errors.Is(err, ebpf.ErrKeyNotExist):
		return fmt.Errorf("read map %s: %w", t.name, err)
	}
	return t.write(k, v)
}

// write writes the entry of k without looking at it before.
func (t *table[K, V]) write(k K, v V) error { return t.update(k, v, ebpf.UpdateAny) }

// start makes an empty entry if there is none.
func (t *table[K, V]) start(k K) error {
	var zero V
	err := t.update(k, zero, ebpf.UpdateNoExist)
	if errors.Is(err, ebpf.ErrKeyExist) {
		return nil
	}
	return err
}

func (t *table[K, V]) update(k K, v V, flags ebpf.MapUpdateFlags) error {
	err := t.m.Update(k, v, flags)
	// A map that allocates when it is written has a small stock, which the kernel fills up in the background.
	for wait := time.Millisecond; errors.Is(err, syscall.ENOMEM) && wait < outOfMemory; wait *= 2 {
		time.Sleep(wait)
		err = t.m.Update(k, v, flags)
	}
	if isFull(err) {
		var more bool
		if more, err = t.grow(); err != nil {
			return err
		}
		if more {
			return t.update(k, v, flags)
		}
		return fmt.Errorf("map %s %w, it holds %d entries", t.name, errFull, t.m.MaxEntries())
	}
	if err != nil {
		return fmt.Errorf("write map %s: %w", t.name, err)
	}
	t.writes++
	return nil
}

func isFull(err error) bool { return errors.Is(err, syscall.E2BIG) || errors.Is(err, syscall.ENOSPC) }

// drop removes the entry of k, if there is one.
func (t *table[K, V]) drop(k K) error {
	err := t.m.Delete(k)
	switch {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("delete from map %s: %w", t.name, err)
	}
	t.writes++
	return nil
}

// keep removes every entry whose key is not in want.
func (t *table[K, V]) keep(want map[K]bool) error {
	var k K
	var v V
	var gone []K
	entries := t.m.Iterate()
	for entries.Next(&k, &v) {
		if !want[k] {
			gone = append(gone, k)
		}
	}
	if err := entries.Err(); err != nil {
		return fmt.Errorf("list map %s: %w", t.name, err)
	}
	var errs []error
	for _, k := range gone {
		errs = append(errs, t.drop(k))
	}
	return errors.Join(errs...)
}

// addrOf is an address as the maps have it: the bytes of its unified form, in words.
func addrOf(a netip.Addr) (out weftWeftAddr) {
	b := netset.As16(a)
	for i := range out.W {
		out.W[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return out
}

// addrFrom is the inverse of addrOf.
func addrFrom(a weftWeftAddr) netip.Addr {
	var b [16]byte
	for i, w := range a.W {
		binary.NativeEndian.PutUint32(b[4*i:], w)
	}
	return netip.AddrFrom16(b).Unmap()
}

// prefixOf is a prefix as the map of remotes has it.
func prefixOf(p netip.Prefix) weftWeftPrefix {
	return weftWeftPrefix{Len: uint32(netset.PrefixLen16(p)), Addr: addrOf(p.Masked().Addr())}
}

func macOf(m model.MAC) (out weftWeftMac) {
	for i := range out.W {
		out.W[i] = binary.NativeEndian.Uint16(m[2*i:])
	}
	return out
}

// bigEndian returns the number whose bytes in memory are those of v on the wire.
func bigEndian(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}
