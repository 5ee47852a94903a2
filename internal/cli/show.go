package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weft/internal/api"
)

func showCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "show [TABLE]",
		Short: "Show a table of the agent; without a name, the list of tables",
		Example: "  weft show endpoints\n  weft show routes --watch\n  weft show remotes -o json\n" +
			"  weft show all",
		Args: cobra.MaximumNArgs(1),
		ValidArgsFunction: completeFrom(func(ctx context.Context, cmd *cobra.Command) []string {
			var names []string
			_ = api.Stream(ctx, socket(cmd), api.MethodShow, api.ShowRequest{}, func(b json.RawMessage) error {
				var t api.Table
				names = append(names, t.Name)
				return json.Unmarshal(b, &t)
			})
			return names
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := api.ShowRequest{Table: strings.Join(args, "")}
			req.Watch, _ = cmd.Flags().GetBool("watch")
			return show(cmd, req)
		},
	}
	c.Flags().BoolP("watch", "w", false, "show it again at each change, until interrupted")
	outputFlag(c)
	return c
}

// show prints the tables of a request as they come.
func show(cmd *cobra.Command, req api.ShowRequest) error {
	var counts api.Table
	first := true
	err := api.Stream(cmd.Context(), socket(cmd), api.MethodShow, req, func(b json.RawMessage) error {
		var t api.Table
		if err := json.Unmarshal(b, &t); err != nil {
			return fmt.Errorf("table from the agent: %w", err)
		}
		if req.Table == "" && !req.Watch {
			counts.Columns = t.Columns
			counts.Rows = append(counts.Rows, t.Rows...)
			return nil
		}
		return output(cmd, objects(t), func(w io.Writer) error {
			if req.Watch {
				fmt.Fprintf(w, "\x1b[H\x1b[2J%s  %s\n\n", t.Name, time.Now().Format(time.TimeOnly))
			} else if req.Table == "all" {
				if len(t.Rows) == 0 {
					return nil
				}
				if !first {
					fmt.Fprintln(w)
				}
				fmt.Fprintln(w, t.Name)
			}
			first = false
			return align(w, t.Columns, t.Rows)
		})
	})
	if errors.Is(err, context.Canceled) {
		return nil
	}
	if err == nil && counts.Columns != nil {
		return output(cmd, objects(counts), func(w io.Writer) error { return align(w, counts.Columns, counts.Rows) })
	}
	return explainAway(cmd, err)
}

// objects turns a table into one object a row, keyed by the columns in lower case.
func objects(t api.Table) []map[string]string {
	out := make([]map[string]string, 0, len(t.Rows))
	for _, r := range t.Rows {
		o := map[string]string{}
		for i, c := range t.Columns {
			o[strings.ToLower(c)] = r[i]
		}
		out = append(out, o)
	}
	return out
}

func statusCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "status", Short: "Say how this node's agent is", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var s api.Status
			if err := call(cmd, api.MethodStatus, struct{}{}, &s); err != nil {
				return err
			}
			return output(cmd, s, func(w io.Writer) error { return printStatus(w, s) })
		},
	}
	outputFlag(c)
	return c
}

func printStatus(w io.Writer, s api.Status) error {
	ready := "yes"
	if !s.Ready {
		ready = "no: waiting for " + strings.Join(s.Waiting, ", ")
	}
	rows := [][]string{
		{"node", s.Node},
		{"version", s.Version},
		{"up", time.Since(s.Started).Round(time.Second).String()},
		{"ready", ready},
		{"backend", s.Backend},
		{"underlay", s.Underlay},
	}
	for _, p := range s.Pools {
		rows = append(rows, []string{p.Family + " addresses", fmt.Sprintf("%d of %s in use, %d resting, %s free", p.Live, many(p.Size), p.Quarantined, many(p.Free))})
	}
	var counts []string
	for _, k := range slices.Sorted(maps.Keys(s.Rows)) {
		counts = append(counts, fmt.Sprintf("%d %s", s.Rows[k], k))
	}
	rows = append(rows, []string{"rows", strings.Join(counts, ", ")})
	for _, t := range s.Tasks {
		if !t.Running && t.Err != "" || t.Restarts > 0 {
			rows = append(rows, []string{"task " + t.Name, fmt.Sprintf("restarted %d times: %s", t.Restarts, t.Err)})
		}
	}
	if err := align(w, []string{"WHAT", "STATE"}, rows); err != nil {
		return err
	}
	sections := []struct {
		title string
		lines []string
	}{{"Problems", s.Problems}, {"Rows that failed", s.Failures}}
	for _, sec := range sections {
		if len(sec.lines) > 0 {
			fmt.Fprintf(w, "\n%s\n  %s\n", sec.title, strings.Join(sec.lines, "\n  "))
		}
	}
	if len(s.Features) > 0 {
		fmt.Fprintln(w)
		var rows [][]string
		for _, f := range s.Features {
			rows = append(rows, []string{f.Name, f.State, f.Detail})
		}
		if err := align(w, []string{"FEATURE", "STATE", "DETAIL"}, rows); err != nil {
			return err
		}
	}
	if len(s.Counters) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	rows = nil
	for _, k := range slices.Sorted(maps.Keys(s.Counters)) {
		if s.Counters[k] > 0 {
			rows = append(rows, []string{k, fmt.Sprint(s.Counters[k])})
		}
	}
	return align(w, []string{"PACKETS", "COUNT"}, rows)
}

