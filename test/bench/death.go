package main

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"time"

	"weft/internal/bench"
	"weft/internal/netset"
	"weft/test/bench/lab"
)

// event is something done to the agents while traffic flows.
type event struct {
	what     string
	from, to time.Time
}

// aftermath is how long after an event a gap is blamed on it.
const aftermath = time.Second

// agentDeath is row P9: round trips and a stream while the agents are killed, restarted and terminated,
// beside the same without any event.
func agentDeath(r *rig, o *options, rep *report) error {
	for _, c := range []struct {
		name, backend string
		same          bool
	}{{"weft death same node", "vxlan", true}, {"weft death vxlan", "vxlan", false}, {"weft death direct", "direct", false}} {
		a, agents, err := r.WeftArm(c.name, c.backend, c.same)
		if err != nil {
			rep.note("P9 %s: %v", c.name, err)
			continue
		}
		if err := r.startTools([]*lab.Arm{a}); err != nil {
			rep.note("P9 %s: %v", c.name, err)
			continue
		}
		for _, mode := range []bench.Mode{bench.RR, bench.Stream} {
			if err := r.death(o, rep, a, agents, mode); err != nil {
				rep.note("P9 %s: %v", c.name, err)
				rep.absolute("P9", string(mode)+", connections lost", a.Name, "", 1, 0)
			}
		}
		for _, n := range agents {
			n.Stop()
		}
	}
	return nil
}

// death compares runs with and without events, in turns.
func (r *rig) death(o *options, rep *report, a *lab.Arm, agents []*lab.Node, mode bench.Mode) error {
	spec := test{mode: mode, place: "2cpu", family: netset.V4}.spec(o)
	spec.Duration, spec.Gaps = 10*time.Second, 4096
	if o.quick {
		spec.Duration = 6 * time.Second
	}
	var quiet, loud []*bench.Result
	var events [][]event
	for range max(1, o.rounds/4) {
		res, err := r.measure(a, netset.V4, spec)
		if err != nil {
			return fmt.Errorf("without events: %w", err)
		}
		quiet = append(quiet, res)
		var wg sync.WaitGroup
		var happened []event
		wg.Go(func() { happened = r.torment(agents, spec.Warmup+spec.Duration) })
		res, err = r.measure(a, netset.V4, spec)
		wg.Wait()
		if err != nil {
			return fmt.Errorf("while agents died: %w", err)
		}
		loud, events = append(loud, res), append(events, happened)
	}
	judgeDeath(rep, a, mode, quiet, loud, events)
	return nil
}

// torment kills, starts and stops the agents during that time, and leaves them running.
func (r *rig) torment(agents []*lab.Node, during time.Duration) []event {
	var out []event
	step := during / 6
	time.Sleep(step)
	each := func(what string, f func(*lab.Node)) {
		e := event{what: what, from: time.Now()}
		for _, n := range agents {
			f(n)
		}
		e.to = time.Now()
		out = append(out, e)
		time.Sleep(step)
	}
	each("SIGKILL", (*lab.Node).Kill)
	each("start", func(n *lab.Node) { _ = n.Start() })
	each("SIGTERM", (*lab.Node).Stop)
	each("start", func(n *lab.Node) { _ = n.Start() })
	return out
}

