package main

import (
	"os"
	"strconv"
	"strings"
	"time"
)

// noise is what else went on in the machine around one round.
type noise struct {
	Round int       `json:"round"`
	Group string    `json:"group"`
	At    time.Time `json:"at"`
	// Foreign is the share of all CPUs that was busy while the harness slept, just before the round.
	Foreign float64 `json:"foreign"`
	// Steal is the share of CPU time that the hypervisor took during the round.
	Steal    float64 `json:"steal"`
	Load     float64 `json:"load"`     // average of one minute, before
	Pressure float64 `json:"pressure"` // PSI cpu, some avg10 in percent, before; our own same-CPU tests count in it
	Skipped  bool    `json:"skipped"`  // its values are not used
}

// The limits beyond which a round is not used.
const (
	maxForeign = 0.05
	maxSteal   = 0.02
)

// cpuTimes are ticks of /proc/stat since boot.
type cpuTimes struct{ busy, steal, total float64 }

func readCPU() cpuTimes {
	var t cpuTimes
	raw, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(raw), "\n")
	for i, f := range strings.Fields(line) {
		n, err := strconv.ParseFloat(f, 64)
		if err != nil || i > 8 { // guest time is in user time already
			continue
		}
		t.total += n
		switch i {
		case 4, 5: // idle, iowait
		case 8:
			t.steal += n
		default:
			t.busy += n
		}
	}
	return t
}

// lookFor is how long the harness sleeps to see what others do; at 100 ticks a second and two
// CPUs one tick is 0.5 %.
const lookFor = time.Second

// before looks at the machine. It waits, up to patience, for it to become quiet.
func before(patience time.Duration) noise {
	deadline := time.Now().Add(patience)
	for {
		a := readCPU()
		time.Sleep(lookFor)
		b := readCPU()
		n := noise{At: time.Now(), Load: field("/proc/loadavg", 0), Pressure: field("/proc/pressure/cpu", 1)}
		if b.total > a.total {
			n.Foreign = (b.busy - a.busy) / (b.total - a.total)
		}
		if n.Foreign <= maxForeign || time.Now().After(deadline) {
			n.Skipped = n.Foreign > maxForeign
			return n
		}
	}
}

// after completes n at the end of the round that began when from was read.
func (n *noise) after(from cpuTimes) {
	if to := readCPU(); to.total > from.total {
		n.Steal = (to.steal - from.steal) / (to.total - from.total)
	}
	n.Skipped = n.Skipped || n.Steal > maxSteal
}

// field reads the nth field of a file's first line as a number; "avg10=1.5" is 1.5.
func field(path string, n int) float64 {
	raw, _ := os.ReadFile(path)
	f := strings.Fields(string(raw))
	if len(f) <= n {
		return 0
	}
	_, after, found := strings.Cut(f[n], "=")
	if !found {
		after = f[n]
	}
	v, _ := strconv.ParseFloat(after, 64)
	return v
}
