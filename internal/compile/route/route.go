// Package route compiles how pods are connected: links, routes, tunnels, masquerade and host ports.
//
// It is arithmetic over a snapshot: no clock, no I/O, and a missing referent leads to a Problem row or
// to no row, never to an error. It knows nothing of policy or services (their own compilers), and not how
// a row is applied.
package route

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
)

// Names and numbers that are ours.
const (
	mainTable    = 254
	mainPriority = 32766
	// plainMTU is assumed of a path that has not been measured where the own device takes larger packets.
	plainMTU = 1500
)

// overhead is what VXLAN adds to a packet: outer IP, UDP 8, VXLAN 8, inner Ethernet 14 (RFC 7348 §5).
func overhead(outer netip.Addr) int {
	if netset.Of(outer) == netset.V4 {
		return 20 + 8 + 8 + 14
	}
	return 40 + 8 + 8 + 14
}

// local is what the compiler has to know of its own node. Zero where something is missing.
type local struct {
	cfg      *model.Config
	node     *model.Node
	underlay *model.Device
	missing  string // what is missing, in words; "" if nothing is
}

func findLocal(s model.Snapshot) local {
	var l local
	if l.cfg = model.Get[*model.Config](s, model.ConfigKey()); l.cfg == nil {
		l.missing = "no configuration"
		return l
	}
	if l.node = model.Get[*model.Node](s, model.NodeKey(l.cfg.NodeName)); l.node == nil {
		l.missing = fmt.Sprintf("node %q is not known yet: is it in the cluster under that name?", l.cfg.NodeName)
		return l
	}
	l.underlay = model.UnderlayOf(s, l.node)
	if l.underlay == nil {
		l.missing = fmt.Sprintf("no interface of this host has an address of node %s (%v); backend.device %q",
			l.node.Name, l.node.Addrs, l.cfg.Backend.Device)
	}
	return l
}

// peer says how packets to another node travel.
type peer struct {
	via    netip.Addr // outer destination of a tunnel
	tunnel bool
	mtu    int // largest inner packet
}

func (l local) peer(s model.Snapshot, n *model.Node) (peer, bool) {
	var p peer
	for _, f := range netset.FamiliesOf(l.node.Addrs) {
		if p.via = netset.First(n.Addrs, f); p.via.IsValid() {
			break
		}
	}
	if !p.via.IsValid() {
		return p, false
	}
	p.tunnel = l.cfg.Backend.Type == "vxlan" && (!l.cfg.Backend.CrossSubnet || !l.sameSubnet(p.via))
	p.mtu = l.underlay.MTU
	if m := model.Get[*model.PathMTU](s, model.PathMTUKey(n.Name)); m != nil {
		p.mtu = min(p.mtu, m.MTU)
	} else if p.mtu > plainMTU {
		p.mtu = plainMTU
	}
	if p.tunnel {
		p.mtu -= overhead(p.via)
	}
	return p, true
}

func (l local) sameSubnet(a netip.Addr) bool {
	return slices.ContainsFunc(l.underlay.Addrs, func(p netip.Prefix) bool { return p.Masked().Contains(a) })
}

// linkMTU is the MTU of every pod link of this node.
func (l local) linkMTU() int {
	switch {
	case l.cfg.MTU != 0:
		return l.cfg.MTU
	case l.cfg.Backend.Type == "vxlan":
		return l.underlay.MTU - overhead(l.node.Addrs[0])
	}
	return l.underlay.MTU
}

// own is the prefixes that pods of the node have their addresses from.
func own(cfg *model.Config, n *model.Node) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range cfg.IPAM.Pools {
		if p.Node == n.Name {
			out = append(out, p.CIDRs...)
		}
	}
	if out == nil {
		out = n.PodCIDRs
	}
	return netset.Sorted(out)
}

// PodPrefixes returns the prefixes that pods of the named node have addresses from: the configured pools of
// the node, else the pod CIDRs that Kubernetes gave it. nil: not known yet.
func PodPrefixes(s model.Snapshot, name string) []netip.Prefix {
	cfg, n := model.Get[*model.Config](s, model.ConfigKey()), model.Get[*model.Node](s, model.NodeKey(name))
	if cfg == nil || n == nil {
		return nil
	}
	return own(cfg, n)
}

