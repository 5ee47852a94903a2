package linux_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
	"weft/internal/testkit"
)

// repairer applies again what Watch reports, as the reconcile loop does.
type repairer struct {
	n    *node
	todo chan plan.Key
	mu   sync.Mutex
	said []string
}

func (n *node) repair(t *testing.T) *repairer {
	t.Helper()
	r := &repairer{n: n, todo: make(chan plan.Key, 1000)}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		err := n.driver.Watch(ctx, func(k plan.Key, what string) {
			r.mu.Lock()
			r.said = append(r.said, what)
			r.mu.Unlock()
			r.todo <- k
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Watch: %v", err)
		}
	})
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case k := <-r.todo:
				want := n.change(func(view) {})
				if row := want.Get(k); row != nil {
					n.driver.Apply(ctx, want, plan.Changes{Upsert: []plan.Row{row}})
				}
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return r
}

// words returns what was reported, and forgets it.
func (r *repairer) words() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := strings.Join(r.said, "\n")
	r.said = nil
	return s
}

// within waits until ok holds, at most a second.
func within(t *testing.T, what string, ok func() error) {
	t.Helper()
	began := time.Now()
	for {
		err := ok()
		if err == nil {
			t.Logf("%s: right after %s", what, time.Since(began).Round(time.Millisecond))
			return
		}
		if time.Since(began) > time.Second {
			t.Errorf("%s: not within 1 s: %v", what, err)
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestWatchRepairs(t *testing.T) {
	n, pod, peer := newNode(t), testkit.New(t), testkit.New(t)
	testkit.Veth(t, n.Netns, "eth0", []string{"198.51.100.1/24", "fd98::1/64"}, peer, "eth0", []string{"198.51.100.2/24", "fd98::2/64"})
	l := podLink(pod, 1)
	l.Ingress = model.Rate{Bits: 100e6}
	overlay := &plan.Overlay{Name: "weft-vxlan", MAC: model.GatewayMAC, MTU: 1450, Port: 18472}
	n.apply(overlay)
	n.apply(podRows(l)...)
	for i, a := range addrs("198.51.100.2", "fd98::2") {
		n.apply(
			&plan.Route{Dst: netset.Host(addrs("10.8.0.1", "fd08::1")[i]), Dev: "weft-vxlan", Src: addrs("198.51.100.1", "fd98::1")[i], MTU: 1400},
			&plan.Route{Dst: netset.Host(addrs("10.8.0.2", "fd08::2")[i]), Dev: "eth0", Via: a},
			&plan.Rule{Family: netset.Families()[i].String(), Priority: 32766, Table: 254},
			&plan.Sysctl{Path: "net/ipv4/conf/all/rp_filter", Value: "0"},
		)
	}
	if err := n.try(n.all()...); err != nil { // nothing is to be done
		t.Fatal(err)
	}
	want := n.state(t)
	r := n.repair(t)
	same := func() error {
		if got := n.state(t); got != want {
			return fmt.Errorf("got\n%s\nwant\n%s", got, want)
		}
		return nil
	}
	for _, c := range []struct {
		disturb string
		says    string
	}{
		{"ip route flush table main", "route 10.9.0.1/32 dev weftb was deleted"},
		{"ip -6 route del fd09::1/128 dev weftb", "route fd09::1/128 dev weftb was deleted"},
		{"ip route replace 10.9.0.1/32 dev lo", "route 10.9.0.1/32 dev weftb was replaced by another (protocol 3)"},
		{"ip rule flush", "rule IPv4 32766: from all lookup 254 was deleted"},
		{"ip -6 rule flush", "rule IPv6 32766: from all lookup 254 was deleted"},
		{"ip link set weft-vxlan address 02:00:00:00:00:99", "MAC of link weft-vxlan was changed to 02:00:00:00:00:99"},
		{"ip link set weft-vxlan mtu 1300", "MTU of link weft-vxlan was changed to 1300"},
		{"ip link del weft-vxlan", "link weft-vxlan was deleted"},
		{"ip link set weft-vxlan down", "link weft-vxlan was set down"},
		{"ip link set weftb address 02:00:00:00:00:98", "MAC of link weftb was changed to 02:00:00:00:00:98"},
		{"ip link set weftb down", "link weftb was set down"},
		{"ip link del weftb", "link weftb was deleted"},
		{"tc qdisc del dev weftb root", "rate limit of link weftb was changed"},
		{"ip neigh del 10.9.0.1 dev weftb", "neighbour 10.9.0.1 dev weftb was deleted"},
		{"ip neigh replace fd09::1 lladdr 02:00:00:00:00:97 dev weftb nud permanent", "neighbour fd09::1 dev weftb was changed to 02:00:00:00:00:97"},
		{"sysctl -q net.ipv4.ip_forward=0", "sysctl net/ipv4/ip_forward was changed to 0"},
		{"sysctl -q net.ipv6.conf.all.forwarding=0", "sysctl net/ipv6/conf/all/forwarding was changed to 0"},
		{"sysctl -q net.ipv4.conf.all.rp_filter=1", "sysctl net/ipv4/conf/all/rp_filter was changed to 1"},
		{"ip addr del 198.51.100.1/24 dev eth0; ip addr add 198.51.100.1/24 dev eth0", "route 10.8.0.1/32 dev weft-vxlan was deleted"},
		{"ip link set eth0 down; ip link set eth0 up; ip addr replace fd98::1/64 dev eth0 nodad", "dev eth0 was deleted"},
	} {
		r.words()
		n.Run(t, "sh", "-c", c.disturb)
		within(t, c.disturb, same)
		has(t, r.words(), c.says)
		for i, a := range l.Addrs {
			reach(t, n.Netns, pod, a)
			_ = i
		}
	}
	// Our own changes are nobody else's.
	r.words()
	l2 := *l
	l2.MTU = 1400
	n.apply(&l2)
	o2 := *overlay
	o2.Port = 18473
	n.apply(&o2)
	n.apply(podRows(&l2)...)
	n.IP(t, "link add probe type veth")
	within(t, "own changes", func() error {
		if strings.Contains(n.state(t), "10.8.0.1 dev weft-vxlan") {
			return nil
		}
		return errors.New("the route over the overlay is not back")
	})
	for line := range strings.Lines(r.words()) {
		if !strings.Contains(line, "weft-vxlan") { // what hung on the overlay went with it
			t.Errorf("an own change was reported: %s", line)
		}
	}
}

// TestWatchLostEvents: when more happens than the kernel keeps for us, everything is looked at again.
func TestWatchLostEvents(t *testing.T) {
	n, pod := newNode(t), testkit.New(t)
	l := podLink(pod, 1)
	n.apply(podRows(l)...)
	ctx, cancel := context.WithCancel(context.Background())
	told := make(chan string)
	ended := make(chan error)
	go func() {
		ended <- n.driver.Watch(ctx, func(_ plan.Key, what string) {
			select {
			case told <- what: // Watch stands still until somebody listens
			case <-ctx.Done():
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	await := func(want string) {
		t.Helper()
		for {
			select {
			case what := <-told:
				if strings.Contains(what, want) {
					return
				}
			case <-time.After(5 * time.Second):
				t.Fatalf("%q was not told", want)
			}
		}
	}
	// It listens, and then it does not: the first report is held up until the storm is over.
	within(t, "the watch listens", func() error {
		n.IP(t, "route replace 10.9.0.1/32 dev lo")
		n.IP(t, "route replace 10.9.0.1/32 dev weftb proto 119 scope link")
		n.IP(t, "route del 10.9.0.1/32")
		select {
		case <-told:
			return nil
		case <-time.After(50 * time.Millisecond):
			return errors.New("nothing was told")
		}
	})
	n.apply(podRows(l)...)
	n.IP(t, "neigh del 10.9.0.1 dev weftb")
	var storm strings.Builder
	for i := range 30_000 {
		fmt.Fprintf(&storm, "route add 172.%d.%d.%d/32 dev lo\n", 16+i>>16, i>>8&255, i&255)
	}
	file := t.TempDir() + "/storm"
	if err := os.WriteFile(file, []byte(storm.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	n.Run(t, "ip", "-batch", file)
	n.IP(t, "-6 route del fd09::1/128 dev weftb") // nobody hears of it
	await("neighbour 10.9.0.1 dev weftb was deleted")
	await("route fd09::1/128 dev weftb was deleted")
}

// state is what the kernel holds of ours, as ip prints it, without what may differ.
func (n *node) state(tb testing.TB) string {
	tb.Helper()
	var out strings.Builder
	for _, line := range []string{"-4 route show proto 119", "-6 route show proto 119", "-4 neigh show nud permanent", "-6 neigh show nud permanent"} {
		out.WriteString(n.IP(tb, line))
	}
	for _, line := range []string{"-4 rule", "-6 rule"} {
		for rule := range strings.Lines(n.IP(tb, line)) {
			if strings.Contains(rule, "lookup main") {
				out.WriteString(strings.ReplaceAll(rule, " proto 119", ""))
			}
		}
	}
	for _, dev := range []string{"weftb", "weft-vxlan"} {
		got, err := n.Try(tb, "ip", "-o", "link", "show", dev)
		if err != nil {
			got = dev + " is gone"
		}
		_, got, _ = strings.Cut(got, ": ")
		got = strings.ReplaceAll(strings.ReplaceAll(got, "@if2", ""), "@if3", "")
		got, _, _ = strings.Cut(strings.ReplaceAll(got, "\\", "\n"), "link-netns")
		out.WriteString(got + "\n")
	}
	for _, s := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/conf/all/rp_filter"} {
		out.WriteString(s + "=" + n.ReadSysctl(tb, s) + "\n")
	}
	return out.String()
}
