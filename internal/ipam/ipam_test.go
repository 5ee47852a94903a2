package ipam_test

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"weft/internal/ipam"
	"weft/internal/model"
	"weft/internal/run"
)

func prefixes(s ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func addrs(s ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func request(ns, pod string, want ...string) ipam.Request {
	id := ns + pod + "-container/eth0"
	return ipam.Request{
		Network: "weft", NetnsID: "4:" + id,
		Endpoint: model.Endpoint{
			ID: id, Pod: model.PodRef{Namespace: ns, Name: pod, UID: "u-" + pod}, Netns: "/run/netns/" + pod,
			IfName: "eth0", HostIf: "weft" + pod, Addrs: addrs(want...),
		},
	}
}

type world struct {
	t     *testing.T
	disk  *disk
	clock *run.Manual
	opts  ipam.Options
	*ipam.Allocator
}

func open(t *testing.T, pools ...string) *world {
	t.Helper()
	w := &world{
		t: t, disk: newDisk(rand.New(rand.NewPCG(1, 2))), clock: run.NewManual(time.Unix(1_800_000_000, 0)),
		opts: ipam.Options{Boot: "b1", Pools: prefixes(pools...), Quarantine: 30 * time.Second},
	}
	w.reopen()
	return w
}

func (w *world) reopen() {
	w.t.Helper()
	a, err := ipam.Open(w.disk, w.clock, w.opts)
	if err != nil {
		w.t.Fatalf("open: %v", err)
	}
	w.Allocator = a
}

func (w *world) reserve(r ipam.Request) ipam.Lease {
	w.t.Helper()
	l, err := w.Reserve(r)
	if err != nil {
		w.t.Fatalf("reserve %s: %v", r.Endpoint.ID, err)
	}
	return l
}

func (w *world) refuse(r ipam.Request, want error, words ...string) {
	w.t.Helper()
	_, err := w.Reserve(r)
	if !errors.Is(err, want) {
		w.t.Fatalf("reserve %s: %v, want %v", r.Endpoint.ID, err, want)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			w.t.Errorf("reserve %s: %q does not say %q", r.Endpoint.ID, err, word)
		}
	}
}

func (w *world) release(ids ...string) {
	w.t.Helper()
	if err := w.Release("DEL", ids...); err != nil {
		w.t.Fatal(err)
	}
}

// use returns "live/quarantined/free" of each family.
func (w *world) use() string {
	var out []string
	for _, u := range w.Use() {
		if u.Live+u.Quarantined+u.Free != u.Size {
			w.t.Errorf("%s: %d live + %d quarantined + %d free is not %d", u.Family, u.Live, u.Quarantined, u.Free, u.Size)
		}
		out = append(out, fmt.Sprintf("%d/%d/%d", u.Live, u.Quarantined, u.Free))
	}
	return strings.Join(out, " ")
}

func (w *world) wantUse(want string) {
	w.t.Helper()
	if got := w.use(); got != want {
		w.t.Errorf("use is %s, want %s", got, want)
	}
}

func TestDualStackLife(t *testing.T) {
	w := open(t, "10.0.0.0/27", "fd00::/64")
	l := w.reserve(request("a", "web"))
	if got := fmt.Sprintf("%v %s %s", l.Endpoint.Addrs, l.Endpoint.MAC, l.State); got != "[10.0.0.1 fd00::1] 02:04:0a:00:00:01 reserved" {
		t.Fatal(got)
	}
	if err := w.Commit(l.Endpoint.ID); err != nil {
		t.Fatal(err)
	}
	free := uint64(1)<<62 - 2
	w.wantUse(fmt.Sprintf("1/0/29 1/0/%d", free))
	if again := w.reserve(request("a", "web")); !reflect.DeepEqual(again.Endpoint, l.Endpoint) || again.State != ipam.Committed {
		t.Errorf("second ADD got %+v", again)
	}
	other := request("a", "web")
	other.NetnsID = "other"
	w.refuse(other, ipam.ErrExists, "/run/netns/web")

	w.disk.reboot(true)
	w.reopen()
	back, ok := w.Get(l.Endpoint.ID)
	if !ok || !reflect.DeepEqual(back.Endpoint, l.Endpoint) || back.State != ipam.Committed || back.NetnsID != l.NetnsID || back.Boot != "b1" {
		t.Fatalf("after restart: %+v", back)
	}
	w.release(l.Endpoint.ID, "unknown/eth0")
	w.wantUse(fmt.Sprintf("0/1/29 0/1/%d", free))
	if next := w.reserve(request("a", "next")); next.Endpoint.Addrs[0] != netip.MustParseAddr("10.0.0.2") {
		t.Errorf("the freed address did not rest: %v", next.Endpoint.Addrs)
	}
	w.clock.Add(30 * time.Second)
	w.wantUse(fmt.Sprintf("1/0/29 1/0/%d", free))
}

func TestRequestFieldsSurvive(t *testing.T) {
	w := open(t, "10.0.0.0/27")
	r := request("a", "web", "10.0.0.9")
	r.Endpoint.MAC = model.MAC{2, 1, 2, 3, 4, 5}
	r.Endpoint.HostPorts = []model.HostPort{{HostIP: netip.MustParseAddr("192.0.2.1"), Protocol: "tcp", Port: 80, PodPort: 8080}, {Protocol: "udp", Port: 53, PodPort: 53}}
	r.Endpoint.Ingress, r.Endpoint.Egress = model.Rate{Bits: 1e6, Burst: 5}, model.Rate{Bits: 2e6}
	l := w.reserve(r)
	w.reopen()
	if back, _ := w.Get(l.Endpoint.ID); !reflect.DeepEqual(back, l) {
		t.Errorf("got  %+v\nwant %+v", back, l)
	}
}

func TestRefusals(t *testing.T) {
	w := open(t, "10.0.0.0/29", "fd00::/64")
	w.SetPools(prefixes("10.0.0.0/29", "fd00::/64"), prefixes("10.0.0.4/31", "fd00::ff00/120"))
	r := request("a", "web", "10.0.0.2", "fd00::9")
	r.Endpoint.MAC = model.MAC{2, 9, 9, 9, 9, 9}
	r.Endpoint.HostPorts = []model.HostPort{{Protocol: "tcp", Port: 80, PodPort: 80}}
	w.reserve(r)
	w.refuse(request("b", "x", "10.0.0.2"), ipam.ErrTaken, "10.0.0.2", "pod a/web")
	w.refuse(request("b", "x", "fd00::9"), ipam.ErrTaken, "pod a/web")
	w.refuse(request("b", "x", "10.9.0.1"), ipam.ErrOutside, "10.0.0.0/29", "fd00::/64")
	w.refuse(request("b", "x", "10.0.0.0"), ipam.ErrInvalid, "first or the last")
	w.refuse(request("b", "x", "10.0.0.7"), ipam.ErrInvalid, "first or the last")
	w.refuse(request("b", "x", "10.0.0.5"), ipam.ErrInvalid, "reserves 10.0.0.4/31")
	w.refuse(request("b", "x", "10.0.0.3", "10.0.0.6"), ipam.ErrInvalid, "one of each family")
	mac := request("b", "x")
	mac.Endpoint.MAC = r.Endpoint.MAC
	w.refuse(mac, ipam.ErrTaken, "02:09:09:09:09:09", "pod a/web")
	port := request("b", "x")
	for _, host := range []netip.Addr{{}, netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("192.0.2.1")} {
		port.Endpoint.HostPorts = []model.HostPort{{HostIP: host, Protocol: "tcp", Port: 80, PodPort: 81}}
		w.refuse(port, ipam.ErrTaken, "80/tcp", "pod b/x", "pod a/web")
	}
	port.Endpoint.HostPorts[0].Protocol = "udp"
	w.reserve(port)

	second := request("a", "web")
	second.Endpoint.ID, second.Endpoint.IfName = "aweb-container/net1", "net1"
	w.refuse(second, ipam.ErrSecond, "net1", "pod a/web", "has eth0")

	none := open(t)
	none.refuse(request("a", "web"), ipam.ErrNoPools, "podCIDRs")
	none.SetPools(prefixes("10.0.0.0/30"), prefixes("10.0.0.0/24"))
	none.refuse(request("a", "web"), ipam.ErrExhausted, "reserved ranges leave nothing", "10.0.0.0/30")
}

func TestExhaustion(t *testing.T) {
	w := open(t, "10.0.0.0/28")
	for i := range 14 {
		w.reserve(request([]string{"big", "big", "small"}[i%3], fmt.Sprint("p", i)))
	}
	w.refuse(request("big", "more"), ipam.ErrExhausted, "10.0.0.0/28", "14 of 14", "big 10, small 4")
	if c := w.Counters(); c.Exhausted != 1 || c.Reserved != 14 {
		t.Errorf("counters %+v", c)
	}
	// Quarantine yields when nothing else is free, the longest rested first.
	w.release("bigp4-container/eth0")
	w.clock.Add(time.Second)
	w.release("bigp1-container/eth0")
	w.wantUse("12/2/0")
	if l := w.reserve(request("big", "more")); l.Endpoint.Addrs[0] != netip.MustParseAddr("10.0.0.5") {
		t.Errorf("got %v, want the longest rested, 10.0.0.5", l.Endpoint.Addrs)
	}
	if c := w.Counters(); c.Early != 1 {
		t.Errorf("counters %+v", c)
	}
	w.wantUse("13/1/0")
	w.disk.reboot(true)
	w.reopen()
	w.wantUse("13/1/0")
}

// TestAllOrNothing: a family that is exhausted gives nothing of the other one away.
func TestAllOrNothing(t *testing.T) {
	w := open(t, "10.0.0.0/24", "fd00::/127")
	w.reserve(request("a", "p0"))
	w.reserve(request("a", "p1"))
	w.refuse(request("a", "p2"), ipam.ErrExhausted, "IPv6", "fd00::/127")
	w.wantUse("2/0/252 2/0/0")
}

func TestPoolsChangeLive(t *testing.T) {
	w := open(t, "10.0.0.0/29")
	l := w.reserve(request("a", "old"))
	w.SetPools(prefixes("10.0.1.0/29"), nil)
	if next := w.reserve(request("a", "new")); next.Endpoint.Addrs[0] != netip.MustParseAddr("10.0.1.1") {
		t.Errorf("got %v", next.Endpoint.Addrs)
	}
	w.wantUse("1/0/5")
	if u := w.Use(); u[0].Outside != 1 {
		t.Errorf("%+v", u)
	}
	if h := w.Explain("10.0.0.1"); h[0].State != "committed" && h[0].State != "reserved" || !strings.Contains(h[0].Reason, "no pool any more") {
		t.Errorf("%+v", h)
	}
	w.release(l.Endpoint.ID)
	w.SetPools(prefixes("10.0.0.0/29", "10.0.1.0/29"), nil)
	w.wantUse("1/1/10")
}

func TestNextFitGoesRound(t *testing.T) {
	w := open(t, "10.0.0.0/29", "10.0.1.0/30")
	w.opts.Quarantine = 0
	w.reopen()
	var got []string
	for i := range 10 {
		l := w.reserve(request("a", fmt.Sprint(i)))
		got = append(got, l.Endpoint.Addrs[0].String())
		w.release(l.Endpoint.ID)
		if i == 4 {
			w.reopen() // the place in the round survives
		}
	}
	want := "10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5 10.0.0.6 10.0.1.1 10.0.1.2 10.0.0.1 10.0.0.2"
	if s := strings.Join(got, " "); s != want {
		t.Errorf("got  %s\nwant %s", s, want)
	}
}

func TestExplain(t *testing.T) {
	w := open(t, "10.0.0.0/28", "fd00::/120")
	w.SetPools(prefixes("10.0.0.0/28", "fd00::/120"), prefixes("10.0.0.8/29"))
	l := w.reserve(request("a", "web"))
	gone := w.reserve(request("a", "gone"))
	if err := w.Release("its sandbox is gone", gone.Endpoint.ID); err != nil {
		t.Fatal(err)
	}
	if err := w.Suspect("found on weftx", addrs("10.0.0.5")...); err != nil {
		t.Fatal(err)
	}
	for query, want := range map[string]string{
		"10.0.0.1":           "reserved given to pod a/web",
		"fd00::1":            "reserved given to pod a/web",
		"10.0.0.2":           "quarantined resting: its sandbox is gone",
		"10.0.0.5":           "suspect not given until the agent has swept or the node was rebooted: found on weftx",
		"10.0.0.3":           "free nobody has it",
		"10.0.0.9":           "excluded the configuration reserves 10.0.0.8/29",
		"10.0.0.0":           "excluded it is the first or the last",
		"192.0.2.1":          "foreign outside the pools of this node: 10.0.0.0/28, fd00::/120",
		"a/web":              "reserved given to pod a/web",
		"web":                "reserved given to pod a/web",
		l.Endpoint.ID:        "reserved given to pod a/web",
		l.Endpoint.ID[:6]:    "reserved given to pod a/web",
		gone.Endpoint.ID[:7]: "quarantined resting: its sandbox is gone",
	} {
		hs := w.Explain(query)
		if len(hs) == 0 || !strings.HasPrefix(hs[0].State+" "+hs[0].Reason, want) {
			t.Errorf("explain %s: %+v, want %q", query, hs, want)
		}
	}
	if hs := w.Explain("nobody"); len(hs) != 0 {
		t.Errorf("%+v", hs)
	}
	if hs := w.Explain(""); len(hs) != 5 {
		t.Errorf("%d holdings, want 5: %+v", len(hs), hs)
	}
}

func TestFullDisk(t *testing.T) {
	w := open(t, "10.0.0.0/28")
	keep, gone := w.reserve(request("a", "keep")), w.reserve(request("a", "gone"))
	w.disk.full = true
	for range 3 {
		w.refuse(request("a", "new"), ipam.ErrJournal, "no space left on device")
	}
	if err := w.Commit(keep.Endpoint.ID); !errors.Is(err, ipam.ErrJournal) {
		t.Errorf("commit: %v", err)
	}
	if err := w.Release("DEL", gone.Endpoint.ID); !errors.Is(err, ipam.ErrJournal) {
		t.Errorf("release: %v", err)
	}
	if _, ok := w.Get(gone.Endpoint.ID); ok {
		t.Error("DEL did not release")
	}
	w.wantUse("1/1/12")
	if c := w.Counters(); c.Failed != 5 {
		t.Errorf("counters %+v", c)
	}

	// An agent that starts on a full disk serves what it reads.
	other := *w
	other.reopen()
	if len(other.Leases()) != 2 { // the release was not written: the liveness check finds it
		t.Errorf("leases %+v", other.Leases())
	}
	other.refuse(request("a", "new"), ipam.ErrJournal)

	w.disk.full = false
	w.reserve(request("a", "new"))
	w.wantUse("2/1/11")
	w.disk.reboot(true)
	w.reopen()
	w.wantUse("2/1/11")
}

// TestFailedWriteRestores: an address that was taken out of its quarantine for an ADD that failed rests again.
func TestFailedWriteRestores(t *testing.T) {
	w := open(t, "10.0.0.0/30")
	w.reserve(request("a", "keep"))
	w.release(w.reserve(request("a", "gone")).Endpoint.ID)
	w.disk.full = true
	w.refuse(request("a", "new"), ipam.ErrJournal)
	w.wantUse("1/1/0")
	w.clock.Add(time.Hour)
	w.wantUse("1/0/1")
}

// TestDamage flips each byte of a journal in turn. Either the journal is refused, with the place, or nothing is lost;
// and when salvaged, no address that a pod has is given again.
func TestDamage(t *testing.T) {
	w := open(t, "10.0.0.0/28")
	held := map[netip.Addr]string{}
	for i := range 4 {
		l := w.reserve(request("a", fmt.Sprint("p", i)))
		held[l.Endpoint.Addrs[0]] = l.Endpoint.ID
		if err := w.Commit(l.Endpoint.ID); err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			w.release(l.Endpoint.ID)
			delete(held, l.Endpoint.Addrs[0])
		}
	}
	whole, _ := w.disk.ReadFile(ipam.JournalName)
	lastLine := bytes.LastIndexByte(whole[:len(whole)-1], '\n')
	refused := 0
	for i := range whole {
		data := bytes.Clone(whole)
		data[i] ^= 0x11
		d := newDisk(rand.New(rand.NewPCG(3, uint64(i))))
		d.files[ipam.JournalName] = &inode{synced: data}
		_, err := ipam.Open(d, w.clock, w.opts)
		var damage *ipam.CorruptError
		if errors.As(err, &damage) {
			refused++
			if damage.Offset > int64(i) || !strings.Contains(err.Error(), ipam.JournalName) {
				t.Fatalf("byte %d: %v", i, err)
			}
		} else if err != nil || i < lastLine {
			t.Fatalf("byte %d was damaged and not noticed: %v", i, err)
		}
		o := w.opts
		o.Salvage = true
		a, err := ipam.Open(d, w.clock, o)
		if err != nil {
			t.Fatalf("byte %d: salvage: %v", i, err)
		}
		for n := range 20 {
			l, err := a.Reserve(request("b", fmt.Sprint("n", n)))
			if err != nil {
				break
			}
			if owner := held[l.Endpoint.Addrs[0]]; owner != "" {
				t.Fatalf("byte %d: %s of %s was given again", i, l.Endpoint.Addrs[0], owner)
			}
		}
		if damage != nil {
			if evidence, _ := d.ReadFile(ipam.JournalName + ".damaged"); !bytes.Equal(evidence, data) {
				t.Fatalf("byte %d: the damaged journal was not kept", i)
			}
		}
		if _, err := ipam.Open(d, w.clock, w.opts); err != nil {
			t.Fatalf("byte %d: after the salvage: %v", i, err)
		}
	}
	if refused < len(whole)*3/4 {
		t.Errorf("only %d of %d damages were noticed", refused, len(whole))
	}
}