// judgeDeath counts what took longer than twice the quiet p99.9 (round trips), or than the longest quiet
// gap (stream), during an event or within a second after it. The quiet runs have such gaps too, for the machine's
// own reasons; as many as they have in that time, and twice the standard error of that count, are not blamed on weft.
func judgeDeath(rep *report, a *lab.Arm, mode bench.Mode, quiet, loud []*bench.Result, events [][]event) {
	var limits []float64
	var quietMax, loudMax time.Duration
	for _, q := range quiet {
		if mode == bench.RR {
			limits = append(limits, float64(2*q.Latency.P999))
		} else {
			limits = append(limits, float64(q.Longest[0].Length))
		}
		quietMax = max(quietMax, q.Longest[0].Length)
	}
	limit := time.Duration(bench.Median(limits))
	var blamed, calm, window, calmTime float64
	for i, l := range loud {
		loudMax = max(loudMax, l.Longest[0].Length)
		for _, e := range events[i] {
			window += (e.to.Sub(e.from) + aftermath).Seconds()
		}
		for _, g := range l.Longest {
			if g.Length > limit && near(g, events[i]) {
				blamed++
			}
		}
	}
	for _, q := range quiet {
		calmTime += q.Seconds
		for _, g := range q.Longest {
			if g.Length > limit {
				calm++
			}
		}
	}
	expected := calm * window / calmTime
	bound := math.Round(expected + 2*math.Sqrt(expected))
	if mode == bench.Stream { // the longest of few gaps is no statistic: information
		bound = noBound()
	}
	test := string(mode) + " IPv4"
	rep.absolute("P9", test+", connections lost", a.Name, "", 0, 0)
	rep.absolute("P9", fmt.Sprintf("%s, gaps over %v in the %.0f s around %d events", test, limit.Round(time.Microsecond), window, len(events)*len(events[0])),
		a.Name, "", blamed, bound)
	rep.inform("P9", test+", longest gap, agents dying", a.Name, "ms", milliseconds(loudMax))
	rep.inform("P9", test+", longest gap, undisturbed", a.Name, "ms", milliseconds(quietMax))
}

func near(g bench.Gap, events []event) bool {
	for _, e := range events {
		if g.At.After(e.from) && g.At.Add(-g.Length).Before(e.to.Add(aftermath)) {
			return true
		}
	}
	return false
}

// kills is the second half of row C5: ADDs whose plugin is killed at a random moment, and now and then the
// agent too, each followed by the DEL that a container runtime sends. Then nothing of them may be left.
func (r *rig) kills(o *options, rep *report, s *subject) error {
	n := s.weft
	count := 4 * o.pods
	r.Log("C5: %d killed ADDs", count)
	before, err := leftovers(n)
	if err != nil {
		return err
	}
	for i := range count {
		pod := s.pods[i%len(s.pods)]
		id := fmt.Sprintf("killed%d", i)
		if err := lab.InNS(n.NS, func() error { return killedAdd(n.Plugin, id, pod, time.Duration(rand.IntN(15000))*time.Microsecond) }); err != nil {
			return err
		}
		if i%50 == 49 {
			n.Kill()
			if err := n.Start(); err != nil {
				return err
			}
		}
		if err := lab.InNS(n.NS, func() error { return n.Plugin.Del(id, pod) }); err != nil {
			return fmt.Errorf("DEL after a killed ADD: %w", err)
		}
	}
	var now map[string]int
	_ = lab.Await("leftovers to go", 5*time.Second, n.Agent, func() bool {
		now, err = leftovers(n)
		return err == nil && fmt.Sprint(now) == fmt.Sprint(before)
	})
	if err != nil {
		return err
	}
	for what, was := range before {
		rep.absolute("C5", fmt.Sprintf("%s left after %d killed ADDs", what, count), "weft", "", float64(now[what]-was), 0)
	}
	return nil
}

// killedAdd starts an ADD and kills the plugin after a while, if it still runs.
func killedAdd(p *lab.Plugin, id, pod string, when time.Duration) error {
	cmd := p.Command("ADD", id, pod)
	if err := cmd.Start(); err != nil {
		return err
	}
	timer := time.AfterFunc(when, func() { _ = cmd.Process.Signal(syscall.SIGKILL) })
	_ = cmd.Wait() // killed, or done: both are wanted
	timer.Stop()
	return nil
}

// leftovers counts what ADDs make.
func leftovers(n *lab.Node) (map[string]int, error) {
	count := func(args ...string) (int, error) {
		out, err := lab.Program("ip", append([]string{"-n", n.NS}, args...)...).Output()
		return strings.Count(string(out), "\n"), err
	}
	m := map[string]int{}
	var err error
	if m["links"], err = count("-o", "link"); err != nil {
		return nil, err
	}
	for _, f := range netset.Families() {
		if m[fmt.Sprintf("routes %s", f)], err = count(fmt.Sprintf("-%d", f), "route"); err != nil {
			return nil, err
		}
	}
	raw, err := n.CLI("show", "endpoints", "-o", "json")
	if err != nil {
		return nil, err
	}
	var rows []json.RawMessage
	if err := json.Unmarshal(raw, &rows); err != nil {
		return nil, fmt.Errorf("weft show endpoints: %w", err)
	}
	m["endpoints"] = len(rows)
	return m, nil
}
