package policy

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
	"weft/internal/selector"
)

func hep(name, node, dev string, addrs ...string) *model.HostEndpoint {
	h := &model.HostEndpoint{Ref: model.Ref{Group: "projectcalico.org", Kind: "HostEndpoint", Name: name}, Node: node, Interface: dev}
	for _, a := range addrs {
		h.Addrs = append(h.Addrs, netip.MustParseAddr(a))
	}
	h.Labels = selector.Map{selector.Kind: selector.KindHostEndpoint, selector.Name: name, selector.Node: node}
	return h
}

// TestHostEndpoints: which host endpoint counts on which device, and who is told that his counts nowhere.
func TestHostEndpoints(t *testing.T) {
	for _, c := range []struct {
		what    string
		hosts   []*model.HostEndpoint
		on      map[string]string // guard: host endpoint, "-" for none
		nowhere []string
	}{
		{"none", nil, map[string]string{"host": "-"}, nil},
		{"all interfaces", []*model.HostEndpoint{hep("a", "n0", "*")}, map[string]string{"host": "a", "host/eth1": "a"}, nil},
		{"the underlay's by name", []*model.HostEndpoint{hep("a", "n0", "eth0")}, map[string]string{"host": "a", "host/" + plan.OverlayName: "-"}, nil},
		{
			"by address",
			[]*model.HostEndpoint{hep("a", "n0", "", "192.0.2.1"), hep("b", "n0", "", "198.51.100.1")},
			map[string]string{"host": "a", "host/" + plan.OverlayName: "-", "host/eth1": "b"},
			nil,
		},
		{"another's by name", []*model.HostEndpoint{hep("a", "n0", "eth1")}, map[string]string{"host": "-", "host/eth1": "a"}, nil},
		{
			"a name goes before all",
			[]*model.HostEndpoint{hep("a", "n0", "*"), hep("b", "n0", "eth0")},
			map[string]string{"host": "b", "host/" + plan.OverlayName: "a", "host/eth1": "a"},
			nil,
		},
		{
			"the first by name",
			[]*model.HostEndpoint{hep("b", "n0", "eth0"), hep("a", "n0", "eth0"), hep("d", "n0", "*"), hep("c", "n0", "*")},
			map[string]string{"host": "a", "host/" + plan.OverlayName: "c", "host/eth1": "c"},
			[]string{"b", "d"},
		},
		{
			"a device that is not there, one that is down, no address",
			[]*model.HostEndpoint{hep("a", "n0", "none0"), hep("b", "n0", "eth2"), hep("c", "n0", "", "203.0.113.1")},
			map[string]string{"host": "-"},
			[]string{"a", "b", "c"},
		},
		{"another node's", []*model.HostEndpoint{hep("a", "n1", "*")}, map[string]string{"host": "-"}, nil},
	} {
		t.Run(c.what, func(t *testing.T) {
			s := objects{}
			for _, o := range []model.Object{
				&model.Node{Name: "n0", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}},
				&model.Device{Name: "lo", Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/8"), netip.MustParsePrefix("203.0.113.9/32")}},
				&model.Device{Name: "eth0", Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}},
				&model.Device{Name: "eth1", Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix("198.51.100.1/24")}},
				&model.Device{Name: "eth2", Addrs: []netip.Prefix{netip.MustParsePrefix("198.51.100.2/24")}},
				&model.Device{Name: "veth0", Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix("fe80::1/64")}},
			} {
				s[o.Key()] = o
			}
			for _, h := range c.hosts {
				s[h.Key()] = h
			}
			e, k := New("n0"), &kernel{rows: map[model.Key][]plan.Row{}}
			k.update(e, s, slices.SortedFunc(maps.Keys(s), compareKeys))
			on, hooks := map[string]string{}, map[string]bool{}
			sets := map[plan.ID]*plan.PolicySet{}
			var nowhere []string
			for _, rows := range k.rows {
				for _, r := range rows {
					switch r := r.(type) {
					case *plan.PolicySet:
						sets[r.ID] = r
					case *plan.Hook:
						hooks["host/"+r.Dev] = true
					case *plan.Problem:
						nowhere = append(nowhere, r.By.Name[strings.LastIndexByte(r.By.Name, '/')+1:])
					}
				}
			}
			for _, rows := range k.rows {
				for _, r := range rows {
					if g, ok := r.(*plan.Guard); ok {
						on[g.Key().Name] = ends(sets[g.Ingress])
						if other := ends(sets[g.Egress]); other != on[g.Key().Name] {
							t.Errorf("%s: egress is %s's", g, other)
						}
						if want := g.Node && g.Dev != plan.OverlayName; hooks[g.Key().Name] != want {
							t.Errorf("%s: a hook: %v", g, !want)
						}
					}
				}
			}
			slices.Sort(nowhere)
			if !maps.Equal(on, c.on) || !slices.Equal(nowhere, c.nowhere) {
				t.Errorf("guards of %v, nowhere %v; want %v, %v", on, nowhere, c.on, c.nowhere)
			}
			for key := range s {
				if key.Kind == model.KindHostEndpoint {
					delete(s, key)
					k.update(e, s, []model.Key{key})
				}
			}
			if text := k.text(); strings.Contains(text, "HostEndpoint") || strings.Contains(text, "host/") || strings.Contains(text, "policysets") {
				t.Errorf("left:\n%s", text)
			}
		})
	}
}

