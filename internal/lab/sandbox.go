package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"weft/internal/host"
)

const (
	sandboxFile = "sandbox.json"
	netnsPath   = "/run/netns"
	podIfName   = "eth0"
	cniTimeout  = 30 * time.Second
)

// sandbox is what a pod has of the node. It is written before the first step is
// taken, so that a runtime that starts later knows what to undo: DEL of an interface
// that was never added is no error.
type sandbox struct {
	UID         string       `json:"uid"`
	ID          string       `json:"id"` // CNI container ID; another for each attempt
	Namespace   string       `json:"namespace"`
	Name        string       `json:"name"`
	HostNetwork bool         `json:"hostNetwork,omitempty"`
	Network     string       `json:"network,omitempty"` // name of the CNI network
	Addrs       []netip.Addr `json:"addrs,omitempty"`
	Warnings    []string     `json:"warnings,omitempty"`
}

func (s *sandbox) dir() string   { return filepath.Join(podsPath, s.UID) }
func (s *sandbox) netns() string { return filepath.Join(netnsPath, "lab-"+s.ID) }

func (s *sandbox) save() error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.dir(), 0o755); err != nil {
		return err
	}
	tmp := filepath.Join(s.dir(), sandboxFile+".tmp")
	if err := os.WriteFile(tmp, b, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(s.dir(), sandboxFile))
}

// start gives the pod a network and starts its containers. On failure the sandbox
// is undone by the next step.
func (w *worker) start(ctx context.Context, pod *corev1.Pod) (err error) {
	s := &sandbox{
		UID: w.uid, ID: shortID(), Namespace: pod.Namespace, Name: pod.Name,
		HostNetwork: pod.Spec.HostNetwork,
	}
	if err := s.save(); err != nil {
		return err
	}
	w.sandbox = s
	defer func() {
		if err != nil {
			err = errors.Join(err, w.stop(ctx, pod))
		}
	}()
	netns := "/proc/self/ns/net"
	if s.HostNetwork {
		if s.Addrs, err = w.hostAddrs(); err != nil {
			return err
		}
	} else {
		netns = s.netns()
		if err := makeNetns(netns); err != nil {
			return err
		}
		if err := w.add(ctx, pod, s); err != nil {
			return err
		}
	}
	spec, warnings := podSpec(pod, netns, s.Addrs)
	s.Warnings = warnings
	if err := s.save(); err != nil {
		return err
	}
	w.status.started = time.Now()
	_, err = host.Start(ctx, s.dir(), spec, initArgs()...)
	return err
}

// add calls the CNI plugin as a container runtime does.
func (w *worker) add(ctx context.Context, pod *corev1.Pod, s *sandbox) error {
	list, err := loadNetwork()
	if err != nil {
		return err
	}
	s.Network = list.Name
	if err := s.save(); err != nil {
		return err
	}
	rt, err := runtimeConf(pod, s)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, cniTimeout)
	defer cancel()
	res, err := w.r.cni.AddNetworkList(ctx, list, rt)
	if err != nil {
		return cniError("ADD", list.Name, err)
	}
	result, err := types100.NewResultFromResult(res)
	if err != nil {
		return fmt.Errorf("CNI ADD %s: result: %w", list.Name, err)
	}
	s.Addrs = nil
	for _, ip := range result.IPs {
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			s.Addrs = append(s.Addrs, a.Unmap())
		}
	}
	if len(s.Addrs) == 0 {
		return fmt.Errorf("CNI ADD %s: the result has no address", list.Name)
	}
	return nil
}

