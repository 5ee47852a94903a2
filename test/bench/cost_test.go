package main

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"weft/internal/compile/route"
	"weft/internal/model"
	"weft/internal/run"
	"weft/internal/store"
)

// These tests are the deterministic stand-ins for timed rows: they do not depend on how loud the machine
// is. Their bounds are what was measured, plus a quarter; a change that needs more has to say why.

// cluster fills a store with a node's configuration, so many nodes, and so many pods of this one.
func cluster(t *testing.T, nodes, pods int) (*store.Store, *store.Writer) {
	t.Helper()
	s, err := store.New(run.System())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	cfg := &model.Config{NodeName: "n0"}
	cfg.SetDefaults()
	w := s.Writer("test")
	objs := []model.Object{cfg, &model.Device{
		Name: "eth0", MTU: 1500, Up: true,
		Addrs: []netip.Prefix{netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("fd00:172::/32")},
	}}
	for i := range nodes {
		objs = append(objs, &model.Node{
			Name:     fmt.Sprintf("n%d", i),
			Addrs:    []netip.Addr{netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)}), netip.MustParseAddr(fmt.Sprintf("fd00:172::%x", i))},
			PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24), netip.MustParsePrefix(fmt.Sprintf("fd00:10:%x::/64", i))},
		})
	}
	for i := range pods {
		objs = append(objs, endpoint(i))
	}
	w.Upsert(objs...)
	return s, w
}

func endpoint(i int) *model.Endpoint {
	return &model.Endpoint{
		ID: fmt.Sprintf("c%d/eth0", i), Pod: model.PodRef{Namespace: "default", Name: fmt.Sprintf("p%d", i)},
		Netns: "/run/netns/x", IfName: "eth0", HostIf: fmt.Sprintf("weft%d", i), MAC: model.MAC{2, 0, 0, 0, byte(i >> 8), byte(i)},
		Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), netip.MustParseAddr(fmt.Sprintf("fd00:10:0::%x", i))},
	}
}

// Compiling one pod must cost the same on a node with 1,000 pods as on one with 10.
func TestCompileCostsByTheChange(t *testing.T) {
	allocs := map[int]float64{}
	for _, pods := range []int{10, 1000} {
		s, _ := cluster(t, 3, pods)
		snap := s.Snapshot()
		compile := route.Compile(snap)
		key := model.EndpointKey("c5/eth0")
		if len(compile(key)) == 0 {
			t.Fatal("the pod has no rows: the fixture is wrong")
		}
		allocs[pods] = testing.AllocsPerRun(100, func() { compile(key) })
	}
	t.Logf("allocations to compile one pod: %v", allocs)
	if allocs[1000] > allocs[10] {
		t.Errorf("compiling one of 1,000 pods allocates %v times, one of 10 %v times", allocs[1000], allocs[10])
	}
	const bound = 60
	if allocs[10] > bound {
		t.Errorf("compiling one pod allocates %v times, more than %d", allocs[10], bound)
	}
}

// A pod that comes or goes must dirty what belongs to it and nothing else.
func TestDirtyIsProportional(t *testing.T) {
	s, _ := cluster(t, 100, 1000)
	key := model.EndpointKey("c5/eth0")
	if d := route.Dirty(s.Snapshot(), []model.Key{key}); len(d) != 1 || d[0] != key {
		t.Errorf("one pod dirties %v", d)
	}
	if d := route.Dirty(s.Snapshot(), []model.Key{model.NodeKey("n7")}); len(d) > 2+1000 {
		t.Errorf("one node of a hundred dirties %d keys", len(d))
	}
}

// Storing one object must cost the same in a large table as in a small one.
func TestStoreCostsByTheChange(t *testing.T) {
	allocs := map[int]float64{}
	for _, pods := range []int{10, 1000} {
		_, w := cluster(t, 3, pods)
		i := 0
		allocs[pods] = testing.AllocsPerRun(200, func() { i++; w.Upsert(endpoint(i % 10)) })
	}
	t.Logf("allocations to store one pod: %v", allocs)
	if allocs[1000] > 1.5*allocs[10] {
		t.Errorf("storing into 1,000 pods allocates %v times, into 10 %v times", allocs[1000], allocs[10])
	}
}

// Memory of a remote node and of a local pod, rows included.
func TestBytesPerObject(t *testing.T) {
	heap := func() float64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc)
	}
	base := heap()
	s, _ := cluster(t, 2000, 10)
	perNode := (heap() - base) / 2000
	base = heap()
	other, _ := cluster(t, 3, 2000)
	perPod := (heap() - base) / 2000
	t.Logf("bytes of intent: %.0f per node, %.0f per pod", perNode, perPod)
	if perNode > 2500 || perPod > 2500 {
		t.Errorf("a node takes %.0f bytes and a pod %.0f, more than 2500", perNode, perPod)
	}
	runtime.KeepAlive(s)
	runtime.KeepAlive(other)
}
