package ebpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
)

// firstSize is how many entries a map that grows has room for at first.
const firstSize = 1024

// nest is a map that grows: in the kernel an array with one map in it, which is replaced by a larger one with the same
// entries. Programs see the one or the other. Both are pinned, the inner one as <name>-now, and while it is being
// filled as <name>-next: an agent that died in between leaves both, and the next one keeps the one that is in the array.
type nest struct {
	name  string
	pins  string // directory
	outer *ebpf.Map
	inner *ebpf.MapSpec // with the largest size
}

func (n *nest) pin(which string) string { return filepath.Join(n.pins, n.name+"-"+which) }

// open returns the inner map that an earlier agent left, or nil.
func (n *nest) open() (*ebpf.Map, error) {
	var id uint32
	if err := n.outer.Lookup(uint32(0), &id); err != nil {
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil, nil
		}
		return nil, fmt.Errorf("read map %s: %w", n.name, err)
	}
	for _, which := range []string{"now", "next"} {
		m, err := ebpf.LoadPinnedMap(n.pin(which), nil)
		if err != nil {
			continue
		}
		info, err := m.Info()
		if err == nil {
			if have, ok := info.ID(); ok && uint32(have) == id {
				if which == "next" {
					err = os.Rename(n.pin("next"), n.pin("now"))
				}
				return m, err
			}
		}
		_ = m.Close()
	}
	return nil, nil // somebody removed the pin: what it held is written anew
}

// make returns an inner map for a number of entries, which is in no use yet.
func (n *nest) make(size uint32) (*ebpf.Map, error) {
	spec := n.inner.Copy()
	spec.Name, spec.MaxEntries = n.name, size
	m, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, fmt.Errorf("make map %s for %d entries: %w", n.name, size, err)
	}
	if err := os.Remove(n.pin("next")); err != nil && !errors.Is(err, os.ErrNotExist) {
		_ = m.Close()
		return nil, fmt.Errorf("remove the pin of a map: %w", err)
	}
	if err := m.Pin(n.pin("next")); err != nil {
		_ = m.Close()
		return nil, fmt.Errorf("pin map %s: %w", n.name, err)
	}
	return m, nil
}

// use makes an inner map the one that programs see.
func (n *nest) use(m *ebpf.Map) error {
	if err := n.outer.Update(uint32(0), m, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("replace map %s: %w", n.name, err)
	}
	if err := os.Rename(n.pin("next"), n.pin("now")); err != nil {
		return fmt.Errorf("rename the pin of map %s: %w", n.name, err)
	}
	return nil
}

// drop leaves the array empty.
func (n *nest) drop() error {
	if err := n.outer.Delete(uint32(0)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("empty map %s: %w", n.name, err)
	}
	for _, which := range []string{"now", "next"} {
		if err := os.Remove(n.pin(which)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove the pin of map %s: %w", n.name, err)
		}
	}
	return nil
}

// nested opens a table whose map grows.
func nested[K, V comparable](n *nest) (*table[K, V], error) {
	t := &table[K, V]{name: n.name, nest: n}
	var err error
	if t.m, err = n.open(); err != nil || t.m != nil {
		return t, err
	}
	if t.m, err = n.make(firstSize); err != nil {
		return nil, err
	}
	return t, n.use(t.m)
}

// grow replaces the table's map by one with four times the room. False: it is as large as it may be.
func (t *table[K, V]) grow() (bool, error) {
	if t.nest == nil || t.m.MaxEntries() >= t.nest.inner.MaxEntries {
		return false, nil
	}
	m, err := t.nest.make(min(4*t.m.MaxEntries(), t.nest.inner.MaxEntries))
	if err != nil {
		return false, err
	}
	next := &table[K, V]{m: m, name: t.name}
	err = each(t.m, next.write)
	if err == nil {
		err = t.nest.use(m)
	}
	if err != nil {
		_ = m.Close()
		return false, fmt.Errorf("enlarge map %s: %w", t.name, err)
	}
	_ = t.m.Close()
	t.m = m
	return true, nil
}

// each calls f for every entry of a map that nobody else changes.
func each[K, V any](m *ebpf.Map, f func(K, V) error) error {
	size := min(int(m.MaxEntries()), 4096)
	keys, values := make([]K, size), make([]V, size)
	for cursor := new(ebpf.MapBatchCursor); ; {
		n, err := m.BatchLookup(cursor, keys, values, nil)
		end := errors.Is(err, ebpf.ErrKeyNotExist)
		if err != nil && !end {
			return fmt.Errorf("list a map: %w", err)
		}
		for i := range n {
			if err := f(keys[i], values[i]); err != nil {
				return err
			}
		}
		if end {
			return nil
		}
	}
}
