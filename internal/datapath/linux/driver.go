// Package linux makes links, addresses, routes, rules, neighbours and sysctls of one network
// namespace, and the insides of its pods' namespaces, equal to the plan. It is the only package that
// speaks rtnetlink.
//
// It decides nothing: rows arrive compiled. It does not touch nftables (datapath/nft) or BPF
// (datapath/ebpf), and never what does not bear our mark, except for the sysctls that the plan names. A
// dead agent leaves everything in place and forwarding goes on; the next one leaves alone what is right.
package linux

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"weft/internal/datapath/linux/rtnl"
	"weft/internal/plan"
)

// Marks of what is ours.
const (
	// Protocol is the number that our routes, rules, addresses and neighbours bear (rtnetlink(7), rtm_protocol).
	Protocol = rtnl.Protocol
	// Group is the group of our links (`ip link show group 119`).
	Group = 0x77
	// AliasPrefix starts the alias of our links.
	AliasPrefix = "weft:"
)

// Driver applies rows to the network namespace that it was made in.
//
// It recognises what is ours by the marks above and the rows' doc comments; Sweep deletes what bears
// them and is not wanted. If the agent dies between two steps, a link may be there without its insides: Apply
// inspects links that exist and completes them.
type Driver struct {
	log    *slog.Logger
	home   int  // the namespace, a file descriptor
	native bool // every thread of the process is in it, so that no thread has to enter it

	mu   sync.Mutex            // held by Apply, Sweep and the checks of Watch; guards what follows
	nl   *rtnl.Conn            // in home
	have map[plan.Key]plan.Row // rows that the kernel agreed with when they were last looked at
	// failed are the wanted rows that it refused, told those of have that Watch found changed.
	failed map[plan.Key]plan.Row
	told   map[plan.Key]bool
	shut   func(ifindex int) error // see ShutNewLinks; may be nil
}

// New returns a driver for the calling thread's network namespace.
func New(log *slog.Logger) (*Driver, error) {
	home, err := rtnl.OpenNetns("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	d := &Driver{log: log, home: home, have: map[plan.Key]plan.Row{}, failed: map[plan.Key]plan.Row{}, told: map[plan.Key]bool{}}
	d.native = rtnl.Everywhere(home)
	if d.nl, err = rtnl.Dial(make([]byte, rtnl.BufferSize)); err != nil {
		_ = unix.Close(home)
		return nil, err
	}
	return d, nil
}

// ShutNewLinks has the driver call f with the host side of each new pod link before the pod's side is up, and make the link only if that succeeds:
// f keeps both directions shut until somebody decides about the pod's packets. Call it before the first Apply.
func (d *Driver) ShutNewLinks(f func(ifindex int) error) { d.shut = f }

// Close closes the driver's sockets. The kernel's state stays as it is.
func (d *Driver) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.nl.Close()
	return unix.Close(d.home)
}

// Kinds are the kinds of rows that the driver applies, referents first.
func Kinds() []plan.Kind {
	return []plan.Kind{
		plan.KindOverlay, plan.KindRule, plan.KindPodLink, plan.KindNeighbour, plan.KindRoute, plan.KindSysctl,
	}
}

// apply is one call of Apply.
type apply struct {
	d     *Driver
	nl    *rtnl.Conn
	want  plan.View
	res   plan.Results
	index map[string]int // indexes of links by name, as far as they were needed
}

// Apply implements the reconcile loop's Driver: upserts in the order of Kinds, then deletes in the reverse order.
func (d *Driver) Apply(_ context.Context, want plan.View, changed plan.Changes) plan.Results {
	d.mu.Lock()
	defer d.mu.Unlock()
	a := &apply{d: d, nl: d.nl, want: want, res: plan.Results{}, index: map[string]int{}}
	for _, r := range slices.Concat(changed.Upsert, changed.Delete) {
		a.res[r.Key()] = fmt.Errorf("row %s is not for the linux driver", r.Key())
	}
	for _, k := range Kinds() {
		a.upsert(k, changed.Upsert)
	}
	for _, k := range slices.Backward(Kinds()) {
		a.remove(k, changed.Delete)
	}
	for _, r := range slices.Concat(changed.Upsert, changed.Delete) {
		delete(d.told, r.Key())
	}
	for _, r := range changed.Upsert {
		if k := r.Key(); a.res[k] == nil {
			d.have[k] = r
			delete(d.failed, k)
		} else {
			d.failed[k] = r
			delete(d.have, k)
		}
	}
	for _, r := range changed.Delete {
		delete(d.have, r.Key())
		delete(d.failed, r.Key())
	}
	return a.res
}

func (a *apply) upsert(k plan.Kind, rows []plan.Row) {
	switch k {
	case plan.KindSysctl:
		each(a, rows, a.setSysctl)
	case plan.KindOverlay:
		each(a, rows, a.setOverlay)
	case plan.KindRule:
		each(a, rows, a.setRule)
	case plan.KindPodLink:
		each(a, rows, a.setPodLink)
	case plan.KindNeighbour:
		a.setNeighbours(slices.Collect(plan.Of[*plan.Neighbour](rows)))
	case plan.KindRoute:
		a.setRoutes(slices.Collect(plan.Of[*plan.Route](rows)))
	default: // not ours
	}
}

func (a *apply) remove(k plan.Kind, rows []plan.Row) {
	switch k {
	case plan.KindSysctl:
		each(a, rows, func(*plan.Sysctl) error { return nil }) // what was there before is not known
	case plan.KindOverlay:
		each(a, rows, func(o *plan.Overlay) error { return a.deleteLink(o.Name, overlayAlias) })
	case plan.KindRule:
		each(a, rows, a.deleteRule)
	case plan.KindPodLink:
		a.deletePodLinks(slices.Collect(plan.Of[*plan.PodLink](rows)))
	case plan.KindNeighbour:
		a.deleteNeighbours(slices.Collect(plan.Of[*plan.Neighbour](rows)))
	case plan.KindRoute:
		a.deleteRoutes(slices.Collect(plan.Of[*plan.Route](rows)))
	default: // not ours
	}
}

// each calls f for the rows of one type and keeps what came of them.
func each[T plan.Row](a *apply, rows []plan.Row, f func(T) error) {
	for r := range plan.Of[T](rows) {
		a.res[r.Key()] = f(r)
	}
}

// gone is an error that means that what is to be deleted is not there (any more).
func gone(err error) bool {
	return rtnl.IsErrno(err, unix.ENODEV, unix.ENOENT, unix.ESRCH, unix.EADDRNOTAVAIL)
}

// Sweep deletes what bears our marks and is not wanted: links, routes, rules, and permanent neighbours of our links.
func (d *Driver) Sweep(_ context.Context, want plan.View) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return errors.Join(d.sweepRoutes(want), d.sweepRules(want), d.sweepNeighbours(want), d.sweepLinks(want))
}

// here runs f on a thread that is in the driver's namespace, for what the kernel takes from the calling
// thread: /proc/sys/net and new sockets.
func (d *Driver) here(f func() error) error {
	if d.native {
		return f()
	}
	return rtnl.InNetns(d.home, f)
}

// monitor listens in the driver's namespace.
func (d *Driver) monitor(groups ...int) (m *rtnl.Monitor, err error) {
	err = d.here(func() error {
		m, err = rtnl.Listen(groups...)
		return err
	})
	return m, err
}
