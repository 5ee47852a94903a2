package cache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/run"
	"weft/internal/selector"
	"weft/internal/store"
)

func newStore(t *testing.T) *store.Store {
	t.Helper()
	s, err := store.New(run.System())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func node(name string) *model.Node {
	return &model.Node{
		Name: name, Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}, Labels: map[string]string{"a": "b"}, VTEPMAC: model.MAC{2, 1},
	}
}

// everything is an object of each kind with every field set.
func everything() []model.Object {
	a := netip.MustParseAddr("10.244.1.2")
	return []model.Object{
		node("n1"), &model.Node{Name: "n2", Addrs: []netip.Addr{a}, Labels: map[string]string{}},
		&model.Namespace{Name: "ns", Labels: map[string]string{"env": "prod"}},
		&model.Pod{
			PodRef: model.PodRef{Namespace: "ns", Name: "p", UID: "u"}, Node: "n1", HostNetwork: true, Finished: true,
			Labels: map[string]string{"x": "y", "empty": ""}, Account: "sa", Ports: []model.Port{{Name: "http", Protocol: "tcp", Port: 80}}, Addrs: []netip.Addr{a}, WantAddrs: []netip.Addr{a}, WantMAC: model.MAC{2, 2},
			Ingress: &model.Rate{Bits: 1, Burst: 2}, Egress: &model.Rate{Bits: 3}, Problem: errors.New("pod ns/p: bad"),
		},
		&model.Service{Namespace: "ns", Name: "s", Type: "ClusterIP", Addrs: []netip.Addr{a}, Ports: []model.ServicePort{{Port: model.Port{Name: "x", Protocol: "tcp", Port: 1}, NodePort: 30001}}, ExternalIPs: []netip.Addr{a}, Balancers: []netip.Addr{a}, SourceRanges: []netip.Prefix{netip.PrefixFrom(a, 8)}, Affinity: 3, InternalLocal: true, ExternalLocal: true, HealthPort: 4, Elsewhere: "x"},
		&model.Backends{
			Namespace: "ns", Name: "b", Service: "s", Family: netset.V4, Ports: []model.Port{{Protocol: "udp", Port: 2}},
			Backends: []model.Backend{{Addr: a, Node: "n1", Ready: true, Serving: true, Terminating: true}},
		},
		&model.ServiceAccount{Namespace: "ns", Name: "sa", Labels: map[string]string{"team": "x"}},
		policy("p", math.Inf(1)), &model.Policy{Ref: ref("plain"), Ingress: &model.Section{}},
		&model.Tier{API: model.APICalico, Name: "t", Order: math.Inf(1), Pass: true},
		&model.Group{
			Ref: ref("g"), Members: []model.Peer{{SameLabels: []string{}}, {SameNamespace: true}}, Children: []model.Ref{ref("h")},
			Unsupported: []string{"spec.x"},
		},
		&model.AddressSet{Ref: ref("s"), Labels: selector.Map{"a": "", "@kind": "set"}, Nets: []netip.Prefix{netip.MustParsePrefix("fd00::/8")}},
		&model.HostEndpoint{
			Ref: ref("e"), Node: "n1", Interface: "*", Addrs: []netip.Addr{a}, Labels: selector.Map{"a": "b"},
			Ports: []model.Port{{Name: "x", Protocol: "udp", Port: 1}}, Profiles: []string{"p"},
		},
	}
}

func ref(name string) model.Ref {
	return model.Ref{Group: "projectcalico.org", Kind: "GlobalNetworkPolicy", Namespace: "ns", Name: name}
}

