package ebpf

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
)

// Policy and agents that come and go, maps that fill up, and what the driver tells.

// underPolicy is two nodes with pods that may talk, and one that may not.
func underPolicy(t *testing.T, with ...setup) (a, b *node, p, q, stranger *pod) {
	t.Helper()
	a, b, p, q = tunnelled(t, netset.V4, with...)
	stranger = a.addPod(1450)
	for _, n := range []*node{a, b} {
		n.policed()
		for _, x := range []*pod{p, q, stranger} {
			n.know(x)
		}
		n.want(peers("friends", p.name(), q.name()))
	}
	allow := func(name string, d plan.Direction) *plan.PolicySet {
		return set(name, d, rule(name+"/friends", model.VerdictAllow, "friends"))
	}
	a.guard(p, allow("p/in", plan.Ingress), allow("p/out", plan.Egress))
	b.guard(q, allow("q/in", plan.Ingress), allow("q/out", plan.Egress))
	a.apply()
	b.apply()
	return a, b, p, q, stranger
}

// TestPolicyRestart: agents come and go under traffic: nothing that is allowed is lost, nothing else passes, and nothing is written.
func TestPolicyRestart(t *testing.T) {
	for name, with := range modes() {
		t.Run(name, func(t *testing.T) {
			a, b, p, q, stranger := underPolicy(t, with...)
			hello(t, q)
			hello(t, p)
			far := stream(t, p, q, netset.V4)
			moved := make(chan struct{})
			go func() {
				defer close(moved)
				transfer(t, q, p, netset.V6, 32<<20)
			}()
			denied := make(chan struct{})
			over := make(chan struct{})
			go func() { // the stranger never gets through
				defer close(denied)
				for {
					select {
					case <-over:
						return
					default:
					}
					for _, to := range []*pod{p, q} {
						if err := ask(t, stranger, netip.AddrPortFrom(to.addr(netset.V4), 80), 20*time.Millisecond); err == nil {
							t.Errorf("%s was reached by a stranger", to.name())
						}
					}
				}
			}()
			numbers := a.driver.entries(t)["numbers"]
			for range 5 {
				a.restart()
				b.restart()
				for _, n := range []*node{a, b} {
					if w := n.writes(); w != 0 {
						t.Errorf("the new agent wrote %d map entries that were right", w)
					}
				}
			}
			if got := a.driver.entries(t)["numbers"]; got != numbers {
				t.Errorf("%d numbers after restarts, %d before", got, numbers)
			}
			<-moved
			if lost := far(); lost != 0 {
				t.Errorf("%d datagrams got lost", lost)
			}
			close(over)
			<-denied
		})
	}
}

// TestPolicyEarly: a new agent that does not know all yet leaves pods under the policy that they had; a pod that is new to it is closed.
func TestPolicyEarly(t *testing.T) {
	a, _, p, q, stranger := underPolicy(t)
	hello(t, p)
	fresh := a.addPod(1450)
	hello(t, fresh)
	all := maps.Clone(a.rows)
	maps.DeleteFunc(a.rows, func(k plan.Key, _ plan.Row) bool {
		return k.Kind == plan.KindGuard || k.Kind == plan.KindPolicySet || k.Kind == plan.KindPeerSet || k.Kind == plan.KindAddress || k.Kind == plan.KindIdentity
	})
	_ = a.driver.Close()
	a.driver = nil
	a.apply()
	check := func(when string, freshOK bool) {
		t.Helper()
		reaches(t, q, p, netset.V4, 80, true)
		reaches(t, stranger, p, netset.V4, 80, false)
		reaches(t, stranger, fresh, netset.V4, 80, freshOK)
		if t.Failed() {
			t.Fatal(when)
		}
	}
	check("before anything of policy is known", false)
	// Guards whose rules have not come yet open nothing that was not open.
	a.want(&plan.Guard{Dev: p.hostIf, Identity: named(p.name())}, &plan.Guard{Dev: fresh.hostIf, Identity: named(fresh.name())}, &plan.Guard{Dev: stranger.hostIf, Identity: named(stranger.name())})
	a.apply()
	check("with guards without rules", true)
	a.rows = all
	a.want(&plan.Guard{Dev: fresh.hostIf, Identity: named(fresh.name())})
	a.apply()
	check("when all is known", true)
	a.sweep()
	check("after the sweep", true)
	// Policy that never comes: with the sweep, whoever has no guard is closed.
	maps.DeleteFunc(a.rows, func(k plan.Key, _ plan.Row) bool { return k.Kind == plan.KindGuard })
	a.restart()
	reaches(t, q, p, netset.V4, 80, false)
	a.counted(t, "drop_closed", 1)
}

