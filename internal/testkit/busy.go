package testkit

import (
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"
)

// Within gives a test more time than what it promises, because a machine that does other things cannot keep
// promises of time: the limit to wait for is three times the promise.
func Within(promise time.Duration) time.Duration { return 3 * promise }

// Promised fails the test if something took longer than promised on a machine that had time for it.
func Promised(t testing.TB, what string, took, promise time.Duration) {
	t.Helper()
	if took <= promise {
		return
	}
	var load float64
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		_, _ = fmt.Sscan(string(b), &load)
	}
	if load > 2*float64(runtime.NumCPU()) {
		t.Logf("%s took %s, more than %s; the machine is busy (load %.0f)", what, took, promise, load)
		return
	}
	t.Errorf("%s took %s, promised are %s", what, took, promise)
}
