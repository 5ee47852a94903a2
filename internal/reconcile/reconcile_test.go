package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/internal/compile/route"
	"weft/internal/model"
	"weft/internal/plan"
	"weft/internal/reconcile"
	"weft/internal/run"
	"weft/internal/store"
)

// kernel is a driver over a map. It fails where told, and checks what the contract promises it.
type kernel struct {
	t     *testing.T
	mu    sync.Mutex
	have  map[plan.Key]string
	fail  map[plan.Key]int // how many more times
	calls []string
	swept int
}

// failNext has the next n changes of a row fail.
func (k *kernel) failNext(row plan.Key, n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fail[row] = n
}

func (k *kernel) Apply(_ context.Context, want plan.View, ch plan.Changes) plan.Results {
	k.mu.Lock()
	defer k.mu.Unlock()
	res := plan.Results{}
	for _, r := range ch.Upsert {
		if w := want.Get(r.Key()); w == nil {
			k.t.Errorf("upsert of %s, which is not wanted", r.Key())
		}
		k.calls = append(k.calls, "+"+r.Key().String())
		if k.fail[r.Key()] > 0 {
			k.fail[r.Key()]--
			res[r.Key()] = fmt.Errorf("replace %s: no luck", r.Key())
			continue
		}
		k.have[r.Key()] = r.String()
		res[r.Key()] = nil
	}
	for _, r := range ch.Delete {
		k.calls = append(k.calls, "-"+r.Key().String())
		if k.fail[r.Key()] > 0 {
			k.fail[r.Key()]--
			res[r.Key()] = errors.New("busy")
			continue
		}
		delete(k.have, r.Key())
		res[r.Key()] = nil
	}
	return res
}

func (k *kernel) Sweep(_ context.Context, want plan.View) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.swept++
	for key := range k.have {
		if want.Get(key) == nil {
			delete(k.have, key)
		}
	}
	return nil
}

func (k *kernel) dump() map[plan.Key]string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return maps.Clone(k.have)
}

type rig struct {
	*testing.T
	s    *store.Store
	w    *store.Writer
	k    *kernel
	loop *reconcile.Loop
	ctx  context.Context
}

func start(t *testing.T, leftovers ...plan.Key) *rig {
	s, err := store.New(run.System())
	if err != nil {
		t.Fatal(err)
	}
	k := &kernel{t: t, have: map[plan.Key]string{}, fail: map[plan.Key]int{}}
	for _, l := range leftovers {
		k.have[l] = "left over"
	}
	ctx, cancel := context.WithCancel(t.Context())
	r := &rig{t, s, s.Writer("test"), k, reconcile.New(s, run.System(), slog.New(slog.DiscardHandler), reconcile.Stage{Name: "fake", Driver: k, Kinds: plan.Kinds()}), ctx}
	s.Seal()
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Derive(ctx, store.Compiler{Dirty: route.Dirty, Compile: route.Compile}) })
	wg.Go(func() { _ = r.loop.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait(); _ = s.Close() })
	return r
}

func (r *rig) done(k model.Key) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.ctx, 5*time.Second)
	defer cancel()
	if err := r.s.WaitDone(ctx, k); err != nil {
		r.Fatal(err)
	}
}

// quiet waits until the loop has nothing to do and returns its counters.
func (r *rig) quiet() reconcile.Stats {
	r.Helper()
	for {
		before := r.loop.Stats()
		if err := r.s.Settled(r.ctx); err != nil {
			r.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
		todo, _ := r.s.Todo(func(*store.Row) bool { return true })
		if len(todo) == 0 && r.loop.Stats() == before {
			return before
		}
	}
}

func (r *rig) gone(k model.Key) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.ctx, 5*time.Second)
	defer cancel()
	if err := r.s.WaitGone(ctx, k); err != nil {
		r.Fatal(err)
	}
}

