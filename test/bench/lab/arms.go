package lab

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"weft/internal/netset"
)

// Arm is one way to connect a client and a server. All arms of a Lab exist at once, in
// namespaces of their own, with the same addresses and MTU.
type Arm struct {
	Name    string
	About   string // what it is and in which version, for the report
	Client  string // network namespace
	Server  string // network namespace
	Address map[netset.Family]netip.Addr
	Tool    *Process // the measuring server
}

// The addresses of every arm. Node 0 is the client's.
const (
	PodPrefix  = "10.244.%d.0/24 fd00:10:244:%d::/64"
	NodePrefix = "172.31.0.%d/24 fd00:172:31::%d/64"
)

// Both splits "v4 v6" of a format with every %d replaced by n.
func Both(format string, n int) []netip.Prefix {
	var out []netip.Prefix
	for _, f := range strings.Fields(strings.ReplaceAll(format, "%d", fmt.Sprint(n))) {
		out = append(out, netip.MustParsePrefix(f))
	}
	return out
}

// byFamily indexes addresses.
func byFamily(ps []netip.Prefix) map[netset.Family]netip.Addr {
	m := map[netset.Family]netip.Addr{}
	for _, p := range ps {
		m[netset.OfPrefix(p)] = p.Addr()
	}
	return m
}

// nth is the nth address of a prefix, with the prefix's length.
func nth(p netip.Prefix, n int) netip.Prefix {
	a := p.Masked().Addr()
	for range n {
		a = a.Next()
	}
	return netip.PrefixFrom(a, p.Bits())
}

// addrLines are `ip address add` lines for a device.
func addrLines(dev string, ps []netip.Prefix) string {
	var b strings.Builder
	for _, p := range ps {
		nodad := ""
		if netset.OfPrefix(p) == netset.V6 {
			nodad = " nodad"
		}
		fmt.Fprintf(&b, "address add %s dev %s%s\n", p, dev, nodad)
	}
	return b.String()
}

// space makes a namespace's name of an arm's.
func space(arm string) string { return strings.ReplaceAll(arm, " ", "-") }

// wire joins two existing namespaces by a veth pair, device dev in both, with addresses.
func wire(a, b, dev string, mtu int, addrs [2][]netip.Prefix) error {
	if err := ip(a, fmt.Sprintf("link add %s mtu %d type veth peer name %s mtu %d netns %s\n", dev, mtu, dev, mtu, b)); err != nil {
		return err
	}
	for i, ns := range []string{a, b} {
		if err := ip(ns, "link set "+dev+" up\n"+addrLines(dev, addrs[i])); err != nil {
			return err
		}
	}
	return nil
}

// Direct is the limit: two namespaces and one veth pair.
func (r *Lab) Direct(name string) (*Arm, error) {
	a := &Arm{Name: name, About: "one veth pair between the two pods", Client: space(name) + ".c", Server: space(name) + ".s"}
	for _, ns := range []string{a.Client, a.Server} {
		if err := Netns(ns); err != nil {
			return nil, err
		}
	}
	var addrs [2][]netip.Prefix
	for _, p := range Both(PodPrefix, 1) {
		addrs[0], addrs[1] = append(addrs[0], nth(p, 2)), append(addrs[1], nth(p, 3))
	}
	a.Address = byFamily(addrs[1])
	return a, wire(a.Client, a.Server, "eth0", 1500, addrs)
}

// Nodes makes two node namespaces joined by an underlay, forwarding on.
func Nodes(name string) ([2]string, error) {
	ns := [2]string{space(name) + ".A", space(name) + ".B"}
	for _, n := range ns {
		if err := Netns(n); err != nil {
			return ns, err
		}
		for _, s := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
			if err := sysctl(n, s, "1"); err != nil {
				return ns, err
			}
		}
	}
	return ns, wire(ns[0], ns[1], "eth0", 1500, [2][]netip.Prefix{Both(NodePrefix, 1), Both(NodePrefix, 2)})
}

// Host is the cross-node limit: node to node over the underlay.
func (r *Lab) Host(name string) (*Arm, error) {
	ns, err := Nodes(name)
	return &Arm{
		Name: name, About: "node to node over the underlay, no pods",
		Client: ns[0], Server: ns[1], Address: byFamily(Both(NodePrefix, 2)),
	}, err
}

// vxlanLines make a kernel VXLAN device on eth0 that knows one peer, as flannel sets it up.
func vxlanLines(self, peer int) string {
	mac := func(n int) string { return fmt.Sprintf("02:00:00:00:00:%02x", n) }
	remote := byFamily(Both(NodePrefix, peer))[netset.V4]
	return fmt.Sprintf("link add vxlan0 address %s mtu 1450 type vxlan id 1 dstport 8472 local %s dev eth0 nolearning\nlink set vxlan0 up\n",
		mac(self), byFamily(Both(NodePrefix, self))[netset.V4]) +
		fmt.Sprintf("neighbour add 192.168.255.%d lladdr %s dev vxlan0\n", peer, mac(peer)) +
		fmt.Sprintf("neighbour add fd00:255::%d lladdr %s dev vxlan0\n", peer, mac(peer)) +
		"!fdb append " + mac(peer) + " dev vxlan0 dst " + remote.String() + "\n"
}

