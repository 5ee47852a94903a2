package main

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"weft/internal/bench"
	"weft/internal/netset"
	"weft/test/bench/lab"
)

// subject is one way to attach pods in a node namespace of its own. add and del are called in threads
// of that namespace, from several goroutines at once.
type subject struct {
	name  string
	about string
	node  string
	pods  []string // namespaces
	add   func(i int) error
	del   func(i int) error
	// addAddress is add, and tells the address that the pod was given. Plugins only.
	addAddress func(i int, f netset.Family) (netip.Addr, error)
	weft       *lab.Node // nil for peers
}

// samples are durations in milliseconds, one slice a round.
type samples struct{ add, del [][]float64 }

// cniRows are rows C1 to C5.
func cniRows(r *rig, o *options, rep *report) error {
	var subjects []*subject
	for _, b := range []struct {
		name string
		make func() (*subject, error)
	}{
		{"netlink", func() (*subject, error) { return r.limitSubject(o) }},
		{"ptp", func() (*subject, error) { return r.pluginSubject(o, "ptp") }},
		{"bridge", func() (*subject, error) { return r.pluginSubject(o, "bridge") }},
		{"weft", func() (*subject, error) { return r.weftSubject(o, "weft", 0) }},
	} {
		s, err := b.make()
		if err != nil {
			rep.note("CNI rows: %s left out: %v", b.name, err)
			continue
		}
		rep.Arms = append(rep.Arms, armInfo{Name: s.name, Group: "cni", About: s.about})
		subjects = append(subjects, s)
	}
	policed := r.policedSubjects(o, rep)
	if o.wants("C1", "C5") {
		r.sequential(o, rep, subjects)
	}
	if o.wants("C2", "C4") {
		r.bursts(o, rep, subjects[min(1, len(subjects)):], 1, 8, 32)
	}
	if o.wants("C4") && len(policed) > 0 {
		r.bursts(o, rep, policed, 1, 64)
	}
	for _, s := range append(subjects, policed...) {
		if o.wants("C3") && (s.name == "ptp" || s.weft != nil) {
			if err := r.firstPacket(o, rep, s); err != nil {
				rep.note("C3 %s: %v", s.name, err)
			}
		}
		if o.wants("C5") && s.name == "weft" {
			if err := r.kills(o, rep, s); err != nil {
				rep.note("C5 kills: %v", err)
			}
		}
	}
	return nil
}

// policedSubjects are nodes with policies, in which all pods are isolated and may talk to each other.
func (r *rig) policedSubjects(o *options, rep *report) []*subject {
	if !o.wants("C3", "C4") {
		return nil
	}
	var out []*subject
	for name, policies := range policyArms() {
		if policies < 1000 {
			continue
		}
		s, err := r.weftSubject(o, name, policies)
		if err != nil {
			rep.note("CNI rows: %s left out: %v", name, err)
			continue
		}
		rep.Arms = append(rep.Arms, armInfo{Name: s.name, Group: "cni", About: s.about})
		out = append(out, s)
	}
	return out
}

// podsOf makes the pods' namespaces before anything is timed.
func podsOf(name string, n int) ([]string, error) {
	pods := make([]string, n)
	for i := range pods {
		pods[i] = fmt.Sprintf("%s.p%d", name, i)
		if err := lab.Netns(pods[i]); err != nil {
			return nil, err
		}
	}
	return pods, nil
}

// subjectOn makes a node namespace and its pods.
func (o *options) subjectOn(name, about string) (*subject, error) {
	s := &subject{name: name, about: about, node: "cni-" + name + ".A"}
	if _, err := lab.Nodes("cni-" + name); err != nil {
		return nil, err
	}
	var err error
	s.pods, err = podsOf("cni-"+name, o.pods)
	return s, err
}

func (r *rig) limitSubject(o *options) (*subject, error) {
	s, err := o.subjectOn("netlink", "netlink calls for the same link, addresses and routes, in process")
	if err == nil {
		s.add = func(i int) error { return lab.Limit{}.Add(i, s.pods[i]) }
		s.del = func(i int) error { return lab.Limit{}.Del(i) }
	}
	return s, err
}

