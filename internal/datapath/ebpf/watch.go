package ebpf

import (
	"context"
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

// Watch reports rows whose programs somebody took off their device: at once where a pin was removed or a filter deleted, else
// within half a minute. It blocks until ctx ends. Devices that vanish are seen by datapath/linux, too.
func (d *Driver) Watch(ctx context.Context, changed func(plan.Key, string)) error {
	events := make(chan struct{}, 1)
	wake := func() {
		select {
		case events <- struct{}{}:
		default: // a check is due already
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	filters, err := linux.WatchClsact(ctx, wake)
	if err != nil {
		return err
	}
	pins := make(chan error, 1)
	go func() { pins <- watchPins(ctx, filepath.Join(d.dir, linksDir), wake) }()
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
		case <-events:
			time.Sleep(settle)
			d.checkHooks(told, changed)
		case <-d.wake:
			calm.Reset(calmAfter)
		case <-calm.C:
			if d.idle() < calmAfter {
				calm.Reset(calmAfter)
			} else if d.calm() {
				calm.Reset(calmPause)
			}
		case <-tick.C:
			d.checkHooks(told, changed)
		}
	}
}

// checkHooks reports each missing program once, until it is there again.
func (d *Driver) checkHooks(told map[plan.Key]string, changed func(plan.Key, string)) {
	d.apply.Lock()
	defer d.apply.Unlock()
	d.mu.Lock()
	devices := make(map[plan.Key]hooked, len(d.hooked))
	for k, h := range d.hooked {
		devices[k] = h
	}
	d.mu.Unlock()
	for k, h := range devices {
		what := d.mode.missing(h)
		if what != "" && told[k] != what {
			changed(k, what)
		}
		told[k] = what
	}
}

// idle is how long no row has been applied.
func (d *Driver) idle() time.Duration {
	d.apply.Lock()
	defer d.apply.Unlock()
	return time.Since(d.last)
}

// missing says which of our programs is not on a device, "" for none.
func (a *attacher) missing(h hooked) string {
	for i, dir := range directions() {
		if h.filter[i] {
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
		if tcx := info.TCX(); tcx != nil && int(tcx.Ifindex) != h.index {
			return fmt.Sprintf("the program was detached from %s %s", h.dev, dir.name)
		}
	}
	return ""
}

// watchPins calls wake when a file in the directory is removed, until ctx ends.
func watchPins(ctx context.Context, dir string, wake func()) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch pinned links: %w", err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer events.Close()
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_DELETE|unix.IN_MOVED_FROM); err != nil {
		return fmt.Errorf("watch pinned links in %s: %w", dir, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = events.SetDeadline(time.Now()) })
	defer stop()
	for buf := make([]byte, 4096); ; {
		_, err := events.Read(buf)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return fmt.Errorf("watch pinned links in %s: %w", dir, err)
		}
		wake()
	}
}
