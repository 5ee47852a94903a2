//go:build behaviour

package behaviour

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// island is a policy of the nodes themselves, and noDNS one of a pod: together they cut the API server and the DNS.
const island = `---
apiVersion: crd.antrea.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: island, annotations: {weft.io/policy-mode: confirm}}
spec:
  priority: 1
  appliedTo: [{nodeSelector: {}}]
  egress: [{action: Drop, to: [{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: "::/0"}}]}]
  ingress: [{action: Drop, from: [{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: "::/0"}}]}]
`

const noDNS = `---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: no-dns, namespace: default, annotations: {weft.io/policy-mode: confirm}}
spec: {podSelector: {matchLabels: {role: client}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {role: server}}}]}]}
`

// drop denies datagrams from the client to the server's port 9, in a mode.
func drop(mode string) string {
	return fmt.Sprintf(`---
apiVersion: crd.antrea.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: drop, annotations: {weft.io/policy-mode: %s}}
spec:
  priority: 5
  appliedTo: [{podSelector: {matchLabels: {role: client}}}]
  egress: [{action: Drop, to: [{podSelector: {matchLabels: {role: server}}}], ports: [{port: 9, protocol: UDP}]}]
`, mode)
}

// shown is a table of a node's agent, which may be starting.
func (l *lab) shown(node, name string) []map[string]string {
	l.Helper()
	var rows []map[string]string
	l.eventually(30*time.Second, "the agent of "+node+" answers", func() bool {
		out, err := l.try("node", node, "--", "weft", "show", name, "-o", "json")
		return err == nil && json.Unmarshal([]byte(out), &rows) == nil
	})
	return rows
}

// back tells why a node took a policy back; "" if it did not.
func (l *lab) back(node, policy string) string {
	l.Helper()
	for _, t := range l.shown(node, "trials") {
		if strings.HasSuffix(t["object"], policy) && t["state"] == "taken back" {
			return t["broke"]
		}
	}
	return ""
}

// hits is how many packets the rules of a policy have decided about, or would have.
func (l *lab) hits(node, policy string, staged bool) (n int) {
	l.Helper()
	for _, r := range l.shown(node, "policyrules") {
		if strings.Contains(r["rule"], policy) && strings.HasPrefix(r["note"], "staged") == staged {
			k, err := strconv.Atoi(r["packets"])
			if err != nil {
				l.Error(err)
			}
			n += k
		}
	}
	return n
}

// replay sends the same traffic each time: datagrams of new sockets.
func (l *lab) replay(from, to string, n int) {
	l.Helper()
	for _, a := range l.addrs(to) {
		l.run("exec", from, "--", "bash", "-c", fmt.Sprintf("for i in $(seq %d); do echo x >/dev/udp/%s/9; done", n, a))
	}
}

