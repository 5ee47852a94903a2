package nft_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/internal/datapath/linux"
	"weft/internal/datapath/nft"
	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
	"weft/internal/testkit"
)

var update = flag.Bool("update", false, "write the goldens")

// empty is a driver in a namespace with nothing else.
func empty(tb testing.TB, plain bool) *node {
	tb.Helper()
	testkit.RequireRoot(tb)
	n := &node{TB: tb, host: testkit.New(tb), plain: plain}
	n.open()
	tb.Cleanup(func() { _ = n.d.Close() })
	return n
}

// TestGolden: what an operator reads.
func TestGolden(t *testing.T) {
	n := empty(t, false)
	rows := []plan.Row{
		masquerade("10.0.0.0/16", "10.1.0.0/16", "fd00::/32"), hostPort("tcp", "", 8080, "10.0.0.5:80"), hostPort("tcp", "", 8080, "[fd00::5]:80"),
		hostPort("udp", "192.0.2.1", 53, "10.0.0.5:5353"), hostPort("sctp", "", 9, "[fd00::5]:9"),
	}
	n.apply(rows...)
	n.golden("testdata/weft-nat.nft")
	n.apply(append(rows, &plan.Settings{Policed: true})...)
	n.golden("testdata/weft-nat-policed.nft")
	n.open() // and what is read back is what was written
	n.apply(append(rows, &plan.Settings{Policed: true})...)
	n.golden("testdata/weft-nat-policed.nft")
	n.apply(rows...)
	n.golden("testdata/weft-nat.nft")
	n.apply(&plan.Settings{Policed: true}) // without anything else
	if list := n.host.Run(t, "nft", "list", "chain", "inet", "weft-nat", "forward"); !strings.Contains(list, "jump refuse") {
		t.Errorf("policy alone: %s", list)
	}
}

// golden compares the table with a file.
func (n *node) golden(file string) {
	n.Helper()
	t := n.TB
	got := named(n.host.Run(t, "nft", "list", "table", "inet", "weft-nat"))
	// How a table's flags are written, and by whom it is owned, depends on the version of nft.
	var lines []string
	for line := range strings.Lines(got) {
		if !strings.Contains(line, "flags owner") && !strings.Contains(line, "progname") && !strings.Contains(line, "table inet") {
			lines = append(lines, line)
		}
	}
	got = "table inet weft-nat {\n" + strings.TrimLeft(strings.Join(lines, ""), "\n")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; rerun with -update and read the difference:\n%s", file, got)
	}
}

// TestTwoAgents: the second one is told, and takes over when the first is gone. Nothing is missing in between.
func TestTwoAgents(t *testing.T) {
	n := empty(t, false)
	n.needOwner()
	rows := []plan.Row{masquerade(), hostPort("tcp", "", 8080, "10.0.0.5:80")}
	n.apply(rows...)
	if f := n.d.Features(); len(f) != 1 || f[0].State != "active" {
		t.Errorf("features: %v", f)
	}
	var second *nft.Driver
	n.host.Do(t, func() {
		var err error
		if second, err = nft.New(slog.New(slog.DiscardHandler), nil); err != nil {
			t.Fatal(err)
		}
	})
	defer second.Close()
	res := second.Apply(t.Context(), view(rows), plan.Changes{Upsert: rows})
	for _, r := range rows {
		if err := res[r.Key()]; err == nil || !strings.Contains(err.Error(), "is a second agent running?") {
			t.Errorf("%s: %v", r.Key(), err)
		}
	}
	before := n.host.Run(t, "nft", "-a", "list", "table", "inet", "weft-nat")
	_ = n.d.Close()
	for k, err := range second.Apply(t.Context(), view(rows), plan.Changes{Upsert: rows}) {
		if err != nil {
			t.Errorf("%s: %v", k, err)
		}
	}
	after := n.host.Run(t, "nft", "-a", "list", "table", "inet", "weft-nat")
	strip := func(s string) string { _, s, _ = strings.Cut(s, "set pods-v4"); return s }
	if strip(after) != strip(before) || strip(after) == "" {
		t.Errorf("adoption rewrote the table:\n%s\nthen\n%s", before, after)
	}
	if out, err := n.host.Try(t, "nft", "delete", "table", "inet", "weft-nat"); err == nil {
		t.Errorf("an adopted table can be deleted by others: %s", out)
	}
}

// members reads an interval set as nft lists it.
func members(t *testing.T, n *node, set string) (out []string) {
	t.Helper()
	var doc struct {
		Nftables []struct {
			Set *struct{ Elem []any } `json:"set"`
		} `json:"nftables"`
	}
	if err := json.Unmarshal([]byte(n.host.Run(t, "nft", "-j", "list", "set", "inet", "weft-nat", set)), &doc); err != nil {
		t.Fatal(err)
	}
	for _, x := range doc.Nftables {
		if x.Set == nil {
			continue
		}
		for _, e := range x.Set.Elem {
			out = append(out, fmt.Sprint(e))
		}
	}
	return out
}

