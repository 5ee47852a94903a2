package lab

import (
	"strings"
	"testing"

	"weft/internal/lab/objects"
	"weft/internal/netset"
)

// testLab is a lab on disk whose hosts do not run.
func testLab(t *testing.T, o Options) *Lab {
	t.Helper()
	t.Setenv("WEFT_LAB_DIR", t.TempDir())
	o.SetDefaults()
	if err := o.Validate(); err != nil {
		t.Fatal(err)
	}
	l := &Lab{dir: Dir(o.Name), opts: o}
	if err := l.claim(); err != nil {
		t.Fatal(err)
	}
	if err := l.putNodes(o.nodes()); err != nil {
		t.Fatal(err)
	}
	return l
}

func parse(t *testing.T, manifest string) []*objects.Object {
	t.Helper()
	objs, err := objects.ParseManifests("test", strings.NewReader(manifest))
	if err != nil {
		t.Fatal(err)
	}
	return objs
}

// wantError fails unless the error contains all the words.
func wantError(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one with %q", words)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
}

func TestOptions(t *testing.T) {
	var o Options
	o.SetDefaults()
	if err := o.Validate(); err != nil || o.Nodes != 3 || o.IPFamily != "46" {
		t.Errorf("defaults: %+v, %v", o, err)
	}
	bad := Options{Name: "Up Per", Nodes: 201, MTU: []int{500}, Subnets: 300, IPFamily: "5", Backend: "tcp"}
	wantError(t, bad.Validate(), `name: "Up Per"`, "nodes: 201", "mtu: 500", "subnets: 300", `ip-family: "5"`, `backend: "tcp"`)
	wantError(t, (&Options{Name: "a", Nodes: 2, MTU: []int{1500}, Subnets: 3, IPFamily: "4", Backend: "vxlan"}).Validate(), "subnets: 3", "1..2")
}

// Every node has addresses and pods' prefixes of its own, in the lab's families.
func TestPlan(t *testing.T) {
	o := Options{Nodes: 200, Subnets: 3, MTU: []int{9000, 1400}, IPFamily: "64"}
	o.SetDefaults()
	seen := map[string]string{}
	for i, n := range o.nodes() {
		for _, p := range n.addrs() {
			if was, dup := seen[p.Addr().String()]; dup {
				t.Errorf("%s: %s is also %s's", n.Name, p, was)
			}
			seen[p.Addr().String()] = n.Name
		}
		for j, p := range n.podCIDRs() {
			if p != p.Masked() || !netset.Covers(clusterCIDRs()[j], p) {
				t.Errorf("%s: pod CIDR %s", n.Name, p)
			}
			if was, dup := seen[p.String()]; dup {
				t.Errorf("%s: %s is also %s's", n.Name, p, was)
			}
			seen[p.String()] = n.Name
		}
		if want := i%3 + 1; n.Subnet != want || n.MTU != o.MTU[(want-1)%2] {
			t.Errorf("%s: subnet %d, MTU %d", n.Name, n.Subnet, n.MTU)
		}
	}
	got := prefixesOf(o.families(), o.nodes()[0].podCIDRs()...)
	if len(got) != 2 || !got[0].Addr().Is6() {
		t.Errorf("families 64: %v", got)
	}
}

func TestOpenAndClaim(t *testing.T) {
	l := testLab(t, Options{Name: "one", Nodes: 2})
	if got, err := Open(""); err != nil || got.Name() != "one" {
		t.Errorf("the only lab: %v, %v", got, err)
	}
	again := Options{Name: "one", Nodes: 1}
	again.SetDefaults()
	l2 := &Lab{dir: l.dir, opts: again}
	if err := l2.claim(); err != nil || l2.opts.Nodes != 2 {
		t.Errorf("claim of fewer nodes: %d nodes, %v", l2.opts.Nodes, err)
	}
	again.Backend = "direct"
	wantError(t, (&Lab{dir: l.dir, opts: again}).claim(), "other options", "--backend vxlan", "weft lab down --name one")
	_, err := Open("two")
	wantError(t, err, `"two"`, "weft lab list")
	other := Options{Name: "two"}
	other.SetDefaults()
	if err := (&Lab{dir: Dir("two"), opts: other}).claim(); err != nil {
		t.Fatal(err)
	}
	_, err = Open("")
	wantError(t, err, "several labs", "one, two")
}

func TestAgentConfig(t *testing.T) {
	l := testLab(t, Options{Name: "c", Config: map[string]any{
		"nodeName": "mine", "backend": map[string]any{"port": 4789}, "masquerade": map[string]any{"disabled": true},
	}})
	got, _, err := l.agentConfig(l.opts.nodes()[1])
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"nodeName: node2", "port: 4789", "type: vxlan", "disabled: true", "type: file", "10.244.0.0/16"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
	l.opts.Config = map[string]any{"backend": map[string]any{"typo": 1}}
	_, _, err = l.agentConfig(l.opts.nodes()[0])
	wantError(t, err, "agent configuration", "typo")
	l.opts.Config = map[string]any{"mtu": 10}
	_, _, err = l.agentConfig(l.opts.nodes()[0])
	wantError(t, err, "mtu: 10")
}
