package ebpf

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
)

// emptyProgram is what every cost is compared with.
func emptyProgram(tb testing.TB) *ebpf.Program {
	tb.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = p.Close() })
	return p
}

// path is a way of a packet through a program.
type path struct {
	name   string
	prog   *ebpf.Program
	packet []byte
	// A program that forwards changes its packet: it can be run on it again until the TTL is used up, unless it
	// pushes or pops a header; then it runs once for each packet.
	again int
	want  uint32
}

// paths sets a node up so that the loopback device, which a program without a context runs on, is a pod's, and
// all pods have the gateway's MAC, so that a forwarded packet may be forwarded again.
func paths(tb testing.TB, outer netset.Family) (*node, []path) {
	tb.Helper()
	n, peer := lone(tb, outer, true)
	d := n.driver
	gw := model.GatewayMAC
	src, dst := n.pods[0], n.pods[1]
	for _, p := range n.pods {
		for _, a := range p.addrs {
			if err := d.putAddr(a, weftWeftLocal{Ifindex: 1, Mac: macOf(gw)}); err != nil {
				tb.Fatal(err)
			}
		}
	}
	elsewhere := []netip.Prefix{netip.MustParsePrefix("10.244.99.0/24"), netip.MustParsePrefix("fd10:244:0:99::/64")}
	for i, c := range elsewhere {
		if err := d.putRemote(&plan.Remote{Prefix: c, Via: peer.addrs[i], MTU: 1500}); err != nil {
			tb.Fatal(err)
		}
	}
	var out []path
	for i, f := range netset.Families() {
		add := func(name string, prog *ebpf.Program, again int, want uint32, pkt frame) {
			out = append(out, path{fmt.Sprintf("%s/%s", name, f), prog, pkt.bytes(), again, want})
		}
		base := frame{srcMAC: gw, dstMAC: gw, src: src.addr(f), proto: protoTCP, ttl: 255, payload: tcp(1000, 80, 10)}
		local, remote, world, arriving := base, base, base, base
		local.dst = dst.addr(f)
		remote.dst = netset.Nth(peer.podCIDRs()[i], 9)
		world.dst = netset.Nth(netset.Default(f), 0x08080808)
		arriving.src, arriving.dst, arriving.dstMAC = remote.dst, dst.addr(f), model.MAC{} // the loopback device's
		add("from_pod/local", d.objs.FromPod, 250, verdictRedirect, local)
		add("from_pod/tunnel", d.objs.FromPod, 1, verdictRedirect, remote)
		direct := remote
		direct.dst = netset.Nth(elsewhere[i], 9)
		add("from_pod/direct", d.objs.FromPod, 250, verdictRedirect, direct)
		add("from_pod/stack", d.objs.FromPod, 250, verdictNext, world)
		add("from_net/local", d.objs.FromNet, 250, verdictRedirect, arriving)
		other := world
		other.dstMAC = model.MAC{}
		add("from_net/other", d.objs.FromNet, 250, verdictNext, other)
		o := netset.First(n.addrs, outer)
		add("from_net/tunnel", d.objs.FromNet, 1, verdictRedirect, frame{
			src: netset.First(peer.addrs, outer), dst: o, proto: protoUDP,
			payload: udp(40000, vxlanPort, vxlan(1, arriving.bytes())),
		})
		add("to_overlay/tunnel", d.objs.ToOverlay, 1, verdictRedirect, remote)
		add("to_pod/untracked", d.objs.ToPod, 250, verdictNext, arriving)
		add("to_net/untracked", d.objs.ToNet, 250, verdictNext, remote)
	}
	return n, out
}

// once is how long a program takes on a packet: the least of many means.
func once(tb testing.TB, prog *ebpf.Program, packet []byte, repeat, rounds int) time.Duration {
	tb.Helper()
	tb.Helper()
	best := time.Hour
	for range rounds {
		_, d, err := prog.Benchmark(packet, repeat, nil)
		if err != nil {
			tb.Fatal(err)
		}
		best = min(best, d)
	}
	return best
}

