package rtnl

import (
	"fmt"
	"math"

	"golang.org/x/sys/unix"

	"weft/internal/netset"
)

// Rule is a policy-routing rule as rtnetlink has it.
type Rule struct {
	Priority, Table, Proto int
	Plain                  bool // from all, without any selector, to a table
}

// RuleMsg is struct fib_rule_hdr.
func RuleMsg(f netset.Family) []byte {
	return []byte{AF(f), 0, 0, 0, unix.RT_TABLE_UNSPEC, 0, 0, unix.FR_ACT_TO_TBL, 0, 0, 0, 0}
}

// Request makes or deletes the rule, as typ says; it bears our protocol number.
func (r Rule) Request(typ, flags uint16, f netset.Family) *Request {
	return NewRequest(typ, flags, RuleMsg(f)).U32(unix.FRA_PRIORITY, r.Priority).U32(unix.FRA_TABLE, r.Table).Bytes(unix.FRA_PROTOCOL, Protocol)
}

// ParseRule reads the body of an RTM_NEWRULE message.
func ParseRule(b []byte) Rule {
	if len(b) < unix.SizeofRtMsg {
		return Rule{}
	}
	r := Rule{Table: int(b[4]), Plain: b[1] == 0 && b[2] == 0 && b[3] == 0 && b[7] == unix.FR_ACT_TO_TBL && b[8]&unix.FIB_RULE_INVERT == 0}
	for typ, v := range Attrs(b[unix.SizeofRtMsg:]) {
		switch typ {
		case unix.FRA_PRIORITY:
			r.Priority = Uint(v)
		case unix.FRA_TABLE:
			r.Table = Uint(v)
		case unix.FRA_PROTOCOL:
			r.Proto = Uint(v)
		case unix.FRA_SUPPRESS_PREFIXLEN, unix.FRA_SUPPRESS_IFGROUP:
			r.Plain = r.Plain && Uint(v) == math.MaxUint32 // none
		case unix.FRA_SRC, unix.FRA_DST, unix.FRA_IIFNAME, unix.FRA_OIFNAME, unix.FRA_FWMARK, unix.FRA_GOTO, unix.FRA_L3MDEV,
			unix.FRA_TUN_ID, unix.FRA_UID_RANGE, unix.FRA_IP_PROTO, unix.FRA_SPORT_RANGE, unix.FRA_DPORT_RANGE:
			r.Plain = false
		}
	}
	return r
}

// Rules lists the rules of a family in order.
func (c *Conn) Rules(f netset.Family) ([]Rule, error) {
	var out []Rule
	err := c.Dump(NewRequest(unix.RTM_GETRULE, 0, RuleMsg(f)), func(_ uint16, b []byte) { out = append(out, ParseRule(b)) })
	if err != nil {
		return nil, fmt.Errorf("list the %s rules: %w", f, err)
	}
	return out, nil
}
