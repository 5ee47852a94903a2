package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"weft/internal/host"
)

// Kubectl runs kubectl as the administrator and returns its output. Its error has kubectl's words.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	return c.KubectlInput(ctx, "", args...)
}

// KubectlInput is Kubectl with a standard input: a manifest, say.
func (c *Cluster) KubectlInput(ctx context.Context, input string, args ...string) (string, error) {
	cmd := c.KubectlCommand(ctx, args...)
	var out, errout bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &errout
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errout.String()))
	}
	return out.String(), nil
}

// KubectlCommand is kubectl as the administrator, not started.
func (c *Cluster) KubectlCommand(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.program("kubectl"), append([]string{"--kubeconfig=" + c.Kubeconfig()}, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+c.Dir) // for its cache
	return cmd
}

// Apply applies a manifest.
func (c *Cluster) Apply(ctx context.Context, manifest string) error {
	_, err := c.KubectlInput(ctx, manifest, "apply", "-f", "-")
	return err
}

// Get reads objects as JSON into list: Get(ctx, &pods, "pods", "-A").
func (c *Cluster) Get(ctx context.Context, list any, args ...string) error {
	out, err := c.Kubectl(ctx, append([]string{"get", "-o", "json"}, args...)...)
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(out), list)
}

// Exec runs a command on a host, in all its namespaces, and returns its output.
func (c *Cluster) Exec(ctx context.Context, hostName string, args ...string) (string, error) {
	h, err := host.Open(c.path(hostName))
	if err != nil {
		return "", err
	}
	return h.Output(ctx, args...)
}

// Host returns a running host.
func (c *Cluster) Host(name string) (*host.Host, error) { return host.Open(c.path(name)) }

// applyAddons creates what every cluster has: CoreDNS.
func (c *Cluster) applyAddons(ctx context.Context) error {
	m, err := c.render("coredns.yaml", nil)
	if err != nil {
		return err
	}
	return c.Apply(ctx, m)
}

// waitReady waits until every node is Ready and CoreDNS serves.
func (c *Cluster) waitReady(ctx context.Context) error {
	const timeout = "--timeout=2m"
	if _, err := c.Kubectl(ctx, "wait", "--for=condition=Ready", "nodes", "--all", timeout); err != nil {
		nodes, _ := c.Kubectl(ctx, "describe", "nodes")
		return fmt.Errorf("%w\n%s", err, nodes)
	}
	c.log("all %d nodes Ready", c.Nodes)
	if _, err := c.Kubectl(ctx, "-n", "kube-system", "rollout", "status", "deployment/coredns", timeout); err != nil {
		pods, _ := c.Kubectl(ctx, "-n", "kube-system", "get", "pods", "-o", "wide")
		return fmt.Errorf("%w\n%s", err, pods)
	}
	c.log("CoreDNS serves")
	return nil
}

// waitNodesExist waits until every kubelet has registered its node.
func (c *Cluster) waitNodesExist(ctx context.Context, limit time.Duration) error {
	for _, n := range c.NodeNames() {
		if _, err := c.Kubectl(ctx, "wait", "--for=create", "--timeout="+limit.String(), "node/"+n); err != nil {
			return err
		}
	}
	return nil
}
