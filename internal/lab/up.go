package lab

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"weft/internal/host"
	"weft/internal/lab/kubelet"
	"weft/internal/lab/objects"
	"weft/internal/lab/probe"
	"weft/internal/model"
)

// AgentProcess and kubeletProcess are the processes of a node.
const (
	binPath    = "/opt/weft/bin"
	configPath = "/etc/weft/config.yaml"

	AgentProcess   = "agent"
	kubeletProcess = "kubelet"
)

// Up starts the lab, or what is missing of it, and returns when all agents serve. A
// lab that exists keeps its options; only its number of nodes may grow.
func Up(ctx context.Context, o Options) (*Lab, error) {
	if old, err := Open(cmp.Or(o.Name, defaultName)); err == nil {
		o.inherit(old.opts)
	}
	o.SetDefaults()
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("a lab is made of network namespaces and mounts: run this as root")
	}
	l := &Lab{dir: Dir(o.Name), opts: o}
	if err := l.checkPlugin(); err != nil {
		return nil, err
	}
	err := exclusive(ctx, o.Name, func() error {
		if err := l.claim(); err != nil {
			return err
		}
		return l.start(ctx)
	})
	return l, err
}

// checkPlugin finds out early that the agents would not find what they install.
func (l *Lab) checkPlugin() error {
	_, c, err := l.agentConfig(l.opts.nodes()[0])
	if err != nil || c.CNI.Plugin != "" || c.CNI.BinDir == "off" {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(exe), "weft-cni")); err != nil {
		return fmt.Errorf("the plugin weft-cni must be beside %s: %w (`make build` makes both)", filepath.Base(exe), err)
	}
	return nil
}

// claim writes the lab's options, or compares them with those it has.
func (l *Lab) claim() error {
	if old, err := Open(l.opts.Name); err == nil {
		a, b := old.opts, l.opts
		b.Nodes = max(a.Nodes, b.Nodes)
		l.opts.Nodes = b.Nodes
		a.Nodes = b.Nodes
		if !reflect.DeepEqual(normal(a), normal(b)) {
			return fmt.Errorf("lab %s is up with other options (%s); `weft lab down --name %s` first", a.Name, a.describe(), a.Name)
		}
	} else if !errors.Is(err, ErrNoLab) {
		return err
	}
	if err := os.MkdirAll(l.dir, 0o755); err != nil {
		return err
	}
	b, err := json.MarshalIndent(l.opts, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(l.dir, optionsFile), b, 0o644); err != nil {
		return err
	}
	l.store, err = objects.New(filepath.Join(l.dir, "cluster"))
	return err
}

// inherit takes what is not set from a lab that exists.
func (o *Options) inherit(old Options) {
	if o.Nodes == 0 {
		o.Nodes = old.Nodes
	}
	if o.Subnets == 0 {
		o.Subnets = old.Subnets
	}
	if len(o.MTU) == 0 {
		o.MTU = old.MTU
	}
	if o.Config == nil {
		o.Config = old.Config
	}
	o.IPFamily, o.Backend = cmp.Or(o.IPFamily, old.IPFamily), cmp.Or(o.Backend, old.Backend)
}

// normal brings options into the form that they have after a round trip through JSON.
func normal(o Options) Options {
	b, _ := json.Marshal(o)
	var out Options
	_ = json.Unmarshal(b, &out)
	return out
}

func (o *Options) describe() string {
	return fmt.Sprintf("--nodes %d --mtu %s --subnets %d --ip-family %s --backend %s",
		o.Nodes, strings.Trim(strings.ReplaceAll(fmt.Sprint(o.MTU), " ", ","), "[]"), o.Subnets, o.IPFamily, o.Backend)
}

