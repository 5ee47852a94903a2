package linux

import (
	"fmt"

	"golang.org/x/sys/unix"

	"weft/internal/datapath/linux/rtnl"
	"weft/internal/netset"
	"weft/internal/plan"
)

// plan returns the route of a row; false if its device is not there.
func (a *apply) planned(row *plan.Route) (rtnl.Route, bool) {
	r := rtnl.Route{Dst: row.Dst.Masked(), Dev: a.linkIndex(row.Dev), Src: row.Src, MTU: row.MTU}
	if row.Via.IsValid() {
		r.Via = row.Via.Unmap()
	}
	return r, r.Dev != 0
}

// setRoutes makes the host's routes. They are ours by their protocol number in table main, and Sweep deletes those
// that nobody wants. A dead agent's routes go on working until their device is deleted.
func (a *apply) setRoutes(rows []*plan.Route) {
	var reqs []*rtnl.Request
	var asked []*plan.Route
	for _, row := range rows {
		r, ok := a.planned(row)
		if !ok {
			a.res[row.Key()] = fmt.Errorf("add route %s: there is no interface %s", row.Dst, row.Dev)
			continue
		}
		reqs = append(reqs, r.Request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL))
		asked = append(asked, row)
	}
	for i, rep := range a.nl.Do(reqs...) {
		err := rep.Err
		if rtnl.IsErrno(err, unix.EEXIST) {
			err = a.replaceRoute(asked[i])
		}
		if err != nil {
			err = fmt.Errorf("add route %s: %w", asked[i], err)
		}
		a.res[asked[i].Key()] = err
	}
}

// replaceRoute deals with a destination that has a route. Ours is made as it should be. Another's is replaced only
// if it took the place of ours.
func (a *apply) replaceRoute(row *plan.Route) error {
	want, _ := a.planned(row)
	old, err := a.nl.RoutesTo(want.Dst)
	if err != nil {
		return err
	}
	mine := a.d.have[row.Key()] != nil
	for _, o := range old {
		if o.Proto == rtnl.Protocol && want.Same(o) {
			return nil
		}
		mine = mine || o.Proto == rtnl.Protocol
	}
	if !mine {
		return fmt.Errorf("a foreign route is in the way (protocol %d, interface %d, via %v)", old[0].Proto, old[0].Dev, old[0].Via)
	}
	return a.nl.One(want.Request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE)).Err
}

func (a *apply) deleteRoutes(rows []*plan.Route) {
	var reqs []*rtnl.Request
	var asked []*plan.Route
	for _, row := range rows {
		if r, ok := a.planned(row); ok {
			reqs = append(reqs, rtnl.Route{Dst: r.Dst, Dev: r.Dev}.Request(unix.RTM_DELROUTE, 0).AnyScope())
			asked = append(asked, row)
		} else {
			a.res[row.Key()] = nil // it went with its device
		}
	}
	for i, rep := range a.nl.Do(reqs...) {
		if a.res[asked[i].Key()] = nil; rep.Err != nil && !gone(rep.Err) {
			a.res[asked[i].Key()] = fmt.Errorf("delete route %s: %w", asked[i], rep.Err)
		}
	}
}

// sweepRoutes deletes routes of ours that are not wanted.
func (d *Driver) sweepRoutes(want plan.View) error {
	a := &apply{d: d, nl: d.nl, index: map[string]int{}}
	var reqs []*rtnl.Request
	for _, f := range netset.Families() {
		err := d.nl.Dump(rtnl.NewRequest(unix.RTM_GETROUTE, 0, rtnl.RtMsg(rtnl.AF(f), 0, 0)), func(_ uint16, b []byte) {
			r := rtnl.ParseRoute(b)
			if r.Proto != rtnl.Protocol || r.Table != unix.RT_TABLE_MAIN || netset.OfPrefix(r.Dst) != f {
				return
			}
			row := plan.Get[*plan.Route](want, (&plan.Route{Dst: r.Dst}).Key())
			if row != nil && a.linkIndex(row.Dev) == r.Dev {
				return
			}
			reqs = append(reqs, r.Request(unix.RTM_DELROUTE, 0).AnyScope())
			d.log.Info("sweeping route", "dst", r.Dst.String())
		})
		if err != nil {
			return fmt.Errorf("list the routes: %w", err)
		}
	}
	for _, rep := range d.nl.Do(reqs...) {
		if rep.Err != nil && !gone(rep.Err) {
			return fmt.Errorf("sweep routes: %w", rep.Err)
		}
	}
	return nil
}
