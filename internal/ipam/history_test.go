package ipam_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"weft/internal/api"
	"weft/internal/ipam"
	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/run"
	"weft/internal/source/cni"
)

// node is a machine in miniature: a disk, a kernel with namespaces and pod links, a runtime, and an agent (the real
// source over the real allocator) that can die at every file and kernel step.
type node struct {
	t     testing.TB
	rng   *rand.Rand
	clock *run.Manual
	disk  *disk
	pools []netip.Prefix
	boot  int

	netns  map[string]string          // path → identity; those that live
	kernel map[string]*model.Endpoint // pod links, by endpoint ID
	intent map[string]*model.Endpoint // endpoint rows; die with the agent
	src    *cni.Source

	serial  int
	refuse  bool // the kernel refuses what is new
	trust   bool // InUse is wired: the journal may have lost records that were on disk
	history []string
}

func newNode(t testing.TB, seed uint64, pools ...string) *node {
	rng := rand.New(rand.NewPCG(seed, 6))
	n := &node{
		t: t, rng: rng, clock: run.NewManual(time.Unix(1_800_000_000, 0)), disk: newDisk(rng), pools: prefixes(pools...),
		netns: map[string]string{}, kernel: map[string]*model.Endpoint{},
	}
	n.start()
	return n
}

func (n *node) logf(f string, a ...any) { n.history = append(n.history, fmt.Sprintf(f, a...)) }

func (n *node) fail(f string, a ...any) {
	n.t.Helper()
	for _, h := range n.history {
		n.t.Log(h)
	}
	n.t.Fatalf(f, a...)
}

// The store and the kernel, in one: a row is applied when somebody waits for it.

func (n *node) Upsert(objs ...model.Object) {
	if n.disk.step() != nil {
		return
	}
	for _, o := range objs {
		n.intent[o.Key().Name] = o.(*model.Endpoint)
	}
}

func (n *node) Delete(keys ...model.Key) {
	if n.disk.step() != nil {
		return
	}
	for _, k := range keys {
		delete(n.intent, k.Name)
	}
}

func (n *node) Replace(_ model.Kind, objs []model.Object) {
	n.intent = map[string]*model.Endpoint{}
	n.Upsert(objs...)
}

func (n *node) WaitDone(_ context.Context, k model.Key) error {
	if err := n.disk.step(); err != nil && (n.disk.steps != n.disk.crash || n.rng.IntN(2) == 0) {
		return err
	}
	ep := n.intent[k.Name]
	if ep == nil {
		return errors.New("no such row")
	}
	if n.netns[ep.Netns] == "" {
		return fmt.Errorf("netns %s: %w", ep.Netns, fs.ErrNotExist)
	}
	if n.refuse && n.kernel[ep.ID] == nil {
		return fmt.Errorf("link %s: %w", ep.IfName, syscall.EEXIST)
	}
	n.kernel[ep.ID] = ep
	if n.disk.down {
		return errCrash
	}
	return nil
}

func (n *node) WaitGone(_ context.Context, k model.Key) error {
	if err := n.disk.step(); err != nil {
		return err
	}
	delete(n.kernel, k.Name)
	return nil
}

func (n *node) Snapshot() model.Snapshot { return nothing{} }

type nothing struct{}

func (nothing) Get(model.Key) model.Object { return nil }

func (nothing) All(model.Kind) iter.Seq[model.Object] { return func(func(model.Object) bool) {} }

func (n *node) identify(path string) (string, error) {
	if id := n.netns[path]; id != "" && !n.disk.down {
		return id, nil
	}
	return "", fs.ErrNotExist
}

