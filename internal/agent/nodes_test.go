package agent

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"weft/internal/api"
	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/testkit"
)

// machine is a node: a namespace with an agent in it.
type machine struct {
	ns     *testkit.Netns
	addrs  []netip.Addr
	socket string
}

// seat is a pod: a namespace and what ADD gave it.
type seat struct {
	ns    *testkit.Netns
	addrs []netip.Addr
}

// pair is two nodes on one underlay, pod 0 and 1 on the first and pod 2 on the second.
type pair struct {
	nodes []*machine
	pods  []*seat
}

// startPair starts two agents that know each other from files, and has them attach the pods. The first pod has a host port of
// TCP and one of SCTP, 9, that lead to its port 80.
func startPair(t *testing.T, backend string, tagged bool) *pair {
	t.Helper()
	p, dir, dev := &pair{}, t.TempDir(), "eth0"
	for i := range 2 {
		m := &machine{ns: testkit.New(t), socket: filepath.Join(dir, fmt.Sprint(i), "run", "weft.sock")}
		for _, a := range []string{"172.30.7.%d", "fd07::%d"} {
			m.addrs = append(m.addrs, netip.MustParseAddr(fmt.Sprintf(a, i+1)))
		}
		p.nodes = append(p.nodes, m)
	}
	a, b := p.nodes[0], p.nodes[1]
	a.ns.Run(t, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b.ns.Path())
	var objects strings.Builder
	for i, m := range p.nodes {
		m.ns.IP(t, "link set eth0 up")
		if tagged {
			dev = "eth0.100"
			m.ns.IP(t, "link add link eth0 name eth0.100 type vlan id 100")
			m.ns.IP(t, "link set eth0.100 up")
		}
		m.ns.IP(t, fmt.Sprintf("addr add %s/24 dev %s", m.addrs[0], dev))
		m.ns.IP(t, fmt.Sprintf("addr add %s/64 dev %s nodad", m.addrs[1], dev))
		fmt.Fprintf(&objects, `---
{apiVersion: v1, kind: Node, metadata: {name: n%[1]d}, spec: {podCIDRs: ["10.244.%[1]d.0/24", "fd10:244:0:%[1]d::/64"]},
 status: {addresses: [{type: InternalIP, address: "%[2]s"}, {type: InternalIP, address: "%[3]s"}]}}
`, i+1, m.addrs[0], m.addrs[1])
	}
	for i, m := range []int{0, 0, 1} {
		p.pods = append(p.pods, &seat{ns: testkit.Named(t, fmt.Sprintf("weft-pair-%d", i))}) // before the agents, which have their own mounts
		fmt.Fprintf(&objects, "---\n{apiVersion: v1, kind: Pod, metadata: {name: p%d, namespace: default}, spec: {nodeName: n%d, containers: [{name: c, image: none}]}}\n", i, m+1)
	}
	cluster := filepath.Join(dir, "cluster")
	if err := os.Mkdir(cluster, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cluster, "all.yaml"), []byte(objects.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	for i, m := range p.nodes {
		own := filepath.Join(dir, fmt.Sprint(i))
		startAgent(t, m.ns, model.Config{
			NodeName: fmt.Sprintf("n%d", i+1), Source: model.SourceConfig{Type: "file", Dir: cluster}, Backend: model.Underlay{Type: backend},
			CNI: model.CNI{BinDir: "off"}, MetricsAddress: "off",
			Paths: model.Paths{Run: filepath.Join(own, "run"), State: filepath.Join(own, "state"), BPF: filepath.Join(own, "bpf")},
		})
	}
	for _, m := range p.nodes {
		m.ready(t)
	}
	for i, m := range []*machine{a, a, b} {
		r := api.AddRequest{
			Attachment: api.Attachment{ContainerID: fmt.Sprintf("c%d", i), IfName: "eth0", Netns: p.pods[i].ns.Path(), Network: "weft"},
			Pod:        api.PodRef{Namespace: "default", Name: fmt.Sprintf("p%d", i)},
		}
		if i == 0 {
			r.Ports = []api.PortMapping{{HostPort: 9, ContainerPort: 80, Protocol: "TCP"}, {HostPort: 9, ContainerPort: 80, Protocol: "SCTP"}}
		}
		var reply api.AddReply
		if err := api.Call(t.Context(), m.socket, api.MethodCNIAdd, r, &reply); err != nil {
			t.Fatalf("ADD of pod %d: %v", i, err)
		}
		for _, x := range reply.IPs {
			p.pods[i].addrs = append(p.pods[i].addrs, x.Addr)
		}
	}
	return p
}

// ready waits until the agent serves pods.
func (m *machine) ready(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Within(10*time.Second))
	defer cancel()
	for {
		var s api.Status
		err := api.Call(ctx, m.socket, api.MethodStatus, struct{}{}, &s)
		if err == nil && s.Ready {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("not ready: %+v, %v", s, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// forwarded is how many packets the node's IP stack has sent on.
func (m *machine) forwarded(t *testing.T) (n int) {
	t.Helper()
	for line := range strings.Lines(m.ns.Run(t, "nstat", "-asz", "IpForwDatagrams", "Ip6OutForwDatagrams")) {
		if f := strings.Fields(line); len(f) > 1 && f[0] != "#kernel" {
			v, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			n += v
		}
	}
	return n
}

// echo serves on port 80 of a pod's addresses until stop is called: what comes is sent back.
func (s *seat) echo(t *testing.T, network string) (stop func()) {
	t.Helper()
	var all []net.Listener
	for _, a := range s.addrs {
		var l net.Listener
		var err error
		at := netip.AddrPortFrom(a, 80)
		s.ns.Do(t, func() {
			if network == "sctp" {
				l, err = testkit.ListenSCTP(at)
			} else {
				l, err = net.Listen("tcp", at.String())
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, l)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					for b := make([]byte, 32<<10); ; {
						n, err := c.Read(b)
						if err != nil {
							return
						}
						if _, err := c.Write(b[:n]); err != nil {
							return
						}
					}
				}()
			}
		}()
	}
	return func() {
		for _, l := range all {
			_ = l.Close()
		}
	}
}

// large is the size of a block that takes many packets.
const large = 27_000

// exchange sends blocks of a size to an address, and wants each back.
func exchange(t *testing.T, what string, from *testkit.Netns, network string, to netip.AddrPort, size int) {
	t.Helper()
	var c net.Conn
	var err error
	from.Do(t, func() {
		if network == "sctp" {
			c, err = testkit.DialSCTP(0, to, testkit.Within(2*time.Second))
		} else {
			c, err = net.DialTimeout("tcp", to.String(), testkit.Within(2*time.Second))
		}
	})
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(testkit.Within(10 * time.Second)))
	block := bytes.Repeat([]byte("weft carries pods "), 1500)[:size]
	got := make([]byte, len(block))
	for range 20 {
		if _, err := c.Write(block); err != nil {
			t.Errorf("%s: %s to %s: %v", what, network, to, err)
			return
		}
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, block) {
			t.Errorf("%s: %s to %s: the echo differs, or %v", what, network, to, err)
			return
		}
	}
}

// TestPair is two whole nodes, with an underlay as it comes and one that is a tagged network, by VXLAN and directly: pods reach pods
// past the stack, and host ports.
func TestPair(t *testing.T) {
	for _, underlay := range []string{"plain", "tagged"} {
		t.Run(underlay, func(t *testing.T) {
			if underlay == "tagged" {
				testkit.RequireVLAN(t)
			}
			for _, backend := range []string{"vxlan", "direct"} {
				t.Run(backend, func(t *testing.T) {
					p := startPair(t, backend, underlay == "tagged")
					want := map[string]string{"vxlan": " mtu 1450 ", "direct": " mtu 1500 "}[backend]
					if link := p.pods[0].ns.IP(t, "link show eth0"); !strings.Contains(link, want) {
						t.Errorf("the pod's link, want%s:\n%s", want, link)
					}
					for _, network := range []string{"tcp", "sctp"} {
						t.Run(network+" of pods", func(t *testing.T) { p.podsReach(t, network) })
					}
					for _, network := range []string{"tcp", "sctp"} {
						t.Run(network+" through host ports", func(t *testing.T) { p.hostPortsReach(t, network) })
					}
				})
			}
		})
	}
}

func (p *pair) podsReach(t *testing.T, network string) {
	t.Helper()
	if network == "sctp" {
		testkit.RequireSCTP(t)
	}
	server, near, far := p.pods[0], p.pods[1], p.pods[2]
	defer server.echo(t, network)()
	defer far.echo(t, network)()
	var before, after int
	for _, m := range p.nodes {
		before += m.forwarded(t)
	}
	for i := range netset.Families() {
		exchange(t, "pod of the node", near.ns, network, netip.AddrPortFrom(server.addrs[i], 80), large)
		exchange(t, "pod of the other node", far.ns, network, netip.AddrPortFrom(server.addrs[i], 80), large)
		exchange(t, "pod of the other node", server.ns, network, netip.AddrPortFrom(far.addrs[i], 80), large)
	}
	for _, m := range p.nodes {
		after += m.forwarded(t)
	}
	if after != before {
		t.Errorf("%d packets between pods passed the stack", after-before)
	}
}

func (p *pair) hostPortsReach(t *testing.T, network string) {
	t.Helper()
	if network == "sctp" {
		testkit.RequireSCTP(t)
	}
	server, near, far := p.pods[0], p.pods[1], p.pods[2]
	defer server.echo(t, network)()
	for i := range netset.Families() {
		to := netip.AddrPortFrom(p.nodes[0].addrs[i], 9)
		exchange(t, "host port, from a pod of the other node", far.ns, network, to, large)
		exchange(t, "host port, from a pod of the node", near.ns, network, to, large)
		// In packets that a pod's link can take: SCTP waits for seconds when it learns otherwise.
		exchange(t, "host port, from the other node", p.nodes[1].ns, network, to, 1000)
	}
}
