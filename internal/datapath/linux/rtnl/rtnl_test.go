package rtnl_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"weft/internal/datapath/linux/rtnl"
	"weft/internal/testkit"
)

// FuzzParse: what the kernel sends may be newer than we are, or cut off; reading it never fails worse than by zero values.
func FuzzParse(f *testing.F) {
	f.Add([]byte{})
	f.Add(rtnl.NewRequest(unix.RTM_NEWLINK, 0, rtnl.IfInfo(1, 0, 0)).Text(unix.IFLA_IFNAME, "x").Nest(unix.IFLA_LINKINFO, func() {}).Body())
	f.Add(rtnl.Route{}.Request(unix.RTM_NEWROUTE, 0).Body())
	f.Add([]byte("\x02\x20\x00\x00\xfe\x77\xfd\x01\x00\x00\x00\x00\x08\x00\x01\x00\x0a\x00\x00\x01\x03\x00\x01\x00"))
	f.Fuzz(func(_ *testing.T, b []byte) {
		_ = rtnl.ParseLink(b)
		_ = rtnl.ParseAddr(b)
		_ = rtnl.ParseRoute(b)
		_ = rtnl.ParseNeighbour(b)
		_ = rtnl.ParseRule(b)
	})
}

// TestBatch: every request of a batch has its own answer or error, in the kernel's words, and the batch goes on after an error.
func TestBatch(t *testing.T) {
	n := testkit.New(t)
	var c *rtnl.Conn
	n.Do(t, func() {
		var err error
		if c, err = rtnl.Dial(nil); err != nil {
			t.Fatal(err)
		}
	})
	defer c.Close()
	var reqs []*rtnl.Request
	for range 150 { // more than are sent at once
		reqs = append(reqs, rtnl.GetLink(0, "lo"), rtnl.GetLink(0, "nix"), rtnl.SetLink(1, unix.IFF_UP))
	}
	for i, rep := range c.Do(reqs...) {
		switch i % 3 {
		case 0:
			if rep.Err != nil || len(rep.Msgs) != 1 || rtnl.ParseLink(rep.Msgs[0]).Name != "lo" {
				t.Fatalf("request %d: %v", i, rep)
			}
		case 1:
			if !rtnl.IsErrno(rep.Err, unix.ENODEV) {
				t.Fatalf("request %d: %v", i, rep.Err)
			}
		case 2:
			if rep.Err != nil {
				t.Fatalf("request %d: %v", i, rep.Err)
			}
		}
	}
	bad := rtnl.SetLink(1, 0).U32(unix.IFLA_MTU, 1<<31)
	if err := c.One(bad).Err; err == nil || err.Error() == unix.EINVAL.Error() {
		t.Errorf("an error without the kernel's words: %v", err)
	}
	if i, err := c.IndexByName("lo"); i != 1 || err != nil {
		t.Errorf("index of lo: %d, %v", i, err)
	}
	if _, err := c.IndexByName("nix"); err == nil {
		t.Error("index of nix: no error")
	}
}
