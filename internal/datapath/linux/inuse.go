package linux

import (
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"weft/internal/datapath/linux/rtnl"
	"weft/internal/netset"
)

// PodAddrs returns the addresses that the kernel routes to pod links of ours, with the names of the links: what pods have,
// whatever any record says.
func (d *Driver) PodAddrs() (map[netip.Addr]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	links, err := d.nl.Links()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	pods := map[int]string{}
	for _, l := range links {
		// Endpoint IDs have a slash, the aliases of our other links have none.
		if ours(l) && strings.Contains(l.Alias, "/") {
			pods[l.Index] = l.Name
		}
	}
	out := map[netip.Addr]string{}
	for _, f := range netset.Families() {
		err := d.nl.Dump(rtnl.NewRequest(unix.RTM_GETROUTE, 0, rtnl.RtMsg(rtnl.AF(f), 0, 0)), func(_ uint16, b []byte) {
			if r := rtnl.ParseRoute(b); r.Table == unix.RT_TABLE_MAIN && r.Dst.IsSingleIP() && pods[r.Dev] != "" {
				out[r.Dst.Addr()] = pods[r.Dev]
			}
		})
		if err != nil {
			return nil, fmt.Errorf("list %s routes: %w", f, err)
		}
	}
	return out, nil
}