// Underlay returns this node's underlay device and addresses on it, or why they are not known.
func Underlay(s model.Snapshot) (*model.Device, []netip.Addr, error) {
	l := findLocal(s)
	if l.missing != "" {
		return nil, nil, fmt.Errorf("%s", l.missing)
	}
	return l.underlay, l.node.Addrs, nil
}

// Dirty names the keys whose rows depend on the changed objects.
func Dirty(s model.Snapshot, changed []model.Key) []model.Key {
	d := dirt{s: s, l: findLocal(s)}
	for _, k := range changed {
		d.add(k)
	}
	return d.keys
}

type dirt struct {
	s    model.Snapshot
	l    local
	keys []model.Key
	all  bool // everything is in keys already
	ends bool // every endpoint is in keys already
	// ofPod are the endpoints by their pod; nil until the first pod is asked about.
	ofPod map[model.Key][]model.Key
}

func (d *dirt) add(k model.Key) {
	switch k.Kind {
	case model.KindConfig, model.KindDevice:
		d.everything()
	case model.KindNode:
		if d.l.cfg == nil || k.Name == d.l.cfg.NodeName {
			d.everything()
		}
		d.keys = append(d.keys, k, model.ConfigKey())
		d.endpoints() // their narrow routes; the rows of most stay as they are
	case model.KindPathMTU:
		d.keys = append(d.keys, model.NodeKey(k.Name))
		d.endpoints()
	case model.KindEndpoint:
		d.keys = append(d.keys, k)
		// Settings.Tracked depends on host ports; of an endpoint that is gone it is not known whether it had any.
		if e := model.Get[*model.Endpoint](d.s, k); e == nil || len(e.HostPorts) > 0 {
			d.keys = append(d.keys, model.ConfigKey())
		}
	case model.KindPod:
		d.keys = append(d.keys, d.endpointsOf(k)...)
	case model.KindFeature:
		if k.Name == model.ForeignNAT {
			d.keys = append(d.keys, model.ConfigKey())
		}
	default: // nothing of this compiler depends on the other kinds
	}
}

// endpointsOf looks at every endpoint once, however many pods have changed.
func (d *dirt) endpointsOf(pod model.Key) []model.Key {
	if d.ofPod == nil {
		d.ofPod = map[model.Key][]model.Key{}
		for e := range model.All[*model.Endpoint](d.s, model.KindEndpoint) {
			k := model.PodKey(e.Pod.Namespace, e.Pod.Name)
			d.ofPod[k] = append(d.ofPod[k], e.Key())
		}
	}
	return d.ofPod[pod]
}

func (d *dirt) endpoints() {
	if d.ends {
		return
	}
	d.ends = true
	for e := range d.s.All(model.KindEndpoint) {
		d.keys = append(d.keys, e.Key())
	}
}

func (d *dirt) everything() {
	if d.all {
		return
	}
	d.all = true
	d.keys = append(d.keys, model.ConfigKey())
	for n := range d.s.All(model.KindNode) {
		d.keys = append(d.keys, n.Key())
	}
	d.endpoints()
}

// Compile returns the function that gives the rows of a key. What all keys of a snapshot share is worked out once.
func Compile(s model.Snapshot) func(model.Key) []plan.Row {
	l := findLocal(s)
	narrow := sync.OnceValue(func() []plan.RouteMTU { return l.narrow(s) })
	return func(k model.Key) []plan.Row {
		switch k.Kind {
		case model.KindConfig:
			return l.compileNode(s)
		case model.KindNode:
			if n := model.Get[*model.Node](s, k); n != nil && l.missing == "" && n.Name != l.node.Name {
				return l.compilePeer(s, n)
			}
		case model.KindEndpoint:
			if e := model.Get[*model.Endpoint](s, k); e != nil && l.missing == "" {
				return l.compileEndpoint(s, e, narrow())
			}
		default: // owns no rows
		}
		return nil
	}
}
