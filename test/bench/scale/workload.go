// Package scale runs weft's parts at the size of rows Y1 to Y4 and A3: ten thousand policies, a thousand pods of the node, a hundred
// thousand elsewhere. Every function is the whole work of a process of its own, whose result goes to package bench as JSON.
//
// It does not judge, and it makes no namespaces: it is started in those that package lab has made. It has no source: objects
// are written to the store as a source would write them.
package scale

import (
	"fmt"
	"net/netip"
	"path/filepath"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/selector"
	"weft/test/bench/lab"
)

// Size is how large a cluster is.
type Size struct{ Policies, Local, Remote int }

// Goal is the size that the goal table names.
func Goal() Size { return Size{Policies: 10_000, Local: 1_000, Remote: 100_000} }

// thisNode and otherNode are the names that package lab gives the two nodes of a pair.
const (
	thisNode  = "node-1"
	otherNode = "node-2"
)

// namespaces is how many of them the pods and policies are spread over: twenty policies each.
func (s Size) namespaces() int { return max(1, s.Policies/20) }

// objects are a cluster with policies as people write them: each isolates an application of its namespace and allows another by
// label on two ports, one in ten a prefix as well. The same objects as in internal/compile/policy's own benchmark.
func (s Size) objects() []model.Object {
	var out []model.Object
	ns := s.namespaces()
	for i := range ns {
		out = append(out, &model.Namespace{Name: fmt.Sprint("ns", i), Labels: map[string]string{"team": fmt.Sprint("t", i%50)}})
	}
	for i := range s.Local + s.Remote {
		pod := s.pod(i)
		out = append(out, pod)
		if i < s.Local {
			pod.Node = thisNode
			out = append(out, s.endpoint(i, pod))
		}
	}
	for i := range s.Policies {
		out = append(out, s.policy(i, "a2"))
	}
	return out
}

// pod is pod i of the cluster, of the other node.
func (s Size) pod(i int) *model.Pod {
	a := netip.AddrFrom4([4]byte{10, byte(i>>16) + 1, byte(i >> 8), byte(i)})
	if i < s.Local {
		a = s.localAddr(i)
	}
	return &model.Pod{
		PodRef: model.PodRef{Namespace: fmt.Sprint("ns", i%s.namespaces()), Name: fmt.Sprint("p", i)}, Node: otherNode, Addrs: []netip.Addr{a},
		Labels:  map[string]string{"app": fmt.Sprint("a", i/s.namespaces()%20), "pod-template-hash": fmt.Sprint(i)},
		Account: "default",
	}
}

func (s Size) localAddr(i int) netip.Addr {
	switch i {
	case server:
		return netset.Nth(podCIDR(1), 2)
	case s.client():
		return netset.Nth(podCIDR(1), 3)
	}
	return netip.AddrFrom4([4]byte{10, 200, byte(i >> 8), byte(i)})
}

func podCIDR(node int) netip.Prefix { return lab.Both(lab.PodPrefix, node)[0] }

// server is the local pod that policy 0 isolates, and client a local one of the same namespace and another application.
const server = 0

func (s Size) client() int { return s.namespaces() }

// hostIf is the host side of a local pod's link: veths for the two that packets go between, bare ones for the rest.
func (s Size) hostIf(i int) string {
	switch i {
	case server:
		return "lim0"
	case s.client():
		return "lim1"
	}
	return fmt.Sprint("bulk", i)
}

func (s Size) endpoint(i int, pod *model.Pod) *model.Endpoint {
	return &model.Endpoint{
		ID: fmt.Sprintf("c%d/eth0", i), Pod: pod.PodRef, Netns: filepath.Join(lab.NetnsDir, "x"), IfName: "eth0", HostIf: s.hostIf(i),
		MAC: model.MAC{2, 0, 0, 0, byte(i >> 8), byte(i)}, Addrs: pod.Addrs,
	}
}

// policy is policy i, allowing that application of the namespace.
func (s Size) policy(i int, peer string) *model.Policy {
	ns := fmt.Sprint("ns", i%s.namespaces())
	in := func(app string) *selector.Expr {
		return selector.AllOf(selector.Equal(selector.Kind, selector.KindPod), selector.Equal(selector.NamespaceName, ns), selector.Equal("app", app))
	}
	peers := []model.Peer{{Select: in(peer)}}
	if i%10 == 0 {
		peers = append(peers, model.Peer{Nets: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)}), 32)}})
	}
	ports := []model.L4{{Proto: model.ProtoTCP, Ports: []model.PortRange{{First: 80, Last: 80}, {First: 443, Last: 443}}}}
	if i == 0 {
		ports = append(ports, model.L4{Proto: model.ProtoUDP, Ports: []model.PortRange{{First: ProbePort, Last: ProbePort}}})
	}
	return &model.Policy{
		Ref: model.Ref{Group: "networking.k8s.io", Kind: "NetworkPolicy", Namespace: ns, Name: fmt.Sprint("np", i)}, Set: true, Order: 1000,
		Tier:    model.TierRef{Name: "normal", Order: model.TierNormal},
		Subject: in(fmt.Sprint("a", i/s.namespaces()%20)),
		Ingress: &model.Section{Isolates: true, Rules: []model.Rule{{Field: "spec.ingress[0]", Verdict: model.VerdictAllow, Peers: peers, L4: ports}}},
	}
}
