package ebpf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"weft/internal/datapath/linux"
	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
)

// What outlives an agent, what its successor does with it, and what is left when all is deleted.

// restart is an agent's death and the start of the next.
func (n *node) restart() {
	n.t.Helper()
	if n.driver != nil {
		_ = n.driver.Close()
		n.driver = nil
	}
	n.apply()
	n.sweep()
}

func (n *node) sweep() {
	n.t.Helper()
	within(n.t, n.ns, func() error { return n.driver.Sweep(n.t.Context(), n.rows) })
}

// remove deletes rows from what is wanted, and has the driver delete them.
func (n *node) remove(keys ...plan.Key) {
	n.t.Helper()
	var ch plan.Changes
	for _, k := range keys {
		ch.Delete = append(ch.Delete, n.rows[k])
		delete(n.rows, k)
	}
	within(n.t, n.ns, func() error {
		var errs []error
		for _, err := range n.driver.Apply(n.t.Context(), n.rows, ch) {
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
}

func (n *node) writes() int {
	d, p := n.driver, n.driver.policy
	return d.settings.writes + d.locals.writes + d.slots.writes + d.remotes.writes + d.peers.writes +
		p.sets.writes + p.matches.writes + p.lists.writes + p.members.writes + p.addresses.writes + p.networks.writes + p.vips.writes +
		p.rules.writes + p.numbers.t.writes
}

// stream sends numbered datagrams, one a millisecond, until stop is called, which returns how many got lost.
func stream(t *testing.T, from, to place, f netset.Family) (stop func() int) {
	t.Helper()
	var pc *net.UDPConn
	within(t, to.netns(), func() (err error) {
		pc, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.addr(f), 0)))
		return err
	})
	c, err := dial(t, from, to, "udp", pc.LocalAddr().(*net.UDPAddr).AddrPort())
	if err != nil {
		t.Fatal(err)
	}
	var sent, received atomic.Int64
	end := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for buf := make([]byte, 64); ; {
			if _, err := pc.Read(buf); err != nil {
				return
			}
			received.Add(1)
		}
	}()
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-end:
				return
			case <-tick.C:
				if _, err := c.Write(make([]byte, 64)); err == nil {
					sent.Add(1)
				}
			}
		}
	}()
	return func() int {
		for sent.Load() < 50 { // too short a stream would show nothing
			time.Sleep(time.Millisecond)
		}
		close(end)
		<-finished
		_ = c.Close()
		deadline := time.Now().Add(time.Second)
		for received.Load() < sent.Load() && time.Now().Before(deadline) {
			time.Sleep(time.Millisecond)
		}
		_ = pc.Close()
		<-done
		return int(sent.Load() - received.Load())
	}
}

// TestRestart: agents come and go under traffic, and not one datagram is lost.
func TestRestart(t *testing.T) {
	for name, opts := range modes() {
		t.Run(name, func(t *testing.T) {
			a, b, p, q := tunnelled(t, netset.V4, opts...)
			beside := a.addPod(1450)
			a.apply()
			far := stream(t, p, q, netset.V4)
			near := stream(t, beside, p, netset.V6)
			moved := make(chan struct{})
			go func() {
				defer close(moved)
				transfer(t, q, p, netset.V4, 64<<20)
			}()
			for range 5 {
				a.restart()
				b.restart()
				if w := a.writes(); w != 0 {
					t.Errorf("the new agent wrote %d map entries that were right", w)
				}
			}
			<-moved
			if lost := far(); lost != 0 {
				t.Errorf("%d datagrams between nodes got lost", lost)
			}
			if lost := near(); lost != 0 {
				t.Errorf("%d datagrams between pods of a node got lost", lost)
			}
		})
	}
}