func (l *Lab) start(ctx context.Context) error {
	nodes := l.opts.nodes()
	if err := l.putNodes(nodes); err != nil {
		return err
	}
	var wire, outside *host.Host
	wired := make(chan struct{}) // closed when the underlay is there, or failed
	var wireErr error
	go func() {
		defer close(wired)
		wireErr = each([]**host.Host{&wire, &outside}, func(h **host.Host) (err error) {
			*h, err = l.startPlain(ctx, map[bool]string{true: wireHost, false: OutsideHost}[h == &wire])
			return err
		})
		if wireErr == nil {
			wireErr = l.underlay(wire, outside)
		}
	}()
	err := each(nodes, func(n node) error {
		h, err := l.startNode(ctx, n)
		<-wired
		if err != nil || wireErr != nil {
			return err
		}
		if err := l.connect(wire, h, n); err != nil {
			return err
		}
		for _, p := range []string{AgentProcess, kubeletProcess} {
			if err := h.StartProcess(ctx, p); err != nil {
				return err
			}
		}
		return l.awaitAgent(ctx, h, n)
	})
	<-wired
	return errors.Join(wireErr, err)
}

// startPlain starts a host without an agent.
func (l *Lab) startPlain(ctx context.Context, name string) (*host.Host, error) {
	spec := host.Spec{
		Name: name, Cgroup: l.cgroup() + "/" + name, ReadOnly: true, Volatile: kubelet.Volatile(),
		Sysctls: l.sysctls(),
	}
	if name == OutsideHost {
		spec.Data = probe.Responder{Ports: []probe.Port{{Port: 80}, {Port: 443}, {Protocol: "udp", Port: 53}, {Protocol: "udp", Port: 7}}}.Encode()
	}
	return host.Start(ctx, l.hostDir(name), spec, InitArgs()...)
}

// startNode starts a node's host, with its processes down until it is on the wire.
func (l *Lab) startNode(ctx context.Context, n node) (*host.Host, error) {
	config, _, err := l.agentConfig(n)
	if err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	weft := WeftPath()
	return host.Start(ctx, l.hostDir(n.Name), host.Spec{
		Name: n.Name, System: true, Cgroup: l.cgroup() + "/" + n.Name,
		ReadOnly: true, Private: []string{"/var", "/opt"}, Overlay: []string{"/etc"}, Volatile: kubelet.Volatile(),
		Binds: []host.Bind{
			{Source: filepath.Dir(exe), Target: binPath, ReadOnly: true},
			{Source: l.store.Path(), Target: kubelet.StoreDir},
		},
		Files:   map[string]string{configPath: config},
		Sysctls: l.sysctls(),
		Env:     []string{"NODE_NAME=" + n.Name, "PATH=" + binPath + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		Processes: []host.Process{
			{Name: AgentProcess, Args: []string{weft, "agent", "--config", configPath}, Down: true},
			{Name: kubeletProcess, Args: []string{weft, "lab", "kubelet", n.Name}, Down: true},
		},
	}, InitArgs()...)
}

// WeftPath is this binary on a node.
func WeftPath() string {
	exe, err := os.Executable()
	if err != nil {
		exe = os.Args[0]
	}
	return filepath.Join(binPath, strings.TrimSuffix(filepath.Base(exe), " (deleted)"))
}

// InitArgs is the command that makes this binary pid 1 of a host.
func InitArgs() []string { return []string{"/proc/self/exe", "lab", "host-init"} }

// sysctls are those of a usual node: what the agent needs beyond, it sets itself.
func (l *Lab) sysctls() map[string]string {
	m := map[string]string{"net/ipv4/ping_group_range": "0 2147483647"}
	for _, f := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		m[f] = "1"
	}
	return m
}