// start is the start of an agent on what the last one left: by the end of Restore nothing may be leaked.
func (n *node) start() {
	n.t.Helper()
	n.intent = map[string]*model.Endpoint{}
	cfg := cni.Config{
		FS: n.disk, Clock: n.clock, Boot: fmt.Sprint("boot", n.boot), Quarantine: 30 * time.Second,
		Identify: n.identify, Go: func(f func()) { f() },
	}
	if n.trust {
		cfg.InUse = func() (map[netip.Addr]string, error) {
			out := map[netip.Addr]string{}
			for _, ep := range n.kernel {
				for _, x := range ep.Addrs {
					out[x] = ep.HostIf
				}
			}
			return out, nil
		}
	}
	src, err := cni.New(cfg, n, n, slog.New(slog.DiscardHandler))
	if err != nil {
		n.fail("start: %v", err)
	}
	n.src = src
	n.crashable(func() { err = src.Restore() })
	if err != nil && !n.disk.down {
		n.fail("restore: %v", err)
	}
	if n.disk.down { // died while starting
		n.logf("  died in Restore")
		n.disk.reboot(n.rng.IntN(2) == 0)
		n.start()
		return
	}
	if err := src.SetPools(n.pools); err != nil {
		n.fail("SetPools: %v", err)
	}
	for _, h := range n.holdings() {
		if h.State != string(ipam.Reserved) && h.State != string(ipam.Committed) {
			continue
		}
		if n.netns[h.Netns] == "" {
			n.fail("leak: %s is held by %s, whose namespace %s is gone", h.Addr, h.Owner, h.Netns)
		}
		if n.intent[h.Owner] == nil {
			n.fail("%s has a lease and no row", h.Owner)
		}
	}
	// The reconciler: rows are applied at once, and links without a row swept some time.
	for _, ep := range n.intent {
		if n.netns[ep.Netns] != "" {
			n.kernel[ep.ID] = ep
		}
	}
	if n.rng.IntN(2) == 0 {
		n.sweep()
	}
	n.check()
}

func (n *node) sweep() {
	for id := range n.kernel {
		if n.intent[id] == nil {
			delete(n.kernel, id)
		}
	}
	n.src.Swept()
}

// crashable runs f with a crash at a random step, or none. An agent that crashed is followed by another.
func (n *node) crashable(f func()) {
	if n.rng.IntN(3) == 0 {
		n.disk.crash = n.disk.steps + 1 + n.rng.IntN(8)
	}
	f()
	if !n.disk.down {
		n.disk.crash = 0
	}
}

// do runs one operation of the runtime; it reports false if the agent died in it and was started again.
func (n *node) do(f func()) bool {
	n.crashable(f)
	if !n.disk.down {
		return true
	}
	n.logf("  agent died at step %d", n.disk.steps)
	n.disk.reboot(n.rng.IntN(2) == 0)
	n.start()
	return false
}

func (n *node) holdings() []api.Holding {
	return n.explain("")
}

func (n *node) explain(q string) []api.Holding {
	var out api.ExplainReply
	out.Holdings = n.src.Explain(q)
	return out.Holdings
}

// check holds the invariants: no address in two live namespaces; every address that is in one is known;
// live + quarantined + free is the pool.
func (n *node) check() {
	n.t.Helper()
	owner := map[netip.Addr]string{}
	for id, ep := range n.kernel {
		if n.netns[ep.Netns] == "" {
			continue
		}
		for _, x := range ep.Addrs {
			if owner[x] != "" {
				n.fail("%s is in the live namespaces of %s and of %s", x, owner[x], id)
			}
			owner[x] = id
		}
	}
	live, rest := map[netset.Family]uint64{}, map[netset.Family]uint64{}
	for _, h := range n.holdings() {
		if !n.given(h.Addr) {
			continue
		}
		switch f := netset.Of(h.Addr); ipam.State(h.State) {
		case ipam.Reserved, ipam.Committed:
			live[f]++
			if id := owner[h.Addr]; id != "" && id != h.Owner && n.intent[h.Owner] != nil && n.kernel[h.Owner] != nil {
				n.fail("%s is %s's and in the namespace of %s", h.Addr, h.Owner, id)
			}
			delete(owner, h.Addr)
		case ipam.Suspected:
			rest[f]++
			delete(owner, h.Addr)
		default:
			rest[f]++
			if id := owner[h.Addr]; id != "" && n.intent[id] != nil {
				n.fail("%s is %s and in use by %s", h.Addr, h.State, id)
			}
		}
	}
	for x, id := range owner {
		if n.intent[id] != nil {
			n.fail("%s is in use by %s and nobody's", x, id)
		}
	}
	for _, u := range n.src.Pools().Use {
		f := netset.V4
		if u.Family == netset.V6.String() {
			f = netset.V6
		}
		if u.Live != live[f] || u.Quarantined != rest[f] || u.Live+u.Quarantined+u.Free != u.Size {
			n.fail("%s: %+v, counted %d live and %d resting", u.Family, u, live[f], rest[f])
		}
	}
}

