//go:build e2e

package e2e

import (
	"encoding/xml"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/test/e2e/cluster"
)

// The upstream suite's cases that upstream.txt names pass. One of them waits for three minutes: others run meanwhile.
func TestUpstream(t *testing.T) {
	t.Parallel()
	f := newFixture(t, shared, 15*time.Minute)
	focus := f.focus("upstream.txt")
	f.report(f.ginkgo("upstream", 4, focus, `sctp|SCTP`))
}

// ginkgo runs cases of Kubernetes' own suite in the control plane's network, as many at once as procs says, and returns what
// became of all of the suite's cases.
func (f *fixture) ginkgo(name string, procs int, focus, skip string) []testcase {
	f.Helper()
	out := filepath.Join(f.Dir, name)
	if err := os.RemoveAll(out); err != nil { // of a run before this one
		f.Fatal(err)
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		f.Fatal(err)
	}
	cmd := exec.CommandContext(f.ctx, filepath.Join(f.Bin, "ginkgo"), fmt.Sprintf("--procs=%d", procs), "--no-color", "--timeout=30m",
		"--focus="+focus, "--skip="+skip, filepath.Join(f.Bin, "e2e.test"), "--",
		"--kubeconfig="+filepath.Join(f.Dir, "pki", "admin.kubeconfig"), "--kubectl-path="+filepath.Join(f.Bin, "kubectl"),
		"--provider=skeleton", fmt.Sprintf("--num-nodes=%d", f.Nodes), "--report-dir="+out, "--minStartupPods=0", "--allowed-not-ready-nodes=0",
		"--node-schedulable-timeout=60s", "--dump-logs-on-failure=false")
	cmd.Dir = out
	log, err := os.Create(filepath.Join(out, "log"))
	if err != nil {
		f.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	h, err := f.Host(cluster.ControlPlane)
	if err != nil {
		f.Fatal(err)
	}
	runErr := h.Run(cmd)
	cases, err := results(out)
	if err != nil {
		f.Fatal(err)
	}
	if runErr != nil || len(cases) == 0 {
		b, _ := os.ReadFile(log.Name())
		f.Errorf("%v\n%s", runErr, b[max(0, len(b)-20000):])
	}
	return cases
}

// report logs every case that ran with its time, fails the test for those that failed, and returns the others' number.
func (f *fixture) report(cases []testcase) (passed int) {
	f.Helper()
	for _, c := range cases {
		switch {
		case c.Skipped != nil || !strings.HasPrefix(c.Name, "[It]"):
		case c.Failure != nil || c.Error != nil:
			f.Errorf("%5.1fs FAILED %s", c.Seconds, c.Name)
		default:
			passed++
			f.Logf("%5.1fs %s", c.Seconds, c.Name)
		}
	}
	if passed == 0 {
		f.Error("no case passed")
	}
	f.Logf("%d cases passed", passed)
	return passed
}

// focus joins the lines of the file, without comments, to one expression.
func (f *fixture) focus(file string) string {
	f.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		f.Fatal(err)
	}
	var lines []string
	for l := range strings.Lines(string(b)) {
		if l = strings.TrimSpace(l); l != "" && l[0] != '#' {
			lines = append(lines, `(\[sig-network\] `+l+")")
		}
	}
	return strings.Join(lines, "|")
}

type testcase struct {
	Name    string    `xml:"name,attr"`
	Seconds float64   `xml:"time,attr"`
	Failure *struct{} `xml:"failure"`
	Error   *struct{} `xml:"error"`
	Skipped *struct{} `xml:"skipped"`
}

// results reads the JUnit reports of a directory.
func results(dir string) ([]testcase, error) {
	files, err := filepath.Glob(filepath.Join(dir, "junit*.xml"))
	if err != nil {
		return nil, err
	}
	var all []testcase
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var r struct {
			Suites []struct {
				Cases []testcase `xml:"testcase"`
			} `xml:"testsuite"`
		}
		if err := xml.Unmarshal(b, &r); err != nil {
			return nil, err
		}
		for _, s := range r.Suites {
			all = append(all, s.Cases...)
		}
	}
	return all, nil
}
