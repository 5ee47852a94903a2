package main

import (
	"errors"
	"os"
	"testing"
)

// What serves is reached, in both families, and what does not is not.
func TestConnect(t *testing.T) {
	fail, err := serve(map[uint16]bool{9003: true})
	if errors.Is(err, os.ErrPermission) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"127.0.0.1:9003", "[::1]:9003"} {
		if err := connect([]string{to, "--timeout=2s", "--protocol=sctp"}); err != nil {
			t.Errorf("%s: %v", to, err)
		}
	}
	if err := connect([]string{"--timeout=200ms", "127.0.0.1:9004"}); err == nil || err.Error() != "TIMEOUT" {
		t.Errorf("a port that nobody serves: %v", err)
	}
	select {
	case err := <-fail:
		t.Error(err)
	default:
	}
}