// policy has every field set somewhere, and of those where it matters, nil and empty.
func policy(name string, order float64) *model.Policy {
	e := selector.AllOf(selector.Equal("a", `x":null,"y`), selector.Negate(selector.AnyOf(selector.Exists("b"), selector.NoneOf("c", "d"))))
	group := ref("g")
	return &model.Policy{
		Ref: ref(name), Tier: model.TierRef{API: model.APICalico, Name: "t", Order: order}, Order: order, Tie: "tie", Set: true, Hook: model.HookForward,
		Subject: e, Groups: []model.Ref{group}, Staged: true, Confirm: model.ConfirmAlways, Unsupported: []string{"spec.x"}, Problem: "spec.x: wrong", Part: 2,
		Ingress: &model.Section{Isolates: true, Rules: []model.Rule{
			{},
			{Peers: []model.Peer{}, L4: []model.L4{}, Local: []model.Peer{}},
			{
				Name: `{"Index":0,"Name":null}`, Index: 2, Field: "spec.ingress[2]", Verdict: model.VerdictPass, PassTo: 1e6, Family: netset.V6, Hosts: true,
				Subject: e, Groups: []model.Ref{group}, Log: &model.Log{Prefix: "x"}, Unsupported: "spec.ingress[2].y", Local: []model.Peer{{}},
				Peers: []model.Peer{
					{},
					{Nets: []netip.Prefix{}, NotNets: []netip.Prefix{}, Names: []string{}, SameLabels: []string{}},
					{
						Select: e, NotSelect: &selector.Expr{}, Nets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
						NotNets: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, External: true, Group: &group, SameNamespace: true,
						SameLabels: []string{"k"}, Names: []string{"*.example.com"},
					},
				},
				L4: []model.L4{
					{},
					{
						Proto: model.ProtoAny, NotProto: []int{0, 6}, Ports: []model.PortRange{{First: 0, Last: 65535}, {}}, Named: []string{"http"},
						NotPorts: []model.PortRange{{First: 1, Last: 2}}, NotNamed: []string{"x"}, SrcPorts: []model.PortRange{{First: 3, Last: 3}},
						NotSrcPorts: []model.PortRange{}, Service: "ns/s",
					},
				},
			},
		}},
		Egress: &model.Section{Rules: []model.Rule{}},
	}
}

func TestRoundTrip(t *testing.T) {
	dir, s := t.TempDir(), newStore(t)
	w := s.Writer("kube")
	w.Upsert(everything()...)
	w.Upsert(&model.PathMTU{Node: "n2", MTU: 1400})
	if err := Save(dir, s.Snapshot()); err != nil {
		t.Fatal(err)
	}
	got, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := everything()
	byKey := func(a, b model.Object) int { return strings.Compare(a.Key().String(), b.Key().String()) }
	slices.SortFunc(got, byKey)
	slices.SortFunc(want, byKey)
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || !reflect.DeepEqual(got[i], want[i]) {
			t.Errorf("object %d\n got %+v\nwant %+v", i, got[min(i, len(got)-1)], want[min(i, len(want)-1)])
		}
	}
	if fs, _ := os.ReadDir(dir); len(fs) != 1 {
		t.Errorf("left behind: %v", fs)
	}
	if st, err := os.Stat(filepath.Join(dir, fileName)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	// Every field of every kind survived: a field that is new in the model and lost here fails this.
	for _, o := range want {
		v := reflect.ValueOf(o).Elem()
		for i := range v.NumField() {
			if v.Field(i).IsZero() && !strings.HasSuffix(o.Key().Name, "n2") && !strings.HasSuffix(o.Key().Name, "plain") {
				t.Errorf("%s: the test does not set %s", o.Key(), v.Type().Field(i).Name)
			}
		}
	}
}

func TestNothingSaved(t *testing.T) {
	if objs, err := Load(t.TempDir()); len(objs) != 0 || err != nil {
		t.Errorf("got %v, %v", objs, err)
	}
}

func TestEveryDamageIsFound(t *testing.T) {
	dir, s := t.TempDir(), newStore(t)
	s.Writer("kube").Upsert(everything()...)
	if err := Save(dir, s.Snapshot()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, fileName)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	try := func(what string, raw []byte) {
		t.Helper()
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		objs, err := Load(dir)
		if err == nil && reflect.DeepEqual(raw, whole) {
			return
		}
		if !errors.Is(err, ErrCorrupt) || objs != nil || !strings.Contains(err.Error(), path) {
			t.Fatalf("%s: %d objects, error %v", what, len(objs), err)
		}
		if kept, err := os.ReadFile(path + ".bad"); err != nil || !bytes.Equal(kept, raw) {
			t.Fatalf("%s: not kept aside: %v", what, err)
		}
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("%s: still there", what)
		}
	}
	for n := 0; n < len(whole); n += 13 {
		try(fmt.Sprintf("truncated to %d", n), whole[:n])
		damaged := bytes.Clone(whole)
		damaged[n] ^= 0x01
		try(fmt.Sprintf("bit changed at %d", n), damaged)
	}
	try("another version", bytes.Replace(whole, []byte(`"version":2`), []byte(`"version":1`), 1))
	try("not ours", []byte("hello\nworld\n"))
}

