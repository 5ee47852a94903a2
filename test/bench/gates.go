package main

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"weft/internal/bench"
)

// gate is one line of the goal table: an arm's metric against another arm's.
type gate struct {
	row    string
	group  string
	mode   bench.Mode
	metric string
	arm    string
	versus string
	bound  float64 // 0: for information
}

const (
	sameNode  = "same node"
	crossNode = "cross node"
)

// trafficGates are rows P1 to P6 and Y5. An arm that did not run has no verdict, and the notes say why.
func trafficGates() []gate {
	var g []gate
	same := func(row string, mode bench.Mode, metric, versus string, bound float64) {
		g = append(g, gate{row, sameNode, mode, metric, "weft", versus, bound})
	}
	same("P1", bench.Stream, "Gbit/s", "veth", .97)
	same("P1", bench.Stream, "Gbit/s", "bridge", 1.03)
	same("P1", bench.Stream, "Gbit/s", "ptp", 1)
	same("P2", bench.Stream, "cpu s/GB", "veth", 1.05)
	same("P2", bench.Stream, "cpu s/GB", "bridge", .9)
	same("P3", bench.RR, "p50 us", "veth", 0)
	same("P3", bench.RR, "p99 us", "veth", 1.05)
	same("P3", bench.RR, "p99.9 us", "veth", 1.10)
	same("P3", bench.RR, "p50 us", "ptp", 0)
	same("P4", bench.CRR, "/s", "veth", .97)
	same("P4", bench.CRR, "/s", "ptp", 0)
	// With policy, against the same without and against the limit.
	for _, arm := range slices.Sorted(mapKeys(policyArms())) {
		g = append(g,
			gate{"Y5", sameNode, bench.Stream, "Gbit/s", arm, "weft", 1 / 1.03},
			gate{"Y5", sameNode, bench.RR, "p50 us", arm, "weft", 1.03},
			gate{"Y5", sameNode, bench.CRR, "/s", arm, "weft", .95},
			gate{"P3", sameNode, bench.RR, "p99 us", arm, "veth", 1.05},
			gate{"P3", sameNode, bench.RR, "p99.9 us", arm, "veth", 1.10},
			gate{"P4", sameNode, bench.CRR, "/s", arm, "veth", .93})
	}
	cross := func(row string, mode bench.Mode, metric, arm, versus string, bound float64) {
		g = append(g, gate{row, crossNode, mode, metric, arm, versus, bound})
	}
	for _, t := range []struct {
		mode   bench.Mode
		metric string
		host   float64
	}{{bench.Stream, "Gbit/s", .95}, {bench.RR, "/s", .95}, {bench.CRR, "/s", .93}} {
		cross("P5", t.mode, t.metric, "weft-direct", "host", t.host)
		cross("P5", t.mode, t.metric, "weft-direct", "routed", 1)
		cross("P5", t.mode, t.metric, "weft-direct", "flannel-hostgw", 1)
		cross("P6", t.mode, t.metric, "weft-vxlan", "routed", .95)
		cross("P6", t.mode, t.metric, "weft-vxlan", "vxlan-bridge", 1.3)
		vxlan, flannel := .97, 1.05
		if t.mode == bench.CRR { // the goal table has STREAM and RR for these two
			vxlan, flannel = 0, 0
		}
		cross("P6", t.mode, t.metric, "weft-vxlan", "vxlan", vxlan)
		cross("P6", t.mode, t.metric, "weft-vxlan", "flannel-vxlan", flannel)
	}
	return g
}

// controls are the limit arms and their doubles: whatever differs between those two is noise.
func controls() map[string][2]string {
	return map[string][2]string{sameNode: {"veth", "veth again"}, crossNode: {"host", "host again"}}
}

// tolerance is how far the A/A ratio of a metric may be from 1 before comparisons of it are void. Tails
// need more samples than a round has to be as steady as rates; their gates are wider as well.
func tolerance(metric string) float64 {
	switch metric {
	case "p99 us":
		return .03
	case "p99.9 us":
		return .05
	}
	return .02
}

// headline says whether a metric is printed for every arm; the others are in the JSON and in the gates.
func headline(s *series) bool {
	if strings.HasPrefix(s.Test, string(bench.RR)) {
		return s.Metric == "p50 us" || s.Metric == "p99 us"
	}
	return s.Metric == "Gbit/s" || s.Metric == "/s"
}

// judgeTraffic fills in the verdicts of every test: the control first, then each arm's median, then the gates.
func (r *report) judgeTraffic() {
	slices.SortStableFunc(r.Series, func(a, b *series) int {
		return strings.Compare(a.Group+a.Test+a.Metric, b.Group+b.Test+b.Metric)
	})
	for _, s := range r.Series {
		control, ok := controls()[s.Group]
		if !ok {
			continue
		}
		aa := s.ratio(control[1], control[0])
		state, around := "void", tolerance(s.Metric)
		if math.Abs(aa.Value-1) <= around {
			state = "pass"
		}
		r.Verdicts = append(r.Verdicts, verdict{
			Row: "AA " + s.Group, Test: s.Test, Arm: control[1], Value: s.median(control[1]), Unit: s.Metric,
			Versus: control[0], Ratio: &aa, Gate: fmt.Sprintf("1 ± %g", around), Verdict: state,
		})
		for _, arm := range slices.Sorted(mapKeys(s.Rounds)) {
			if iv := s.ratio(arm, control[0]); headline(s) && arm != control[1] {
				r.Verdicts = append(r.Verdicts, verdict{
					Row: "-- " + s.Group, Test: s.Test, Arm: arm, Value: s.median(arm), Unit: s.Metric, Versus: control[0], Ratio: &iv,
				})
			}
		}
		r.judgeGates(s, state == "void")
	}
}

func (r *report) judgeGates(s *series, void bool) {
	for _, g := range trafficGates() {
		if g.group != s.Group || g.metric != s.Metric || !strings.HasPrefix(s.Test, string(g.mode)+" ") ||
			s.Rounds[g.arm] == nil || s.Rounds[g.versus] == nil {
			continue
		}
		iv := s.ratio(g.arm, g.versus)
		v := verdict{Row: g.row, Test: s.Test, Arm: g.arm, Value: s.median(g.arm), Unit: s.Metric, Versus: g.versus, Ratio: &iv}
		if g.bound != 0 {
			atMost := lowerIsBetter(s.Metric)
			v.Gate, v.Verdict = gateWords(g.bound, atMost), judge(iv, g.bound, atMost)
			if void {
				v.Verdict = "void"
			}
		}
		r.Verdicts = append(r.Verdicts, v)
	}
}
