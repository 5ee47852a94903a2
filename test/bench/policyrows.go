package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"weft/internal/bench"
	"weft/test/bench/lab"
	"weft/test/bench/scale"
)

// policyRows is rows Y1 to Y4, A3 and P7: what policy costs the agent and the kernel, traffic apart.
func policyRows(r *rig, o *options, rep *report) error {
	size := scale.Goal()
	if o.policies > 0 {
		size = scale.Size{Policies: o.policies, Local: max(o.policies/10, o.policies/20+2), Remote: 10 * o.policies}
		rep.note("Y1 to Y3: %d policies, %d pods of the node and %d elsewhere, not the size of the goal table", size.Policies, size.Local, size.Remote)
	}
	for _, part := range []struct {
		rows []string
		run  func(*options, *report, scale.Size) error
	}{
		{[]string{"Y1"}, r.compileRow}, {[]string{"Y2", "Y3", "A3"}, r.enforceRows}, {[]string{"Y4"}, r.memoryRow}, {[]string{"P7"}, r.programRow},
	} {
		if !o.wants(part.rows...) || r.Ctx.Err() != nil {
			continue
		}
		if err := part.run(o, rep, size); err != nil {
			rep.note("%s: %v", strings.Join(part.rows, ","), err)
		}
	}
	return nil
}

// compileRow is row Y1. Every run is a process of its own.
func (r *rig) compileRow(o *options, rep *report, size scale.Size) error {
	ns := "compile"
	if err := lab.Netns(ns); err != nil {
		return err
	}
	var runs []scale.Compiled
	want := max(5, o.rounds)
	for round := 0; len(runs) < want && round < 2*want; round++ {
		n := before(o.patience)
		n.Round, n.Group = round, "compile"
		from := readCPU()
		var got scale.Compiled
		if err := r.scale(ns, scaleJob{What: "compile", Place: scale.Place{Size: size}}, &got); err != nil {
			return err
		}
		n.after(from)
		rep.Noise = append(rep.Noise, n)
		r.Log("Y1 round %d, %d of %d used: %s", round+1, len(runs), want, n.words())
		if !n.Skipped || o.noisy {
			runs = append(runs, got)
		}
	}
	if len(runs) < want {
		rep.note("Y1: only %d of %d runs were quiet enough", len(runs), want)
	}
	if len(runs) == 0 {
		return nil
	}
	of := func(f func(scale.Compiled) float64) []float64 {
		var out []float64
		for _, c := range runs {
			out = append(out, f(c))
		}
		return out
	}
	seconds, heap := of(func(c scale.Compiled) float64 { return c.Seconds }), of(func(c scale.Compiled) float64 { return c.Heap })
	cpu := of(func(c scale.Compiled) float64 { return c.CPU })
	rep.interval("Y1", "compile all, p50", "weft", "s", seconds, 2)
	rep.interval("Y1", "heap of the engine", "weft", "MB", heap, 200)
	rep.inform("Y1", "compile all, CPU of all threads", "weft", "s", bench.Median(cpu))
	rep.inform("Y1", "one policy changed", "weft", "ms", bench.Median(of(func(c scale.Compiled) float64 { return c.PolicyMS })))
	rep.inform("Y1", "a pod of a known identity came", "weft", "ms", bench.Median(of(func(c scale.Compiled) float64 { return c.PodMS })))
	rep.note("Y1: the engines of Antrea, Calico and Cilium are not run beside it: to take them out of their modules was not tried")
	rep.Samples = append(rep.Samples, sampleRow{"weft", "compile all", "s", [][]float64{seconds}}, sampleRow{"weft", "compile all, CPU", "s", [][]float64{cpu}})
	return nil
}

