package service

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strconv"
	"testing"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/oracle"
)

// world is a snapshot.
type world map[model.Key]model.Object

func (w world) add(objs ...model.Object) {
	for _, o := range objs {
		w[o.Key()] = o
	}
}

// Get implements model.Snapshot.
func (w world) Get(k model.Key) model.Object {
	if o, ok := w[k]; ok {
		return o
	}
	return nil
}

// All implements model.Snapshot.
func (w world) All(kind model.Kind) iter.Seq[model.Object] {
	return func(yield func(model.Object) bool) {
		var names []string
		for k := range w {
			if k.Kind == kind {
				names = append(names, k.Name)
			}
		}
		slices.Sort(names)
		for _, n := range names {
			if !yield(w[model.Key{Kind: kind, Name: n}]) {
				return
			}
		}
	}
}

// slicesOf are the slices of a service, in the opposite order of their names: the order may not matter.
func (w world) slicesOf(svc *model.Service) []*model.Backends {
	var out []*model.Backends
	for b := range model.All[*model.Backends](w, model.KindBackends) {
		if b.Namespace == svc.Namespace && b.Service == svc.Name {
			out = append(out, b)
		}
	}
	slices.Reverse(out)
	return out
}

// ask is what frontends say of a call.
func (w world) ask(node string, c oracle.Call) oracle.Answer {
	here := model.Get[*model.Node](w, model.NodeKey(node)).Addrs
	for svc := range model.All[*model.Service](w, model.KindService) {
		for _, f := range Frontends(w, node, svc, w.slicesOf(svc)) {
			at := f.Addr == c.Dst || f.Kind == NodePort && slices.Contains(here, c.Dst) && netset.Of(f.Addr) == netset.Of(c.Dst)
			if !at || f.Port != c.Port || f.Protocol != c.Protocol {
				continue
			}
			if f.Limited && !netset.Contains(f.Sources, c.Src) {
				return oracle.Answer{Service: svc.Key(), Drop: true}
			}
			ch := f.Inside
			if c.Outside {
				ch = f.Outside
			}
			return oracle.Answer{Service: svc.Key(), Backends: ch.Backends, Drop: ch.Drop}
		}
	}
	return oracle.Answer{}
}

func addr(f netset.Family, n int) netip.Addr {
	if f == netset.V4 {
		return netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)})
	}
	return netset.Nth(netip.MustParsePrefix("fd00::/64"), uint64(n))
}

