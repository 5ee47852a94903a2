package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"weft/internal/api"
	"weft/internal/model"
	"weft/internal/run"
)

// world is a store and a kernel that do at once what they are told, or do not, and network namespaces by path.
type world struct {
	mu     sync.Mutex
	rows   map[string]*model.Endpoint
	kernel map[string]*model.Endpoint
	pods   map[model.Key]*model.Pod
	netns  map[string]string
	refuse error         // of WaitDone, while it is set
	stuck  bool          // nothing goes
	change chan struct{} // closed when something changed
}

func newWorld() *world {
	return &world{
		rows: map[string]*model.Endpoint{}, kernel: map[string]*model.Endpoint{}, pods: map[model.Key]*model.Pod{},
		netns: map[string]string{}, change: make(chan struct{}),
	}
}

func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
	close(w.change)
	w.change = make(chan struct{})
}

func (w *world) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.rows)
}

func (w *world) Upsert(objs ...model.Object) {
	w.set(func() {
		for _, o := range objs {
			w.rows[o.Key().Name] = o.(*model.Endpoint)
		}
	})
}

func (w *world) Delete(keys ...model.Key) {
	w.set(func() {
		for _, k := range keys {
			delete(w.rows, k.Name)
		}
	})
}

func (w *world) Replace(_ model.Kind, objs []model.Object) {
	w.set(func() { clear(w.rows) })
	w.Upsert(objs...)
}

func (w *world) WaitDone(ctx context.Context, k model.Key) error {
	return w.wait(ctx, func() error {
		ep := w.rows[k.Name]
		switch {
		case w.refuse != nil:
			return w.refuse
		case ep == nil:
			return errors.New("nothing is planned for it")
		}
		w.kernel[k.Name] = ep
		return nil
	})
}

func (w *world) WaitGone(ctx context.Context, k model.Key) error {
	return w.wait(ctx, func() error {
		if w.stuck || w.rows[k.Name] != nil {
			return errors.New("podlinks/x is deleting")
		}
		delete(w.kernel, k.Name)
		return nil
	})
}

func (w *world) wait(ctx context.Context, check func() error) error {
	for {
		w.mu.Lock()
		err, change := check(), w.change
		w.mu.Unlock()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-change:
		}
	}
}

func (w *world) Snapshot() model.Snapshot { return w }

func (w *world) Get(k model.Key) model.Object {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p := w.pods[k]; p != nil {
		return p
	}
	return nil
}

func (w *world) All(model.Kind) iter.Seq[model.Object] { return func(func(model.Object) bool) {} }

func (w *world) identify(path string) (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if id := w.netns[path]; id != "" {
		return id, nil
	}
	return "", &os.PathError{Op: "stat", Path: path, Err: fs.ErrNotExist}
}

// open returns a source with a journal in dir.
func (w *world) open(t *testing.T, dir string, change func(*Config)) *Source {
	t.Helper()
	c := Config{Dir: dir, Quarantine: 30 * time.Second, Identify: w.identify, Boot: "b1", Clock: run.System()}
	if change != nil {
		change(&c)
	}
	s, err := New(c, w, w, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Restore(); err != nil {
		t.Fatal(err)
	}
	if err := s.SetPools([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/22"), netip.MustParsePrefix("fd00::/64")}); err != nil {
		t.Fatal(err)
	}
	return s
}

func closing(t *testing.T, s *Source) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// request is the ADD of a pod, whose namespace it makes.
func (w *world) request(pod string) api.AddRequest {
	netns := "/run/netns/" + pod
	w.set(func() { w.netns[netns] = "4:" + pod })
	return api.AddRequest{
		Attachment: api.Attachment{ContainerID: "c-" + pod, IfName: "eth0", Network: "weft", Netns: netns, Started: time.Now()},
		Pod:        api.PodRef{Namespace: "default", Name: pod, UID: "u-" + pod},
	}
}

func wantCode(t *testing.T, err error, code api.Code, words ...string) {
	t.Helper()
	var e *api.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Errorf("got %v (%#v), want code %d", err, e, code)
		return
	}
	for _, word := range words {
		if !strings.Contains(e.Error(), word) {
			t.Errorf("%q does not say %q", e, word)
		}
	}
}

func (w *world) wantKernel(t *testing.T, want ...string) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	var got []string
	for id := range w.kernel {
		got = append(got, id)
	}
	slices.Sort(got)
	if !slices.Equal(got, want) || len(w.rows) != len(want) {
		t.Errorf("the kernel holds %v, with %d rows; want %v", got, len(w.rows), want)
	}
}

