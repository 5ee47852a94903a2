package k8s

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weft/internal/model"
	"weft/internal/netset"
)

// The annotations and labels that weft reads.
const (
	annIPs          = "weft.io/ips" // "10.0.0.5,fd00::5" or a JSON list of strings
	annMAC          = "weft.io/mac"
	annCalicoIPs    = "cni.projectcalico.org/ipAddrs" // the same as weft.io/ips, which wins
	annCalicoMAC    = "cni.projectcalico.org/hwAddr"
	annIngress      = "kubernetes.io/ingress-bandwidth"
	annEgress       = "kubernetes.io/egress-bandwidth"
	annFlannel      = "flannel.alpha.coreos.com/backend-type"
	annFlannelData  = "flannel.alpha.coreos.com/backend-data"
	annFlannelDataB = "flannel.alpha.coreos.com/backend-v6-data"
	annFlannelIP    = "flannel.alpha.coreos.com/public-ip"
	annFlannelIPB   = "flannel.alpha.coreos.com/public-ipv6"

	// AnnInitialEnd marks the bookmark that ends the initial events of a watch list (KEP-3157).
	AnnInitialEnd = "k8s.io/initial-events-end"

	labelService = "kubernetes.io/service-name"
)

// used reports whether weft reads the annotation.
func used(name []byte) bool {
	switch string(name) {
	case annIPs, annMAC, annCalicoIPs, annCalicoMAC, annIngress, annEgress, annFlannel, annFlannelData,
		annFlannelDataB, annFlannelIP, annFlannelIPB, AnnInitialEnd:
		return true
	}
	return false
}

// problems collects what is wrong with one object.
type problems struct {
	object string // "pod default/web"
	errs   []error
}

func (p *problems) add(format string, a ...any) {
	p.errs = append(p.errs, fmt.Errorf(p.object+": "+format, a...))
}

func (p *problems) err() error { return errors.Join(p.errs...) }

// addr parses an address of a field.
func (p *problems) addr(field, s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(strings.TrimSpace(s))
	if err != nil || a.Zone() != "" {
		p.add("%s: %q is not an IP address", field, s)
		return netip.Addr{}, false
	}
	return a.Unmap(), true
}

// Model converts. Malformed addresses and prefixes are left out and named in the error.
func (n *Node) Model() (model.Object, error) {
	p := problems{object: "node " + n.Meta.Name}
	out := &model.Node{Name: n.Meta.Name, Labels: labels(n.Meta)}
	for i, a := range n.Status.Addresses {
		if a.Type != "InternalIP" {
			continue
		}
		if addr, ok := p.addr(fmt.Sprintf("status.addresses[%d]", i), a.Address); ok && !slices.Contains(out.Addrs, addr) {
			out.Addrs = append(out.Addrs, addr)
		}
	}
	cidrs, field := n.Spec.PodCIDRs, "spec.podCIDRs"
	if len(cidrs) == 0 && n.Spec.PodCIDR != "" {
		cidrs, field = []string{n.Spec.PodCIDR}, "spec.podCIDR"
	}
	for _, c := range cidrs {
		pfx, err := netip.ParsePrefix(c)
		if err != nil {
			p.add("%s: %q is not a prefix in CIDR notation", field, c)
			continue
		}
		out.PodCIDRs = append(out.PodCIDRs, pfx)
	}
	out.VTEPMAC = n.vtep(&p, out.Addrs)
	return out, p.err()
}

// vtep returns the MAC of the node's VXLAN device where flannel runs on it and said so. Annotations of another
// address than the node's are left over from an earlier life of the node and are not used. The device of
// the second family counts only where there is none of the first.
func (n *Node) vtep(p *problems, addrs []netip.Addr) model.MAC {
	if n.Meta.Annotations[annFlannel] != "vxlan" {
		return model.MAC{}
	}
	for _, a := range []struct{ data, ip string }{{annFlannelData, annFlannelIP}, {annFlannelDataB, annFlannelIPB}} {
		raw := n.Meta.Annotations[a.data]
		if raw == "" || raw == "null" {
			continue
		}
		if s := n.Meta.Annotations[a.ip]; s != "" {
			if ip, ok := p.addr("annotation "+a.ip, s); !ok || !slices.Contains(addrs, ip) {
				continue
			}
		}
		var data struct{ VtepMAC model.MAC }
		if err := json.Unmarshal([]byte(raw), &data); err != nil {
			p.add("annotation %s: %w", a.data, err)
			continue
		}
		return data.VtepMAC
	}
	return model.MAC{}
}

// Model converts.
func (n *Namespace) Model() (model.Object, error) {
	return &model.Namespace{Name: n.Meta.Name, Labels: labels(n.Meta)}, nil
}

