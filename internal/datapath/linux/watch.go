package linux

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"weft/internal/datapath/linux/rtnl"
	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
)

// finding is a row that the kernel does not agree with any more.
type finding struct {
	key  plan.Key
	what string
}

// Watch calls changed for each row whose kernel state was changed by somebody else, with what happened in words, until
// ctx ends. Events only say where to look: what is told is a comparison of the kernel with what is wanted, so our own
// changes are never told. A row that is told is not told again before it has been applied.
func (d *Driver) Watch(ctx context.Context, changed func(plan.Key, string)) error {
	m, err := d.monitor(
		unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE,
		unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_TC, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF)
	if err != nil {
		return err
	}
	defer m.Close()
	for lost := true; ; { // what happened before we listened is as good as lost
		d.look(nil, lost, changed)
		var events []rtnl.Event
		if events, lost, err = m.Next(ctx); err != nil {
			return err
		}
		d.look(events, lost, changed)
		lost = false
	}
}

// look finds the rows that events are about, or takes all, checks them and tells what is wrong.
func (d *Driver) look(events []rtnl.Event, all bool, changed func(plan.Key, string)) {
	var found []finding
	d.mu.Lock()
	if all {
		found = d.check(func(plan.Row) bool { return true })
	} else if t := d.touched(events); t != nil {
		found = append(d.check(t.about), d.revive(t)...)
	}
	for _, f := range found {
		d.told[f.key] = true
	}
	d.mu.Unlock()
	for _, f := range found {
		changed(f.key, f.what)
	}
}

// touched is what events were about.
type touched struct {
	links, lost map[string]bool // names of links that changed; of those that were down or away, if only for a moment
	up          map[string]bool // names of links that were up in the end
	dsts        map[netip.Prefix]bool
	neighs      map[netip.Addr]bool
	addrs       map[netip.Addr]bool
	rules, conf bool
}

// touched reads events; nil if they are about nothing of interest.
func (d *Driver) touched(events []rtnl.Event) *touched {
	t := &touched{
		links: map[string]bool{}, lost: map[string]bool{}, up: map[string]bool{}, dsts: map[netip.Prefix]bool{}, neighs: map[netip.Addr]bool{}, addrs: map[netip.Addr]bool{},
	}
	for _, e := range events {
		switch e.Type {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			if l := rtnl.ParseLink(e.Body); l != nil && e.Body[0] == unix.AF_UNSPEC {
				t.links[l.Name] = true
				t.up[l.Name] = l.Up && e.Type == unix.RTM_NEWLINK
				t.lost[l.Name] = t.lost[l.Name] || !t.up[l.Name]
			}
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			if r := rtnl.ParseRoute(e.Body); r.Table == unix.RT_TABLE_MAIN {
				t.dsts[r.Dst] = true
			}
		case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
			t.neighs[rtnl.ParseNeighbour(e.Body).Addr] = true
		case unix.RTM_NEWADDR, unix.RTM_DELADDR:
			a := rtnl.ParseAddr(e.Body)
			t.addrs[a.Prefix.Addr()] = true
			if l, err := d.nl.LinkByIndex(a.Index); err == nil && l != nil {
				t.lost[l.Name] = true // its routes may have gone with the address
			}
		case unix.RTM_NEWQDISC, unix.RTM_DELQDISC:
			if l := d.limited(e.Body); l != "" {
				t.links[l] = true
			}
		case unix.RTM_NEWRULE, unix.RTM_DELRULE:
			t.rules = true
		case rtmNewNetconf:
			t.conf = true
		}
	}
	if len(t.links)+len(t.lost)+len(t.dsts)+len(t.neighs)+len(t.addrs) == 0 && !t.rules && !t.conf {
		return nil
	}
	return t
}

// limited returns the name of the link that a change of a token bucket was about, "" for other queues: those of BPF
// programs change with every pod.
func (d *Driver) limited(body []byte) string {
	if len(body) < tcmsgLen {
		return ""
	}
	for typ, v := range rtnl.Attrs(body[tcmsgLen:]) {
		if typ == tcaKind && rtnl.Text(v) == "tbf" {
			if l, err := d.nl.LinkByIndex(rtnl.Uint(body[4:8])); err == nil && l != nil {
				return l.Name
			}
		}
	}
	return ""
}