// TestPolicyNewLayout: an agent with other maps enforces the same from the first packet that its programs see.
func TestPolicyNewLayout(t *testing.T) {
	a, _, p, q, stranger := underPolicy(t)
	hello(t, p)
	lost := stream(t, q, p, netset.V4)
	_ = a.driver.Close()
	a.driver = nil
	a.opts = append(a.opts, func(d *Driver) { d.salt = "other" })
	a.restart()
	if n := lost(); n != 0 {
		t.Errorf("%d datagrams got lost", n)
	}
	reaches(t, q, p, netset.V4, 80, true)
	reaches(t, stranger, p, netset.V4, 80, false)
}

// TestPolicySweep: what an earlier agent left and nobody wants goes, to the last number; what is wanted is not touched.
func TestPolicySweep(t *testing.T) {
	a, _, p, _, stranger := underPolicy(t)
	wanted := a.driver.entries(t)
	a.guard(stranger, set("gone/in", plan.Ingress, rule("gone", model.VerdictAllow, "gone"), rule("gone/80", model.VerdictDeny, "friends", port(protoTCP, 80))), nil)
	a.want(peers("gone", "nobody", stranger.name()), &plan.VIP{Addr: netip.MustParseAddr("10.96.0.1")}, &plan.Identity{ID: named("nobody")},
		&plan.Address{Prefix: netip.MustParsePrefix("192.0.2.0/24"), Identity: named("nobody")}, &plan.Address{Prefix: netip.MustParsePrefix("192.0.2.1/32"), Identity: named("nobody")})
	a.apply()
	for _, r := range []plan.Row{
		&plan.PeerSet{ID: named("gone")}, &plan.PolicySet{ID: named("gone/in")}, &plan.VIP{Addr: netip.MustParseAddr("10.96.0.1")}, &plan.Identity{ID: named("nobody")},
		&plan.Address{Prefix: netip.MustParsePrefix("192.0.2.0/24")}, &plan.Address{Prefix: netip.MustParsePrefix("192.0.2.1/32")},
	} {
		if a.rows[r.Key()] == nil {
			t.Fatalf("%s is not there", r.Key())
		}
		delete(a.rows, r.Key())
	}
	a.want(&plan.Guard{Dev: stranger.hostIf, Identity: named(stranger.name())})
	lost := stream(t, p, a.pods[0], netset.V4)
	a.restart()
	if n := lost(); n != 0 {
		t.Errorf("%d datagrams got lost", n)
	}
	got := a.driver.entries(t)
	delete(got, "track")
	delete(wanted, "track")
	if !maps.Equal(got, wanted) {
		t.Errorf("entries after the sweep: %v\nwant %v", got, wanted)
	}
}

// TestPolicyDelete: deleting every row leaves nothing but the counter of what was given.
func TestPolicyDelete(t *testing.T) {
	a, _, _, _, _ := underPolicy(t)
	a.want(&plan.VIP{Addr: netip.MustParseAddr("10.96.0.1")}, &plan.Address{Prefix: netip.MustParsePrefix("192.0.2.0/24"), Identity: plan.IdentityWorld})
	a.apply()
	var keys []plan.Key
	for _, k := range plan.Kinds() { // deleted in the reverse order
		for r := range a.rows.All(k) {
			keys = append([]plan.Key{r.Key()}, keys...)
		}
	}
	a.remove(keys...)
	if got := a.driver.entries(t); len(got) != 1 || got["numbers"] != 1 {
		t.Errorf("left: %v", got)
	}
	a.sweep()
	if m, err := a.driver.policy.conns.open(); m != nil || err != nil {
		t.Errorf("the room for flows is still there: %v, %v", m, err)
	}
}

