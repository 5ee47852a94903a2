package bench

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// userHZ is the unit of /proc/stat, 1/100 s on every architecture Go knows (proc(5)).
const userHZ = 100

// place binds the calling thread, which must be locked, to one CPU and gives it its priority.
func place(cpu, priority int) error {
	var err error
	switch {
	case priority > 0:
		attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: uint32(priority)}
		err = unix.SchedSetAttr(0, &attr, 0)
	case priority < 0: // Linux has nice levels of threads
		err = unix.Setpriority(unix.PRIO_PROCESS, 0, priority)
	}
	if err != nil {
		return fmt.Errorf("set priority %d: %w", priority, err)
	}
	if cpu == AnyCPU {
		return nil
	}
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("pin to CPU %d: %w", cpu, err)
	}
	return nil
}

// usage is CPU time spent so far, in seconds.
type usage struct{ thread, system float64 }

// used reads the calling thread's and the machine's CPU time.
func used() usage {
	var ru unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_THREAD, &ru) // cannot fail with a valid pointer
	sec := func(t unix.Timeval) float64 { return float64(t.Nano()) / 1e9 }
	return usage{thread: sec(ru.Utime) + sec(ru.Stime), system: systemBusy()}
}

// systemBusy is the machine's non-idle, non-stolen CPU time in seconds; 0 where /proc is absent.
func systemBusy() float64 {
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := bytes.Cut(raw, []byte("\n"))
	fields := strings.Fields(string(line)) // cpu user nice system idle iowait irq softirq steal …
	var ticks float64
	for i, f := range fields {
		if i == 1 || i == 2 || i == 3 || i == 6 || i == 7 {
			n, _ := strconv.ParseFloat(f, 64)
			ticks += n
		}
	}
	return ticks / userHZ
}

// thisSide describes this machine and what was spent between two readings.
func thisSide(from, to usage, congestion string) Side {
	return Side{
		Kernel: firstLine("/proc/sys/kernel/osrelease"), Boot: firstLine("/proc/sys/kernel/random/boot_id"),
		Congestion: congestion,
		ThreadCPU:  to.thread - from.thread, SystemCPU: to.system - from.system,
	}
}

func firstLine(path string) string {
	raw, _ := os.ReadFile(path) // absent: empty
	return strings.TrimSpace(string(raw))
}
