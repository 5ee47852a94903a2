package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"weft/internal/lab/script"
)

func labProbe() *cobra.Command {
	var namespace string
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "probe SOURCE DESTINATION[:PORT][/PROTOCOL]",
		Short: "Try whether one end reaches another, in every address family",
		Long: `Ends are pods (NAME or NAMESPACE/NAME), workloads, nodes, "outside", and addresses as destinations.
PROTOCOL is tcp, udp or icmp. Without a port: the first that a pod declares, else icmp.
The exit code is 1 if an address was not reached.`,
		Example: `  weft lab probe web-0 db:5432
  weft lab probe node1 shop/web/icmp
  weft lab probe web-0 outside:80`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := openLab(cmd)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			results, err := l.ProbeAll(ctx, namespace, args[0], args[1], 0)
			if err != nil {
				return err
			}
			var rows [][]string
			failed := 0
			for _, r := range results {
				if r.Err != nil {
					failed++
				}
				rows = append(rows, []string{r.Target.String(), r.Verdict(), r.Time(), r.Said()})
			}
			if err := align(cmd.OutOrStdout(), []string{"TARGET", "RESULT", "TIME", "ANSWER"}, rows); err != nil {
				return err
			}
			if failed > 0 {
				return fmt.Errorf("%d of %d not reached", failed, len(results))
			}
			return nil
		},
		ValidArgsFunction: completePods(&namespace),
	}
	namespaceFlag(c, &namespace)
	c.Flags().DurationVar(&timeout, "timeout", 2*time.Second, "wait this long for an answer")
	return c
}

func labTest() *cobra.Command {
	var keep bool
	var s script.Script
	c := &cobra.Command{
		Use:   "test SCRIPT...",
		Short: "Run scenarios in labs of their own and report",
		Long: `Runs txtar scripts, each in a lab of its own that is taken down afterwards, and prints what
was tried and how long it took. The exit code is 1 if an expectation failed. With --name they
run in that lab, which is up and stays so.

` + script.Help(),
		Example: "  weft lab test scenario.txtar\n  weft lab test --keep tests/*.txtar",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s.Keep, s.Out = keep, cmd.OutOrStdout()
			s.Name, _ = cmd.Flags().GetString("name")
			failed := 0
			for _, file := range args {
				if err := s.RunFile(cmd.Context(), file); err != nil {
					failed++
					fmt.Fprintln(cmd.ErrOrStderr(), "FAIL "+err.Error())
				}
			}
			if failed > 0 {
				return fmt.Errorf("%d of %d scripts failed", failed, len(args))
			}
			return nil
		},
	}
	c.Flags().BoolVar(&keep, "keep", false, "leave the lab up to look around in it")
	c.Flags().BoolVarP(&s.Verbose, "verbose", "v", false, "print each command and its output")
	return c
}
