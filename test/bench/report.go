package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sort"
	"strings"
	"text/tabwriter"
	"time"

	"weft/internal/bench"
	"weft/test/bench/lab"
)

// report is a whole run; its JSON is what a claim can be derived from again.
type report struct {
	Time    time.Time `json:"time"`
	Seconds float64   `json:"seconds"`
	Commit  string    `json:"commit"`
	Dirty   bool      `json:"dirty"` // the work tree had changes that are not in the commit
	Kernel  string    `json:"kernel"`
	CPU     string    `json:"cpu"`
	CPUs    int       `json:"cpus"`
	Go      string    `json:"go"`
	Flags   []string  `json:"flags"`
	// Noisy: rounds were used however loud the machine was. Such a run checks functions; it measures nothing.
	Noisy    bool        `json:"noisy"`
	Arms     []armInfo   `json:"arms"`
	Noise    []noise     `json:"noise"`
	Series   []*series   `json:"series"`
	Samples  []sampleRow `json:"samples,omitempty"`
	Verdicts []verdict   `json:"verdicts"`
	Notes    []string    `json:"notes"` // what was skipped or failed, and why
}

type armInfo struct {
	Name  string `json:"name"`
	Group string `json:"group"`
	About string `json:"about"`
}

// series are the per-round values of one metric of one test.
type series struct {
	Group  string               `json:"group"`
	Test   string               `json:"test"`
	Metric string               `json:"metric"`
	Rounds map[string][]float64 `json:"rounds"` // arm → a value for each round; 0: none
	n      int
}

// verdict is one line of the table.
type verdict struct {
	Row     string          `json:"row"` // of the goal table, P1 …
	Test    string          `json:"test"`
	Arm     string          `json:"arm"`
	Value   float64         `json:"value"`
	Unit    string          `json:"unit"`
	Versus  string          `json:"versus,omitempty"`
	Ratio   *bench.Interval `json:"ratio,omitempty"`
	Spread  *bench.Interval `json:"spread,omitempty"` // of Value
	Gate    string          `json:"gate,omitempty"`
	Verdict string          `json:"verdict"` // pass, FAIL, void, unsure, "" (information)
}

func newReport() *report {
	out := func(name string, args ...string) string {
		raw, _ := lab.Program(name, args...).Output()
		return strings.TrimSpace(string(raw))
	}
	cpu := ""
	raw, _ := os.ReadFile("/proc/cpuinfo")
	for _, l := range strings.Split(string(raw), "\n") {
		if k, v, ok := strings.Cut(l, ":"); ok && strings.TrimSpace(k) == "model name" {
			cpu = strings.TrimSpace(v)
			break
		}
	}
	return &report{
		Time: time.Now(), Commit: out("git", "rev-parse", "HEAD"), Dirty: out("git", "status", "--porcelain") != "",
		Kernel: out("uname", "-r"), CPU: cpu, CPUs: runtime.NumCPU(), Go: runtime.Version(), Flags: os.Args[1:],
	}
}

func (r *report) note(format string, a ...any) {
	text := fmt.Sprintf(format, a...)
	if !slices.Contains(r.Notes, text) {
		r.Notes = append(r.Notes, text)
	}
}

// find returns the series, or nil.
func (r *report) find(group, test, metric string) *series {
	for _, s := range r.Series {
		if s.Group == group && s.Test == test && s.Metric == metric {
			return s
		}
	}
	return nil
}

// add appends one round: values by test, metric and arm. A missing value becomes 0.
func (r *report) add(group string, values map[string]map[string]map[string]float64) {
	for test, byMetric := range values {
		for metric, byArm := range byMetric {
			s := r.find(group, test, metric)
			if s == nil {
				s = &series{Group: group, Test: test, Metric: metric, Rounds: map[string][]float64{}}
				r.Series = append(r.Series, s)
			}
			for arm, v := range byArm {
				for len(s.Rounds[arm]) < s.n {
					s.Rounds[arm] = append(s.Rounds[arm], 0)
				}
				s.Rounds[arm] = append(s.Rounds[arm], v)
			}
			s.n++
		}
	}
}

// median of the rounds that have a value.
func (s *series) median(arm string) float64 {
	return bench.Median(slices.DeleteFunc(slices.Clone(s.Rounds[arm]), func(v float64) bool { return v == 0 }))
}

// ratio of two arms by round.
func (s *series) ratio(arm, versus string) bench.Interval {
	return bench.MedianRatio(s.Rounds[arm], s.Rounds[versus])
}

// judge says whether an interval meets a bound. The interval's worse end has to meet it; if only the
// other end does, the run cannot tell.
func judge(iv bench.Interval, bound float64, atMost bool) string {
	worse, better := iv.Low, iv.High
	if atMost {
		worse, better = iv.High, iv.Low
	}
	meets := func(v float64) bool { return atMost && v <= bound || !atMost && v >= bound }
	switch {
	case math.IsNaN(iv.Value):
		return "unsure"
	case meets(worse):
		return "pass"
	case meets(better):
		return "unsure"
	}
	return "FAIL"
}