func (r *rig) pluginSubject(o *options, kind string) (*subject, error) {
	s, err := o.subjectOn(kind, lab.DebianPlugins()+", "+kind+" + host-local, dual stack, no DAD")
	if err != nil {
		return nil, err
	}
	p, err := r.DebianPlugin(kind, "cni-"+kind, lab.Both(lab.PodPrefix, 1), 1500)
	if err != nil {
		return nil, err
	}
	s.use(p)
	return s, nil
}

// subjectID is the container ID of a pod, and the pod's name.
func subjectID(name string, i int) string { return fmt.Sprintf("%s-%08x", name, i) }

func (s *subject) use(p *lab.Plugin) {
	id := func(i int) string { return subjectID(s.name, i) }
	s.add = func(i int) error { _, err := p.Add(id(i), s.pods[i]); return err }
	s.del = func(i int) error { return p.Del(id(i), s.pods[i]) }
	s.addAddress = func(i int, f netset.Family) (netip.Addr, error) {
		r, err := p.Add(id(i), s.pods[i])
		return r.Addresses()[f], err
	}
}

func (r *rig) weftSubject(o *options, name string, policies int) (*subject, error) {
	about := "weft-cni and its agent, VXLAN, dual stack"
	var objects []string
	if policies > 0 {
		about += fmt.Sprintf(", %d policies", policies)
		var pods []string
		for i := range o.pods {
			pods = append(pods, subjectID(name, i))
		}
		objects = []string{lab.Policies(policies, pods...)}
	}
	s, err := o.subjectOn(name, about)
	if err != nil {
		return nil, err
	}
	if s.weft, err = r.StartWeft(s.node, 1, "vxlan", objects...); err != nil {
		return nil, err
	}
	s.use(s.weft.Plugin)
	return s, nil
}

// timed calls f for pods [from, to) one after the other and returns milliseconds. A failed call is a note and no sample.
func (s *subject) timed(rep *report, what string, from, to int, f func(int) error) []float64 {
	var out []float64
	_ = lab.InNS(s.node, func() error {
		for i := from; i < to; i++ {
			begin := time.Now()
			if err := f(i); err != nil {
				rep.note("%s %s: %v", what, s.name, err)
				continue
			}
			out = append(out, milliseconds(time.Since(begin)))
		}
		return nil
	})
	return out
}

func milliseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

// sequential is rows C1 and the first half of C5: ADD and DEL one after the other, in rounds.
func (r *rig) sequential(o *options, rep *report, subjects []*subject) {
	per := max(5, 2*o.pods/o.rounds) // about 500 of each with the defaults
	per = min(per, o.pods)
	got := map[string]*samples{}
	for _, s := range subjects {
		got[s.name] = &samples{}
		s.timed(rep, "C1 warm-up", 0, 3, s.add)
		s.timed(rep, "C1 warm-up", 0, 3, s.del)
	}
	order := rand.Perm(len(subjects))
	good := 0
	for round := 0; good < o.rounds && round < 2*o.rounds; round++ {
		n := before(o.patience)
		n.Round, n.Group = round, "cni sequential"
		from := readCPU()
		if round%2 == 0 {
			rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		} else {
			slices.Reverse(order)
		}
		add, del := map[string][]float64{}, map[string][]float64{}
		for _, i := range order {
			s := subjects[i]
			add[s.name] = s.timed(rep, "C1 ADD", 0, per, s.add)
			del[s.name] = s.timed(rep, "C1 DEL", 0, per, s.del)
		}
		n.after(from)
		rep.Noise = append(rep.Noise, n)
		r.Log("CNI sequential round %d of %d: %s", round+1, o.rounds, n.words())
		if n.Skipped && !o.noisy {
			continue
		}
		good++
		for name := range add {
			got[name].add, got[name].del = append(got[name].add, add[name]), append(got[name].del, del[name])
		}
	}
	rep.Samples = append(rep.Samples, sampleSeries(got)...)
	judgeSequential(rep, got)
}

