package policy

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"weft/internal/model"
	"weft/internal/plan"
	"weft/internal/selector"
)

// cluster makes a cluster of namespaces with policies as people write them: each isolates an application of its namespace and
// allows others by label, one in ten by prefix.
func cluster(policies, local, remote int) objects {
	s := objects{}
	put := func(o model.Object) { s[o.Key()] = o }
	namespaces := max(1, policies/20)
	for i := range namespaces {
		put(&model.Namespace{Name: fmt.Sprint("ns", i), Labels: map[string]string{"team": fmt.Sprint("t", i%50)}})
	}
	put(&model.Node{Name: "n0", Addrs: []netip.Addr{netip.AddrFrom4([4]byte{172, 16, 0, 1})}})
	for i := range local + remote {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		pod := &model.Pod{
			PodRef: model.PodRef{Namespace: fmt.Sprint("ns", i%namespaces), Name: fmt.Sprint("p", i)}, Node: "n1", Addrs: []netip.Addr{a},
			Labels:  map[string]string{"app": fmt.Sprint("a", i/namespaces%20), "pod-template-hash": fmt.Sprint(i)},
			Account: "default",
		}
		if i < local {
			pod.Node = "n0"
			put(&model.Endpoint{ID: fmt.Sprint(i), Pod: pod.PodRef, Netns: "x", IfName: "eth0", HostIf: fmt.Sprint("w", i), MAC: model.GatewayMAC, Addrs: pod.Addrs})
		}
		put(pod)
	}
	for i := range policies {
		put(scalePolicy(i, namespaces, "a2"))
	}
	return s
}

func scalePolicy(i, namespaces int, peer string) *model.Policy {
	ns := fmt.Sprint("ns", i%namespaces)
	peers := []model.Peer{{Select: selector.AllOf(selector.Equal(selector.Kind, selector.KindPod), selector.Equal(selector.NamespaceName, ns), selector.Equal("app", peer))}}
	if i%10 == 0 {
		peers = append(peers, model.Peer{Nets: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)}), 32)}})
	}
	return &model.Policy{
		Ref: model.Ref{Group: "networking.k8s.io", Kind: "NetworkPolicy", Namespace: ns, Name: fmt.Sprint("np", i)}, Set: true, Order: 1000,
		Tier:    model.TierRef{Name: "normal", Order: model.TierNormal},
		Subject: selector.AllOf(selector.Equal(selector.Kind, selector.KindPod), selector.Equal(selector.NamespaceName, ns), selector.Equal("app", fmt.Sprint("a", i/namespaces%20))),
		Ingress: &model.Section{Isolates: true, Rules: []model.Rule{{
			Field: "spec.ingress[0]", Verdict: model.VerdictAllow, Peers: peers,
			L4: []model.L4{{Proto: model.ProtoTCP, Ports: []model.PortRange{{First: 80, Last: 80}, {First: 443, Last: 443}}}},
		}}},
	}
}

func keysOf(s objects) []model.Key {
	var out []model.Key
	for k := range s {
		out = append(out, k)
	}
	return out
}

// BenchmarkCompile is row Y1 and, with one change at that size, the compiler's part of Y2 and Y3.
func BenchmarkCompile(b *testing.B) {
	s := cluster(10_000, 1_000, 100_000)
	keys := keysOf(s)
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		e := New("n0")
		start := time.Now()
		dirty := e.Update(s, keys)
		b.ReportMetric(time.Since(start).Seconds(), "s/all")
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1e6, "MB")
		b.ReportMetric(float64(len(dirty)), "owners")
		b.ReportMetric(float64(len(e.classes)), "identities")
		b.ReportMetric(float64(len(e.sets)), "sets")

		p := scalePolicy(7, 500, "a3")
		s[p.Key()] = p
		start = time.Now()
		dirty = e.Update(s, []model.Key{p.Key()})
		b.ReportMetric(time.Since(start).Seconds()*1e3, "ms/policy")
		b.ReportMetric(float64(len(dirty)), "owners/policy")
		pod := *model.Get[*model.Pod](s, model.PodKey("ns7", "p50007"))
		pod.Name, pod.Addrs = "fresh", []netip.Addr{netip.AddrFrom4([4]byte{10, 200, 0, 1})}
		s[pod.Key()] = &pod
		start = time.Now()
		dirty = e.Update(s, []model.Key{pod.Key()})
		b.ReportMetric(time.Since(start).Seconds()*1e3, "ms/pod")
		b.ReportMetric(float64(len(dirty)), "owners/pod")
	}
}

// TestCostFollowsChange holds how much one change touches in a cluster of some size.
func TestCostFollowsChange(t *testing.T) {
	s := cluster(400, 100, 1_000)
	e := New("n0")
	e.Update(s, keysOf(s))
	pod := *model.Get[*model.Pod](s, model.PodKey("ns7", "p507"))
	pod.Name, pod.Addrs = "fresh", []netip.Addr{netip.AddrFrom4([4]byte{10, 200, 0, 1})}
	s[pod.Key()] = &pod
	if dirty := e.Update(s, []model.Key{pod.Key()}); len(dirty) != 1 {
		t.Errorf("a pod of a known identity made %v dirty, want itself alone", dirty)
	}
	p := scalePolicy(7, 20, "a3")
	s[p.Key()] = p
	dirty := e.Update(s, []model.Key{p.Key()})
	kinds := map[model.Kind]int{}
	for _, k := range dirty {
		kinds[k.Kind]++
	}
	if len(dirty) > 12 || kinds[kindOf(plan.KindAddress)]+kinds[model.KindPod] > 0 {
		t.Errorf("one policy made dirty: %v", dirty)
	}
	// A thousand replicas share one set.
	sets := len(e.sets)
	for i := range 1_000 {
		r := *model.Get[*model.Pod](s, model.PodKey("ns7", "p7"))
		r.Name, r.Node, r.Addrs = fmt.Sprint("r", i), "n0", []netip.Addr{netip.AddrFrom4([4]byte{10, 201, byte(i >> 8), byte(i)})}
		ep := &model.Endpoint{ID: r.Name, Pod: r.PodRef, Netns: "x", IfName: "eth0", HostIf: r.Name, MAC: model.GatewayMAC, Addrs: r.Addrs}
		s[r.Key()], s[ep.Key()] = &r, ep
		e.Update(s, []model.Key{r.Key(), ep.Key()})
	}
	if len(e.sets) != sets {
		t.Errorf("%d sets before a thousand replicas, %d after", sets, len(e.sets))
	}
}

// BenchmarkChange is the compiler's part of row Y2: one policy of ten thousand changes, to and fro.
func BenchmarkChange(b *testing.B) {
	s := cluster(10_000, 1_000, 20_000)
	e := New("n0")
	e.Update(s, keysOf(s))
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		p := scalePolicy(7, 500, []string{"a2", "a3"}[i%2])
		s[p.Key()] = p
		e.Update(s, []model.Key{p.Key()})
	}
}
