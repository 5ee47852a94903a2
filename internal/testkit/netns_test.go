package testkit

import (
	"os"
	"strings"
	"testing"
)

func TestNetns(t *testing.T) {
	a, b := New(t), Named(t, "weft-testkit")
	NoLeaks(t, []*Netns{a})
	home, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	Veth(t, a, "x0", []string{"10.1.1.1/24", "fd01::1/64"}, b, "y0", []string{"10.1.1.2/24", "fd01::2/64"})
	for _, addr := range []string{"10.1.1.2", "fd01::2"} {
		if out := b.IP(t, "-o addr show dev y0"); !strings.Contains(out, addr) {
			t.Errorf("y0 lacks %s:\n%s", addr, out)
		}
	}
	b.Sysctl(t, "net/ipv4/ip_forward", "0") // a new namespace has what the machine has
	a.Sysctl(t, "net/ipv4/ip_forward", "1")
	if got := a.ReadSysctl(t, "net/ipv4/ip_forward") + b.ReadSysctl(t, "net/ipv4/ip_forward"); got != "10" {
		t.Errorf("ip_forward of a and b: %s, want 10", got)
	}
	if _, err := b.Try(t, "false"); err == nil {
		t.Error("Try of a failing command returned no error")
	}
	a.IP(t, "link del x0")
	if now, _ := os.Readlink("/proc/thread-self/ns/net"); now != home {
		t.Errorf("the thread is in %s, was in %s", now, home)
	}
	c := Named(t, "weft-testkit2")
	c.Delete()
	if _, err := os.Stat(NamedDir + "/weft-testkit2"); !os.IsNotExist(err) {
		t.Errorf("the name is still there: %v", err)
	}
}

// recorder stands in for a test whose cleanups are run by hand.
type recorder struct {
	testing.TB
	failed  bool
	cleanup []func()
}

func (r *recorder) Errorf(string, ...any) { r.failed = true }
func (r *recorder) Cleanup(f func())      { r.cleanup = append(r.cleanup, f) }

func TestNoLeaksFinds(t *testing.T) {
	n := New(t)
	for name, leak := range map[string]func() func(){
		"link": func() func() { n.IP(t, "link add z0 type veth peer name z1"); return func() { n.IP(t, "link del z0") } },
		"table": func() func() {
			n.Run(t, "nft", "add", "table", "z")
			return func() { n.Run(t, "nft", "delete", "table", "z") }
		},
		"handle": func() func() {
			f, err := newNetns()
			if err != nil {
				t.Fatal(err)
			}
			return func() { _ = f.Close() }
		},
	} {
		r := &recorder{TB: t}
		NoLeaks(r, []*Netns{n})
		undo := leak()
		r.cleanup[0]()
		undo()
		if !r.failed {
			t.Errorf("%s: not found", name)
		}
	}
}
