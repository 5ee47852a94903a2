package rtnl

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"weft/internal/netset"
)

// IFAProto is the attribute IFA_PROTO: who made the address. Linux 5.18.
const IFAProto = 11

// Address is an interface address as rtnetlink has it.
type Address struct {
	Index  int
	Prefix netip.Prefix // with the host bits
	Proto  int          // IFA_PROTO; 0 where the kernel does not know it
	// unusable: it is being checked for duplicates, or has one.
	Unusable bool
}

// ParseAddr reads the body of an RTM_NEWADDR message.
func ParseAddr(b []byte) Address {
	if len(b) < unix.SizeofIfAddrmsg {
		return Address{}
	}
	a := Address{Index: int(binary.NativeEndian.Uint32(b[4:]))}
	var local, peer netip.Addr
	for typ, v := range Attrs(b[unix.SizeofIfAddrmsg:]) {
		switch typ {
		case unix.IFA_LOCAL:
			local = Addr(v)
		case unix.IFA_ADDRESS:
			peer = Addr(v)
		case unix.IFA_FLAGS:
			a.Unusable = Uint(v)&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0
		case IFAProto:
			a.Proto = Uint(v)
		}
	}
	if !local.IsValid() {
		local = peer
	}
	a.Prefix = netip.PrefixFrom(local, int(b[1]))
	return a
}

// IfAddr is struct ifaddrmsg of a host address.
func IfAddr(a netip.Addr, index int) []byte {
	b := make([]byte, unix.SizeofIfAddrmsg)
	b[0], b[1] = AF(netset.Of(a)), uint8(netset.Of(a).Bits())
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	return b
}
