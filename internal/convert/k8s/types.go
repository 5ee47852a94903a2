package k8s

import "weft/internal/convert/wire"

// The structs below hold the fields of the Kubernetes API that weft uses, and no other.
// Their JSON names and their protobuf numbers (the cases of each read method) are those of
// k8s.io/api; a test compares both with the real ones.

// Meta is ObjectMeta.
type Meta struct {
	Name            string            `json:"name"`
	Namespace       string            `json:"namespace"`
	UID             string            `json:"uid"`
	ResourceVersion string            `json:"resourceVersion"`
	Labels          map[string]string `json:"labels"`
	Annotations     map[string]string `json:"annotations"`
}

func (m *Meta) read(f wire.Field) error {
	switch f.Num {
	case 1:
		m.Name = f.Text()
	case 3:
		m.Namespace = f.Shared()
	case 5:
		m.UID = f.Text()
	case 6:
		m.ResourceVersion = f.Text()
	case 11:
		return f.Entry(&m.Labels)
	case 12:
		return m.readAnnotation(f)
	}
	return nil
}

// readAnnotation keeps an annotation only if weft reads it: others are large and many.
func (m *Meta) readAnnotation(f wire.Field) error {
	known := false
	err := f.Message(func(f wire.Field) error {
		if f.Num == 1 {
			known = used(f.Bytes())
		}
		return nil
	})
	if err != nil || !known {
		return err
	}
	return f.Entry(&m.Annotations)
}

// Node is v1 Node.
type Node struct {
	Meta   Meta       `json:"metadata"`
	Spec   NodeSpec   `json:"spec"`
	Status NodeStatus `json:"status"`
}

// NodeSpec is v1 NodeSpec.
type NodeSpec struct {
	PodCIDR  string   `json:"podCIDR"`
	PodCIDRs []string `json:"podCIDRs"`
}

// NodeStatus is v1 NodeStatus.
type NodeStatus struct {
	Addresses []NodeAddress `json:"addresses"`
}

// NodeAddress is v1 NodeAddress.
type NodeAddress struct {
	Type    string `json:"type"`
	Address string `json:"address"`
}

func (n *Node) read(f wire.Field) error {
	switch f.Num {
	case 1:
		return f.Message(n.Meta.read)
	case 2:
		return f.Message(func(f wire.Field) error {
			switch f.Num {
			case 1:
				n.Spec.PodCIDR = f.Text()
			case 7:
				n.Spec.PodCIDRs = append(n.Spec.PodCIDRs, f.Text())
			}
			return nil
		})
	case 3:
		return f.Message(func(f wire.Field) error {
			if f.Num != 5 {
				return nil
			}
			n.Status.Addresses = append(n.Status.Addresses, NodeAddress{})
			return f.Message(n.Status.Addresses[len(n.Status.Addresses)-1].read)
		})
	}
	return nil
}

func (a *NodeAddress) read(f wire.Field) error {
	switch f.Num {
	case 1:
		a.Type = f.Shared()
	case 2:
		a.Address = f.Text()
	}
	return nil
}

// Namespace is v1 Namespace.
type Namespace struct {
	Meta Meta `json:"metadata"`
}

func (n *Namespace) read(f wire.Field) error {
	if f.Num == 1 {
		return f.Message(n.Meta.read)
	}
	return nil
}

// Pod is v1 Pod.
type Pod struct {
	Meta   Meta      `json:"metadata"`
	Spec   PodSpec   `json:"spec"`
	Status PodStatus `json:"status"`
}

// PodSpec is v1 PodSpec.
type PodSpec struct {
	NodeName           string      `json:"nodeName"`
	HostNetwork        bool        `json:"hostNetwork"`
	ServiceAccountName string      `json:"serviceAccountName"`
	Containers         []Container `json:"containers"`
	InitContainers     []Container `json:"initContainers"`
}

// Container is v1 Container.
type Container struct {
	RestartPolicy string          `json:"restartPolicy"`
	Ports         []ContainerPort `json:"ports"`
}

// ContainerPort is v1 ContainerPort.
type ContainerPort struct {
	Name          string `json:"name"`
	ContainerPort int64  `json:"containerPort"`
	Protocol      string `json:"protocol"`
}

// PodStatus is v1 PodStatus.
type PodStatus struct {
	Phase  string  `json:"phase"`
	PodIP  string  `json:"podIP"`
	PodIPs []PodIP `json:"podIPs"`
}

// PodIP is v1 PodIP.
type PodIP struct {
	IP string `json:"ip"`
}

func (p *Pod) read(f wire.Field) error {
	switch f.Num {
	case 1:
		return f.Message(p.Meta.read)
	case 2:
		return f.Message(p.Spec.read)
	case 3:
		return f.Message(p.Status.read)
	}
	return nil
}

func (s *PodSpec) read(f wire.Field) error {
	switch f.Num {
	case 2:
		s.Containers = append(s.Containers, Container{})
		return f.Message(s.Containers[len(s.Containers)-1].read)
	case 8:
		s.ServiceAccountName = f.Shared()
	case 10:
		s.NodeName = f.Shared()
	case 11:
		s.HostNetwork = f.Bool()
	case 20:
		s.InitContainers = append(s.InitContainers, Container{})
		return f.Message(s.InitContainers[len(s.InitContainers)-1].read)
	}
	return nil
}

func (c *Container) read(f wire.Field) error {
	switch f.Num {
	case 6:
		c.Ports = append(c.Ports, ContainerPort{})
		return f.Message(c.Ports[len(c.Ports)-1].read)
	case 24:
		c.RestartPolicy = f.Shared()
	}
	return nil
}

func (p *ContainerPort) read(f wire.Field) error {
	switch f.Num {
	case 1:
		p.Name = f.Shared()
	case 3:
		p.ContainerPort = f.Int()
	case 4:
		p.Protocol = f.Shared()
	}
	return nil
}

func (s *PodStatus) read(f wire.Field) error {
	switch f.Num {
	case 1:
		s.Phase = f.Shared()
	case 6:
		s.PodIP = f.Text()
	case 12:
		return f.Message(func(f wire.Field) error {
			if f.Num == 1 {
				s.PodIPs = append(s.PodIPs, PodIP{f.Text()})
			}
			return nil
		})
	}
	return nil
}

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
		l.Ingress = append(l.Ingress, Ingress{})
		return f.Message(l.Ingress[len(l.Ingress)-1].read)
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
		s.Ports = append(s.Ports, ServicePort{})
		return f.Message(s.Ports[len(s.Ports)-1].read)
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
	if f.Num != 1 && f.Num != 2 {
		return nil
	}
	list := &h.ForZones
	if f.Num == 2 {
		list = &h.ForNodes
	}
	return f.Message(func(f wire.Field) error {
		if f.Num == 1 {
			*list = append(*list, Named{f.Shared()})
		}
		return nil
	})
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
		e.Endpoints = append(e.Endpoints, Endpoint{})
		return f.Message(e.Endpoints[len(e.Endpoints)-1].read)
	case 3:
		e.Ports = append(e.Ports, Port{})
		return f.Message(e.Ports[len(e.Ports)-1].read)
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

// ServiceAccount is v1 ServiceAccount.
type ServiceAccount struct {
	Meta Meta `json:"metadata"`
}

func (a *ServiceAccount) read(f wire.Field) error {
	if f.Num == 1 {
		return f.Message(a.Meta.read)
	}
	return nil
}
