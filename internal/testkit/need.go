package testkit

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What not every kernel has, and some tests need.
const (
	SCTP = "sctp" // sockets of the protocol
	VLAN = "vlan" // 802.1q devices
)

// RequiredEnv is the environment variable that names what tests must find, separated by spaces. The machines of
// test/vm set it, so that no test can be left out there unnoticed.
const RequiredEnv = "WEFT_REQUIRED"

// Lacks ends a test because the kernel lacks something: it is skipped, or has failed where that is required.
func Lacks(tb testing.TB, what string, why error) {
	tb.Helper()
	if slices.Contains(strings.Fields(os.Getenv(RequiredEnv)), what) {
		tb.Fatalf("%s says that this kernel has %s: %v", RequiredEnv, what, why)
	}
	tb.Skipf("this kernel has no %s: %v", what, why)
}

// RequireSCTP is for tests that need SCTP sockets.
func RequireSCTP(tb testing.TB) {
	tb.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		Lacks(tb, SCTP, err)
	}
	_ = unix.Close(fd)
}

// RequireVLAN is for tests that need VLAN devices.
func RequireVLAN(tb testing.TB) {
	tb.Helper()
	n := New(tb)
	n.IP(tb, "link add v0 type veth peer name v1")
	if out, err := n.Try(tb, "ip", "link", "add", "link", "v0", "name", "v0.1", "type", "vlan", "id", "1"); err != nil {
		Lacks(tb, VLAN, errors.New(strings.TrimSpace(out)))
	}
}