func node(name, addr, cidr string) *model.Node {
	return &model.Node{Name: name, Addrs: []netip.Addr{netip.MustParseAddr(addr)}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix(cidr)}}
}

func endpoint(id, hostIf, addr string) *model.Endpoint {
	return &model.Endpoint{ID: id, Netns: "/n/" + id, IfName: "eth0", HostIf: hostIf, MAC: model.MAC{2, 1}, Addrs: []netip.Addr{netip.MustParseAddr(addr)}}
}

func base() []model.Object {
	cfg := &model.Config{NodeName: "a"}
	cfg.SetDefaults()
	return []model.Object{
		cfg, node("a", "172.30.0.1", "10.0.1.0/24"), node("b", "172.30.0.2", "10.0.2.0/24"),
		&model.Device{Name: "eth0", MTU: 1500, Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix("172.30.0.1/24")}},
	}
}

// TestLife walks one pod and one peer through everything that can happen to them, and ends with an empty kernel.
func TestLife(t *testing.T) {
	stale := plan.Key{Kind: plan.KindRoute, Name: "10.99.0.0/16"}
	r := start(t, stale)
	r.w.Upsert(base()...)
	e := endpoint("c1/eth0", "weft01", "10.0.1.5")
	link, host := plan.Key{Kind: plan.KindPodLink, Name: "weft01"}, plan.Key{Kind: plan.KindRoute, Name: "10.0.1.5/32"}
	r.k.failNext(link, 3)
	r.w.Upsert(e)
	r.done(e.Key())
	r.done(model.ConfigKey())
	if _, ok := r.k.dump()[stale]; !ok {
		t.Error("something was swept before the sources were complete")
	}
	r.w.Complete()
	<-r.loop.Swept()
	if _, ok := r.k.dump()[stale]; ok {
		t.Error("a leftover was not swept")
	}

	// Unchanged intent is no work.
	before := r.loop.Stats()
	r.w.Upsert(base()...)
	r.w.Upsert(endpoint("c1/eth0", "weft01", "10.0.1.5"))
	if err := r.s.Settled(r.ctx); err != nil {
		t.Fatal(err)
	}
	if after := r.loop.Stats(); after != before {
		t.Errorf("the same intent again made work: %+v, then %+v", before, after)
	}

	// Somebody deletes a route of ours.
	r.k.mu.Lock()
	delete(r.k.have, host)
	r.k.mu.Unlock()
	if marked := r.s.Again(host, plan.Key{Kind: plan.KindRoute, Name: "no/such"}); !slices.Equal(marked, []plan.Key{host}) {
		t.Errorf("marked %v", marked)
	}
	r.done(e.Key())
	if _, ok := r.k.dump()[host]; !ok {
		t.Error("the route did not come back")
	}

	// The address goes to another container while the first one's removal fails for a while.
	r.k.failNext(host, 2)
	next := endpoint("c2/eth0", "weft02", "10.0.1.5")
	r.w.Delete(e.Key())
	r.w.Upsert(next)
	r.gone(e.Key())
	r.done(next.Key())
	if got := r.k.dump()[host]; !strings.Contains(got, "weft02") {
		t.Errorf("route of the re-used address: %q", got)
	}

	r.w.Delete(next.Key(), model.NodeKey("b"), model.NodeKey("a"), model.ConfigKey())
	r.gone(next.Key())
	r.gone(model.NodeKey("b"))
	deadline := time.Now().Add(5 * time.Second)
	for len(r.k.dump()) > 0 && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	if left := r.k.dump(); len(left) > 0 {
		t.Errorf("left in the kernel: %v", left)
	}
}