// TestRollback is behaviour 5: policies that cut what the nodes live on are taken back by each node alone, and it says which and why; other
// flows do not notice. In shadow a policy drops nothing, and counts what it drops later.
func TestRollback(t *testing.T) {
	config := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(config, []byte("policy: {confirmSeconds: 20}\nsource: {apiServer: 'http://192.0.2.1:80'}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l := up(t, "--nodes", "2", "--config", config)
	l.pods("a node1 role=client", "b node2 role=server", "c node1 role=other")
	l.apply(`---
apiVersion: v1
kind: Pod
metadata: {name: dns, namespace: default, labels: {k8s-app: kube-dns}}
spec: {nodeName: node2, containers: [{name: c, ports: [{containerPort: 53, protocol: UDP}]}]}
`)
	reaches := func(from, to string) bool {
		_, err := l.try("probe", from, to, "--timeout", "200ms")
		return err == nil
	}
	for _, w := range [][2]string{{"node1", "outside:80"}, {"node2", "outside:80"}, {"a", "dns:53/udp"}} {
		if !reaches(w[0], w[1]) {
			t.Fatalf("%s does not reach %s when all is open", w[0], w[1])
		}
	}
	servers := at(l.addrs("b"), "7")
	quiet := l.stream("c", 10, servers, func() { time.Sleep(time.Second) })
	var cut, healed time.Duration
	kept := l.stream("c", 10, servers, func() {
		began := time.Now()
		l.put("cut", island+noDNS)
		cut = l.eventually(5*time.Second, "node1 is cut off: the policies are in force", func() bool { return !reaches("node1", "outside:80") && !reaches("a", "dns:53/udp") })
		for _, w := range [][2]string{{"node1", "outside:80"}, {"node2", "outside:80"}, {"a", "dns:53/udp"}} {
			l.eventually(15*time.Second, w[0]+" reaches "+w[1]+" again", func() bool { return reaches(w[0], w[1]) })
		}
		healed = time.Since(began)
	})
	t.Logf("cut off after %s; all is back %.1f s after the change", cut.Round(time.Millisecond), healed.Seconds())
	if healed > 15*time.Second {
		t.Errorf("it took %s, promised are 15 s", healed)
	}
	check(t, "others", quiet, kept)
	api, dns := "API server 192.0.2.1:80", "DNS "+l.addrs("dns")[0]
	for _, w := range []struct {
		node, policy string
		why          []string
	}{
		{"node1", "island", []string{api, dns}},
		{"node2", "island", []string{api}}, // the DNS is its own pod
		{"node1", "no-dns", []string{"DNS of pod default/a"}},
	} {
		for _, name := range w.why {
			if why := l.back(w.node, w.policy); !strings.Contains(why, name) {
				t.Errorf("%s took %s back because of %q, not of %s", w.node, w.policy, why, name)
			}
		}
	}
	if out, err := l.try("node", "node1", "--", "weft", "doctor"); err == nil || !strings.Contains(out, "island is not in force") {
		t.Errorf("the doctor says:\n%s", out)
	}

	// The same objects are not tried again, by no agent.
	l.run("node", "node1", "agent", "restart")
	for range 10 {
		if !reaches("node1", "outside:80") {
			t.Error("cut off again after a restart of the agent")
		}
	}
	l.put("cut", "")
	l.eventually(5*time.Second, "nothing is left of the policies", func() bool { return len(l.shown("node1", "trials")) == 0 })

	// Shadow, then in earnest: the same traffic, the same numbers.
	const each = 25
	inB := l.watch("exec", "b", "9")
	l.put("drop", drop("shadow"))
	l.eventually(5*time.Second, "the policy is there", func() bool { return len(l.shown("node1", "policyrules")) == 1 })
	l.replay("a", "b", each)
	passed, would := inB.now(), l.hits("node1", "drop", true)
	if passed != 2*each {
		t.Errorf("in shadow %d of %d datagrams arrived", passed, 2*each)
	}
	l.put("drop", drop("confirm"))
	l.eventually(5*time.Second, "the policy is in force", func() bool {
		rules := l.shown("node1", "policyrules")
		return len(rules) == 1 && rules[0]["note"] == ""
	})
	l.replay("a", "b", each)
	dropped := l.hits("node1", "drop", false) - would // a rule keeps its counter
	if arrived := inB.now() - passed; arrived > 0 {
		t.Errorf("%d forbidden datagrams arrived", arrived)
	}
	if would != 2*each || dropped != would {
		t.Errorf("in shadow %d of %d would have been denied, in force %d were", would, 2*each, dropped)
	}
	l.eventually(30*time.Second, "it is kept", func() bool { return len(l.shown("node1", "trials")) == 0 })
	l.replay("a", "b", 1)
	if arrived := inB.now() - passed; arrived > 0 {
		t.Errorf("%d forbidden datagrams arrived after the trial", arrived)
	}
	t.Logf("shadow: %d arrived, %d would have been denied; in force: %d denied", passed, would, dropped)
}
