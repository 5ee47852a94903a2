package k8s

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	"weft/internal/convert/wire"
	"weft/internal/model"
	"weft/internal/netset"
)

// Service is v1 Service.
type Service struct {
	Meta   Meta          `json:"metadata"`
	Spec   ServiceSpec   `json:"spec"`
	Status ServiceStatus `json:"status"`
}

// ServiceSpec is v1 ServiceSpec.
type ServiceSpec struct {
	Type                     string          `json:"type"`
	ClusterIP                string          `json:"clusterIP"`
	ClusterIPs               []string        `json:"clusterIPs"`
	ExternalIPs              []string        `json:"externalIPs"`
	Ports                    []ServicePort   `json:"ports"`
	LoadBalancerSourceRanges []string        `json:"loadBalancerSourceRanges"`
	SessionAffinity          string          `json:"sessionAffinity"`
	SessionAffinityConfig    *AffinityConfig `json:"sessionAffinityConfig"`
	InternalTrafficPolicy    string          `json:"internalTrafficPolicy"`
	ExternalTrafficPolicy    string          `json:"externalTrafficPolicy"`
	HealthCheckNodePort      int64           `json:"healthCheckNodePort"`
}

// AffinityConfig is v1 SessionAffinityConfig.
type AffinityConfig struct {
	ClientIP *ClientIP `json:"clientIP"`
}

// ClientIP is v1 ClientIPConfig.
type ClientIP struct {
	TimeoutSeconds *int64 `json:"timeoutSeconds"`
}

// ServiceStatus is v1 ServiceStatus.
type ServiceStatus struct {
	LoadBalancer LoadBalancer `json:"loadBalancer"`
}

// LoadBalancer is v1 LoadBalancerStatus.
type LoadBalancer struct {
	Ingress []Ingress `json:"ingress"`
}

// Ingress is v1 LoadBalancerIngress. One of a balancer that has only a name has no IP.
type Ingress struct {
	IP     string `json:"ip"`
	IPMode string `json:"ipMode"`
}

// Port is discovery.k8s.io/v1 EndpointPort, and what v1 ServicePort has as well. In the former, an absent
// name is the same as an empty one and an absent port stands for every port.
type Port struct {
	Name     string `json:"name"`
	Protocol string `json:"protocol"`
	Port     int64  `json:"port"`
}

// ServicePort is v1 ServicePort.
type ServicePort struct {
	Port
	NodePort int64 `json:"nodePort"`
}

func (p *ServicePort) read(f wire.Field) error {
	if f.Num == 5 {
		p.NodePort = f.Int()
	}
	return p.Port.read(f)
}

func (p *Port) read(f wire.Field) error {
	switch f.Num {
	case 1:
		p.Name = f.Shared()
	case 2:
		p.Protocol = f.Shared()
	case 3:
		p.Port = f.Int()
	}
	return nil
}

func (s *Service) read(f wire.Field) error {
	switch f.Num {
	case 1:
		return f.Message(s.Meta.read)
	case 2:
		return f.Message(s.Spec.read)
	case 3:
		return f.Message(s.Status.read)
	}
	return nil
}

func (s *ServiceStatus) read(f wire.Field) error {
	if f.Num == 1 {
		return f.Message(s.LoadBalancer.read)
	}
	return nil
}

func (l *LoadBalancer) read(f wire.Field) error {
	if f.Num == 1 {
		return element(&l.Ingress, f, (*Ingress).read)
	}
	return nil
}

func (i *Ingress) read(f wire.Field) error {
	switch f.Num {
	case 1:
		i.IP = f.Text()
	case 3:
		i.IPMode = f.Shared()
	}
	return nil
}

func (a *AffinityConfig) read(f wire.Field) error {
	if f.Num != 1 {
		return nil
	}
	a.ClientIP = &ClientIP{}
	return f.Message(func(f wire.Field) error {
		if f.Num == 1 {
			v := f.Int()
			a.ClientIP.TimeoutSeconds = &v
		}
		return nil
	})
}

func (s *ServiceSpec) read(f wire.Field) error {
	switch f.Num {
	case 1:
		return element(&s.Ports, f, (*ServicePort).read)
	case 3:
		s.ClusterIP = f.Text()
	case 4:
		s.Type = f.Shared()
	case 5:
		s.ExternalIPs = append(s.ExternalIPs, f.Text())
	case 7:
		s.SessionAffinity = f.Shared()
	case 9:
		s.LoadBalancerSourceRanges = append(s.LoadBalancerSourceRanges, f.Text())
	case 11:
		s.ExternalTrafficPolicy = f.Shared()
	case 12:
		s.HealthCheckNodePort = f.Int()
	case 14:
		s.SessionAffinityConfig = &AffinityConfig{}
		return f.Message(s.SessionAffinityConfig.read)
	case 18:
		s.ClusterIPs = append(s.ClusterIPs, f.Text())
	case 22:
		s.InternalTrafficPolicy = f.Shared()
	}
	return nil
}

// EndpointSlice is discovery.k8s.io/v1 EndpointSlice.
type EndpointSlice struct {
	Meta        Meta       `json:"metadata"`
	AddressType string     `json:"addressType"`
	Endpoints   []Endpoint `json:"endpoints"`
	Ports       []Port     `json:"ports"`
}

