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

// element reads a field that is one message of a list into a new end of it.
func element[T any](list *[]T, f wire.Field, read func(*T, wire.Field) error) error {
	*list = append(*list, *new(T))
	last := &(*list)[len(*list)-1]
	return f.Message(func(f wire.Field) error { return read(last, f) })
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
			return element(&n.Status.Addresses, f, (*NodeAddress).read)
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
		return element(&s.Containers, f, (*Container).read)
	case 8:
		s.ServiceAccountName = f.Shared()
	case 10:
		s.NodeName = f.Shared()
	case 11:
		s.HostNetwork = f.Bool()
	case 20:
		return element(&s.InitContainers, f, (*Container).read)
	}
	return nil
}

func (c *Container) read(f wire.Field) error {
	switch f.Num {
	case 6:
		return element(&c.Ports, f, (*ContainerPort).read)
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
