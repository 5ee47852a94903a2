package linux_test

import (
	"context"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"weft/internal/plan"
	"weft/internal/testkit"
)

// BenchmarkPodLink compares a pod's link with all of its insides, routes and neighbours with the least that
// any plugin must do, a veth pair whose peer is in the pod's namespace, by the usual library.
func BenchmarkPodLink(b *testing.B) {
	n, a := newNode(b), testkit.New(b)
	rows := podRows(podLink(a, 1))
	for _, r := range rows {
		n.want[r.Key()] = r
	}
	b.Run("weft", func(b *testing.B) {
		for b.Loop() {
			n.apply(rows...)
			b.StopTimer()
			n.remove(rows...)
			b.StartTimer()
		}
	})
	b.Run("bare-veth", func(b *testing.B) {
		n.Do(b, func() {
			h, err := netlink.NewHandle()
			if err != nil {
				b.Fatal(err)
			}
			defer h.Close()
			for b.Loop() {
				pod, err := netns.GetFromPath(a.Path())
				if err != nil {
					b.Fatal(err)
				}
				v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "bare"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(pod)}
				if err := h.LinkAdd(v); err != nil {
					b.Fatal(err)
				}
				if err := h.LinkSetUp(v); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				_ = pod.Close()
				if err := h.LinkDel(v); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	})
	b.Run("unchanged", func(b *testing.B) {
		n.apply(rows...)
		for b.Loop() {
			n.apply(rows...)
		}
		n.remove(rows...)
	})
}

// BenchmarkDelete is the removal of 16 pods in one batch, a large one of the reconcile loop.
func BenchmarkDelete(b *testing.B) {
	n := newNode(b)
	var rows []plan.Row
	for i := range 16 {
		rows = append(rows, podRows(podLink(testkit.New(b), byte(i)))...)
	}
	for b.Loop() {
		b.StopTimer()
		n.apply(rows...)
		b.StartTimer()
		n.remove(rows...)
	}
}

// maxSyscalls bounds what a pod's ADD costs here: it is the deterministic stand-in for its time. 4 of them are
// due to the test's being in another namespace.
const maxSyscalls = 32

// TestSyscalls counts the system calls of a pod's link, neighbours and routes, by strace of this test itself.
func TestSyscalls(t *testing.T) {
	testkit.RequireRoot(t)
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("needs strace")
	}
	if os.Getenv("WEFT_SYSCALLS") != "" {
		n, a := newNode(t), testkit.New(t)
		rows := podRows(podLink(a, 1))
		for _, r := range rows {
			n.want[r.Key()] = r
		}
		_, _ = os.ReadFile("/begin")
		n.driver.Apply(context.Background(), n.want, plan.Changes{Upsert: rows})
		_, _ = os.ReadFile("/end")
		return
	}
	cmd := exec.Command("strace", "-f", "-qq", "-e", "trace=!futex,nanosleep,epoll_pwait,epoll_ctl,sched_yield,madvise,mmap,munmap,rt_sigreturn,tgkill,getpid,rt_sigprocmask", os.Args[0], "-test.run=^TestSyscalls$")
	cmd.Env = append(os.Environ(), "WEFT_SYSCALLS=1", "GOMAXPROCS=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	_, rest, _ := strings.Cut(string(out), `"/begin"`)
	_, rest, _ = strings.Cut(rest, "\n")
	mine, _, found := strings.Cut(rest, `"/end"`)
	if !found {
		t.Fatalf("no end in\n%s", out)
	}
	var calls []string
	for line := range strings.Lines(mine) {
		if m := regexp.MustCompile(`(?:\[pid +\d+\] )?(\w+)\(`).FindStringSubmatch(line); m != nil && !strings.Contains(line, "SIGURG") {
			calls = append(calls, m[1])
		}
	}
	calls = calls[:len(calls)-1] // the one that asks for /end
	t.Logf("%d system calls: %s", len(calls), strings.Join(calls, " "))
	if len(calls) > maxSyscalls {
		t.Errorf("a pod's link costs %d system calls, more than %d", len(calls), maxSyscalls)
	}
}
