package policy

import (
	"net/netip"
	"slices"
	"testing"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/selector"
)

// TestReach: a pod reaches the DNS if one server is left to it, in one family, and both sides agree; as Can says of each pair.
func TestReach(t *testing.T) {
	pod := func(name, node string, addrs ...string) *model.Pod {
		p := &model.Pod{PodRef: model.PodRef{Namespace: "shop", Name: name}, Node: node, Labels: map[string]string{"app": name}, Account: "default"}
		for _, a := range addrs {
			p.Addrs = append(p.Addrs, netip.MustParseAddr(a))
		}
		return p
	}
	free, bound, six := pod("free", "n1", "10.0.1.1", "fd00:1::1"), pod("bound", "n1", "10.0.1.2"), pod("six", "n1", "fd00:1::3")
	near, far := pod("near", "n1", "10.0.1.53"), pod("far", "n2", "10.0.2.53", "fd00:2::53")
	host := pod("host", "n2", "172.16.0.2")
	host.HostNetwork = true
	rules := func(name, subject string, s *model.Policy) *model.Policy {
		s.Ref = model.Ref{Group: "networking.k8s.io", Kind: "NetworkPolicy", Namespace: "shop", Name: name}
		s.Tier, s.Set = model.TierRef{Name: "normal", Order: model.TierNormal}, true
		s.Subject = selector.Equal("app", subject)
		return s
	}
	to := func(name string) *model.Section {
		return &model.Section{Isolates: true, Rules: []model.Rule{{Verdict: model.VerdictAllow, Peers: []model.Peer{{Select: selector.Equal("app", name)}}}}}
	}
	s := objects{}
	for _, o := range []model.Object{
		&model.Node{Name: "n1", Addrs: []netip.Addr{netip.MustParseAddr("172.16.0.1")}}, &model.Node{Name: "n2", Addrs: host.Addrs},
		free, bound, six, near, far, host,
		rules("bound", "bound", &model.Policy{Egress: to("near")}),
		rules("near", "near", &model.Policy{Ingress: to("bound")}),
	} {
		s[o.Key()] = o
	}
	pods := []*model.Pod{free, bound, six}
	for _, c := range []struct {
		to   []End
		want []bool
	}{
		{[]End{{Pod: near}}, []bool{false, true, false}},
		{[]End{{Pod: far}}, []bool{true, false, true}},
		{[]End{{Pod: near}, {Pod: far}}, []bool{true, true, true}},
		{[]End{{Pod: host}}, []bool{true, false, false}},
		{[]End{{Addr: netip.MustParseAddr("192.0.2.53")}}, []bool{true, false, false}},
		{nil, []bool{false, false, false}},
	} {
		if have := Reach(s, pods, c.to, model.ProtoUDP, 53); !slices.Equal(have, c.want) {
			t.Errorf("to %+v: %v, want %v", c.to, have, c.want)
		}
		for i, p := range pods {
			can := false
			for _, to := range c.to {
				for _, f := range netset.Families() {
					ans, err := Can(s, Question{From: End{Pod: p}, To: to, Family: f, Proto: model.ProtoUDP, Port: 53})
					can = can || err == nil && ans.Verdict() == model.VerdictAllow
				}
			}
			if can != c.want[i] {
				t.Errorf("%s to %+v: Can says %v", p.Name, c.to, can)
			}
		}
	}
}
