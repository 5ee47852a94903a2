package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"time"

	"weft/internal/bench"
	"weft/internal/netset"
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
		Mode: t.mode, Warmup: o.warmup, Duration: o.duration, Buffer: 1 << 20, Congestion: "cubic",
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
func (r *rig) startTools(arms []*arm) error {
	for _, a := range arms {
		if a.tool != nil {
			continue
		}
		var err error
		if a.tool, err = r.start(a.server, "tool-"+a.name, nil, r.self, "_serve"); err != nil {
			return err
		}
	}
	for _, a := range arms {
		for f := range a.address {
			spec := bench.Spec{Mode: bench.RR, Duration: time.Millisecond, ClientCPU: bench.AnyCPU, ServerCPU: bench.AnyCPU}
			var last error
			if err := await("reach "+a.name+" over "+f.String(), 10*time.Second, a.tool, func() bool {
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
func (r *rig) measure(a *arm, f netset.Family, spec bench.Spec) (*bench.Result, error) {
	raw, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(r.ctx, r.self, "_measure", a.address[f].String(), string(raw))
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := inNS(a.client, cmd.Run); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", a.name, err, strings.TrimSpace(stderr.String()))
	}
	var res bench.Result
	return &res, json.Unmarshal(out.Bytes(), &res)
}

// compare measures all tests on all arms for the wanted number of good rounds. Each round visits the
// arms of a test in a random order and the next one in the reverse order (ABBA), so that neither
// a drift nor a neighbour in time favours an arm.
func (r *rig) compare(o *options, rep *report, group string, arms []*arm, tests []test) error {
	if err := r.startTools(arms); err != nil {
		return err
	}
	for _, a := range arms {
		rep.Arms = append(rep.Arms, armInfo{Name: a.name, Group: group, About: a.about})
	}
	order := rand.Perm(len(arms))
	good := 0
	for round := 0; good < o.rounds && round < 2*o.rounds; round++ {
		n := before(o.patience)
		n.Round, n.Group = round, group
		from := readCPU()
		if round%2 == 0 {
			rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		} else {
			reverse(order)
		}
		values := map[string]map[string]map[string]float64{} // test, metric, arm
		for _, t := range tests {
			values[t.String()] = map[string]map[string]float64{}
			for _, i := range order {
				res, err := r.measure(arms[i], t.family, t.spec(o))
				if err != nil {
					rep.note("%s %s round %d: %v", group, t, round, err)
					continue
				}
				for metric, v := range metrics(res) {
					put(values[t.String()], metric, arms[i].name, v)
				}
			}
		}
		n.after(from)
		rep.Noise = append(rep.Noise, n)
		r.log("%s round %d of %d: %s", group, round+1, o.rounds, n.words())
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

func put(m map[string]map[string]float64, metric, arm string, v float64) {
	if m[metric] == nil {
		m[metric] = map[string]float64{}
	}
	m[metric][arm] = v
}

func reverse(s []int) {
	for i, j := 0, len(s)-1; i < j; i, j = i+1, j-1 {
		s[i], s[j] = s[j], s[i]
	}
}

func (n *noise) words() string {
	verdict := "used"
	if n.Skipped {
		verdict = "noisy"
	}
	return fmt.Sprintf("%s (foreign CPU %.1f %%, steal %.1f %%, load %.1f, pressure %.0f %%)",
		verdict, 100*n.Foreign, 100*n.Steal, n.Load, n.Pressure)
}

// trafficTests are all combinations for a group.
func trafficTests(o *options) []test {
	var out []test
	for _, f := range o.families {
		for _, p := range o.places {
			for _, m := range []bench.Mode{bench.Stream, bench.RR, bench.CRR} {
				out = append(out, test{mode: m, place: p, family: f})
			}
		}
	}
	return out
}