// Endpoint is discovery.k8s.io/v1 Endpoint. A condition that is nil was absent.
type Endpoint struct {
	Addresses  []string   `json:"addresses"`
	Conditions Conditions `json:"conditions"`
	NodeName   string     `json:"nodeName"`
	Hints      *Hints     `json:"hints"`
}

// Hints is discovery.k8s.io/v1 EndpointHints.
type Hints struct {
	ForZones []Named `json:"forZones"`
	ForNodes []Named `json:"forNodes"`
}

// Named is discovery.k8s.io/v1 ForZone or ForNode.
type Named struct {
	Name string `json:"name"`
}

func (h *Hints) read(f wire.Field) error {
	switch f.Num {
	case 1:
		return element(&h.ForZones, f, (*Named).read)
	case 2:
		return element(&h.ForNodes, f, (*Named).read)
	}
	return nil
}

func (n *Named) read(f wire.Field) error {
	if f.Num == 1 {
		n.Name = f.Shared()
	}
	return nil
}

// Conditions is discovery.k8s.io/v1 EndpointConditions.
type Conditions struct {
	Ready       *bool `json:"ready"`
	Serving     *bool `json:"serving"`
	Terminating *bool `json:"terminating"`
}

func (e *EndpointSlice) read(f wire.Field) error {
	switch f.Num {
	case 1:
		return f.Message(e.Meta.read)
	case 2:
		return element(&e.Endpoints, f, (*Endpoint).read)
	case 3:
		return element(&e.Ports, f, (*Port).read)
	case 4:
		e.AddressType = f.Shared()
	}
	return nil
}

func (e *Endpoint) read(f wire.Field) error {
	switch f.Num {
	case 1:
		e.Addresses = append(e.Addresses, f.Text())
	case 2:
		return f.Message(e.Conditions.read)
	case 6:
		e.NodeName = f.Shared()
	case 8:
		e.Hints = &Hints{}
		return f.Message(e.Hints.read)
	}
	return nil
}

func (c *Conditions) read(f wire.Field) error {
	v := f.Bool()
	switch f.Num {
	case 1:
		c.Ready = &v
	case 2:
		c.Serving = &v
	case 3:
		c.Terminating = &v
	}
	return nil
}

// The labels by which somebody else serves a service (Kubernetes well-known labels).
const (
	labelProxy    = "service.kubernetes.io/service-proxy-name"
	labelHeadless = "service.kubernetes.io/headless"
)

// defaultAffinity is spec.sessionAffinityConfig.clientIP.timeoutSeconds where it is absent, in seconds; maxAffinity is its limit.
const (
	defaultAffinity = 10800
	maxAffinity     = 86400
)

// Model converts: the addresses are the cluster IPs, none for a headless service.
func (s *Service) Model() (model.Object, error) {
	p := problems{object: "service " + s.Meta.Namespace + "/" + s.Meta.Name}
	out := &model.Service{Namespace: s.Meta.Namespace, Name: s.Meta.Name, Type: cmp.Or(s.Spec.Type, "ClusterIP")}
	for _, l := range []string{labelProxy, labelHeadless} {
		if _, ok := s.Meta.Labels[l]; ok {
			out.Elsewhere = l
			break
		}
	}
	ips := s.Spec.ClusterIPs
	if len(ips) == 0 {
		ips = []string{s.Spec.ClusterIP}
	}
	for _, ip := range ips {
		if ip == "" || ip == "None" {
			continue
		}
		if a, ok := p.addr("spec.clusterIPs", ip); ok {
			out.Addrs = append(out.Addrs, a)
		}
	}
	for i, ip := range s.Spec.ExternalIPs {
		if a, ok := p.addr(fmt.Sprintf("spec.externalIPs[%d]", i), ip); ok {
			out.ExternalIPs = append(out.ExternalIPs, a)
		}
	}
	for i, in := range s.Status.LoadBalancer.Ingress {
		if in.IP == "" || in.IPMode == "Proxy" {
			continue
		}
		if a, ok := p.addr(fmt.Sprintf("status.loadBalancer.ingress[%d].ip", i), in.IP); ok {
			out.Balancers = append(out.Balancers, a)
		}
	}
	if len(s.Spec.LoadBalancerSourceRanges) > 0 {
		out.SourceRanges = []netip.Prefix{} // if none of them is understood, nobody is let in
	}
	for i, r := range s.Spec.LoadBalancerSourceRanges {
		c, err := netip.ParsePrefix(strings.TrimSpace(r)) // which the API allows here
		if err != nil {
			p.add("spec.loadBalancerSourceRanges[%d]: %w", i, err)
			continue
		}
		out.SourceRanges = append(out.SourceRanges, c.Masked())
	}
	for i, port := range s.Spec.Ports {
		field := fmt.Sprintf("spec.ports[%d]", i)
		v, ok := p.port(field, "port", port.Port, 1)
		if ok {
			out.Ports = append(out.Ports, model.ServicePort{Port: v, NodePort: p.number(field+".nodePort", port.NodePort)})
		}
	}
	out.HealthPort = p.number("spec.healthCheckNodePort", s.Spec.HealthCheckNodePort)
	out.InternalLocal = p.local("spec.internalTrafficPolicy", s.Spec.InternalTrafficPolicy)
	out.ExternalLocal = p.local("spec.externalTrafficPolicy", s.Spec.ExternalTrafficPolicy)
	out.Affinity = p.affinity(&s.Spec)
	return out, p.err()
}

