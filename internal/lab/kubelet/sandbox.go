package kubelet

import (
	"cmp"
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
	"weft/internal/lab/objects"
)

const (
	sandboxFile = "sandbox.json"
	netnsPath   = "/run/netns"
	podIfName   = "eth0"
	cniTimeout  = 30 * time.Second
)

// sandbox is what a pod has of the node. It is written before the first step is
// taken, so that a kubelet that starts later knows what to undo: DEL of an interface
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

func (s *sandbox) dir() string   { return filepath.Join(PodsDir, s.UID) }
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
	_, err = host.Start(ctx, s.dir(), spec, w.k.initArgs...)
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
	res, err := w.k.cni.AddNetworkList(ctx, list, rt)
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
	if b, cached, cerr := w.k.cni.GetNetworkListCachedConfig(&libcni.NetworkConfigList{Name: s.Network}, rt); cerr == nil && b != nil {
		if list, err = libcni.ConfListFromBytes(b); cached != nil {
			rt.CapabilityArgs = cached.CapabilityArgs
		}
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, cniTimeout)
	defer cancel()
	if err := w.k.cni.DelNetworkList(ctx, list, rt); err != nil {
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
	files, err := libcni.ConfFiles(ConfDir, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("network not ready: no CNI configuration in %s; is the agent running?", ConfDir)
	}
	slices.Sort(files)
	if filepath.Ext(files[0]) == ".conflist" {
		return libcni.ConfListFromFile(files[0])
	}
	return nil, fmt.Errorf("%s is not a .conflist", files[0])
}

func cniArgs(s *sandbox) [][2]string {
	return [][2]string{
		{"IgnoreUnknown", "1"},
		{"K8S_POD_NAMESPACE", s.Namespace},
		{"K8S_POD_NAME", s.Name},
		{"K8S_POD_INFRA_CONTAINER_ID", s.ID},
		{"K8S_POD_UID", s.UID},
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
				ports = append(ports, portMapping{p.HostPort, p.ContainerPort, strings.ToLower(cmp.Or(string(p.Protocol), "tcp")), p.HostIP})
			}
		}
	}
	if len(ports) > 0 {
		caps["portMappings"] = ports
	}
	in, err := Rate(pod, "kubernetes.io/ingress-bandwidth")
	if err != nil {
		return nil, err
	}
	out, err := Rate(pod, "kubernetes.io/egress-bandwidth")
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

// Rate reads a bandwidth annotation, in bit/s; 0 if there is none.
func Rate(pod *corev1.Pod, annotation string) (uint64, error) {
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
	o, err := w.k.store.Get(objects.Ref{Kind: "Node", Name: w.k.node})
	if err != nil || o == nil {
		return nil, errors.Join(err, fmt.Errorf("node %s has no Node object", w.k.node))
	}
	n, err := objects.Decode[corev1.Node](o)
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

// shortID is a new CNI container ID.
func shortID() string { return strconv.FormatInt(time.Now().UnixNano(), 36) }