func TestAddDel(t *testing.T) {
	w := newWorld()
	s := w.open(t, t.TempDir(), nil)
	defer closing(t, s)
	w.pods[model.PodKey("default", "web")] = &model.Pod{
		PodRef: model.PodRef{Namespace: "default", Name: "web", UID: "u-web"}, WantAddrs: []netip.Addr{netip.MustParseAddr("10.0.0.77")},
		WantMAC: model.MAC{2, 0, 0, 0, 0, 7},
	}
	r := w.request("web")
	r.Ports = []api.PortMapping{{HostPort: 80, ContainerPort: 8080, Protocol: "TCP"}, {ContainerPort: 9}}
	r.Bandwidth = api.Bandwidth{IngressRate: 1000, EgressRate: 2000, EgressBurst: 5}
	got, err := s.Add(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	want := api.AddReply{HostIf: HostIf("c-web/eth0"), HostMAC: "02:77:65:66:74:01", MAC: "02:00:00:00:00:07", IPs: []api.Address{
		{Addr: netip.MustParseAddr("10.0.0.77"), Gateway: netip.MustParseAddr("169.254.1.1")},
		{Addr: netip.MustParseAddr("fd00::1"), Gateway: netip.MustParseAddr("fe80::1")},
	}}
	if !reflect.DeepEqual(got, want) || len(got.HostIf) != 15 {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	ep := w.kernel["c-web/eth0"]
	if fmt.Sprint(ep.HostPorts, ep.Ingress, ep.Egress) != "[*:80/tcp->8080] 1000bit/s 2000bit/s" || ep.Pod.String() != "default/web" {
		t.Errorf("endpoint %+v", ep)
	}
	if again, err := s.Add(t.Context(), r); err != nil || !reflect.DeepEqual(again, got) {
		t.Errorf("second ADD: %+v, %v", again, err)
	}

	for range 2 {
		if err := s.Del(t.Context(), r.Attachment); err != nil {
			t.Fatal(err)
		}
	}
	w.wantKernel(t)
	if h := s.Explain("10.0.0.77"); h[0].State != "quarantined" || h[0].Pod.Name != "web" {
		t.Errorf("%+v", h)
	}
	// A DEL without a start has overtaken nothing.
	r.Started = time.Now()
	if _, err := s.Add(t.Context(), r); err != nil {
		t.Error(err)
	}
}

func TestPodByName(t *testing.T) {
	w := newWorld()
	s := w.open(t, t.TempDir(), nil)
	defer closing(t, s)
	w.pods[model.PodKey("default", "web")] = &model.Pod{
		PodRef: model.PodRef{Namespace: "default", Name: "web", UID: "of a pod that was here before"}, WantAddrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
	}
	s.PodByName = func(_ context.Context, namespace, name string) (*model.Pod, error) {
		return &model.Pod{PodRef: model.PodRef{Namespace: namespace, Name: name}, WantAddrs: []netip.Addr{netip.MustParseAddr("10.0.1.9")}}, nil
	}
	if got, err := s.Add(t.Context(), w.request("web")); err != nil || got.IPs[0].Addr.String() != "10.0.1.9" {
		t.Errorf("%+v, %v", got, err)
	}
	s.PodByName = func(ctx context.Context, _, _ string) (*model.Pod, error) {
		if d, ok := ctx.Deadline(); !ok || time.Until(d) > podWait {
			t.Error("the question has no limit")
		}
		return nil, errors.New("API server away")
	}
	if _, err := s.Add(t.Context(), w.request("db")); err != nil {
		t.Errorf("an unknown pod gets no network: %v", err)
	}
}

func TestRefused(t *testing.T) {
	w := newWorld()
	s := w.open(t, t.TempDir(), nil)
	defer closing(t, s)
	base := w.request("web")
	base.Ports = []api.PortMapping{{HostPort: 80, ContainerPort: 80}}
	if _, err := s.Add(t.Context(), base); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*api.AddRequest)
		code   api.Code
		word   string
	}{
		"container ID":  {func(r *api.AddRequest) { r.ContainerID = "a/b" }, 4, "CNI_CONTAINERID"},
		"no netns":      {func(r *api.AddRequest) { r.Netns = "" }, 4, "CNI_NETNS"},
		"missing netns": {func(r *api.AddRequest) { r.Netns = "/run/netns/none" }, 4, "/run/netns/none"},
		"multicast":     {func(r *api.AddRequest) { r.Addrs = []netip.Addr{netip.MustParseAddr("ff02::1")} }, 7, "ff02::1"},
		"outside":       {func(r *api.AddRequest) { r.Addrs = []netip.Addr{netip.MustParseAddr("192.0.2.1")} }, 7, "10.0.0.0/22"},
		"taken":         {func(r *api.AddRequest) { r.Addrs = []netip.Addr{netip.MustParseAddr("10.0.0.1")} }, 102, "default/web"},
		"MAC":           {func(r *api.AddRequest) { r.MAC = "01:00:00:00:00:00" }, 7, "unicast"},
		"gateway's MAC": {func(r *api.AddRequest) { r.MAC = model.GatewayMAC.String() }, 7, "02:77"},
		"protocol": {func(r *api.AddRequest) {
			r.Ports = []api.PortMapping{{HostPort: 1, ContainerPort: 1, Protocol: "icmp"}}
		}, 7, "protocol"},
		"container port": {func(r *api.AddRequest) { r.Ports = []api.PortMapping{{HostPort: 1}} }, 7, "containerPort"},
		"port twice": {func(r *api.AddRequest) {
			r.Ports = []api.PortMapping{{HostPort: 1, ContainerPort: 1}, {HostPort: 1, ContainerPort: 2}}
		}, 7, "conflict"},
		"port taken":       {func(r *api.AddRequest) { r.Ports = []api.PortMapping{{HostPort: 80, ContainerPort: 1}} }, 102, "default/web"},
		"second interface": {func(r *api.AddRequest) { r.Netns, r.IfName = "/run/netns/web", "net1" }, 7, "default/web (c-web/eth0) has eth0"},
		"another sandbox":  {func(r *api.AddRequest) { r.ContainerID, r.Pod = "c-web", api.PodRef{} }, 7, "/run/netns/web"},
	} {
		r := w.request("other")
		c.change(&r)
		_, err := s.Add(t.Context(), r)
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		t.Run(name, func(t *testing.T) { wantCode(t, err, c.code, c.word) })
	}
	w.wantKernel(t, "c-web/eth0")
	if use := s.Pools().Use[0]; use.Live != 1 {
		t.Errorf("refused ADDs hold addresses: %+v", use)
	}

	// The dead give up what they have.
	w.set(func() { delete(w.netns, "/run/netns/web") })
	r := w.request("other")
	r.Ports = base.Ports
	if _, err := s.Add(t.Context(), r); err != nil {
		t.Errorf("the port of a dead pod: %v", err)
	}
	w.wantKernel(t, "c-other/eth0")
}