// given reports whether the address is one of those that the pools give.
func (n *node) given(x netip.Addr) bool {
	return slices.ContainsFunc(n.pools, func(p netip.Prefix) bool {
		return p.Contains(x) && x != p.Addr() && (netset.Of(x) == netset.V6 || x != netset.Last(p))
	})
}

// sandbox is one incarnation of a pod.
type sandbox struct {
	pod string
	att api.Attachment
}

func (n *node) sandbox(pod string) *sandbox {
	n.serial++
	id := fmt.Sprintf("c%06d", n.serial)
	sb := &sandbox{pod, api.Attachment{ContainerID: id, IfName: "eth0", Network: "weft", Netns: "/run/netns/" + id, Started: n.tick()}}
	n.netns[sb.att.Netns] = "ns-" + id
	return sb
}

func (n *node) tick() time.Time {
	n.clock.Add(10 * time.Millisecond)
	return n.clock.Now()
}

func (n *node) add(sb *sandbox) (r api.AddReply, ok bool) {
	var err error
	known := len(n.explain(sb.att.ID())) > 0
	n.refuse = n.rng.IntN(8) == 0
	defer func() { n.refuse = false }()
	survived := n.do(func() {
		r, err = n.src.Add(n.t.Context(), api.AddRequest{Attachment: sb.att, Pod: api.PodRef{Namespace: "ns", Name: sb.pod, UID: sb.pod}})
	})
	n.logf("ADD %s of %s: %v %v", sb.att.ContainerID, sb.pod, r.IPs, err)
	if survived && err != nil {
		var e *api.Error
		if !errors.As(err, &e) || e.Code == api.CodeInternal {
			n.fail("ADD failed without a code: %v", err)
		}
		if n.kernel[sb.att.ID()] != nil && e.Code != api.CodeInvalidConfig && !n.trust { // a lost record leaves its link to the sweep
			n.fail("a failed ADD left a link: %v", err)
		}
		for _, h := range n.explain(sb.att.ID()) {
			if h.Netns != "" && !known {
				n.fail("a failed ADD (%v) left %+v", err, h)
			}
		}
	}
	return r, survived && err == nil
}

func (n *node) del(sb *sandbox) bool {
	var err error
	sb.att.Started = n.tick()
	survived := n.do(func() { err = n.src.Del(n.t.Context(), sb.att) })
	n.logf("DEL %s: %v", sb.att.ContainerID, err)
	if survived && err != nil {
		n.fail("DEL: %v", err)
	}
	if survived && n.kernel[sb.att.ID()] != nil && !n.trust {
		n.fail("DEL left the link of %s", sb.att.ID())
	}
	return survived
}

func (n *node) destroy(sb *sandbox) {
	n.logf("netns of %s destroyed", sb.att.ContainerID)
	delete(n.netns, sb.att.Netns)
	for id, ep := range n.kernel {
		if ep.Netns == sb.att.Netns {
			delete(n.kernel, id) // a link dies with either end
		}
	}
}

