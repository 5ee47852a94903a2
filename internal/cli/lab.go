package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weft/internal/host"
	"weft/internal/lab"
	"weft/internal/lab/kubelet"
	"weft/internal/lab/probe"
)

// LabCommand is `weft lab`: try weft, and test manifests, on one machine.
func LabCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "lab",
		Short: "Run weft with several nodes on this machine, without Kubernetes",
		Long: `A lab is a cluster's network on one Linux machine: nodes are namespaces joined by an
underlay, each runs the weft agent, and pods are started through the CNI plugin. Objects
are plain Kubernetes YAML. There are no images: a container runs its command as a program
of this machine; a container without one answers on its ports (HTTP, TCP and UDP echo).

It needs root and Linux, and touches nothing outside its namespaces, its cgroup
(weft-lab/*) and its directory ($WEFT_LAB_DIR, default /run/weft-lab).`,
		Example: `  weft lab up --nodes 3                       # start
  weft lab apply -f app.yaml                  # run pods
  weft lab get pods -o wide
  weft lab exec web-0 -- ip addr              # inside a pod
  weft lab probe web-0 db:5432                # can web-0 reach db?
  weft lab node node1 -- weft status          # on a node
  weft lab down                               # leave nothing behind
  weft lab test scenario.txtar                # apply, expect, report: for CI
  weft lab demo                               # see it work in seconds`,
	}
	c.PersistentFlags().String("name", "", "name of the lab (may be left out if there is only one)")
	_ = c.RegisterFlagCompletionFunc("name", completeFrom(func(context.Context, *cobra.Command) []string {
		names, _ := lab.List()
		return names
	}))
	c.AddCommand(labUp(), labDown(), labList(), labApply(), labDelete(), labGet(), labExec(), labLogs(), labNode(),
		labProbe(), labTest(), labDemo(), labHostInit(), labKubelet())
	return c
}

// openLab is the lab that --name or the only one says.
func openLab(cmd *cobra.Command) (*lab.Lab, error) {
	name, _ := cmd.Flags().GetString("name")
	return lab.Open(name)
}

// labHostInit is pid 1 of the lab's hosts and pods.
func labHostInit() *cobra.Command {
	return &cobra.Command{
		Use: "host-init DIR", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return host.Init(args[0], probe.Respond) },
	}
}

// labKubelet is the process that runs a node's pods.
func labKubelet() *cobra.Command {
	return &cobra.Command{
		Use: "kubelet NODE", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := kubelet.New(args[0], lab.InitArgs(), os.Stderr)
			if err != nil {
				return err
			}
			return k.Run(cmd.Context())
		},
	}
}

func labUp() *cobra.Command {
	var o lab.Options
	var config string
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "up",
		Short: "Start a lab, or what is missing of one",
		Example: `  weft lab up                                      # 3 nodes, dual stack, VXLAN
  weft lab up --name big --nodes 20 --ip-family 6
  weft lab up --subnets 2 --mtu 9000,1500          # a router between, a narrow leg
  weft lab up --backend direct --config agent.yaml # agent settings of your own`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Name, _ = cmd.Flags().GetString("name")
			if config != "" {
				var err error
				if o.Config, err = lab.ReadConfig(config); err != nil {
					return err
				}
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			began := time.Now()
			l, err := lab.Up(ctx, o)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "lab %s is up: %s (%s)\n", l.Name(), strings.Join(l.NodeNames(), " "), took(time.Since(began)))
			return nil
		},
	}
	f := c.Flags()
	f.IntVar(&o.Nodes, "nodes", 0, "number of nodes (default 3, or as many as the lab has)")
	f.IntSliceVar(&o.MTU, "mtu", nil, "MTU of the underlay; several: of subnet 1, 2 … (default 1500)")
	f.IntVar(&o.Subnets, "subnets", 0, "underlay subnets with a router between; nodes take turns on them (default 1)")
	f.StringVar(&o.IPFamily, "ip-family", "", "4, 6, 46 or 64 (default 46)")
	f.StringVar(&o.Backend, "backend", "", "vxlan or direct (default vxlan)")
	f.StringVar(&config, "config", "", "file with agent configuration that is merged over the lab's")
	f.DurationVar(&timeout, "timeout", time.Minute, "give up after this time")
	_ = c.RegisterFlagCompletionFunc("ip-family", cobra.FixedCompletions([]string{"4", "6", "46", "64"}, cobra.ShellCompDirectiveNoFileComp))
	_ = c.RegisterFlagCompletionFunc("backend", cobra.FixedCompletions([]string{"vxlan", "direct"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func labDown() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "down",
		Short: "End a lab and leave nothing of it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			name, _ := cmd.Flags().GetString("name")
			names := []string{name}
			if all {
				var err error
				if names, err = lab.List(); err != nil {
					return err
				}
			} else if name == "" {
				l, err := lab.Open("")
				if err != nil {
					return err
				}
				names[0] = l.Name()
			}
			for _, n := range names {
				ctx, cancel := context.WithTimeout(cmd.Context(), 20*time.Second)
				began := time.Now()
				err := lab.Down(ctx, n)
				cancel()
				if errors.Is(err, lab.ErrNoLab) {
					fmt.Fprintf(cmd.OutOrStdout(), "there is no lab %s\n", n)
					continue
				}
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "lab %s is down (%s)\n", n, took(time.Since(began)))
			}
			return nil
		},
	}
	c.Flags().BoolVar(&all, "all", false, "all labs")
	return c
}