// BenchmarkPrograms prints what each path of a packet costs over an empty program.
func BenchmarkPrograms(b *testing.B) {
	empty := emptyProgram(b)
	_, ways := paths(b, netset.V4)
	_, policed := policedPaths(b)
	ways = append(ways, policed...)
	for _, p := range ways {
		b.Run(p.name, func(b *testing.B) {
			if got, _, err := p.prog.Test(p.packet); err != nil || got != p.want {
				b.Fatalf("verdict %d, %v, want %d", int32(got), err, int32(p.want))
			}
			const rounds = 2000
			base := once(b, empty, p.packet, p.again, rounds)
			for range b.N {
				d := once(b, p.prog, p.packet, p.again, rounds)
				b.ReportMetric(float64(d-base), "ns/packet")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkTraffic prints the mean time of each program over real packets (small datagrams there and back), as
// the kernel counts it: with its own cost of counting, about 20 ns, and with the caches that traffic leaves.
func BenchmarkTraffic(b *testing.B) {
	for _, outer := range netset.Families() {
		b.Run("over"+outer.String(), func(b *testing.B) {
			x, y, p, q := tunnelled(b, outer)
			beside := x.addPod(1450)
			x.apply()
			stop, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
			if err != nil {
				b.Fatal(err)
			}
			defer stop.Close()
			for b.Loop() {
				for _, to := range []place{q, beside, y} {
					if err := udpEcho(b, p, to, netset.V4, 64, 5000); err != nil {
						b.Fatal(err)
					}
				}
			}
			o := x.driver.objs
			for name, prog := range map[string]*ebpf.Program{"from_pod": o.FromPod, "from_net": o.FromNet, "to_net": o.ToNet} {
				s, err := prog.Stats()
				if err != nil || s.RunCount == 0 {
					b.Fatal(name, s, err)
				}
				b.ReportMetric(float64(s.Runtime.Nanoseconds())/float64(s.RunCount), "ns/"+name)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkPolicy is row P7: a packet of a connection that policy has allowed, between two pods that both have rules.
func BenchmarkPolicy(b *testing.B) {
	n, _ := lone(b, netset.V4, true)
	d, gw := n.driver, model.GatewayMAC
	src, dst := n.pods[0], n.pods[1]
	n.policed()
	n.want(peers("clients", src.name()))
	n.want(peers("servers", dst.name()))
	n.guard(dst, set("in", plan.Ingress, rule("in/allow", model.VerdictAllow, "clients", port(protoTCP, 80))), nil)
	n.guard(src, nil, set("out", plan.Egress, rule("out/allow", model.VerdictAllow, "servers")))
	n.apply()
	for _, p := range []*pod{src, dst} { // the loopback device is every pod's, see paths
		for _, a := range p.addrs {
			var v weftWeftLocal
			if err := d.locals.m.Lookup(addrOf(a), &v); err != nil {
				b.Fatal(err)
			}
			v.Ifindex, v.Mac = 1, macOf(gw)
			if !isGuarded(v.Guard) {
				b.Fatal("the pod is not under policy")
			}
			if err := d.putAddr(a, v); err != nil {
				b.Fatal(err)
			}
		}
	}
	empty := emptyProgram(b)
	const again, rounds = 250, 2000
	for _, f := range netset.Families() {
		b.Run("from_pod/local/"+f.String(), func(b *testing.B) {
			pkt := frame{srcMAC: gw, dstMAC: gw, src: src.addr(f), dst: dst.addr(f), proto: protoTCP, ttl: 255, payload: tcp(1000, 80, 10)}.bytes()
			if got, _, err := d.objs.FromPod.Test(pkt); err != nil || got != verdictRedirect {
				b.Fatalf("verdict %d, %v, want %d", int32(got), err, int32(verdictRedirect))
			}
			base := once(b, empty, pkt, again, rounds)
			for range b.N {
				b.ReportMetric(float64(once(b, d.objs.FromPod, pkt, again, rounds)-base), "ns/packet")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}
