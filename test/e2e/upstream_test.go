//go:build e2e

package e2e

import (
	"bufio"
	"encoding/xml"
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
	focus, err := focusExpression("upstream.txt")
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(f.Dir, "upstream")
	if err := os.MkdirAll(out, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(f.ctx, filepath.Join(f.Bin, "ginkgo"), "--procs=4", "--no-color", "--timeout=12m",
		"--focus="+focus, `--skip=sctp|SCTP`, filepath.Join(f.Bin, "e2e.test"), "--",
		"--kubeconfig="+filepath.Join(f.Dir, "pki", "admin.kubeconfig"), "--kubectl-path="+filepath.Join(f.Bin, "kubectl"),
		"--provider=skeleton", "--num-nodes=3", "--report-dir="+out, "--minStartupPods=0", "--allowed-not-ready-nodes=0",
		"--node-schedulable-timeout=60s", "--dump-logs-on-failure=false")
	cmd.Dir = out
	log, err := os.Create(filepath.Join(out, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	h, err := f.Host(cluster.ControlPlane)
	if err != nil {
		t.Fatal(err)
	}
	runErr := h.Run(cmd)
	cases, err := results(out)
	if err != nil {
		t.Fatal(err)
	}
	passed := 0
	for _, c := range cases {
		switch {
		case c.Skipped != nil || !strings.HasPrefix(c.Name, "[It]"):
		case c.Failure != nil || c.Error != nil:
			t.Errorf("%s", c.Name)
		default:
			passed++
			t.Logf("%5.1fs %s", c.Seconds, c.Name)
		}
	}
	if runErr != nil || passed == 0 {
		b, _ := os.ReadFile(log.Name())
		t.Errorf("%v, %d passed\n%s", runErr, passed, b[max(0, len(b)-20000):])
	}
	t.Logf("%d cases passed", passed)
}

// focusExpression joins the lines of the file, without comments, to one expression.
func focusExpression(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var lines []string
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if l := strings.TrimSpace(sc.Text()); l != "" && l[0] != '#' {
			lines = append(lines, `(\[sig-network\] `+l+")")
		}
	}
	return strings.Join(lines, "|"), nil
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
