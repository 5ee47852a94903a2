package linux

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// address is an interface address as rtnetlink has it.
type address struct {
	index  int
	prefix netip.Prefix // with the host bits
	proto  int          // IFA_PROTO; 0 where the kernel does not know it
	// unusable: it is being checked for duplicates, or has one.
	unusable bool
}

func parseAddr(b []byte) address {
	if len(b) < unix.SizeofIfAddrmsg {
		return address{}
	}
	a := address{index: int(binary.NativeEndian.Uint32(b[4:]))}
	var local, peer netip.Addr
	for typ, v := range attrs(b[unix.SizeofIfAddrmsg:]) {
		switch typ {
		case unix.IFA_LOCAL:
			local = getAddr(v)
		case unix.IFA_ADDRESS:
			peer = getAddr(v)
		case unix.IFA_FLAGS:
			a.unusable = getUint(v)&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0
		case ifaProto:
			a.proto = getUint(v)
		}
	}
	if !local.IsValid() {
		local = peer
	}
	a.prefix = netip.PrefixFrom(local, int(b[1]))
	return a
}
