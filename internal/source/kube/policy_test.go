package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"weft/internal/convert/language"
	"weft/internal/model"
	"weft/internal/run"
	"weft/internal/store"
)

// policed is a source with policy that writes to a real store.
type policed struct {
	*Source
	t        *testing.T
	store    *store.Store
	complete chan struct{}

	mu      sync.Mutex
	reports []string // guarded by mu
}

func startPolicy(t *testing.T, cfg *rest.Config, node string, writes ...string) *policed {
	t.Helper()
	st, err := store.New(run.System())
	if err != nil {
		t.Fatal(err)
	}
	p := &policed{t: t, store: st, complete: make(chan struct{})}
	o := Options{
		Node: node, Kinds: []model.Kind{model.KindNode, model.KindPod},
		Report: func(what, action string) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.reports = append(p.reports, what+": "+action)
		},
		Policy: &Policy{
			Languages: writes, Realized: func(context.Context) error { return nil },
			Writer: func(watch string) PolicyWriter { return st.Writer("kube/" + watch) },
		},
	}
	if p.Source, err = New(cfg, o, st.Writer("kube"), func() { close(p.complete) }, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	p.linger = 50 * time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
		_ = st.Close()
	})
	return p
}

// state is what the store holds, but for nodes; what is not used in brackets.
func (p *policed) state() string {
	var out []string
	for _, k := range model.Kinds() {
		if k == model.KindNode {
			continue
		}
		for _, i := range p.store.Intents(k) {
			name := i.Object.Key().String()
			if i.Problem != nil {
				name = "[" + name + "]"
			}
			out = append(out, name)
		}
	}
	return strings.Join(out, " ")
}

// await waits for the state.
func (p *policed) await(want ...string) {
	p.t.Helper()
	p.until(strings.Join(want, " "), func() bool { return p.state() == strings.Join(want, " ") })
}

func (p *policed) until(what string, ok func() bool) {
	p.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			p.t.Fatalf("waited for %s\nhave %s\nwatches %q\nproblems %q", what, p.state(), p.names(), p.Problems())
		}
		intent, _ := p.store.Watch()
		select {
		case <-intent:
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// names lists the watches.
func (p *policed) names() string {
	p.Source.mu.Lock()
	defer p.Source.mu.Unlock()
	var out []string
	for name := range p.watches {
		out = append(out, name)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func (p *policed) report() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.reports, "\n")
}

func netpol(name string) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec:       networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{"Ingress"}},
	}
}

// object reads YAML.
func object(text string) *unstructured.Unstructured {
	o := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(text), &o.Object); err != nil {
		panic(err)
	}
	return o
}

// definition is one with the versions that the fake serves.
func definition(name, versions string) *unstructured.Unstructured {
	return object(fmt.Sprintf("apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: %s, annotations: {versions: %q}}", name, versions))
}

const (
	basic   = "customresourcedefinitions, networkpolicies.networking.k8s.io, nodes, pods"
	wider   = "customresourcedefinitions, namespaces, networkpolicies.networking.k8s.io, nodes, pods, pods of other nodes"
	knpA    = "policies/networking.k8s.io/NetworkPolicy/default/a"
	mine    = "pods/default/mine"
	other   = "pods/default/other"
	nsMain  = "namespaces/default"
	antrea  = "tiers.crd.antrea.io"
	tierOps = "apiVersion: crd.antrea.io/v1beta1\nkind: Tier\nmetadata: {name: ops}\nspec: {priority: 20}"
)

func cluster(f *fakeAPI) {
	f.set(node("n1", "10.244.1.0/24"), node("n2", "10.244.2.0/24"), pod("mine", "n1"), pod("other", "n2"), pod("pending", ""),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "default"}},
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: corev1.ServiceSpec{ClusterIPs: []string{"10.96.0.1"}}},
		&discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web-1"}, AddressType: "IPv4"})
}

