package ebpf

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
)

// policedPaths is paths for pods under policy: established flows, and first packets that a number of rules is asked about. A first
// packet here is a reset, which makes no entry, so that it can be repeated.
func policedPaths(tb testing.TB) (*node, []path) {
	tb.Helper()
	n, peer := lone(tb, netset.V4, true)
	n.policed()
	d, gw := n.driver, model.GatewayMAC
	from, to := n.pods[0], n.pods[1]
	n.want(peers("friends", from.name(), to.name(), "far"), peers("others", "nobody"), &plan.Identity{ID: named("far")}, &plan.Identity{ID: named("nobody")})
	for _, c := range peer.podCIDRs() {
		n.want(&plan.Address{Prefix: netset.Host(netset.Nth(c, 9)), Identity: named("far")})
	}
	candidates := []int{1, 10, 100}
	var sets []*plan.PolicySet
	for _, c := range candidates {
		var rules []plan.PolicyRule
		for i := range c - 1 {
			rules = append(rules, rule(fmt.Sprint(c, "/", i), model.VerdictAllow, "others", port(protoTCP, 80)))
		}
		s := set(fmt.Sprint("set", c), plan.Egress, append(rules, rule(fmt.Sprint(c, "/last"), model.VerdictAllow, "friends", port(protoTCP, 80)))...)
		sets = append(sets, s)
		n.want(s)
	}
	in := set("in", plan.Ingress, rule("in/80", model.VerdictAllow, "friends", port(protoTCP, 80)))
	n.guard(from, in, sets[0])
	n.guard(to, in, sets[0])
	n.apply()
	number := func(s *plan.PolicySet) uint32 { return d.policy.have[s.ID].n }
	guard := func(p *pod, a netip.Addr, g weftWeftGuard) {
		if err := d.putAddr(a, weftWeftLocal{Ifindex: 1, Mac: macOf(gw), Guard: g}); err != nil {
			tb.Fatal(err)
		}
	}
	elsewhere := []netip.Prefix{netip.MustParsePrefix("10.244.99.0/24"), netip.MustParsePrefix("fd10:244:0:99::/64")}
	for i, c := range elsewhere {
		if err := d.putRemote(&plan.Remote{Prefix: c, Via: peer.addrs[i], MTU: 1500}); err != nil {
			tb.Fatal(err)
		}
		if err := d.policy.putAddress(&plan.Address{Prefix: netset.Host(netset.Nth(c, 9)), Identity: named("far")}); err != nil {
			tb.Fatal(err)
		}
	}
	var out []path
	for i, f := range netset.Families() {
		guard(from, from.addr(f), weftWeftGuard{Ingress: number(in), Egress: number(sets[0])})
		guard(to, to.addr(f), weftWeftGuard{Ingress: number(in), Egress: number(sets[0])})
		base := frame{srcMAC: gw, dstMAC: gw, src: from.addr(f), dst: to.addr(f), proto: protoTCP, ttl: 255, payload: segment(1000, 80, ack)}
		add := func(name string, prog *ebpf.Program, want uint32, pkt frame) {
			out = append(out, path{fmt.Sprintf("%s/%s", name, f), prog, pkt.bytes(), 250, want})
		}
		add("from_pod/policed-local", d.objs.FromPod, verdictRedirect, base)
		direct := base
		direct.dst = netset.Nth(elsewhere[i], 9)
		add("from_pod/policed-direct", d.objs.FromPod, verdictRedirect, direct)
		arriving := base
		arriving.src, arriving.dst, arriving.dstMAC = netset.Nth(peer.podCIDRs()[i], 9), to.addr(f), model.MAC{}
		add("from_net/policed-local", d.objs.FromNet, verdictRedirect, arriving)
		add("to_pod/policed", d.objs.ToPod, verdictNext, arriving)
		for j, c := range candidates {
			// An address of the sender for each set.
			one := direct
			one.src = netset.Nth(elsewhere[i], uint64(100+j))
			guard(from, one.src, weftWeftGuard{Egress: number(sets[j])})
			one.payload = segment(1000, 80, rst)
			add(fmt.Sprintf("from_pod/first-of-%d", c), d.objs.FromPod, verdictRedirect, one)
			one.payload = segment(1000, 81, syn)
			add(fmt.Sprintf("from_pod/denied-of-%d", c), d.objs.FromPod, verdictDrop, one)
		}
	}
	return n, out
}

// memory is what the kernel says that a map takes, in bytes.
func memory(t *testing.T, m *ebpf.Map) (n int) {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/self/fdinfo/%d", m.FD()))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), "memlock:"); ok {
			_, _ = fmt.Sscan(rest, &n)
		}
	}
	return n
}

// TestPolicyMemory: what policy takes before there is any, and then for each rule and each member of a peer set.
func TestPolicyMemory(t *testing.T) {
	if !kernelIs(t, 6, 4) {
		t.Skip("this kernel does not say what a map takes")
	}
	n, _ := lone(t, netset.V4, true)
	p := n.driver.policy
	inner := map[string]*ebpf.Map{
		"lists/in": p.lists.m, "members/in": p.members.m, "addresses/in": p.addresses.m, "vips/in": p.vips.m, "numbers/in": p.numbers.t.m, "rulestats/in": p.rules.m,
	}
	total := 0
	for name, m := range n.driver.maps() {
		total += memory(t, m)
		t.Logf("%-10s %8d bytes", name, memory(t, m))
	}
	for name, m := range inner {
		total += memory(t, m)
		t.Logf("%-10s %8d bytes", name, memory(t, m))
	}
	t.Logf("all maps of a node without policies: %.1f MB", float64(total)/1e6)
	if total > 8<<20 {
		t.Errorf("an idle node's maps take %d bytes, want at most 8 MB", total)
	}
	before := memory(t, p.lists.m)
	n.policed()
	const sets, rules, peerSets, identities = 200, 40, 100, 5000
	var ids []string
	for i := range identities {
		ids = append(ids, fmt.Sprint("id", i))
		n.want(&plan.Identity{ID: named(ids[i])})
	}
	members := 0
	for i := range peerSets {
		var in []string
		for j := range ids {
			if (j*7+i)%10 == 0 { // every tenth, as labels would have it
				in = append(in, ids[j])
			}
		}
		members += len(in)
		n.want(peers(fmt.Sprint("peers", i), in...))
	}
	for i := range sets {
		var list []plan.PolicyRule
		for j := range rules {
			list = append(list, rule(fmt.Sprint("rule", i, "/", j), model.VerdictAllow, fmt.Sprint("peers", j), port(protoTCP, 80)))
		}
		n.want(set(fmt.Sprint("set", i), plan.Ingress, list...))
	}
	n.guard(n.pods[0], set("set0", plan.Ingress), nil)
	n.apply()
	perRule := float64(memory(t, p.lists.m)-before) / (sets * rules)
	perMember := float64(memory(t, p.members.m)) / float64(members)
	t.Logf("%d rules: %.0f bytes each in lists, %.0f with counter and number", sets*rules, perRule,
		perRule+float64(memory(t, p.rules.m)+memory(t, p.numbers.t.m))/(sets*rules))
	t.Logf("%d members: %.1f bytes each", members, perMember)
	if perRule > 64 || perMember > 64 {
		t.Errorf("a rule takes %.0f bytes and a member %.0f, want at most 64", perRule, perMember)
	}
	m, err := p.conns.open()
	if err != nil || m == nil {
		t.Fatal(m, err)
	}
	defer m.Close()
	t.Logf("room for %d flows: %.1f MB", m.MaxEntries(), float64(memory(t, m))/1e6)
}