// TestPolicyGrows: maps become larger as they fill, without a packet noticing, and a successor goes on with them, wherever the
// agent before it died.
func TestPolicyGrows(t *testing.T) {
	a, _, p, q, _ := underPolicy(t)
	lost := stream(t, p, q, netset.V4)
	before := a.driver.policy.addresses.m.MaxEntries()
	for i := range 3000 {
		id := named(fmt.Sprint("many", i))
		a.want(&plan.Identity{ID: id}, &plan.Address{Prefix: netset.Host(netset.Nth(netip.MustParsePrefix("10.128.0.0/16"), uint64(i))), Identity: id})
	}
	a.apply()
	if got := a.driver.policy.addresses.m.MaxEntries(); got != 4*before {
		t.Errorf("room for %d addresses, want %d", got, 4*before)
	}
	if n := lost(); n != 0 {
		t.Errorf("%d datagrams got lost", n)
	}
	a.restart()
	if w := a.writes(); w != 0 {
		t.Errorf("the new agent wrote %d map entries that were right", w)
	}
	// A death after the switch and before the pin's new name.
	n := a.driver.policy.addresses.nest
	if _, err := a.driver.policy.addresses.grow(); err != nil {
		t.Fatal(err)
	}
	size := a.driver.policy.addresses.m.MaxEntries()
	if err := os.Rename(n.pin("now"), n.pin("next")); err != nil {
		t.Fatal(err)
	}
	// And one before the switch.
	if m, err := a.driver.policy.members.nest.make(8192); err != nil {
		t.Fatal(err)
	} else {
		_ = m.Close()
	}
	a.restart()
	if w := a.writes(); w != 0 || a.driver.policy.addresses.m.MaxEntries() != size {
		t.Errorf("after a death: %d entries written, room for %d, want %d", w, a.driver.policy.addresses.m.MaxEntries(), size)
	}
	// A pin that somebody removed: all is written again.
	for _, name := range []string{"addresses-now", "members-now", "lists-now"} {
		if err := os.Remove(filepath.Join(a.pins, layoutPrefix+a.driver.layout, name)); err != nil {
			t.Fatal(err)
		}
	}
	a.restart()
	echoes(t, p, q, netset.V4, 64, 3)
}