// random draws a cluster of three nodes in two zones, some services and their slices.
func random(d *rand.Rand) (world, []oracle.Call) {
	w := world{}
	families := [][]netset.Family{{netset.V4}, {netset.V6}, netset.Families()}[d.IntN(3)]
	yes := func(n int) bool { return d.IntN(n) == 0 }
	node := func() string { return fmt.Sprint("n", d.IntN(4)) } // n3 is of no cluster
	for i := range 3 {
		n := &model.Node{Name: fmt.Sprint("n", i), Labels: map[string]string{}}
		if !yes(4) {
			n.Labels[zoneLabel] = fmt.Sprint("z", i%2)
		}
		for _, f := range families {
			n.Addrs = append(n.Addrs, addr(f, 60000+i))
		}
		w.add(n)
	}
	var calls []oracle.Call
	next := 0
	take := func(f netset.Family) netip.Addr { next++; return addr(f, next) }
	for i := range 1 + d.IntN(4) {
		svc := &model.Service{
			Namespace: fmt.Sprint("ns", d.IntN(2)), Name: fmt.Sprint("s", i), Type: "LoadBalancer", InternalLocal: yes(3), ExternalLocal: yes(2),
		}
		switch d.IntN(12) {
		case 0:
			svc.Elsewhere = "x"
		case 1:
			svc.Type = "ExternalName"
		}
		for _, f := range netset.Families() {
			if slices.Contains(families, f) && !yes(8) {
				svc.Addrs = append(svc.Addrs, take(f))
			}
			if yes(2) {
				svc.ExternalIPs = append(svc.ExternalIPs, take(f))
			}
			if yes(2) {
				svc.Balancers = append(svc.Balancers, take(f))
			}
			if yes(6) {
				svc.SourceRanges = append(svc.SourceRanges, netip.PrefixFrom(addr(f, 50000), netset.Of(addr(f, 0)).Bits()-d.IntN(3)).Masked())
			}
		}
		for p := range 1 + d.IntN(2) {
			svc.Ports = append(svc.Ports, model.ServicePort{
				Port: model.Port{Name: fmt.Sprint("p", p), Protocol: []string{"tcp", "udp"}[d.IntN(2)], Port: uint16(80 + p)}, NodePort: uint16(d.IntN(2) * (30000 + 10*i + p)),
			})
		}
		w.add(svc)
		for j := range d.IntN(4) {
			f := netset.Families()[d.IntN(2)]
			b := &model.Backends{Namespace: svc.Namespace, Name: fmt.Sprint(svc.Name, "-", j), Service: svc.Name, Family: f}
			if yes(10) {
				b.Service = "none"
			}
			for _, p := range svc.Ports {
				if !yes(6) {
					o := p.Port
					o.Port = uint16(d.IntN(3) * 8080)
					b.Ports = append(b.Ports, o)
				}
			}
			hinted := d.IntN(3)
			for range d.IntN(4) {
				x := model.Backend{Addr: addr(f, 40000+d.IntN(6)), Node: node(), Ready: !yes(3), Serving: yes(2), Terminating: yes(2)}
				if hinted > 0 && !yes(8) {
					x.Hints = &model.Hints{Zones: []string{fmt.Sprint("z", d.IntN(2))}}
				}
				if hinted > 1 && !yes(8) && x.Hints != nil {
					x.Hints.Nodes = []string{node()}
				}
				b.Backends = append(b.Backends, x)
			}
			w.add(b)
		}
		for _, p := range svc.Ports {
			for _, a := range slices.Concat(svc.Addrs, svc.ExternalIPs, svc.Balancers) {
				calls = append(calls, oracle.Call{Dst: a, Protocol: p.Protocol, Port: p.Port.Port})
			}
			for n := range 3 {
				calls = append(calls, oracle.Call{Dst: addr(families[0], 60000+n), Protocol: p.Protocol, Port: uint16(30000 + 10*i + d.IntN(2))})
			}
		}
		calls = append(calls, oracle.Call{Dst: addr(families[0], next), Protocol: "sctp", Port: 80})
	}
	for i := range calls {
		calls[i].Outside, calls[i].Src = yes(2), addr(netset.Of(calls[i].Dst), 50000+d.IntN(3))
	}
	return w, calls
}

// TestFuzz compares what is compiled with the oracle.
func TestFuzz(t *testing.T) {
	rounds := 10_000
	if n, err := strconv.Atoi(os.Getenv("WEFT_FUZZ_ROUNDS")); err == nil {
		rounds = n
	}
	seen := map[string]int{}
	for seed := range uint64(rounds) {
		w, calls := random(rand.New(rand.NewPCG(seed, 4)))
		for _, c := range calls {
			want, got := oracle.Translate(w, "n0", c), w.ask("n0", c)
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("seed %d: %+v\n got %+v\nwant %+v\n%s", seed, c, got, want, w)
			}
			switch {
			case want.Service == model.Key{}:
				seen["no service"]++
			case len(want.Backends) > 0:
				seen["backends"]++
			case want.Drop:
				seen["drop"]++
			default:
				seen["reject"]++
			}
		}
	}
	for _, s := range []string{"no service", "backends", "drop", "reject"} {
		if seen[s] < rounds/10 {
			t.Errorf("%s came %d times in %d rounds: %v", s, seen[s], rounds, seen)
		}
	}
	t.Log(seen)
}

