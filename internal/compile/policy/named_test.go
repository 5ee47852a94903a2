package policy

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"weft/internal/model"
	"weft/internal/oracle"
	"weft/internal/plan"
	"weft/internal/selector"
)

// TestNamedPortsOfPeers: which peers an egress rule with named ports is about, if they have different ones, or are selected by the labels of
// a set that their address is in.
func TestNamedPortsOfPeers(t *testing.T) {
	state := objects{}
	pod := func(name, node, addr string, http uint16) netip.Addr {
		p := &model.Pod{PodRef: model.PodRef{Namespace: "a", Name: name}, Node: node, Labels: map[string]string{"app": name}, Addrs: []netip.Addr{netip.MustParseAddr(addr)}}
		if http > 0 {
			p.Ports = []model.Port{{Name: "http", Protocol: "tcp", Port: http}}
		}
		state[p.Key()] = p
		return p.Addrs[0]
	}
	from := pod("from", "n0", "10.0.0.1", 0)
	to := map[string]netip.Addr{
		"web": pod("web", "n1", "10.0.0.2", 80), "api": pod("api", "n1", "10.0.0.3", 8080), "none": pod("none", "n1", "10.0.0.4", 0),
		"world": netip.MustParseAddr("198.51.100.1"),
	}
	set := &model.AddressSet{
		Ref: model.Ref{Kind: "Set", Name: "s"}, Nets: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/31"), netip.MustParsePrefix("198.51.100.0/24")},
		Labels: selector.Map{selector.Kind: selector.KindSet, "color": "red"},
	}
	state[set.Key()] = set
	red := []model.Peer{{Select: selector.Equal("color", "red")}}
	for _, c := range []struct {
		name string
		rule model.Rule
		want map[string][]uint16 // of the ports 80, 8080 and 1
	}{
		{"named", model.Rule{L4: []model.L4{{Proto: model.ProtoTCP, Named: []string{"http"}}}}, map[string][]uint16{"web": {80}, "api": {8080}}},
		{"named, by a set", model.Rule{Peers: red, L4: []model.L4{{Proto: model.ProtoTCP, Named: []string{"http"}}}}, map[string][]uint16{"web": {80}, "api": {8080}}},
		{
			"excluded",
			model.Rule{L4: []model.L4{{Proto: model.ProtoTCP, NotNamed: []string{"http"}}}},
			map[string][]uint16{"web": {8080, 1}, "api": {80, 1}, "none": {80, 8080, 1}, "world": {80, 8080, 1}},
		},
		{
			"excluded, by a set",
			model.Rule{Peers: red, L4: []model.L4{{Proto: model.ProtoTCP, Ports: []model.PortRange{{First: 80, Last: 8080}}, NotNamed: []string{"http"}}}},
			map[string][]uint16{"web": {8080}, "api": {80}, "world": {80, 8080}},
		},
	} {
		c.rule.Verdict, c.rule.Field = model.VerdictAllow, "spec.egress[0]"
		p := &model.Policy{
			Ref: model.Ref{Kind: "Policy", Name: "p"}, Tier: model.TierRef{Order: model.TierNormal}, Subject: selector.Equal("app", "from"),
			Egress: &model.Section{Isolates: true, Rules: []model.Rule{c.rule}},
		}
		state[p.Key()] = p
		endpoints(state)
		k := &kernel{rows: map[model.Key][]plan.Row{}}
		k.update(New("n0"), state, slices.SortedFunc(maps.Keys(state), compareKeys))
		for name, addr := range to {
			var got []uint16
			for _, port := range []uint16{80, 8080, 1} {
				ask := oracle.Packet{Src: from, Dst: addr, Proto: model.ProtoTCP, SrcPort: 1000, DstPort: port}
				verdict, why := k.decide(ask, false)
				if verdict == model.VerdictAllow {
					got = append(got, port)
				}
				if d, _ := oracle.Decide(state, "n0", ask); d.Verdict != verdict {
					t.Errorf("%s, %s:%d: rows say %s (%s), oracle %s", c.name, name, port, verdict, why, d.Verdict)
				}
			}
			if !slices.Equal(got, c.want[name]) {
				t.Errorf("%s: %s is reached at %d, want %d", c.name, name, got, c.want[name])
			}
		}
	}
}
