package linux_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
	"weft/internal/testkit"
)

func overlay() *plan.Overlay {
	return &plan.Overlay{Name: "weft-vxlan", MAC: model.GatewayMAC, MTU: 1450, Port: 18472}
}

func TestOverlay(t *testing.T) {
	n := newNode(t)
	testkit.NoLeaks(t, []*testkit.Netns{n.Netns})
	n.apply(overlay())
	has(t, n.IP(t, "-d link show weft-vxlan"), "vxlan external", "dstport 18472", "nolearning", "udp6zerocsumrx", "NOARP", ",UP,", "mtu 1450",
		"addrgenmode none", "weft:overlay", model.GatewayMAC.String())
	hasNot(t, n.IP(t, "addr show dev weft-vxlan"), "fe80")
	index := n.IP(t, "-o link show weft-vxlan")
	changed := overlay()
	changed.MTU, changed.MAC = 1400, model.MAC{2, 1, 1, 1, 1, 1}
	n.apply(changed)
	if got := n.IP(t, "-o link show weft-vxlan"); strings.Fields(got)[0] != strings.Fields(index)[0] {
		t.Errorf("the device was made anew for its MTU: %s then %s", index, got)
	}
	has(t, n.IP(t, "link show weft-vxlan"), "mtu 1400", "02:01:01:01:01:01")
	changed.Port = 18473
	n.apply(changed)
	has(t, n.IP(t, "-d link show weft-vxlan"), "dstport 18473", "weft:overlay")
	n.remove(changed)
	hasNot(t, n.IP(t, "link"), "weft-vxlan")
	n.remove(changed)

	n.IP(t, "link add flannel.1 type vxlan id 1 dstport 18472 local 192.0.2.1 nolearning")
	n.IP(t, "link set flannel.1 up")
	err := n.try(overlay())
	if err == nil {
		t.Error("the port is another's: no error")
	} else {
		has(t, err.Error(), "UDP port 18472 belongs to VXLAN device flannel.1", "backend.port")
	}
	hasNot(t, n.IP(t, "link"), "weft-vxlan")
	n.IP(t, "link del flannel.1")
	n.IP(t, "link add weft-vxlan type bridge")
	if err := n.try(overlay()); err == nil || !strings.Contains(err.Error(), "foreign interface") {
		t.Errorf("foreign weft-vxlan: %v", err)
	}
	n.remove(overlay())
	has(t, n.IP(t, "link"), "weft-vxlan")
	n.IP(t, "link del weft-vxlan")
}

