//go:build e2e

// Package e2e is weft on a real Kubernetes cluster: the tests of what a user sees when the chart is installed.
//
// It is not a test of single packages; whatever fails here without a smaller test that fails as well is a gap.
// make e2e runs it. The cluster is made for the run and removed after it; WEFT_E2E=keep leaves it running, and
// the next run with WEFT_E2E=keep uses it again. WEFT_E2E_NETWORK=ptp tests the cluster itself with the
// reference plugins in place of weft, where that makes sense.
package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/netset"
	"weft/test/e2e/binaries"
	"weft/test/e2e/cluster"
)

// The versions of weft that are installed. They differ in their name only.
const (
	versionN    = "e2e-n"
	versionNext = "e2e-next"
)

// shared is the cluster of all tests but those that make their own.
var shared *cluster.Cluster

func TestMain(m *testing.M) {
	if handled, err := cluster.Helper(os.Args); handled {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintf(os.Stderr, "e2e: %v\n", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if os.Getuid() != 0 {
		return 0, errors.New("the cluster's hosts are namespaces: run this as root")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Hour) // go test has its own
	defer cancel()
	dir, unlock, err := directory()
	if err != nil {
		return 0, err
	}
	defer unlock()
	keep := os.Getenv("WEFT_E2E") == "keep"
	shared, err = cluster.Open(dir, progress)
	if err == nil && !keep { // of a run that was killed
		err = shared.Down(ctx)
		shared = nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	if shared == nil {
		if shared, err = start(ctx, cluster.Config{Dir: dir, Nodes: 3, Families: netset.Families()}); err != nil {
			return 0, errors.Join(err, diagnose(shared))
		}
	}
	code = m.Run()
	if code != 0 {
		err = diagnose(shared)
	}
	if keep {
		return code, err
	}
	if policed.Cluster != nil {
		err = errors.Join(err, policed.Down(ctx), leftovers(policed.Dir))
	}
	return code, errors.Join(err, shared.Down(ctx), leftovers(dir))
}

// start makes a cluster with a network.
func start(ctx context.Context, config cluster.Config, chart ...string) (*cluster.Cluster, error) {
	bin, err := binaries.Build(ctx, func(s string) { progress("building %s", s) })
	if err != nil {
		return nil, err
	}
	config.Bin = bin
	c := cluster.New(config, progress)
	if ptp() {
		return c, c.UpWithPTP(ctx)
	}
	return c, c.UpWithWeft(ctx, versionN, chart...)
}

// policed is the cluster of the tests of policy. policyCluster makes it for the first of them.
var policed struct {
	sync.Mutex
	*cluster.Cluster
}

// policyCluster is a cluster with kube-proxy, since the suites reach pods through services, and with the definitions of the
// languages of policy.
func policyCluster(t *testing.T) *cluster.Cluster {
	t.Helper()
	needsWeft(t)
	policed.Lock()
	defer policed.Unlock()
	if policed.Cluster != nil {
		return policed.Cluster
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	dir := shared.Dir + "-policy"
	old, err := cluster.Open(dir, progress)
	switch {
	case err == nil && os.Getenv("WEFT_E2E") == "keep":
		policed.Cluster = old
		return old
	case err == nil:
		err = old.Down(ctx)
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	}
	if err != nil {
		t.Fatal(err)
	}
	policed.Cluster, err = start(ctx, cluster.Config{Dir: dir, Nodes: 2, Families: netset.Families(), KubeProxy: "nftables", Images: shared.Dir},
		"config.policy.languages={sig-network,calico,cilium,antrea}")
	if err != nil {
		_ = diagnose(policed.Cluster)
		t.Fatal(err)
	}
	for _, crd := range []string{
		"clusternetworkpolicies.policy.networking.k8s.io", "globalnetworkpolicies.projectcalico.org", "tiers.projectcalico.org",
		"ciliumnetworkpolicies.cilium.io", "clusternetworkpolicies.crd.antrea.io",
	} {
		for _, condition := range []string{"create", "condition=Established"} {
			if _, err := policed.Kubectl(ctx, "wait", "--for="+condition, "--timeout=60s", "crd/"+crd); err != nil {
				_ = diagnose(policed.Cluster)
				t.Fatalf("weft does not install definitions: %v", err)
			}
		}
	}
	return policed.Cluster
}

// ptp says that the reference plugins stand in for weft.
func ptp() bool { return os.Getenv("WEFT_E2E_NETWORK") == "ptp" }

// needsWeft skips a test of what other plugins do not claim to do.
func needsWeft(t *testing.T) {
	t.Helper()
	if ptp() {
		t.Skip("WEFT_E2E_NETWORK=ptp: a test of weft")
	}
}

// directory is where the cluster is kept, locked for this run.
func directory() (dir string, unlock func(), err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", nil, err
	}
	dir = filepath.Join(cache, "weft-e2e", "test")
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", nil, err
	}
	f, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return "", nil, fmt.Errorf("another run uses %s: %w", dir, err)
	}
	return dir, func() { f.Close() }, nil
}

// leftovers reports what a cluster that is down has left behind.
func leftovers(dir string) error {
	var left []string
	if _, err := os.Stat(dir); err == nil {
		left = append(left, dir)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for _, l := range strings.Split(string(mounts), "\n") {
		if strings.Contains(l, dir+"/") {
			left = append(left, "mount "+l)
		}
	}
	name := strings.ReplaceAll(strings.Trim(dir, "/"), "/", "-")
	for _, pattern := range []string{"/sys/fs/cgroup/weft-e2e/" + name, "/sys/fs/cgroup/*/weft-e2e/" + name} {
		m, _ := filepath.Glob(pattern)
		left = append(left, m...)
	}
	if len(left) > 0 {
		return fmt.Errorf("left behind: %s", strings.Join(left, ", "))
	}
	return nil
}

// diagnose prints what helps to find out why something failed.
func diagnose(c *cluster.Cluster) error {
	if c == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, args := range [][]string{
		{"get", "nodes,pods", "-A", "-o", "wide"},
		{"-n", "kube-system", "logs", "daemonset/weft", "--tail=60", "--all-pods", "--prefix"},
		{"get", "events", "-A", "--sort-by=.lastTimestamp"},
	} {
		out, err := c.Kubectl(ctx, args...)
		lines := strings.Split(out, "\n")
		if len(lines) > 200 {
			lines = lines[len(lines)-200:]
		}
		fmt.Fprintf(os.Stderr, "--- kubectl %s\n%s\n", strings.Join(args, " "), strings.Join(lines, "\n"))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	return nil
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s  %s\n", time.Now().Format("15:04:05.0"), fmt.Sprintf(format, args...))
}
