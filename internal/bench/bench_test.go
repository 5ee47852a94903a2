package bench

import (
	"context"
	"encoding/json"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestHistogramQuantiles(t *testing.T) {
	h, exact := new(Histogram), []float64{}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 100000 {
		d := time.Duration(math.Exp(rng.Float64()*18) * 20) // 20 ns .. 1.3 s
		h.Record(d)
		exact = append(exact, float64(d))
	}
	for _, q := range []float64{.5, .9, .99, .999} {
		got, want := float64(h.Quantile(q)), Quantile(exact, q)
		if got < want*.995 || got > want*1.015 {
			t.Errorf("quantile %v = %v, want %v within 1 %%", q, got, want)
		}
	}
	s := h.Summary()
	if s.Count != 100000 || float64(s.Min) != slices.Min(exact) || float64(s.Max) != slices.Max(exact) {
		t.Errorf("summary %+v does not have the exact count, minimum and maximum", s)
	}
}

func TestHistogramBuckets(t *testing.T) {
	previous := -1
	for v := uint64(0); v < 1<<histTop; v = v*9/8 + 1 {
		i := bucket(v)
		if i < previous || i >= histSize {
			t.Fatalf("bucket(%d) = %d after %d of %d", v, i, previous, histSize)
		}
		if c := ceiling(i); c < v || float64(c) > float64(v)*1.008+1 {
			t.Fatalf("ceiling(bucket(%d)) = %d", v, c)
		}
		previous = i
	}
	h := new(Histogram)
	h.Record(-time.Second)
	h.Record(100 * time.Hour)
	if h.Quantile(0) != 0 || h.Quantile(1) != 1<<histTop-1 {
		t.Errorf("out of range: %v, %v", h.Quantile(0), h.Quantile(1))
	}
	if (&Histogram{}).Summary().P99 != 0 {
		t.Error("an empty histogram has a quantile")
	}
}

func TestLongestKeepsTheLongest(t *testing.T) {
	l := longest{keep: 32}
	start := time.Now()
	for _, i := range rand.Perm(1000) {
		l.add(time.Duration(i), start, time.Duration(i))
	}
	got := l.sorted()
	if len(got) != l.keep {
		t.Fatalf("%d gaps", len(got))
	}
	for i, g := range got {
		if g.Length != time.Duration(999-i) || !g.At.Equal(start.Add(g.Length)) {
			t.Fatalf("gap %d is %v", i, g)
		}
	}
}

func TestMedianAndQuantile(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{{[]float64{3}, 3}, {[]float64{4, 1}, 2.5}, {[]float64{9, 1, 5}, 5}} {
		if got := Median(c.in); got != c.want {
			t.Errorf("Median(%v) = %v", c.in, got)
		}
	}
	if !math.IsNaN(Median(nil)) {
		t.Error("median of nothing is a number")
	}
}

// The interval must cover the true ratio about 95 times in a hundred, and be about as wide as theory says.
func TestMedianRatioCoverage(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	const trials, rounds = 200, 15
	covered := 0
	for range trials {
		a, b := make([]float64, rounds), make([]float64, rounds)
		for i := range a {
			phase := 1 + rng.Float64() // a slow phase of the machine hits both arms
			a[i] = phase * 1.1 * math.Exp(rng.NormFloat64()*.05)
			b[i] = phase * math.Exp(rng.NormFloat64()*.05)
		}
		iv := MedianRatio(a, b)
		if iv.Low <= 1.1 && 1.1 <= iv.High {
			covered++
		}
		if iv.Value < iv.Low || iv.Value > iv.High || iv.High-iv.Low > .3 {
			t.Fatalf("interval %+v", iv)
		}
	}
	if covered < trials*90/100 || covered == trials {
		t.Errorf("the 95 %% interval covers the truth in %d of %d trials", covered, trials)
	}
}

func TestMedianRatioLeavesOutHoles(t *testing.T) {
	iv := MedianRatio([]float64{2, 0, math.NaN(), 2}, []float64{1, 1, 1, 1})
	if iv != (Interval{2, 2, 2}) {
		t.Errorf("%+v", iv)
	}
	if iv := MedianRatio(nil, nil); !math.IsNaN(iv.Value) {
		t.Errorf("%+v of nothing", iv)
	}
}

func TestSpecNamesTheField(t *testing.T) {
	good := Spec{Mode: RR, Duration: time.Second, Size: 1, Gaps: 1, ClientCPU: AnyCPU, ServerCPU: AnyCPU}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for field, spoil := range map[string]func(*Spec){
		"mode:":     func(s *Spec) { s.Mode = "ping" },
		"duration:": func(s *Spec) { s.Duration = 0 },
		"warmup:":   func(s *Spec) { s.Warmup = -1 },
		"size:":     func(s *Spec) { s.Size = 0 },
		"flows:":    func(s *Spec) { s.Mode = Flows },
		"buffer:":   func(s *Spec) { s.Buffer = -1 },
		"gaps:":     func(s *Spec) { s.Gaps = -1 },
		"priority:": func(s *Spec) { s.Priority = 100 },
		"cpu:":      func(s *Spec) { s.ServerCPU = -2 },
	} {
		s := good
		spoil(&s)
		if err := s.Validate(); err == nil || !strings.HasPrefix(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// serve starts a server on a loopback address.
func serve(t *testing.T, address string, priority bool) Target {
	t.Helper()
	lis, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		t.Skipf("no %s here: %v", address, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, lis, priority) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return Target{Host: address, Port: netip.MustParseAddrPort(lis.Addr().String()).Port()}
}

func TestEveryModeOverLoopback(t *testing.T) {
	for _, address := range []string{"127.0.0.1", "::1"} {
		target := serve(t, address, false)
		for _, mode := range Modes() {
			t.Run(address+"/"+string(mode), func(t *testing.T) {
				spec := Spec{
					Mode: mode, Warmup: 20 * time.Millisecond, Duration: 150 * time.Millisecond, Flows: 20,
					Buffer: 1 << 20, Congestion: "cubic", ClientCPU: AnyCPU, ServerCPU: 0,
				}
				r, err := Run(t.Context(), target, spec)
				if err != nil {
					t.Fatal(err)
				}
				check(t, r, address)
			})
		}
	}
}

func check(t *testing.T, r *Result, address string) {
	t.Helper()
	if r.Seconds < .05 || r.Seconds > 5 || r.Bytes == 0 || r.BitsPerSecond <= 0 {
		t.Errorf("%v seconds, %v bytes, %v bit/s", r.Seconds, r.Bytes, r.BitsPerSecond)
	}
	if want := map[bool]string{true: "IPv6", false: "IPv4"}[address == "::1"]; r.Family != want {
		t.Errorf("family %s", r.Family)
	}
	if r.Spec.Mode != Stream && (r.Transactions < 10 || r.PerSecond < 10) {
		t.Errorf("%v transactions, %v/s", r.Transactions, r.PerSecond)
	}
	if hasLatency := r.Spec.Mode != Stream && r.Spec.Mode != UDPPPS; hasLatency {
		l := r.Latency
		if l.Count != r.Transactions || l.Min <= 0 || l.Min > l.P50 || l.P50 > l.P99 || l.P99 > l.P999 || l.P999 > l.Max {
			t.Errorf("latency %+v", l)
		}
	}
	if r.Client.ThreadCPU <= 0 || r.Server.ThreadCPU <= 0 || r.ThreadCost() <= 0 || r.SystemCost() <= 0 {
		t.Errorf("no CPU time: client %+v server %+v", r.Client, r.Server)
	}
	if r.Client.Boot != r.Server.Boot || r.Client.Kernel == "" {
		t.Errorf("sides: client %+v server %+v", r.Client, r.Server)
	}
	if r.Spec.Mode == Stream && os.Getuid() == 0 && r.Client.Congestion != "cubic" {
		t.Errorf("congestion control %q", r.Client.Congestion)
	}
	if _, err := json.Marshal(r); err != nil {
		t.Error(err)
	}
}

func TestErrorsNameHostAndPort(t *testing.T) {
	spec := Spec{Mode: RR, Duration: time.Millisecond, ClientCPU: AnyCPU, ServerCPU: AnyCPU}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := netip.MustParseAddrPort(lis.Addr().String()).Port()
	_ = lis.Close()
	_, err = Run(t.Context(), Target{Host: "127.0.0.1", Port: port}, spec)
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1 port "+strconv.Itoa(int(port))) {
		t.Errorf("nobody listens: %v", err)
	}
	target := serve(t, "127.0.0.1", false)
	spec.ServerCPU = 4095
	_, err = Run(t.Context(), target, spec)
	if err == nil || !strings.Contains(err.Error(), "port "+strconv.Itoa(int(target.Port))) {
		t.Errorf("server cannot pin: %v", err)
	}
	conn, err := net.Dial("tcp", net.JoinHostPort(target.Host, strconv.Itoa(int(target.Port))))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	var answer ready
	_, _ = conn.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
	if err := json.NewDecoder(conn).Decode(&answer); err != nil || !strings.HasPrefix(answer.Error, "not a test:") {
		t.Errorf("a stranger is told %+v, %v", answer, err)
	}
}

func TestPriorityNeedsLeave(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	spec := Spec{Mode: RR, Duration: 20 * time.Millisecond, ClientCPU: 0, ServerCPU: 0, Priority: 20}
	if _, err := Run(t.Context(), serve(t, "127.0.0.1", true), spec); err != nil {
		t.Errorf("SCHED_FIFO: %v", err)
	}
	_, err := Run(t.Context(), serve(t, "127.0.0.1", false), spec)
	if err == nil || !strings.Contains(err.Error(), "--allow-priority") {
		t.Errorf("a server that did not allow it: %v", err)
	}
	spec.Mode = Stream
	if err := spec.Validate(); err == nil {
		t.Error("a stream may starve the kernel")
	}
}

func TestOneTestAtATime(t *testing.T) {
	target := serve(t, "127.0.0.1", false)
	spec := Spec{Mode: RR, Duration: 3 * time.Second, ClientCPU: AnyCPU, ServerCPU: AnyCPU}
	first := make(chan error, 1)
	long := spec
	go func() { _, err := Run(t.Context(), target, long); first <- err }()
	spec.Duration = time.Millisecond
	deadline := time.Now().Add(5 * time.Second)
	for {
		_, err := Run(t.Context(), target, spec)
		if err != nil && strings.Contains(err.Error(), "busy") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the server took two tests at once")
		}
	}
	if err := <-first; err != nil {
		t.Error(err)
	}
}
