//go:build behaviour

package behaviour

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"weft/internal/testkit"
)

// TestPathMTU is behaviour 14, the unencrypted part: underlay legs of 9000, 1500 and 1400 bytes. For every pair of pods
// a packet of the path's size passes unfragmented, and one more byte is a local error, never silence. A leg
// that narrows is known in running pods within 5 s.
func TestPathMTU(t *testing.T) {
	for _, backend := range []string{"vxlan", "direct"} {
		t.Run(backend, func(t *testing.T) {
			l := up(t, "--nodes", "3", "--mtu", "9000", "--backend", backend)
			for node, mtu := range map[string]string{"node2": "1500", "node3": "1400"} {
				l.node("wire", "ip", "link", "set", node, "mtu", mtu)
				l.node(node, "ip", "link", "set", "eth0", "mtu", mtu)
			}
			l.pods("a node1", "b node2", "c node3")
			over := map[string]int{"vxlan": 50, "direct": 0}[backend]
			legs := map[string]int{"a": 9000, "b": 1500, "c": 1400}
			for _, from := range []string{"a", "b", "c"} {
				for _, to := range []string{"a", "b", "c"} {
					if from != to {
						l.path(from, to, 5*time.Second, min(legs[from], legs[to])-over)
					}
				}
			}
			sent := l.fragments()
			r := l.stream("a", 5, []string{join(l.addrs("b")[0], "7"), join(l.addrs("c")[1], "7")}, func() { time.Sleep(3 * time.Second) })
			if len(r.Failed) > 0 {
				t.Error(r.Failed)
			}
			l.bulk("a", "c")
			if now := l.fragments(); now != sent {
				t.Errorf("packets were fragmented: %d before, %d after", sent, now)
			}
			// In the middle, where no link event tells anybody; then at the node's own end.
			l.node("wire", "ip", "link", "set", "node2", "mtu", "1340")
			// IPv6 needs 1280 bytes (RFC 8200), so what is left inside VXLAN must not be less.
			// A veth and a bridge let 4 bytes more than their MTU pass, for a VLAN tag: what is measured is what passes.
			took := l.path("a", "b", 5*time.Second, 1340-over, 1344-over)
			back := l.path("b", "a", 5*time.Second, 1340-over, 1344-over)
			l.node("node3", "ip", "link", "set", "eth0", "mtu", "1350")
			own := l.path("a", "c", 5*time.Second, 1350-over)
			t.Logf("narrowed in the middle: known after %s and %s; at the node: %s", took, back, own)
		})
	}
}

// path waits until, for one of the sizes, a pair's packets pass and one byte more is refused locally, in both families.
func (l *lab) path(from, to string, limit time.Duration, mtus ...int) time.Duration {
	l.Helper()
	as := l.addrs(to)
	passes := func(mtu int) bool {
		for i, a := range as {
			header := []int{28, 48}[i] // IP and ICMP
			ok, _ := l.try("exec", from, "--", "ping", "-c1", "-W0.3", "-M", "do", "-s", strconv.Itoa(mtu-header), a)
			if !strings.Contains(ok, " 0% packet loss") {
				return false
			}
			out, err := l.try("exec", from, "--", "sh", "-c", fmt.Sprintf("ping -c1 -W0.3 -M do -s %d %s 2>&1", mtu-header+1, a))
			if err == nil || !strings.Contains(out, "local error") && !strings.Contains(out, "Message too long") {
				return false
			}
		}
		return true
	}
	what := fmt.Sprintf("path MTU %v from %s to %s", mtus, from, to)
	took := l.eventually(testkit.Within(limit), what, func() bool { return slices.ContainsFunc(mtus, passes) })
	testkit.Promised(l.T, what, took, limit)
	return took
}

// fragments is how many packets any host of the lab has fragmented.
func (l *lab) fragments() int {
	n := 0
	for _, h := range []string{"node1", "node2", "node3"} {
		for _, s := range strings.Fields(l.node(h, "sh", "-c", "nstat -asz IpFragCreates Ip6FragCreates | awk '/Frag/{print $2}'")) {
			v, _ := strconv.Atoi(s)
			n += v
		}
	}
	return n
}

// bulk sends 100 MB over TCP.
func (l *lab) bulk(from, to string) {
	l.Helper()
	for _, a := range l.addrs(to) {
		l.run("exec", from, "--", "bash", "-c", fmt.Sprintf("head -c 100000000 /dev/zero >/dev/tcp/%s/7 & sleep 2; kill %%1 2>/dev/null; true", a))
	}
}