// ends says whose denial is at the end of a set.
func ends(s *plan.PolicySet) string {
	if s == nil {
		return "-"
	}
	_, name, _ := strings.Cut(s.Rules[len(s.Rules)-1].Origin, "HostEndpoint.projectcalico.org ")
	name, _, _ = strings.Cut(name, ",")
	return name
}

// TestFailsafes: no policy closes them, and the profile of Calico's own opens what nothing else decides.
func TestFailsafes(t *testing.T) {
	h := hep("a", "n0", "*")
	s := objects{}
	deny := &model.Policy{
		Ref: model.Ref{Kind: "GlobalNetworkPolicy", Name: "deny"}, Tier: model.TierRef{Order: model.TierAdmin}, Subject: selector.Exists(selector.Kind),
		Ingress: &model.Section{Rules: []model.Rule{{Verdict: model.VerdictDeny, L4: []model.L4{{Proto: model.ProtoTCP}}}}},
	}
	node := &model.Node{Name: "n0", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
	for _, o := range []model.Object{h, deny, node} {
		s[o.Key()] = o
	}
	ask := func(proto int, port uint16) model.Verdict {
		t.Helper()
		a, err := Can(s, Question{From: End{Addr: netip.MustParseAddr("198.51.100.1")}, To: End{Node: "n0"}, Family: netset.V4, Proto: proto, Port: port})
		if err != nil {
			t.Fatal(err)
		}
		return a.Verdict()
	}
	for _, c := range []struct {
		proto int
		port  uint16
		want  model.Verdict
	}{
		{model.ProtoTCP, 22, model.VerdictAllow},
		{model.ProtoTCP, 6443, model.VerdictAllow},
		{model.ProtoUDP, 68, model.VerdictAllow},
		{model.ProtoTCP, 80, model.VerdictDeny},
		{model.ProtoUDP, 80, model.VerdictDeny},
		{model.ProtoUDP, 53, model.VerdictDeny}, // it is one of the other direction
	} {
		if got := ask(c.proto, c.port); got != c.want {
			t.Errorf("protocol %d port %d: %s, want %s", c.proto, c.port, got, c.want)
		}
	}
	h.Labels[selector.Profile+"projectcalico-default-allow"] = "0"
	if got := ask(model.ProtoUDP, 80); got != model.VerdictAllow {
		t.Errorf("with the profile that allows: %s", got)
	}
	if got := ask(model.ProtoTCP, 80); got != model.VerdictDeny {
		t.Errorf("what a policy denies, with the profile: %s", got)
	}
}
