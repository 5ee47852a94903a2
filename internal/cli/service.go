package cli

import (
	"cmp"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"weft/internal/api"
)

func serviceCommand() *cobra.Command {
	c := &cobra.Command{Use: "service", Short: "Services: what they are on this node"}
	explain := &cobra.Command{
		Use:   "explain [NAMESPACE/]NAME",
		Short: "Say which backends a service's addresses lead to from this node, and why not to the others",
		Long: "Say which backends a service's addresses lead to from this node, and why not to the others: traffic policies, terminating\n" +
			"backends, hints and EndpointSlices are taken into account as kube-proxy does. weft does not translate services yet; who does is named.",
		Example: "  weft service explain default/web\n  weft service explain kube-system/kube-dns -o json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var r api.ServiceReply
			if err := call(cmd, api.MethodService, api.ServiceRequest{Name: args[0]}, &r); err != nil {
				return err
			}
			return output(cmd, r, func(w io.Writer) error { return printService(w, r) })
		},
	}
	outputFlag(explain)
	c.AddCommand(explain)
	return c
}

func printService(w io.Writer, r api.ServiceReply) error {
	affinity := "no affinity"
	if r.Affinity > 0 {
		affinity = fmt.Sprintf("a client keeps its backend for %d s", r.Affinity)
	}
	fmt.Fprintf(w, "%s  %s, internal traffic policy %s, external %s, %s\n", r.Service, r.Type, r.Internal, r.External, affinity)
	fmt.Fprintf(w, "translated by %s\n", cmp.Or(r.Translator, "nobody that could be found on this node"))
	for _, n := range r.Notes {
		fmt.Fprintln(w, "note   "+n)
	}
	if len(r.Frontends) > 0 {
		fmt.Fprintln(w)
		var rows [][]string
		for _, f := range r.Frontends {
			rows = append(rows, []string{f.Kind, f.Address, f.Inside, f.Outside, cmp.Or(strings.Join(f.Sources, ","), "everybody")})
		}
		if err := align(w, []string{"FRONTEND", "ADDRESS", "FROM INSIDE", "FROM OUTSIDE", "FOR"}, rows); err != nil {
			return err
		}
	}
	if len(r.Backends) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	var rows [][]string
	for _, b := range r.Backends {
		rows = append(rows, []string{b.Port, b.Address, b.Node, b.State, b.Cluster, b.Local})
	}
	return align(w, []string{"PORT", "BACKEND", "NODE", "STATE", "CLUSTER", "LOCAL"}, rows)
}