// TestEndings: an ADD that cannot be finished leaves nothing, and says whether to try again.
func TestEndings(t *testing.T) {
	leave := func(cancel func()) { cancel() }
	for name, c := range map[string]struct {
		ready  error
		happen func(t *testing.T, w *world, s *Source, a api.Attachment, leave func())
		code   api.Code
		word   string
		wait   time.Duration // how long the ADD takes
	}{
		"deadline, not ready": {ready: errors.New("waiting for source kube"), code: 11, word: "source kube", wait: 20 * time.Second},
		"deadline":            {code: 104, word: "podlinks/x is pending", wait: 20 * time.Second},
		"caller left": {code: 104, word: "pending", happen: func(_ *testing.T, _ *world, _ *Source, _ api.Attachment, cancel func()) {
			leave(cancel)
		}},
		"deleted": {code: 11, word: "DEL", happen: func(t *testing.T, w *world, s *Source, a api.Attachment, _ func()) {
			a.Started = time.Now()
			if err := s.Del(t.Context(), a); err != nil {
				t.Error(err)
			}
			w.wantKernel(t)
		}},
		"namespace gone": {code: 3, word: "gone", wait: 500 * time.Millisecond, happen: func(_ *testing.T, w *world, _ *Source, a api.Attachment, _ func()) {
			w.set(func() { delete(w.netns, a.Netns) })
		}},
		"interface exists": {code: 7, word: "file exists", wait: 500 * time.Millisecond, happen: func(_ *testing.T, w *world, _ *Source, _ api.Attachment, _ func()) {
			w.set(func() { w.refuse = fmt.Errorf("make link weftx: %w", syscall.EEXIST) })
		}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				s := w.open(t, dir, func(cfg *Config) { cfg.Ready = func() error { return c.ready } })
				defer closing(t, s)
				w.set(func() { w.refuse = errors.New("podlinks/x is pending") })
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				begin, done := time.Now(), make(chan error, 1)
				r := w.request("web")
				go func() {
					_, err := s.Add(ctx, r)
					done <- err
				}()
				synctest.Wait()
				if w.count() != 1 {
					t.Fatal("the ADD does not wait")
				}
				if c.happen != nil {
					c.happen(t, w, s, r.Attachment, cancel)
				}
				wantCode(t, <-done, c.code, c.word)
				if d := time.Since(begin); d != c.wait {
					t.Errorf("it took %s, want %s", d, c.wait)
				}
				w.wantKernel(t)
				if use := s.Pools().Use[0]; use.Live != 0 || use.Quarantined != 1 {
					t.Errorf("%+v", use)
				}
				w.set(func() { w.refuse = nil })
				r.Started = time.Now()
				w.set(func() { w.netns[r.Netns] = "4:web" })
				if _, err := s.Add(t.Context(), r); err != nil {
					t.Errorf("the next ADD: %v", err)
				}
			})
		})
	}
}

