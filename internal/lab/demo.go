package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"weft/internal/lab/objects"
)

// demoName is the demonstration's lab.
const demoName = "demo"

// demoPods are two pods on the first node and one on each other; web-0 has a host
// port, and the client runs a program.
const demoPods = `
apiVersion: v1
kind: Pod
metadata: {name: web-a, labels: {app: web}}
spec:
  nodeName: node1
  containers: [{name: web, ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: web-b, labels: {app: web}}
spec:
  nodeName: node1
  containers: [{name: web, ports: [{containerPort: 80, hostPort: 8080}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: web-c, labels: {app: web}}
spec:
  nodeName: node2
  containers: [{name: web, ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: ticker, labels: {app: ticker}}
spec:
  nodeName: node3
  containers: [{name: ticker, command: [sh, -c, 'while date; do sleep 5; done']}]
`

// demoTry is one line of the demonstration.
type demoTry struct {
	what, src, dst string
	seen           func(*Lab, Result) string // checks whom the responder saw; "" is as it should be
}

func demoTries() []demoTry {
	return []demoTry{
		{"pod to pod, same node", "web-a", "web-b:80", nil},
		{"pod to pod, across nodes", "web-a", "web-c:80", sourceIsPod},
		{"pod to pod, across nodes, UDP", "web-a", "web-c:53/udp", sourceIsPod},
		{"pod to pod, ping", "ticker", "web-a/icmp", nil},
		{"its own node to a pod", "node1", "web-a:80", nil},
		{"another node to a pod", "node3", "web-a:80", nil},
		{"pod to its own node", "web-a", "node1/icmp", nil},
		{"pod to another node", "web-a", "node3/icmp", nil},
		{"pod to outside, masqueraded", "web-c", "outside:80", sourceIsNode},
		{"pod to outside, UDP", "web-c", "outside:53/udp", sourceIsNode},
		{"outside to a host port", "outside", "node1:8080", nil},
		{"pod to another node's host port", "web-c", "node1:8080", nil},
	}
}

// sourceIsPod wants the pod's own address to be seen.
func sourceIsPod(l *Lab, r Result) string { return l.seenAs(r, r.Source) }

// sourceIsNode wants the address of the pod's node to be seen.
func sourceIsNode(l *Lab, r Result) string {
	pod, err := l.Pod("default", r.Source)
	if err != nil {
		return err.Error()
	}
	return l.seenAs(r, pod.Spec.NodeName)
}

func (l *Lab) seenAs(r Result, name string) string {
	if r.Answer == nil {
		return "no responder answered"
	}
	p, err := l.Party("default", name)
	if err != nil {
		return err.Error()
	}
	for _, a := range p.Addrs {
		if strings.HasPrefix(strings.Trim(r.Answer.From, "["), a.String()) {
			return ""
		}
	}
	return "came from " + r.Answer.From + ", not from " + name
}

// Demo brings up a lab of three nodes, runs pods on it, tries every way that a packet
// can take and prints what happened. The lab stays up. With self, the program's name,
// it says how to go on.
func Demo(ctx context.Context, out io.Writer, self string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	began := time.Now()
	l, err := Up(ctx, Options{Name: demoName, Nodes: 3})
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "3 nodes are up, each with an agent           %6.2f s\n", time.Since(began).Seconds())
	objs, err := objects.ParseManifests("demo", strings.NewReader(demoPods))
	if err != nil {
		return err
	}
	mark := time.Now()
	if _, err := l.Apply("default", objs); err != nil {
		return err
	}
	if err := l.AwaitReady(ctx); err != nil {
		return err
	}
	fmt.Fprintf(out, "4 pods run, attached by the CNI plugin       %6.2f s\n\n", time.Since(mark).Seconds())
	failed := l.demoTable(ctx, out)
	fmt.Fprintf(out, "\n%.1f s in all. ", time.Since(began).Seconds())
	if failed > 0 {
		fmt.Fprintf(out, "%d did not work.\n", failed)
		return fmt.Errorf("%d of the demo's connections failed; `%s lab node node1 agent logs --name demo` has the agent's log", failed, self)
	}
	fmt.Fprintf(out, `Everything works. The lab is still up; go on by hand:

  %[1]s lab get --name demo -o wide
  %[1]s lab exec --name demo web-a -- ip addr
  %[1]s lab probe --name demo web-a web-c:80
  %[1]s lab node --name demo node1 -- weft status
  %[1]s lab apply --name demo -f your.yaml
  %[1]s lab down --name demo                    # or: make clean-demo
`, self)
	return nil
}

// demoTable tries everything, one after the other so that the times are true, and
// prints a row for each.
func (l *Lab) demoTable(ctx context.Context, out io.Writer) (failed int) {
	var rows [][]string
	for _, t := range demoTries() {
		rows = append(rows, l.demoRow(ctx, t))
	}
	tw := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "TRIED\tFROM\tTO\tIPv4\tIPv6")
	for _, r := range rows {
		for _, cell := range r[3:] {
			if !strings.HasPrefix(cell, "ok") {
				failed++
			}
		}
		fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	_ = tw.Flush()
	return failed
}

func (l *Lab) demoRow(ctx context.Context, t demoTry) []string {
	row := []string{t.what, t.src, t.dst}
	results, err := l.Check(ctx, Expectation{Namespace: "default", Reachable: true, Source: t.src, Dest: t.dst, Within: 5 * time.Second})
	for _, r := range results {
		cell := "ok " + r.Time()
		switch {
		case r.Err != nil:
			cell = "FAILED: " + r.Err.Error()
		case t.seen != nil:
			if why := t.seen(l, r); why != "" {
				cell = "WRONG: " + why
			}
		}
		row = append(row, cell)
	}
	if len(results) == 0 {
		row = append(row, "FAILED: "+errors.Join(err).Error())
	}
	return row
}