func TestRoutes(t *testing.T) {
	n, peer := newNode(t), testkit.New(t)
	testkit.Veth(t, n.Netns, "eth0", []string{"198.51.100.1/24", "fd98::1/64"}, peer, "eth0", nil)
	prefix := netip.MustParsePrefix
	via := addrs("203.0.113.9", "fd97::9") // in no subnet of ours: onlink
	rows := []plan.Row{
		&plan.Route{Dst: prefix("10.1.0.0/24"), Dev: "eth0", Via: via[0], Src: addrs("192.0.2.1")[0], MTU: 1400},
		&plan.Route{Dst: prefix("fd01::/64"), Dev: "eth0", Via: via[1], Src: addrs("fd99::1")[0], MTU: 1400},
		&plan.Route{Dst: prefix("10.2.0.0/24"), Dev: "eth0", Via: via[1]},
		&plan.Route{Dst: prefix("10.1.0.0/32"), Dev: "eth0"}, // the first address of another
	}
	n.apply(rows...)
	has(t, n.IP(t, "route"), "10.1.0.0/24 via 203.0.113.9 dev eth0 proto 119 src 192.0.2.1 onlink mtu 1400", "10.2.0.0/24 via inet6 fd97::9 dev eth0 proto 119 onlink",
		"10.1.0.0 dev eth0 proto 119 scope link")
	has(t, n.IP(t, "-6 route"), "fd01::/64 via fd97::9 dev eth0 proto 119 src fd99::1 metric 1024 onlink mtu 1400")
	// Changed in place.
	n.apply(&plan.Route{Dst: prefix("10.1.0.0/24"), Dev: "eth0", Via: via[0], MTU: 1300}, &plan.Route{Dst: prefix("fd01::/64"), Dev: "eth0", Via: via[1], MTU: 1300})
	has(t, n.IP(t, "route"), "10.1.0.0/24 via 203.0.113.9 dev eth0 proto 119 onlink mtu 1300")
	has(t, n.IP(t, "-6 route"), "fd01::/64 via fd97::9 dev eth0 proto 119 metric 1024 onlink mtu 1300")
	hasNot(t, n.IP(t, "route")+n.IP(t, "-6 route"), "mtu 1400")

	// Another's route is not replaced, nor deleted.
	n.IP(t, "route add 10.3.0.0/24 via 198.51.100.7")
	n.IP(t, "-6 route add fd03::/64 via fd98::7")
	for i, dst := range []string{"10.3.0.0/24", "fd03::/64"} {
		row := &plan.Route{Dst: prefix(dst), Dev: "eth0", Via: via[i]}
		if err := n.try(row); err == nil || !strings.Contains(err.Error(), "foreign route is in the way (protocol 3") {
			t.Errorf("%s: %v", dst, err)
		}
		n.remove(row)
		delete(n.want, row.Key())
	}
	has(t, n.IP(t, "route")+n.IP(t, "-6 route"), "10.3.0.0/24 via 198.51.100.7", "fd03::/64 via fd98::7")

	for dev, row := range map[string]plan.Row{
		"there is no interface nix":  &plan.Route{Dst: prefix("10.4.0.0/24"), Dev: "nix"},
		"there is no interface nix2": &plan.Neighbour{Dev: "nix2", Addr: via[0], MAC: model.GatewayMAC},
		"invalid argument":           &plan.Route{Dst: prefix("10.4.0.0/24"), Dev: "eth0", Src: addrs("10.4.4.4")[0]},
	} {
		if err := n.try(row); err == nil || !strings.Contains(err.Error(), dev) {
			t.Errorf("%s: %v", row, err)
		}
		n.remove(row)
	}
	n.remove(rows...)
	hasNot(t, n.IP(t, "route")+n.IP(t, "-6 route"), "119")
}

func TestRules(t *testing.T) {
	n := newNode(t)
	for _, f := range netset.Families() {
		ip := map[netset.Family]string{netset.V4: "-4 ", netset.V6: "-6 "}[f]
		row := &plan.Rule{Family: f.String(), Priority: 32766, Table: 254}
		n.apply(row)
		hasNot(t, n.IP(t, ip+"rule"), "119") // the kernel's own is enough
		n.remove(row)
		has(t, n.IP(t, ip+"rule"), "lookup main") // and not ours to delete
		n.IP(t, ip+"rule del pref 32766")
		n.IP(t, ip+"rule add pref 32766 from all fwmark 7 lookup main") // no substitute
		n.IP(t, ip+"rule add pref 32766 from all lookup main suppress_prefixlength 0")
		n.apply(row)
		has(t, n.IP(t, ip+"rule"), "32766:	from all lookup main proto 119")
		n.apply(row)
		n.remove(row)
		hasNot(t, n.IP(t, ip+"rule"), "119")
		has(t, n.IP(t, ip+"rule"), "fwmark 0x7")
	}
	if err := n.try(&plan.Rule{Family: "IPX", Priority: 1, Table: 1}); err == nil || !strings.Contains(err.Error(), `"IPX" is no address family`) {
		t.Error(err)
	}
}