func TestColdStart(t *testing.T) {
	dir := t.TempDir()
	before := newStore(t)
	before.Writer("kube").Upsert(node("n1"), node("gone"))
	if err := Save(dir, before.Snapshot()); err != nil {
		t.Fatal(err)
	}

	s := newStore(t)
	live := s.Writer("kube")
	c := New(dir, "n1", s.Writer(store.CacheSource), slog.New(slog.DiscardHandler))
	if err := c.Restore(); err != nil {
		t.Fatal(err)
	}
	names := func() string {
		var out []string
		for n := range model.All[*model.Node](s.Snapshot(), model.KindNode) {
			out = append(out, n.Name+n.Labels["a"])
		}
		return strings.Join(out, " ")
	}
	if names() != "goneb n1b" || !c.Serving() {
		t.Errorf("without the API server: %s", names())
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Keep(ctx, s.Snapshot, s.WatchKind) }()

	fresh := node("n1")
	fresh.Labels = map[string]string{"a": "fresh"}
	live.Replace(model.KindNode, []model.Object{fresh, node("n3")})
	if names() != "goneb n1fresh n3b" {
		t.Errorf("the live row must win, the others stay until it is complete: %s", names())
	}
	c.Withdraw()
	c.Withdraw()
	if c.Serving() {
		t.Error("serving what was withdrawn")
	}
	file := func() string {
		objs, err := Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, o := range objs {
			out = append(out, o.Key().Name)
		}
		return strings.Join(out, " ")
	}
	eventually(t, func() bool { return names() == "n1fresh n3b" && file() == "n1 n3" })
	live.Delete(model.NodeKey("n3"))
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if file() != "n1" {
		t.Errorf("saved at the end: %s", file())
	}
}

func TestNothingIsSavedBeforeTheLiveSourceIsComplete(t *testing.T) {
	dir, s := t.TempDir(), newStore(t)
	s.Writer("kube").Upsert(node("half"))
	c := New(dir, "n1", s.Writer(store.CacheSource), slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Keep(ctx, s.Snapshot, s.WatchKind); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if fs, _ := os.ReadDir(dir); len(fs) != 0 {
		t.Errorf("saved %v", fs)
	}
}

func TestIdleWritesNothing(t *testing.T) {
	dir, s := t.TempDir(), newStore(t)
	w := s.Writer("kube")
	w.Upsert(node("n1"))
	c := New(dir, "n1", s.Writer(store.CacheSource), slog.New(slog.DiscardHandler))
	c.files[0].save(s.Snapshot())
	path := filepath.Join(dir, fileName)
	inode := func() any {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return st.Sys()
	}
	first := inode()
	w.Upsert(&model.PathMTU{Node: "n2", MTU: 1400}) // not one of ours
	for range 5 {
		c.files[0].save(s.Snapshot())
	}
	if !reflect.DeepEqual(first, inode()) {
		t.Error("written although nothing changed")
	}
	w.Upsert(node("n2"))
	c.files[0].save(s.Snapshot())
	if reflect.DeepEqual(first, inode()) {
		t.Error("a change was not written")
	}
}

// TestKeepFollowsChanges shortens the pause and counts writes by the file's inode.
func TestKeepFollowsChanges(t *testing.T) {
	dir, s := t.TempDir(), newStore(t)
	w := s.Writer("kube")
	w.Upsert(node("n1"))
	c := New(dir, "n1", s.Writer(store.CacheSource), slog.New(slog.DiscardHandler))
	c.files[0].pause = 30 * time.Millisecond
	c.Withdraw()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { _ = c.Keep(ctx, s.Snapshot, s.WatchKind) }()
	has := func(n int) func() bool {
		return func() bool {
			objs, err := Load(dir)
			return err == nil && len(objs) == n
		}
	}
	eventually(t, has(1))
	for i := range 20 {
		w.Upsert(node(fmt.Sprintf("more-%d", i)))
	}
	eventually(t, has(21))
	w.Delete(model.NodeKey("n1"))
	eventually(t, has(20))
}

func TestUnwritableDirectory(t *testing.T) {
	s := newStore(t)
	s.Writer("kube").Upsert(node("n1"))
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := Save(dir, s.Snapshot())
	if err == nil || !strings.Contains(err.Error(), "save the last known objects: ") {
		t.Errorf("got %v", err)
	}
	// It is tried again without a change, as when a disk was full.
	c := New(dir, "n1", s.Writer(store.CacheSource), slog.New(slog.DiscardHandler))
	c.files[0].pause = 20 * time.Millisecond
	c.Withdraw()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Keep(ctx, s.Snapshot, s.WatchKind) }()
	defer func() {
		cancel()
		<-done
	}()
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool {
		objs, err := Load(dir)
		return err == nil && len(objs) == 1
	})
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not happen")
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"kind":"nodes","object":{"Name":"n"}}`))
	f.Add([]byte(`{"kind":"pods","object":{"Name":"n","Problem":"p","WantMAC":"02:00:00:00:00:01","Addrs":["::1"]}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		sum := sha256.Sum256(body)
		head, err := json.Marshal(header{format, version, bytes.Count(body, []byte("\n")) + 1, hex.EncodeToString(sum[:])})
		if err != nil {
			t.Fatal(err)
		}
		objs, err := decode(append(append(head, '\n'), body...))
		for _, o := range objs {
			if err != nil || o == nil {
				t.Fatalf("object %v with error %v", o, err)
			}
			_ = o.Key()
			_ = o.Validate()
		}
	})
}

