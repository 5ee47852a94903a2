package model

import (
	"strconv"
	"strings"

	"weft/internal/selector"
)

// PodLabels is what selectors see of a pod: its own labels, those of its namespace and service account, and the facts that
// package selector has keys for. Services are not among them: they belong to addresses.
type PodLabels struct {
	Pod       *Pod
	Namespace *Namespace      // nil: not known (yet); its name is
	Account   *ServiceAccount // nil: not known
}

// LabelsOf returns the pod's labels in a snapshot.
func LabelsOf(s Snapshot, p *Pod) PodLabels {
	return PodLabels{
		Pod:       p,
		Namespace: Get[*Namespace](s, Key{KindNamespace, p.Namespace}),
		Account:   Get[*ServiceAccount](s, Key{KindServiceAccount, p.Namespace + "/" + p.Account}),
	}
}

// Get implements selector.Labels.
func (l PodLabels) Get(key string) (string, bool) {
	switch key {
	case selector.Kind:
		return selector.KindPod, true
	case selector.NamespaceName, selector.Namespace + "kubernetes.io/metadata.name":
		return l.Pod.Namespace, true
	case selector.Name:
		return l.Pod.Name, true
	case selector.Node:
		return l.Pod.Node, true
	case selector.ServiceAccountName:
		return l.Pod.Account, l.Pod.Account != ""
	}
	if k, ok := strings.CutPrefix(key, selector.Namespace); ok {
		if l.Namespace == nil {
			return "", false
		}
		v, ok := l.Namespace.Labels[k]
		return v, ok
	}
	if k, ok := strings.CutPrefix(key, selector.ServiceAccount); ok {
		if l.Account == nil {
			return "", false
		}
		v, ok := l.Account.Labels[k]
		return v, ok
	}
	if k, ok := strings.CutPrefix(key, selector.Port); ok {
		return l.Pod.port(k)
	}
	v, ok := l.Pod.Labels[key]
	return v, ok
}

// port returns the number of a named port, "tcp/http".
func (p *Pod) port(protocolName string) (string, bool) {
	protocol, name, _ := strings.Cut(protocolName, "/")
	for _, o := range p.Ports {
		if o.Name == name && o.Protocol == protocol {
			return strconv.Itoa(int(o.Port)), true
		}
	}
	return "", false
}

// NodeLabels is what selectors see of a node: its labels, and which kind it is to the node that looks.
type NodeLabels struct {
	Node *Node
	Kind string // selector.KindHost or selector.KindRemoteNode
}

// Get implements selector.Labels.
func (l NodeLabels) Get(key string) (string, bool) {
	switch key {
	case selector.Kind:
		return l.Kind, true
	case selector.Name, selector.Node:
		return l.Node.Name, true
	}
	v, ok := l.Node.Labels[key]
	return v, ok
}

// SetLabels is what selectors see of an address set: its own labels and, if it is in a namespace, that one's.
type SetLabels struct {
	Own       selector.Map
	Namespace *Namespace // nil: it has none, or one that is not known
}

// SetLabelsOf returns the labels of an address set in a snapshot.
func SetLabelsOf(s Snapshot, a *AddressSet) SetLabels {
	l := SetLabels{Own: a.Labels}
	if ns, ok := a.Labels[selector.NamespaceName]; ok {
		l.Namespace = Get[*Namespace](s, Key{KindNamespace, ns})
	}
	return l
}

// Get implements selector.Labels.
func (l SetLabels) Get(key string) (string, bool) {
	if v, ok := l.Own[key]; ok {
		return v, true
	}
	k, ok := strings.CutPrefix(key, selector.Namespace)
	if !ok || l.Namespace == nil {
		return "", false
	}
	v, ok := l.Namespace.Labels[k]
	return v, ok
}

// WithServices is labels of an endpoint together with the services that it is a backend of.
type WithServices struct {
	selector.Labels
	Services func(name string) bool // "namespace/name"
}

// Get implements selector.Labels.
func (l WithServices) Get(key string) (string, bool) {
	if svc, ok := strings.CutPrefix(key, selector.Service); ok {
		return "", l.Services(svc)
	}
	return l.Labels.Get(key)
}
