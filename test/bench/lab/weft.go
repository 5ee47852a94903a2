package lab

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Node is a real agent in a node namespace, with the file source and everything on that is on by default.
type Node struct {
	r      *Lab
	name   string
	NS     string
	Dir    string // configuration, objects, state, bpffs, CNI directories
	weft   string // binary
	Agent  *Process
	Plugin *Plugin
	Ready  time.Duration // exec to the conflist being there
}

// StartWeft starts the agent of node index (1 or 2) in a namespace with that node's addresses. Objects are YAML of what else
// there is in the cluster.
func (r *Lab) StartWeft(ns string, index int, backend string, objects ...string) (*Node, error) {
	n := &Node{r: r, name: fmt.Sprintf("node-%d", index), NS: ns, Dir: filepath.Join(r.Dir, ns), weft: filepath.Join(r.Weft, "weft")}
	for _, binary := range []string{"weft", "weft-cni"} {
		if _, err := os.Stat(filepath.Join(r.Weft, binary)); err != nil {
			return nil, fmt.Errorf("%w: run make build", err)
		}
	}
	for _, d := range []string{"objects", "bpf", "bin", "net.d", "state", "run"} {
		if err := os.MkdirAll(filepath.Join(n.Dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	if err := r.Mount("bpf", filepath.Join(n.Dir, "bpf")); err != nil {
		return nil, err
	}
	if err := n.configure(backend); err != nil {
		return nil, err
	}
	for i, text := range objects {
		if err := os.WriteFile(filepath.Join(n.Dir, "objects", fmt.Sprintf("more-%d.yaml", i)), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	if err := n.Start(); err != nil {
		return nil, err
	}
	return n, n.readPlugin()
}

// configure writes the agent's configuration and the cluster's two nodes.
func (n *Node) configure(backend string) error {
	config := map[string]any{
		"nodeName": n.name,
		"backend":  map[string]any{"type": backend},
		"source":   map[string]any{"type": "file", "dir": filepath.Join(n.Dir, "objects")},
		"cni": map[string]any{
			"binDir": filepath.Join(n.Dir, "bin"), "confDir": filepath.Join(n.Dir, "net.d"), "plugin": filepath.Join(filepath.Dir(n.weft), "weft-cni"),
		},
		"paths": map[string]any{
			"run": filepath.Join(n.Dir, "run"), "state": filepath.Join(n.Dir, "state"), "bpf": filepath.Join(n.Dir, "bpf", "weft"),
		},
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(n.Dir, "config.yaml"), raw, 0o644); err != nil {
		return err
	}
	var objects strings.Builder
	for i := 1; i <= 2; i++ {
		pods, addrs := Both(PodPrefix, i), Both(NodePrefix, i)
		fmt.Fprintf(&objects, "---\napiVersion: v1\nkind: Node\nmetadata: {name: node-%d}\nspec: {podCIDR: %q, podCIDRs: [%q, %q]}\n"+
			"status: {addresses: [{type: InternalIP, address: %q}, {type: InternalIP, address: %q}]}\n",
			i, pods[0], pods[0], pods[1], addrs[0].Addr(), addrs[1].Addr())
	}
	return os.WriteFile(filepath.Join(n.Dir, "objects", "nodes.yaml"), []byte(objects.String()), 0o644)
}

// conflist is the file that the agent writes last, when it can serve.
func (n *Node) conflist() string { return filepath.Join(n.Dir, "net.d", "05-weft.conflist") }

// Start executes the agent and waits until it can serve. `ip netns exec` gives it the /sys of its namespace.
func (n *Node) Start() error {
	if err := os.Remove(n.conflist()); err != nil && !os.IsNotExist(err) {
		return err
	}
	begin := time.Now()
	var err error
	n.Agent, err = n.r.Start(n.NS, "agent-"+n.NS, nil, "ip", "netns", "exec", n.NS, n.weft, "agent", "--config", filepath.Join(n.Dir, "config.yaml"))
	if err != nil {
		return err
	}
	err = Await("agent ready", 2*time.Minute, n.Agent, func() bool { _, err := os.Stat(n.conflist()); return err == nil })
	n.Ready = time.Since(begin)
	return err
}

// Kill ends the agent as a crash does.
func (n *Node) Kill() { n.Agent.Stop(syscall.SIGKILL) }

// Stop ends it as a node's shutdown does.
func (n *Node) Stop() { n.Agent.Stop(syscall.SIGTERM) }

// readPlugin makes the plugin's call from what the agent has installed, as a container runtime would.
func (n *Node) readPlugin() error {
	raw, err := os.ReadFile(n.conflist())
	if err != nil {
		return err
	}
	var list struct {
		CNIVersion string           `json:"cniVersion"`
		Name       string           `json:"name"`
		Plugins    []map[string]any `json:"plugins"`
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return fmt.Errorf("%s: %w", n.conflist(), err)
	}
	if len(list.Plugins) != 1 {
		return fmt.Errorf("%s: %d plugins, the harness calls one", n.conflist(), len(list.Plugins))
	}
	conf := list.Plugins[0]
	conf["cniVersion"], conf["name"] = list.CNIVersion, list.Name
	if raw, err = json.Marshal(conf); err != nil {
		return err
	}
	bin := filepath.Join(n.Dir, "bin")
	n.Plugin = &Plugin{Binary: filepath.Join(bin, fmt.Sprint(conf["type"])), path: bin, conf: raw}
	return nil
}

// CLI runs `weft ARGS` against the node's agent.
func (n *Node) CLI(args ...string) ([]byte, error) {
	out, err := Program(n.weft, append([]string{"--socket", filepath.Join(n.Dir, "run", "weft.sock")}, args...)...).Output()
	if err != nil {
		return nil, fmt.Errorf("weft %s: %w", strings.Join(args, " "), err)
	}
	return out, nil
}

// weftVersion is what the binary says of itself.
func (r *Lab) weftVersion() string {
	out, _ := Program(filepath.Join(r.Weft, "weft"), "version").Output()
	return strings.TrimSpace(string(out))
}

// WeftArm attaches the pods with weft: both on one node (same), or one on each of two.
func (r *Lab) WeftArm(name, backend string, same bool, objects ...string) (*Arm, []*Node, error) {
	ns, err := Nodes(name)
	if err != nil {
		return nil, nil, err
	}
	a := &Arm{Name: name, About: r.weftVersion() + ", " + backend + ", defaults", Client: space(name) + ".c", Server: space(name) + ".s"}
	place := [2]int{0, 1}
	if same {
		place[1] = 0
	}
	var agents []*Node
	for i := range place[1] + 1 {
		n, err := r.StartWeft(ns[i], i+1, backend, objects...)
		if err != nil {
			return nil, nil, err
		}
		agents = append(agents, n)
	}
	for i, pod := range []string{a.Client, a.Server} {
		if err := Netns(pod); err != nil {
			return nil, nil, err
		}
		node := agents[place[i]]
		var result Result
		if err := InNS(node.NS, func() (err error) { result, err = node.Plugin.Add(fmt.Sprintf("bench%d", i), pod); return }); err != nil {
			return nil, nil, fmt.Errorf("%w\n%s", err, node.Agent.Tail())
		}
		a.Address = result.Addresses()
	}
	return a, agents, nil
}