// Model converts. Malformed annotations are in the pod's Problem, not in the error: the pod gets a network.
func (p *Pod) Model() (model.Object, error) {
	errs := problems{object: "pod " + p.Meta.Namespace + "/" + p.Meta.Name}
	out := &model.Pod{
		PodRef:      model.PodRef{Namespace: p.Meta.Namespace, Name: p.Meta.Name, UID: p.Meta.UID},
		Node:        p.Spec.NodeName,
		HostNetwork: p.Spec.HostNetwork,
		Finished:    p.Status.Phase == "Succeeded" || p.Status.Phase == "Failed",
		Labels:      labels(p.Meta),
		Account:     p.Spec.ServiceAccountName,
		Ports:       errs.containerPorts(&p.Spec),
	}
	if out.Account == "" {
		out.Account = "default" // as the API server fills it in
	}
	ips := p.Status.PodIPs
	if len(ips) == 0 && p.Status.PodIP != "" {
		ips = []PodIP{{p.Status.PodIP}}
	}
	for i, ip := range ips {
		if out.Finished {
			break // its addresses may already be another pod's
		}
		if a, ok := errs.addr(fmt.Sprintf("status.podIPs[%d]", i), ip.IP); ok {
			out.Addrs = append(out.Addrs, a)
		}
	}
	p.wishes(out)
	return out, errs.err()
}

// containerPorts returns the named ports of the containers, then those of the sidecars (init containers that keep running): where two have
// one name, the first counts, as it does for services.
func (p *problems) containerPorts(s *PodSpec) []model.Port {
	var out []model.Port
	read := func(field string, ports []ContainerPort) {
		for i, c := range ports {
			if c.Name == "" {
				continue
			}
			port := Port{Name: c.Name, Protocol: c.Protocol, Port: c.ContainerPort}
			if v, ok := p.port(fmt.Sprintf("%s.ports[%d]", field, i), "containerPort", port, 1); ok {
				out = append(out, v)
			}
		}
	}
	for i, c := range s.Containers {
		read(fmt.Sprintf("spec.containers[%d]", i), c.Ports)
	}
	for i, c := range s.InitContainers {
		if c.RestartPolicy == "Always" {
			read(fmt.Sprintf("spec.initContainers[%d]", i), c.Ports)
		}
	}
	return out
}

// wishes reads the annotations.
func (p *Pod) wishes(out *model.Pod) {
	bad := problems{object: "pod " + p.Meta.Namespace + "/" + p.Meta.Name}
	if name, v, ok := first(p.Meta.Annotations, annIPs, annCalicoIPs); ok {
		out.WantAddrs = bad.addrs("annotation "+name, v)
	}
	if name, v, ok := first(p.Meta.Annotations, annMAC, annCalicoMAC); ok {
		mac, err := model.ParseMAC(v)
		if err != nil {
			bad.add("annotation %s: %w", name, err)
		}
		out.WantMAC = mac
	}
	out.Ingress = bad.rate(p.Meta.Annotations, annIngress)
	out.Egress = bad.rate(p.Meta.Annotations, annEgress)
	out.Problem = bad.err()
}

// first returns the first of the annotations that is there.
func first(m map[string]string, names ...string) (name, value string, ok bool) {
	for _, name := range names {
		if v, ok := m[name]; ok {
			return name, v, true
		}
	}
	return "", "", false
}

// addrs parses a list of addresses, at most one a family. Of a list with a mistake nothing is used.
func (p *problems) addrs(field, v string) []netip.Addr {
	list := strings.Split(v, ",")
	if strings.HasPrefix(strings.TrimSpace(v), "[") {
		if err := json.Unmarshal([]byte(v), &list); err != nil {
			p.add("%s: %q is not a JSON list of strings", field, v)
			return nil
		}
	}
	var out []netip.Addr
	for _, s := range list {
		a, ok := p.addr(field, s)
		if !ok {
			return nil
		}
		if other := netset.First(out, netset.Of(a)); other.IsValid() {
			p.add("%s: %s and %s are both %s; at most one address of each family", field, other, a, netset.Of(a))
			return nil
		}
		out = append(out, a)
	}
	return out
}

// The least and most that a bandwidth annotation may say, in bit/s, as kubelet and the bandwidth plugin have it.
const (
	minRate = 1e3
	maxRate = 1e15
)

// rate reads a bandwidth annotation.
func (p *problems) rate(m map[string]string, name string) *model.Rate {
	v, ok := m[name]
	if !ok {
		return nil
	}
	bits, err := quantity(v)
	switch {
	case err != nil:
		p.add("annotation %s: %w", name, err)
		return nil
	case bits < minRate || bits > maxRate:
		p.add("annotation %s: %q is not in 1k..1P bit/s", name, v)
		return nil
	}
	return &model.Rate{Bits: bits}
}

// labels returns the object's labels, never nil.
func labels(m Meta) map[string]string {
	if m.Labels == nil {
		return map[string]string{}
	}
	return m.Labels
}

// Model converts.
func (a *ServiceAccount) Model() (model.Object, error) {
	return &model.ServiceAccount{Namespace: a.Meta.Namespace, Name: a.Meta.Name, Labels: labels(a.Meta)}, nil
}
