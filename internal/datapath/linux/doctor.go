package linux

import (
	"context"
	"fmt"
	"os"
	"strings"
)

// Doctor looks for what of this host keeps packets from pods and is not ours to change: one line each.
func (d *Driver) Doctor(context.Context) []string {
	all, err := d.devices()
	if err != nil {
		return []string{fmt.Sprintf("the interfaces cannot be read: %v", err)}
	}
	var out []string
	_ = d.here(func() error {
		every, _ := readSysctl("net/ipv4/conf/all/rp_filter")
		for _, dev := range all.list() {
			if dev.Name == "lo" || !dev.Up {
				continue
			}
			// The stricter of the two counts, and strict is 1 (kernel: ip-sysctl.rst).
			own, err := readSysctl("net/ipv4/conf/" + dev.Name + "/rp_filter")
			if err == nil && (own == "1" && every != "2" || every == "1" && own != "2") {
				out = append(out, fmt.Sprintf("interface %s: rp_filter is strict (all %s, own %s): replies that take another way are dropped", dev.Name, every, own))
			}
			if v, err := readSysctl("net/ipv4/conf/" + dev.Name + "/forwarding"); err == nil && v == "0" {
				out = append(out, fmt.Sprintf("interface %s: forwarding is off: packets from it do not reach pods", dev.Name))
			}
		}
		return nil
	})
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err == nil && !strings.Contains(string(mounts), " - bpf ") {
		out = append(out, "no bpffs is mounted: BPF programs do not outlive the agent")
	}
	return out
}
