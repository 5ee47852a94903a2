package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weft/internal/api"
)

func canCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "can FROM TO [PORT/PROTOCOL]",
		Short: "Say whether a connection would be allowed, and which rule of each side decides",
		Long: "Say whether a connection would be allowed, and which rule of each side decides. The answer comes from the same compiled\n" +
			"rules that the kernel is given; nothing is sent. FROM and TO are NAMESPACE/POD, an address, node:NAME, or\n" +
			"NAMESPACE:key=value,… for a pod that there might be. It exits with 1 if the connection would not be allowed.",
		Example: "  weft can default/web default/db 5432/tcp\n  weft can 203.0.113.7 default/web 443/tcp\n  weft can default:app=new kube-system/coredns-x 53/udp",
		Args:    cobra.RangeArgs(2, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := api.CanRequest{From: args[0], To: args[1]}
			if len(args) > 2 {
				req.Port = args[2]
			}
			var r api.CanReply
			if err := call(cmd, api.MethodCan, req, &r); err != nil {
				return err
			}
			if err := output(cmd, r, func(w io.Writer) error { return printCan(w, r) }); err != nil {
				return err
			}
			for _, a := range r.Answers {
				if a.Verdict != "allow" {
					return fmt.Errorf("%s cannot reach %s", a.From, a.To)
				}
			}
			return nil
		},
	}
	outputFlag(c)
	return c
}

func printCan(w io.Writer, r api.CanReply) error {
	var rows [][]string
	for _, a := range r.Answers {
		rows = append(rows, []string{a.Family, a.Verdict, "egress", a.Egress.Verdict, a.Egress.By})
		for _, n := range a.Egress.Notes {
			rows = append(rows, []string{"", "", "", "noted", n})
		}
		rows = append(rows, []string{"", "", "ingress", a.Ingress.Verdict, a.Ingress.By})
		for _, n := range a.Ingress.Notes {
			rows = append(rows, []string{"", "", "", "noted", n})
		}
	}
	fmt.Fprintf(w, "%s → %s\n", r.Answers[0].From, r.Answers[0].To)
	return align(w, []string{"FAMILY", "VERDICT", "SIDE", "SAYS", "BY"}, rows)
}

func policyCommand() *cobra.Command {
	c := &cobra.Command{Use: "policy", Short: "Policies of all languages: their order, what a change would do, what is never used"}
	table := func(use, short, method string) *cobra.Command {
		t := &cobra.Command{
			Use: use, Short: short, Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				var r api.Table
				if err := call(cmd, method, struct{}{}, &r); err != nil {
					return err
				}
				return output(cmd, objects(r), func(w io.Writer) error { return align(w, r.Columns, r.Rows) })
			},
		}
		outputFlag(t)
		return t
	}
	diff := &cobra.Command{
		Use:   "diff FILE",
		Short: "Say between whom verdicts would change if the objects in FILE were applied (- for standard input)",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			read := func() ([]byte, error) { return os.ReadFile(args[0]) }
			if args[0] == "-" {
				read = func() ([]byte, error) { return io.ReadAll(cmd.InOrStdin()) }
			}
			b, err := read()
			if err != nil {
				return err
			}
			req := api.DiffRequest{Manifest: b}
			req.Delete, _ = cmd.Flags().GetBool("delete")
			var r api.DiffReply
			if err := call(cmd, api.MethodPolicyDiff, req, &r); err != nil {
				return err
			}
			return output(cmd, r, func(w io.Writer) error { return printDiff(w, r) })
		},
	}
	diff.Flags().Bool("delete", false, "the objects would be deleted")
	outputFlag(diff)
	c.AddCommand(
		table("order", "Show all policies in the order in which they are asked", api.MethodPolicyOrder),
		table("unused", "Show rules that nothing has ever matched on this node, and rules that nothing can match", api.MethodPolicyUnused),
		diff, logCommand())
	return c
}

