package route_test

import (
	"cmp"
	"flag"
	"iter"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"weft/internal/compile/route"
	"weft/internal/model"
	"weft/internal/plan"
)

var update = flag.Bool("update", false, "write the goldens")

// intent is a Snapshot over a map.
type intent map[model.Key]model.Object

func (m intent) Get(k model.Key) model.Object { return m[k] }

func (m intent) All(kind model.Kind) iter.Seq[model.Object] {
	return func(yield func(model.Object) bool) {
		var keys []model.Key
		for k := range m {
			if k.Kind == kind {
				keys = append(keys, k)
			}
		}
		slices.SortFunc(keys, func(a, b model.Key) int { return cmp.Compare(a.Name, b.Name) })
		for _, k := range keys {
			if !yield(m[k]) {
				return
			}
		}
	}
}

func addrs(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func prefixes(s ...string) (out []netip.Prefix) {
	for _, a := range s {
		out = append(out, netip.MustParsePrefix(a))
	}
	return out
}

// fixture is a node with two pods and three peers: one in the own subnet, one beyond a router with a
// narrow path, one that has only the other family.
func fixture(change func(*model.Config)) []model.Object {
	cfg := &model.Config{NodeName: "a"}
	cfg.SetDefaults()
	if change != nil {
		change(cfg)
	}
	rate := model.Rate{Bits: 5_000_000}
	return []model.Object{
		cfg,
		&model.Device{Name: "eth0", Index: 2, MTU: 1500, Up: true, Addrs: prefixes("172.30.0.11/24", "fd00:172::11/64")},
		&model.Device{Name: "eth1", Index: 3, MTU: 9000, Up: true, Addrs: prefixes("192.168.7.1/24")},
		&model.Node{Name: "a", Addrs: addrs("172.30.0.11", "fd00:172::11"), PodCIDRs: prefixes("10.0.1.0/24", "fd00:1::/64")},
		&model.Node{Name: "b", Addrs: addrs("172.30.0.12", "fd00:172::12"), PodCIDRs: prefixes("10.0.2.0/24", "fd00:2::/64")},
		&model.Node{Name: "c", Addrs: addrs("172.31.0.13"), PodCIDRs: prefixes("10.0.3.0/24", "fd00:3::/64"), VTEPMAC: model.MAC{2, 1, 1, 1, 1, 1}},
		&model.Node{Name: "d", Addrs: addrs("fd00:172::14"), PodCIDRs: prefixes("10.0.4.0/24", "10.0.1.128/25")},
		&model.PathMTU{Node: "c", MTU: 1400},
		&model.Endpoint{
			ID: "c1/eth0", Pod: model.PodRef{Namespace: "default", Name: "web"}, Netns: "/run/netns/c1", IfName: "eth0", HostIf: "weft01",
			MAC: model.MAC{2, 0, 0, 0, 0, 5}, Addrs: addrs("10.0.1.5", "fd00:1::5"),
			HostPorts: []model.HostPort{{Protocol: "tcp", Port: 8080, PodPort: 80}, {HostIP: netip.MustParseAddr("172.30.0.11"), Protocol: "udp", Port: 53, PodPort: 53}},
		},
		&model.Endpoint{
			ID: "c2/eth0", Pod: model.PodRef{Namespace: "default", Name: "db"}, Netns: "/run/netns/c2", IfName: "eth0", HostIf: "weft02",
			MAC: model.MAC{2, 0, 0, 0, 0, 6}, Addrs: addrs("10.0.1.6"),
		},
		&model.Pod{PodRef: model.PodRef{Namespace: "default", Name: "db"}, Node: "a", Ingress: &rate},
	}
}

func snap(objs []model.Object) intent {
	m := intent{}
	for _, o := range objs {
		m[o.Key()] = o
	}
	return m
}

// text compiles every key and prints all rows, one a line.
func text(t *testing.T, s intent) string {
	t.Helper()
	var lines []string
	seen := map[string]string{}
	for k := range s {
		for _, r := range route.Compile(s)(k) {
			if r.Owner() != k {
				t.Errorf("row %s of key %s says that its owner is %s", r.Key(), k, r.Owner())
			}
			if other, dup := seen[r.Key().String()]; dup {
				t.Errorf("row %s is made by %s and %s", r.Key(), k, other)
			}
			seen[r.Key().String()] = k.String()
			lines = append(lines, string(r.Key().Kind)+"\t"+r.Owner().String()+"\t"+r.String())
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}

func TestGolden(t *testing.T) {
	cases := map[string]func(*model.Config){
		"vxlan":       nil,
		"direct":      func(c *model.Config) { c.Backend.Type, c.Link = "direct", model.LinkNetkit },
		"crosssubnet": func(c *model.Config) { c.Backend.CrossSubnet = true },
		"pools": func(c *model.Config) {
			c.IPAM.Pools = []model.Pool{{Name: "p", Node: "a", CIDRs: prefixes("10.9.0.0/24")}, {Name: "q", Node: "b", CIDRs: prefixes("10.9.1.0/24")}}
			c.ClusterCIDRs = prefixes("10.9.0.0/16")
			c.MTU = 1300
			c.Masquerade.MasqLinkLocal = true
		},
		"nounderlay": func(c *model.Config) { c.Backend.Device = "eth9" },
		"nonode":     func(c *model.Config) { c.NodeName = "zz" },
	}
	for name, change := range cases {
		t.Run(name, func(t *testing.T) {
			objs := fixture(change)
			got := text(t, snap(objs))
			for range 100 {
				rand.Shuffle(len(objs), func(i, j int) { objs[i], objs[j] = objs[j], objs[i] })
				if again := text(t, snap(objs)); again != got {
					t.Fatalf("the same intent in another order gives other rows:\n%s\n---\n%s", got, again)
				}
			}
			file := "testdata/" + name + ".table"
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("%s differs; rerun with -update and read the difference:\n%s", file, got)
			}
		})
	}
}

// TestDirty compares incremental compilation with a full one over random histories: whatever
// Dirty does not name must not have changed.
func TestDirty(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		all := fixture(func(c *model.Config) { c.Backend.CrossSubnet = seed%2 == 0 })
		all = append(all, &model.Feature{Name: model.ForeignNAT, State: "active"}, &model.PathMTU{Node: "b", MTU: 1300},
			&model.Device{Name: "eth0", Index: 2, MTU: 1400, Up: true, Addrs: prefixes("172.30.0.11/24")})
		now, rows := intent{}, map[model.Key][]string{}
		for step := range 40 {
			o := all[rng.IntN(len(all))]
			if rng.IntN(3) == 0 {
				delete(now, o.Key())
			} else {
				now[o.Key()] = o
			}
			for _, k := range route.Dirty(now, []model.Key{o.Key()}) {
				rows[k] = lines(route.Compile(now)(k))
			}
			for k := range now {
				if want := lines(route.Compile(now)(k)); !slices.Equal(rows[k], want) {
					t.Fatalf("seed %d step %d: after %s the rows of %s are stale:\n%v\nwant\n%v", seed, step, o.Key(), k, rows[k], want)
				}
			}
			for k, have := range rows {
				if now[k] == nil && len(have) > 0 && k.Kind != model.KindConfig {
					t.Fatalf("seed %d step %d: %s is gone and still has rows %v", seed, step, k, have)
				}
			}
		}
	}
}

func lines(rows []plan.Row) []string {
	var out []string
	for _, r := range rows {
		out = append(out, r.Key().String()+" "+r.String())
	}
	return out
}

func BenchmarkEndpoint(b *testing.B) {
	s := snap(fixture(nil))
	k := model.EndpointKey("c1/eth0")
	b.ReportAllocs()
	for b.Loop() {
		route.Compile(s)(k)
	}
}
