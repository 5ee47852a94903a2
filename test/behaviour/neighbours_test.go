//go:build behaviour

package behaviour

import (
	"strings"
	"testing"
	"time"

	"weft/internal/testkit"
)

// TestNeighbours is behaviour 9: what others on the host do to us is put right within a second, and named.
// Streams between pods go on meanwhile.
func TestNeighbours(t *testing.T) {
	for _, backend := range []string{"vxlan", "direct"} {
		t.Run(backend, func(t *testing.T) { neighbours(t, backend) })
	}
}

func neighbours(t *testing.T, backend string) {
	l := up(t, "--nodes", "2", "--backend", backend)
	l.pods("a node1 8080", "b node1", "c node2")
	a := l.addrs("a")
	underlay := strings.Fields(l.node("node1", "ip", "-br", "-4", "addr", "show", "eth0"))[2]
	six := strings.Fields(l.node("node1", "ip", "-br", "-6", "addr", "show", "eth0", "scope", "global"))[2]
	link := strings.TrimSpace(l.node("node1", "sh", "-c", "ip -o route get "+a[0]+" | sed 's/.*dev \\([^ ]*\\).*/\\1/'"))
	if !strings.HasPrefix(link, "weft") {
		t.Fatalf("the link of pod a is %q", link)
	}
	if _, err := l.try("node", "node1", "--", "sh", "-c", "ip route | grep -q default"); err != nil {
		t.Fatal(err)
	}

	// Each damage, whether live flows between pods must survive it, and what doctor has to say.
	type damage struct {
		do, says string
		direct   bool // only in that backend
		vxlan    bool
		heal     string // what the operator does afterwards; it was not ours
	}
	keep := "ip -4 route show default | head -1 >/run/r4; ip -6 route show default | head -1 >/run/r6; ip -4 route show proto kernel >/run/k4; "
	restore := "while read r; do ip route replace $r; done </run/k4; while read r; do ip route replace $r; done </run/r4; while read r; do ip -6 route replace $r; done </run/r6"
	for _, x := range []damage{
		{do: "nft flush ruleset", says: ""}, // an owned table is passed over; on a kernel without, doctor names it
		{do: "ip rule flush", says: "rule"},
		{do: keep + "ip route flush table main", says: "route " + a[0], heal: restore},
		{do: "ip route del " + a[0], says: "route " + a[0]},
		{do: "ip -6 route del " + a[1] + " dev " + link, says: "route " + a[1]},
		{do: "ip link set weft-vxlan address 02:00:00:00:00:99", says: "weft-vxlan", vxlan: true},
		{do: "ip link del weft-vxlan", says: "weft-vxlan", vxlan: true},
		{do: "ip link set weft-vxlan down", says: "weft-vxlan", vxlan: true},
		{do: "ip link set " + link + " down", says: link},
		{do: "sysctl -qw net.ipv4.ip_forward=0", says: "ip_forward"},
		{do: "sysctl -qw net.ipv6.conf.all.forwarding=0", says: "forwarding"},
		{do: "ip neigh flush all nud permanent dev " + link, says: "neighbour"},
		{do: "ip neigh flush all", says: ""},
		{do: "sysctl -qw net.ipv4.conf.all.rp_filter=1", says: ""},
		// The kernel takes a link's IPv6 addresses and all of its routes with it; whoever did it brings them back.
		{do: keep + "ip link set eth0 down; ip link set eth0 up; ip -6 addr add " + six + " dev eth0 nodad", heal: restore},
		{do: keep + "ip addr flush dev eth0; ip addr add " + underlay + " dev eth0; ip -6 addr add " + six + " dev eth0 nodad", says: "", heal: restore},
	} {
		if x.vxlan && backend != "vxlan" || x.direct && backend != "direct" {
			continue
		}
		l.node("node1", "sh", "-c", x.do)
		took := l.eventually(testkit.Within(time.Second), "pods reach each other after "+x.do, func() bool {
			_, one := l.try("probe", "a", "b:7", "--timeout", "300ms")
			_, two := l.try("probe", "a", "c:7", "--timeout", "300ms")
			return one == nil && two == nil
		})
		if x.heal != "" {
			l.node("node1", "sh", "-c", x.heal)
		}
		host := l.eventually(testkit.Within(time.Second), "host, outside and host port after "+x.do, func() bool {
			_, one := l.try("probe", "node1", "a:7", "--timeout", "300ms")
			_, two := l.try("probe", "a", "outside/icmp", "--timeout", "300ms")
			_, three := l.try("probe", "outside", "node1:8080", "--timeout", "300ms")
			return one == nil && two == nil && three == nil
		})
		if x.says != "" {
			var out string
			l.eventually(testkit.Within(time.Second), "doctor names it after "+x.do, func() bool {
				out, _ = l.try("node", "node1", "--", "weft", "doctor")
				return strings.Contains(out, x.says)
			})
			if !strings.Contains(out, x.says) {
				l.missed = append(l.missed, "doctor says:\n"+out)
			}
		}
		testkit.Promised(t, "pods after "+x.do, took, time.Second)
		testkit.Promised(t, "host and outside after "+x.do, host, time.Second)
		t.Logf("pods %4d ms, host and outside %4d ms  %s", took.Milliseconds(), host.Milliseconds(), strings.TrimPrefix(x.do, keep))
	}

	// A foreign firewall is reported and left alone.
	l.node("node1", "nft", "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }")
	l.eventually(30*time.Second, "doctor names the foreign firewall", func() bool {
		out, _ := l.try("node", "node1", "--", "weft", "doctor")
		return strings.Contains(out, "table filter chain FORWARD has policy drop")
	})
	if out := l.node("node1", "nft", "list", "chain", "ip", "filter", "FORWARD"); !strings.Contains(out, "policy drop") {
		t.Errorf("the foreign chain was changed:\n%s", out)
	}
}