// many is a count of addresses as people read it: nobody will use up a /64.
func many(n uint64) string {
	if n > 1<<48 {
		return "countless"
	}
	return fmt.Sprint(n)
}

func doctorCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "doctor", Short: "Say what is or was wrong on this host, and when", Args: cobra.NoArgs,
		Long: "Say what is wrong on this host now (foreign firewalls, switches that somebody turned off) and what was found\n" +
			"changed and put right since the agent started. It exits with 1 if something is wrong now.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var d api.Doctor
			if err := call(cmd, api.MethodDoctor, struct{}{}, &d); err != nil {
				return err
			}
			if err := output(cmd, d, func(w io.Writer) error { return printDoctor(w, d) }); err != nil {
				return err
			}
			if len(d.Now) > 0 {
				return fmt.Errorf("%d thing(s) wrong now", len(d.Now))
			}
			return nil
		},
	}
	outputFlag(c)
	return c
}

func printDoctor(w io.Writer, d api.Doctor) error {
	if len(d.Now) == 0 {
		fmt.Fprintln(w, "Nothing is wrong now.")
	}
	for _, n := range d.Now {
		fmt.Fprintln(w, "WRONG  "+n)
	}
	if len(d.Incidents) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	var rows [][]string
	for _, i := range d.Incidents {
		rows = append(rows, []string{i.Last.Format(time.DateTime), fmt.Sprint(i.Count), i.What, i.Action})
	}
	return align(w, []string{"LAST", "TIMES", "WHAT", "ACTION"}, rows)
}

func ipamCommand() *cobra.Command {
	c := &cobra.Command{Use: "ipam", Short: "Addresses of this node's pods"}
	explain := &cobra.Command{
		Use:     "explain [ADDRESS|NAMESPACE/POD|POD|CONTAINER]",
		Short:   "Say who has or had an address, since when and why; without an argument, all of them",
		Example: "  weft ipam explain 10.244.1.7\n  weft ipam explain default/web",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var r api.ExplainReply
			if err := call(cmd, api.MethodExplain, api.ExplainRequest{Query: strings.Join(args, "")}, &r); err != nil {
				return err
			}
			return output(cmd, r, func(w io.Writer) error {
				rows := make([][]string, 0, len(r.Holdings))
				for _, h := range r.Holdings {
					since := ""
					if !h.Since.IsZero() {
						since = h.Since.Format(time.DateTime)
					}
					rows = append(rows, []string{h.Addr.String(), h.State, strings.Trim(h.Pod.Namespace+"/"+h.Pod.Name, "/"), since, h.Reason, h.Owner})
				}
				return align(w, []string{"ADDRESS", "STATE", "POD", "SINCE", "REASON", "OWNER"}, rows)
			})
		},
	}
	outputFlag(explain)
	pools := &cobra.Command{
		Use: "pools", Short: "Show the pools of this node and how full they are", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var r api.PoolsReply
			if err := call(cmd, api.MethodPools, struct{}{}, &r); err != nil {
				return err
			}
			return output(cmd, r, func(w io.Writer) error {
				var rows [][]string
				for _, u := range r.Use {
					rows = append(rows, []string{u.Family, many(u.Size), fmt.Sprint(u.Live), fmt.Sprint(u.Quarantined), many(u.Free)})
				}
				fmt.Fprintln(w, "prefixes:", r.Prefixes, "reserved:", r.Reserved)
				return align(w, []string{"FAMILY", "SIZE", "LIVE", "RESTING", "FREE"}, rows)
			})
		},
	}
	outputFlag(pools)
	c.AddCommand(explain, pools)
	return c
}
