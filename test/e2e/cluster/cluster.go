// Package cluster is a real Kubernetes cluster on one machine: etcd, the control plane, containerd, runc and
// kubelets run on hosts made of namespaces (see internal/host), joined by a bridge.
//
// It is for tests and for trying weft by hand. It is not highly available, keeps etcd's data without fsync,
// and all its keys lie in its directory. It changes nothing on the machine outside that directory and its own
// cgroups, except for one listening TCP port on 127.0.0.1 through which kubectl reaches the API server.
//
// What it leaves in the kernel are its hosts, of which internal/host says how they are found again and
// removed. Whoever holds the directory can end the cluster: Open, then Down.
package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"weft/internal/host"
	"weft/internal/netset"
)

// Config says what cluster is wanted.
type Config struct {
	Dir      string          `json:"dir"`      // absolute; all state; created
	Bin      string          `json:"bin"`      // the programs of test/e2e/binaries
	Nodes    int             `json:"nodes"`    // named n1, n2, …
	Families []netset.Family `json:"families"` // in the order of preference
	// KubeProxy is kube-proxy's mode, iptables or nftables. Empty: no kube-proxy.
	KubeProxy string `json:"kubeProxy,omitempty"`
	// Images is the directory of another cluster whose image archives are used. Empty: own ones are built.
	Images string `json:"images,omitempty"`
	// Port is where the API server is reached on 127.0.0.1. 0: Up chooses a free one.
	Port int `json:"port"`
}

// Cluster is a cluster, running or not.
type Cluster struct {
	Config
	log func(format string, args ...any) // progress, one line each; never nil
}

// New returns a cluster that does not run yet.
func New(c Config, log func(format string, args ...any)) *Cluster { return &Cluster{c, log} }

// Open returns the cluster that Up was called for with this directory.
func Open(dir string, log func(format string, args ...any)) (*Cluster, error) {
	b, err := os.ReadFile(filepath.Join(dir, "cluster.json"))
	if err != nil {
		return nil, fmt.Errorf("no cluster in %s: %w", dir, err)
	}
	c := &Cluster{log: log}
	if err := json.Unmarshal(b, &c.Config); err != nil {
		return nil, fmt.Errorf("no cluster in %s: %w", dir, err)
	}
	return c, nil
}

func (c *Cluster) save() error {
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return err
	}
	b, err := json.MarshalIndent(c.Config, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(c.path("cluster.json"), b, 0o644)
}

func (c *Cluster) path(parts ...string) string {
	return filepath.Join(append([]string{c.Dir}, parts...)...)
}

func (c *Cluster) program(name string) string { return filepath.Join(c.Bin, name) }

// Kubeconfig is the path of the administrator's kubeconfig for use on this machine.
func (c *Cluster) Kubeconfig() string { return c.path("kubeconfig") }

// NodeNames returns the names of the nodes.
func (c *Cluster) NodeNames() []string {
	var names []string
	for i := range c.Nodes {
		names = append(names, fmt.Sprintf("n%d", i+1))
	}
	return names
}

// The hosts beside the nodes.
const (
	World        = "world" // the wire, and the nodes' default gateway
	ControlPlane = "cp"
)

// Up starts everything and returns when all nodes are registered and the control plane's addons are applied.
// The nodes become Ready when a network is installed: see UpWithWeft. Up continues a start that was
// interrupted.
func (c *Cluster) Up(ctx context.Context) error {
	if c.Port == 0 {
		port, err := freePort()
		if err != nil {
			return err
		}
		c.Port = port
	}
	if err := c.save(); err != nil {
		return err
	}
	if err := c.makeCertificates(); err != nil {
		return fmt.Errorf("certificates: %w", err)
	}
	if err := c.buildImages(ctx); err != nil {
		return fmt.Errorf("images: %w", err)
	}
	c.log("certificates and images ready")
	world, err := c.worldSpec()
	if err != nil {
		return err
	}
	if err := c.startHost(ctx, world); err != nil {
		return err
	}
	if err := c.startHost(ctx, c.controlPlaneSpec()); err != nil {
		return err
	}
	for _, n := range c.NodeNames() { // they boot while the control plane comes up
		if err := c.StartNode(ctx, n); err != nil {
			return err
		}
	}
	c.log("hosts started: %s %s %v", World, ControlPlane, c.NodeNames())
	if err := c.startForwarder(); err != nil {
		return err
	}
	if err := c.waitAPI(ctx); err != nil {
		return err
	}
	c.log("API server ready")
	if err := c.applyAddons(ctx); err != nil {
		return err
	}
	if err := c.waitNodesExist(ctx, time.Minute); err != nil {
		return err
	}
	return c.routeControlPlane(ctx)
}

// StartNode starts a node's host, after Up or after StopNode.
func (c *Cluster) StartNode(ctx context.Context, name string) error {
	s, err := c.nodeSpec(name)
	if err != nil {
		return err
	}
	return c.startHost(ctx, s)
}

// StopNode ends everything on a node at once, as a power cut does. Its disks stay.
func (c *Cluster) StopNode(ctx context.Context, name string) error {
	h, err := host.Open(c.path(name))
	if err != nil {
		return err
	}
	if err := h.Stop(ctx); err != nil {
		return err
	}
	return host.DestroyCgroup(c.cgroup(name)) // a kubelet takes what it finds there for running containers
}

// Down ends the cluster and removes its directory.
func (c *Cluster) Down(ctx context.Context) error {
	errs := []error{c.stopForwarder()}
	for _, n := range append(c.NodeNames(), ControlPlane, World) {
		errs = append(errs, c.destroyHost(ctx, n))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("cluster down: %w", err)
	}
	return os.RemoveAll(c.Dir)
}

// waitAPI waits until the API server says that it is ready.
func (c *Cluster) waitAPI(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var err error
	for ctx.Err() == nil {
		if _, err = c.Kubectl(ctx, "get", "--raw", "/readyz"); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
	return fmt.Errorf("API server is not ready, its log is %s: %w", c.Log(ControlPlane, "kube-apiserver"), err)
}

// Log is the path of a process's log.
func (c *Cluster) Log(hostName, process string) string {
	return c.path(hostName, "log", process+".log")
}