func TestSuspicionEnds(t *testing.T) {
	w := open(t, "10.0.0.0/29")
	if err := w.Suspect("seen", addrs("10.0.0.1", "10.0.0.2")...); err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		w.reserve(request("a", fmt.Sprint(i)))
	}
	w.refuse(request("a", "more"), ipam.ErrExhausted, "2 suspected")
	w.refuse(request("a", "more", "10.0.0.1"), ipam.ErrTaken, "seen")
	w.clock.Add(time.Hour)
	w.reopen()
	w.wantUse("4/2/0")
	other := *w
	other.opts.Boot = "b2" // whatever had them is gone with the boot
	other.reopen()
	other.wantUse("4/0/2")
	w.reopen()
	if err := w.Absolve(); err != nil {
		t.Fatal(err)
	}
	w.reserve(request("a", "more"))
	w.clock.Add(time.Hour)
	w.wantUse("5/0/1")
}

// forge writes a journal of the lines, each with its right checksum and sequence.
func forge(lines ...string) *inode {
	var out []byte
	for i, l := range lines {
		body := fmt.Sprintf("%d %s", i+1, l)
		out = fmt.Appendf(out, "%08x %s\n", crc32.Checksum([]byte(body), crc32.MakeTable(crc32.Castagnoli)), body)
	}
	return &inode{synced: out}
}