// TestConflict: two objects want the same row. The first has it, the second says so, and takes over.
func TestConflict(t *testing.T) {
	r := start(t)
	r.w.Upsert(base()...)
	r.w.Upsert(node("c", "172.30.0.3", "10.0.2.0/24"))
	r.done(model.NodeKey("b"))
	ctx, cancel := context.WithTimeout(r.ctx, 200*time.Millisecond)
	defer cancel()
	err := r.s.WaitDone(ctx, model.NodeKey("c"))
	if err == nil || !strings.Contains(err.Error(), "held by nodes/b") {
		t.Fatalf("conflict: %v", err)
	}
	r.w.Delete(model.NodeKey("b"))
	r.done(model.NodeKey("c"))
	if got := r.k.dump()[plan.Key{Kind: plan.KindRemote, Name: "10.0.2.0/24"}]; !strings.Contains(got, "172.30.0.3") {
		t.Errorf("remote: %q", got)
	}
}

// TestOrder: referents come before what refers to them, and go after it.
func TestOrder(t *testing.T) {
	r := start(t)
	r.w.Upsert(base()...)
	e := endpoint("c1/eth0", "weft01", "10.0.1.5")
	r.w.Upsert(e)
	r.done(e.Key())
	r.w.Delete(e.Key())
	r.gone(e.Key())
	order := func(a, b string) {
		t.Helper()
		if i, j := slices.Index(r.k.calls, a), slices.Index(r.k.calls, b); i < 0 || j < 0 || i > j {
			t.Errorf("%s (%d) does not come before %s (%d)", a, i, b, j)
		}
	}
	order("+podlinks/weft01", "+routes/10.0.1.5/32")
	order("+routes/10.0.1.5/32", "+locals/weft01")
	order("-locals/weft01", "-routes/10.0.1.5/32")
	order("-routes/10.0.1.5/32", "-podlinks/weft01")
}

// TestCache: what the live source says wins over what was on disk, and the disk's rows can go unseen.
func TestCache(t *testing.T) {
	r := start(t)
	cached := r.s.Writer(store.CacheSource)
	cached.Upsert(base()...)
	cached.Upsert(node("b", "172.30.0.9", "10.0.2.0/24"))
	r.done(model.NodeKey("b"))
	r.w.Upsert(base()...)
	r.done(model.NodeKey("b"))
	cached.Replace(model.KindNode, nil)
	r.done(model.NodeKey("b"))
	if got := r.k.dump()[plan.Key{Kind: plan.KindRemote, Name: "10.0.2.0/24"}]; !strings.Contains(got, "172.30.0.2 ") {
		t.Errorf("remote: %q", got)
	}
}

// TestCostFollowsChange: one more pod among many touches its own rows only.
func TestCostFollowsChange(t *testing.T) {
	r := start(t)
	r.w.Upsert(base()...)
	for i := range 200 {
		r.w.Upsert(node(fmt.Sprintf("n%03d", i), fmt.Sprintf("172.30.1.%d", i), fmt.Sprintf("10.1.%d.0/24", i)))
		r.w.Upsert(endpoint(fmt.Sprintf("x%d/eth0", i), fmt.Sprintf("weft1%03d", i), fmt.Sprintf("10.0.1.%d", i+20)))
	}
	for i := range 200 {
		r.done(model.EndpointKey(fmt.Sprintf("x%d/eth0", i)))
		r.done(model.NodeKey(fmt.Sprintf("n%03d", i)))
	}
	r.done(model.ConfigKey())
	count := func(change func(), owner model.Key) uint64 {
		before := r.quiet().Applied
		change()
		r.done(owner)
		return r.quiet().Applied - before
	}
	if n := count(func() { r.w.Upsert(endpoint("y/eth0", "weft02", "10.0.1.9")) }, model.EndpointKey("y/eth0")); n != 4 {
		t.Errorf("a pod with one address applied %d rows, want 4", n)
	}
	// A node: its remotes, its route, and the masquerade exceptions.
	if n := count(func() { r.w.Upsert(node("z", "172.30.2.1", "10.2.0.0/24")) }, model.NodeKey("z")); n > 4 {
		t.Errorf("a node applied %d rows, want at most 4", n)
	}
}