const rtmNewNetconf = 80 // RTM_NEWNETCONF

// about reports whether a row may have changed.
func (t *touched) about(r plan.Row) bool {
	switch r := r.(type) {
	case *plan.Sysctl:
		return t.conf
	case *plan.Overlay:
		return t.links[r.Name]
	case *plan.Rule:
		return t.rules
	case *plan.PodLink:
		return t.links[r.HostIf]
	case *plan.Neighbour:
		return t.neighs[r.Addr] || t.lost[r.Dev]
	case *plan.Route:
		// The kernel adapts MTUs of IPv6 routes to their device's without a word.
		return t.dsts[r.Dst] || t.lost[r.Dev] || t.addrs[r.Src] || r.MTU != 0 && t.links[r.Dev]
	}
	return false
}

// revive finds rows that failed and may succeed now: their device came, or came up, or has the address that they need.
func (d *Driver) revive(t *touched) []finding {
	var out []finding
	for k, r := range d.failed {
		dev, src := "", netip.Addr{}
		switch r := r.(type) {
		case *plan.Neighbour:
			dev = r.Dev
		case *plan.Route:
			dev, src = r.Dev, r.Src
		}
		switch {
		case src.IsValid() && t.addrs[src]:
			out = append(out, finding{k, fmt.Sprintf("address %s of %s changed", src, dev)})
		case t.up[dev]:
			out = append(out, finding{k, fmt.Sprintf("link %s came up", dev)})
		default:
			continue
		}
		delete(d.failed, k)
	}
	return out
}

// check compares the rows that were right and that pick picks with the kernel.
func (d *Driver) check(pick func(plan.Row) bool) []finding {
	var rows []plan.Row
	for k, r := range d.have {
		if !d.told[k] && pick(r) {
			rows = append(rows, r)
		}
	}
	slices.SortFunc(rows, func(a, b plan.Row) int { return strings.Compare(a.Key().String(), b.Key().String()) })
	routes := d.routesOf(slices.Collect(plan.Of[*plan.Route](rows)))
	var out []finding
	for _, r := range rows {
		var what string
		switch r := r.(type) {
		case *plan.Sysctl:
			what = d.checkSysctl(r)
		case *plan.Overlay:
			what = d.checkOverlay(r)
		case *plan.Rule:
			if there, err := hasRule(d.nl, r); err == nil && !there {
				what = fmt.Sprintf("rule %s was deleted", r)
			}
		case *plan.PodLink:
			what = d.checkPodLink(r)
		case *plan.Neighbour:
			what = d.checkNeighbour(r)
		case *plan.Route:
			what = d.checkRoute(r, routes)
		}
		if what != "" {
			out = append(out, finding{r.Key(), what})
		}
	}
	return out
}

func (d *Driver) checkSysctl(s *plan.Sysctl) (what string) {
	_ = d.here(func() error {
		if v, err := readSysctl(s.Path); err == nil && v != s.Value {
			what = fmt.Sprintf("sysctl %s was changed to %s", s.Path, v)
		}
		return nil
	})
	return what
}

// checkLink compares what all of our links have in common.
func (d *Driver) checkLink(name, alias string, mac model.MAC, mtu int) (*rtnl.Link, string) {
	l, err := d.nl.LinkByName(name)
	switch {
	case err != nil:
		return nil, ""
	case l == nil:
		return nil, fmt.Sprintf("link %s was deleted", name)
	case l.Alias != alias:
		return nil, fmt.Sprintf("link %s was replaced, or lost its alias (now %q)", name, l.Alias)
	case !l.Up:
		return l, fmt.Sprintf("link %s was set down", name)
	case l.MAC != mac:
		return l, fmt.Sprintf("MAC of link %s was changed to %s", name, l.MAC)
	case l.MTU != mtu:
		return l, fmt.Sprintf("MTU of link %s was changed to %d", name, l.MTU)
	case l.Group != Group:
		return l, fmt.Sprintf("group of link %s was changed to %d", name, l.Group)
	case l.Master != 0:
		return l, fmt.Sprintf("link %s was put under another interface (index %d)", name, l.Master)
	}
	return l, ""
}

