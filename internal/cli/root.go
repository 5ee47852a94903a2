// Package cli is weft's command line: it asks the agent over its socket and prints
// what comes back as aligned tables, JSON or YAML.
//
// It decides nothing about the network and touches the kernel only through the agent and the lab.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"weft/internal/agent"
	"weft/internal/api"
)

// Root is the whole command tree.
func Root(version string) *cobra.Command {
	root := &cobra.Command{
		Use:           "weft",
		Short:         "One light network for Kubernetes: agent, command line and lab",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().String("socket", "", "the agent's socket (default: $WEFT_SOCKET, then /run/weft/weft.sock)")
	root.AddCommand(agentCommand(version), versionCommand(version), statusCommand(), showCommand(), doctorCommand(), ipamCommand(), canCommand(), whyCommand(), policyCommand(), serviceCommand(), LabCommand(), BenchCommand())
	return root
}

// ExitCode is the process's exit code for an error of the command tree: a child's own code where one was run.
func ExitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return exit.ExitCode()
	}
	return 1
}

func agentCommand(version string) *cobra.Command {
	var config string
	c := &cobra.Command{
		Use:   "agent",
		Short: "Run the node daemon",
		Long: "Run the node daemon. Its configuration is one YAML file; see docs/reference/configuration.md.\n" +
			"On SIGTERM it ends and leaves the network as it is: pods go on working without it.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := agent.LoadConfig(config)
			if err != nil {
				return err
			}
			return agent.Run(cmd.Context(), cfg, version, os.Stderr)
		},
	}
	c.Flags().StringVar(&config, "config", "/etc/weft/config.yaml", "configuration file; all defaults if it does not exist")
	return c
}

func versionCommand(version string) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), "weft "+version) },
	}
}

// socket returns the path of the agent's socket.
func socket(cmd *cobra.Command) string {
	if s, _ := cmd.Flags().GetString("socket"); s != "" {
		return s
	}
	if s := os.Getenv("WEFT_SOCKET"); s != "" {
		return s
	}
	return "/run/weft/weft.sock"
}

// call asks the agent; an agent that is away is said in words.
func call(cmd *cobra.Command, method string, params, result any) error {
	return explainAway(cmd, api.Call(cmd.Context(), socket(cmd), method, params, result))
}

func explainAway(cmd *cobra.Command, err error) error {
	if err != nil && api.Away(err) {
		return fmt.Errorf("the agent does not answer on %s: is `weft agent` running on this node? (%w)", socket(cmd), err)
	}
	return err
}

// outputFlag adds -o to a command.
func outputFlag(c *cobra.Command) {
	c.Flags().StringP("output", "o", "table", "table, json or yaml")
	_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
}

// print writes v as JSON or YAML if -o says so, else calls table.
func output(cmd *cobra.Command, v any, table func(io.Writer) error) error {
	w := cmd.OutOrStdout()
	switch o, _ := cmd.Flags().GetString("output"); o {
	case "json":
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	case "yaml":
		b, err := yaml.Marshal(v)
		if err != nil {
			return err
		}
		_, err = w.Write(b)
		return err
	case "table", "wide", "":
		return table(w)
	default:
		return fmt.Errorf("--output %q: want table, json or yaml", o)
	}
}

// align prints rows under a header in aligned columns.
func align(w io.Writer, columns []string, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, strings.Join(columns, "\t"))
	for _, r := range rows {
		fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	return tw.Flush()
}

// completeFrom offers the names that list returns.
func completeFrom(list func(context.Context, *cobra.Command) []string) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		var out []string
		for _, s := range list(cmd.Context(), cmd) {
			if strings.HasPrefix(s, prefix) {
				out = append(out, s)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}
