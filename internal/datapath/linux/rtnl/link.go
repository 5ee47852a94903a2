package rtnl

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"weft/internal/model"
)

const (
	operUp = 6 // IF_OPER_UP
	// SkipStats is RTEXT_FILTER_SKIP_STATS: leave the counters out of answers.
	SkipStats = 8
)

// Link is what rtnetlink says of an interface, as far as we need it.
type Link struct {
	Index int
	Name  string
	Up    bool // administratively
	// Running: it has a peer that is up, and its queue works (RFC 2863 operational status).
	Running bool
	NoARP   bool
	MTU     int
	MAC     model.MAC
	Alias   string
	Group   int
	Kind    string
	Peer    int    // index of a pair's other end, in its own namespace
	Qdisc   string // of the root
	Master  int
	Data    []byte // attributes of the kind (IFLA_INFO_DATA)
	Conf    []byte // IPv4 settings: 32-bit numbers from number 1 on
}

// ParseLink reads the body of an RTM_NEWLINK message; nil if it is none.
func ParseLink(b []byte) *Link {
	if len(b) < unix.SizeofIfInfomsg {
		return nil
	}
	flags := binary.NativeEndian.Uint32(b[8:])
	l := &Link{Index: int(binary.NativeEndian.Uint32(b[4:])), Up: flags&unix.IFF_UP != 0, NoARP: flags&unix.IFF_NOARP != 0}
	for typ, v := range Attrs(b[unix.SizeofIfInfomsg:]) {
		switch typ {
		case unix.IFLA_IFNAME:
			l.Name = Text(v)
		case unix.IFLA_MTU:
			l.MTU = Uint(v)
		case unix.IFLA_ADDRESS:
			copy(l.MAC[:], v)
		case unix.IFLA_IFALIAS:
			l.Alias = Text(v)
		case unix.IFLA_OPERSTATE:
			l.Running = Uint(v) == operUp
		case unix.IFLA_GROUP:
			l.Group = Uint(v)
		case unix.IFLA_LINK:
			l.Peer = Uint(v)
		case unix.IFLA_MASTER:
			l.Master = Uint(v)
		case unix.IFLA_QDISC:
			l.Qdisc = Text(v)
		case unix.IFLA_AF_SPEC:
			for family, v := range Attrs(v) {
				for typ, v := range Attrs(v) {
					if family == unix.AF_INET && typ == unix.IFLA_INET_CONF {
						l.Conf = bytes.Clone(v)
					}
				}
			}
		case unix.IFLA_LINKINFO:
			for typ, v := range Attrs(v) {
				switch typ {
				case unix.IFLA_INFO_KIND:
					l.Kind = Text(v)
				case unix.IFLA_INFO_DATA:
					l.Data = bytes.Clone(v)
				}
			}
		}
	}
	return l
}

// GetLink asks for an interface by its index or, if that is 0, by its name.
func GetLink(index int, name string) *Request {
	r := NewRequest(unix.RTM_GETLINK, 0, IfInfo(index, 0, 0)).U32(unix.IFLA_EXT_MASK, SkipStats)
	if index == 0 {
		r.Text(unix.IFLA_IFNAME, name)
	}
	r.Answer = true
	return r
}

// LinkByName returns the interface of that name; nil, nil if there is none.
func (c *Conn) LinkByName(name string) (*Link, error) { return c.getLink(GetLink(0, name)) }

// LinkByIndex returns the interface of that index; nil, nil if there is none.
func (c *Conn) LinkByIndex(i int) (*Link, error) { return c.getLink(GetLink(i, "")) }

func (c *Conn) getLink(r *Request) (*Link, error) {
	rep := c.One(r)
	switch {
	case IsErrno(rep.Err, unix.ENODEV):
		return nil, nil
	case rep.Err != nil:
		return nil, rep.Err
	}
	return ParseLink(rep.Msgs[0]), nil
}

// Links returns every interface.
func (c *Conn) Links() ([]*Link, error) {
	var out []*Link
	err := c.Dump(NewRequest(unix.RTM_GETLINK, 0, IfInfo(0, 0, 0)).U32(unix.IFLA_EXT_MASK, SkipStats), func(_ uint16, b []byte) {
		if l := ParseLink(b); l != nil {
			out = append(out, l)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list the links: %w", err)
	}
	return out, nil
}

// IndexByName returns the index of an interface of the socket's namespace by one lookup in the kernel's table,
// whatever the number of interfaces.
func (c *Conn) IndexByName(name string) (int, error) {
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		err = unix.IoctlIfreq(c.fd, unix.SIOCGIFINDEX, ifr)
	}
	if err != nil {
		return 0, fmt.Errorf("find interface %q: %w", name, err)
	}
	return int(ifr.Uint32()), nil
}

// SetLink starts a change of an interface.
func SetLink(index int, flags uint32) *Request {
	return NewRequest(unix.RTM_NEWLINK, 0, IfInfo(index, flags, flags))
}
