package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"weft/internal/host"
	"weft/internal/lab/kubelet"
	"weft/internal/lab/objects"
)

// Get lists objects. what is a kind in any of the forms that kubectl takes (pod, pods,
// po …), or "all"; namespace "" is all namespaces; names, if any, choose.
func (l *Lab) Get(what, namespace string, names ...string) ([]*objects.Object, error) {
	all, err := l.store.List("")
	if err != nil {
		return nil, err
	}
	var out []*objects.Object
	for _, o := range all {
		if what != "all" && !isKind(o.GetKind(), what) {
			continue
		}
		if o.GetNamespace() != "" && namespace != "" && o.GetNamespace() != namespace {
			continue
		}
		if len(names) > 0 && !slices.Contains(names, o.GetName()) {
			continue
		}
		out = append(out, o)
	}
	for _, n := range names {
		if !slices.ContainsFunc(out, func(o *objects.Object) bool { return o.GetName() == n }) {
			return nil, fmt.Errorf("%s %q is not in lab %s", what, n, l.opts.Name)
		}
	}
	return out, nil
}

// isKind reports whether word means the kind: its name, plural or usual short form.
func isKind(kind, word string) bool {
	word, _, _ = strings.Cut(strings.ToLower(word), ".")
	k := strings.ToLower(kind)
	short := map[string]string{
		"po": "pod", "no": "node", "ns": "namespace", "svc": "service", "deploy": "deployment", "rs": "replicaset",
		"sts": "statefulset", "ds": "daemonset", "netpol": "networkpolicy", "cm": "configmap", "ep": "endpoints",
	}
	plurals := []string{k, k + "s", k + "es", strings.TrimSuffix(k, "y") + "ies"}
	return short[word] == k || slices.Contains(plurals, word)
}

// Pod finds one pod: "name" or "namespace/name", or the name of a workload, which
// stands for its first pod that is ready.
func (l *Lab) Pod(namespace, name string) (*corev1.Pod, error) {
	if ns, n, ok := strings.Cut(name, "/"); ok {
		namespace, name = ns, n
	}
	objs, err := l.store.List("Pod")
	if err != nil {
		return nil, err
	}
	var first *objects.Object
	var near []string
	for _, o := range objs {
		if o.GetNamespace() != namespace {
			if o.GetName() == name {
				near = append(near, o.GetNamespace()+"/"+o.GetName())
			}
			continue
		}
		if o.GetName() == name {
			return objects.Decode[corev1.Pod](o)
		}
		owners := o.GetOwnerReferences()
		if len(owners) == 0 || owners[0].Name != name {
			continue
		}
		if ready, _ := podReady(o); ready || first == nil {
			if first == nil || ready {
				first = o
			}
			if ready {
				break
			}
		}
	}
	if first != nil {
		return objects.Decode[corev1.Pod](first)
	}
	hint := ""
	if len(near) > 0 {
		hint = "; there is " + strings.Join(near, " and ") + " (-n NAMESPACE)"
	}
	return nil, fmt.Errorf("pod %s/%s is not in lab %s%s", namespace, name, l.opts.Name, hint)
}

// podDir is the directory of a pod's host, seen from outside of its node.
func (l *Lab) podDir(pod *corev1.Pod) string {
	return filepath.Join(host.Path(l.hostDir(pod.Spec.NodeName), kubelet.PodsDir), string(pod.UID))
}

// PodHost is the running pod as a host.
func (l *Lab) PodHost(pod *corev1.Pod) (*host.Host, error) {
	h, err := host.Open(l.podDir(pod))
	if errors.Is(err, host.ErrNotRunning) {
		why := pod.Status.Message
		if why == "" {
			why = strings.ToLower(cmp.Or(string(pod.Status.Phase), "pending"))
		}
		return nil, fmt.Errorf("pod %s/%s does not run on %s: %s", pod.Namespace, pod.Name, pod.Spec.NodeName, why)
	}
	return h, err
}

// Logs is the path of a container's log; container "" is the only or first one that
// has a command.
func (l *Lab) Logs(pod *corev1.Pod, container string) (string, error) {
	var names []string
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		names = append(names, c.Name)
		if container == "" && len(c.Command) > 0 {
			container = c.Name
		}
	}
	if container == "" {
		return filepath.Join(l.podDir(pod), "log", "init.log"), nil // of the responder
	}
	if !slices.Contains(names, container) {
		return "", fmt.Errorf("pod %s/%s has no container %q, only %s", pod.Namespace, pod.Name, container, strings.Join(names, ", "))
	}
	return filepath.Join(l.podDir(pod), "log", container+".log"), nil
}

// Party is one end of a probe: a pod, a node, the outside or an address.
type Party struct {
	Name  string
	Addrs []netip.Addr // in the order of the lab's families
	Netns string       // "" of an address, and of what is down
	Down  error        // why there is no Netns
	Port  uint16       // the first TCP port that a pod declares, else 0
	Proto string       // of Port
}