func labList() *cobra.Command {
	c := &cobra.Command{
		Use:   "list",
		Short: "List the labs of this machine",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			names, err := lab.List()
			if err != nil {
				return err
			}
			var all []lab.Options
			var rows [][]string
			for _, n := range names {
				l, err := lab.Open(n)
				if err != nil {
					return err
				}
				o := l.Options()
				all = append(all, o)
				rows = append(rows, []string{n, strconv.Itoa(o.Nodes), strconv.Itoa(o.Subnets), strings.Trim(fmt.Sprint(o.MTU), "[]"), o.IPFamily, o.Backend})
			}
			return output(cmd, all, func(w io.Writer) error {
				if len(rows) == 0 {
					_, err := fmt.Fprintln(w, "no lab; start one with `weft lab up`")
					return err
				}
				return align(w, []string{"NAME", "NODES", "SUBNETS", "MTU", "FAMILY", "BACKEND"}, rows)
			})
		},
	}
	outputFlag(c)
	return c
}

// labExec runs a command inside a pod.
func labExec() *cobra.Command {
	var namespace string
	c := &cobra.Command{
		Use:   "exec POD -- COMMAND [ARG...]",
		Short: "Run a command inside a pod",
		Long:  "Runs a program of this machine inside a pod: its network, host name and process list.",
		Example: `  weft lab exec web-0 -- ip route
  weft lab exec -n shop db -- sh`,
		Args: needCommand("POD"),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := openLab(cmd)
			if err != nil {
				return err
			}
			pod, err := l.Pod(namespace, args[0])
			if err != nil {
				return err
			}
			h, err := l.PodHost(pod)
			if err != nil {
				return err
			}
			return attach(cmd, h, args[1:])
		},
		ValidArgsFunction: completePods(&namespace),
	}
	namespaceFlag(c, &namespace)
	return c
}

// needCommand wants NAME -- COMMAND; the dash itself is not required.
func needCommand(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < 2 {
			return fmt.Errorf("want %s -- COMMAND [ARG...]; see `%s --help`", what, cmd.CommandPath())
		}
		return nil
	}
}

// attach runs the command on the host with this process's input and outputs. The
// exit code is the command's.
func attach(cmd *cobra.Command, h *host.Host, args []string) error {
	// Interrupts of the terminal reach the child too: it decides.
	child := exec.CommandContext(context.WithoutCancel(cmd.Context()), args[0], args[1:]...)
	child.Stdin, child.Stdout, child.Stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	if err := h.Start(child); err != nil {
		return err
	}
	return child.Wait()
}

func labLogs() *cobra.Command {
	var namespace, container string
	var follow bool
	var lines int
	c := &cobra.Command{
		Use:     "logs POD",
		Short:   "Print what a pod's container wrote",
		Example: "  weft lab logs web-0\n  weft lab logs -f -c proxy web-0",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := openLab(cmd)
			if err != nil {
				return err
			}
			pod, err := l.Pod(namespace, args[0])
			if err != nil {
				return err
			}
			path, err := l.Logs(pod, container)
			if err != nil {
				return err
			}
			return printLog(cmd.Context(), cmd.OutOrStdout(), path, lines, follow)
		},
		ValidArgsFunction: completePods(&namespace),
	}
	namespaceFlag(c, &namespace)
	c.Flags().StringVarP(&container, "container", "c", "", "container (default: the first that has a command)")
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on as it grows")
	c.Flags().IntVar(&lines, "tail", -1, "only the last lines")
	return c
}