// TestNewLayout: an agent with other maps takes over from one whose maps it cannot use.
func TestNewLayout(t *testing.T) {
	a, _, p, q := tunnelled(t, netset.V4)
	old := a.driver.layout
	lost := stream(t, p, q, netset.V4)
	_ = a.driver.Close()
	a.driver = nil
	a.opts = append(a.opts, func(d *Driver) { d.salt = "other" })
	a.restart()
	if a.driver.layout == old {
		t.Fatal("the layout did not change")
	}
	if w := a.writes(); w == 0 {
		t.Error("the new maps were not filled")
	}
	if n := lost(); n != 0 {
		t.Errorf("%d datagrams got lost", n)
	}
	dirs, err := filepath.Glob(filepath.Join(a.pins, layoutPrefix+"*"))
	if err != nil || len(dirs) != 1 || !strings.HasSuffix(dirs[0], a.driver.layout) {
		t.Errorf("maps %v, %v, want those of layout %s only", dirs, err, a.driver.layout)
	}
	talk(t, p, q)
}

// TestSweep: what an earlier agent left and nobody wants goes, and what is wanted is not touched.
func TestSweep(t *testing.T) {
	for name, opts := range modes() {
		t.Run(name, func(t *testing.T) {
			a, b, p, q := tunnelled(t, netset.V4, opts...)
			gone := a.addPod(1450)
			a.want(&plan.Remote{Prefix: netip.MustParsePrefix("10.99.0.0/16"), Via: netip.MustParseAddr("192.168.7.99"), MTU: 1450})
			a.apply()
			transfer(t, gone, q, netset.V4, 1000)

			delete(a.rows, gone.row().Key())
			delete(a.rows, plan.Key{Kind: plan.KindRemote, Name: "10.99.0.0/16"})
			lost := stream(t, p, q, netset.V6)
			a.restart()
			if n := lost(); n != 0 {
				t.Errorf("%d datagrams got lost", n)
			}
			var have []string
			for _, addr := range gone.addrs {
				if err := a.driver.locals.m.Lookup(addrOf(addr), &weftWeftLocal{}); err == nil {
					have = append(have, addr.String())
				}
			}
			if err := a.driver.peers.m.Lookup(addrOf(netip.MustParseAddr("192.168.7.99")), new(uint32)); err == nil {
				have = append(have, "peer")
			}
			if on := a.attached(gone.hostIf); len(on) > 0 {
				have = append(have, on...)
			}
			if len(have) > 0 {
				t.Errorf("still there: %v", have)
			}
			if on := a.attached(p.hostIf); len(on) != 2 {
				t.Errorf("on %s: %v, want both programs", p.hostIf, on)
			}
			_ = b
		})
	}
}

// entries counts what is in the maps, but for arrays that have an entry for each CPU or for the node.
func (d *Driver) entries(t *testing.T) map[string]int {
	t.Helper()
	out := map[string]int{}
	count := func(name string, m *ebpf.Map) {
		var k, v []byte
		for entries := m.Iterate(); entries.Next(&k, &v); {
			out[name]++
		}
	}
	for name, m := range d.maps() {
		if m.Type() == ebpf.Hash || m.Type() == ebpf.LRUHash || m.Type() == ebpf.LPMTrie {
			count(name, m)
		}
	}
	p := d.policy
	for name, m := range map[string]*ebpf.Map{"lists": p.lists.m, "members": p.members.m, "addresses": p.addresses.m, "vips": p.vips.m, "numbers": p.numbers.t.m} {
		count(name, m)
	}
	_ = p.rules.each(func(uint32, []weftWeftHits) error { out["rulestats"]++; return nil })
	_ = each(p.sets.m, func(_ uint32, v weftWeftSet) error {
		if v != (weftWeftSet{}) {
			out["sets"]++
		}
		return nil
	})
	return out
}

// attached lists our programs on a device, as pins and `tc` show them.
func (n *node) attached(dev string) []string {
	n.t.Helper()
	var out []string
	for _, dir := range directions() {
		if _, err := os.Stat(n.driver.mode.pin(dev, dir)); err == nil {
			out = append(out, dir.name+" link")
		}
		if text, _ := n.ns.Try(n.t, "tc", "filter", "show", "dev", dev, dir.name); strings.Contains(text, filterPrefix) {
			out = append(out, dir.name+" filter")
		}
	}
	return out
}