func TestSysctl(t *testing.T) {
	n := &node{Netns: testkit.New(t), t: t, want: view{}}
	n.restart()
	t.Cleanup(func() { _ = n.driver.Close() })
	n.IP(t, "link add br0 type bridge")
	n.IP(t, "link add br1 type bridge")
	n.Sysctl(t, "net/ipv6/conf/br1/accept_ra", "0")
	n.apply(&plan.Sysctl{Path: "net/ipv6/conf/all/forwarding", Value: "1"})
	for path, want := range map[string]string{"all/forwarding": "1", "br0/accept_ra": "2", "br1/accept_ra": "0", "default/accept_ra": "1"} {
		if got := n.ReadSysctl(t, "net/ipv6/conf/"+path); got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
	// Forwarding is on already: what accept_ra is now was chosen by somebody.
	n.Sysctl(t, "net/ipv6/conf/br0/accept_ra", "1")
	n.apply(&plan.Sysctl{Path: "net/ipv6/conf/all/forwarding", Value: "1"})
	if got := n.ReadSysctl(t, "net/ipv6/conf/br0/accept_ra"); got != "1" {
		t.Errorf("accept_ra was changed to %s", got)
	}
	for _, bad := range []*plan.Sysctl{{Path: "net/ipv4/no_such_thing", Value: "1"}, {Path: "net/ipv4/ip_forward", Value: "x"}} {
		if err := n.try(bad); err == nil || !strings.Contains(err.Error(), bad.Path) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestSweep(t *testing.T) {
	n, a, b := newNode(t), testkit.New(t), testkit.New(t)
	foreign := func() string {
		return n.IP(t, "link show br0") + n.IP(t, "route show 10.99.0.0/16") + n.IP(t, "-6 route show fd77::/64") + n.IP(t, "rule show pref 77") + n.IP(t, "neigh show dev br0")
	}
	for _, line := range []string{
		"link add br0 type bridge", "link set br0 up", "route add 10.99.0.0/16 dev br0", "-6 route add fd77::/64 dev br0", "rule add pref 77 from all lookup 77",
		"neigh add 10.99.0.1 lladdr 02:00:00:00:00:01 dev br0 nud permanent", "neigh add 10.99.0.2 lladdr 02:00:00:00:00:01 dev lo nud permanent",
	} {
		n.IP(t, line)
	}
	before := foreign()
	keep, gone := podLink(a, 1), podLink(b, 2)
	n.apply(podRows(keep)...)
	n.apply(podRows(gone)...)
	o := overlay()
	rule := &plan.Rule{Family: "IPv4", Priority: 100, Table: 254}
	n.apply(o, rule, &plan.Route{Dst: netip.MustParsePrefix("10.1.0.0/24"), Dev: "weft-vxlan"}, &plan.Route{Dst: netip.MustParsePrefix("fd01::/64"), Dev: "weft-vxlan"})
	n.IP(t, "neigh add 10.9.0.77 lladdr 02:00:00:00:00:01 dev weftb nud permanent")
	// What an agent leaves that dies between a link's creation and its alias.
	n.IP(t, "link add weftz address "+model.GatewayMAC.String()+" group 119 type veth peer name weftzz")

	// The next agent knows nothing, and wants less.
	n.restart()
	n.want = view{}
	n.apply(podRows(keep)...)
	if err := n.driver.Sweep(context.Background(), n.want); err != nil {
		t.Fatal(err)
	}
	hasNot(t, n.IP(t, "link"), "weftc", "weft-vxlan", "weftz")
	hasNot(t, n.IP(t, "route")+n.IP(t, "-6 route"), "10.9.0.2", "fd09::2", "10.1.0.0/24", "fd01::/64")
	hasNot(t, n.IP(t, "rule"), "119")
	hasNot(t, n.IP(t, "neigh"), "10.9.0.77")
	has(t, n.IP(t, "route")+n.IP(t, "-6 route"), "10.9.0.1 dev weftb", "fd09::1 dev weftb")
	has(t, n.IP(t, "neigh"), "10.9.0.1 dev weftb lladdr 02:00:00:00:00:01 PERMANENT", "fd09::1 dev weftb lladdr")
	if after := foreign(); after != before {
		t.Errorf("what is another's:\n%s\nwas\n%s", after, before)
	}
	reach(t, n.Netns, a, keep.Addrs[0])
	if heard := quiet(t, []*testkit.Netns{n.Netns, a}, func() {
		if err := n.driver.Sweep(context.Background(), n.want); err != nil {
			t.Error(err)
		}
	}); heard != "" {
		t.Errorf("a second sweep changed something:\n%s", heard)
	}
	n.want = view{}
	if err := n.driver.Sweep(context.Background(), n.want); err != nil {
		t.Fatal(err)
	}
	hasNot(t, n.IP(t, "link")+n.IP(t, "route")+n.IP(t, "-6 route"), "weft")
}

func TestWatchDevices(t *testing.T) {
	n, pod := newNode(t), testkit.New(t)
	ctx, cancel := context.WithCancel(context.Background())
	got := make(chan []model.Device, 100)
	ended := make(chan error)
	go func() { ended <- n.driver.WatchDevices(ctx, func(ds []model.Device) { got <- ds }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	// await returns once a list satisfies ok; no list may have a link of ours.
	await := func(what string, ok func([]model.Device) bool) {
		t.Helper()
		for {
			select {
			case ds := <-got:
				if slices.ContainsFunc(ds, func(d model.Device) bool { return strings.HasPrefix(d.Name, "weft") }) {
					t.Errorf("a link of ours is listed: %v", ds)
				}
				if ok(ds) {
					return
				}
			case <-time.After(2 * time.Second):
				t.Fatalf("%s was not told", what)
			}
		}
	}
	eth := func(ds []model.Device) model.Device {
		if i := slices.IndexFunc(ds, func(d model.Device) bool { return d.Name == "eth0" }); i >= 0 {
			return ds[i]
		}
		return model.Device{}
	}
	await("the loopback", func(ds []model.Device) bool {
		return len(ds) == 1 && ds[0].Name == "lo" && ds[0].Up && slices.Contains(ds[0].Addrs, netip.MustParsePrefix("192.0.2.1/32"))
	})
	n.apply(podRows(podLink(pod, 1))...)
	n.apply(overlay())
	n.IP(t, "link add eth0 address 02:00:00:00:00:55 mtu 1400 type bridge")
	await("a new interface", func(ds []model.Device) bool {
		d := eth(ds)
		return d.Kind == "bridge" && d.MTU == 1400 && d.MAC == model.MAC{2, 0, 0, 0, 0, 0x55} && d.Index > 0 && !d.Up
	})
	n.IP(t, "addr add 198.51.100.7/24 dev eth0")
	n.IP(t, "addr add fd98::7/64 dev eth0 nodad")
	n.IP(t, "link set eth0 up mtu 1300")
	await("addresses and MTU", func(ds []model.Device) bool {
		d := eth(ds)
		return d.Up && d.MTU == 1300 && slices.Contains(d.Addrs, netip.MustParsePrefix("198.51.100.7/24")) && slices.Contains(d.Addrs, netip.MustParsePrefix("fd98::7/64"))
	})
	n.IP(t, "addr del 198.51.100.7/24 dev eth0")
	await("an address that goes", func(ds []model.Device) bool {
		return !slices.Contains(eth(ds).Addrs, netip.MustParsePrefix("198.51.100.7/24"))
	})
	n.IP(t, "link set eth0 down")
	n.IP(t, "link set eth0 name eth9")
	await("a new name", func(ds []model.Device) bool {
		return eth(ds).Name == "" && slices.ContainsFunc(ds, func(d model.Device) bool { return d.Name == "eth9" })
	})
	n.IP(t, "link del eth9")
	await("an interface that goes", func(ds []model.Device) bool { return len(ds) == 1 })
}

func TestDoctor(t *testing.T) {
	n := newNode(t)
	n.IP(t, "link add eth0 type bridge")
	n.IP(t, "link set eth0 up")
	n.Sysctl(t, "net/ipv4/conf/eth0/rp_filter", "1")
	n.Sysctl(t, "net/ipv4/conf/eth0/forwarding", "0")
	has(t, strings.Join(n.driver.Doctor(context.Background()), "\n"), "interface eth0: rp_filter is strict (all 0, own 1)", "interface eth0: forwarding is off")
	n.Sysctl(t, "net/ipv4/conf/all/rp_filter", "2")
	n.Sysctl(t, "net/ipv4/conf/eth0/forwarding", "1")
	hasNot(t, strings.Join(n.driver.Doctor(context.Background()), "\n"), "eth0")
}