// printLog copies a log, the last lines of it, or its growth until ctx ends.
func printLog(ctx context.Context, w io.Writer, path string, lines int, follow bool) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s has written nothing yet", strings.TrimSuffix(filepath.Base(path), ".log"))
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if lines >= 0 {
		b, err := io.ReadAll(f)
		if err != nil {
			return err
		}
		all := strings.SplitAfter(string(b), "\n")
		if n := len(all); n > 0 && all[n-1] == "" {
			all = all[:n-1]
		}
		if _, err := io.WriteString(w, strings.Join(all[max(0, len(all)-lines):], "")); err != nil {
			return err
		}
	}
	for {
		if _, err := io.Copy(w, f); err != nil || !follow {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// labNode runs a command on a node, or stops and starts it or one of its processes.
func labNode() *cobra.Command {
	c := &cobra.Command{
		Use:   "node NODE (-- COMMAND [ARG...] | stop|start|reboot | PROCESS stop|start|restart|kill|logs)",
		Short: "Run a command on a node, or stop and start it or its agent",
		Long: `Runs a command on a node ("outside" and "wire" are hosts too), with the node's /etc, /run,
/opt and /var/lib and with weft in the PATH. Without --, a verb acts on the whole node or
on one of its processes (agent, kubelet).

stop of a process is SIGTERM and stays; kill is SIGKILL, after which the node's supervisor
starts it again, as does restart. stop of a node is a power cut; start brings it back.`,
		Example: `  weft lab node node1 -- weft status
  weft lab node outside -- ip route
  weft lab node node1 agent kill
  weft lab node node2 reboot`,
		Args: needCommand("NODE [PROCESS] VERB, or NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := openLab(cmd)
			if err != nil {
				return err
			}
			if dash := cmd.ArgsLenAtDash(); dash >= 0 {
				if dash != 1 || len(args) < 2 {
					return errors.New("want NODE -- COMMAND [ARG...]")
				}
				h, err := l.Host(args[0])
				if err != nil {
					return err
				}
				return attach(cmd, h, args[1:])
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			if len(args) == 2 {
				return l.NodeVerb(ctx, args[0], args[1])
			}
			if len(args) == 3 && args[2] == "logs" {
				h, err := l.Host(args[0])
				if err != nil {
					return err
				}
				return printLog(ctx, cmd.OutOrStdout(), h.LogFile(args[1]), -1, false)
			}
			if len(args) == 3 {
				return l.ProcessVerb(ctx, args[0], args[1], args[2])
			}
			return fmt.Errorf("want NODE [PROCESS] VERB, or NODE -- COMMAND; see `%s --help`", cmd.CommandPath())
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			return completeFrom(func(_ context.Context, cmd *cobra.Command) []string {
				l, err := openLab(cmd)
				switch {
				case err != nil:
					return nil
				case len(args) == 0:
					return append(l.NodeNames(), lab.OutsideHost)
				case len(args) == 1:
					return []string{"agent", "kubelet", "stop", "start", "reboot"}
				}
				return []string{"stop", "start", "restart", "kill", "logs"}
			})(cmd, args, prefix)
		},
	}
	return c
}

func namespaceFlag(c *cobra.Command, ns *string) {
	c.Flags().StringVarP(ns, "namespace", "n", "default", "namespace")
	_ = c.RegisterFlagCompletionFunc("namespace", completeFrom(func(_ context.Context, cmd *cobra.Command) []string {
		return objectNames(cmd, "namespace", "")
	}))
}

func completePods(namespace *string) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return completeFrom(func(_ context.Context, cmd *cobra.Command) []string { return objectNames(cmd, "pod", *namespace) })(cmd, args, prefix)
	}
}

func objectNames(cmd *cobra.Command, kind, namespace string) []string {
	l, err := openLab(cmd)
	if err != nil {
		return nil
	}
	objs, err := l.Get(kind, namespace)
	if err != nil {
		return nil
	}
	names := make([]string, 0, len(objs))
	for _, o := range objs {
		names = append(names, o.GetName())
	}
	return slices.Compact(names)
}

// took is a duration for people.
func took(d time.Duration) string {
	if d < time.Second {
		return strconv.FormatInt(d.Milliseconds(), 10) + " ms"
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
