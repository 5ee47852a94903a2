package main

import (
	"encoding/json"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"weft/internal/bench"
)

func TestJudgeNeedsTheWholeInterval(t *testing.T) {
	for _, c := range []struct {
		iv     bench.Interval
		bound  float64
		atMost bool
		want   string
	}{
		{bench.Interval{Value: 1, Low: .98, High: 1.02}, .97, false, "pass"},
		{bench.Interval{Value: 1, Low: .96, High: 1.02}, .97, false, "unsure"},
		{bench.Interval{Value: .9, Low: .88, High: .96}, .97, false, "FAIL"},
		{bench.Interval{Value: 1, Low: .98, High: 1.02}, 1.05, true, "pass"},
		{bench.Interval{Value: 1, Low: .98, High: 1.10}, 1.05, true, "unsure"},
		{bench.Interval{Value: 1.2, Low: 1.1, High: 1.3}, 1.05, true, "FAIL"},
		{bench.Interval{Value: math.NaN(), Low: math.NaN(), High: math.NaN()}, 1, true, "unsure"},
	} {
		if got := judge(c.iv, c.bound, c.atMost); got != c.want {
			t.Errorf("judge(%+v, %v, at most %v) = %s, want %s", c.iv, c.bound, c.atMost, got, c.want)
		}
	}
}

// rounds makes a report of one test with these per-round rates.
func rounds(byArm map[string][]float64) *report {
	r := &report{}
	for i := range byArm["veth"] {
		values := map[string]float64{}
		for arm, vs := range byArm {
			if vs[i] != 0 {
				values[arm] = vs[i]
			}
		}
		r.add(sameNode, map[string]map[string]map[string]float64{"stream 1cpu IPv4": {"Gbit/s": values}})
	}
	return r
}

func verdictOf(r *report, row, versus string) string {
	for _, v := range r.Verdicts {
		if v.Row == row && v.Versus == versus {
			return v.Verdict
		}
	}
	return "absent"
}

func TestControlVoidsARun(t *testing.T) {
	good := map[string][]float64{
		"veth": {40, 41, 39, 40}, "veth again": {40, 41, 39, 40}, "weft": {40, 41, 39, 40}, "ptp": {30, 31, 29, 30},
	}
	r := rounds(good)
	r.judgeTraffic()
	if got := verdictOf(r, "P1", "veth"); got != "pass" {
		t.Errorf("P1 against veth: %s", got)
	}
	if got := verdictOf(r, "P1", "bridge"); got != "absent" {
		t.Errorf("an arm that did not run has the verdict %s", got)
	}
	good["veth again"] = []float64{42, 43, 41, 42}
	r = rounds(good)
	r.judgeTraffic()
	if got := verdictOf(r, "P1", "veth"); got != "void" {
		t.Errorf("with a control that is 5 %% off: %s", got)
	}
	if got := verdictOf(r, "AA "+sameNode, "veth"); got != "void" {
		t.Errorf("the control itself: %s", got)
	}
}

// A round in which one arm failed must neither shift the others' pairs nor count as zero.
func TestMissingValueKeepsPairs(t *testing.T) {
	r := rounds(map[string][]float64{
		"veth": {10, 20, 30, 40}, "veth again": {10, 20, 30, 40}, "weft": {20, 0, 60, 80},
	})
	s := r.find(sameNode, "stream 1cpu IPv4", "Gbit/s")
	if iv := s.ratio("weft", "veth"); iv.Value != 2 || iv.Low != 2 || iv.High != 2 {
		t.Errorf("ratio %+v of rounds %v", iv, s.Rounds)
	}
	if m := s.median("weft"); m != 60 {
		t.Errorf("median %v", m)
	}
}

func TestReportIsWholeJSON(t *testing.T) {
	r := rounds(map[string][]float64{"veth": {1}, "veth again": {0}})
	r.Time = time.Now()
	r.judgeTraffic() // the control has no value: its ratio is not a number
	path, err := r.write(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var back report
	if err := json.Unmarshal(raw, &back); err != nil || len(back.Series) != 1 || back.Series[0].Rounds["veth"][0] != 1 {
		t.Errorf("%v\n%s", err, raw)
	}
	var table strings.Builder
	if err := r.table(&table); err != nil || !strings.Contains(table.String(), "void") {
		t.Errorf("%v\n%s", err, table.String())
	}
}

func TestQuickYieldsToWhatIsGiven(t *testing.T) {
	o, err := parse([]string{"-quick", "-rounds", "7", "-families", "6,4"})
	if err != nil || o.rounds != 7 || o.pods != 60 || len(o.families) != 2 {
		t.Errorf("%+v, %v", o, err)
	}
	for _, args := range [][]string{{"-rows", "P1,X9"}, {"-places", "3cpu"}, {"-families", "5"}} {
		if _, err := parse(args); err == nil || !strings.Contains(err.Error(), args[0]) {
			t.Errorf("%v: %v", args, err)
		}
	}
}
