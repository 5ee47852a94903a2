package linux

import (
	"fmt"

	"golang.org/x/sys/unix"

	"weft/internal/datapath/linux/rtnl"
	"weft/internal/netset"
	"weft/internal/plan"
)

func familyOf(name string) (netset.Family, error) {
	for _, f := range netset.Families() {
		if f.String() == name {
			return f, nil
		}
	}
	return 0, fmt.Errorf("%q is no address family", name)
}

// hasRule reports whether the rule exists, whoever made it.
func hasRule(nl *rtnl.Conn, row *plan.Rule) (bool, error) {
	f, err := familyOf(row.Family)
	if err != nil {
		return false, err
	}
	all, err := nl.Rules(f)
	for _, r := range all {
		if r.Plain && r.Priority == row.Priority && r.Table == row.Table {
			return true, nil
		}
	}
	return false, err
}

// setRule makes a rule unless it is there. What we made bears our protocol number, and only that is ever deleted
// or swept. It outlives the agent, and does what it says without it.
func (a *apply) setRule(row *plan.Rule) error {
	there, err := hasRule(a.nl, row)
	if err != nil || there {
		return err
	}
	f, _ := familyOf(row.Family)
	r := rtnl.Rule{Priority: row.Priority, Table: row.Table}
	if err := a.nl.One(r.Request(unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, f)).Err; err != nil && !rtnl.IsErrno(err, unix.EEXIST) {
		return fmt.Errorf("add rule %s: %w", row, err)
	}
	return nil
}

func (a *apply) deleteRule(row *plan.Rule) error {
	f, err := familyOf(row.Family)
	if err != nil {
		return err
	}
	return a.d.dropRule(rtnl.Rule{Priority: row.Priority, Table: row.Table}, f)
}

// dropRule deletes a rule if it bears our protocol number.
func (d *Driver) dropRule(r rtnl.Rule, f netset.Family) error {
	if err := d.nl.One(r.Request(unix.RTM_DELRULE, 0, f)).Err; err != nil && !gone(err) {
		return fmt.Errorf("delete %s rule %d: %w", f, r.Priority, err)
	}
	return nil
}

// sweepRules deletes rules of ours that are not wanted.
func (d *Driver) sweepRules(want plan.View) error {
	for _, f := range netset.Families() {
		all, err := d.nl.Rules(f)
		if err != nil {
			return err
		}
		for _, r := range all {
			row := &plan.Rule{Family: f.String(), Priority: r.Priority}
			if w := plan.Get[*plan.Rule](want, row.Key()); r.Proto != rtnl.Protocol || w != nil && w.Table == r.Table {
				continue
			}
			if err := d.dropRule(r, f); err != nil {
				return err
			}
		}
	}
	return nil
}
