//go:build behaviour

package behaviour

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/internal/api"
	theLab "weft/internal/lab"
	"weft/internal/lab/probe"
	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/oracle"
	"weft/internal/testkit/languages"
)

// answering are the ports that every pod answers at.
func answering() []model.Port {
	return []model.Port{
		{Protocol: "tcp", Port: 53}, {Protocol: "tcp", Port: 80}, {Protocol: "tcp", Port: 81}, {Protocol: "udp", Port: 53}, {Protocol: "udp", Port: 80},
	}
}

// random starts the pods of a random cluster, and returns it with the addresses that they have got.
func (l *lab) random(seed uint64) *languages.Cluster {
	l.Helper()
	c := languages.New(seed, languages.Anywhere())
	var b strings.Builder
	put := func(kind, namespace, name string, labels map[string]string, rest string) {
		text, _ := json.Marshal(labels) // a map of strings
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: %s\nmetadata: {name: %s, namespace: %q, labels: %s}\n%s\n", kind, name, namespace, text, rest)
	}
	for _, ns := range c.Namespaces {
		put("Namespace", "", ns.Name, ns.Labels, "")
	}
	for _, a := range c.Accounts {
		put("ServiceAccount", a.Namespace, a.Name, a.Labels, "")
	}
	for _, p := range c.Pods {
		var ports []string
		for _, o := range answering() {
			name := ""
			if i := slices.IndexFunc(p.Ports, func(x model.Port) bool { return x.Protocol == o.Protocol && x.Port == o.Port }); i >= 0 {
				name = "name: " + p.Ports[i].Name + ", "
			}
			ports = append(ports, fmt.Sprintf("{%scontainerPort: %d, protocol: %s}", name, o.Port, strings.ToUpper(o.Protocol)))
		}
		put("Pod", p.Namespace, p.Name, p.Labels, fmt.Sprintf("spec: {nodeName: %s, serviceAccountName: %s, containers: [{name: c, image: none, ports: [%s]}]}",
			p.Node, p.Account, strings.Join(ports, ", ")))
	}
	l.apply(b.String())
	at := languages.Places{Bare: true, World: [][]netip.Addr{l.party("outside").Addrs}}
	for i := range at.Nodes {
		at.Nodes[i] = l.party(languages.NodeName(i)).Addrs
	}
	for _, p := range c.Pods {
		at.Pods = append(at.Pods, l.party(p.Namespace+"/"+p.Name).Addrs)
	}
	return languages.New(seed, at)
}

// open gives the lab to the test itself, which is quicker than a command for each question.
func (l *lab) open() *theLab.Lab {
	l.Helper()
	x, err := theLab.Open(l.name)
	if err != nil {
		l.Fatal(err)
	}
	return x
}

// party is an end of probes by its name.
func (l *lab) party(name string) *theLab.Party {
	l.Helper()
	p, err := l.open().Party("default", name)
	if err != nil {
		l.Fatal(err)
	}
	return p
}

// socket is the agent's, as it is seen from here.
func (l *lab) socket(node string) string {
	l.Helper()
	h, err := l.open().Host(node)
	if err != nil {
		l.Fatal(err)
	}
	return h.Root() + "/run/weft/" + api.SocketName
}

// table is what `weft show` has of a table.
func (l *lab) table(node, name string) (t api.Table) {
	l.Helper()
	if err := api.Stream(l.Context(), l.socket(node), api.MethodShow, api.ShowRequest{Table: name}, func(b json.RawMessage) error {
		return json.Unmarshal(b, &t)
	}); err != nil {
		l.Fatal(err)
	}
	return t
}

// enforce replaces all policies, and waits until both nodes have them in the kernel.
func (l *lab) enforce(s *languages.Set, seed uint64) {
	l.Helper()
	mark := fmt.Sprintf("seed-%d", seed)
	docs := fmt.Sprintf("---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: %s, namespace: nowhere}\nspec: {podSelector: {}}\n", mark)
	for _, raw := range s.Raw {
		docs += "---\n" + string(raw) + "\n"
	}
	l.put("policies", docs)
	for i := range 2 {
		node := languages.NodeName(i)
		l.eventually(20*time.Second, node+" has the policies of "+mark, func() bool {
			return strings.Contains(fmt.Sprint(l.table(node, "policies").Rows), mark) && l.done(node)
		})
	}
}

// done says whether a node's kernel has all that policies became.
func (l *lab) done(node string) bool {
	for _, name := range []string{"guards", "policysets", "peersets", "addresses"} {
		t := l.table(node, name)
		status := slices.IndexFunc(t.Columns, func(c string) bool { return strings.EqualFold(c, "status") })
		if status < 0 || slices.ContainsFunc(t.Rows, func(r []string) bool { return !strings.EqualFold(r[status], "done") }) {
			return false
		}
	}
	return true
}

// question is a connection that is asked about and tried: the same in both families.
type question struct {
	from, to string // as `weft can` and the lab name them
	src, dst []netip.Addr
	srcNode  string // where the sender is, "" if nowhere
	dstNode  string
	proto    string
	port     uint16
}