// TestLook: services are watched while somebody looks, and no longer.
func TestLook(t *testing.T) {
	variants(t, func(t *testing.T, f *fakeAPI) {
		cluster(f)
		p := startPolicy(t, f.config(), "n1")
		awaitClosed(t, p.complete)
		p.await(mine)
		err := p.Look(t.Context(), func() error {
			p.await(mine, "services/default/web", "backends/default/web-1")
			return errors.New("seen")
		})
		if err == nil || err.Error() != "seen" {
			t.Errorf("%v", err)
		}
		p.await(mine)
		p.until("the watches of the start", func() bool { return p.names() == basic })
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := p.Look(ctx, func() error { return errors.New("called") }); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
}

// TestWatchesFollowPolicies counts watches: without a policy there are no more than those of policies themselves.
func TestWatchesFollowPolicies(t *testing.T) {
	variants(t, func(t *testing.T, f *fakeAPI) {
		cluster(f)
		p := startPolicy(t, f.config(), "n1")
		awaitClosed(t, p.complete)
		p.await(mine)
		if p.names() != basic {
			t.Errorf("watches without a policy: %s", p.names())
		}
		p.SetServices(true) // nobody needs them yet
		f.set(netpol("a"))
		p.await(nsMain, mine, other, "services/default/web", knpA)
		p.SetServices(false)
		p.await(nsMain, mine, other, knpA)
		p.until("no watch of services", func() bool { return p.names() == wider })

		late := pod("late", "n2")
		f.set(late)
		p.await(nsMain, "pods/default/late", mine, other, knpA)
		late.Status.Phase = corev1.PodSucceeded
		f.set(late)
		p.await(nsMain, mine, other, knpA)

		f.remove(netpol("a"))
		p.await(mine)
		p.until("the watches of the start", func() bool { return p.names() == basic })
		if n := f.count("pods?"); f.watchList && n != 2 {
			t.Errorf("%d requests for pods, want the node's and the others'", n)
		}
		if p.report() != "" {
			t.Errorf("reported %s", p.report())
		}
	})
}

// TestCompleteMeansPoliciesAreKnown: what a policy needs is there before the source is complete, and before the policy is.
func TestCompleteMeansPoliciesAreKnown(t *testing.T) {
	f := newFake(t)
	cluster(f)
	f.set(netpol("a"), definition(antrea, "v1alpha1 v1beta1"), object(tierOps))
	p := startPolicy(t, f.config(), "n1")
	awaitClosed(t, p.complete)
	if got, want := p.state(), strings.Join([]string{nsMain, mine, other, knpA, "tiers/antrea/ops"}, " "); got != want {
		t.Errorf("when complete: %s\nwant %s", got, want)
	}
}

// TestLocalPodsStay: when pods of other nodes come and go, this node's are not touched.
func TestLocalPodsStay(t *testing.T) {
	f := newFake(t)
	cluster(f)
	p := startPolicy(t, f.config(), "n1")
	awaitClosed(t, p.complete)
	stop := make(chan struct{})
	var lost sync.WaitGroup
	lost.Go(func() {
		for {
			intent, _ := p.store.Watch()
			if p.store.Snapshot().Get(model.PodKey("default", "mine")) == nil {
				t.Error("the local pod was lost")
				return
			}
			select {
			case <-stop:
				return
			case <-intent:
			}
		}
	})
	for range 5 {
		f.set(netpol("a"))
		p.await(nsMain, mine, other, knpA)
		f.remove(netpol("a"))
		p.await(mine)
	}
	// A pod that is bound to this node leaves the watch of the others.
	f.set(netpol("a"), pod("pending", "n1"))
	p.await(nsMain, mine, other, "pods/default/pending", knpA)
	close(stop)
	lost.Wait()
}

// TestNeedsOfPolicies: service accounts and backends are watched for the policies that look at them.
func TestNeedsOfPolicies(t *testing.T) {
	f := newFake(t)
	cluster(f)
	const calico = "globalnetworkpolicies.projectcalico.org"
	f.set(definition(calico, "v3"))
	p := startPolicy(t, f.config(), "n1")
	awaitClosed(t, p.complete)
	gnp := func(name, rule string) *unstructured.Unstructured {
		return object("apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: " + name + "}\nspec: {selector: all(), egress: [{action: Allow, " + rule + "}]}")
	}
	key := func(name string) string { return "policies/projectcalico.org/GlobalNetworkPolicy//" + name }
	f.set(gnp("a", "destination: {serviceAccounts: {selector: 'team == \"x\"'}}"))
	p.await(nsMain, mine, other, "serviceaccounts/default/default", key("a"))
	f.set(gnp("b", "destination: {services: {name: web, namespace: default}}"))
	p.await(nsMain, mine, other, "backends/default/web-1", "serviceaccounts/default/default", key("a"), key("b"))
	f.remove(gnp("a", ""))
	p.await(nsMain, mine, other, "backends/default/web-1", key("b"))
	f.remove(gnp("b", ""))
	p.await(mine)
}

// TestDefinitionsComeAndGo: an API is watched while it has a definition.
func TestDefinitionsComeAndGo(t *testing.T) {
	f := newFake(t)
	cluster(f)
	p := startPolicy(t, f.config(), "n1")
	awaitClosed(t, p.complete)
	f.mu.Lock()
	f.withheld = true // a new definition is not served at once
	f.mu.Unlock()
	f.set(definition(antrea, "v1alpha1"), definition("certificates.cert-manager.io", "v1"), object(tierOps))
	p.until("a watch that is not served", func() bool { return f.count("/apis/crd.antrea.io/") > 2 })
	f.mu.Lock()
	f.withheld = false
	f.mu.Unlock()
	p.await(mine, "tiers/antrea/ops")
	if p.names() != strings.ReplaceAll(basic, "pods", "pods, "+antrea) {
		t.Errorf("watches %s", p.names())
	}
	f.remove(definition(antrea, ""))
	p.await(mine)
	p.until("the watches of the start", func() bool { return p.names() == basic })
	if f.count("cert-manager") != 0 {
		t.Error("somebody else's definition was looked at")
	}
}

// TestDefinitionThatIsNeverServed does not keep the agent from being ready.
func TestDefinitionThatIsNeverServed(t *testing.T) {
	if testing.Short() {
		t.Skip("waits ten seconds")
	}
	t.Parallel()
	f := newFake(t)
	cluster(f)
	f.set(definition(antrea, ""))
	p := startPolicy(t, f.config(), "n1")
	awaitClosed(t, p.complete)
	if got := p.report(); !strings.Contains(got, "CustomResourceDefinition tiers.crd.antrea.io is there, but the API server does not serve it") {
		t.Errorf("reported %q", got)
	}
	if p.Away() {
		t.Error("the API server counts as away")
	}
}

// TestPartsComeAndGoTogether: one object of Cilium's is several policies.
func TestPartsComeAndGoTogether(t *testing.T) {
	f := newFake(t)
	cluster(f)
	f.set(definition("ciliumnetworkpolicies.cilium.io", "v2"))
	p := startPolicy(t, f.config(), "n1")
	awaitClosed(t, p.complete)
	cnp := func(specs ...string) *unstructured.Unstructured {
		return object("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: a, namespace: default}\nspecs: [" + strings.Join(specs, ", ") + "]")
	}
	const spec, base = "{endpointSelector: {}, ingress: [{fromEntities: [world]}]}", "policies/cilium.io/CiliumNetworkPolicy/default/a"
	f.set(cnp(spec, spec, spec))
	p.await(nsMain, mine, other, base, base+"/1", base+"/2")
	f.set(cnp(spec, spec))
	p.await(nsMain, mine, other, base, base+"/1")
	f.remove(cnp())
	p.await(mine)
}

// TestRefusedPolicies: what is not understood is shown with the reason, and the last version stays where there is one.
func TestRefusedPolicies(t *testing.T) {
	for name, bad := range map[string]struct{ crd, versions, yaml, ref, key, field string }{
		"kubernetes": {
			yaml: "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy", ref: "NetworkPolicy.networking.k8s.io default/x",
			key: "policies/networking.k8s.io/NetworkPolicy/default/x", field: `spec.podSelector.matchExpressions[0]: operator "Near" is not one of`,
		},
		"sig-network": {
			crd: "clusternetworkpolicies.policy.networking.k8s.io", versions: "v1alpha2", field: "spec.subject",
			yaml: "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nspec: {tier: Admin, priority: 1, subject: {x: 1}}",
			ref:  "ClusterNetworkPolicy.policy.networking.k8s.io x", key: "policies/policy.networking.k8s.io/ClusterNetworkPolicy//x",
		},
		"calico": {
			crd: "globalnetworkpolicies.projectcalico.org", versions: "v3", field: "spec.selector",
			yaml: "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nspec: {selector: 'a =='}",
			ref:  "GlobalNetworkPolicy.projectcalico.org x", key: "policies/projectcalico.org/GlobalNetworkPolicy//x",
		},
		"cilium": {
			crd: "ciliumnetworkpolicies.cilium.io", versions: "v2", field: "endpointSelector",
			yaml: "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nspec: {endpointSelector: {matchExpressions: [{key: a, operator: Near}]}}",
			ref:  "CiliumNetworkPolicy.cilium.io default/x", key: "policies/cilium.io/CiliumNetworkPolicy/default/x",
		},
		"antrea": {
			crd: "tiers.crd.antrea.io", versions: "v1beta1", field: "spec.priority",
			yaml: "apiVersion: crd.antrea.io/v1beta1\nkind: Tier\nspec: {priority: 220}", ref: "Tier.crd.antrea.io x", key: "tiers/antrea/x",
		},
		"aws": {
			crd: "applicationnetworkpolicies.networking.k8s.aws", versions: "v1alpha1", field: "spec.podSelector",
			yaml: "apiVersion: networking.k8s.aws/v1alpha1\nkind: ApplicationNetworkPolicy\nspec: {podSelector: 1}",
			ref:  "ApplicationNetworkPolicy.networking.k8s.aws default/x", key: "policies/networking.k8s.aws/ApplicationNetworkPolicy/default/x",
		},
		"gke": {
			crd: "fqdnnetworkpolicies.networking.gke.io", versions: "v1alpha3", field: "spec.podSelector",
			yaml: "apiVersion: networking.gke.io/v1alpha3\nkind: FQDNNetworkPolicy\nspec: {podSelector: 1}",
			ref:  "FQDNNetworkPolicy.networking.gke.io default/x", key: "policies/networking.gke.io/FQDNNetworkPolicy/default/x",
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			cluster(f)
			if bad.crd != "" {
				f.set(definition(bad.crd, bad.versions))
			}
			o := object(bad.yaml)
			o.SetName("x")
			if strings.Contains(bad.ref, "/") {
				o.SetNamespace("default")
			}
			if bad.crd != "" {
				f.set(o)
			} else {
				knp := netpol("x")
				knp.Spec.PodSelector.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Near"}}
				f.set(knp)
			}
			p := startPolicy(t, f.config(), "n1")
			awaitClosed(t, p.complete)
			p.await(mine, "["+bad.key+"]")
			var problem error
			for _, i := range append(p.store.Intents(model.KindPolicy), p.store.Intents(model.KindTier)...) {
				problem = i.Problem
			}
			for _, said := range []string{problem.Error(), p.report(), strings.Join(p.Problems(), "\n")} {
				if !strings.HasPrefix(said, bad.ref+": ") || !strings.Contains(said, bad.field) {
					t.Errorf("%q does not name %s and %s", said, bad.ref, bad.field)
				}
			}
			if p.names() != basic && bad.crd == "" {
				t.Errorf("a policy that is not used made these watches: %s", p.names())
			}
		})
	}
}

// TestLastVersionOfAPolicyStays where the next one is not understood.
func TestLastVersionOfAPolicyStays(t *testing.T) {
	f := newFake(t)
	cluster(f)
	p := startPolicy(t, f.config(), "n1")
	awaitClosed(t, p.complete)
	f.set(netpol("a"))
	p.await(nsMain, mine, other, knpA)
	bad := netpol("a")
	bad.Spec.PodSelector.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Near"}}
	f.set(bad, netpol("b"))
	p.await(nsMain, mine, other, knpA, "policies/networking.k8s.io/NetworkPolicy/default/b")
	if len(p.Problems()) != 1 {
		t.Errorf("problems %q", p.Problems())
	}
	f.set(netpol("a"))
	p.until("no problem", func() bool { return len(p.Problems()) == 0 })

	// Partly understood: used, and reported.
	part := netpol("c")
	part.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: "x"}}}}}
	f.set(part)
	p.until("a problem", func() bool { return len(p.Problems()) == 1 })
	p.await(nsMain, mine, other, knpA, "policies/networking.k8s.io/NetworkPolicy/default/b", "policies/networking.k8s.io/NetworkPolicy/default/c")
	if got := p.report(); !strings.Contains(got, "spec.ingress[0].from[0].ipBlock") || !strings.HasSuffix(got, "used without what was not understood") {
		t.Errorf("reported %q", got)
	}
	// A policy that was refused and is right now is used.
	bad.Name = "d"
	f.set(bad)
	p.until("refused", func() bool {
		return strings.Contains(p.state(), "[policies/networking.k8s.io/NetworkPolicy/default/d]")
	})
	f.set(netpol("d"))
	p.until("used", func() bool {
		return strings.HasSuffix(p.state(), " policies/networking.k8s.io/NetworkPolicy/default/d")
	})
	f.set(bad)
	f.remove(bad)
	p.until("gone", func() bool { return !strings.Contains(p.state(), "default/d") })
}

