package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"weft/internal/image"
	"weft/test/e2e/binaries"
)

// Repository is the name of weft's image, as in the chart.
const Repository = "localhost/weft"

// UpWithWeft makes the cluster and installs weft on it as a user does: it builds weft's image, renders the chart
// with helm, and applies the result with kubectl. values are further settings of the chart, such as
// config.backend.type=direct. It returns when all nodes are Ready and the cluster's DNS serves.
func (c *Cluster) UpWithWeft(ctx context.Context, version string, values ...string) error {
	if err := c.save(); err != nil {
		return err
	}
	if err := c.buildWeft(ctx, version); err != nil { // before the nodes wait for it
		return err
	}
	if err := c.Up(ctx); err != nil {
		return err
	}
	if err := c.LoadWeft(ctx, version); err != nil {
		return err
	}
	manifest, err := c.RenderChart(ctx, version, values...)
	if err != nil {
		return err
	}
	if err := c.Apply(ctx, manifest); err != nil {
		return err
	}
	c.log("weft %s applied", version)
	return c.waitReady(ctx)
}

// LoadWeft builds weft's image of that version from this source tree and imports it on every node.
func (c *Cluster) LoadWeft(ctx context.Context, version string) error {
	if err := c.buildWeft(ctx, version); err != nil {
		return err
	}
	errs := make([]error, c.Nodes)
	var wg sync.WaitGroup
	for i, n := range c.NodeNames() {
		wg.Go(func() {
			if errs[i] = c.waitRuntime(ctx, n); errs[i] == nil {
				_, errs[i] = c.Exec(ctx, n, importCommand(c, c.archive("weft-"+version), Repository+":"+version)...)
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return fmt.Errorf("import weft's image: %w", err)
		}
	}
	return nil
}

// buildWeft builds the programs and the image of a version, unless this cluster has it already.
func (c *Cluster) buildWeft(ctx context.Context, version string) error {
	dst := c.archive("weft-" + version)
	if _, err := os.Stat(dst); err == nil {
		return nil
	}
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	dir := c.path("weft-" + version)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w -X main.version="+version,
		"-o", dir+"/", "./cmd/weft", "./cmd/weft-cni")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build weft: %w\n%s", err, out)
	}
	return writeArchive(dst, image.Weft([]string{Repository + ":" + version}, arch(), dir))
}

// RenderChart renders the chart for this cluster.
func (c *Cluster) RenderChart(ctx context.Context, version string, values ...string) (string, error) {
	return RenderChart(ctx, c.Bin, append([]string{"image.tag=" + version, "apiServer=" + c.apiServer()}, values...)...)
}

// RenderChart renders weft's chart with the helm of the directory bin, as a user would.
func RenderChart(ctx context.Context, bin string, values ...string) (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	args := []string{
		"template", "weft", filepath.Join(root, "deploy", "chart", "weft"), "--namespace", "kube-system",
		"--kube-version", binaries.Kubernetes,
	}
	for _, v := range values {
		args = append(args, "--set", v)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "helm"), args...)
	var errout strings.Builder
	cmd.Stderr = &errout
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("helm template: %w: %s", err, strings.TrimSpace(errout.String()))
	}
	return string(out), nil
}

// waitRuntime waits until a node's containerd answers.
func (c *Cluster) waitRuntime(ctx context.Context, node string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		_, err := c.Exec(ctx, node, c.program("ctr"), "version")
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("containerd on %s does not answer: %w", node, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
