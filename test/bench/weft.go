package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// weftNode is a real agent in a node namespace, with the file source and everything on that is on by default.
type weftNode struct {
	r      *rig
	name   string
	ns     string
	dir    string // configuration, objects, state, bpffs, CNI directories
	weft   string // binary
	agent  *process
	plugin *plugin
	ready  time.Duration // exec to the conflist being there
}

// startWeft starts the agent of node index (1 or 2) in a namespace with that node's addresses.
func (r *rig) startWeft(o *options, ns string, index int, backend string) (*weftNode, error) {
	n := &weftNode{r: r, name: fmt.Sprintf("node-%d", index), ns: ns, dir: filepath.Join(r.dir, ns), weft: filepath.Join(o.weft, "weft")}
	for _, binary := range []string{"weft", "weft-cni"} {
		if _, err := os.Stat(filepath.Join(o.weft, binary)); err != nil {
			return nil, fmt.Errorf("%w: run make build", err)
		}
	}
	for _, d := range []string{"objects", "bpf", "bin", "net.d", "state", "run"} {
		if err := os.MkdirAll(filepath.Join(n.dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	if err := r.mount("bpf", filepath.Join(n.dir, "bpf")); err != nil {
		return nil, err
	}
	if err := n.configure(o, backend); err != nil {
		return nil, err
	}
	if err := n.start(); err != nil {
		return nil, err
	}
	return n, n.readPlugin()
}

// configure writes the agent's configuration and the cluster's two nodes.
func (n *weftNode) configure(o *options, backend string) error {
	config := map[string]any{
		"nodeName": n.name,
		"backend":  map[string]any{"type": backend},
		"source":   map[string]any{"type": "file", "dir": filepath.Join(n.dir, "objects")},
		"cni": map[string]any{
			"binDir": filepath.Join(n.dir, "bin"), "confDir": filepath.Join(n.dir, "net.d"), "plugin": filepath.Join(o.weft, "weft-cni"),
		},
		"paths": map[string]any{
			"run": filepath.Join(n.dir, "run"), "state": filepath.Join(n.dir, "state"), "bpf": filepath.Join(n.dir, "bpf", "weft"),
		},
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(n.dir, "config.yaml"), raw, 0o644); err != nil {
		return err
	}
	var objects strings.Builder
	for i := 1; i <= 2; i++ {
		pods, addrs := both(podPrefix, i), both(nodePrefix, i)
		fmt.Fprintf(&objects, "---\napiVersion: v1\nkind: Node\nmetadata: {name: node-%d}\nspec: {podCIDR: %q, podCIDRs: [%q, %q]}\n"+
			"status: {addresses: [{type: InternalIP, address: %q}, {type: InternalIP, address: %q}]}\n",
			i, pods[0], pods[0], pods[1], addrs[0].Addr(), addrs[1].Addr())
	}
	return os.WriteFile(filepath.Join(n.dir, "objects", "nodes.yaml"), []byte(objects.String()), 0o644)
}

// conflist is the file that the agent writes last, when it can serve.
func (n *weftNode) conflist() string { return filepath.Join(n.dir, "net.d", "05-weft.conflist") }

// start executes the agent and waits until it can serve. `ip netns exec` gives it the /sys of its namespace.
func (n *weftNode) start() error {
	if err := os.Remove(n.conflist()); err != nil && !os.IsNotExist(err) {
		return err
	}
	begin := time.Now()
	var err error
	n.agent, err = n.r.start(n.ns, "agent-"+n.ns, nil, "ip", "netns", "exec", n.ns, n.weft, "agent", "--config", filepath.Join(n.dir, "config.yaml"))
	if err != nil {
		return err
	}
	err = await("agent ready", 30*time.Second, n.agent, func() bool { _, err := os.Stat(n.conflist()); return err == nil })
	n.ready = time.Since(begin)
	return err
}

// kill ends the agent as a crash does; stop as a node's shutdown does.
func (n *weftNode) kill() { n.agent.stop(syscall.SIGKILL) }
func (n *weftNode) stop() { n.agent.stop(syscall.SIGTERM) }

// readPlugin makes the plugin's call from what the agent has installed, as a container runtime would.
func (n *weftNode) readPlugin() error {
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
	bin := filepath.Join(n.dir, "bin")
	n.plugin = &plugin{binary: filepath.Join(bin, fmt.Sprint(conf["type"])), path: bin, conf: raw}
	return nil
}

// cli runs `weft ARGS` against the node's agent.
func (n *weftNode) cli(args ...string) ([]byte, error) {
	out, err := program(n.weft, append([]string{"--socket", filepath.Join(n.dir, "run", "weft.sock")}, args...)...).Output()
	if err != nil {
		return nil, fmt.Errorf("weft %s: %w", strings.Join(args, " "), err)
	}
	return out, nil
}

// weftVersion is what the binary says of itself.
func weftVersion(o *options) string {
	out, _ := program(filepath.Join(o.weft, "weft"), "version").Output()
	return strings.TrimSpace(string(out))
}

// weftArm attaches the pods with weft: both on one node (same), or one on each of two.
func (r *rig) weftArm(o *options, name, backend string, same bool) (*arm, []*weftNode, error) {
	ns, err := nodes(name)
	if err != nil {
		return nil, nil, err
	}
	a := &arm{name: name, about: weftVersion(o) + ", " + backend + ", defaults", client: space(name) + ".c", server: space(name) + ".s"}
	place := [2]int{0, 1}
	if same {
		place[1] = 0
	}
	var agents []*weftNode
	for i := range place[1] + 1 {
		n, err := r.startWeft(o, ns[i], i+1, backend)
		if err != nil {
			return nil, nil, err
		}
		agents = append(agents, n)
	}
	for i, pod := range []string{a.client, a.server} {
		if err := netns(pod); err != nil {
			return nil, nil, err
		}
		node := agents[place[i]]
		var result cniResult
		if err := inNS(node.ns, func() (err error) { result, err = node.plugin.add(fmt.Sprintf("bench%d", i), pod); return }); err != nil {
			return nil, nil, fmt.Errorf("%w\n%s", err, node.agent.tail())
		}
		a.address = result.addresses()
	}
	return a, agents, nil
}
