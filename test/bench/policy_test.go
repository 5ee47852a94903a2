package main

import (
	"fmt"
	"iter"
	"net/netip"
	"runtime"
	"testing"

	"weft/internal/compile/policy"
	"weft/internal/compile/route"
	"weft/internal/model"
	"weft/internal/plan"
	"weft/internal/selector"
)

// The deterministic stand-ins for rows Y1 to Y4. Their bounds are what was measured, plus a quarter.

// policed are the objects of a cluster with a policy for each of two hundred applications; so many pods are on node n0.
func policed(local, remote int) map[model.Key]model.Object {
	out := map[model.Key]model.Object{}
	put := func(o model.Object) { out[o.Key()] = o }
	for i := range local + remote {
		p := policedPod(i)
		if i < local {
			p.Node = "n0"
			put(&model.Endpoint{
				ID: fmt.Sprintf("c%d/eth0", i), Pod: p.PodRef, Netns: "x", IfName: "eth0", HostIf: fmt.Sprint("w", i), MAC: model.GatewayMAC, Addrs: p.Addrs,
			})
		}
		put(p)
	}
	for i := range 200 {
		put(policedPolicy(i, "a2"))
	}
	for i := range 20 {
		put(&model.Namespace{Name: fmt.Sprint("ns", i)})
	}
	return out
}

func policedPod(i int) *model.Pod {
	return &model.Pod{
		PodRef: model.PodRef{Namespace: fmt.Sprint("ns", i%20), Name: fmt.Sprint("p", i)}, Node: "n1", Account: "default",
		Addrs:  []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})},
		Labels: map[string]string{"app": fmt.Sprint("a", i/20%10)},
	}
}

func policedPolicy(i int, peer string) *model.Policy {
	ns := fmt.Sprint("ns", i%20)
	in := func(app string) *selector.Expr {
		return selector.AllOf(selector.Equal(selector.Kind, selector.KindPod), selector.Equal(selector.NamespaceName, ns), selector.Equal("app", app))
	}
	return &model.Policy{
		Ref: model.Ref{Group: "networking.k8s.io", Kind: "NetworkPolicy", Namespace: ns, Name: fmt.Sprint("np", i)}, Set: true, Order: 1000,
		Tier: model.TierRef{Name: "normal", Order: model.TierNormal}, Subject: in(fmt.Sprint("a", i/20%10)),
		Ingress: &model.Section{Isolates: true, Rules: []model.Rule{{
			Field: "spec.ingress[0]", Verdict: model.VerdictAllow, Peers: []model.Peer{{Select: in(peer)}},
			L4: []model.L4{{Proto: model.ProtoTCP, Ports: []model.PortRange{{First: 80, Last: 80}}}},
		}}},
	}
}

// A policy's change, and a pod of a known identity, must cost the same in a large cluster as in a small one: allocations of the
// compiler, and owners whose rows are compared.
func TestPolicyCostsByTheChange(t *testing.T) {
	type cost struct {
		policy, pod             float64
		policyOwners, podOwners int
	}
	got := map[int]cost{}
	for _, remote := range []int{400, 8000} {
		objs := policed(100, remote)
		snap, keys := fixture{objs}, []model.Key{}
		for k := range objs {
			keys = append(keys, k)
		}
		e := policy.New("n0")
		e.Update(snap, keys)
		i := 0
		change := func(o model.Object) int {
			objs[o.Key()] = o
			return len(append(route.Dirty(snap, []model.Key{o.Key()}), e.Update(snap, []model.Key{o.Key()})...))
		}
		var c cost
		c.policy = testing.AllocsPerRun(50, func() {
			i++
			c.policyOwners = change(policedPolicy(0, []string{"a3", "a2"}[i%2]))
		})
		fresh := policedPod(60)
		c.pod = testing.AllocsPerRun(50, func() {
			i++
			p := *fresh
			p.Name, p.Addrs = "fresh", []netip.Addr{netip.AddrFrom4([4]byte{10, 200, 0, byte(i)})}
			c.podOwners = change(&p)
		})
		got[remote] = c
		t.Logf("%d remote pods: a policy %.0f allocations, %d owners; a pod %.0f allocations, %d owners", remote, c.policy, c.policyOwners, c.pod, c.podOwners)
	}
	small, large := got[400], got[8000]
	if large.policyOwners > small.policyOwners || large.podOwners > 1 || large.pod > small.pod+1 || large.policy > 1.25*small.policy {
		t.Errorf("a change costs more in a large cluster: %+v, %+v", small, large)
	}
	if large.policyOwners > 10 {
		t.Errorf("a policy that one pod is subject to makes %d owners dirty", large.policyOwners)
	}
}

type fixture struct{ objs map[model.Key]model.Object }

func (f fixture) Get(k model.Key) model.Object { return f.objs[k] }

func (f fixture) All(kind model.Kind) iter.Seq[model.Object] {
	return func(yield func(model.Object) bool) {
		for k, o := range f.objs {
			if k.Kind == kind && !yield(o) {
				return
			}
		}
	}
}

// A remote pod's bytes in the compiler, its object not counted: row Y1's heap.
func TestPolicyBytesPerPod(t *testing.T) {
	heap := func() float64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc)
	}
	objs := policed(0, 20_000)
	keys := make([]model.Key, 0, len(objs))
	for k := range objs {
		keys = append(keys, k)
	}
	base := heap()
	e := policy.New("n0")
	e.Update(fixture{objs}, keys)
	per := (heap() - base) / 20_000
	t.Logf("%.0f bytes for each pod, two hundred policies included", per)
	if per > 650 {
		t.Errorf("a pod takes %.0f bytes in the compiler", per)
	}
	runtime.KeepAlive(e)
	runtime.KeepAlive(objs)
}

// What one change writes is rows of one set, and a thousand pods with the same policies have one.
func TestReplicasShareSets(t *testing.T) {
	sets := map[int]int{}
	for _, replicas := range []int{1, 1000} {
		objs := policed(0, 400)
		for i := range replicas {
			p := policedPod(0)
			p.Name, p.Node, p.Addrs = fmt.Sprint("r", i), "n0", []netip.Addr{netip.AddrFrom4([4]byte{10, 200, byte(i >> 8), byte(i)})}
			ep := &model.Endpoint{ID: p.Name, Pod: p.PodRef, Netns: "x", IfName: "eth0", HostIf: p.Name, MAC: model.GatewayMAC, Addrs: p.Addrs}
			objs[p.Key()], objs[ep.Key()] = p, ep
		}
		var keys []model.Key
		for k := range objs {
			keys = append(keys, k)
		}
		for _, k := range policy.New("n0").Update(fixture{objs}, keys) {
			if k.Kind == model.Kind(plan.KindPolicySet) || k.Kind == model.Kind(plan.KindPeerSet) {
				sets[replicas]++
			}
		}
	}
	if sets[1] != sets[1000] || sets[1] == 0 {
		t.Errorf("sets for 1 and for 1000 replicas: %v", sets)
	}
}
