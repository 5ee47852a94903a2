package model

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"weft/internal/netset"
)

// Node is a member of the cluster.
type Node struct {
	Name     string
	Addrs    []netip.Addr      // addresses on the underlay in order; the first of each family is used
	PodCIDRs []netip.Prefix    // masked; the prefixes that pods of the node have addresses from
	VTEPMAC  MAC               // inner Ethernet address that the node's VXLAN device wants; zero: GatewayMAC
	Labels   map[string]string // never nil in the store; not to be modified
}

// Key implements Object.
func (n *Node) Key() Key { return NodeKey(n.Name) }

// NodeKey is the key of the node of that name.
func NodeKey(name string) Key { return Key{KindNode, name} }

// Validate implements Object.
func (n *Node) Validate() error {
	switch {
	case n.Name == "":
		return errors.New("node without a name")
	case len(n.Addrs) == 0:
		return fmt.Errorf("node %s: status.addresses has no InternalIP", n.Name)
	}
	for _, p := range n.PodCIDRs {
		if p != p.Masked() {
			return fmt.Errorf("node %s: spec.podCIDRs: %s has bits beyond its length", n.Name, p)
		}
	}
	return nil
}

// Namespace is a Kubernetes namespace: its labels select pods.
type Namespace struct {
	Name   string
	Labels map[string]string
}

// Key implements Object.
func (n *Namespace) Key() Key { return Key{KindNamespace, n.Name} }

// Validate implements Object.
func (n *Namespace) Validate() error { return nil }

// PodRef names a pod. UID may be empty where the runtime did not tell it.
type PodRef struct {
	Namespace, Name, UID string
}

// String returns "namespace/name".
func (r PodRef) String() string { return r.Namespace + "/" + r.Name }

// Rate is a bandwidth limit. The zero value is no limit.
type Rate struct {
	Bits  uint64 // bits per second
	Burst uint64 // bits that may pass at once; 0: chosen by the driver
}

// String returns "unlimited" or the rate in bit/s.
func (r Rate) String() string {
	if r.Bits == 0 {
		return "unlimited"
	}
	return fmt.Sprintf("%dbit/s", r.Bits)
}

// Pod is what the cluster says of a pod. Pods of other nodes are present only where a feature needs them.
type Pod struct {
	PodRef
	Node        string // node it is bound to, "" while pending
	HostNetwork bool
	Finished    bool // phase Succeeded or Failed: it runs no more and its addresses are free
	Labels      map[string]string
	Account     string       // spec.serviceAccountName
	Ports       []Port       // the named ports of its containers
	Addrs       []netip.Addr // status.podIPs; none of a finished pod
	// Of annotations, nil or zero where absent. A malformed annotation is in Problem.
	WantAddrs []netip.Addr // weft.io/ips: requested addresses, at most one a family
	WantMAC   MAC          // weft.io/mac
	Ingress   *Rate        // kubernetes.io/ingress-bandwidth, toward the pod
	Egress    *Rate        // kubernetes.io/egress-bandwidth, from the pod
	Problem   error        // why an annotation was not understood; the pod still gets a network
}

// Key implements Object.
func (p *Pod) Key() Key { return PodKey(p.Namespace, p.Name) }

// PodKey is the key of a pod.
func PodKey(namespace, name string) Key { return Key{KindPod, namespace + "/" + name} }

// Validate implements Object.
func (p *Pod) Validate() error { return nil }

// HostPort maps a port of the node to a port of a pod (CNI capability portMappings).
type HostPort struct {
	HostIP   netip.Addr // zero or unspecified: every address of the node
	Protocol string     // "tcp", "udp" or "sctp"
	Port     uint16     // on the node
	PodPort  uint16
}

// String returns "hostIP:port/protocol -> podPort".
func (h HostPort) String() string {
	ip := "*"
	if h.HostIP.IsValid() && !h.HostIP.IsUnspecified() {
		ip = h.HostIP.String()
	}
	return fmt.Sprintf("%s:%d/%s->%d", ip, h.Port, h.Protocol, h.PodPort)
}

// Endpoint is one pod interface that this node serves: it lives from CNI ADD to CNI DEL.
type Endpoint struct {
	ID        string // container ID and interface name, "4f1c…/eth0"
	Pod       PodRef
	Netns     string // path of the pod's network namespace
	IfName    string // inside the pod
	HostIf    string // the host side of the link
	MAC       MAC    // of the pod side
	Addrs     []netip.Addr
	HostPorts []HostPort
	Ingress   Rate // of the CNI bandwidth capability; the Pod's annotations, when known, win
	Egress    Rate
}

// Key implements Object.
func (e *Endpoint) Key() Key { return EndpointKey(e.ID) }

// EndpointKey is the key of the endpoint with that ID.
func EndpointKey(id string) Key { return Key{KindEndpoint, id} }

// Validate implements Object.
func (e *Endpoint) Validate() error {
	switch {
	case e.ID == "" || e.Netns == "" || e.IfName == "" || e.HostIf == "":
		return fmt.Errorf("endpoint %q: id, netns, interface and host interface must be set", e.ID)
	case len(e.Addrs) == 0:
		return fmt.Errorf("endpoint %s: no address", e.ID)
	case e.MAC.IsZero():
		return fmt.Errorf("endpoint %s: no MAC", e.ID)
	}
	return nil
}

// Device is a network interface of the host that is not ours: a fact, learned from the kernel.
type Device struct {
	Name  string
	Index int
	Kind  string // rtnetlink link kind, "" for a physical device
	MTU   int
	MAC   MAC
	Up    bool
	Addrs []netip.Prefix // with the host bits kept
}