// TestForged: valid records that contradict themselves, or come from the future.
func TestForged(t *testing.T) {
	w := open(t, "10.0.0.0/29")
	lease := func(id, addr string) string {
		return fmt.Sprintf(`[{"op":"lease","lease":{"id":%q,"state":"committed","since":"2026-01-01T00:00:00Z","netns":"/n","ifname":"eth0","hostIf":"w","mac":"02:00:00:00:00:01","addrs":[%q]}}]`, id, addr)
	}
	head := `[{"op":"head","version":1}]`
	future := `[{"op":"head","version":2}]`
	salvage := w.opts
	salvage.Salvage = true
	for name, c := range map[string]struct {
		lines []string
		says  string
		saved string // leases after a salvage; "-": refused
	}{
		"good":              {[]string{head, lease("a", "10.0.0.1"), lease("a", "10.0.0.1"), lease("b", "10.0.0.2")}, "", "a b"},
		"future":            {[]string{future, lease("a", "10.0.0.1")}, "downgraded", "-"},
		"given twice":       {[]string{head, lease("a", "10.0.0.1"), lease("b", "10.0.0.1"), lease("c", "10.0.0.3")}, "10.0.0.1 is given to a and to b", "b c"},
		"unknown operation": {[]string{head, lease("a", "10.0.0.1"), `[{"op":"frob"}]`, lease("c", "10.0.0.3")}, `"frob"`, "a c"},
		"no head":           {[]string{lease("a", "10.0.0.1")}, "beginning is missing", "a"},
		"free of nobody":    {[]string{head, `[{"op":"free","id":"x"}]`}, "", ""},
	} {
		w.disk.files[ipam.JournalName] = forge(c.lines...)
		if _, err := ipam.Open(w.disk, w.clock, w.opts); (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
		w.disk.files[ipam.JournalName] = forge(c.lines...)
		a, err := ipam.Open(w.disk, w.clock, salvage)
		if err != nil {
			if c.saved != "-" {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		var got []string
		for _, l := range a.Leases() {
			got = append(got, l.Endpoint.ID)
		}
		if s := strings.Join(got, " "); s != c.saved {
			t.Errorf("%s: salvaged %q, want %q", name, s, c.saved)
		}
	}
}

func TestTruncatedToNothing(t *testing.T) {
	w := open(t, "10.0.0.0/29")
	w.reserve(request("a", "web"))
	data, _ := w.disk.ReadFile(ipam.JournalName)
	w.disk.files[ipam.JournalName] = &inode{synced: data[:10]}
	if _, err := ipam.Open(w.disk, w.clock, w.opts); err == nil || !strings.Contains(err.Error(), "no valid record") {
		t.Errorf("truncated in its first record: %v", err)
	}
	w.disk.files[ipam.JournalName] = &inode{}
	if _, err := ipam.Open(w.disk, w.clock, w.opts); err == nil {
		t.Error("an emptied journal was taken for a new one")
	}
}

// TestRealDirectory runs on a real file system: concurrent ADDs share fsyncs, the file is compacted, and read back.
func TestRealDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	o := ipam.Options{Boot: "b", Pools: prefixes("10.0.0.0/16", "fd00::/64"), Quarantine: time.Second}
	a, err := ipam.Open(ipam.Dir(dir), run.System(), o)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[netip.Addr]string{}
	for i := range 250 {
		wg.Go(func() {
			for round := range 4 {
				r := request("a", fmt.Sprintf("p%d-%d", i, round))
				l, err := a.Reserve(r)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				for _, x := range l.Endpoint.Addrs {
					if seen[x] != "" {
						t.Errorf("%s is given to %s and to %s", x, seen[x], l.Endpoint.ID)
					}
					seen[x] = l.Endpoint.ID
				}
				mu.Unlock()
				if err := a.Commit(l.Endpoint.ID); err != nil {
					t.Error(err)
				}
				if round < 3 {
					mu.Lock()
					for _, x := range l.Endpoint.Addrs {
						delete(seen, x)
					}
					mu.Unlock()
					if err := a.Release("DEL", l.Endpoint.ID); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	c := a.Counters()
	if c.Reserved != 1000 || c.Released != 750 || c.Writes > 1500 || c.Rewrites < 2 {
		t.Errorf("counters %+v: want few writes for 2,750 changes, and compaction", c)
	}
	t.Logf("%d changes in %d writes, %d of them compactions", c.Reserved+c.Committed+c.Released, c.Writes, c.Rewrites)
	st, err := os.Stat(filepath.Join(dir, ipam.JournalName))
	if err != nil || st.Mode() != 0o600 || st.Sys().(*syscall.Stat_t).Uid != uint32(os.Getuid()) {
		t.Errorf("%v, %v", st, err)
	}
	before := a.Leases()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := ipam.Open(ipam.Dir(dir), run.System(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if !reflect.DeepEqual(before, b.Leases()) {
		t.Error("leases changed over a restart")
	}
}

func TestDeriveMAC(t *testing.T) {
	for _, x := range addrs("10.0.0.1", "119.101.102.116", "fd00::7765:6674:101", "fd00::1") {
		m := ipam.DeriveMAC(x)
		if m == model.GatewayMAC || m[0] != 2 || m != ipam.DeriveMAC(x) {
			t.Errorf("%s: %s", x, m)
		}
	}
}
