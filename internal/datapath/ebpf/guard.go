package ebpf

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"weft/internal/plan"
)

// Who is under policy: a pod's entry says which sets of rules count for it, and the settings whether there is any such pod.

// local is a pod of this node as its row was last applied.
type local struct {
	row     *plan.Local
	index   int
	guarded bool // its entry has sets of rules, or is closed
}

// jiffyTick is how many jiffies a tick of the programs has (bpf/lib/maps.h).
const jiffyTick = 16

// jiffiesPerSecond is the kernel's CONFIG_HZ: the resolution of its coarse clocks is one jiffy.
func jiffiesPerSecond() (uint32, error) {
	var res unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &res); err != nil || res.Nano() <= 0 {
		return 0, fmt.Errorf("ask for the length of a jiffy: %d ns, %w", res.Nano(), err)
	}
	return uint32((1e9 + res.Nano()/2) / res.Nano()), nil
}

// fillPolicy enters what policy consists of.
func (d *Driver) fillPolicy(want plan.View) {
	for _, k := range []plan.Kind{plan.KindIdentity, plan.KindPeerSet, plan.KindPolicySet, plan.KindAddress, plan.KindVIP} {
		for r := range want.All(k) {
			_ = d.upsertPolicy(r)
		}
	}
}

func (d *Driver) upsertPolicy(r plan.Row) error {
	p := d.policy
	switch r := r.(type) {
	case *plan.Identity:
		return p.putIdentity(r.ID)
	case *plan.PeerSet:
		return p.putPeers(r)
	case *plan.PolicySet:
		return p.putSet(d.want, r)
	case *plan.Address:
		return p.putAddress(r)
	case *plan.VIP:
		return p.putVIP(r.Addr)
	case *plan.Guard:
		return d.putGuard(r)
	}
	return fmt.Errorf("the eBPF driver has no use for a row of %s", r.Key().Kind)
}

func (d *Driver) removePolicy(r plan.Row) error {
	p := d.policy
	switch r := r.(type) {
	case *plan.Identity:
		return p.dropIdentity(r.ID)
	case *plan.PeerSet:
		return p.dropPeers(r.ID)
	case *plan.PolicySet:
		return d.dropSet(r.ID)
	case *plan.Address:
		return p.dropAddress(r.Prefix)
	case *plan.VIP:
		return p.dropVIP(r.Addr)
	case *plan.Guard:
		return d.dropGuard(r)
	}
	return fmt.Errorf("the eBPF driver has no use for a row of %s", r.Key().Kind)
}

// node is the wanted settings, nil if they are not known.
func (d *Driver) node() *plan.Settings {
	return plan.Get[*plan.Settings](d.want, (&plan.Settings{}).Key())
}

// putGuard puts a pod, or the node, under policy. The entry of a pod that is not there yet is written with its row.
func (d *Driver) putGuard(g *plan.Guard) error {
	name := g.Key().Name
	before := d.policy.guards[name]
	if before != g {
		if _, err := d.policy.identity(g.Identity); err != nil {
			return fmt.Errorf("guard %s: %w", name, err)
		}
		d.policy.guards[name] = g
		delete(d.policy.left, name)
		if before != nil {
			if _, err := d.policy.numbers.give(ofIdentity, before.Identity); err != nil {
				return fmt.Errorf("guard %s: %w", name, err)
			}
		}
	}
	if n := d.node(); n == nil || !n.Policed {
		return nil
	}
	_, err := d.policy.guard(d.want, g)
	return errors.Join(err, d.guardAgain(name))
}

func (d *Driver) dropGuard(g *plan.Guard) error {
	name := g.Key().Name
	before := d.policy.guards[name]
	delete(d.policy.guards, name)
	if _, ok := d.pods[g.Dev]; ok || g.OfNode() {
		d.policy.left[name] = true
	}
	err := d.guardAgain(name)
	if before != nil {
		_, gerr := d.policy.numbers.give(ofIdentity, before.Identity)
		err = errors.Join(err, gerr)
	}
	return err
}

// dropSet removes a policy set. Whoever still has it is closed first.
func (d *Driver) dropSet(id plan.ID) error {
	if s := d.policy.have[id]; s != nil {
		s.ready = false
	}
	var errs []error
	for name, g := range d.policy.guards {
		if g.Ingress == id || g.Egress == id {
			errs = append(errs, d.guardAgain(name))
		}
	}
	return errors.Join(append(errs, d.policy.dropSet(id))...)
}

// guardAgain writes the entry anew that the guard of that name is in: of its pod, or the settings.
func (d *Driver) guardAgain(name string) error {
	if l, ok := d.pods[name]; ok {
		return d.putLocal(l.row, l.index)
	}
	if n := d.node(); n != nil && (name == hostKey().Name || strings.HasPrefix(name, plan.NodeGuardKey("").Name)) {
		return d.putSettings(n)
	}
	return nil
}

// hostKey is the key of the guard of the node itself, on the devices where it has no other.
func hostKey() plan.Key { return (&plan.Guard{}).Key() }

// guardAll writes the entries of all pods anew.
func (d *Driver) guardAll() error {
	var errs []error
	for dev := range d.pods {
		errs = append(errs, d.guardAgain(dev))
	}
	return errors.Join(errs...)
}

