//go:build e2e

package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

const burstSize = 250

// 250 pods at once on one node: all get addresses, none twice, all are reachable, and nothing is left of them.
func TestBurst(t *testing.T) {
	f := newFixture(t, shared, 6*time.Minute)
	probe := f.echoPods()[0]
	node := "n2"
	before := f.links(node)
	begin := time.Now()
	f.apply("burst.yaml", "@NODE@", node, "@COUNT@", fmt.Sprint(burstSize))
	f.kubectl("-n", f.ns, "rollout", "status", "deployment/burst", "--timeout=240s")
	ready := time.Since(begin)
	owner := map[netip.Addr]string{}
	var targets []string
	for _, p := range f.pods("app=burst") {
		if len(p.IPs) != len(f.Families) {
			t.Errorf("%s has addresses %v", p.Name, p.IPs)
		}
		for _, a := range p.IPs {
			if owner[a] != "" {
				t.Errorf("%s and %s both have %s", owner[a], p.Name, a)
			}
			owner[a] = p.Name
			targets = append(targets, a.String())
		}
	}
	if len(owner) != burstSize*len(f.Families) {
		t.Errorf("%d addresses for %d pods", len(owner), burstSize)
	}
	// One process per pod would measure the shell: several pings at once in one exec.
	script := "for a in " + strings.Join(targets, " ") + "; do (ping -c1 -W3 $a >/dev/null || echo $a) & " +
		"n=$((n+1)); [ $((n % 20)) -ne 0 ] || wait; done; wait"
	out, err := f.in(probe.Name, "sh", "-c", script)
	if err != nil || strings.TrimSpace(out) != "" {
		t.Errorf("from %s on %s these are not reached: %s %v", probe.Name, probe.Node, out, err)
	}
	deleted := time.Now()
	f.kubectl("-n", f.ns, "delete", "deployment", "burst")
	f.kubectl("-n", f.ns, "wait", "--for=delete", "pod", "-l", "app=burst", "--timeout=180s")
	f.eventually(20*time.Second, func() error {
		if n := f.links(node); n != before {
			return fmt.Errorf("%s has %d links, and had %d before", node, n, before)
		}
		return nil
	})
	t.Logf("%d pods: Ready after %s, deleted after %s", burstSize, ready.Round(100*time.Millisecond), time.Since(deleted).Round(100*time.Millisecond))
}

// links counts a node's network interfaces.
func (f *fixture) links(node string) int {
	f.Helper()
	out, err := f.Exec(f.ctx, node, "ls", "/sys/class/net")
	if err != nil {
		f.Fatal(err)
	}
	return len(strings.Fields(out))
}