// play runs one random history.
func (n *node) play(ops int) {
	pods := map[string]*sandbox{} // the runtime's view: current sandbox of each pod
	var stray []*sandbox          // abandoned without a DEL
	name := func() string { return fmt.Sprint("pod", n.rng.IntN(40)) }
	any := func() *sandbox {
		for _, sb := range pods {
			return sb
		}
		return nil
	}
	for range ops {
		n.clock.Add(time.Duration(n.rng.IntN(12)) * time.Second)
		switch n.rng.IntN(20) {
		default: // a pod is started; perhaps it was there already and its sandbox died without a DEL
			p := name()
			if old := pods[p]; old != nil {
				n.destroy(old)
				stray = append(stray, old)
			}
			pods[p] = n.sandbox(p)
			n.add(pods[p])
		case 9, 10, 11:
			if sb := any(); sb != nil {
				if n.rng.IntN(2) == 0 {
					n.destroy(sb)
				}
				for !n.del(sb) { // the runtime repeats what got no answer
				}
				n.destroy(sb)
				delete(pods, sb.pod)
			}
		case 12: // duplicate ADD
			if sb := any(); sb != nil {
				before := n.explain(sb.att.ID())
				r, ok := n.add(sb)
				if ok && len(before) > 0 && before[0].State == "committed" && r.IPs[0].Addr != before[0].Addr {
					n.fail("the second ADD of %s got %v after %v", sb.att.ID(), r.IPs, before)
				}
			}
		case 13: // duplicate DEL, of something long gone or never there
			if len(stray) > 0 {
				n.del(stray[n.rng.IntN(len(stray))])
			}
		case 14: // DEL overtakes ADD
			sb := n.sandbox(name())
			late, before := *sb, n.src
			for !n.del(sb) {
			}
			alive := n.rng.IntN(2) == 0
			if !alive {
				n.destroy(sb)
			}
			agent := n.src
			if _, ok := n.add(&late); ok && (!alive || agent == n.src && before == n.src) {
				n.fail("an ADD that was started before its DEL succeeded")
			}
			n.destroy(sb)
		case 15: // the runtime lost its state: namespaces die, nobody says DEL
			for p, sb := range pods {
				if n.rng.IntN(2) == 0 {
					n.destroy(sb)
					stray = append(stray, sb)
					delete(pods, p)
				}
			}
			n.do(func() { n.src.Reap(n.t.Context()) })
		case 16:
			n.logf("reboot")
			clear(n.netns)
			clear(n.kernel)
			clear(pods)
			n.boot++
			if n.rng.IntN(4) == 0 { // node recreated under the same name, with another pod CIDR or an empty disk
				if n.rng.IntN(2) == 0 {
					n.disk.files = map[string]*inode{}
				} else {
					n.pools = slices.Clone(n.pools)
					n.pools[0] = netip.PrefixFrom(netset.Last(n.pools[0]).Next(), n.pools[0].Bits())
				}
			}
			n.disk.reboot(true)
			n.start()
		case 17: // GC
			var valid []api.Attachment
			for _, sb := range pods {
				valid = append(valid, sb.att)
			}
			if n.do(func() { _, _ = n.src.GC(n.t.Context(), api.GCRequest{Network: "weft", Valid: valid}) }) {
				for _, h := range n.holdings() {
					if i := slices.IndexFunc(valid, func(a api.Attachment) bool { return a.ID() == h.Owner }); i < 0 && h.Netns != "" {
						n.fail("GC left %+v", h)
					}
				}
			}
		case 18:
			n.disk.full = !n.disk.full
			n.logf("disk full: %v", n.disk.full)
		case 19: // records that were on disk are lost
			if n.trust {
				n.truncate()
			}
			n.logf("restart")
			n.disk.reboot(n.rng.IntN(2) == 0)
			n.start()
		}
		n.check()
	}
	n.disk.full = false
	for _, sb := range pods {
		n.destroy(sb)
	}
	n.logf("all namespaces destroyed, agent restarted")
	n.disk.reboot(true)
	n.start()
	for _, u := range n.src.Pools().Use {
		if u.Live != 0 {
			n.fail("leak at the end: %+v", n.holdings())
		}
	}
}