func (q question) text() string {
	if q.proto == "icmp" {
		return q.proto
	}
	return fmt.Sprintf("%d/%s", q.port, q.proto)
}

// draw makes a question about pods, nodes and the world.
func draw(c *languages.Cluster) question {
	ends := len(c.Pods)
	from, to := c.IntN(ends+2), c.IntN(ends+1)
	for to == from {
		to = c.IntN(ends + 1)
	}
	o := answering()[c.IntN(len(answering()))]
	q := question{proto: o.Protocol, port: o.Port}
	if c.IntN(6) == 0 {
		q.proto, q.port = "icmp", 0
	}
	if from < ends {
		p := c.Pods[from]
		q.from, q.src, q.srcNode = p.Namespace+"/"+p.Name, p.Addrs, p.Node
	} else {
		q.srcNode = languages.NodeName(from - ends)
		q.from, q.src = q.srcNode, c.Nodes[from-ends]
	}
	if to < ends {
		p := c.Pods[to]
		q.to, q.dst, q.dstNode = p.Namespace+"/"+p.Name, p.Addrs, p.Node
	} else {
		q.to, q.dst = "outside", c.World[0]
		if q.proto != "icmp" {
			q.proto, q.port = "tcp", 80
		}
	}
	return q
}

// can asks the agent of the first node what `weft can` asks, and returns whether it says yes, by family.
func (l *lab) can(q question) map[netset.Family]bool {
	l.Helper()
	from, out := q.from, map[netset.Family]bool{}
	if !strings.Contains(from, "/") {
		from = "node:" + from
	}
	ends := []string{q.to}
	if q.to == "outside" {
		ends = nil
		for _, a := range q.dst {
			ends = append(ends, a.String())
		}
	}
	for _, to := range ends {
		var r api.CanReply
		if err := api.Call(l.Context(), l.socket("node1"), api.MethodCan, api.CanRequest{From: from, To: to, Port: q.text()}, &r); err != nil {
			l.Fatalf("weft can %s %s %s: %v", from, to, q.text(), err)
		}
		for _, a := range r.Answers {
			for _, f := range netset.Families() {
				if f.String() == a.Family {
					out[f] = a.Verdict == "allow"
				}
			}
		}
	}
	return out
}

// knows is what the oracle says.
func (q question) knows(s *languages.Set, f netset.Family) bool {
	p := oracle.Packet{Src: netset.First(q.src, f), Dst: netset.First(q.dst, f), SrcPort: 40000, DstPort: q.port, FromHost: q.from == q.dstNode}
	p.Proto = map[string]int{"tcp": model.ProtoTCP, "udp": model.ProtoUDP, "icmp": model.ProtoICMP}[q.proto]
	if q.proto == "icmp" {
		if p.DstPort = 8 << 8; f == netset.V6 {
			p.Proto, p.DstPort = model.ProtoICMPv6, 128<<8
		}
	}
	egress, _ := oracle.Decide(s.Objects, q.srcNode, p)
	_, ingress := oracle.Decide(s.Objects, q.dstNode, p)
	if p.FromHost { // what a node sends to its own pods its own policies are not asked about
		egress.Verdict = model.VerdictAllow
	}
	return egress.Verdict == model.VerdictAllow && ingress.Verdict == model.VerdictAllow
}

// TestCan is behaviour 4: what `weft can` says of random policies of all languages is what sockets find, and what the oracle says.
func TestCan(t *testing.T) {
	l := up(t, "--nodes", "2")
	c := l.random(5)
	var mu sync.Mutex
	var tried, reached, again int // guarded by mu
	languages.Run(t, 4, func(t *testing.T, seed uint64) {
		c.Again(seed)
		names := languages.Names()
		if n := int(seed/2) % len(names); seed%2 == 1 { // now all of them, now one
			names = names[n : n+1]
		}
		s := c.Policies(t, names...)
		l.enforce(s, seed)
		var all sync.WaitGroup
		for range 16 {
			q := draw(c)
			answers := l.can(q)
			netns := l.party(q.from).Netns
			for f, can := range answers {
				if known := q.knows(s, f); known != can {
					t.Errorf("%s → %s %s, %s: weft can says %v, the oracle %v", q.from, q.to, q.text(), f, can, known)
				}
				all.Go(func() {
					target := probe.Target{Addr: netset.First(q.dst, f), Protocol: q.proto, Port: q.port}
					var err error
					for n := range 4 { // a machine that is busy may answer late
						ctx, cancel := context.WithTimeout(t.Context(), time.Second)
						_, _, err = probe.Try(ctx, netns, target)
						cancel()
						if mu.Lock(); n > 0 {
							again++
						}
						mu.Unlock()
						if (err == nil) == can {
							break
						}
					}
					mu.Lock()
					defer mu.Unlock()
					if tried++; err == nil {
						reached++
					}
					if (err == nil) != can {
						t.Errorf("%s → %s %s, %s: weft can says %v, a socket says %v", q.from, q.to, q.text(), f, can, err)
					}
				})
			}
		}
		all.Wait()
		if t.Failed() {
			t.Log(s)
		}
	})
	t.Logf("%d connections tried, %d of them went well; %d had to be tried again", tried, reached, again)
}
