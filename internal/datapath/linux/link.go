package linux

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"weft/internal/model"
	"weft/internal/plan"
)

const (
	overlayAlias = AliasPrefix + "overlay"
	operUp       = 6 // IF_OPER_UP
	skipStats    = 8 // RTEXT_FILTER_SKIP_STATS: leave the counters out of answers
)

func podAlias(l *plan.PodLink) string { return AliasPrefix + l.By.Name }

// link is what rtnetlink says of an interface, as far as we need it.
type link struct {
	index int
	name  string
	up    bool // administratively
	// running: it has a peer that is up, and its queue works (RFC 2863 operational status).
	running bool
	noarp   bool
	mtu     int
	mac     model.MAC
	alias   string
	group   int
	kind    string
	peer    int    // index of a veth's other end, in its own namespace
	qdisc   string // of the root
	master  int
	data    []byte // attributes of the kind (IFLA_INFO_DATA)
	conf    []byte // IPv4 settings: 32-bit numbers from number 1 on
}

// ours reports whether we made the link. One that has no alias yet was left by an agent that died just then.
func (l *link) ours() bool {
	return strings.HasPrefix(l.alias, AliasPrefix) || l.alias == "" && l.group == Group && l.mac == model.GatewayMAC
}

func (l *link) hasConf(want []conf) bool {
	for _, c := range want {
		at := 4 * (int(c.id) - 1)
		if len(l.conf) < at+4 || getUint(l.conf[at:at+4]) != c.value {
			return false
		}
	}
	return true
}

func parseLink(b []byte) *link {
	if len(b) < unix.SizeofIfInfomsg {
		return nil
	}
	flags := binary.NativeEndian.Uint32(b[8:])
	l := &link{index: int(binary.NativeEndian.Uint32(b[4:])), up: flags&unix.IFF_UP != 0, noarp: flags&unix.IFF_NOARP != 0}
	for typ, v := range attrs(b[unix.SizeofIfInfomsg:]) {
		switch typ {
		case unix.IFLA_IFNAME:
			l.name = getText(v)
		case unix.IFLA_MTU:
			l.mtu = getUint(v)
		case unix.IFLA_ADDRESS:
			copy(l.mac[:], v)
		case unix.IFLA_IFALIAS:
			l.alias = getText(v)
		case unix.IFLA_OPERSTATE:
			l.running = getUint(v) == operUp
		case unix.IFLA_GROUP:
			l.group = getUint(v)
		case unix.IFLA_LINK:
			l.peer = getUint(v)
		case unix.IFLA_MASTER:
			l.master = getUint(v)
		case unix.IFLA_QDISC:
			l.qdisc = getText(v)
		case unix.IFLA_AF_SPEC:
			for family, v := range attrs(v) {
				for typ, v := range attrs(v) {
					if family == unix.AF_INET && typ == unix.IFLA_INET_CONF {
						l.conf = bytes.Clone(v)
					}
				}
			}
		case unix.IFLA_LINKINFO:
			for typ, v := range attrs(v) {
				switch typ {
				case unix.IFLA_INFO_KIND:
					l.kind = getText(v)
				case unix.IFLA_INFO_DATA:
					l.data = bytes.Clone(v)
				}
			}
		}
	}
	return l
}

func getLinkRequest(index int, name string) *request {
	r := newRequest(unix.RTM_GETLINK, 0, ifinfo(index, 0, 0)).u32(unix.IFLA_EXT_MASK, skipStats)
	if index == 0 {
		r.text(unix.IFLA_IFNAME, name)
	}
	r.answer = true
	return r
}

// link returns the interface of that name; nil, nil if there is none.
func (c *conn) link(name string) (*link, error) { return c.getLink(getLinkRequest(0, name)) }

// linkByIndex returns the interface of that index; nil, nil if there is none.
func (c *conn) linkByIndex(i int) (*link, error) { return c.getLink(getLinkRequest(i, "")) }

func (c *conn) getLink(r *request) (*link, error) {
	rep := c.one(r)
	switch {
	case isErrno(rep.err, unix.ENODEV):
		return nil, nil
	case rep.err != nil:
		return nil, rep.err
	}
	return parseLink(rep.msgs[0]), nil
}

// links returns every interface.
func (c *conn) links() ([]*link, error) {
	var out []*link
	err := c.dump(newRequest(unix.RTM_GETLINK, 0, ifinfo(0, 0, 0)).u32(unix.IFLA_EXT_MASK, skipStats), func(_ uint16, b []byte) {
		if l := parseLink(b); l != nil {
			out = append(out, l)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list the links: %w", err)
	}
	return out, nil
}

// linkIndex returns the index of the interface of that name, 0 if there is none. It remembers it for the rest of
// the call of Apply.
func (a *apply) linkIndex(name string) int {
	if i, known := a.index[name]; known {
		return i
	}
	i, _ := indexByName(a.nl.fd, name)
	a.index[name] = i
	return i
}

// IndexByName returns the index of an interface of the calling thread's network namespace by one lookup
// in the kernel's table, whatever the number of interfaces.
func IndexByName(name string) (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return 0, fmt.Errorf("open a socket: %w", err)
	}
	defer unix.Close(fd)
	return indexByName(fd, name)
}

// indexByName looks in the namespace of the socket.
func indexByName(fd int, name string) (int, error) {
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr)
	}
	if err != nil {
		return 0, fmt.Errorf("find interface %q: %w", name, err)
	}
	return int(ifr.Uint32()), nil
}

// deleteLink deletes the interface of that name if it bears the alias. No such interface, or another's, is success.
func (a *apply) deleteLink(name, alias string) error {
	l, err := a.nl.link(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if l == nil || l.alias != alias {
		return nil
	}
	return a.drop(l)
}

func (a *apply) drop(l *link) error {
	delete(a.index, l.name)
	if err := a.nl.one(newRequest(unix.RTM_DELLINK, 0, ifinfo(l.index, 0, 0))).err; err != nil && !gone(err) {
		return fmt.Errorf("delete link %s: %w", l.name, err)
	}
	return nil
}

// setLink starts a change of an interface.
func setLink(index int, flags uint32) *request {
	return newRequest(unix.RTM_NEWLINK, 0, ifinfo(index, flags, flags))
}

// noAddrGen is a change of an interface that keeps the kernel from giving it an IPv6 link-local address:
// none, no DAD, no router solicitation. It fails with EAFNOSUPPORT where IPv6 is off altogether.
func noAddrGen(index int) *request {
	r := setLink(index, 0)
	return r.nest(unix.IFLA_AF_SPEC, func() {
		r.nest(unix.AF_INET6, func() { r.bytes(unix.IFLA_INET6_ADDR_GEN_MODE, 1) }) // IN6_ADDR_GEN_MODE_NONE
	})
}

// sweepLinks deletes links that bear our alias and are not wanted.
func (d *Driver) sweepLinks(want plan.View) error {
	all, err := d.nl.links()
	if err != nil {
		return err
	}
	for _, l := range all {
		pod := plan.Get[*plan.PodLink](want, plan.Key{Kind: plan.KindPodLink, Name: l.name})
		overlay := plan.Get[*plan.Overlay](want, plan.Key{Kind: plan.KindOverlay, Name: l.name})
		if !l.ours() || pod != nil && podAlias(pod) == l.alias || overlay != nil {
			continue
		}
		a := &apply{d: d, nl: d.nl, index: map[string]int{}}
		if err := a.drop(l); err != nil {
			return err
		}
		d.log.Info("swept link", "link", l.name, "alias", l.alias)
	}
	return nil
}
