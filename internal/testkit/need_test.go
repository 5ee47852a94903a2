package testkit

import (
	"errors"
	"testing"
)

// TestLacks: what is required fails the test, all else skips it.
func TestLacks(t *testing.T) {
	for required, want := range map[string]string{"": "skipped", "vlan": "skipped", "sctp": "failed", "vlan sctp": "failed"} {
		t.Setenv(RequiredEnv, required)
		r := &ended{TB: t}
		Lacks(r, SCTP, errors.New("protocol not supported"))
		if r.how != want {
			t.Errorf("with %s=%q the test was %s, want %s", RequiredEnv, required, r.how, want)
		}
	}
}

// ended stands in for a test that notes how it would have ended.
type ended struct {
	testing.TB
	how string
}

func (e *ended) Fatalf(string, ...any) { e.how = "failed" }

func (e *ended) Skipf(string, ...any) {
	if e.how == "" { // the real Fatalf does not return
		e.how = "skipped"
	}
}
