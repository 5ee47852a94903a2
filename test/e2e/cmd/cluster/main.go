// Command cluster runs a real Kubernetes cluster with weft on this machine, to try things by hand. It is a thin
// shell around test/e2e/cluster; make cluster and make e2e use the same code.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"weft/internal/netset"
	"weft/test/e2e/binaries"
	"weft/test/e2e/cluster"
)

const usage = `usage: cluster [-dir DIR] VERB, where the cluster is kept in DIR
       cluster up [-nodes N] [-families 46] [-network weft] [-kube-proxy MODE] [-set K=V,…]
       cluster down                     end it; nothing is left
       cluster kubectl ARGS…            kubectl as administrator
       cluster exec HOST COMMAND…       on a host: n1, n2, …, cp, world
       cluster log HOST PROCESS         follow a log: kubelet, containerd, kube-apiserver, …
       cluster binaries [NAME…]         build the programs only, and print their directory
       cluster manifest                 render the chart with its defaults
`

func main() {
	handled, err := cluster.Helper(os.Args)
	if !handled {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		err = run(ctx, os.Args[1:])
		stop()
	}
	exit, attached := err.(*exec.ExitError) //nolint:errorlint // unwrapped: of the user's own command, which has spoken
	switch {
	case attached:
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintf(os.Stderr, "cluster: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	dir, err := defaultDir()
	if err != nil {
		return err
	}
	global := flags("cluster")
	global.StringVar(&dir, "dir", dir, "")
	if err := global.Parse(args); err != nil {
		return err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	verb, args := global.Arg(0), global.Args()
	if len(args) > 0 {
		args = args[1:]
	}
	switch verb {
	case "up":
		return up(ctx, dir, args)
	case "binaries":
		bin, err := binaries.Build(ctx, func(s string) { log("building %s", s) }, args...)
		fmt.Println(bin)
		return err
	case "manifest":
		return manifest(ctx)
	}
	c, err := cluster.Open(dir, log)
	if err != nil {
		return err
	}
	switch {
	case verb == "down":
		return c.Down(ctx)
	case verb == "kubectl":
		return attached(c.KubectlCommand(ctx, args...))
	case verb == "exec" && len(args) >= 2:
		h, err := c.Host(args[0])
		if err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, args[1], args[2:]...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		return h.Run(cmd)
	case verb == "log" && len(args) == 2:
		return attached(exec.CommandContext(ctx, "tail", "-n", "100", "-f", c.Log(args[0], args[1])))
	}
	return errors.New(strings.TrimSpace(usage))
}

func flags(name string) *flag.FlagSet {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	return fs
}

func up(ctx context.Context, dir string, args []string) error {
	fs := flags("up")
	nodes := fs.Int("nodes", 3, "")
	families := fs.String("families", "46", "")
	network := fs.String("network", "weft", "")
	proxy := fs.String("kube-proxy", "", "")
	set := fs.String("set", "", "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	fam, err := parseFamilies(*families)
	if err != nil {
		return err
	}
	bin, err := binaries.Build(ctx, func(s string) { log("building %s", s) })
	if err != nil {
		return err
	}
	c := cluster.New(cluster.Config{Dir: dir, Bin: bin, Nodes: *nodes, Families: fam, KubeProxy: *proxy}, log)
	if old, err := cluster.Open(dir, log); err == nil {
		c = old // goes on with what is there
	}
	switch *network {
	case "weft":
		version := time.Now().Format("dev-150405") // another one each time: what changed is rolled out
		err = c.UpWithWeft(ctx, version, values(*set)...)
	case "ptp":
		err = c.UpWithPTP(ctx)
	case "none":
		return c.Up(ctx)
	default:
		err = fmt.Errorf("-network: %q is not weft, ptp or none", *network)
	}
	if err != nil {
		return err
	}
	fmt.Printf("\nexport KUBECONFIG=%s\n%s get pods -A     # or any kubectl\ngo run ./test/e2e/cmd/cluster down\n",
		c.Kubeconfig(), filepath.Join(bin, "kubectl"))
	return nil
}

// values is the chart's settings as helm takes them, of which one may have several.
func values(set string) []string {
	if set == "" {
		return nil
	}
	return []string{set}
}

// manifest prints what the chart renders to with its defaults: deploy/weft.yaml.
func manifest(ctx context.Context) error {
	bin, err := binaries.Build(ctx, func(s string) { log("building %s", s) }, "helm")
	if err != nil {
		return err
	}
	m, err := cluster.RenderChart(ctx, bin)
	fmt.Print(m)
	return err
}

func parseFamilies(s string) ([]netset.Family, error) {
	switch s {
	case "4":
		return []netset.Family{netset.V4}, nil
	case "6":
		return []netset.Family{netset.V6}, nil
	case "46":
		return []netset.Family{netset.V4, netset.V6}, nil
	case "64":
		return []netset.Family{netset.V6, netset.V4}, nil
	}
	return nil, fmt.Errorf("-families: %q is not 4, 6, 46 or 64", s)
}

func defaultDir() (string, error) {
	cache, err := os.UserCacheDir()
	return filepath.Join(cache, "weft-e2e", "cluster"), err
}

func attached(cmd *exec.Cmd) error {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}

// log prints progress with the time of day.
func log(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s  %s\n", time.Now().Format("15:04:05.0"), fmt.Sprintf(format, args...))
}