// TestPoliciesSurviveAnOutage: what is gone when the API server comes back goes, and nothing else does.
func TestPoliciesSurviveAnOutage(t *testing.T) {
	variants(t, func(t *testing.T, f *fakeAPI) {
		cluster(f)
		f.set(netpol("a"), netpol("b"), definition(antrea, "v1beta1"), object(tierOps))
		p := startPolicy(t, f.config(), "n1")
		awaitClosed(t, p.complete)
		f.fail(func(w http.ResponseWriter) { w.WriteHeader(http.StatusServiceUnavailable) })
		f.remove(netpol("b"), definition(antrea, ""), pod("other", ""))
		f.compact()
		f.fail(nil)
		p.await(nsMain, mine, knpA)
	})
}

// TestCalicosTwoGroups: both are read, and of two tiers with one name the new group's counts.
func TestCalicosTwoGroups(t *testing.T) {
	f := newFake(t)
	cluster(f)
	tier := func(apiVersion string, order int) *unstructured.Unstructured {
		return object(fmt.Sprintf("apiVersion: %s\nkind: Tier\nmetadata: {name: ops}\nspec: {order: %d}", apiVersion, order))
	}
	f.set(definition("tiers.projectcalico.org", "v3"), definition("tiers.crd.projectcalico.org", "v1"), tier("projectcalico.org/v3", 3), tier("crd.projectcalico.org/v1", 1))
	p := startPolicy(t, f.config(), "n1")
	awaitClosed(t, p.complete)
	order := func() float64 {
		if tier := model.Get[*model.Tier](p.store.Snapshot(), model.TierKey("calico", "ops")); tier != nil {
			return tier.Order
		}
		return 0
	}
	if order() != 3 {
		t.Errorf("order %v", order())
	}
	f.remove(tier("projectcalico.org/v3", 3))
	p.until("the old one", func() bool { return order() == 1 })
}