// TestSlowKernel: an answer does not wait for ever, an address does.
func TestSlowKernel(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.open(t, dir, nil)
		r := w.request("web")
		if _, err := s.Add(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // until it is committed
		w.set(func() { w.stuck = true })
		begin := time.Now()
		if err := s.Del(t.Context(), r.Attachment); err != nil || time.Since(begin) != cleanWait {
			t.Errorf("DEL: %v after %s", err, time.Since(begin))
		}
		if h := s.Explain("10.0.0.1"); h[0].State != "committed" {
			t.Errorf("the address was let go while the kernel still has it: %+v", h)
		}
		// Whatever comes for the same attachment waits its turn.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		r.Started = time.Now()
		_, err := s.Add(ctx, r)
		wantCode(t, err, api.CodeTryAgain, "takes its time")
		w.set(func() { w.stuck = false })
		synctest.Wait()
		if h := s.Explain("10.0.0.1"); h[0].State != "quarantined" {
			t.Errorf("%+v", h)
		}
		w.wantKernel(t)
		if _, err := s.Add(t.Context(), r); err != nil {
			t.Error(err)
		}
		// An agent that ends does not wait for the kernel.
		w.set(func() { w.stuck = true })
		_ = s.Del(t.Context(), r.Attachment)
		closing(t, s)
	})
}