// quantileRatio compares a quantile of two subjects' pooled samples; rounds are resampled together.
func quantileRatio(a, b [][]float64, q float64) bench.Interval {
	pool := func(of [][]float64, rounds []int) []float64 {
		var all []float64
		for _, r := range rounds {
			all = append(all, of[r]...)
		}
		return all
	}
	return bench.Bootstrap(min(len(a), len(b)), uint64(len(a)), func(rounds []int) float64 {
		return bench.Quantile(pool(a, rounds), q) / bench.Quantile(pool(b, rounds), q)
	})
}

func judgeSequential(rep *report, got map[string]*samples) {
	for _, name := range slices.Sorted(mapKeys(got)) {
		s := got[name]
		for label, q := range quantiles() {
			rep.inform("C1", "ADD "+label, name, "ms", bench.Quantile(slices.Concat(s.add...), q))
			rep.inform("C1", "DEL "+label, name, "ms", bench.Quantile(slices.Concat(s.del...), q))
		}
	}
	weft := got["weft"]
	if weft == nil {
		return
	}
	for _, versus := range slices.Sorted(mapKeys(got)) {
		bound := map[string]float64{"ptp": .5, "bridge": .4, "netlink": 3}[versus]
		for label, q := range quantiles() {
			if bound == 0 || versus == "netlink" && label == "p99" {
				continue
			}
			iv := quantileRatio(weft.add, got[versus].add, q)
			rep.Verdicts = append(rep.Verdicts, verdict{
				Row: "C1", Test: "ADD " + label, Arm: "weft", Unit: "ms", Value: bench.Quantile(slices.Concat(weft.add...), q),
				Versus: versus, Ratio: &iv, Gate: gateWords(bound, true), Verdict: judge(iv, bound, true),
			})
		}
	}
	if limit := got["netlink"]; limit != nil { // most of a DEL is the kernel waiting for its readers
		iv := quantileRatio(weft.del, limit.del, .99)
		rep.Verdicts = append(rep.Verdicts, verdict{
			Row: "C5", Test: "DEL p99", Arm: "weft", Unit: "ms", Value: bench.Quantile(slices.Concat(weft.del...), .99), Versus: "netlink", Ratio: &iv,
		})
	}
	iv := quantileRatio(weft.del, weft.add, .99)
	rep.Verdicts = append(rep.Verdicts, verdict{
		Row: "C5", Test: "DEL p99", Arm: "weft", Unit: "ms", Value: bench.Quantile(slices.Concat(weft.del...), .99),
		Versus: "ADD p99", Ratio: &iv, Gate: gateWords(1, true), Verdict: judge(iv, 1, true),
	})
}

func quantiles() map[string]float64 { return map[string]float64{"p50": .5, "p99": .99} }

// burst adds all pods with so many at once and removes them again.
type burst struct {
	total  float64   // ms until the last ADD is done
	add    []float64 // ms, by pod
	errors []error
}

func (s *subject) burst(parallel int) burst {
	b := burst{add: make([]float64, len(s.pods))}
	var mu sync.Mutex
	each := func(f func(int) error, note func(i int, took time.Duration)) {
		next := make(chan int)
		var wg sync.WaitGroup
		for range parallel {
			wg.Go(func() {
				_ = lab.InNS(s.node, func() error {
					for i := range next {
						begin := time.Now()
						err := f(i)
						took := time.Since(begin)
						mu.Lock()
						if err != nil {
							b.errors = append(b.errors, err)
						} else {
							note(i, took)
						}
						mu.Unlock()
					}
					return nil
				})
			})
		}
		for i := range s.pods {
			next <- i
		}
		close(next)
		wg.Wait()
	}
	begin := time.Now()
	each(s.add, func(i int, took time.Duration) { b.add[i] = milliseconds(took) })
	b.total = milliseconds(time.Since(begin))
	each(s.del, func(int, time.Duration) {})
	return b
}

