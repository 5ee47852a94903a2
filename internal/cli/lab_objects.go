package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weft/internal/lab"
	labobjects "weft/internal/lab/objects"
)

func labApply() *cobra.Command {
	var files []string
	var namespace string
	var wait time.Duration
	c := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Create or change objects, and wait until the pods are ready",
		Long: `Reads Kubernetes YAML or JSON. Pods, Deployments, ReplicaSets, StatefulSets, DaemonSets and
Jobs run; a workload's pods are named NAME-0, NAME-1 … (a DaemonSet's NAME-NODE). Everything
else is handed to the agents as it is. Namespaces are made as they are needed.`,
		Example: `  weft lab apply -f app.yaml
  weft lab apply -f manifests/ -n shop
  kubectl kustomize . | weft lab apply -f -`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, objs, err := labObjects(cmd, files)
			if err != nil {
				return err
			}
			began := time.Now()
			changes, err := l.Apply(namespace, objs)
			printChanges(cmd, changes)
			if err != nil || wait == 0 {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), wait)
			defer cancel()
			if err := l.AwaitReady(ctx, changes...); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "ready (%s)\n", took(time.Since(began)))
			return nil
		},
	}
	filesFlag(c, &files)
	namespaceFlag(c, &namespace)
	c.Flags().DurationVar(&wait, "wait", 30*time.Second, "wait this long for pods to be ready; 0: do not wait")
	return c
}

func labDelete() *cobra.Command {
	var files []string
	var namespace string
	var wait time.Duration
	c := &cobra.Command{
		Use:   "delete (-f FILE | KIND NAME...)",
		Short: "Delete objects, and wait until their pods are gone",
		Example: `  weft lab delete -f app.yaml
  weft lab delete pod web-0
  weft lab delete namespace shop`,
		RunE: func(cmd *cobra.Command, args []string) error {
			l, objs, err := labObjects(cmd, files)
			if err != nil {
				return err
			}
			if len(args) == 1 || len(args) == 0 && len(files) == 0 {
				return errors.New("want -f FILE, or KIND and NAME")
			}
			if len(args) > 1 {
				more, err := l.Get(args[0], namespace, args[1:]...)
				if err != nil {
					return err
				}
				objs = append(objs, more...)
			}
			changes, err := l.Delete(namespace, objs)
			printChanges(cmd, changes)
			if err != nil || wait == 0 {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), wait)
			defer cancel()
			return l.AwaitGone(ctx)
		},
		ValidArgsFunction: completeObjects(&namespace),
	}
	filesFlag(c, &files)
	namespaceFlag(c, &namespace)
	c.Flags().DurationVar(&wait, "wait", 30*time.Second, "wait this long for pods to be gone; 0: do not wait")
	return c
}

func filesFlag(c *cobra.Command, files *[]string) {
	c.Flags().StringSliceVarP(files, "filename", "f", nil, "file or directory of manifests, or - for standard input; may be repeated")
}

func labObjects(cmd *cobra.Command, files []string) (*lab.Lab, []*labobjects.Object, error) {
	l, err := openLab(cmd)
	if err != nil {
		return nil, nil, err
	}
	if len(files) == 0 && cmd.Name() == "apply" {
		return nil, nil, errors.New("want -f FILE")
	}
	objs, err := labobjects.ReadManifests(cmd.InOrStdin(), files...)
	if err == nil && len(files) > 0 && len(objs) == 0 {
		err = fmt.Errorf("no object in %s", strings.Join(files, ", "))
	}
	return l, objs, err
}

func printChanges(cmd *cobra.Command, changes []lab.Change) {
	for _, c := range changes {
		fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", c.Object, c.What)
		for _, n := range c.Notes {
			fmt.Fprintf(cmd.ErrOrStderr(), "note: %s\n", n)
		}
	}
}

func labGet() *cobra.Command {
	var namespace string
	var all bool
	c := &cobra.Command{
		Use:   "get [KIND [NAME...]]",
		Short: "Show nodes, pods or any other objects (default: nodes and pods)",
		Example: `  weft lab get
  weft lab get pods -A -o wide
  weft lab get networkpolicy -o yaml`,
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := openLab(cmd)
			if err != nil {
				return err
			}
			if all {
				namespace = ""
			}
			out, _ := cmd.Flags().GetString("output")
			if len(args) == 0 {
				if out != "table" && out != "wide" {
					args = []string{"all"}
				} else {
					if err := showNodes(cmd, l, nil); err != nil {
						return err
					}
					fmt.Fprintln(cmd.OutOrStdout())
					args, namespace = []string{"pods"}, ""
				}
			}
			objs, err := l.Get(args[0], namespace, args[1:]...)
			if err != nil {
				return err
			}
			isNodes := len(objs) > 0 && objs[0].GetKind() == "Node" && args[0] != "all"
			if isNodes && (out == "table" || out == "wide") {
				return showNodes(cmd, l, args[1:])
			}
			return output(cmd, list(objs, len(args) > 1), func(w io.Writer) error { return showObjects(w, objs, namespace, out == "wide", args[0]) })
		},
		ValidArgsFunction: completeObjects(&namespace),
	}
	outputFlag(c)
	c.Flags().Lookup("output").Usage = "table, wide, json or yaml"
	namespaceFlag(c, &namespace)
	c.Flags().BoolVarP(&all, "all-namespaces", "A", false, "objects of all namespaces")
	return c
}