// TestIntervals: any history of prefix sets ends in what a table made from scratch has.
func TestIntervals(t *testing.T) {
	n, twin := empty(t, false), empty(t, true)
	r := rand.New(rand.NewPCG(1, 2))
	prefixes := func() (out []netip.Prefix) {
		for range r.IntN(40) {
			// Few bits differ, so that prefixes are often neighbours, or cover each other, or end at the last address.
			a := [4]byte{10 + 245*byte(r.IntN(2)), 255 * byte(r.IntN(2)), byte(r.IntN(4)) * 85, byte(r.IntN(4)) * 85}
			out = append(out, netip.PrefixFrom(netip.AddrFrom4(a), 6+r.IntN(27)).Masked())
			b := [16]byte{0: 0xfd + 2*byte(r.IntN(2)), 1: 255 * byte(r.IntN(2)), 15: byte(r.IntN(4)) * 85}
			out = append(out, netip.PrefixFrom(netip.AddrFrom16(b), 3+r.IntN(126)).Masked())
		}
		return out
	}
	for i := range 60 {
		m := &plan.Masquerade{By: plan.By{Key: model.ConfigKey()}, Sources: append(prefixes(), netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("3fff::/20")), Except: prefixes()}
		n.apply(m)
		twin.open()
		twin.apply()
		twin.apply(m)
		for _, set := range []string{"pods-v4", "pods-v6", "except-v4", "except-v6"} {
			got, want := members(t, n, set), members(t, twin, set)
			if !slices.Equal(got, want) {
				t.Fatalf("step %d: %s holds\n%v\nwant\n%v\nof %v", i, set, got, want, m)
			}
		}
		if i%10 == 9 {
			n.open() // and what is read back is what was written
			n.apply(m)
		}
	}
}

// TestLarge: sets that do not fit into one message, and one change of them.
func TestLarge(t *testing.T) {
	n := empty(t, false)
	m := masquerade()
	for i := range 20_000 {
		m.Except = append(m.Except, netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 8), byte(i), 0}), 25))
	}
	m.Except = netset.Sorted(m.Except)
	rows := []plan.Row{m}
	for i := range 3_000 {
		rows = append(rows, hostPort("udp", "", uint16(10_000+i), fmt.Sprintf("10.0.%d.%d:53", i>>8, i&255)))
	}
	n.apply(rows...)
	if got := len(members(t, n, "except-v4")); got != 20_000 {
		t.Errorf("%d prefixes are excepted, want 20000", got)
	}
	n.host.Run(t, "nft", "get", "element", "inet", "weft-nat", "hostports-v4", "{ udp . 12999 }")
	began := time.Now()
	m2 := *m
	m2.Except = m.Except[1:]
	rows[0] = &m2
	n.apply(rows...)
	t.Logf("one prefix of 20000 less: %s", time.Since(began))
	if got := len(members(t, n, "except-v4")); got != 19_999 {
		t.Errorf("%d prefixes are excepted, want 19999", got)
	}
}

// TestStaleFlows: a client that never changes its port reaches what a host port is now, and nobody else's flow is ended.
func TestStaleFlows(t *testing.T) { modes(t, testStaleFlows) }

func testStaleFlows(t *testing.T, n *node) {
	t.Helper()
	for i, p := range n.pods {
		name := fmt.Sprintf("pod%d", i)
		p.Do(t, func() {
			for _, at := range []string{":80", ":81"} {
				c, err := net.ListenPacket("udp", at)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				go func() {
					b := make([]byte, 64)
					for {
						_, from, err := c.ReadFrom(b)
						if err != nil {
							return
						}
						_, _ = c.WriteTo([]byte(name+at), from)
					}
				}()
			}
		})
	}
	both(func(pod, other, host, _ string) {
		dial := func(port string) func() string {
			var c net.Conn
			n.out.Do(t, func() {
				var err error
				if c, err = net.Dial("udp", host+port); err != nil {
					t.Fatal(err)
				}
			})
			t.Cleanup(func() { c.Close() })
			return func() string {
				_ = c.SetDeadline(time.Now().Add(200 * time.Millisecond))
				_, _ = c.Write([]byte("?"))
				b := make([]byte, 64)
				k, _ := c.Read(b)
				return string(b[:k])
			}
		}
		ask, askOther := dial(":8080"), dial(":8081")
		keep := hostPort("udp", "", 8081, other+":81")
		expect := func(when, got, want string) {
			t.Helper()
			if got != want {
				t.Errorf("%s %s: answer %q, want %q", host, when, got, want)
			}
		}
		n.apply(keep, masquerade())
		expect("before", ask(), "") // leaves an entry without translation
		expect("the other port", askOther(), "pod1:81")
		entry := func() string {
			family := map[bool]string{true: "ipv6", false: "ipv4"}[strings.Contains(host, ":")]
			out := n.host.Run(t, "conntrack", "-f", family, "-p", "udp", "--orig-port-dst", "8081", "-o", "id", "-L")
			_, id, _ := strings.Cut(out, " id=")
			id, _, _ = strings.Cut(id, "\n")
			return strings.TrimSpace(id)
		}
		before := entry()
		n.apply(keep, masquerade(), hostPort("udp", "", 8080, pod+":80"))
		expect("appeared", ask(), "pod0:80")
		n.apply(keep, masquerade(), hostPort("udp", "", 8080, other+":80"))
		expect("moved to another pod", ask(), "pod1:80")
		n.apply(keep, masquerade(), hostPort("udp", "", 8080, other+":81"))
		expect("moved to another port", ask(), "pod1:81")
		n.apply(keep, masquerade())
		expect("gone", ask(), "")
		expect("the other port", askOther(), "pod1:81")
		if after := entry(); after != before || before == "" {
			t.Errorf("%s: another port's flow was ended: entry %q, then %q", host, before, after)
		}
	})
	if err := linux.ForgetFlows([]plan.HostPort{{Protocol: "icmp"}}); err == nil {
		t.Error("icmp has no ports: no error")
	}
}
