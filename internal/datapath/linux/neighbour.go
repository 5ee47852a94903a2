package linux

import (
	"fmt"

	"golang.org/x/sys/unix"

	"weft/internal/datapath/linux/rtnl"
	"weft/internal/netset"
	"weft/internal/plan"
)

const ndaProtocol = 12 // NDA_PROTOCOL: who made the entry

// neighbourRequest makes or replaces a permanent entry.
func neighbourRequest(n *plan.Neighbour, index int) *rtnl.Request {
	r := rtnl.NewRequest(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, rtnl.NdMsg(rtnl.AF(netset.Of(n.Addr)), index, unix.NUD_PERMANENT))
	return r.Addr(unix.NDA_DST, n.Addr).Bytes(unix.NDA_LLADDR, n.MAC[:]...).Bytes(ndaProtocol, rtnl.Protocol)
}

// setNeighbours makes permanent entries; one that is right stays untouched. They are ours if they are permanent and
// on a link of ours; Sweep deletes those that nobody wants, and they go with their link.
func (a *apply) setNeighbours(rows []*plan.Neighbour) {
	var reqs []*rtnl.Request
	var asked []*plan.Neighbour
	for _, row := range rows {
		i := a.linkIndex(row.Dev)
		if i == 0 {
			a.res[row.Key()] = fmt.Errorf("add neighbour %s: there is no interface %s", row.Addr, row.Dev)
			continue
		}
		reqs = append(reqs, neighbourRequest(row, i))
		asked = append(asked, row)
	}
	for i, rep := range a.nl.Do(reqs...) {
		if a.res[asked[i].Key()] = nil; rep.Err != nil {
			a.res[asked[i].Key()] = fmt.Errorf("add neighbour %s: %w", asked[i], rep.Err)
		}
	}
}

func (a *apply) deleteNeighbours(rows []*plan.Neighbour) {
	var reqs []*rtnl.Request
	var asked []*plan.Neighbour
	for _, row := range rows {
		a.res[row.Key()] = nil
		if i := a.linkIndex(row.Dev); i != 0 {
			msg := rtnl.NewRequest(unix.RTM_DELNEIGH, 0, rtnl.NdMsg(rtnl.AF(netset.Of(row.Addr)), i, 0))
			reqs = append(reqs, msg.Addr(unix.NDA_DST, row.Addr))
			asked = append(asked, row)
		}
	}
	for i, rep := range a.nl.Do(reqs...) {
		if rep.Err != nil && !gone(rep.Err) {
			a.res[asked[i].Key()] = fmt.Errorf("delete neighbour %s: %w", asked[i], rep.Err)
		}
	}
}

// sweepNeighbours deletes permanent entries on our links that are not wanted.
func (d *Driver) sweepNeighbours(want plan.View) error {
	all, err := d.nl.Links()
	if err != nil {
		return err
	}
	devs := map[int]string{}
	for _, l := range all {
		if ours(l) {
			devs[l.Index] = l.Name
		}
	}
	var reqs []*rtnl.Request
	err = d.nl.Dump(rtnl.NewRequest(unix.RTM_GETNEIGH, 0, rtnl.NdMsg(0, 0, 0)), func(_ uint16, b []byte) {
		n := rtnl.ParseNeighbour(b)
		dev, found := devs[n.Dev]
		if !found || !n.Permanent || want.Get((&plan.Neighbour{Dev: dev, Addr: n.Addr}).Key()) != nil {
			return
		}
		msg := rtnl.NewRequest(unix.RTM_DELNEIGH, 0, rtnl.NdMsg(rtnl.AF(netset.Of(n.Addr)), n.Dev, 0))
		reqs = append(reqs, msg.Addr(unix.NDA_DST, n.Addr))
	})
	if err != nil {
		return fmt.Errorf("list the neighbours: %w", err)
	}
	for _, rep := range d.nl.Do(reqs...) {
		if rep.Err != nil && !gone(rep.Err) {
			return fmt.Errorf("sweep neighbours: %w", rep.Err)
		}
	}
	return nil
}