// TestPolicyFull: a full map is an error of the row that did not fit, and names the rules; what is in the maps works on. Addresses go to
// the trie then.
func TestPolicyFull(t *testing.T) {
	a, _, p, q, _ := underPolicy(t)
	pol := a.driver.policy
	pol.addresses.nest.inner.MaxEntries, pol.members.nest.inner.MaxEntries, pol.lists.nest.inner.MaxEntries = firstSize, firstSize, firstSize
	var rows []plan.Row
	for i := range firstSize + 50 {
		rows = append(rows, &plan.Address{Prefix: netset.Host(netset.Nth(netip.MustParsePrefix("10.128.0.0/16"), uint64(i))), Identity: named(p.name())})
	}
	apply := func(rows ...plan.Row) plan.Results {
		var res plan.Results
		a.want(rows...)
		a.ns.Do(t, func() { res = a.driver.Apply(t.Context(), a.rows, plan.Changes{Upsert: rows}) })
		return res
	}
	for k, err := range apply(rows...) {
		if err != nil {
			t.Errorf("%s: %v", k, err)
		}
	}
	for i, r := range rows {
		if at := r.(*plan.Address).Prefix; pol.identityAt(at) != pol.identityAt(netset.Host(p.addr(netset.V4))) {
			t.Fatalf("address %d has another identity", i)
		}
	}
	if got := a.driver.entries(t)["networks"]; got < 50 {
		t.Errorf("%d addresses are in the trie, want at least 50", got)
	}
	var keys []plan.Key
	for _, r := range rows {
		keys = append(keys, r.Key())
	}
	a.remove(keys...)
	if got := a.driver.entries(t)["networks"]; got != 0 {
		t.Errorf("%d addresses are still in the trie", got)
	}
	// Peer sets of many elements each, until one does not fit.
	var ids []plan.Row
	many := &plan.PeerSet{ID: named("many")}
	for i := range 256 * 8 {
		ids = append(ids, &plan.Identity{ID: plan.ID(1000 + i)})
		many.Members = append(many.Members, plan.ID(1000+i))
	}
	apply(ids...)
	var failed []string
	for i := range firstSize / 7 {
		m := *many
		m.ID = named(fmt.Sprint("many", i))
		if err := apply(&m)[m.Key()]; err != nil {
			failed = append(failed, err.Error())
			delete(a.rows, m.Key())
		}
	}
	if len(failed) == 0 || !strings.Contains(failed[0], "members is full") || !strings.Contains(failed[0], "peer set") {
		t.Errorf("errors of peer sets that do not fit: %v", failed)
	}
	hello(t, q)
	hello(t, p)
	put := func(name string, rules ...plan.PolicyRule) plan.Results {
		s := set(name, plan.Ingress, rules...)
		return apply(s, &plan.Guard{Dev: p.hostIf, Identity: named(p.name()), Ingress: s.ID})
	}
	refused := func(name string, res plan.Results, rules ...string) {
		t.Helper()
		err := res[set(name, plan.Ingress).Key()]
		for _, r := range rules {
			if err == nil || !strings.Contains(err.Error(), r) {
				t.Errorf("%s: %v, want it to say %q", name, err, r)
			}
		}
		if err := res[(&plan.Guard{Dev: p.hostIf}).Key()]; err != nil {
			t.Errorf("%s: %v: the other rules are in force", name, err)
		}
	}
	// Rules whose peers do not fit. One that allows is left out, one that denies denies everybody; the others work.
	full := *many
	full.ID = named("full")
	a.want(&full)
	refused("allows", put("allows", rule("wide", model.VerdictAllow, "full"), rule("friends", model.VerdictAllow, "friends", port(6, 80))),
		"no room for the rule wide, it is left out: ", "members is full")
	reaches(t, q, p, netset.V4, 80, true)
	reaches(t, q, p, netset.V4, 81, false)
	refused("behind", put("behind", rule("friends", model.VerdictAllow, "friends"), rule("wide", model.VerdictDeny, "full")), "wide, it denies everybody")
	reaches(t, q, p, netset.V4, 80, true)
	for _, v := range []model.Verdict{model.VerdictDeny, model.VerdictReject, model.VerdictPass} {
		wide := rule("wide", v, "full")
		wide.PassTo = 2
		name := "before " + v.String()
		refused(name, put(name, wide, rule("friends", model.VerdictAllow, "friends")), "wide, it denies everybody")
		reaches(t, q, p, netset.V4, 80, false)
		for _, g := range []*plan.Guard{{}, {Dev: "eth1", Node: true}} { // but not the node itself, which keeps what it had
			g.Ingress = set(name, plan.Ingress).ID
			if _, err := pol.guard(a.rows, g); err == nil || !strings.Contains(err.Error(), "wide, it denies everybody") {
				t.Errorf("%s of %s: %v", name, g.Key(), err)
			}
		}
	}
	// There is room again.
	keys = nil
	for i := range firstSize / 7 {
		if k := (&plan.PeerSet{ID: named(fmt.Sprint("many", i))}).Key(); a.rows[k] != nil {
			keys = append(keys, k)
		}
	}
	a.remove(keys...)
	s := set("before deny", plan.Ingress, rule("wide", model.VerdictDeny, "full"), rule("friends", model.VerdictAllow, "friends"))
	if err := apply(s, &plan.Guard{Dev: p.hostIf, Identity: named(p.name()), Ingress: s.ID})[s.Key()]; err != nil {
		t.Error(err)
	}
	reaches(t, q, p, netset.V4, 80, true)
	// More rules than fit: the first ones are in force, and deny what the others might have denied.
	long := []plan.PolicyRule{rule("first", model.VerdictAllow, "friends", port(6, 80))}
	for i := range 8 * (firstSize + 10) {
		long = append(long, rule(fmt.Sprint("long", i), model.VerdictAllow, "friends"))
	}
	res := put("long", long...)
	refused("long", res, "long2067, it is left out", "lists is full", "more of 8274 rules")
	reaches(t, q, p, netset.V4, 80, true)
	reaches(t, p, q, netset.V4, 80, true)
	// Numbers of sets that are all taken.
	pol.numbers.limit[ofSet], pol.numbers.free[ofSet] = 0, nil
	other := set("other", plan.Ingress)
	if err := apply(other)[other.Key()]; err == nil || !strings.Contains(err.Error(), other.ID.String()) {
		t.Errorf("no number left: %v", err)
	}
}