// Key implements Object.
func (d *Device) Key() Key { return Key{KindDevice, d.Name} }

// Validate implements Object.
func (d *Device) Validate() error { return nil }

// Hosts are the device's addresses.
func (d *Device) Hosts() []netip.Addr {
	out := make([]netip.Addr, len(d.Addrs))
	for i, p := range d.Addrs {
		out[i] = p.Addr()
	}
	return out
}

// Reached reports whether others may reach the host by the device: it is up and has an address that means something beyond its link.
func (d *Device) Reached() bool {
	return d.Up && d.Name != "lo" && d.Kind != "dummy" && slices.ContainsFunc(d.Hosts(), netip.Addr.IsGlobalUnicast)
}

// UnderlayOf returns the device of this host that a node's packets to others pass: the configured one, else the one that has an
// address of the node; nil if neither is known.
func UnderlayOf(s Snapshot, n *Node) *Device {
	name := ""
	if cfg := Get[*Config](s, ConfigKey()); cfg != nil && cfg.NodeName == n.Name {
		name = cfg.Backend.Device
	}
	for d := range All[*Device](s, KindDevice) {
		if d.Name == name || name == "" && slices.ContainsFunc(d.Addrs, func(p netip.Prefix) bool { return slices.Contains(n.Addrs, p.Addr()) }) {
			return d
		}
	}
	return nil
}

// PathMTU is the largest IP packet that was measured to reach a peer's underlay address.
type PathMTU struct {
	Node string // the peer
	MTU  int    // bytes, IP header included
}

// Key implements Object.
func (p *PathMTU) Key() Key { return PathMTUKey(p.Node) }

// PathMTUKey is the key of the path MTU to a node.
func PathMTUKey(node string) Key { return Key{KindPathMTU, node} }

// Validate implements Object. 1280 is the least that IPv6 allows (RFC 8200 §5).
func (p *PathMTU) Validate() error {
	if p.MTU < 576 || p.MTU > 65535 {
		return fmt.Errorf("path MTU to %s: %d is not in 576..65535", p.Node, p.MTU)
	}
	return nil
}

// Feature is what was found out of one thing that this kernel can do or not, and what weft does instead.
type Feature struct {
	Name    string // "tcx", "redirect_peer", "netkit", "nft-owner" …
	State   string // "active", "fallback", "missing" or "off"
	Detail  string // what is used instead, or why it is missing
	Version string // where a version was read
}

// Key implements Object.
func (f *Feature) Key() Key { return Key{KindFeature, f.Name} }

// Validate implements Object.
func (f *Feature) Validate() error { return nil }

// ForeignNAT is the Feature whose State "active" says that somebody else translates services in the host's stack.
const ForeignNAT = "foreign-nat"

// Translated reports whether somebody else translates services in the host's stack (kube-proxy).
func Translated(s Snapshot) bool {
	f := Get[*Feature](s, Key{KindFeature, ForeignNAT})
	return f != nil && f.State == "active"
}

// Incident is something that was found wrong on this host: `weft doctor` lists them.
type Incident struct {
	ID       string // unique; repeated findings of the same thing share one
	What     string // "route 10.0.2.0/24 was deleted"
	Action   string // "restored", "reported only: …"
	First    time.Time
	Last     time.Time
	Count    int
	Resolved bool // put right, by us or by others
}

// Key implements Object.
func (i *Incident) Key() Key { return Key{KindIncident, i.ID} }

// Validate implements Object.
func (i *Incident) Validate() error { return nil }

// Backend is one address behind a service.
type Backend struct {
	Addr                        netip.Addr
	Node                        string
	Ready, Serving, Terminating bool
	Hints                       *Hints // nil: none
}

// Hints are the zones and nodes whose clients should be given a backend (discovery.k8s.io/v1 EndpointHints).
type Hints struct{ Zones, Nodes []string }

// Backends is one EndpointSlice.
type Backends struct {
	Namespace, Name string
	Service         string // name of the Service; "" where the slice names none
	Family          netset.Family
	Ports           []Port
	Backends        []Backend
}

// Key implements Object.
func (b *Backends) Key() Key { return Key{KindBackends, b.Namespace + "/" + b.Name} }

// Validate implements Object.
func (b *Backends) Validate() error { return nil }

// Port is a named port of a service or slice.
type Port struct {
	Name     string
	Protocol string // "tcp", "udp" or "sctp"
	Port     uint16
}

// ServicePort is a port of a service. What it is called on the backends is in their slices.
type ServicePort struct {
	Port
	NodePort uint16 // on every node; 0: none
}

// Service is a Kubernetes Service as far as the network needs it.
type Service struct {
	Namespace, Name string
	Type            string       // ClusterIP, NodePort, LoadBalancer, ExternalName
	Addrs           []netip.Addr // the cluster IPs; none of a headless service
	ExternalIPs     []netip.Addr
	Balancers       []netip.Addr // status.loadBalancer.ingress[].ip, but for those whose ipMode is Proxy
	Ports           []ServicePort
	SourceRanges    []netip.Prefix // nil: anybody may use Balancers; empty: nobody
	Affinity        int            // seconds that a client keeps its backend; 0: it does not
	InternalLocal   bool           // internalTrafficPolicy
	ExternalLocal   bool           // externalTrafficPolicy
	HealthPort      uint16         // healthCheckNodePort; 0: none
	Elsewhere       string         // the label that says that others serve it; "" where there is none
}

// Key implements Object.
func (s *Service) Key() Key { return Key{KindService, s.Namespace + "/" + s.Name} }

// Validate implements Object.
func (s *Service) Validate() error { return nil }