// completeObjects offers kinds, then the names of a kind.
func completeObjects(namespace *string) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return completeFrom(func(_ context.Context, cmd *cobra.Command) []string {
			if len(args) == 0 {
				return []string{"nodes", "pods", "namespaces", "deployments", "services", "networkpolicies", "all"}
			}
			return objectNames(cmd, args[0], *namespace)
		})(cmd, args, prefix)
	}
}

// list is what -o json and -o yaml print: one object, or a List.
func list(objs []*labobjects.Object, one bool) any {
	if one && len(objs) == 1 {
		return objs[0].Object
	}
	items := make([]any, len(objs))
	for i, o := range objs {
		items[i] = o.Object
	}
	return map[string]any{"apiVersion": "v1", "kind": "List", "items": items}
}

func showNodes(cmd *cobra.Command, l *lab.Lab, names []string) error {
	nodes, err := l.NodeStatuses(cmd.Context())
	if err != nil {
		return err
	}
	wide, _ := cmd.Flags().GetString("output")
	columns := []string{"NODE", "STATUS", "ADDRESSES", "PODS"}
	if wide == "wide" {
		columns = append(columns, "POD-CIDRS", "PROCESSES")
	}
	var rows [][]string
	for _, n := range nodes {
		if len(names) > 0 && !contains(names, n.Name) {
			continue
		}
		status := "Ready"
		switch {
		case !n.Up:
			status = "Down"
		case !n.Ready:
			status = "NotReady"
		}
		row := []string{n.Name, status, join(n.Addrs), strconv.Itoa(n.Pods)}
		if wide == "wide" {
			var ps []string
			for _, p := range n.Processes {
				ps = append(ps, fmt.Sprintf("%s:%s(%d restarts)", p.Name, p.State, p.Restarts))
			}
			row = append(row, strings.Join(n.PodCIDRs, ","), strings.Join(ps, " "))
		}
		rows = append(rows, row)
	}
	return align(cmd.OutOrStdout(), columns, rows)
}

func contains(all []string, s string) bool {
	for _, x := range all {
		if x == s {
			return true
		}
	}
	return false
}

func join[T fmt.Stringer](all []T) string {
	out := make([]string, len(all))
	for i, x := range all {
		out[i] = x.String()
	}
	return strings.Join(out, ",")
}

// showObjects prints pods with what they do, other objects with their names.
func showObjects(w io.Writer, objs []*labobjects.Object, namespace string, wide bool, what string) error {
	if len(objs) == 0 {
		_, err := fmt.Fprintf(w, "no %s\n", what)
		return err
	}
	pods := true
	for _, o := range objs {
		pods = pods && o.GetKind() == "Pod"
	}
	columns := []string{"NAMESPACE", "NAME", "AGE"}
	switch {
	case pods && wide:
		columns = []string{"NAMESPACE", "NAME", "STATUS", "RESTARTS", "ADDRESSES", "NODE", "AGE", "LABELS", "MESSAGE"}
	case pods:
		columns = []string{"NAMESPACE", "NAME", "STATUS", "RESTARTS", "ADDRESSES", "NODE", "AGE"}
	}
	var rows [][]string
	for _, o := range objs {
		age := time.Since(o.GetCreationTimestamp().Time).Round(time.Second).String()
		if !pods {
			name := o.GetName()
			if what == "all" {
				name = strings.ToLower(o.GetKind()) + "/" + name
			}
			rows = append(rows, []string{o.GetNamespace(), name, age})
			continue
		}
		p := lab.Summarize(o)
		row := []string{o.GetNamespace(), o.GetName(), p.Status, strconv.Itoa(p.Restarts), join(p.Addrs), p.Node, age}
		if wide {
			row = append(row, p.Labels, p.Message)
		}
		rows = append(rows, row)
	}
	if namespace != "" { // one namespace needs no column
		columns = columns[1:]
		for i := range rows {
			rows[i] = rows[i][1:]
		}
	}
	return align(w, columns, rows)
}
