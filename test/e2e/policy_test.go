//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"weft/test/e2e/cluster"
)

const firstPods = 20

// New pods under a default deny reach whom they may reach with their first packet, and never anybody else.
func TestFirstPacket(t *testing.T) {
	f := newFixture(t, policyCluster(t), 5*time.Minute)
	var may, not []string
	for _, p := range f.streamPods() {
		for _, a := range p.IPs {
			echo := netip.AddrPortFrom(a, 9000).String()
			if p.Name == "neighbour" {
				not = append(not, echo)
				continue
			}
			may, not = append(may, echo), append(not, netip.AddrPortFrom(a, 8080).String())
		}
	}
	for _, family := range f.Families {
		not = append(not, netip.AddrPortFrom(cluster.Outside(family), 80).String())
	}
	f.apply("policy-first.yaml")
	f.apply("first.yaml", "@COUNT@", fmt.Sprint(firstPods), "@MAY@", strings.Join(may, ","), "@NOT@", strings.Join(not, ","))
	f.kubectl("-n", f.ns, "rollout", "status", "deployment/first", "--timeout=120s")
	type report struct {
		Refused, Reached []string
		Tries            int
		Slowest          time.Duration
	}
	reports := map[string]report{}
	f.eventually(30*time.Second, func() error { // until each has tried everything
		for _, p := range f.pods("app=first") {
			out, err := f.Kubectl(f.ctx, "-n", f.ns, "logs", p.Name)
			if err != nil || out == "" {
				return fmt.Errorf("%s has not said anything yet: %v", p.Name, err)
			}
			reports[p.Name+" on "+p.Node] = decode[report](t, out)
		}
		return nil
	})
	tries, slowest := 0, time.Duration(0)
	for name, r := range reports {
		if len(r.Refused)+len(r.Reached) > 0 {
			t.Errorf("%s did not reach %v, and reached %v", name, r.Refused, r.Reached)
		}
		tries += r.Tries
		slowest = max(slowest, r.Slowest)
	}
	if len(reports) != firstPods || tries < firstPods*len(not) {
		t.Errorf("%d pods tried %d times", len(reports), tries)
	}
	t.Logf("%d pods: all that they may reach answered, the slowest after %s; none of %d tries reached anything else", len(reports), slowest.Round(time.Millisecond), tries)
}

// clients starts a good pod and a bad one, which differ by a label, beside the echo pods.
func (f *fixture) clients() (servers []pod) {
	f.Helper()
	servers = f.echoPods()
	f.apply("clients.yaml")
	f.kubectl("-n", f.ns, "wait", "--for=condition=Ready", "pod/good", "pod/bad", "--timeout=60s")
	return servers
}

// expect waits until connections from the client pod to a port of all servers, in both families, succeed or fail as wanted.
func (f *fixture) expect(client string, servers []pod, port uint16, want bool) {
	f.Helper()
	f.eventually(20*time.Second, func() error {
		for _, s := range servers {
			for _, a := range s.IPs {
				to := netip.AddrPortFrom(a, port).String()
				out, err := f.in(client, "/agnhost", "connect", to, "--timeout=1s")
				if (err == nil) != want {
					return fmt.Errorf("from %s to %s on %s, wanted is %t: %s %v", client, to, s.Node, want, out, err)
				}
			}
		}
		return nil
	})
}

// What the upstream suite does not have: ranges of ports.
func TestPolicyPorts(t *testing.T) {
	f := newFixture(t, policyCluster(t), 3*time.Minute)
	servers := f.clients()
	f.apply("ports.yaml", "@PORT@", "8000", "@END@", "8080")
	f.expect("good", servers, 9000, false)
	f.expect("good", servers, 8080, true)
	f.expect("bad", servers, 8080, false)
	f.apply("ports.yaml", "@PORT@", "8081", "@END@", "9000")
	f.expect("good", servers, 8080, false)
	f.expect("good", servers, 9000, true)
	f.kubectl("-n", f.ns, "delete", "networkpolicy", "ports")
	f.expect("bad", servers, 8080, true)
}

// A policy of each language, applied by kubectl, is enforced, and says so where its API has a place for it; one with a mistake
// is shown with the field.
func TestLanguages(t *testing.T) {
	for _, l := range []struct {
		name    string
		status  []string // of which object
		good    string   // what its status says, in JSON
		wrong   []string // the object with the mistake; nil: its kind has no status
		mistake string   // what is said of it
	}{
		{"calico", []string{"tiers.projectcalico.org", "@NAMESPACE@"}, `"type":"Ready"`, nil, "spec.ingress[0].source.nets"},
		{
			"cilium",
			[]string{"ciliumnetworkpolicies.cilium.io", "servers"},
			`"status":"True","type":"Valid"`,
			[]string{"ciliumnetworkpolicies.cilium.io", "wrong"},
			"spec.ingress[0].fromCIDR",
		},
		{
			"antrea",
			[]string{"clusternetworkpolicies.crd.antrea.io", "@NAMESPACE@"},
			`"phase":"Realized"`,
			[]string{"clusternetworkpolicies.crd.antrea.io", "@NAMESPACE@-wrong"},
			"spec.ingress[0].from[0].ipBlock",
		},
	} {
		t.Run(l.name, func(t *testing.T) {
			f := newFixture(t, policyCluster(t), 3*time.Minute)
			servers := f.clients()
			f.expect("bad", servers, 8080, true)
			f.policies("policy-" + l.name + ".yaml")
			f.expect("bad", servers, 8080, false)
			f.expect("good", servers, 9000, false)
			f.expect("good", servers, 8080, true)
			f.status(l.status, l.good)
			f.policies("wrong-" + l.name + ".yaml")
			if l.wrong != nil {
				f.status(l.wrong, l.mistake)
			}
			f.eventually(20*time.Second, func() error {
				out, err := f.Kubectl(f.ctx, "-n", "kube-system", "exec", "daemonset/weft", "--", "weft", "show", "policies")
				if err != nil || !strings.Contains(out, l.mistake) {
					return fmt.Errorf("weft show policies does not name %s: %s %v", l.mistake, out, err)
				}
				return nil
			})
			f.expect("good", servers, 8080, true) // the mistake of one is no other's
		})
	}
}

// policies applies a file of testdata, of which some objects are in no namespace, and deletes it when the test ends.
func (f *fixture) policies(file string) {
	f.Helper()
	m := f.manifest(file)
	f.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := f.KubectlInput(ctx, m, "delete", "--ignore-not-found", "-f", "-"); err != nil {
			f.Error(err)
		}
	})
	if err := f.Apply(f.ctx, m); err != nil {
		f.Fatal(err)
	}
}

// status waits until an object's status has what is wanted.
func (f *fixture) status(object []string, want string) {
	f.Helper()
	f.eventually(30*time.Second, func() error {
		var o struct{ Status map[string]any }
		err := f.Get(f.ctx, &o, object[0], strings.ReplaceAll(object[1], "@NAMESPACE@", f.ns), "-n", f.ns)
		b, _ := json.Marshal(o.Status) // of maps: the keys are in order
		if err != nil || !strings.Contains(string(b), want) {
			return fmt.Errorf("the status of %v is %s, without %s: %v", object, b, want, err)
		}
		return nil
	})
}
