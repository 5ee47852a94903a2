package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"time"

	"weft/internal/bench"
	"weft/internal/netset"
	"weft/test/bench/lab"
)

// test is one kind of measurement made on every arm of a group.
type test struct {
	mode   bench.Mode
	place  string // "1cpu" or "2cpu"
	family netset.Family
}

func (t test) String() string { return fmt.Sprintf("%s %s %s", t.mode, t.place, t.family) }

// spec is what the tool is told. The priorities keep others' programs, but not the kernel's threads, off the CPU.
func (t test) spec(o *options) bench.Spec {
	s := bench.Spec{
		Mode: t.mode, Warmup: o.warmup, Duration: o.duration / 2, Buffer: 1 << 20, Congestion: "cubic",
		ClientCPU: 0, ServerCPU: 0, Priority: 20,
	}
	if t.place == "2cpu" {
		s.ServerCPU = 1
	}
	if t.mode == bench.Stream {
		s.Priority = -20
	}
	return s
}

// metrics are the figures of a test that can have gates, by name.
func metrics(r *bench.Result) map[string]float64 {
	m := map[string]float64{}
	if r.Spec.Mode == bench.Stream {
		m["Gbit/s"], m["cpu s/GB"] = r.BitsPerSecond/1e9, r.ThreadCost()
		return m
	}
	us := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
	m["/s"], m["cpu s/100k"] = r.PerSecond, r.ThreadCost()
	m["p50 us"], m["p99 us"], m["p99.9 us"] = us(r.Latency.P50), us(r.Latency.P99), us(r.Latency.P999)
	return m
}

// lowerIsBetter tells a metric's direction by its unit.
func lowerIsBetter(metric string) bool {
	return strings.HasPrefix(metric, "p") || strings.HasPrefix(metric, "cpu") || !strings.Contains(metric, "/s")
}

// startTools starts the measuring server of each arm and waits until it answers.
func (r *rig) startTools(arms []*lab.Arm) error {
	for _, a := range arms {
		if a.Tool != nil {
			continue
		}
		var err error
		if a.Tool, err = r.Start(a.Server, "tool-"+a.Name, nil, r.Self, "_serve"); err != nil {
			return err
		}
	}
	for _, a := range arms {
		for f := range a.Address {
			spec := bench.Spec{Mode: bench.RR, Duration: time.Millisecond, ClientCPU: bench.AnyCPU, ServerCPU: bench.AnyCPU}
			var last error
			if err := lab.Await("reach "+a.Name+" over "+f.String(), 10*time.Second, a.Tool, func() bool {
				_, last = r.measure(a, f, spec)
				return last == nil
			}); err != nil {
				return fmt.Errorf("%w: %w", err, last)
			}
		}
	}
	return nil
}

// measure runs the client of one test in the arm's client namespace.
func (r *rig) measure(a *lab.Arm, f netset.Family, spec bench.Spec) (*bench.Result, error) {
	raw, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(r.Ctx, r.Self, "_measure", a.Address[f].String(), string(raw))
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := lab.InNS(a.Client, cmd.Run); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", a.Name, err, strings.TrimSpace(stderr.String()))
	}
	var res bench.Result
	return &res, json.Unmarshal(out.Bytes(), &res)
}

// compare measures all tests on all arms for the wanted number of good rounds. A round visits the arms of a
// test in a random order and then in the reverse order (ABBA), half of the duration each time, and takes the
// mean: a drift of the machine, or a neighbour in time, favours no arm.
func (r *rig) compare(o *options, rep *report, group string, arms []*lab.Arm, tests []test) error {
	if err := r.startTools(arms); err != nil {
		return err
	}
	for _, a := range arms {
		rep.Arms = append(rep.Arms, armInfo{Name: a.Name, Group: group, About: a.About})
	}
	good := 0
	for round := 0; good < o.rounds && round < 2*o.rounds && r.Ctx.Err() == nil; round++ {
		n := before(o.patience)
		n.Round, n.Group = round, group
		from := readCPU()
		values := map[string]map[string]map[string]float64{} // test, metric, arm
		for _, t := range tests {
			values[t.String()] = r.there(o, rep, arms, t)
		}
		n.after(from)
		rep.Noise = append(rep.Noise, n)
		r.Log("%s round %d, %d of %d used: %s", group, round+1, good, o.rounds, n.words())
		if n.Skipped && !o.noisy {
			continue
		}
		good++
		rep.add(group, values)
	}
	if good < o.rounds {
		rep.note("%s: only %d of %d rounds were quiet enough", group, good, o.rounds)
	}
	return nil
}

// there and back: one test on all arms, forth and in reverse; the mean of both by metric and arm.
func (r *rig) there(o *options, rep *report, arms []*lab.Arm, t test) map[string]map[string]float64 {
	order := rand.Perm(len(arms))
	back := slices.Clone(order)
	slices.Reverse(back)
	values := map[string]map[string]float64{}
	failed := map[string]bool{}
	for _, i := range append(order, back...) {
		name := arms[i].Name
		if failed[name] {
			continue
		}
		res, err := r.measure(arms[i], t.family, t.spec(o))
		if err != nil {
			rep.note("%s: %v", t, err)
			failed[name] = true
			for _, byArm := range values {
				delete(byArm, name)
			}
			continue
		}
		for metric, v := range metrics(res) {
			if values[metric] == nil {
				values[metric] = map[string]float64{}
			}
			values[metric][name] += v / 2
		}
	}
	return values
}

func (n *noise) words() string {
	verdict := "used"
	if n.Skipped {
		verdict = "noisy"
	}
	return fmt.Sprintf("%s (foreign CPU %.1f %%, steal %.1f %%, load %.1f, pressure %.0f %%)",
		verdict, 100*n.Foreign, 100*n.Steal, n.Load, n.Pressure)
}

// trafficTests are all combinations of the modes, places and families asked for.
func trafficTests(o *options, modes ...bench.Mode) []test {
	var out []test
	for _, f := range o.families {
		for _, p := range o.places {
			for _, m := range modes {
				out = append(out, test{mode: m, place: p, family: f})
			}
		}
	}
	return out
}