// TestDelete: deleting every row leaves no entry, no link and no filter, but a pod's link shut.
func TestDelete(t *testing.T) {
	for name, opts := range modes() {
		t.Run(name, func(t *testing.T) {
			a, _, p, _ := tunnelled(t, netset.V4, opts...)
			var keys []plan.Key
			for k := range a.rows {
				keys = append(keys, k)
			}
			a.remove(keys...)
			var left []string
			for name, n := range a.driver.entries(t) {
				if n > 0 {
					left = append(left, fmt.Sprint(name, " ", n))
				}
			}
			var s weftWeftSettings
			if err := a.driver.settings.m.Lookup(uint32(0), &s); err != nil || s != (weftWeftSettings{}) {
				left = append(left, "settings")
			}
			for i := range a.driver.slots.m.MaxEntries() {
				if s, err := a.driver.slot(i); err != nil || s != (weftWeftSlot{}) {
					left = append(left, fmt.Sprint("slot ", i))
				}
			}
			for _, dev := range []string{uplink, overlayDev} {
				left = append(left, a.attached(dev)...)
			}
			for _, dir := range []string{"ingress", "egress"} {
				if out := a.ns.Run(t, "tc", "filter", "show", "dev", p.hostIf, dir); !strings.Contains(out, gateName) {
					left = append(left, "open "+dir+": "+out)
				}
			}
			if len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// TestAddressMoves: a pod's address goes to another pod; deleting the first must not cut off the second.
func TestAddressMoves(t *testing.T) {
	n, _ := network(t, 1500)
	first, second, client := n.addPod(1500), n.addPod(1500), n.addPod(1500)
	n.want(n.settings())
	n.apply()
	was := first.row()
	heir := second.row()
	heir.Addrs = append(heir.Addrs, first.addrs[0])
	n.want(heir)
	within(t, n.ns, func() error {
		return n.driver.Apply(t.Context(), n.rows, plan.Changes{Upsert: []plan.Row{heir}})[heir.Key()]
	})
	n.remove(was.Key())
	for i, c := range []struct {
		addr netip.Addr
		want bool
	}{{first.addrs[0], true}, {first.addrs[1], false}, {second.addrs[0], true}} {
		err := n.driver.locals.m.Lookup(addrOf(c.addr), &weftWeftLocal{})
		if (err == nil) != c.want {
			t.Errorf("%d: entry of %s: %v, want it there: %v", i, c.addr, err, c.want)
		}
	}
	// An address that the row no longer has is forgotten.
	n.want(second.row())
	n.apply()
	if err := n.driver.locals.m.Lookup(addrOf(first.addrs[0]), &weftWeftLocal{}); err == nil {
		t.Errorf("%s is still known", first.addrs[0])
	}
	talk(t, client, second)
}

// TestSharedSlot: addresses that share a slot are all found, whichever comes first and goes first.
func TestSharedSlot(t *testing.T) {
	n, _ := network(t, 1500)
	first, second, client := n.addPod(1500), n.addPod(1500), n.addPod(1500)
	n.want(n.settings())
	n.apply()
	size := uint64(n.driver.slots.m.MaxEntries())
	base := first.addrs[0]
	shared := []netip.Addr{
		netset.Nth(netip.MustParsePrefix("10.0.0.0/8"), mustOffset(t, base)+size),
		netset.Nth(netip.MustParsePrefix("fd99::/64"), mustOffset(t, base)&(size-1)^size/2),
	}
	row := second.row()
	row.Addrs = append(row.Addrs, shared...)
	n.want(row)
	n.apply()
	for _, a := range shared {
		if n.driver.slotOf(a) != n.driver.slotOf(base) {
			t.Fatalf("%s has slot %d, %s has %d", a, n.driver.slotOf(a), base, n.driver.slotOf(base))
		}
	}
	reach := func(when string, to *pod, addrs ...netip.Addr) {
		t.Helper()
		for _, a := range addrs {
			f := netset.Of(a)
			in := frame{srcMAC: client.mac, dstMAC: model.GatewayMAC, src: client.addr(f), dst: a, proto: protoTCP, payload: tcp(1, 2, 3)}
			want, verdict := in.forwarded(to.mac, model.GatewayMAC).bytes(), uint32(verdictRedirect)
			if to == client { // nobody
				want, verdict = in.bytes(), verdictNext
			}
			if got, out := n.run(n.driver.objs.FromPod, client.hostIf, in.bytes()); got != verdict || !bytes.Equal(out, want) {
				t.Errorf("%s: to %s: verdict %d\n%s", when, a, int32(got), dump(out))
			}
		}
	}
	reach("together", first, base)
	reach("together", second, shared...)
	n.remove(first.row().Key())
	reach("the first is gone", second, shared...)
	reach("the first is gone", client, base)
	n.want(first.row())
	n.apply()
	reach("the first is back", first, base)
	reach("the first is back", second, shared...)
	n.remove(row.Key())
	n.sweep()
	reach("the others are gone", first, base)
	reach("the others are gone", client, shared...)
	if s, err := n.driver.slot(n.driver.slotOf(base)); err != nil || s.More != 0 {
		t.Errorf("the slot still sends to the hash: %+v, %v", s, err)
	}
}

// mustOffset is how far an address is from the start of its family's widest prefix of the tests.
func mustOffset(t *testing.T, a netip.Addr) uint64 {
	t.Helper()
	n, ok := netset.Offset(netip.MustParsePrefix("10.0.0.0/8"), a)
	if !ok {
		t.Fatalf("%s is not in 10.0.0.0/8", a)
	}
	return n
}

// TestLinkMadeAgain: a device that vanished and came back under its name gets its programs and entries again.
func TestLinkMadeAgain(t *testing.T) {
	for name, opts := range modes() {
		t.Run(name, func(t *testing.T) {
			n, _ := network(t, 1500, opts...)
			p, q := n.addPod(1500), n.addPod(1500)
			n.want(n.settings())
			n.apply()
			ip(t, n.ns, "link del "+p.hostIf)
			within(t, n.ns, func() error {
				got := n.driver.Apply(t.Context(), n.rows, plan.Changes{Upsert: []plan.Row{p.row()}})
				if err := got[p.row().Key()]; err == nil || !strings.Contains(err.Error(), p.hostIf) {
					return fmt.Errorf("a row without its device: %w, want an error that names it", err)
				}
				return nil
			})
			p.link(1500)
			n.apply()
			talk(t, p, q)
		})
	}
}

// TestRefusals: each thing that cannot be is an error that names the row, the device or the map.
func TestRefusals(t *testing.T) {
	n, _ := network(t, 1500)
	n.want(n.settings(), &plan.Hook{Dev: uplink, Role: plan.RoleUnderlay})
	n.apply()
	ip(t, n.ns, "link add dot.77 type veth peer name dot2")
	apply := func(r plan.Row) (err error) {
		n.ns.Do(t, func() {
			err = n.driver.Apply(t.Context(), n.rows, plan.Changes{Upsert: []plan.Row{r}})[r.Key()]
		})
		return err
	}
	far := netip.MustParseAddr("192.168.7.50")
	for _, c := range []struct {
		row  plan.Row
		want string // "" for none
	}{
		{&plan.Hook{Dev: "lo", Role: plan.RoleUnderlay}, "lo is no Ethernet device"},
		{&plan.Hook{Dev: "absent", Role: plan.RoleUnderlay}, "absent"},
		{&plan.Hook{Dev: "a-name-that-is-too-long", Role: plan.RoleUnderlay}, "a-name-that-is-too-long"},
		{&plan.Hook{Dev: "dot.77", Role: plan.RoleUnderlay}, ""},
		{&plan.Remote{Prefix: netip.MustParsePrefix("10.1.0.0/16"), Via: far, MTU: 70000}, "10.1.0.0/16"},
		{&plan.Settings{Underlay: "absent", GatewayMAC: model.GatewayMAC}, "absent"},
		{&plan.Route{Dst: netip.MustParsePrefix("10.1.0.0/16")}, "routes"},
	} {
		err := apply(c.row)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q in it", c.row, err, c.want)
		}
	}
	t.Run("full map", func(t *testing.T) {
		p := n.addPod(1500)
		row := p.row()
		room := int(n.driver.locals.m.MaxEntries())
		for i := range room + 1 {
			row.Addrs = append(row.Addrs, netset.Nth(netip.MustParsePrefix("10.128.0.0/9"), uint64(i)))
		}
		err := apply(row)
		if err == nil || !strings.Contains(err.Error(), p.hostIf) || !strings.Contains(err.Error(), "full") {
			t.Errorf("%d addresses in a map of %d: %v", len(row.Addrs), room, err)
		}
	})
	t.Run("no bpffs", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if d, err := New(filepath.Join(file, "bpf"), n.driver.log); err == nil || !strings.Contains(err.Error(), file) {
			_ = d.Close()
			t.Errorf("pins below a file: %v", err)
		}
	})
}

// TestMountsBPFFS: the directory needs not be on a bpffs before, and is used as it is if it is on one.
func TestMountsBPFFS(t *testing.T) {
	n, _ := network(t, 1500)
	n.open()
	var fs unix.Statfs_t
	if err := unix.Statfs(n.pins, &fs); err != nil || fs.Type != unix.BPF_FS_MAGIC {
		t.Fatalf("%s: type %x, %v", n.pins, fs.Type, err)
	}
	below := filepath.Join(n.pins, "second")
	d, err := New(below, n.driver.log)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := unix.Unmount(below, 0); err == nil {
		t.Error("a second bpffs was mounted on the first")
	}
}

// TestWatch: whoever takes our programs off a device is noticed at once, and the row is named.
func TestWatch(t *testing.T) {
	for name, opts := range modes() {
		t.Run(name, func(t *testing.T) {
			n, _ := network(t, 1500, opts...)
			p := n.addPod(1500)
			n.want(n.settings(), &plan.Hook{Dev: uplink, Role: plan.RoleUnderlay})
			n.apply()
			ctx, stop := context.WithCancel(t.Context())
			type change struct {
				key  plan.Key
				what string
			}
			seen := make(chan change, 10)
			ended := make(chan error, 1)
			go n.ns.Do(t, func() { ended <- n.driver.Watch(ctx, func(k plan.Key, what string) { seen <- change{k, what} }) })
			for _, c := range []struct {
				key plan.Key
				dev string
			}{{p.row().Key(), p.hostIf}, {plan.Key{Kind: plan.KindHook, Name: uplink}, uplink}} {
				// The watcher may not listen yet: take them off until it says so.
				for deadline := time.Now().Add(3 * time.Second); ; {
					if n.attached(c.dev)[0] == "ingress filter" {
						n.ns.Run(t, "tc", "qdisc", "del", "dev", c.dev, "clsact")
					} else if err := os.Remove(filepath.Join(n.pins, "links", c.dev+"-ingress")); err != nil {
						t.Fatal(err)
					}
					var got change
					select {
					case got = <-seen:
					case <-time.After(300 * time.Millisecond):
					}
					n.apply()
					if got.key == c.key && strings.Contains(got.what, c.dev) {
						break
					}
					if time.Now().After(deadline) {
						t.Fatalf("after taking the programs off %s: %v", c.dev, got)
					}
				}
				if on := n.attached(c.dev); len(on) != 2 {
					t.Errorf("on %s after the repair: %v", c.dev, on)
				}
			}
			stop()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("the watch ended with %v", err)
			}
		})
	}
}

// TestDevicesMadeAgain: when the overlay's and a pod's device are deleted, Watch names their rows, and once the devices are back
// and the rows applied, packets flow as before.
func TestDevicesMadeAgain(t *testing.T) {
	a, b, p, q := tunnelled(t, netset.V4)
	talk(t, p, q)
	ctx, stop := context.WithCancel(t.Context())
	seen := make(chan plan.Key, 10)
	ended := make(chan error, 1)
	go a.ns.Do(t, func() { ended <- a.driver.Watch(ctx, func(k plan.Key, _ string) { seen <- k }) })
	// A new device is seen only by a watcher that listens: let it see a filter go first.
	for told := false; !told; {
		a.ns.Run(t, "tc", "qdisc", "del", "dev", p.hostIf, "clsact")
		select {
		case <-seen:
			told = true
		case <-time.After(200 * time.Millisecond):
		}
		a.apply()
	}
	for _, c := range []struct {
		dev    string
		row    plan.Row
		remake func()
	}{
		{overlayDev, &plan.Hook{Dev: overlayDev, Role: plan.RoleOverlay}, func() { a.overlay(1450) }},
		{p.hostIf, p.row(), func() { p.link(1450) }},
	} {
		ip(t, a.ns, "link del "+c.dev)
		select {
		case k := <-seen:
			if k != c.row.Key() {
				t.Errorf("after deleting %s: %s", c.dev, k)
			}
		case <-time.After(2 * time.Second):
			t.Fatalf("nobody noticed that %s was deleted", c.dev)
		}
		c.remake()
		within(t, a.ns, func() error {
			return a.driver.Apply(t.Context(), a.rows, plan.Changes{Upsert: []plan.Row{c.row}})[c.row.Key()]
		})
	}
	for _, pre := range b.podCIDRs() {
		src := netset.First(a.addrs, netset.OfPrefix(pre))
		ip(t, a.ns, fmt.Sprintf("route add %s dev %s src %s mtu 1450", pre, overlayDev, src))
	}
	talk(t, p, q)
	talk(t, a, q)
	stop()
	<-ended
}

// TestCalm: a pod starts with filters, and moves to a link under traffic without a loss. An agent that died in the middle of
// it leaves both, and its successor takes the filter off.
func TestCalm(t *testing.T) {
	if !kernelIs(t, 6, 6) {
		t.Skip("this kernel has no TCX")
	}
	n, _ := network(t, 1500)
	p, q := n.addPod(1500), n.addPod(1500)
	n.want(n.settings())
	n.open()
	rows := []plan.Row{n.settings(), p.row(), q.row()}
	apply := func() {
		within(t, n.ns, func() error {
			var errs []error
			for _, err := range n.driver.Apply(t.Context(), n.rows, plan.Changes{Upsert: rows}) {
				errs = append(errs, err)
			}
			return errors.Join(errs...)
		})
	}
	want := func(when, what string) {
		t.Helper()
		if on := strings.Join(n.attached(p.hostIf), ", "); on != what {
			t.Errorf("%s: on %s: %s, want %s", when, p.hostIf, on, what)
		}
	}
	apply()
	want("at first", "ingress filter, egress filter")
	talk(t, p, q)
	lost := stream(t, p, q, netset.V4)
	n.apply()
	if n := lost(); n != 0 {
		t.Errorf("%d datagrams got lost in the move", n)
	}
	want("when calm", "ingress link, egress filter")
	if got := n.driver.Stats()["stack"]; got != 0 {
		t.Errorf("%d packets were left to the stack", got)
	}
	within(t, n.ns, func() error { // a death between link and filter
		index, err := interfaceIndex(p.hostIf)
		return errors.Join(err, linux.AttachClsact(index, true, n.driver.objs.FromPod.FD(), "weft_from_pod"))
	})
	want("after a death", "ingress link, ingress filter, egress filter")
	n.restart()
	want("after the restart", "ingress link, egress filter")

	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	fresh := n.addPod(1500)
	rows = append(rows, fresh.row())
	apply()
	go n.ns.Do(t, func() { ended <- n.driver.Watch(ctx, func(k plan.Key, what string) { t.Errorf("%s: %s", k, what) }) })
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(strings.Join(n.attached(fresh.hostIf), ", "), "ingress link, egress"); {
		if time.Now().After(deadline) {
			t.Fatalf("Watch did not move %s: %v", fresh.hostIf, n.attached(fresh.hostIf))
		}
		time.Sleep(20 * time.Millisecond)
	}
	stop()
	<-ended
}

// TestWithoutKernelBTF: the programs read no structure of the kernel's, so a kernel that tells no types will do.
func TestWithoutKernelBTF(t *testing.T) {
	const types = "/sys/kernel/btf"
	if _, err := os.Stat(types); err != nil {
		t.Skip("this kernel tells no types: every other test shows it")
	}
	n, _ := network(t, 1500)
	n.open() // mounts the bpffs
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread and its mounts end here
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
				return err
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return err
			}
			if err := unix.Mount("none", types, "tmpfs", 0, ""); err != nil {
				return err
			}
			if left, err := os.ReadDir(types); err != nil || len(left) > 0 {
				return fmt.Errorf("%s: %v, %w", types, left, err)
			}
			d, err := New(filepath.Join(n.pins, "typeless"), n.driver.log)
			if err != nil {
				return err
			}
			return d.Close()
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
