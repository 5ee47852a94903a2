// Package bench measures the network between two hosts: bulk transfer, round trips,
// connections, datagrams and many flows at once, each with what it cost in CPU time.
//
// One side runs Serve, the other Run. The measuring thread is locked, pinned on request,
// and makes raw blocking system calls, so that the Go scheduler is not in the figures.
// It measures and does the arithmetic of figures; it neither builds networks nor decides
// whether a figure is good (see test/bench), and it reads nothing but its own sockets and /proc.
package bench

import (
	"fmt"
	"slices"
	"time"
)

// Mode is what is measured.
type Mode string

// The modes.
const (
	Stream Mode = "stream"  // bulk TCP in one direction, bytes counted by the receiver
	RR     Mode = "rr"      // TCP round trips on one connection
	CRR    Mode = "crr"     // TCP connect, one byte each way, close by RST
	UDPRR  Mode = "udp-rr"  // UDP round trips
	UDPPPS Mode = "udp-pps" // UDP datagrams as fast as one thread can, counted by the receiver
	Flows  Mode = "flows"   // TCP round trips on many connections at once
)

// Modes lists all modes.
func Modes() []Mode { return []Mode{Stream, RR, CRR, UDPRR, UDPPPS, Flows} }

// DefaultPort is the control port; the test's traffic uses the port after it.
const DefaultPort = 9820

// AnyCPU leaves a thread unpinned.
const AnyCPU = -1

// Spec says what to measure. The client sends it to the server as it is.
type Spec struct {
	Mode     Mode          `json:"mode"`
	Warmup   time.Duration `json:"warmup"`   // not counted, nanoseconds
	Duration time.Duration `json:"duration"` // counted, nanoseconds
	Size     int           `json:"size"`     // bytes of a write (stream), of a message (others); 0: 131072 and 1
	Flows    int           `json:"flows,omitempty"`
	// Buffer is SO_SNDBUF and SO_RCVBUF in bytes on both sides; 0 leaves the kernel's auto-tuning.
	Buffer int `json:"buffer,omitempty"`
	// Congestion is the congestion control asked for; a side that may not use it says what it used.
	Congestion string `json:"congestion,omitempty"`
	ClientCPU  int    `json:"clientCPU"` // AnyCPU or a CPU number
	ServerCPU  int    `json:"serverCPU"`
	// Priority of the measuring threads: 0 as the process, -20..-1 a nice level, 1..99 SCHED_FIFO.
	// It is for machines on which others work too. A busy loop under SCHED_FIFO keeps the kernel's own
	// threads off its CPU: not for stream and udp-pps.
	Priority int `json:"priority,omitempty"`
	// Gaps is how many of the longest times without progress are kept; 0: 32.
	Gaps int `json:"gaps,omitempty"`
}

// Defaults fills what is empty.
func (s *Spec) Defaults() {
	if s.Size == 0 {
		s.Size = 1
		if s.Mode == Stream {
			s.Size = 128 << 10
		}
	}
	if s.Flows == 0 {
		s.Flows = 100
	}
	if s.Mode != Flows {
		s.Flows = 0
	}
	if s.Gaps == 0 {
		s.Gaps = 32
	}
}

// Validate names the first field that cannot be.
func (s *Spec) Validate() error {
	switch {
	case !slices.Contains(Modes(), s.Mode):
		return fmt.Errorf("mode: %q is not one of %v", s.Mode, Modes())
	case s.Duration <= 0 || s.Duration > time.Hour:
		return fmt.Errorf("duration: %v is not in 1ns..1h", s.Duration)
	case s.Warmup < 0 || s.Warmup > time.Minute:
		return fmt.Errorf("warmup: %v is not in 0..1m", s.Warmup)
	case s.Size < 1 || s.Size > 1<<20:
		return fmt.Errorf("size: %d is not in 1..1048576", s.Size)
	case (s.Mode == UDPRR || s.Mode == UDPPPS) && s.Size > 65000:
		return fmt.Errorf("size: %d does not fit a datagram (65000)", s.Size)
	case s.Mode == Flows && (s.Flows < 1 || s.Flows > 60000):
		return fmt.Errorf("flows: %d is not in 1..60000", s.Flows)
	case s.Buffer < 0 || s.Buffer > 1<<30:
		return fmt.Errorf("buffer: %d is not in 0..1073741824", s.Buffer)
	case s.Priority < -20 || s.Priority > 99:
		return fmt.Errorf("priority: %d is not in -20..99", s.Priority)
	case s.Priority > 0 && (s.Mode == Stream || s.Mode == UDPPPS):
		return fmt.Errorf("priority: %d (SCHED_FIFO) would starve the kernel in mode %s", s.Priority, s.Mode)
	case s.Gaps < 1 || s.Gaps > 1<<16:
		return fmt.Errorf("gaps: %d is not in 1..65536", s.Gaps)
	case s.ClientCPU < AnyCPU || s.ServerCPU < AnyCPU:
		return fmt.Errorf("cpu: %d, %d: neither -1 nor a CPU", s.ClientCPU, s.ServerCPU)
	}
	return nil
}

