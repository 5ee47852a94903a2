package linux

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"weft/internal/datapath/linux/rtnl"
	"weft/internal/model"
	"weft/internal/plan"
)

const overlayAlias = AliasPrefix + "overlay"

func podAlias(l *plan.PodLink) string { return AliasPrefix + l.Name }

// ours reports whether we made the link. One that has no alias yet was left by an agent that died just then.
func ours(l *rtnl.Link) bool {
	return strings.HasPrefix(l.Alias, AliasPrefix) || l.Alias == "" && l.Group == Group && l.MAC == model.GatewayMAC
}

func hasConf(l *rtnl.Link, want []conf) bool {
	for _, c := range want {
		at := 4 * (int(c.id) - 1)
		if len(l.Conf) < at+4 || rtnl.Uint(l.Conf[at:at+4]) != c.value {
			return false
		}
	}
	return true
}

// linkIndex returns the index of the interface of that name, 0 if there is none. It remembers it for the rest of
// the call of Apply.
func (a *apply) linkIndex(name string) int {
	if i, known := a.index[name]; known {
		return i
	}
	i, _ := a.nl.IndexByName(name)
	a.index[name] = i
	return i
}

// IndexByName returns the index of an interface of the calling thread's network namespace by one lookup
// in the kernel's table, whatever the number of interfaces.
func IndexByName(name string) (int, error) {
	nl, err := rtnl.Dial(nil)
	if err != nil {
		return 0, err
	}
	defer nl.Close()
	return nl.IndexByName(name)
}

// deleteLink deletes the interface of that name if it bears the alias. No such interface, or another's, is success.
func (a *apply) deleteLink(name, alias string) error {
	l, err := a.nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if l == nil || l.Alias != alias {
		return nil
	}
	return a.drop(l)
}

func (a *apply) drop(l *rtnl.Link) error {
	delete(a.index, l.Name)
	if err := a.nl.One(rtnl.NewRequest(unix.RTM_DELLINK, 0, rtnl.IfInfo(l.Index, 0, 0))).Err; err != nil && !gone(err) {
		return fmt.Errorf("delete link %s: %w", l.Name, err)
	}
	return nil
}

// noAddrGen is a change of an interface that keeps the kernel from giving it an IPv6 link-local address:
// none, no DAD, no router solicitation. It fails with EAFNOSUPPORT where IPv6 is off altogether.
func noAddrGen(index int) *rtnl.Request {
	r := rtnl.SetLink(index, 0)
	return r.Nest(unix.IFLA_AF_SPEC, func() {
		r.Nest(unix.AF_INET6, func() { r.Bytes(unix.IFLA_INET6_ADDR_GEN_MODE, 1) }) // IN6_ADDR_GEN_MODE_NONE
	})
}

// sweepLinks deletes links that bear our alias and are not wanted.
func (d *Driver) sweepLinks(want plan.View) error {
	all, err := d.nl.Links()
	if err != nil {
		return err
	}
	for _, l := range all {
		pod := plan.Get[*plan.PodLink](want, plan.Key{Kind: plan.KindPodLink, Name: l.Name})
		overlay := plan.Get[*plan.Overlay](want, plan.Key{Kind: plan.KindOverlay, Name: l.Name})
		if !ours(l) || pod != nil && podAlias(pod) == l.Alias || overlay != nil {
			continue
		}
		a := &apply{d: d, nl: d.nl, index: map[string]int{}}
		if err := a.drop(l); err != nil {
			return err
		}
		d.log.Info("swept link", "link", l.Name, "alias", l.Alias)
	}
	return nil
}
