//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"weft/test/e2e/binaries"
)

// Kubernetes' own cases of NetworkPolicy pass, all that send packets. They reach pods through services, whose addresses kube-proxy
// translates.
func TestNetpol(t *testing.T) {
	f := newFixture(t, policyCluster(t), 40*time.Minute)
	begin := time.Now()
	f.report(f.ginkgo("netpol", 4, `\[sig-network\] Netpol .*NetworkPolicy between server and client`, "Netpol API"))
	t.Logf("took %s", time.Since(begin).Round(time.Second))
}

// wholeSuites says that sig-network's suites are run with all that they have, and not only with what CI has time for.
func wholeSuites() bool { return os.Getenv("WEFT_E2E_CONFORMANCE") == "all" }

// The conformance suites of sig-network's policies for a whole cluster pass: of ClusterNetworkPolicy, and of
// AdminNetworkPolicy and BaselineAdminNetworkPolicy, which an older release has.
func TestSigNetwork(t *testing.T) {
	for _, s := range []conformance{
		{
			name: "ClusterNetworkPolicy", program: binaries.PolicySuite, test: "TestConformanceProfiles",
			crds: []string{"clusternetworkpolicies"},
			some: "(NamedPort|NodePeers|Integration|PriorityField)",
			args: []string{
				"--conformance-profiles=ClusterNetworkPolicy", "--all-features", "--organization=weft", "--project=weft", "--url=none",
				"--contact=none", "--version=" + versionN, "--additional-info=docs/policy/conformance.md",
			},
		},
		{
			name: "AdminNetworkPolicy", program: binaries.PolicyAlphaSuite, test: "TestConformance",
			crds: []string{"adminnetworkpolicies", "baselineadminnetworkpolicies"},
			some: "(Integration|Priority)",
		},
	} {
		t.Run(s.name, func(t *testing.T) {
			f := newFixture(t, policyCluster(t), 40*time.Minute)
			f.conform(s)
		})
	}
}

// conformance is a suite that is a Go test binary.
type conformance struct {
	name, program, test string
	crds                []string
	some                string // which of its tests CI runs
	args                []string
}

// conform runs the suite and reports what became of each test.
func (f *fixture) conform(s conformance) {
	f.Helper()
	if _, err := binaries.Build(f.ctx, func(what string) { progress("building %s", what) }, s.program); err != nil {
		f.Fatal(err)
	}
	for _, c := range s.crds { // weft adopts those that others made
		f.kubectl("apply", "--server-side", "--force-conflicts", "-f", filepath.Join(f.Bin, s.program+"-crd", c+".yaml"))
		f.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd/"+c+".policy.networking.k8s.io")
	}
	f.eventually(3*time.Minute, func() error { // the suites use the same namespaces, and do not wait until theirs are gone
		out, err := f.Kubectl(f.ctx, "get", "namespaces", "-o", "name")
		if err == nil && strings.Contains(out, "network-policy-conformance") {
			err = fmt.Errorf("a suite before this one has left %s", out)
		}
		return err
	})
	run := "-test.run=^" + s.test + "$"
	if !wholeSuites() {
		run += "/" + s.some
	}
	begin := time.Now()
	cmd := exec.CommandContext(f.ctx, filepath.Join(f.Bin, s.program), append([]string{"-test.v", run}, s.args...)...)
	cmd.Dir, cmd.Env = f.Dir, append(os.Environ(), "KUBECONFIG="+f.Kubeconfig(), "HOME="+f.Dir, "PATH="+f.Bin+":"+os.Getenv("PATH"))
	log, err := os.Create(filepath.Join(f.Dir, s.name+".log")) // a suite takes long: its log can be followed
	if err != nil {
		f.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	err = cmd.Run()
	out, rerr := os.ReadFile(log.Name())
	if rerr != nil {
		f.Fatal(rerr)
	}
	passed, failed := 0, 0
	for _, m := range outcome.FindAllStringSubmatch(string(out), -1) {
		switch verdict, name, seconds := m[1], strings.TrimPrefix(m[2], s.test+"/"), m[3]; {
		case name == s.test:
		case verdict == "FAIL":
			f.Errorf("%6ss FAILED %s", seconds, name)
			failed++
		case verdict == "SKIP":
			f.Logf("%6ss skipped %s", seconds, name)
		default:
			passed++
			f.Logf("%6ss %s", seconds, name)
		}
	}
	if err != nil || failed > 0 || passed == 0 {
		f.Errorf("%v\n%s", err, out[max(0, len(out)-30000):])
	} else if _, report, found := strings.Cut(string(out), "Conformance report:"); found && wholeSuites() {
		f.Logf("%s", report)
	}
	f.Logf("%d passed, %d failed, took %s", passed, failed, time.Since(begin).Round(time.Second))
}

// outcome is how the test binary tells what became of a test.
var outcome = regexp.MustCompile(`(?m)^\s*--- (PASS|FAIL|SKIP): (\S+) \(([\d.]+)s\)`)