// TestPolicyLost: there is no room for an address at all. It passes for one of its surroundings: no rule lets pass by that what it must not.
func TestPolicyLost(t *testing.T) {
	a, _, p, q, _ := underPolicy(t)
	hello(t, p)
	home := netset.Host(q.addr(netset.V4))
	around := netip.PrefixFrom(home.Addr(), 24).Masked()
	pol := a.driver.policy
	apply := func(rows ...plan.Row) (res plan.Results) {
		a.want(rows...)
		a.ns.Do(t, func() { res = a.driver.Apply(t.Context(), a.rows, plan.Changes{Upsert: rows}) })
		return res
	}
	put := func(name string, rules ...plan.PolicyRule) {
		t.Helper()
		s := set(name, plan.Ingress, rules...)
		for k, err := range apply(s, &plan.Guard{Dev: p.hostIf, Identity: named(p.name()), Ingress: s.ID}) {
			if err != nil && !strings.Contains(err.Error(), home.String()) {
				t.Errorf("%s: %v", k, err)
			}
		}
	}
	apply(&plan.Identity{ID: named("around")}, peers("others", "around"), peers("him", q.name()), peers("both", q.name(), "around"), &plan.Address{Prefix: around, Identity: named("around")})
	everybody := rule("everybody", model.VerdictAllow, "")
	tests := map[string]struct {
		rules       []plan.PolicyRule
		known, lost bool // does he get through
	}{
		"deny him":          {[]plan.PolicyRule{rule("a", model.VerdictDeny, "him"), everybody}, false, false},
		"allow others":      {[]plan.PolicyRule{rule("b", model.VerdictAllow, "others")}, false, false},
		"allow both":        {[]plan.PolicyRule{rule("c", model.VerdictAllow, "both")}, true, true},
		"allow him":         {[]plan.PolicyRule{rule("d", model.VerdictAllow, "him")}, true, false},
		"deny others":       {[]plan.PolicyRule{rule("e", model.VerdictDeny, "others"), everybody}, true, false},
		"first, deny him":   {[]plan.PolicyRule{rule("f", model.VerdictAllow, "both", port(6, 80)), rule("g", model.VerdictDeny, "him")}, true, true},
		"allow him, others": {[]plan.PolicyRule{rule("h", model.VerdictAllow, "him"), rule("i", model.VerdictAllow, "others")}, true, false},
	}
	// The hash is filled; the trie is one with a single entry, which only the driver sees: filling its million takes long.
	row := &plan.Address{Prefix: home, Identity: named(q.name())}
	trie, err := pol.networks.m.Clone()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = trie.Close() })
	lose := func() {
		pol.addresses.nest.inner.MaxEntries = pol.addresses.m.MaxEntries()
		a.remove(row.Key())
		small, err := ebpf.NewMap(&ebpf.MapSpec{
			Type: ebpf.LPMTrie, KeySize: trie.KeySize(), ValueSize: trie.ValueSize(), MaxEntries: 1, Flags: unix.BPF_F_NO_PREALLOC,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = small.Close() })
		key := prefixOf(around)
		if err := small.Put(key, weftWeftNetwork{Identity: pol.identityAt(around), Len: key.Len}); err != nil {
			t.Fatal(err)
		}
		pol.networks.m = small
		for i := range pol.addresses.m.MaxEntries() {
			_ = pol.addresses.write(addrOf(netset.Nth(netip.MustParsePrefix("10.128.0.0/16"), uint64(i))), 1)
		}
		if err := apply(row)[row.Key()]; err == nil || !strings.Contains(err.Error(), "networks is full") {
			t.Fatalf("the address is not lost: %v", err)
		}
	}
	for name, tt := range tests {
		put(name, tt.rules...)
		reaches(t, q, p, netset.V4, 80, tt.known)
	}
	put("allow others", tests["allow others"].rules...)
	lose()
	reaches(t, q, p, netset.V4, 80, false) // what was in force before
	for name, tt := range tests {
		put(name, tt.rules...)
		reaches(t, q, p, netset.V4, 80, tt.lost)
	}
	put("deny others", tests["deny others"].rules...)
	pol.networks.m = trie
	if err := apply(row)[row.Key()]; err != nil {
		t.Fatal(err)
	}
	reaches(t, q, p, netset.V4, 80, true)
}

