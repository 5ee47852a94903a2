package nft

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// ForeignDrops names the base chains of others that drop forwarded packets by default or by a last rule without
// conditions: family, table, chain and the handle of the rule. They are not ours to change.
func (d *Driver) ForeignDrops(context.Context) ([]string, error) {
	var out []string
	err := foreign(nftables.ChainHookForward, func(conn *nftables.Conn, c *nftables.Chain) error {
		where := fmt.Sprintf("%s table %s chain %s", familyName(c.Table.Family), c.Table.Name, c.Name)
		if c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
			out = append(out, where+" has policy drop")
			return nil
		}
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			return fmt.Errorf("list rules of %s: %w", where, err)
		}
		for _, r := range rules {
			if dropsAll(r) {
				out = append(out, fmt.Sprintf("%s has a rule that drops everything, handle %d", where, r.Handle))
			}
		}
		return nil
	})
	for _, l := range legacies() {
		what, err2 := l.drops()
		if err = errors.Join(err, err2); what != "" {
			out = append(out, what)
		}
	}
	return out, err
}

// ForeignNAT names what else may translate packets on their way to pods, such as kube-proxy; empty: nothing does.
func (d *Driver) ForeignNAT(context.Context) ([]string, error) {
	var out []string
	err := foreign(nftables.ChainHookPrerouting, func(conn *nftables.Conn, c *nftables.Chain) error {
		if c.Type != nftables.ChainTypeNAT {
			return nil
		}
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			return fmt.Errorf("list rules of table %s chain %s: %w", c.Table.Name, c.Name, err)
		}
		if len(rules) > 0 {
			out = append(out, fmt.Sprintf("%s table %s chain %s", familyName(c.Table.Family), c.Table.Name, c.Name))
		}
		return nil
	})
	// Rules of the legacy iptables are not seen through nf_tables; that its nat table is in use is.
	for _, l := range legacies() {
		if l.uses("nat") {
			out = append(out, l.command+" table nat")
		}
	}
	return out, err
}

// foreign calls f for each base chain at the hook that is in no table of ours.
func foreign(hook *nftables.ChainHook, f func(*nftables.Conn, *nftables.Chain) error) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nf_tables: %w", err)
	}
	all, err := conn.ListChains()
	if err != nil {
		return fmt.Errorf("list chains: %w", err)
	}
	for _, c := range all {
		if c.Hooknum == nil || *c.Hooknum != *hook || strings.HasPrefix(c.Table.Name, "weft-") || !routes(c.Table.Family) {
			continue
		}
		if err := f(conn, c); err != nil {
			return err
		}
	}
	return nil
}

func routes(f nftables.TableFamily) bool {
	return f == nftables.TableFamilyINet || f == nftables.TableFamilyIPv4 || f == nftables.TableFamilyIPv6
}

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	default:
		return "inet"
	}
}

// dropsAll reports whether a rule drops or rejects whatever comes to it: it has no expression that could fail to match.
func dropsAll(r *nftables.Rule) bool {
	for _, e := range r.Exprs {
		switch x := e.(type) {
		case *expr.Verdict:
			return x.Kind == expr.VerdictDrop
		case *expr.Reject:
			return true
		case *expr.Counter, *expr.Log:
		default:
			return false
		}
	}
	return false
}