// Party finds an end of a probe by name.
func (l *Lab) Party(namespace, name string) (*Party, error) {
	if a, err := netip.ParseAddr(name); err == nil {
		return &Party{Name: name, Addrs: []netip.Addr{a}}, nil
	}
	if name == OutsideHost || slices.Contains(l.NodeNames(), name) {
		h, err := l.Host(name)
		p := &Party{Name: name, Down: err, Addrs: addrsOf(l.opts.families(), outsideAddrs()...), Port: 80, Proto: "tcp"}
		if err == nil {
			p.Netns = h.Netns()
		}
		for _, n := range l.opts.nodes() {
			if n.Name == name {
				p.Addrs, p.Port, p.Proto = addrsOf(l.opts.families(), hostsOf(n.addrs())...), 0, ""
			}
		}
		return p, nil
	}
	pod, err := l.Pod(namespace, name)
	if err != nil {
		return nil, fmt.Errorf("%q is no node, address or \"outside\": %w", name, err)
	}
	h, err := l.PodHost(pod)
	p := &Party{Name: pod.Name, Down: err}
	if err == nil {
		p.Netns = h.Netns()
	}
	for _, ip := range pod.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			p.Addrs = append(p.Addrs, a)
		}
	}
	if p.Addrs = addrsOf(l.opts.families(), p.Addrs...); len(p.Addrs) == 0 {
		return nil, cmp.Or(err, fmt.Errorf("pod %s/%s has no address yet", pod.Namespace, pod.Name))
	}
	for _, c := range pod.Spec.Containers {
		for _, port := range c.Ports {
			if p.Port == 0 {
				p.Port, p.Proto = uint16(port.ContainerPort), strings.ToLower(cmp.Or(string(port.Protocol), "tcp"))
			}
		}
	}
	return p, nil
}

// NodeStatus is what a node is doing.
type NodeStatus struct {
	Name      string        `json:"name"`
	Up        bool          `json:"up"`
	Ready     bool          `json:"ready"` // up, agent running and its CNI configuration installed
	Processes []host.Status `json:"processes,omitempty"`
	Pods      int           `json:"pods"`
	Addrs     []netip.Addr  `json:"addrs"`
	PodCIDRs  []string      `json:"podCIDRs"`
}

// NodeStatuses asks all nodes what they are doing.
func (l *Lab) NodeStatuses(ctx context.Context) ([]NodeStatus, error) {
	load, err := l.load()
	if err != nil {
		return nil, err
	}
	nodes := l.opts.nodes()
	out := make([]NodeStatus, len(nodes))
	err = each(nodes, func(n node) error {
		st := &out[n.Index-1]
		*st = NodeStatus{Name: n.Name, Pods: load[n.Name], Addrs: addrsOf(l.opts.families(), hostsOf(n.addrs())...)}
		for _, p := range prefixesOf(l.opts.families(), n.podCIDRs()...) {
			st.PodCIDRs = append(st.PodCIDRs, p.String())
		}
		h, err := host.Open(l.hostDir(n.Name))
		if errors.Is(err, host.ErrNotRunning) {
			return nil
		}
		if err != nil {
			return err
		}
		if st.Processes, err = h.Processes(ctx); errors.Is(err, host.ErrNotRunning) {
			return nil
		} else if err != nil {
			return err
		}
		st.Up = true
		conf, err := hasConf(filepath.Join(h.Root(), kubelet.ConfDir))
		st.Ready = conf && !slices.ContainsFunc(st.Processes, func(p host.Status) bool { return p.State != host.Running })
		return err
	})
	return out, err
}

// PodSummary is a pod in one line.
type PodSummary struct {
	Status   string // Running, Pending, Terminating, or why it is not ready
	Restarts int
	Addrs    []netip.Addr
	Node     string
	Labels   string // "a=b,c=d"
	Message  string
}

// Summarize reads what a Pod object says of itself.
func Summarize(o *objects.Object) PodSummary {
	pod, err := objects.Decode[corev1.Pod](o)
	if err != nil {
		return PodSummary{Status: "Invalid", Message: err.Error()}
	}
	s := PodSummary{Status: cmp.Or(string(pod.Status.Phase), "Pending"), Node: pod.Spec.NodeName, Message: pod.Status.Message, Labels: labels.Set(pod.Labels).String()}
	for _, c := range pod.Status.ContainerStatuses {
		s.Restarts += int(c.RestartCount)
		if c.State.Waiting != nil {
			s.Status = c.State.Waiting.Reason
			s.Message = cmp.Or(s.Message, c.State.Waiting.Message)
		}
	}
	if pod.DeletionTimestamp != nil {
		s.Status = "Terminating"
	}
	for _, ip := range pod.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			s.Addrs = append(s.Addrs, a)
		}
	}
	return s
}
