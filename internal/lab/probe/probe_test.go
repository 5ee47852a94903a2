package probe

import (
	"testing"
)

func TestSplitTarget(t *testing.T) {
	for _, c := range []struct {
		in, name string
		port     uint16
		proto    string
	}{
		{"web", "web", 0, ""},
		{"web:80", "web", 80, ""},
		{"shop/web:80/udp", "shop/web", 80, "udp"},
		{"shop/web", "shop/web", 0, ""},
		{"web/icmp", "web", 0, "icmp"},
		{"10.0.0.1:53/UDP", "10.0.0.1", 53, "udp"},
		{"fd00::1", "fd00::1", 0, ""},
		{"[fd00::1]:80", "fd00::1", 80, ""},
		{"[fd00::1]/icmp", "fd00::1", 0, "icmp"},
	} {
		name, port, proto, err := SplitTarget(c.in)
		if err != nil || name != c.name || port != c.port || proto != c.proto {
			t.Errorf("%s: %q %d %q %v", c.in, name, port, proto, err)
		}
	}
	for _, bad := range []string{"", ":80", "web:", "web:x", "web:0", "web:65536", "web:80x"} {
		if name, port, proto, err := SplitTarget(bad); err == nil {
			t.Errorf("%q: accepted as %q %d %q", bad, name, port, proto)
		}
	}
	if _, err := ParseTarget("10.0.0.1/udp"); err == nil {
		t.Error("udp without a port was accepted")
	}
}