func (d *Driver) checkOverlay(o *plan.Overlay) string {
	l, what := d.checkLink(o.Name, overlayAlias, o.MAC, o.MTU)
	if what != "" || l == nil {
		return what
	}
	switch v := parseVXLAN(l.Data); {
	case v.port != int(o.Port) || !v.external:
		return fmt.Sprintf("link %s was replaced", o.Name)
	case !l.NoARP:
		return fmt.Sprintf("ARP of link %s was switched on", o.Name)
	}
	return ""
}

func (d *Driver) checkPodLink(p *plan.PodLink) string {
	l, what := d.checkLink(p.HostIf, podAlias(p), model.GatewayMAC, p.MTU)
	if l == nil {
		if _, err := os.Stat(p.Netns); err != nil {
			return "" // the pod is gone and took the link along; its deletion is on its way
		}
	} else if what == "" && !isClosed(l) {
		what = fmt.Sprintf("policy of link %s was changed: without a program, all would leave the pod", p.HostIf)
	} else if what == "" && (l.Qdisc == "tbf") != (p.Ingress.Bits != 0) {
		what = fmt.Sprintf("rate limit of link %s was changed (queue %s)", p.HostIf, l.Qdisc)
	}
	return what
}

func (d *Driver) checkNeighbour(n *plan.Neighbour) string {
	i, err := d.nl.IndexByName(n.Dev)
	if err != nil {
		return fmt.Sprintf("neighbour %s dev %s went with its link", n.Addr, n.Dev)
	}
	switch h, err := d.nl.NeighbourOf(i, n.Addr); {
	case err != nil || h.Permanent && h.MAC == n.MAC:
		return ""
	case h.Permanent:
		return fmt.Sprintf("neighbour %s dev %s was changed to %s", n.Addr, n.Dev, h.MAC)
	}
	return fmt.Sprintf("neighbour %s dev %s was deleted", n.Addr, n.Dev)
}

// many is from how many routes on one list is cheaper than that many questions.
const many = 16

// routesOf returns the routes of table main to the destinations of the rows, by destination; nil if they cannot be read.
func (d *Driver) routesOf(rows []*plan.Route) map[netip.Prefix][]rtnl.Route {
	out := map[netip.Prefix][]rtnl.Route{}
	if len(rows) < many {
		for _, r := range rows {
			got, err := d.nl.RoutesTo(r.Dst.Masked())
			if err != nil {
				return nil
			}
			out[r.Dst.Masked()] = got
		}
		return out
	}
	for _, f := range netset.Families() {
		err := d.nl.Dump(rtnl.NewRequest(unix.RTM_GETROUTE, 0, rtnl.RtMsg(rtnl.AF(f), 0, 0)), func(_ uint16, b []byte) {
			if r := rtnl.ParseRoute(b); r.Table == unix.RT_TABLE_MAIN {
				out[r.Dst] = append(out[r.Dst], r)
			}
		})
		if err != nil {
			return nil
		}
	}
	return out
}

func (d *Driver) checkRoute(r *plan.Route, have map[netip.Prefix][]rtnl.Route) string {
	i, err := d.nl.IndexByName(r.Dev)
	if have == nil {
		return ""
	}
	if err != nil {
		return fmt.Sprintf("route %s went with link %s", r.Dst, r.Dev)
	}
	want := rtnl.Route{Dst: r.Dst.Masked(), Dev: i, Src: r.Src, MTU: r.MTU}
	if r.Via.IsValid() {
		want.Via = r.Via.Unmap()
	}
	got := have[want.Dst]
	switch {
	case slices.ContainsFunc(got, func(g rtnl.Route) bool { return g.Proto == rtnl.Protocol && want.Same(g) }):
		return ""
	case len(got) == 0:
		return fmt.Sprintf("route %s dev %s was deleted", r.Dst, r.Dev)
	case got[0].Proto == rtnl.Protocol:
		return fmt.Sprintf("route %s dev %s was changed (mtu %d via %s)", r.Dst, r.Dev, got[0].MTU, got[0].Via)
	}
	return fmt.Sprintf("route %s dev %s was replaced by another (protocol %d)", r.Dst, r.Dev, got[0].Proto)
}
