package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"weft/internal/api"
	"weft/internal/model"
	"weft/internal/plan"
	"weft/internal/store"
)

// tableNames lists every table that can be shown.
func tableNames() []string {
	var out []string
	for _, k := range model.Kinds() {
		out = append(out, string(k))
	}
	for _, k := range plan.Kinds() {
		out = append(out, string(k))
	}
	return append(out, policyRules)
}

// show is the method behind `weft show`.
func (a *Agent) show(ctx context.Context, req api.ShowRequest, send func(any) error) error {
	names := []string{req.Table}
	if req.Table == "" || req.Table == "all" {
		names = tableNames()
	}
	for {
		intent, rows := a.store.Watch()
		for _, n := range names {
			t, err := a.table(n, req.Table == "")
			if err != nil {
				return err
			}
			if err := send(t); err != nil {
				return err
			}
		}
		if !req.Watch {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-intent:
		case <-rows:
		}
		// Changes come in bursts; nobody reads ten tables in a tenth of a second.
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// table builds one table; countOnly leaves the rows out but for their number.
func (a *Agent) table(name string, countOnly bool) (api.Table, error) {
	switch {
	case slices.Contains(model.Kinds(), model.Kind(name)):
		t := intentTable(name, a.store.Intents(model.Kind(name)))
		return counted(t, countOnly), nil
	case slices.Contains(plan.Kinds(), plan.Kind(name)):
		return counted(a.planTable(name), countOnly), nil
	case name == policyRules:
		return counted(a.rulesTable(), countOnly), nil
	}
	return api.Table{}, api.Errorf(api.CodeInvalidConfig, "no table %q; there are: %s", name, strings.Join(tableNames(), ", "))
}

func counted(t api.Table, only bool) api.Table {
	if !only {
		return t
	}
	return api.Table{Name: t.Name, Columns: []string{"TABLE", "ROWS"}, Rows: [][]string{{t.Name, strconv.Itoa(len(t.Rows))}}}
}

func (a *Agent) planTable(name string) api.Table {
	t := api.Table{Name: name, Columns: []string{"NAME", "STATUS", "AGE", "OWNER", "ROW"}}
	for _, r := range a.store.Rows(plan.Kind(name)) {
		status := string(r.Status)
		if r.Err != nil {
			status += ": " + r.Err.Error()
		}
		t.Rows = append(t.Rows, []string{r.Row.Key().Name, status, age(a.clock.Now(), r.Since), r.Row.Owner().String(), r.Row.String()})
	}
	return t
}

// age is a duration as people read it: one or two units.
func age(now, since time.Time) string {
	switch d := now.Sub(since); {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 3*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}

// intentTable renders one kind of intent with columns of its own.
func intentTable(name string, rows []*store.Intent) api.Table {
	t := api.Table{Name: name, Columns: append(intentColumns(model.Kind(name)), "SOURCE", "PROBLEM")}
	for _, r := range rows {
		t.Rows = append(t.Rows, append(intentCells(r.Object), r.Source, strings.ReplaceAll(problemOf(r), "\n", "; ")))
	}
	return t
}

// problemOf says why an object is not used, or what of a pod's annotations or of a policy is not. "": all of it is.
func problemOf(r *store.Intent) string {
	if r.Problem != nil {
		return r.Problem.Error()
	}
	switch o := r.Object.(type) {
	case *model.Pod:
		if o.Problem != nil {
			return o.Problem.Error()
		}
	case *model.Policy:
		return o.Problem
	}
	return ""
}

func intentColumns(k model.Kind) []string {
	switch k {
	case model.KindConfig:
		return []string{"CONFIGURATION"}
	case model.KindNode:
		return []string{"NAME", "ADDRESSES", "POD-CIDRS", "VTEP-MAC"}
	case model.KindPod:
		return []string{"NAMESPACE", "NAME", "NODE", "ADDRESSES", "INGRESS", "EGRESS"}
	case model.KindEndpoint:
		return []string{"NAMESPACE", "POD", "ADDRESSES", "MAC", "HOST-IF", "IF", "HOST-PORTS", "ID"}
	case model.KindDevice:
		return []string{"NAME", "INDEX", "KIND", "MTU", "MAC", "UP", "ADDRESSES"}
	case model.KindPathMTU:
		return []string{"NODE", "MTU"}
	case model.KindFeature:
		return []string{"NAME", "STATE", "DETAIL"}
	case model.KindIncident:
		return []string{"WHAT", "ACTION", "COUNT", "FIRST", "LAST"}
	case model.KindTrial:
		return []string{"OBJECT", "STATE", "SINCE", "UNTIL", "BROKE", "INSTEAD"}
	case model.KindService:
		return []string{"NAMESPACE", "NAME", "TYPE", "ADDRESSES"}
	case model.KindBackends:
		return []string{"NAMESPACE", "NAME", "SERVICE", "BACKENDS"}
	case model.KindHostEndpoint:
		return []string{"NAME", "NODE", "INTERFACE", "ADDRESSES", "PROFILES", "LABELS"}
	case model.KindPolicy:
		return []string{"POLICY", "TIER", "ORDER", "SUBJECT", "INGRESS", "EGRESS", "STAGED", "UNSUPPORTED"}
	default:
		return []string{"NAME"}
	}
}

func intentCells(o model.Object) []string {
	switch o := o.(type) {
	case *model.Config:
		b, err := json.Marshal(o)
		if err != nil {
			return []string{err.Error()}
		}
		return []string{string(b)}
	case *model.Node:
		return []string{o.Name, join(o.Addrs), join(o.PodCIDRs), o.VTEPMAC.String()}
	case *model.Pod:
		return []string{o.Namespace, o.Name, o.Node, join(o.Addrs), limit(o.Ingress), limit(o.Egress)}
	case *model.Endpoint:
		return []string{o.Pod.Namespace, o.Pod.Name, join(o.Addrs), o.MAC.String(), o.HostIf, o.IfName, join(o.HostPorts), o.ID}
	case *model.Device:
		return []string{o.Name, strconv.Itoa(o.Index), o.Kind, strconv.Itoa(o.MTU), o.MAC.String(), strconv.FormatBool(o.Up), join(o.Addrs)}
	case *model.PathMTU:
		return []string{o.Node, strconv.Itoa(o.MTU)}
	case *model.Feature:
		return []string{o.Name, o.State, o.Detail}
	case *model.Incident:
		return []string{o.What, o.Action, strconv.Itoa(o.Count), o.First.Format(time.RFC3339), o.Last.Format(time.RFC3339)}
	case *model.Trial:
		return trialCells(o)
	case *model.Service:
		return []string{o.Namespace, o.Name, o.Type, join(o.Addrs)}
	case *model.Backends:
		return []string{o.Namespace, o.Name, o.Service, strconv.Itoa(len(o.Backends))}
	case *model.HostEndpoint:
		own := maps.Clone(o.Labels)
		maps.DeleteFunc(own, func(k, _ string) bool { return strings.HasPrefix(k, "@") }) // those that say what is in other columns
		return []string{o.Ref.Name, o.Node, o.Interface, join(o.Addrs), strings.Join(o.Profiles, ","), fmt.Sprint(map[string]string(own))}
	case *model.Policy:
		subject := ""
		if o.Subject != nil {
			subject = o.Subject.String()
		}
		return []string{
			o.Ref.String(), strings.TrimPrefix(o.Tier.API+"/"+o.Tier.Name, "/"), order(o.Order), subject, section(o.Ingress), section(o.Egress),
			strconv.FormatBool(o.Staged), strings.Join(o.Unsupported, ", "),
		}
	default:
		return []string{o.Key().Name}
	}
}

func limit(r *model.Rate) string {
	if r == nil {
		return ""
	}
	return r.String()
}

func join[T fmt.Stringer](vs []T) string {
	out := make([]string, 0, len(vs))
	for _, v := range vs {
		out = append(out, v.String())
	}
	return strings.Join(out, ",")
}