// TestTerminating is the table of KEP-1669: which backends a policy uses, by what there is.
func TestTerminating(t *testing.T) {
	here, there := "n0", "n1"
	is := func(node string, ready, serving, terminating bool) model.Backend {
		return model.Backend{Node: node, Ready: ready, Serving: serving, Terminating: terminating}
	}
	ready := func(n string) model.Backend { return is(n, true, true, false) }
	going := func(n string) model.Backend { return is(n, false, true, true) }  // terminating, and answers
	gone := func(n string) model.Backend { return is(n, false, false, true) }  // terminating, and does not
	sick := func(n string) model.Backend { return is(n, false, false, false) } // not ready
	odd := func(n string) model.Backend { return is(n, false, true, false) }   // serving and neither ready nor terminating
	w := world{}
	w.add(&model.Node{Name: here, Labels: map[string]string{}})
	for _, c := range []struct {
		name           string
		all            []model.Backend
		cluster, local string // numbers of the backends, or what happens without
	}{
		{"none", nil, "reject", "reject"},
		{"ready here and there", []model.Backend{ready(here), ready(there)}, "0 1", "0"},
		{"ready there only", []model.Backend{ready(there)}, "0", "drop"},
		{"one of each here", []model.Backend{ready(here), going(here), gone(here), sick(here)}, "0", "0"},
		{"going here, ready there", []model.Backend{going(here), ready(there)}, "1", "0"},
		{"going here and there", []model.Backend{going(here), going(there)}, "0 1", "0"},
		{"going there only", []model.Backend{going(there)}, "0", "drop"},
		{"gone", []model.Backend{gone(here), gone(there)}, "reject", "reject"},
		{"sick", []model.Backend{sick(here), odd(here)}, "reject", "reject"},
		{"sick here, going there", []model.Backend{sick(here), going(there)}, "1", "drop"},
		{"of no node", []model.Backend{ready("")}, "0", "drop"},
	} {
		for _, f := range netset.Families() {
			var all []model.Backend
			for i, b := range c.all {
				b.Addr = addr(f, i+1)
				all = append(all, b)
			}
			port := model.Port{Protocol: "tcp", Port: 80}
			cs := Candidates(w, here, port, f, []*model.Backends{{Family: f, Ports: []model.Port{port}, Backends: all}})
			for what, x := range map[string]struct {
				ch   Choice
				want string
			}{"cluster": {choose(cs, Candidate.cluster), c.cluster}, "local": {choose(cs, Candidate.local), c.local}} {
				if got := words(x.ch, f); got != x.want {
					t.Errorf("%s, %s, %s: %s, want %s", c.name, what, f, got, x.want)
				}
			}
		}
	}
}

func words(c Choice, f netset.Family) string {
	out := ""
	for _, b := range c.Backends {
		for i := range 10 {
			if b.Addr() == addr(f, i+1) {
				out += " " + strconv.Itoa(i)
			}
		}
	}
	switch {
	case out != "":
		return out[1:]
	case c.Drop:
		return "drop"
	}
	return "reject"
}

// TestReasons: of each backend it is said why it is not used.
func TestReasons(t *testing.T) {
	w := world{}
	w.add(&model.Node{Name: "n0", Labels: map[string]string{zoneLabel: "z0"}})
	port := model.Port{Name: "http", Protocol: "tcp", Port: 8080}
	zone := func(z string) *model.Hints { return &model.Hints{Zones: []string{z}} }
	cs := Candidates(w, "n0", port, netset.V4, []*model.Backends{{Family: netset.V4, Ports: []model.Port{port}, Backends: []model.Backend{
		{Addr: addr(netset.V4, 1), Node: "n0", Ready: true, Hints: zone("z0")},
		{Addr: addr(netset.V4, 2), Node: "n1", Ready: true, Hints: zone("z1")},
		{Addr: addr(netset.V4, 3), Node: "n0", Serving: true, Terminating: true},
		{Addr: addr(netset.V4, 4), Node: "n0"},
	}}})
	var got [][2]string
	for _, c := range cs {
		got = append(got, [2]string{c.Cluster, c.Local})
	}
	want := [][2]string{{"", ""}, {otherZone, elsewhere}, {terminating, terminating}, {notReady, notReady}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}