// TestPolicyLog: a rule that logs is recorded with what became of the packet: once for a connection, and for each denied packet.
func TestPolicyLog(t *testing.T) {
	a, _, p, q, stranger := underPolicy(t)
	hello(t, p)
	logs := func(name string, v model.Verdict, peers string) plan.PolicyRule {
		r := rule(name, v, peers)
		r.Log = true
		return r
	}
	s := set("logged", plan.Ingress, rule("note", model.VerdictLog, "him"), rule("quiet", model.VerdictAllow, "friends", port(protoTCP, 80)),
		rule("unasked", model.VerdictLog, ""), logs("last", model.VerdictDeny, ""))
	a.want(peers("him", q.name()), s, &plan.Guard{Dev: p.hostIf, Identity: named(p.name()), Ingress: s.ID})
	a.apply()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	seen := make(chan Record, 1000)
	ended := make(chan error, 1)
	go func() { ended <- a.driver.Records(ctx, func(r Record) { seen <- r }) }()
	for _, f := range netset.Families() {
		for len(seen) > 0 {
			<-seen
		}
		reaches(t, q, p, f, 80, true)
		reaches(t, stranger, p, f, 80, false)
		got := map[string]int{}
		for deadline := time.After(2 * time.Second); got["deny by "+named("last").String()] == 0 || got["none by "+named("last").String()] == 0; {
			select {
			case r := <-seen:
				if r.DstPort != 80 || r.Direction != plan.Ingress || r.Dst != p.addr(f) {
					continue
				}
				from := map[netip.Addr]*pod{q.addr(f): q, stranger.addr(f): stranger}[r.Src]
				if from == nil || (from == q) != (r.Logged == model.VerdictAllow) {
					t.Errorf("%s: %+v", f, r)
				}
				got[fmt.Sprintf("%s by %s", r.Logged, r.Rule)]++
			case <-deadline:
				t.Fatalf("%s: no record of what was denied: %v", f, got)
			}
		}
		if n := got["allow by "+named("note").String()]; n != 1 {
			t.Errorf("%s: %v, want one record of the connection by %s", f, got, named("note"))
		}
		for what := range got {
			if !strings.Contains(what, named("last").String()) && !strings.Contains(what, "allow by "+named("note").String()) {
				t.Errorf("%s: a record says %s", f, what)
			}
		}
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestPolicyDenials: records say who, what and why; a storm is counted, and not recorded packet by packet.
func TestPolicyDenials(t *testing.T) {
	exchanges(t, func(t *testing.T, x *exchange) {
		ctx, stop := context.WithCancel(t.Context())
		seen := make(chan Record, 10000)
		ended := make(chan error, 1)
		go func() { ended <- x.driver.Records(ctx, func(d Record) { seen <- d }) }()
		next := func(what string) (d Record) {
			t.Helper()
			for {
				select {
				case d = <-seen:
					if d.DstPort != 7777 { // what the rig's pods say on their own, or an earlier test
						return d
					}
				case <-time.After(2 * time.Second):
					t.Fatalf("%s: no record", what)
				}
			}
		}
		for len(seen) > 0 {
			<-seen
		}
		check := func(what string, want Record) {
			t.Helper()
			d := next(what)
			if age := time.Since(d.Time); age < -time.Second || age > 2*time.Second {
				t.Errorf("%s: it is %s old", what, age)
			}
			d.Time = time.Time{}
			if d != want {
				t.Errorf("%s:\n%+v, want\n%+v", what, d, want)
			}
		}
		time.Sleep(1100 * time.Millisecond) // a second of its own
		x.in("denied", x.comes(protoUDP, datagram(5000, 81)), "drop_policy")
		check("in", Record{
			Src: x.far, Dst: x.pod.addr(x.f), SrcPort: 5000, DstPort: 81, Proto: protoUDP, Direction: plan.Ingress, Rule: named("in/end"),
			Reason: "drop_policy", Device: int(x.index(uplink)),
		})
		x.out("denied", x.goes(protoTCP, segment(6000, 53, syn)), "drop_policy")
		check("out", Record{
			Src: x.pod.addr(x.f), Dst: x.far, SrcPort: 6000, DstPort: 53, Proto: protoTCP, Direction: plan.Egress, Rule: named("out/end"),
			Reason: "drop_policy", Device: int(x.index(x.pod.hostIf)),
		})
		ping, request := x.echo(false, 1)
		x.out("denied", x.goes(ping, request), "drop_policy")
		check("ping", Record{
			Src: x.pod.addr(x.f), Dst: x.far, DstPort: uint16(request[0]) << 8, Proto: ping, Direction: plan.Egress, Rule: named("out/end"),
			Reason: "drop_policy", Device: int(x.index(x.pod.hostIf)),
		})
		before, lost, counted := x.hits("in/end"), x.driver.LostRecords(), x.driver.Stats()["drop_policy"]
		const storm = 2000
		in := x.comes(protoUDP, datagram(5000, 7777)).bytes()
		within(t, x.ns, func() error {
			for range storm {
				if v, err := x.driver.objs.FromNet.Run(&ebpf.RunOptions{Data: in, Context: skb{Ifindex: x.index(uplink)}}); err != nil || v != verdictDrop {
					return fmt.Errorf("verdict %d, %w", v, err)
				}
			}
			return nil
		})
		if got := x.driver.Stats()["drop_policy"] - counted; got != storm {
			t.Errorf("%d of %d packets were counted", got, storm)
		}
		if got := x.hits("in/end") - before; got != storm {
			t.Errorf("the rule was counted %d times, want %d", got, storm)
		}
		if got := x.driver.LostRecords() - lost; got == 0 || got >= storm {
			t.Errorf("%d of %d records were lost", got, storm)
		}
		all, err := x.driver.RuleHits()
		if err != nil {
			t.Fatal(err)
		}
		if age := time.Since(all[named("in/end")].Last); age < -time.Second || age > 5*time.Second {
			t.Errorf("the last hit is %s old", age)
		}
		if last := all[named("in/ports")].Last; x.f == netset.V4 && !last.IsZero() {
			t.Errorf("a rule that was never hit was hit at %s", last)
		}
		stop()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the reader ended with %v", err)
		}
	})
}

func (x *exchange) hits(rule string) uint64 {
	x.t.Helper()
	all, err := x.driver.RuleHits()
	if err != nil {
		x.t.Fatal(err)
	}
	return all[named(rule)].Packets
}

// TestPolicyUpdate counts what a change writes: in proportion to the change.
func TestPolicyUpdate(t *testing.T) {
	n, _ := lone(t, netset.V4, true)
	n.policed()
	const sets, identities = 50, 2000
	var members []string
	for i := range identities {
		id := fmt.Sprint("id", i)
		members = append(members, id)
		n.want(&plan.Identity{ID: named(id)})
	}
	n.want(peers("all", members...))
	for i := range sets {
		n.want(peers(fmt.Sprint("few", i), members[:i]...),
			set(fmt.Sprint("set", i), plan.Ingress, rule(fmt.Sprint("rule", i), model.VerdictAllow, fmt.Sprint("few", i), port(protoTCP, 80))))
	}
	n.guard(n.pods[0], set("all", plan.Ingress, rule("all/80", model.VerdictAllow, "all", port(protoTCP, 80))), nil)
	n.apply()
	addr := &plan.Address{Prefix: netip.MustParsePrefix("10.244.77.1/32"), Identity: named("new")}
	for _, c := range []struct {
		what string
		rows []plan.Row
		want int
	}{
		// numbers 1, members 1, address 1; and the one set that tells the new identity from the world is raised.
		{"a pod appears", []plan.Row{&plan.Identity{ID: named("new")}, peers("all", append(members, "new")...), addr}, 4},
		{"nothing changes", []plan.Row{peers("all", append(members, "new")...), addr}, 0},
		// address 1; the set that tells its two identities apart, and those of the few that id3 is a member of.
		{"it changes to an identity that 46 other sets know", []plan.Row{&plan.Address{Prefix: addr.Prefix, Identity: named("id3")}}, 1 + 46},
		// a set: numbers of it and its two rules 3, counters 2, two lists (one with the rule, one without) and three matches, the set itself.
		{"a set appears", []plan.Row{set("late", plan.Ingress, rule("late/80", model.VerdictAllow, "all", port(protoTCP, 80)))}, 3 + 2 + 2 + 3 + 1},
		// a guard: locals and slots of two addresses.
		{"a guard changes", []plan.Row{&plan.Guard{Dev: n.pods[0].hostIf, Identity: named(n.pods[0].name()), Ingress: named("late")}}, 4},
	} {
		before := n.writes()
		n.want(c.rows...)
		within(t, n.ns, func() error {
			for k, err := range n.driver.Apply(t.Context(), n.rows, plan.Changes{Upsert: c.rows}) {
				if err != nil {
					return fmt.Errorf("%s: %w", k, err)
				}
			}
			return nil
		})
		if got := n.writes() - before; got != c.want {
			t.Errorf("%s: %d writes, want %d", c.what, got, c.want)
		}
	}
}
