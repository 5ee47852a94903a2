//go:build behaviour

package behaviour

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// maxGap is the longest silence that a flow may see while agents come and go: no retransmission was needed twice.
const maxGap = time.Second

// flows are the ends of the streams of these tests: same node, other node, another node's host port, the outside.
func (l *lab) flows() []string {
	l.Helper()
	var to []string
	for _, p := range []string{"b", "c"} {
		for _, a := range l.addrs(p) {
			to = append(to, join(a, "7"))
		}
	}
	for _, a := range strings.Fields(l.node("node2", "sh", "-c", "ip -o addr show dev eth0 scope global | awk '{print $4}' | cut -d/ -f1")) {
		to = append(to, join(a, "8080"))
	}
	// The outside by the addresses of its interface: a datagram server there answers from these.
	return append(to, "172.30.255.2:7007", "[fd00:172:30:ff::2]:7007")
}

func (l *lab) outsideServer() {
	program, err := os.Open(filepath.Join(l.bin, "traffic"))
	if err != nil {
		l.Fatal(err)
	}
	defer program.Close()
	cmd := l.command("node", "outside", "--", "sh", "-c", "cat >/run/traffic && chmod +x /run/traffic && exec /run/traffic serve 7007")
	cmd.Stdin = program
	if err := cmd.Start(); err != nil {
		l.Fatal(err)
	}
	l.eventually(10*time.Second, "the outside serves", func() bool {
		_, err := l.try("probe", "node1", "outside:7007", "--timeout", "200ms")
		return err == nil
	})
	l.Cleanup(func() { _ = cmd.Process.Signal(os.Interrupt); _ = cmd.Process.Kill(); _ = cmd.Wait() })
}

// TestAgentDeath is the heart of behaviour 2: 200 flows do not notice that agents are killed, restarted, terminated
// and replaced by another version.
func TestAgentDeath(t *testing.T) {
	l := up(t, "--nodes", "2")
	l.pods("a node1", "b node1", "c node2 8080")
	l.outsideServer()
	to := l.flows()
	conns := 200/len(to) - 1
	monitor := l.command("node", "node1", "--", "nft", "monitor", "destroy")
	var destroyed strings.Builder
	monitor.Stdout, monitor.WaitDelay = &destroyed, time.Second // what it started holds the pipe
	if err := monitor.Start(); err != nil {
		t.Fatal(err)
	}
	quiet := l.stream("a", conns, to, func() { time.Sleep(5 * time.Second) })
	version := func(v string) { // as an upgrade does it: a new file under the old name
		tmp := filepath.Join(l.bin, ".new")
		if out, err := exec.Command("cp", filepath.Join(l.bin, "weft-"+v), tmp).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if err := os.Rename(tmp, filepath.Join(l.bin, "weft")); err != nil {
			t.Fatal(err)
		}
	}
	r := l.stream("a", conns, to, func() {
		for range 10 {
			for _, n := range []string{"node1", "node2"} {
				l.run("node", n, "agent", "kill")
			}
			time.Sleep(time.Duration(100+rand.IntN(500)) * time.Millisecond)
		}
	})
	_ = monitor.Process.Kill()
	_ = monitor.Wait()
	check(t, "20 kills", quiet, r)
	if s := destroyed.String(); strings.Contains(s, "weft") {
		t.Errorf("unchanged objects were deleted:\n%s", s)
	}
	version("N+1")
	u := l.stream("a", conns, to, func() {
		for _, v := range []string{"N+1", "N"} {
			if v == "N" {
				version("N")
			}
			for _, n := range []string{"node1", "node2"} {
				l.run("node", n, "agent", "restart")
				l.eventually(5*time.Second, "agent "+v+" on "+n, func() bool {
					out, _ := l.try("node", n, "--", "weft", "status")
					return strings.Contains(out, "version  "+v+"\n") || strings.Contains(strings.Join(strings.Fields(out), " "), "version "+v+" up")
				})
			}
		}
	})
	check(t, "N, N+1, N", quiet, u)
}

func check(t *testing.T, what string, quiet, r report) {
	t.Helper()
	t.Logf("%-10s %d flows, %d messages, %d lost, longest silence %s (%s in a quiet run)", what, r.Flows, r.Messages, r.Lost, r.Gap, quiet.Gap)
	if len(r.Failed) > 0 {
		t.Errorf("%s: connections ended: %v", what, r.Failed)
	}
	if r.Lost > 0 {
		t.Errorf("%s: datagrams lost: %v (in the quiet run: %v)", what, r.LostTo, quiet.LostTo)
	}
	// Two agents that start, and 200 flows, on two cores: what of a silence is the network's cannot be told here. The bench does.
	if r.Gap > maxGap {
		t.Errorf("%s: a flow was silent for %s, more than %s", what, r.Gap, maxGap)
	}
}
