package agent

import (
	"testing"

	"weft/internal/model"
)

// TestParsePort: what is asked when somebody asks about ICMP is a ping, not the answer to one.
func TestParsePort(t *testing.T) {
	for text, want := range map[string]struct {
		proto int
		port  uint16
	}{
		"": {model.ProtoTCP, 80}, "53/udp": {model.ProtoUDP, 53}, "udp/53": {model.ProtoUDP, 53}, "443": {model.ProtoTCP, 443},
		"icmp": {model.ProtoICMP, 8 << 8}, "icmp/8": {model.ProtoICMP, 8 << 8}, "icmp/0": {model.ProtoICMP, 0}, "icmp/13": {model.ProtoICMP, 13 << 8},
		"icmpv6": {model.ProtoICMPv6, 128 << 8}, "icmpv6/128": {model.ProtoICMPv6, 128 << 8},
	} {
		if proto, port, err := parsePort(text); err != nil || proto != want.proto || port != want.port {
			t.Errorf("%q: got protocol %d, port %d, %v; want %d and %d", text, proto, port, err, want.proto, want.port)
		}
	}
	if _, _, err := parsePort("http"); err == nil {
		t.Error("http is a port")
	}
}