// span is how long both sides wait at most for each other, beyond which the test has failed.
func (s *Spec) span() time.Duration { return s.Warmup + s.Duration + stall }

// stall is how long a side waits without any progress before it gives up.
const stall = 15 * time.Second

// tick is the socket timeout: how often a blocked thread looks at its deadline. It also keeps
// a raw system call from holding up the runtime for ever.
const tick = 100 * time.Millisecond

// Side is what one side of a test used and was.
type Side struct {
	Kernel string `json:"kernel"`
	// Boot is the kernel's boot ID: two sides with the same one share their CPUs.
	Boot string `json:"boot"`
	// Congestion is what the connection really used; "" for UDP.
	Congestion string `json:"congestion,omitempty"`
	// ThreadCPU is the CPU time of the measuring thread in seconds, with the softirqs that ran in it.
	ThreadCPU float64 `json:"threadCPU"`
	// SystemCPU is all CPU time of the machine in seconds, from /proc/stat, other programs included.
	SystemCPU float64 `json:"systemCPU"`
}

// Gap is a time without progress.
type Gap struct {
	At     time.Time     `json:"at"` // its end
	Length time.Duration `json:"length"`
}

// Result is one test's outcome, as the client reports it.
type Result struct {
	Spec    Spec    `json:"spec"`
	Host    string  `json:"host"`   // as asked for
	Remote  string  `json:"remote"` // address and data port
	Family  string  `json:"family"` // IPv4 or IPv6
	Seconds float64 `json:"seconds"`
	// Bytes were received (stream, udp-pps) or exchanged one way (others).
	Bytes uint64 `json:"bytes"`
	// Transactions are round trips, connections or received datagrams; 0 for stream.
	Transactions uint64 `json:"transactions,omitempty"`
	// Lost are datagrams without an answer (udp-rr) or that did not arrive (udp-pps).
	Lost uint64 `json:"lost,omitempty"`
	// BitsPerSecond is the goodput.
	BitsPerSecond float64 `json:"bitsPerSecond"`
	// PerSecond are transactions a second.
	PerSecond float64  `json:"perSecond,omitempty"`
	Latency   *Summary `json:"latency,omitempty"` // nil for stream and udp-pps
	// Setup is how long opening all connections took, flows only.
	Setup time.Duration `json:"setup,omitempty"`
	// Longest are the longest times without progress, longest first, at most Spec.Gaps.
	Longest []Gap `json:"longest,omitempty"`
	Client  Side  `json:"client"`
	Server  Side  `json:"server"`
}

// ThreadCost is the measuring threads' CPU seconds per GB (stream), or per 100,000 transactions.
func (r *Result) ThreadCost() float64 { return r.per(r.Client.ThreadCPU + r.Server.ThreadCPU) }

// SystemCost is ThreadCost of all CPU time that both machines spent, whoever spent it.
func (r *Result) SystemCost() float64 {
	if r.Client.Boot == r.Server.Boot {
		return r.per(max(r.Client.SystemCPU, r.Server.SystemCPU))
	}
	return r.per(r.Client.SystemCPU + r.Server.SystemCPU)
}

func (r *Result) per(cpu float64) float64 {
	units := float64(r.Transactions) / 1e5
	if r.Spec.Mode == Stream {
		units = float64(r.Bytes) / 1e9
	}
	if units == 0 {
		return 0
	}
	return cpu / units
}

// finish computes the rates.
func (r *Result) finish() {
	if r.Seconds > 0 {
		r.BitsPerSecond = float64(r.Bytes) * 8 / r.Seconds
		r.PerSecond = float64(r.Transactions) / r.Seconds
	}
}