// TestPeersAreKeptApart: pods of other nodes have a file of their own, which goes when they do.
func TestPeersAreKeptApart(t *testing.T) {
	dir, s := t.TempDir(), newStore(t)
	w := s.Writer("kube")
	pod := func(name, node string) *model.Pod {
		return &model.Pod{PodRef: model.PodRef{Namespace: "ns", Name: name}, Node: node, Labels: map[string]string{}}
	}
	w.Upsert(node("n1"), pod("mine", "n1"), pod("other", "n2"), policy("p", 1))
	c := New(dir, "n1", s.Writer(store.CacheSource), slog.New(slog.DiscardHandler))
	save := func() {
		for _, f := range c.files {
			f.save(s.Snapshot())
		}
	}
	save()
	names := func() string {
		objs, err := Load(dir)
		var out []string
		for _, o := range objs {
			out = append(out, o.Key().String())
		}
		return fmt.Sprint(strings.Join(out, " "), err)
	}
	const own = "nodes/n1 pods/ns/mine policies/projectcalico.org/GlobalNetworkPolicy/ns/p/2"
	if got := names(); got != own+" pods/ns/other<nil>" {
		t.Errorf("loaded %s", got)
	}
	// One file that cannot be used spoils the other: pods without policies would be open.
	peers := filepath.Join(dir, peersName)
	if err := os.WriteFile(peers, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if objs, err := Load(dir); objs != nil || !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), peers) {
		t.Errorf("%v, %v", objs, err)
	}
	w.Delete(model.PodKey("ns", "other"))
	save()
	if got := names(); got != own+"<nil>" {
		t.Errorf("loaded %s", got)
	}
	if _, err := os.Stat(peers); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file of pods of other nodes is there: %v", err)
	}
}

// TestSize measures what pods of other nodes and policies cost on disk and in time.
func TestSize(t *testing.T) {
	const n = 20_000
	dir, s := t.TempDir(), newStore(t)
	var objs []model.Object
	for i := range n {
		objs = append(objs, &model.Pod{
			PodRef: model.PodRef{Namespace: "shop", Name: fmt.Sprintf("web-7d9c5b6f4-%05d", i)}, Node: fmt.Sprintf("worker-%04d", i/100), Account: "default",
			Labels: map[string]string{"app": "web", "pod-template-hash": "7d9c5b6f4"}, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})},
		})
	}
	s.Writer("kube").Upsert(objs...)
	snap, peers := s.Snapshot(), parts("n1")[1]
	began := time.Now()
	size, err := peers.save(dir, snap)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d pods of other nodes: %d bytes each, saved in %s", n, size/n, time.Since(began).Round(time.Millisecond))
	if size/n > 230 {
		t.Errorf("%d bytes a pod", size/n)
	}
	f := file{size: 5 * size, pause: interval}
	if perSecond := float64(f.size) / f.rest().Seconds(); perSecond > rate+1 {
		t.Errorf("100,000 pods: %.0f bytes a second", perSecond)
	}
	one, err := toLine(model.KindPolicy, policy("p", 1))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("a policy with everything: %d bytes", len(one))
	if len(one) > 2500 {
		t.Errorf("%d bytes a policy: %s", len(one), one)
	}
}
