package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The built program, executed under the name loopback as a runtime does, sets lo up.
func TestLoopback(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it enters a network namespace")
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "weft-cni")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	link := filepath.Join(dir, "loopback")
	if err := os.Symlink("weft-cni", link); err != nil {
		t.Fatal(err)
	}
	holder := exec.Command("sleep", "60")
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = holder.Process.Kill(); _ = holder.Wait() })
	netns := filepath.Join("/proc", strconv.Itoa(holder.Process.Pid), "ns/net")
	do := func(command, netns string) (string, error) {
		cmd := exec.Command(link)
		cmd.Env = []string{"CNI_COMMAND=" + command, "CNI_CONTAINERID=c", "CNI_IFNAME=lo", "CNI_PATH=" + dir, "CNI_NETNS=" + netns}
		cmd.Stdin = strings.NewReader(`{"cniVersion":"0.3.1","name":"cni-loopback","type":"loopback"}`)
		out, err := cmd.Output()
		return string(out), err
	}
	for range 2 { // a second time changes nothing
		out, err := do("ADD", netns)
		var res struct {
			CNIVersion string
			Interfaces []struct{ Name, Sandbox string }
		}
		if err != nil || json.Unmarshal([]byte(out), &res) != nil || res.CNIVersion != "0.3.1" ||
			len(res.Interfaces) != 1 || res.Interfaces[0].Name != "lo" || res.Interfaces[0].Sandbox != netns {
			t.Fatalf("ADD: %s %v", out, err)
		}
	}
	out, err := exec.Command("nsenter", "-t", strconv.Itoa(holder.Process.Pid), "-n", "ip", "-o", "link", "show", "lo").Output()
	if err != nil || !strings.Contains(string(out), "UP") {
		t.Errorf("lo is not up: %s %v", out, err)
	}
	for _, command := range []string{"CHECK", "DEL", "GC", "STATUS", "VERSION"} {
		if out, err := do(command, netns); err != nil {
			t.Errorf("%s: %s %v", command, out, err)
		}
	}
	if out, err := do("ADD", "/nonexistent"); err == nil || !strings.Contains(out, "/nonexistent") {
		t.Errorf("ADD without a namespace: %s %v", out, err)
	}
}
