package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"weft/internal/bench"
)

// benchRun runs `weft bench ARGS` against a server in this process and returns its output.
func benchRun(t *testing.T, args ...string) (string, error) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- bench.Serve(ctx, lis, false) }()
	defer func() { cancel(); <-ended }()
	port := netip.MustParseAddrPort(lis.Addr().String()).Port()
	var out bytes.Buffer
	cmd := BenchCommand()
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SilenceUsage = true
	cmd.SetArgs(append(args, "127.0.0.1", "--port", strconv.Itoa(int(port)), "-d", "50ms", "--warmup", "5ms"))
	err = cmd.ExecuteContext(t.Context())
	return out.String(), err
}

func TestBenchFormats(t *testing.T) {
	for _, mode := range []string{"stream", "rr", "crr", "udp", "flows"} {
		out, err := benchRun(t, mode)
		if err != nil || !strings.HasPrefix(out, "TEST ") || !strings.Contains(out, "CPU ") {
			t.Errorf("%s: %v\n%s", mode, err, out)
		}
	}
	out, err := benchRun(t, "udp", "--pps", "--size", "64", "-o", "json")
	var r bench.Result
	if err != nil || json.Unmarshal([]byte(out), &r) != nil || r.Spec.Mode != bench.UDPPPS || r.Spec.Size != 64 || r.PerSecond == 0 {
		t.Errorf("json: %v\n%s", err, out)
	}
	out, err = benchRun(t, "rr", "-o", "yaml")
	if err != nil || yaml.Unmarshal([]byte(out), &r) != nil || r.Latency.P50 == 0 {
		t.Errorf("yaml: %v\n%s", err, out)
	}
}

func TestBenchRefuses(t *testing.T) {
	for want, args := range map[string][]string{
		`output: "xml" is not one of`: {"rr", "-o", "xml"},
		"size: 99999999":              {"stream", "--size", "99999999"},
		"ipv4 ipv6":                   {"rr", "-4", "-6"},
		"no suitable address":         {"rr", "-6"},
	} {
		if _, err := benchRun(t, args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", args, err, want)
		}
	}
}
