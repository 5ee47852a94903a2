package linux

import (
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"weft/internal/netset"
)

// PodAddrs returns the addresses that the kernel routes to pod links of ours, with the names of the links: what pods have,
// whatever any record says.
func (d *Driver) PodAddrs() (map[netip.Addr]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	links, err := d.nl.links()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	pods := map[int]string{}
	for _, l := range links {
		// Endpoint IDs have a slash, the aliases of our other links have none.
		if l.ours() && strings.Contains(l.alias, "/") {
			pods[l.index] = l.name
		}
	}
	out := map[netip.Addr]string{}
	for _, f := range netset.Families() {
		err := d.nl.dump(newRequest(unix.RTM_GETROUTE, 0, rtmsg(afOf(f), 0, 0)), func(_ uint16, b []byte) {
			if r := parseRoute(b); r.table == unix.RT_TABLE_MAIN && r.dst.IsSingleIP() && pods[r.dev] != "" {
				out[r.dst.Addr()] = pods[r.dev]
			}
		})
		if err != nil {
			return nil, fmt.Errorf("list %s routes: %w", f, err)
		}
	}
	return out, nil
}