// bursts is rows C2 and C4.
func (r *rig) bursts(o *options, rep *report, subjects []*subject, degrees ...int) {
	rounds := max(1, o.rounds/3)
	for _, parallel := range degrees {
		got := map[string][]burst{}
		order := rand.Perm(len(subjects))
		for round := range rounds {
			n := before(o.patience)
			n.Round, n.Group = round, fmt.Sprintf("burst x%d", parallel)
			from := readCPU()
			for _, i := range order {
				got[subjects[i].name] = append(got[subjects[i].name], subjects[i].burst(parallel))
			}
			slices.Reverse(order)
			n.after(from)
			rep.Noise = append(rep.Noise, n)
			r.Log("%s round %d of %d: %s", n.Group, round+1, rounds, n.words())
		}
		judgeBursts(rep, parallel, len(subjects[0].pods), got)
	}
}

func judgeBursts(rep *report, parallel, pods int, got map[string][]burst) {
	rates := map[string][]float64{}
	for _, name := range slices.Sorted(mapKeys(got)) {
		var all, first, last []float64
		var failed []error
		for _, b := range got[name] {
			rates[name] = append(rates[name], float64(pods)/b.total*1e3)
			all, failed = append(all, b.add...), append(failed, b.errors...)
			k := max(1, pods/10)
			first, last = append(first, bench.Median(b.add[:k])), append(last, bench.Median(b.add[pods-k:]))
		}
		test := fmt.Sprintf("%d pods, %d at once", pods, parallel)
		row := "C2"
		if strings.HasPrefix(name, "weft-policy") {
			row = "C4"
		}
		rep.inform(row, test+", rate", name, "pods/s", bench.Median(rates[name]))
		rep.inform(row, test+", p50", name, "ms", bench.Quantile(all, .5))
		rep.inform(row, test+", p99", name, "ms", bench.Quantile(all, .99))
		rep.Samples = append(rep.Samples, sampleRow{Subject: name, What: test, Rounds: [][]float64{all}, Unit: "ms"})
		if len(failed) > 0 {
			rep.note("C2 %s %s: %d errors, the first: %v", name, test, len(failed), failed[0])
		}
		if row == "C4" {
			bound := map[int]float64{1: 50, 64: 250}[parallel]
			if name != "weft-policy-1k" && parallel == 1 {
				bound = noBound()
			}
			rep.absolute("C4", test+", p99", name, "ms", bench.Quantile(all, .99), bound)
			rep.absolute("C4", test+", errors", name, "", float64(len(failed)), 0)
		} else if name != "weft" {
			continue
		} else {
			rep.absolute("C2", test+", p99/p50", name, "", bench.Quantile(all, .99)/bench.Quantile(all, .5), 5)
			rep.absolute("C2", test+", errors", name, "", float64(len(failed)), 0)
		}
		if ptp := rates["ptp"]; ptp != nil {
			iv := bench.MedianRatio(rates[name], ptp)
			rep.Verdicts = append(rep.Verdicts, verdict{
				Row: "C2", Test: test + ", rate", Arm: name, Unit: "pods/s", Value: bench.Median(rates[name]), Versus: "ptp",
				Ratio: &iv, Gate: gateWords(1.5, false), Verdict: judge(iv, 1.5, false),
			})
		}
		if parallel == 1 {
			iv := bench.MedianRatio(last, first)
			rep.Verdicts = append(rep.Verdicts, verdict{
				Row: "C4", Test: fmt.Sprintf("ADD p50, pods %d+", pods-max(1, pods/10)), Arm: name, Unit: "ms", Value: bench.Median(last),
				Versus: fmt.Sprintf("pods 1-%d", max(1, pods/10)), Ratio: &iv, Gate: gateWords(1.2, true), Verdict: judge(iv, 1.2, true),
			})
		}
	}
}

// sampleRow are raw control-plane samples for the JSON.
type sampleRow struct {
	Subject string      `json:"subject"`
	What    string      `json:"what"`
	Unit    string      `json:"unit"`
	Rounds  [][]float64 `json:"rounds"`
}

func sampleSeries(got map[string]*samples) []sampleRow {
	var out []sampleRow
	for _, name := range slices.Sorted(mapKeys(got)) {
		out = append(out, sampleRow{name, "ADD", "ms", got[name].add}, sampleRow{name, "DEL", "ms", got[name].del})
	}
	return out
}