// truncate cuts the journal anywhere, but leaves its first record: without that it is refused, not misread.
func (n *node) truncate() {
	f := n.disk.files[ipam.JournalName]
	if f == nil {
		return
	}
	data := append(f.synced, f.unsynced...)
	first := slices.Index(data, '\n') + 1
	if first > 0 && first < len(data) {
		cut := first + n.rng.IntN(len(data)-first)
		f.synced, f.unsynced = data[:cut], nil
		n.logf("journal cut from %d to %d bytes", len(data), cut)
	}
}

// TestHistories is behaviour 6 of the design: 10,000 random histories of a node with a /27.
func TestHistories(t *testing.T) {
	count := uint64(10_000)
	if testing.Short() || raced {
		count = 500
	}
	families := [][]string{{"10.0.0.0/27"}, {"fd00::/123"}, {"10.0.0.0/27", "fd00::/64"}}
	for seed := range count {
		n := newNode(t, seed, families[seed%3]...)
		n.trust = seed%4 == 3
		n.play(16)
	}
}

// TestCrashEverywhere takes one life of two pods and lets the agent die at each of its steps in turn, by a kill and by a
// power cut.
func TestCrashEverywhere(t *testing.T) {
	for _, power := range []bool{false, true} {
		for at := 1; ; at++ {
			n := newNode(t, uint64(at), "10.0.0.0/30", "fd00::/126")
			n.rng = rand.New(quiet{}) // no crash but ours
			n.disk.crash = n.disk.steps + at
			died := false
			step := func(f func()) {
				f()
				if n.disk.down {
					died = true
					n.disk.reboot(power)
					n.start()
					n.sweep()
				}
				n.check()
			}
			web, db := n.sandbox("web"), n.sandbox("db")
			req := func(sb *sandbox) api.AddRequest {
				return api.AddRequest{Attachment: sb.att, Pod: api.PodRef{Namespace: "ns", Name: sb.pod}}
			}
			step(func() { _, _ = n.src.Add(t.Context(), req(web)) })
			step(func() { _, _ = n.src.Add(t.Context(), req(db)) })
			// What the runtime got no answer for, it deletes.
			step(func() { _ = n.src.Del(t.Context(), web.att) })
			step(func() { _ = n.src.Del(t.Context(), web.att) })
			n.destroy(web)
			again := n.sandbox("web")
			step(func() { _, _ = n.src.Add(t.Context(), req(again)) })
			var err error
			for retry := true; retry; { // what got no answer is asked again, as the plugin would be
				was := died
				step(func() { _, err = n.src.Add(t.Context(), req(again)) })
				retry = died && !was
			}
			if err != nil {
				t.Fatalf("step %d: %v", at, err)
			}
			step(func() { n.src.Reap(t.Context()) })
			if live := len(n.kernel); live > 2 {
				t.Fatalf("step %d: %d links for 2 pods", at, live)
			}
			if !died {
				t.Logf("power cut %v: died at each of %d steps", power, at-1)
				if at < 25 {
					t.Errorf("only %d steps: is the disk still wired?", at-1)
				}
				break
			}
		}
	}
}

// quiet is a random source that always gives the largest value.
type quiet struct{}

func (quiet) Uint64() uint64 { return ^uint64(0) }

// TestSandboxRecreated: 1,000 sandboxes of one pod without a single DEL never need a second address for long.
func TestSandboxRecreated(t *testing.T) {
	n := newNode(t, 1, "10.0.0.0/27", "fd00::/64")
	n.rng = rand.New(quiet{})
	for i := range 1000 {
		sb := n.sandbox("web")
		if _, ok := n.add(sb); !ok {
			n.fail("sandbox %d", i)
		}
		n.check()
		if live := n.src.Pools().Use[0].Live; live != 1 {
			n.fail("sandbox %d: %d addresses are live", i, live)
		}
		n.destroy(sb)
	}
}