// stop undoes the sandbox: containers, interface, namespace, directory. Every step
// may be repeated.
func (w *worker) stop(ctx context.Context, pod *corev1.Pod) error {
	s := w.sandbox
	if h, err := host.Open(s.dir()); err == nil {
		if err := h.Stop(ctx); err != nil {
			return err
		}
	}
	if !s.HostNetwork {
		if err := w.del(ctx, s); err != nil {
			return err
		}
		_ = unix.Unmount(s.netns(), unix.MNT_DETACH)
		if err := os.Remove(s.netns()); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := host.Destroy(ctx, s.dir()); err != nil {
		return err
	}
	w.sandbox = nil
	w.status = podStatus{message: w.status.message}
	if pod != nil {
		w.publish(pod)
	}
	return nil
}

func (w *worker) del(ctx context.Context, s *sandbox) error {
	if s.Network == "" {
		return nil // ADD was never called
	}
	rt := &libcni.RuntimeConf{ContainerID: s.ID, NetNS: s.netns(), IfName: podIfName, Args: cniArgs(s)}
	if _, err := os.Stat(rt.NetNS); err != nil {
		rt.NetNS = "" // the node was restarted: "already gone", in the words of the CNI specification
	}
	// What ADD was called with counts, whatever the configuration is now.
	list, err := loadNetwork()
	if b, cached, cerr := w.r.cni.GetNetworkListCachedConfig(&libcni.NetworkConfigList{Name: s.Network}, rt); cerr == nil && b != nil {
		if list, err = libcni.ConfListFromBytes(b); cached != nil {
			rt.CapabilityArgs = cached.CapabilityArgs
		}
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, cniTimeout)
	defer cancel()
	if err := w.r.cni.DelNetworkList(ctx, list, rt); err != nil {
		return cniError("DEL", s.Network, err)
	}
	return nil
}

// cniError words a plugin's answer.
func cniError(verb, network string, err error) error {
	var e *types.Error
	if errors.As(err, &e) {
		text := strings.TrimSuffix(e.Msg+": "+e.Details, ": ")
		return fmt.Errorf("CNI %s %s: %s (code %d)", verb, network, text, e.Code)
	}
	return fmt.Errorf("CNI %s %s: %w", verb, network, err)
}

// loadNetwork reads the node's first network configuration in the order of file names.
func loadNetwork() (*libcni.NetworkConfigList, error) {
	files, err := libcni.ConfFiles(confPath, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("network not ready: no CNI configuration in %s; is the agent running?", confPath)
	}
	slices.Sort(files)
	if filepath.Ext(files[0]) == ".conflist" {
		return libcni.ConfListFromFile(files[0])
	}
	return nil, fmt.Errorf("%s is not a .conflist", files[0])
}

func cniArgs(s *sandbox) [][2]string {
	return [][2]string{
		{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", s.Namespace}, {"K8S_POD_NAME", s.Name},
		{"K8S_POD_INFRA_CONTAINER_ID", s.ID}, {"K8S_POD_UID", s.UID},
	}
}

// portMapping and bandwidth are the capabilities' arguments as containerd words them.
type portMapping struct {
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

type bandwidth struct {
	IngressRate  uint64 `json:"ingressRate,omitempty"` // bit/s
	IngressBurst uint64 `json:"ingressBurst,omitempty"`
	EgressRate   uint64 `json:"egressRate,omitempty"`
	EgressBurst  uint64 `json:"egressBurst,omitempty"`
}

func runtimeConf(pod *corev1.Pod, s *sandbox) (*libcni.RuntimeConf, error) {
	caps := map[string]any{}
	var ports []portMapping
	for _, c := range pod.Spec.Containers {
		for _, p := range c.Ports {
			if p.HostPort != 0 {
				ports = append(ports, portMapping{p.HostPort, p.ContainerPort, strings.ToLower(cmpOr(string(p.Protocol), "tcp")), p.HostIP})
			}
		}
	}
	if len(ports) > 0 {
		caps["portMappings"] = ports
	}
	in, err := rate(pod, "kubernetes.io/ingress-bandwidth")
	if err != nil {
		return nil, err
	}
	out, err := rate(pod, "kubernetes.io/egress-bandwidth")
	if err != nil {
		return nil, err
	}
	if in != 0 || out != 0 {
		b := bandwidth{IngressRate: in, EgressRate: out}
		const maxBurst = 1<<32 - 1 // what the plugins' configuration can say, as containerd does
		if in != 0 {
			b.IngressBurst = maxBurst
		}
		if out != 0 {
			b.EgressBurst = maxBurst
		}
		caps["bandwidth"] = b
	}
	return &libcni.RuntimeConf{
		ContainerID: s.ID, NetNS: s.netns(), IfName: podIfName, Args: cniArgs(s), CapabilityArgs: caps,
	}, nil
}

func rate(pod *corev1.Pod, annotation string) (uint64, error) {
	v := pod.Annotations[annotation]
	if v == "" {
		return 0, nil
	}
	q, err := resource.ParseQuantity(v)
	if err != nil || q.Value() < 0 {
		return 0, fmt.Errorf("metadata.annotations[%s]: %q is not a rate in bit/s, such as 10M", annotation, v)
	}
	return uint64(q.Value()), nil
}

func cmpOr(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// makeNetns creates a network namespace that is held by a mount at the path.
func makeNetns(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	err = host.NewNetns(path)
	if err != nil {
		_ = os.Remove(path)
	}
	return err
}

// hostAddrs are the node's addresses, for pods in its network namespace.
func (w *worker) hostAddrs() ([]netip.Addr, error) {
	o, err := w.r.store.get(ref{"Node", "", w.r.node})
	if err != nil || o == nil {
		return nil, errors.Join(err, fmt.Errorf("node %s has no Node object", w.r.node))
	}
	n, err := decode[corev1.Node](o)
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP {
			out = append(out, ip)
		}
	}
	return out, nil
}

// podSpec is the pod as a host: one process for each container that has a command,
// the responder for all others.
func podSpec(pod *corev1.Pod, netns string, addrs []netip.Addr) (spec host.Spec, warnings []string) {
	var hosts strings.Builder
	hosts.WriteString("127.0.0.1 localhost\n::1 localhost\n")
	for _, a := range addrs {
		fmt.Fprintf(&hosts, "%s %s\n", a, pod.Name)
	}
	name := cmpOr(pod.Spec.Hostname, pod.Name)
	spec = host.Spec{
		Name: name[:min(len(name), 63)], Netns: netns, ReadOnly: true, Private: []string{"/var"}, Volatile: volatile(),
		Masks: map[string]string{"/etc/hosts": hosts.String()},
	}
	if pod.Spec.HostNetwork {
		spec.Name, spec.Masks = pod.Spec.NodeName, nil
	}
	restart := map[corev1.RestartPolicy]host.Restart{
		corev1.RestartPolicyNever: host.RestartNever, corev1.RestartPolicyOnFailure: host.RestartOnFailure,
	}[pod.Spec.RestartPolicy]
	var r respond
	for _, c := range pod.Spec.InitContainers {
		if len(c.Command) > 0 {
			spec.Processes = append(spec.Processes, process(pod, c, addrs, restart, true))
		} else {
			warnings = append(warnings, "init container "+c.Name+" has no command: skipped")
		}
	}
	for _, c := range pod.Spec.Containers {
		if len(c.Command) > 0 {
			spec.Processes = append(spec.Processes, process(pod, c, addrs, restart, false))
			continue
		}
		for _, p := range c.Ports {
			r.Ports = append(r.Ports, respondPort{Protocol: strings.ToLower(string(p.Protocol)), Port: uint16(p.ContainerPort)})
		}
	}
	warnings = append(warnings, r.unsupported()...)
	spec.Data = r.encode()
	return spec, warnings
}

func process(pod *corev1.Pod, c corev1.Container, addrs []netip.Addr, restart host.Restart, once bool) host.Process {
	env := []string{"HOSTNAME=" + pod.Name}
	for _, e := range c.Env {
		env = append(env, e.Name+"="+envValue(pod, e, addrs))
	}
	expand := func(s string) string { return expandVars(s, env) }
	args := make([]string, 0, len(c.Command)+len(c.Args))
	for _, a := range slices.Concat(c.Command, c.Args) {
		args = append(args, expand(a))
	}
	return host.Process{Name: c.Name, Args: args, Env: env, Dir: c.WorkingDir, Restart: restart, Once: once}
}

// envValue is a variable's value: literal, or a field that the lab knows.
func envValue(pod *corev1.Pod, e corev1.EnvVar, addrs []netip.Addr) string {
	if e.ValueFrom == nil || e.ValueFrom.FieldRef == nil {
		return e.Value
	}
	switch f := e.ValueFrom.FieldRef.FieldPath; f {
	case "metadata.name":
		return pod.Name
	case "metadata.namespace":
		return pod.Namespace
	case "metadata.uid":
		return string(pod.UID)
	case "spec.nodeName":
		return pod.Spec.NodeName
	case "status.podIP", "status.podIPs":
		var all []string
		for _, a := range addrs {
			all = append(all, a.String())
		}
		if f == "status.podIP" {
			all = all[:min(len(all), 1)]
		}
		return strings.Join(all, ",")
	}
	return ""
}

// expandVars replaces $(NAME) as Kubernetes does in commands and arguments.
func expandVars(s string, env []string) string {
	for _, e := range env {
		k, v, _ := strings.Cut(e, "=")
		s = strings.ReplaceAll(s, "$("+k+")", v)
	}
	return s
}

// shortID is a new CNI container ID.
func shortID() string { return strconv.FormatInt(time.Now().UnixNano(), 36) }