// guardLocal adds to a pod's entry what policy says of it, and has the programs look if it is the first.
func (d *Driver) guardLocal(r *plan.Local, v *weftWeftLocal) error {
	v.Guard = d.guardOf(r, v.Ifindex)
	guarded := isGuarded(v.Guard)
	d.pods[r.HostIf] = local{row: r, index: int(v.Ifindex), guarded: guarded}
	if !guarded {
		return nil
	}
	if err := d.policy.readyConns(d.objs.Conns); err != nil {
		return fmt.Errorf("local %s: %w", r.HostIf, err)
	}
	var s weftWeftSettings
	if err := d.settings.m.Lookup(uint32(0), &s); err != nil {
		return fmt.Errorf("read map %s: %w", d.settings.name, err)
	}
	if s.Ready == 0 || s.Policed == 1 {
		return nil // the settings will say so, or do
	}
	s.Policed = 1
	return d.settings.put(0, s)
}

// guardOf is what policy says of a pod. Without a guard it is closed. But as long as not all is known, what an earlier agent
// knew of the same pod stays: a direction that had rules is not opened because those of today have not come yet.
func (d *Driver) guardOf(r *plan.Local, index uint32) weftWeftGuard {
	left := d.leftGuard(r, index)
	if n := d.node(); n != nil {
		if !n.Policed {
			return weftWeftGuard{}
		}
		if g := plan.Get[*plan.Guard](d.want, (&plan.Guard{Dev: r.HostIf}).Key()); g != nil {
			out, err := d.policy.guard(d.want, g)
			if err != nil {
				d.log.Debug("a pod is closed", "device", r.HostIf, "err", err) // its guard's row says so
			}
			mine := d.policy.mine[r.HostIf]
			mine.ingress, mine.egress = mine.ingress || out.Ingress != 0, mine.egress || out.Egress != 0
			d.policy.mine[r.HostIf] = mine
			if left != nil && !mine.ingress && left.Ingress != setClosed {
				out.Ingress = left.Ingress
			}
			if left != nil && !mine.egress && left.Egress != setClosed {
				out.Egress = left.Egress
			}
			return out
		}
	}
	if left != nil {
		return *left
	}
	return closed()
}

// leftGuard is what an earlier agent knew of the same pod, nil if it knew nothing, or if all is known by now.
func (d *Driver) leftGuard(r *plan.Local, index uint32) *weftWeftGuard {
	var have weftWeftLocal
	if d.swept || d.policy.left[r.HostIf] || len(r.Addrs) == 0 || d.locals.m.Lookup(addrOf(r.Addrs[0]), &have) != nil || have.Ifindex != index {
		return nil
	}
	return &have.Guard
}

// policySettings adds to the settings what policy needs.
func (d *Driver) policySettings(r *plan.Settings, s *weftWeftSettings) error {
	hz, err := jiffiesPerSecond()
	if err != nil {
		return err
	}
	s.Second = max(hz/jiffyTick, 1)
	s.Probe = bigEndian(r.Probe)
	if r.Keep {
		s.Keep = 1
	}
	if !r.Policed {
		return nil
	}
	var have weftWeftSettings
	_ = d.settings.m.Lookup(uint32(0), &have) // an array: it cannot fail
	s.Host = d.hostGuard(hostKey(), have.Host, weftWeftGuard{})
	if have.Over == have.Host { // it had no guard of its own there
		have.Over = s.Host
	}
	s.Over = d.hostGuard(plan.NodeGuardKey(r.Overlay), have.Over, s.Host)
	others, err := d.putDevices(r)
	if err != nil {
		return err
	}
	if others || !d.swept && have.Others == 1 {
		s.Others = 1
	}
	policed := isGuarded(s.Host) || isGuarded(s.Over) || others
	for _, l := range d.pods {
		policed = policed || l.guarded
	}
	if !policed && !d.swept {
		policed = have.Policed == 1 // by pods of which this agent does not know yet
	}
	if policed {
		s.Policed = 1
		return d.policy.readyConns(d.objs.Conns)
	}
	return nil
}

// hostGuard is what policy says of the node itself, without if there is no such guard. If its rules are not in the kernel, those that it
// had before count: a node that is closed by mistake cannot be reached to correct it.
func (d *Driver) hostGuard(key plan.Key, had, without weftWeftGuard) weftWeftGuard {
	g := plan.Get[*plan.Guard](d.want, key)
	if g == nil {
		if d.swept || d.policy.left[key.Name] {
			return without
		}
		return had
	}
	out, err := d.policy.guard(d.want, g)
	if err != nil {
		return had // its row says so
	}
	return out
}

// putDevices enters what policy says of the node on other devices than its underlay's and overlay's, and says whether it says anything. A
// device that is not there has no entry: its hook's row says so.
func (d *Driver) putDevices(s *plan.Settings) (guarded bool, err error) {
	wanted := map[uint32]bool{}
	for g := range plan.All[*plan.Guard](d.want, plan.KindGuard) {
		if !g.Node || g.Dev == s.Overlay {
			continue
		}
		index, err := interfaceIndex(g.Dev)
		if err != nil {
			continue
		}
		var had weftWeftGuard
		_ = d.devices.m.Lookup(uint32(index), &had) // zero if there is none
		if err := d.devices.put(uint32(index), d.hostGuard(g.Key(), had, had)); err != nil {
			return false, fmt.Errorf("guard %s: %w", g.Key().Name, err)
		}
		wanted[uint32(index)] = true
	}
	if d.swept {
		err = d.devices.keep(wanted)
	}
	return len(wanted) > 0, err
}

// sweepPolicy removes what nobody wants, closes pods that nobody vouches for, and lets the programs rest if nobody is under policy.
func (d *Driver) sweepPolicy(want plan.View) error {
	errs := []error{d.guardAll()}
	if n := d.node(); n != nil {
		errs = append(errs, d.putSettings(n))
	}
	var s weftWeftSettings
	if d.settings.m.Lookup(uint32(0), &s) == nil && s.Policed == 0 {
		errs = append(errs, d.policy.dropConns())
	}
	return errors.Join(append(errs, d.policy.sweep(want))...)
}