// TestManifestAllowsEveryWatch: the committed manifest lets the agents read every kind.
func TestManifestAllowsEveryWatch(t *testing.T) {
	b, err := os.ReadFile("../../../deploy/weft.yaml")
	if err != nil {
		t.Fatal(err)
	}
	allowed := map[string]bool{}
	for _, doc := range strings.Split(string(b), "\n---\n") {
		var o struct {
			Rules []struct{ APIGroups, Resources, Verbs []string }
		}
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			t.Fatal(err)
		}
		for _, r := range o.Rules {
			if !slices.Equal(r.Verbs, []string{"list", "watch"}) {
				t.Errorf("without languages the agents may %s %s", r.Verbs, r.Resources)
			}
			for _, g := range r.APIGroups {
				for _, res := range r.Resources {
					allowed[g+"/"+res] = true
				}
			}
		}
	}
	want := []string{"apiextensions.k8s.io/customresourcedefinitions"}
	for _, k := range language.Kinds() {
		want = append(want, k.Type.Group+"/"+k.Plural)
	}
	for _, k := range Kinds() {
		r, err := coreResource(k, "")
		if err != nil {
			t.Fatal(err)
		}
		at := place(r.forms[0].path)
		want = append(want, at.group+"/"+at.res)
	}
	for _, w := range want {
		if !allowed[w] {
			t.Errorf("%s may not be read", w)
		}
	}
}