// number converts a port number that may be absent.
func (p *problems) number(field string, n int64) uint16 {
	if n < 0 || n > math.MaxUint16 {
		p.add("%s: %d is not in 0..65535", field, n)
		return 0
	}
	return uint16(n)
}

// local reads a traffic policy.
func (p *problems) local(field, v string) bool {
	if v != "" && v != "Cluster" && v != "Local" {
		p.add("%s: %q is not Cluster or Local", field, v)
	}
	return v == "Local"
}

// affinity is how long a client keeps its backend, in seconds; 0: it does not.
func (p *problems) affinity(s *ServiceSpec) int {
	switch s.SessionAffinity {
	case "", "None":
		return 0
	case "ClientIP":
	default:
		p.add("spec.sessionAffinity: %q is not None or ClientIP", s.SessionAffinity)
		return 0
	}
	if c := s.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		n := *c.ClientIP.TimeoutSeconds
		if n < 1 || n > maxAffinity {
			p.add("spec.sessionAffinityConfig.clientIP.timeoutSeconds: %d is not in 1..%d", n, maxAffinity)
			return 0
		}
		return int(n)
	}
	return defaultAffinity
}

// ports converts ports; least is 0 where an absent port is allowed.
func (p *problems) ports(field string, in []Port, least int64) []model.Port {
	var out []model.Port
	for i, port := range in {
		if v, ok := p.port(fmt.Sprintf("%s[%d]", field, i), "port", port, least); ok {
			out = append(out, v)
		}
	}
	return out
}

// port converts a port, whose number is in the field of that name.
func (p *problems) port(field, number string, in Port, least int64) (model.Port, bool) {
	proto := strings.ToLower(in.Protocol)
	if proto == "" {
		proto = "tcp"
	}
	switch {
	case in.Port < least || in.Port > math.MaxUint16:
		p.add("%s.%s: %d is not in %d..65535", field, number, in.Port, least)
		return model.Port{}, false
	case !slices.Contains([]string{"tcp", "udp", "sctp"}, proto):
		p.add("%s.protocol: %q is not TCP, UDP or SCTP", field, in.Protocol)
		return model.Port{}, false
	}
	return model.Port{Name: in.Name, Protocol: proto, Port: uint16(in.Port)}, true
}

// Model converts. A slice of host names (addressType FQDN) has no backends.
func (e *EndpointSlice) Model() (model.Object, error) {
	p := problems{object: "endpointslice " + e.Meta.Namespace + "/" + e.Meta.Name}
	out := &model.Backends{Namespace: e.Meta.Namespace, Name: e.Meta.Name, Service: e.Meta.Labels[labelService]}
	for _, f := range netset.Families() {
		if f.String() == e.AddressType {
			out.Family = f
		}
	}
	if out.Family == 0 {
		if e.AddressType != "FQDN" {
			p.add("addressType: %q is not IPv4, IPv6 or FQDN", e.AddressType)
		}
		return out, p.err()
	}
	out.Ports = p.ports("ports", e.Ports, 0)
	out.Backends = make([]model.Backend, 0, len(e.Endpoints))
	for i, ep := range e.Endpoints {
		b := ep.Conditions.model()
		b.Node, b.Hints = ep.NodeName, ep.Hints.model()
		// Only the first address has a meaning (KEP-752).
		if len(ep.Addresses) == 0 {
			p.add("endpoints[%d].addresses is empty", i)
			continue
		}
		a, ok := p.addr(fmt.Sprintf("endpoints[%d].addresses[0]", i), ep.Addresses[0])
		if !ok {
			continue
		}
		if netset.Of(a) != out.Family {
			p.add("endpoints[%d].addresses[0]: %s is not %s", i, a, out.Family)
			continue
		}
		b.Addr = a
		out.Backends = append(out.Backends, b)
	}
	return out, p.err()
}

// model applies the defaults: an unknown ready is true, an unknown serving is ready.
func (c Conditions) model() model.Backend {
	is := func(b *bool, otherwise bool) bool {
		if b == nil {
			return otherwise
		}
		return *b
	}
	ready := is(c.Ready, true)
	return model.Backend{Ready: ready, Serving: is(c.Serving, ready), Terminating: is(c.Terminating, false)}
}

// model is nil where there are no hints.
func (h *Hints) model() *model.Hints {
	if h == nil || len(h.ForZones)+len(h.ForNodes) == 0 {
		return nil
	}
	out := &model.Hints{}
	for _, z := range h.ForZones {
		out.Zones = append(out.Zones, z.Name)
	}
	for _, n := range h.ForNodes {
		out.Nodes = append(out.Nodes, n.Name)
	}
	return out
}