// kernelVXLAN applies vxlanLines; lines with ! are bridge(8) commands.
func kernelVXLAN(ns [2]string, addresses bool) error {
	for i, n := range ns {
		var bridge string
		var lines []string
		for _, l := range strings.Split(vxlanLines(i+1, 2-i), "\n") {
			if rest, ok := strings.CutPrefix(l, "!"); ok {
				bridge = rest
				continue
			}
			lines = append(lines, l)
		}
		text := strings.Join(lines, "\n")
		if addresses {
			text += fmt.Sprintf("address add 192.168.255.%d/24 dev vxlan0\naddress add fd00:255::%d/64 dev vxlan0 nodad\n", i+1, i+1)
		}
		if err := ip(n, text); err != nil {
			return err
		}
		if err := InNS(n, func() error { return command("bridge", strings.Fields(bridge)...) }); err != nil {
			return err
		}
	}
	return nil
}

// RawVXLAN is a kernel VXLAN device between the nodes, no pods.
func (r *Lab) RawVXLAN(name string) (*Arm, error) {
	ns, err := Nodes(name)
	if err != nil {
		return nil, err
	}
	a := &Arm{Name: name, About: "node to node over a kernel vxlan device, no pods", Client: ns[0], Server: ns[1]}
	a.Address = byFamily([]netip.Prefix{netip.MustParsePrefix("192.168.255.2/24"), netip.MustParsePrefix("fd00:255::2/64")})
	return a, kernelVXLAN(ns, true)
}

// podRoutes routes each node's pods through the other: by the underlay, or through a VXLAN device.
func podRoutes(ns [2]string, overlay bool) error {
	for i, n := range ns {
		peer := 2 - i
		for _, p := range Both(PodPrefix, peer) {
			line := fmt.Sprintf("route add %s via %s dev eth0\n", p, byFamily(Both(NodePrefix, peer))[netset.OfPrefix(p)])
			if overlay {
				hop := map[netset.Family]string{netset.V4: "192.168.255.%d", netset.V6: "fd00:255::%d"}[netset.OfPrefix(p)]
				line = fmt.Sprintf("route add %s via %s dev vxlan0 onlink\n", p, fmt.Sprintf(hop, peer))
			}
			if err := ip(n, line); err != nil {
				return err
			}
		}
	}
	return nil
}

// WithPlugin is an arm whose pods are attached by a CNI plugin: both on one node (same), or one on each.
func (r *Lab) WithPlugin(name, kind string, same, overlay bool) (*Arm, error) {
	ns, err := Nodes(name)
	if err != nil {
		return nil, err
	}
	a := &Arm{Name: name, About: DebianPlugins() + ", " + kind + " + host-local", Client: space(name) + ".c", Server: space(name) + ".s"}
	mtu, place := 1500, [2]int{0, 1}
	if overlay {
		a.About += " behind a kernel vxlan device"
		mtu = 1450
		err = kernelVXLAN(ns, false)
	}
	if same {
		place[1] = 0
	} else if err == nil {
		err = podRoutes(ns, overlay)
	}
	if err != nil {
		return nil, err
	}
	for i, pod := range []string{a.Client, a.Server} {
		if err := Netns(pod); err != nil {
			return nil, err
		}
		p, err := r.DebianPlugin(kind, fmt.Sprintf("%s-%d", name, place[i]), Both(PodPrefix, place[i]+1), mtu)
		if err != nil {
			return nil, err
		}
		var result Result
		if err := InNS(ns[place[i]], func() (err error) { result, err = p.Add("bench"+fmt.Sprint(i), pod); return }); err != nil {
			return nil, err
		}
		a.Address = result.Addresses()
	}
	return a, nil
}

// DebianPlugin is a plugin of the containernetworking project with host-local addresses.
func (r *Lab) DebianPlugin(kind, state string, subnets []netip.Prefix, mtu int) (*Plugin, error) {
	dir, err := pluginDir()
	if err != nil {
		return nil, err
	}
	var ranges [][]map[string]string
	var routes []map[string]string
	for _, s := range subnets {
		ranges = append(ranges, []map[string]string{{"subnet": s.String()}})
		routes = append(routes, map[string]string{"dst": netip.PrefixFrom(zero(s.Addr()), 0).String()})
	}
	conf := map[string]any{
		"cniVersion": "0.4.0", "name": "bench", "type": kind, "mtu": mtu, "ipMasq": false,
		"ipam": map[string]any{"type": "host-local", "ranges": ranges, "routes": routes, "dataDir": filepath.Join(r.Dir, "host-local", state)},
	}
	if kind == "bridge" {
		conf["bridge"], conf["isGateway"] = "cni0", true
	}
	raw, err := json.Marshal(conf)
	return &Plugin{Binary: filepath.Join(dir, kind), path: dir, conf: raw}, err
}

// zero is the unspecified address of a's family.
func zero(a netip.Addr) netip.Addr { return Unspecified(netset.Of(a)) }

// Unspecified is a family's address of all zeros.
func Unspecified(f netset.Family) netip.Addr {
	if f == netset.V4 {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}