// agentConfig is the configuration of the node's agent: the lab's own settings, and
// the user's over them where they may be.
func (l *Lab) agentConfig(n node) (string, *model.Config, error) {
	c := map[string]any{
		"backend":      map[string]any{"type": l.opts.Backend},
		"clusterCIDRs": prefixesOf(l.opts.families(), clusterCIDRs()...),
	}
	merge(c, l.opts.Config)
	merge(c, map[string]any{
		"nodeName": n.Name,
		"source":   map[string]any{"type": "file", "dir": objects.Dir(kubelet.StoreDir)},
	})
	b, err := yaml.Marshal(c)
	if err != nil {
		return "", nil, err
	}
	var check model.Config
	if err := yaml.UnmarshalStrict(b, &check); err != nil {
		return "", nil, fmt.Errorf("agent configuration: %s", strings.TrimPrefix(err.Error(), "error unmarshaling JSON: while decoding JSON: json: "))
	}
	check.SetDefaults()
	return string(b), &check, check.Validate()
}

// merge puts the fields of over into base, maps field by field.
func merge(base, over map[string]any) {
	for k, v := range over {
		b, ok1 := base[k].(map[string]any)
		o, ok2 := v.(map[string]any)
		if ok1 && ok2 {
			merged := maps.Clone(b)
			merge(merged, o)
			v = merged
		}
		base[k] = v
	}
}

// putNodes writes the Node objects of nodes that have none.
func (l *Lab) putNodes(nodes []node) error {
	fams := l.opts.families()
	for _, n := range nodes {
		if o, err := l.store.Get(objects.Ref{Kind: "Node", Name: n.Name}); o != nil || err != nil {
			if err != nil {
				return err
			}
			continue
		}
		obj := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: map[string]string{
			"kubernetes.io/hostname": n.Name, "kubernetes.io/os": "linux",
			"topology.kubernetes.io/zone": fmt.Sprintf("subnet%d", n.Subnet),
		}}}
		for _, p := range prefixesOf(fams, n.podCIDRs()...) {
			obj.Spec.PodCIDRs = append(obj.Spec.PodCIDRs, p.String())
		}
		obj.Spec.PodCIDR = obj.Spec.PodCIDRs[0]
		for _, a := range addrsOf(fams, hostsOf(n.addrs())...) {
			obj.Status.Addresses = append(obj.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
		}
		obj.Status.Addresses = append(obj.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: n.Name})
		o, err := objects.Encode("v1", "Node", &obj)
		if err != nil {
			return err
		}
		objects.Stamp(o)
		if err := l.store.Put(o); err != nil {
			return err
		}
	}
	return nil
}

// awaitAgent returns when the node's agent answers on its socket and has installed its
// CNI configuration, which it does last, when it can serve.
func (l *Lab) awaitAgent(ctx context.Context, h *host.Host, n node) error {
	_, config, err := l.agentConfig(n)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() { cancel(failing(ctx, h)) }()
	conf, run := filepath.Join(h.Root(), config.CNI.ConfDir), filepath.Join(h.Root(), config.Paths.Run)
	for {
		if found, err := hasConf(conf); err != nil {
			return err
		} else if found && answers(run) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the agent of %s is not ready: %w; the end of its log %s:\n%s",
				h.Name(), context.Cause(ctx), h.LogFile(AgentProcess), tail(h.LogFile(AgentProcess), 5))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// failing watches the node's agent until ctx ends, and returns why it cannot become ready.
func failing(ctx context.Context, h *host.Host) error {
	return h.Watch(ctx, func(list []host.Status) error {
		for _, p := range list {
			if p.Name == AgentProcess && p.Restarts >= 3 && p.State != host.Running {
				return fmt.Errorf("it exited with %d, %d times", p.ExitCode, p.Restarts+1)
			}
		}
		return nil
	})
}

// answers reports whether somebody listens on a unix socket in the directory.
func answers(dir string) bool {
	socks, _ := filepath.Glob(filepath.Join(dir, "*.sock"))
	return slices.ContainsFunc(socks, func(s string) bool {
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: s})
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

// hasConf reports whether a CNI network configuration is in the directory.
func hasConf(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return isConf(e.Name()) }), err
}

func isConf(name string) bool {
	return slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(name))
}

// tail returns the last lines of a file, indented.
func tail(path string, lines int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return "    (" + err.Error() + ")"
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return "    " + strings.Join(all[max(0, len(all)-lines):], "\n    ")
}