func printDiff(w io.Writer, r api.DiffReply) error {
	if len(r.Changes) == 0 {
		fmt.Fprintf(w, "Nothing changes: %d pairs were compared.\n", r.Pairs)
		return nil
	}
	var rows [][]string
	for _, c := range r.Changes {
		seen := "not open now"
		if c.Seen > 0 {
			seen = fmt.Sprintf("%d open", c.Seen)
		}
		rows = append(rows, []string{c.From, c.To, c.Port, c.Before, c.After, seen, c.By})
	}
	if err := align(w, []string{"FROM", "TO", "PORT", "NOW", "THEN", "CONNECTIONS", "BY"}, rows); err != nil {
		return err
	}
	fmt.Fprintf(w, "\n%d kinds of connections change, between %d pairs of kinds of ends; %d connections of pods under policy on this node are affected.\n"+
		"What runs now and then, such as jobs, may not be open now.\n", len(r.Changes), r.Pairs, r.Open)
	return nil
}

func whyCommand() *cobra.Command {
	return recordsCommand(&cobra.Command{
		Use:   "why [NAMESPACE/POD]",
		Short: "Say which packets were denied lately on this node, and by which rule",
		Long: "Say which packets were denied lately on this node, and by which rule. Packets that are alike are one line. Under a storm of\n" +
			"denied packets only some are recorded here; the counters of `weft show policyrules` are exact in any case.",
		Example: "  weft why\n  weft why default/web --last 1m\n  weft why --watch",
	}, false, "denied")
}

func logCommand() *cobra.Command {
	return recordsCommand(&cobra.Command{
		Use:   "log [NAMESPACE/POD]",
		Short: "Show which connections met a rule that logs, lately and on this node",
		Long: "Show which connections met a rule that logs, lately and on this node, and what became of them. Those that are alike are one line.\n" +
			"A connection is logged with its first packet; what is denied, with each. A CPU makes at most 256 records a second; the counters of\n" +
			"`weft show policyrules` are exact in any case.",
		Example: "  weft policy log\n  weft policy log default/web --watch",
	}, true, "logged")
}

// recordsCommand makes c a command that shows records of packets: of those that rules log, or of denied ones.
func recordsCommand(c *cobra.Command, logged bool, what string) *cobra.Command {
	columns, cells := []string{"LAST", "TIMES", "FROM", "TO", "PROTOCOL", "WHY"}, dropCells
	if logged {
		columns, cells = []string{"LAST", "TIMES", "VERDICT", "FROM", "TO", "PROTOCOL", "RULE"}, logCells
	}
	c.Args = cobra.MaximumNArgs(1)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		req := api.WhyRequest{Logged: logged}
		if len(args) > 0 {
			if req.Pod = args[0]; !strings.Contains(req.Pod, "/") {
				req.Pod = "default/" + req.Pod
			}
		}
		req.Last, _ = cmd.Flags().GetDuration("last")
		req.Follow, _ = cmd.Flags().GetBool("watch")
		var all []api.Drop
		err := api.Stream(cmd.Context(), socket(cmd), api.MethodWhy, req, func(b json.RawMessage) error {
			var d api.Drop
			if err := json.Unmarshal(b, &d); err != nil {
				return err
			}
			if !req.Follow {
				all = append(all, d)
				return nil
			}
			return output(cmd, d, func(w io.Writer) error {
				_, err := fmt.Fprintln(w, strings.Join(cells(d), "  "))
				return err
			})
		})
		if err != nil && !errors.Is(err, context.Canceled) {
			return explainAway(cmd, err)
		}
		if req.Follow {
			return nil
		}
		return output(cmd, all, func(w io.Writer) error {
			if len(all) == 0 {
				whose := ""
				if req.Pod != "" {
					whose = " to or from " + req.Pod
				}
				_, err := fmt.Fprintf(w, "Nothing%s was %s on this node in the last %s.\n", whose, what, req.Last)
				return err
			}
			rows := make([][]string, 0, len(all))
			for _, d := range all {
				rows = append(rows, cells(d))
			}
			return align(w, columns, rows)
		})
	}
	c.Flags().Duration("last", 5*time.Minute, "how far to look back")
	c.Flags().BoolP("watch", "w", false, "go on with what is "+what+" from now on, until interrupted")
	outputFlag(c)
	return c
}

func logCells(d api.Drop) []string {
	return []string{d.Time.Format(time.TimeOnly), fmt.Sprint(d.Count), d.Verdict, d.From, d.To, d.Proto, d.Reason}
}

func dropCells(d api.Drop) []string {
	return []string{d.Time.Format(time.TimeOnly), fmt.Sprint(d.Count), d.From, d.To, d.Proto, d.Reason}
}
