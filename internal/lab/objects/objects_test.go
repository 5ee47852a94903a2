package objects

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n"

// wantError fails unless the error contains all the words.
func wantError(t *testing.T, err error, words ...string) {
	t.Helper()
	for _, w := range words {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("error %v does not say %q", err, w)
		}
	}
}

// Many writers add to one object: none of their changes is lost, and no reader sees half a file.
func TestStoreUnderConcurrency(t *testing.T) {
	s, err := New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	objs, err := ParseManifests("test", strings.NewReader(pod))
	if err != nil {
		t.Fatal(err)
	}
	o := objs[0]
	Settle(o, "default")
	Stamp(o)
	if err := s.Put(o); err != nil {
		t.Fatal(err)
	}
	const writers, times = 8, 20
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	all := make(chan error, 1)
	go func() {
		all <- s.Await(ctx, func() (bool, error) {
			pods, err := s.List("Pod")
			if err != nil || len(pods) != 1 || pods[0].GetName() != "a" {
				return false, fmt.Errorf("a reader saw %v, %w", pods, err)
			}
			return len(pods[0].GetLabels()) == writers*times, nil
		})
	}()
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range times {
				err := s.Update(RefOf(o), string(o.GetUID()), func(o *Object) bool {
					ls := o.GetLabels()
					if ls == nil {
						ls = map[string]string{}
					}
					ls[fmt.Sprintf("w%d-%d", w, i)] = "x"
					o.SetLabels(ls)
					return true
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := <-all; err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(s.Path() + "/tmp/*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	// Another object of the same name is not changed in its place.
	err = s.Update(RefOf(o), "another", func(*Object) bool { t.Error("called"); return false })
	if err != nil {
		t.Error(err)
	}
	if err := errors.Join(s.Remove(RefOf(o)), s.Remove(RefOf(o))); err != nil {
		t.Error(err)
	}
	if got, err := s.Get(RefOf(o)); got != nil || err != nil {
		t.Errorf("after remove: %v, %v", got, err)
	}
}

func TestManifestErrors(t *testing.T) {
	for _, c := range []struct {
		text  string
		words []string
	}{
		{"kind: Pod\nmetadata: {name: a}", []string{"test: document 1", "apiVersion"}},
		{"apiVersion: v1\nmetadata: {name: a}", []string{"kind is missing"}},
		{"apiVersion: v1\nkind: Pod", []string{"metadata.name"}},
		{"apiVersion: v1\nkind: Pod\nmetadata: {generateName: a-}", []string{"metadata.generateName"}},
		{"apiVersion: v1\nkind: Pod\nmetadata: {name: ../x}", []string{"metadata.name"}},
		{"apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: a/b}", []string{"metadata.namespace"}},
		{"apiVersion: v1\nkind: ../Pod\nmetadata: {name: a}", []string{"kind"}},
		{"a: 1\na: 2", []string{"document 1", `key "a" already set`}},
		{"{}\n---\n\tx", []string{"document 2"}},
		{"- a", []string{"document 1"}},
	} {
		_, err := ParseManifests("test", strings.NewReader(c.text))
		wantError(t, err, c.words...)
	}
	dir := t.TempDir()
	_, err := ReadManifests(nil, dir, filepath.Join(dir, "none.yaml"))
	wantError(t, err, "no *.yaml", "none.yaml: no such file")
	if err := os.WriteFile(filepath.Join(dir, "a.yml"), []byte(pod), 0o600); err != nil {
		t.Fatal(err)
	}
	objs, err := ReadManifests(strings.NewReader(pod), dir, "-")
	if err != nil || len(objs) != 2 {
		t.Errorf("%v, %v", objs, err)
	}
}

// Policies of all languages are objects like others; kinds of one name in several groups do not overwrite each other.
func TestPolicies(t *testing.T) {
	s, err := New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	objs, err := ParseManifests("test", strings.NewReader(`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: a}
spec: {podSelector: {}}
---
{apiVersion: projectcalico.org/v3, kind: NetworkPolicy, metadata: {name: a}, spec: {selector: all()}}
---
{apiVersion: crd.antrea.io/v1beta1, kind: Tier, metadata: {name: a, namespace: x}, spec: {priority: 20}}
---
{apiVersion: projectcalico.org/v3, kind: Tier, metadata: {name: a}, spec: {order: 20}}
---
{apiVersion: projectcalico.org/v3, kind: StagedGlobalNetworkPolicy, metadata: {name: a}, spec: {selector: all()}}
---
{apiVersion: cilium.io/v2, kind: CiliumCIDRGroup, metadata: {name: a}, spec: {externalCIDRs: [10.0.0.0/8]}}
`))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, o := range objs {
		Settle(o, "default")
		names = append(names, RefOf(o).String())
		is, refused, problem := Policy(o)
		if !is || refused || problem != nil {
			t.Errorf("%s: %v, %v, %v", RefOf(o), is, refused, problem)
		}
		if err := s.Put(o); err != nil {
			t.Fatal(err)
		}
	}
	want := "networkpolicy/default/a networkpolicy.projectcalico.org/default/a tier.crd.antrea.io/a tier.projectcalico.org/a " +
		"stagedglobalnetworkpolicy.projectcalico.org/a ciliumcidrgroup.cilium.io/a"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	if all, err := s.List(""); err != nil || len(all) != len(objs) {
		t.Errorf("%d objects, %v", len(all), err)
	}
	bad := objs[0].DeepCopy()
	bad.Object["spec"] = map[string]any{"podSelector": 7}
	is, refused, problem := Policy(bad)
	if !is || !refused {
		t.Errorf("%v, %v", is, refused)
	}
	wantError(t, problem, "NetworkPolicy.networking.k8s.io default/a", "spec.podSelector")
	if is, _, _ := Policy(&Object{Object: map[string]any{"apiVersion": "v1", "kind": "Pod"}}); is {
		t.Error("a pod is a policy")
	}
}
