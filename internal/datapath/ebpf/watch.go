package ebpf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"weft/internal/datapath/linux"
	"weft/internal/plan"
)

const (
	// checkEvery bounds how long a change that raises no event stays unseen.
	checkEvery = 30 * time.Second
	// settle lets a change come to its end, also our own.
	settle = 20 * time.Millisecond
	// calmAfter is how long no row must have been applied before pods' filters are replaced by links, and
	// calmPause the time between two of them.
	calmAfter = time.Second
	calmPause = 50 * time.Millisecond
)

// spot is where something was taken away: a device by its index or its name. The zero spot is anywhere.
type spot struct {
	index int
	dev   string
}

func (s spot) is(h hooked) bool {
	return s == spot{} || s.index != 0 && s.index == h.index || s.dev != "" && s.dev == h.dev
}

// Watch reports rows whose programs somebody took off their device, or whose device was deleted: at once where a
// pin, a filter or a device was removed, else within half a minute. It blocks until ctx ends. It also replaces pods'
// filters by links, when no row has been applied for a while.
func (d *Driver) Watch(ctx context.Context, changed func(plan.Key, string)) error {
	events := make(chan spot, 64)
	tell := func(s spot) {
		select {
		case events <- s:
		case <-ctx.Done():
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	filters, err := linux.WatchClsact(ctx, func(index int) { tell(spot{index: index}) })
	if err != nil {
		return err
	}
	pins := make(chan error, 1)
	go func() { pins <- watchPins(ctx, filepath.Join(d.dir, linksDir), tell) }()
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	told := map[plan.Key]string{}
	calm := time.NewTimer(0)
	defer calm.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-pins:
			return err
		case err := <-filters:
			return err
		case s := <-events:
			if !d.concerns(s) {
				continue // a deleted pod's, most of the time
			}
			time.Sleep(settle)
			d.checkHooks(s, true, told, changed)
		case <-d.wake:
			calm.Reset(calmAfter)
		case <-calm.C:
			if d.idle() < calmAfter {
				calm.Reset(calmAfter)
			} else if d.calm() {
				calm.Reset(calmPause)
			}
		case <-tick.C:
			d.checkHooks(spot{}, false, told, changed)
		}
	}
}

// concerns says whether programs of ours should be there.
func (d *Driver) concerns(s spot) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, h := range d.hooked {
		if s.is(h) {
			return true
		}
	}
	return false
}

// checkHooks reports each missing program at a spot once, until it is there again.
func (d *Driver) checkHooks(at spot, filters bool, told map[plan.Key]string, changed func(plan.Key, string)) {
	d.apply.Lock()
	defer d.apply.Unlock()
	devices := map[plan.Key]hooked{}
	d.mu.Lock()
	for k, h := range d.hooked {
		if at.is(h) {
			devices[k] = h
		}
	}
	d.mu.Unlock()
	for k, h := range devices {
		what := d.mode.missing(h, filters)
		if what != "" && told[k] != what {
			changed(k, what)
		}
		if told[k] = what; what == "" {
			delete(told, k)
		}
	}
}

// idle is how long no row has been applied.
func (d *Driver) idle() time.Duration {
	d.apply.Lock()
	defer d.apply.Unlock()
	return time.Since(d.last)
}

// missing says which of our programs is not on a device, "" for none. Filters cost two dumps each and cannot vanish without
// an event, so they are not looked at from time to time.
func (a *attacher) missing(h hooked, filters bool) string {
	if index, err := interfaceIndex(h.dev); err != nil || index != h.index {
		return fmt.Sprintf("device %s was deleted", h.dev)
	}
	for i, dir := range directions() {
		if h.filter[i] {
			if !filters {
				continue
			}
			if ok, err := linux.HasClsact(h.index, dir.ingress); err == nil && !ok {
				return fmt.Sprintf("the filter of weft was removed from %s %s", h.dev, dir.name)
			}
			continue
		}
		l, err := link.LoadPinnedLink(a.pin(h.dev, dir), nil)
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Sprintf("the pinned link of %s %s was removed", h.dev, dir.name)
		}
		if err != nil {
			continue
		}
		info, err := l.Info()
		_ = l.Close()
		if err != nil {
			continue
		}
		if !h.holds(info) {
			return fmt.Sprintf("the program was detached from %s %s", h.dev, dir.name)
		}
	}
	return ""
}

// watchPins tells the devices whose pins are removed from the directory, until ctx ends.
func watchPins(ctx context.Context, dir string, tell func(spot)) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch pinned links: %w", err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer func() { _ = events.Close() }()
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_DELETE|unix.IN_MOVED_FROM); err != nil {
		return fmt.Errorf("watch pinned links in %s: %w", dir, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = events.SetDeadline(time.Now()) })
	defer stop()
	for buf := make([]byte, 4096); ; {
		n, err := events.Read(buf)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return fmt.Errorf("watch pinned links in %s: %w", dir, err)
		}
		for rest := buf[:n]; len(rest) >= unix.SizeofInotifyEvent; { // the length of the name is the last field
			end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(rest[unix.SizeofInotifyEvent-4:]))
			name := unix.ByteSliceToString(rest[unix.SizeofInotifyEvent:end])
			tell(spot{dev: deviceOf(name)}) // "" when events were lost: anywhere
			rest = rest[end:]
		}
	}
}