func gateWords(bound float64, atMost bool) string {
	if atMost {
		return fmt.Sprintf("<= %.4g", bound)
	}
	return fmt.Sprintf(">= %.4g", bound)
}

// absolute adds a verdict about a plain figure that must be at most bound; NaN: it is information.
func (r *report) absolute(row, test, arm, unit string, value, bound float64) {
	v := verdict{Row: row, Test: test, Arm: arm, Value: value, Unit: unit}
	if !math.IsNaN(bound) {
		v.Gate, v.Verdict = gateWords(bound, true), "FAIL"
		if value <= bound {
			v.Verdict = "pass"
		}
	}
	r.Verdicts = append(r.Verdicts, v)
}

// noBound makes a verdict information.
func noBound() float64 { return math.NaN() }

// inform adds a figure without a gate.
func (r *report) inform(row, test, arm, unit string, value float64) {
	r.absolute(row, test, arm, unit, value, noBound())
}

// write saves the JSON and returns its path.
func (r *report) write(dir string) (string, error) {
	r.Seconds = time.Since(r.Time).Seconds()
	path := filepath.Join(dir, "bench-"+r.Time.UTC().Format("20060102-150405")+".json")
	clean(r)
	raw, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return "", err
	}
	return path, os.WriteFile(path, append(raw, '\n'), 0o644)
}

// clean replaces what JSON cannot say.
func clean(r *report) {
	finite := func(v *float64) {
		if math.IsNaN(*v) || math.IsInf(*v, 0) {
			*v = 0
		}
	}
	for i := range r.Verdicts {
		finite(&r.Verdicts[i].Value)
		for _, iv := range []*bench.Interval{r.Verdicts[i].Ratio, r.Verdicts[i].Spread} {
			if iv != nil {
				finite(&iv.Value)
				finite(&iv.Low)
				finite(&iv.High)
			}
		}
	}
}

// table prints the verdicts.
func (r *report) table(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "ROW\tTEST\tARM\tVALUE\tUNIT\tRATIO\tCI 95 %\tVERSUS\tGATE\tVERDICT")
	sort.SliceStable(r.Verdicts, func(i, j int) bool { return r.Verdicts[i].Row < r.Verdicts[j].Row })
	for _, v := range r.Verdicts {
		ratio, ci := "", ""
		if v.Ratio != nil {
			ratio, ci = fmt.Sprintf("%.3f", v.Ratio.Value), fmt.Sprintf("%.3f..%.3f", v.Ratio.Low, v.Ratio.High)
		}
		if v.Spread != nil {
			ci = fmt.Sprintf("%.4g..%.4g", v.Spread.Low, v.Spread.High)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%.4g\t%s\t%s\t%s\t%s\t%s\t%s\n", v.Row, v.Test, v.Arm, v.Value, v.Unit, ratio, ci, v.Versus, v.Gate, v.Verdict)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, n := range r.Notes {
		fmt.Fprintln(w, "note:", n)
	}
	if r.Noisy {
		fmt.Fprintln(w, "note: noisy rounds were used: this run checks functions, it measures nothing")
	}
	return nil
}

func (r *report) count(word string) int {
	n := 0
	for _, v := range r.Verdicts {
		if v.Verdict == word {
			n++
		}
	}
	return n
}

// interval adds a verdict about the median of plain figures, which are at most bound with 95 % confidence or not.
func (r *report) interval(row, test, arm, unit string, values []float64, bound float64) {
	r.spread(row, test, arm, unit, values, bench.Median, bound, true)
}

// quantile adds a verdict about a quantile of samples.
func (r *report) quantile(row, test, arm, unit string, samples []float64, q, bound float64, quiet bool) {
	r.spread(row, test, arm, unit, samples, func(v []float64) float64 { return bench.Quantile(v, q) }, bound, quiet)
}

// spread draws the samples again and again for the interval of what f makes of them. Of a loud machine nothing is said.
func (r *report) spread(row, test, arm, unit string, values []float64, f func([]float64) float64, bound float64, quiet bool) {
	iv := bench.Bootstrap(len(values), uint64(len(values)), func(drawn []int) float64 {
		out := make([]float64, len(drawn))
		for i, at := range drawn {
			out[i] = values[at]
		}
		return f(out)
	})
	v := verdict{Row: row, Test: test, Arm: arm, Value: f(values), Unit: unit, Spread: &iv}
	if !math.IsNaN(bound) {
		v.Gate, v.Verdict = gateWords(bound, true), judge(iv, bound, true)
		if !quiet {
			v.Verdict = "void"
		}
	}
	r.Verdicts = append(r.Verdicts, v)
}
