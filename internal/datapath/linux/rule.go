package linux

import (
	"fmt"

	"golang.org/x/sys/unix"

	"weft/internal/netset"
	"weft/internal/plan"
)

// rule is a policy-routing rule as rtnetlink has it.
type rule struct {
	priority, table, proto int
	plain                  bool // from all, without any selector, to a table
}

// rulemsg is struct fib_rule_hdr.
func rulemsg(f netset.Family) []byte {
	return []byte{afOf(f), 0, 0, 0, unix.RT_TABLE_UNSPEC, 0, 0, unix.FR_ACT_TO_TBL, 0, 0, 0, 0}
}

func familyOf(name string) (netset.Family, error) {
	for _, f := range netset.Families() {
		if f.String() == name {
			return f, nil
		}
	}
	return 0, fmt.Errorf("%q is no address family", name)
}

func (r rule) request(typ, flags uint16, f netset.Family) *request {
	return newRequest(typ, flags, rulemsg(f)).u32(unix.FRA_PRIORITY, r.priority).u32(unix.FRA_TABLE, r.table).bytes(unix.FRA_PROTOCOL, Protocol)
}

func parseRule(b []byte) rule {
	if len(b) < unix.SizeofRtMsg {
		return rule{}
	}
	r := rule{table: int(b[4]), plain: b[1] == 0 && b[2] == 0 && b[3] == 0 && b[7] == unix.FR_ACT_TO_TBL && b[8]&unix.FIB_RULE_INVERT == 0}
	for typ, v := range attrs(b[unix.SizeofRtMsg:]) {
		switch typ {
		case unix.FRA_PRIORITY:
			r.priority = getUint(v)
		case unix.FRA_TABLE:
			r.table = getUint(v)
		case unix.FRA_PROTOCOL:
			r.proto = getUint(v)
		case unix.FRA_SRC, unix.FRA_DST, unix.FRA_IIFNAME, unix.FRA_OIFNAME, unix.FRA_FWMARK, unix.FRA_GOTO, unix.FRA_L3MDEV,
			unix.FRA_TUN_ID, unix.FRA_UID_RANGE, unix.FRA_IP_PROTO, unix.FRA_SPORT_RANGE, unix.FRA_DPORT_RANGE:
			r.plain = false
		}
	}
	return r
}

func (c *conn) rules(f netset.Family) ([]rule, error) {
	var out []rule
	err := c.dump(newRequest(unix.RTM_GETRULE, 0, rulemsg(f)), func(_ uint16, b []byte) { out = append(out, parseRule(b)) })
	if err != nil {
		return nil, fmt.Errorf("list the %s rules: %w", f, err)
	}
	return out, nil
}

// hasRule reports whether the rule exists, whoever made it.
func (c *conn) hasRule(row *plan.Rule) (bool, error) {
	f, err := familyOf(row.Family)
	if err != nil {
		return false, err
	}
	all, err := c.rules(f)
	for _, r := range all {
		if r.plain && r.priority == row.Priority && r.table == row.Table {
			return true, nil
		}
	}
	return false, err
}

// setRule makes a rule unless it is there. What we made bears our protocol number, and only that is ever deleted
// or swept. It outlives the agent, and does what it says without it.
func (a *apply) setRule(row *plan.Rule) error {
	there, err := a.nl.hasRule(row)
	if err != nil || there {
		return err
	}
	f, _ := familyOf(row.Family)
	r := rule{priority: row.Priority, table: row.Table}
	if err := a.nl.one(r.request(unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, f)).err; err != nil && !isErrno(err, unix.EEXIST) {
		return fmt.Errorf("add rule %s: %w", row, err)
	}
	return nil
}

func (a *apply) deleteRule(row *plan.Rule) error {
	f, err := familyOf(row.Family)
	if err != nil {
		return err
	}
	return a.d.dropRule(rule{priority: row.Priority, table: row.Table}, f)
}

// dropRule deletes a rule if it bears our protocol number.
func (d *Driver) dropRule(r rule, f netset.Family) error {
	if err := d.nl.one(r.request(unix.RTM_DELRULE, 0, f)).err; err != nil && !gone(err) {
		return fmt.Errorf("delete %s rule %d: %w", f, r.priority, err)
	}
	return nil
}

// sweepRules deletes rules of ours that are not wanted.
func (d *Driver) sweepRules(want plan.View) error {
	for _, f := range netset.Families() {
		all, err := d.nl.rules(f)
		if err != nil {
			return err
		}
		for _, r := range all {
			row := &plan.Rule{Family: f.String(), Priority: r.priority}
			if w := plan.Get[*plan.Rule](want, row.Key()); r.proto != Protocol || w != nil && w.Table == r.table {
				continue
			}
			if err := d.dropRule(r, f); err != nil {
				return err
			}
		}
	}
	return nil
}