// enforceRows is rows Y2, Y3 and the memory of a node of that size.
func (r *rig) enforceRows(o *options, rep *report, size scale.Size) error {
	p, ns, err := r.place("enforce", size)
	if err != nil {
		return err
	}
	n := before(o.patience)
	n.Group = "enforce"
	from := readCPU()
	var got scale.Enforced
	if err := r.scale(ns, scaleJob{What: "enforce", Place: p, Changes: o.changes}, &got); err != nil {
		return err
	}
	n.after(from)
	rep.Noise = append(rep.Noise, n)
	r.Log("Y2, Y3: %s", n.words())
	quiet := !n.Skipped || o.noisy
	for _, c := range []struct {
		row, test string
		ms        []float64
		bound     float64
	}{
		{"Y2", "policy changed to enforced", got.Change, 5},
		{"Y2", "policy deleted, created", got.Delete, 5},
		{"Y3", "new pod to allowed", got.NewPod, 2},
		{"Y3", "the same, 1000 pod events/s", got.Churned, noBound()},
	} {
		rep.Samples = append(rep.Samples, sampleRow{"weft", c.test, "ms", [][]float64{c.ms}})
		rep.inform(c.row, fmt.Sprintf("%s, n=%d, p50", c.test, len(c.ms)), "weft", "ms", bench.Quantile(c.ms, .5))
		rep.quantile(c.row, c.test+", p99", "weft", "ms", c.ms, .99, c.bound, quiet)
	}
	rep.absolute("Y3", "rows of sets and peers that a new pod changed", "weft", "", float64(got.PodSets), 0)
	rep.absolute("A3", "RSS of the node's parts, after the start", "weft", "MB", got.Memory.RSS, 200)
	rep.inform("A3", "RSS, after all changes", "weft", "MB", got.After.RSS)
	rep.inform("A3", "live heap", "weft", "MB", got.Memory.Heap)
	rep.absolute("A3", "BPF maps", "weft", "MB", got.Memory.Maps, 64)
	rep.inform("A3", "objects in memory to all in the kernel", "weft", "s", got.ColdSeconds)
	return nil
}

// memoryRow is row Y4.
func (r *rig) memoryRow(_ *options, rep *report, _ scale.Size) error {
	p, ns, err := r.place("memory", scale.Size{})
	if err != nil {
		return err
	}
	var got scale.MapMemory
	if err := r.scale(ns, scaleJob{What: "memory", Place: p}, &got); err != nil {
		return err
	}
	rep.absolute("Y4", "policy maps, 1000 replicas over 1 pod", "weft", "", (got.Replicas-got.Empty)/(got.One-got.Empty), 1.1)
	rep.inform("Y4", "policy maps, 100 peers x 10 ports", "weft", "kB", (got.One-got.Empty)/1e3)
	rep.absolute("Y4", fmt.Sprintf("of %d rule entries, each", got.Entries), "weft", "B", got.PerEntry, 64)
	rep.inform("Y4", "a membership alone in its block of 256 identities", "weft", "B", got.PerMember)
	rep.inform("Y4", "growth of the kernel's slabs, an entry", "weft", "B", got.Slab/float64(got.Entries))
	return nil
}

// programRow is row P7: what the driver's own benchmark prints. It needs the source and Go, as `make bench` has them.
func (r *rig) programRow(_ *options, rep *report, _ scale.Size) error {
	cmd := lab.Program("go", "test", "-run", "xx", "-bench", "BenchmarkPolicy", "-benchtime", "1x", "./internal/datapath/ebpf")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("go test: %w: %s", err, out)
	}
	for l := range strings.Lines(string(out)) {
		f := strings.Fields(l)
		at := slices.Index(f, "ns/packet")
		if at < 1 {
			continue
		}
		ns, err := strconv.ParseFloat(f[at-1], 64)
		if err != nil {
			return err
		}
		family, _, _ := strings.Cut(filepath.Base(f[0]), "-")
		rep.absolute("P7", "established packet with policy, "+family, "from_pod", "ns over empty", ns, 120)
	}
	return nil
}
