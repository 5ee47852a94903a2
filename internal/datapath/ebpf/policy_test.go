package ebpf

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"testing"
	"time"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
)

// Policy by real packets and single programs: what docs/design/policy.md says, sentence by sentence.

// named is an ID that a test can read.
func named(text string) plan.ID {
	h := fnv.New64a()
	fmt.Fprint(h, text)
	return plan.ID(h.Sum64())
}

// rule makes a rule of a set.
func rule(name string, v model.Verdict, peers string, l4 ...plan.L4) plan.PolicyRule {
	r := plan.PolicyRule{ID: named(name), Origin: name, Level: 1, Verdict: v, L4: l4}
	if peers != "" {
		r.Peers = named(peers)
	}
	if l4 == nil {
		r.L4 = []plan.L4{{Proto: model.ProtoAny}}
	}
	return r
}

func port(proto int, p uint16) plan.L4 { return plan.L4{Proto: proto, Port: p, Bits: 16} }

// set makes a policy set; everything that its rules do not decide is denied, as at the end of a tier.
func set(name string, d plan.Direction, rules ...plan.PolicyRule) *plan.PolicySet {
	return &plan.PolicySet{ID: named(name), Direction: d, Rules: append(rules, rule(name+"/end", model.VerdictDeny, ""))}
}

func peers(name string, members ...string) *plan.PeerSet {
	s := &plan.PeerSet{ID: named(name), Text: name}
	for _, m := range members {
		if m == "world" {
			s.Members = append(s.Members, plan.IdentityWorld)
		} else {
			s.Members = append(s.Members, named(m))
		}
	}
	slices.Sort(s.Members)
	return s
}

// policed makes a node enforce policy: every pod has an identity, named after its device and node, and a guard.
func (n *node) policed(change ...func(*plan.Settings)) {
	n.t.Helper()
	s := n.settings()
	s.Policed = true
	for _, f := range change {
		f(s)
	}
	n.want(s)
	for _, p := range n.pods {
		n.know(p)
		n.want(&plan.Guard{Dev: p.hostIf, Identity: named(p.name())})
	}
}

func (p *pod) name() string {
	return fmt.Sprintf("pod%d-%d", p.node.id, slices.Index(p.node.pods, p)+1)
}

// know gives a pod's addresses their identity, on whatever node.
func (n *node) know(p *pod) {
	n.want(&plan.Identity{ID: named(p.name()), Text: p.name()})
	for _, a := range p.addrs {
		n.want(&plan.Address{Prefix: netset.Host(a), Identity: named(p.name())})
	}
}

// guard puts a pod under policy; nil: everything is allowed.
func (n *node) guard(p *pod, ingress, egress *plan.PolicySet) {
	g := &plan.Guard{Dev: p.hostIf, Identity: named(p.name())}
	if ingress != nil {
		n.want(ingress)
		g.Ingress = ingress.ID
	}
	if egress != nil {
		n.want(egress)
		g.Egress = egress.ID
	}
	n.want(g)
}

// reaches says whether a connection comes about. What is not allowed is waited for no longer than it must.
func reaches(t *testing.T, from, to *pod, f netset.Family, port uint16, want bool) {
	t.Helper()
	limit := patience
	if !want {
		limit = 150 * time.Millisecond
	}
	err := ask(t, from, netip.AddrPortFrom(to.addr(f), port), limit)
	if (err == nil) != want {
		t.Errorf("%s: %s to %s port %d: %v, want it to pass: %v\n%s", f, from.name(), to.name(), port, err, want, from.dump())
	}
}

// TestPolicyOnNode: ingress and egress between pods of one node, and replies; then rules and members change.
func TestPolicyOnNode(t *testing.T) {
	for name, opts := range modes() {
		t.Run(name, func(t *testing.T) {
			n, _ := network(t, 1500, opts...)
			web, db, other := n.addPod(1500), n.addPod(1500), n.addPod(1500)
			for _, p := range n.pods {
				hello(t, p)
			}
			n.policed()
			n.apply()
			each := func(when string, want map[[2]*pod]bool) {
				t.Helper()
				for _, f := range netset.Families() {
					for _, from := range n.pods {
						for _, to := range n.pods {
							if from == to {
								continue
							}
							ok, said := want[[2]*pod{from, to}]
							t.Run(fmt.Sprintf("%s/%s/%s-%s", when, f, from.name(), to.name()), func(t *testing.T) {
								reaches(t, from, to, f, 80, !said || ok)
							})
						}
					}
				}
			}
			each("no policy", nil)
			// db lets only web in.
			n.want(peers("clients", web.name()))
			n.guard(db, set("db", plan.Ingress, rule("db/web", model.VerdictAllow, "clients", port(protoTCP, 80))), nil)
			n.apply()
			each("ingress", map[[2]*pod]bool{{other, db}: false})
			// web may only go out to db.
			n.want(peers("databases", db.name()))
			n.guard(web, nil, set("web", plan.Egress, rule("web/db", model.VerdictAllow, "databases")))
			n.apply()
			each("egress", map[[2]*pod]bool{{other, db}: false, {web, other}: false})
			// other becomes a client.
			n.want(peers("clients", web.name(), other.name()))
			n.apply()
			each("a member more", map[[2]*pod]bool{{web, other}: false})
			n.want(peers("clients", other.name()))
			n.apply()
			each("a member less", map[[2]*pod]bool{{web, other}: false, {web, db}: false})
			n.guard(db, nil, nil)
			n.guard(web, nil, nil)
			n.apply()
			each("no policy any more", nil)
			if n.driver.Stats()["drop_policy"] == 0 {
				t.Error("nothing was counted as denied")
			}
		})
	}
}

// TestWritesPerChange holds how many map entries a change writes: what is the same is not written again.
func TestWritesPerChange(t *testing.T) {
	n, _ := lone(t, netset.V4, true)
	n.policed()
	var rules []plan.PolicyRule
	for i := range 50 {
		who := fmt.Sprint("peer", i)
		n.want(&plan.Identity{ID: named(who), Text: who})
		n.want(peers("set of "+who, who))
		rules = append(rules, rule("allow "+who, model.VerdictAllow, "set of "+who, port(protoTCP, uint16(1000+i))))
	}
	for _, p := range n.pods {
		n.guard(p, set("shared", plan.Ingress, rules...), nil)
	}
	n.apply()
	fresh := netset.Host(netip.MustParseAddr("10.77.0.1"))
	for _, c := range []struct {
		what   string
		change func()
		most   int
	}{
		{"nothing", func() {}, 0},
		{"a pod of a known identity", func() { n.want(&plan.Address{Prefix: fresh, Identity: named("peer3")}) }, 2},
		{"a member", func() { n.want(peers("set of peer4", "peer4", "peer5")) }, 1},
		// The list of the port it is about, written anew and put in the place of the old one; the set's generation.
		{"a rule", func() {
			rules[7].Verdict = model.VerdictDeny
			n.want(set("shared", plan.Ingress, rules...))
		}, 4},
	} {
		before := n.writes()
		c.change()
		n.apply()
		got := n.writes() - before
		t.Logf("%s: %d writes", c.what, got)
		if got > c.most {
			t.Errorf("%s: %d map entries written, want at most %d", c.what, got, c.most)
		}
	}
}
