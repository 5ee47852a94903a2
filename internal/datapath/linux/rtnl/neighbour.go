package rtnl

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"weft/internal/model"
	"weft/internal/netset"
)

// Neighbour is a neighbour entry as rtnetlink has it.
type Neighbour struct {
	Dev       int // index
	Addr      netip.Addr
	MAC       model.MAC
	Permanent bool
}

// NdMsg is struct ndmsg.
func NdMsg(family uint8, index int, state uint16) []byte {
	b := make([]byte, unix.SizeofNdMsg)
	b[0] = family
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	binary.NativeEndian.PutUint16(b[8:], state)
	return b
}

// ParseNeighbour reads the body of an RTM_NEWNEIGH message; the zero value if it is none of IP.
func ParseNeighbour(b []byte) Neighbour {
	if len(b) < unix.SizeofNdMsg {
		return Neighbour{}
	}
	n := Neighbour{Dev: int(binary.NativeEndian.Uint32(b[4:])), Permanent: binary.NativeEndian.Uint16(b[8:])&unix.NUD_PERMANENT != 0}
	if b[0] != unix.AF_INET && b[0] != unix.AF_INET6 {
		return Neighbour{} // a bridge's
	}
	for typ, v := range Attrs(b[unix.SizeofNdMsg:]) {
		switch typ {
		case unix.NDA_DST:
			n.Addr = Addr(v)
		case unix.NDA_LLADDR:
			copy(n.MAC[:], v)
		}
	}
	return n
}

// NeighbourOf returns the entry of an address on a device; the zero entry if there is none.
func (c *Conn) NeighbourOf(index int, addr netip.Addr) (Neighbour, error) {
	r := NewRequest(unix.RTM_GETNEIGH, 0, NdMsg(AF(netset.Of(addr)), index, 0)).Addr(unix.NDA_DST, addr)
	r.Answer = true
	rep := c.One(r)
	switch {
	case IsErrno(rep.Err, unix.ENOENT, unix.ENODEV):
		return Neighbour{}, nil
	case rep.Err != nil:
		return Neighbour{}, fmt.Errorf("look up neighbour %s: %w", addr, rep.Err)
	}
	return ParseNeighbour(rep.Msgs[0]), nil
}