// TestBurst: 250 pods at once, with DELs in between and the same request several times.
func TestBurst(t *testing.T) {
	w := newWorld()
	s := w.open(t, t.TempDir(), nil)
	defer closing(t, s)
	var wg sync.WaitGroup
	for i := range 250 {
		r := w.request(fmt.Sprint("p", i))
		for range 1 + i%3 {
			wg.Go(func() {
				if _, err := s.Add(t.Context(), r); err != nil && i%5 != 0 {
					t.Error(err)
				}
			})
		}
		if i%5 == 0 {
			del := r.Attachment
			del.Started = time.Now()
			wg.Go(func() {
				if err := s.Del(t.Context(), del); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	if len(w.kernel) != 200 || len(w.rows) != 200 || s.Pools().Use[0].Live != 200 || len(s.turns) != 0 {
		t.Errorf("%d links, %d rows, %d turns, %+v; want 200", len(w.kernel), len(w.rows), len(s.turns), s.Pools().Use)
	}
	seen := map[netip.Addr]string{}
	for id, ep := range w.kernel {
		for _, x := range ep.Addrs {
			if seen[x] != "" {
				t.Errorf("%s and %s have %s", seen[x], id, x)
			}
			seen[x] = id
		}
	}
}

// TestRestart: what a new agent makes of what the last one left.
func TestRestart(t *testing.T) {
	dir, runDir := t.TempDir(), t.TempDir()
	w := newWorld()
	s := w.open(t, dir, nil)
	reqs := map[string]api.AddRequest{}
	for _, pod := range []string{"lives", "gone", "other", "deleted", "reused"} {
		reqs[pod] = w.request(pod)
		if _, err := s.Add(t.Context(), reqs[pod]); err != nil {
			t.Fatal(err)
		}
	}
	closing(t, s)
	delete(w.netns, "/run/netns/gone")
	w.netns["/run/netns/other"] = "4:another namespace under the same path"
	bury := func(pod string, started time.Time, name string) {
		a := reqs[pod].Attachment
		a.Started = started
		if name == "" {
			name = a.TombstoneName()
		}
		doc, _ := json.Marshal(a)
		if err := errors.Join(os.MkdirAll(filepath.Join(runDir, api.TombstoneDir), 0o700), os.WriteFile(filepath.Join(runDir, api.TombstoneDir, name), doc, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	bury("deleted", time.Now(), "")
	bury("reused", time.Now().Add(-time.Hour), "") // of an ADD before
	bury("lives", time.Now(), "c-other@eth0")      // forged
	w.kernel["unknown"] = nil
	change := func(c *Config) {
		c.Run = runDir
		c.InUse = func() (map[netip.Addr]string, error) {
			return map[netip.Addr]string{netip.MustParseAddr("10.0.0.1"): "weftlives", netip.MustParseAddr("10.0.3.3"): "weftunknown"}, nil
		}
	}
	s = w.open(t, dir, change)
	defer closing(t, s)
	var rows []string
	for id, ep := range w.rows {
		rows = append(rows, id)
		if !reflect.DeepEqual(ep, w.kernel[id]) {
			t.Errorf("%s: the row is %+v, the kernel has %+v: it would flap", id, ep, w.kernel[id])
		}
	}
	slices.Sort(rows)
	if !slices.Equal(rows, []string{"c-lives/eth0", "c-reused/eth0"}) {
		t.Errorf("rows %v", rows)
	}
	if files, _ := os.ReadDir(filepath.Join(runDir, api.TombstoneDir)); len(files) != 1 || files[0].Name() != "c-other@eth0" {
		t.Errorf("tombstones %v: executed ones go, others stay", files)
	}
	for x, state := range map[string]string{"10.0.0.1": "committed", "10.0.0.2": "quarantined", "10.0.0.3": "quarantined", "10.0.0.4": "quarantined", "10.0.3.3": "suspect"} {
		if h := s.Explain(x); h[0].State != state {
			t.Errorf("%s: %+v, want %s", x, h, state)
		}
	}
	s.Swept()
	if h := s.Explain("10.0.3.3"); h[0].State != "quarantined" {
		t.Errorf("after the sweep: %+v", h)
	}
	// A DEL that was left while an agent hung is executed as well.
	bury("lives", time.Now(), "")
	s.Reap(t.Context())
	if h := s.Explain("10.0.0.1"); h[0].State != "quarantined" {
		t.Errorf("after Reap: %+v", h)
	}
}

func TestDamagedJournal(t *testing.T) {
	dir := t.TempDir()
	w := newWorld()
	s := w.open(t, dir, nil)
	for _, pod := range []string{"a", "b"} {
		if _, err := s.Add(t.Context(), w.request(pod)); err != nil {
			t.Fatal(err)
		}
	}
	closing(t, s)
	path := filepath.Join(dir, "ipam.journal")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/3] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s = w.open(t, dir, nil)
	defer closing(t, s)
	if err := s.Damage(); err == nil || !strings.Contains(err.Error(), "damaged at byte") {
		t.Errorf("damage: %v", err)
	}
	got, err := s.Add(t.Context(), w.request("c"))
	if err != nil || slices.Contains([]string{"10.0.0.1", "10.0.0.2"}, got.IPs[0].Addr.String()) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestGC(t *testing.T) {
	w := newWorld()
	s := w.open(t, t.TempDir(), nil)
	defer closing(t, s)
	for _, pod := range []string{"keep", "stale", "foreign"} {
		r := w.request(pod)
		if pod == "foreign" {
			r.Network = "other"
		}
		if _, err := s.Add(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	_, err := s.GC(t.Context(), api.GCRequest{Network: "weft", Valid: []api.Attachment{{ContainerID: ""}}})
	wantCode(t, err, 4)
	got, err := s.GC(t.Context(), api.GCRequest{Network: "weft", Valid: []api.Attachment{{ContainerID: "c-keep", IfName: "eth0"}}})
	if err != nil || !slices.Equal(got.Released, []string{"c-stale/eth0"}) {
		t.Errorf("%+v, %v", got, err)
	}
	w.wantKernel(t, "c-foreign/eth0", "c-keep/eth0")
}

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		var link error
		s := w.open(t, dir, func(c *Config) { c.CheckLink = func(string) error { return link } })
		defer closing(t, s)
		r := w.request("web")
		got, err := s.Add(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		good := api.CheckRequest{Attachment: r.Attachment, MAC: got.MAC}
		for _, x := range got.IPs {
			good.Addrs = append(good.Addrs, x.Addr)
		}
		if err := s.Check(t.Context(), good); err != nil {
			t.Error(err)
		}
		unknown := good
		unknown.ContainerID = "x"
		wantCode(t, s.Check(t.Context(), unknown), 3, "x/eth0")
		bad := good
		bad.Addrs, bad.MAC = []netip.Addr{netip.MustParseAddr("10.0.0.9"), good.Addrs[0]}, "02:00:00:00:00:00"
		wantCode(t, s.Check(t.Context(), bad), 103, "10.0.0.9, which is not assigned", "fd00::1 is assigned to the attachment and not in prevResult", "MAC")
		link = errors.New("weftx is down")
		w.set(func() { w.refuse = errors.New("routes/10.0.0.1/32: the kernel said no") })
		w.set(func() { w.netns[r.Netns] = "5:other" })
		wantCode(t, s.Check(t.Context(), good), 103, "weftx is down", "routes/10.0.0.1/32", "not the namespace")
	})
}

func TestStatus(t *testing.T) {
	w := newWorld()
	var ready, limited error
	s := w.open(t, t.TempDir(), func(c *Config) {
		c.Ready, c.Limited = func() error { return ready }, func() error { return limited }
	})
	defer closing(t, s)
	if got, err := s.Status(t.Context()); err != nil || len(got.Pools) != 2 {
		t.Errorf("%+v, %v", got, err)
	}
	ready = errors.New("waiting for source kube")
	_, err := s.Status(t.Context())
	wantCode(t, err, 50, "source kube")
	limited = errors.New("bpffs is gone")
	_, err = s.Status(t.Context())
	wantCode(t, err, 51, "bpffs")
	ready, limited = nil, nil
	_ = s.SetPools(nil)
	_, err = s.Status(t.Context())
	wantCode(t, err, 50, "no address pool")
	_ = s.SetPools([]netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")})
	if _, err := s.Add(t.Context(), w.request("web")); err != nil {
		t.Fatal(err)
	}
	_, err = s.Status(t.Context())
	wantCode(t, err, 50, "IPv4")
	_, err = s.Add(t.Context(), w.request("more"))
	wantCode(t, err, 101, "10.0.0.1/32", "default 1")
	w.set(func() { delete(w.netns, "/run/netns/web") })
	if _, err := s.Status(t.Context()); err != nil {
		t.Errorf("a dead pod's address counts as used: %v", err)
	}
}

func TestIdentify(t *testing.T) {
	a, err := identify("/proc/self/ns/net")
	b, err2 := identify("/proc/thread-self/ns/net")
	if err != nil || err2 != nil || a != b || !strings.Contains(a, ":") {
		t.Errorf("%q %v, %q %v", a, err, b, err2)
	}
	for _, path := range []string{"/proc/self/ns/none", t.TempDir(), "/etc/passwd"} {
		if id, err := identify(path); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %q, %v", path, id, err)
		}
	}
}

func TestInstall(t *testing.T) {
	dir := t.TempDir()
	i := Installation{Plugin: filepath.Join(dir, "plugin"), BinDir: filepath.Join(dir, "bin"), ConfDir: filepath.Join(dir, "net.d"), ConfName: "05-weft.conflist", Socket: "/run/weft/weft.sock"}
	if err := Install(i); err == nil {
		t.Error("a missing plugin was installed")
	}
	if _, err := os.Stat(i.ConfDir); err == nil {
		t.Error("a configuration without a plugin")
	}
	write := func(content string) {
		if err := os.WriteFile(i.Plugin, []byte(content), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	bin, conf := filepath.Join(i.BinDir, "weft-cni"), filepath.Join(i.ConfDir, i.ConfName)
	inode := func() uint64 {
		st, err := os.Stat(bin)
		if err != nil || st.Mode() != 0o755 {
			t.Fatalf("%v, %v", st, err)
		}
		return st.Sys().(*syscall.Stat_t).Ino
	}
	write("one")
	if err := Install(i); err != nil {
		t.Fatal(err)
	}
	first := inode()
	if err := Install(i); err != nil || inode() != first {
		t.Errorf("the same plugin was installed again: %v", err)
	}
	held, err := os.Open(bin) // as if it ran
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	write("two")
	if err := Install(i); err != nil || inode() == first {
		t.Errorf("a new plugin was not installed beside the old one: %v", err)
	}
	for d, want := range map[string]int{i.BinDir: 2, i.ConfDir: 1} {
		if files, _ := os.ReadDir(d); len(files) != want {
			t.Errorf("%s: %v", d, files)
		}
	}
	loopback := filepath.Join(i.BinDir, "loopback")
	if target, err := os.Readlink(loopback); err != nil || target != "weft-cni" {
		t.Errorf("a node without the plugin loopback did not get ours: %q, %v", target, err)
	}
	if err := errors.Join(os.Remove(loopback), os.WriteFile(loopback, []byte("theirs"), 0o700), Install(i)); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(loopback); err != nil || string(b) != "theirs" {
		t.Errorf("the node's own plugin loopback was replaced: %q, %v", b, err)
	}
	b, err := os.ReadFile(conf)
	var list struct {
		CNIVersion, Name string
		Plugins          []struct {
			Type, Socket string
			Capabilities map[string]bool
		}
	}
	if err != nil || json.Unmarshal(b, &list) != nil || list.CNIVersion != "1.0.0" || list.Name != NetworkName || len(list.Plugins) != 1 ||
		list.Plugins[0].Type != "weft-cni" || list.Plugins[0].Socket != i.Socket || len(list.Plugins[0].Capabilities) != 4 {
		t.Errorf("%s, %v", b, err)
	}
	for range 2 {
		if err := Remove(i); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(conf); err == nil {
		t.Error("the configuration is still there")
	}
	if inode() == 0 {
		t.Error("the plugin is gone, and running pods' DEL with it")
	}
}
