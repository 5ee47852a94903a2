package ebpf

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"weft/internal/model"
	"weft/internal/netset"
)

// Packets as bytes, for programs that are run without a network.

const (
	protoTCP    = 6
	protoUDP    = 17
	protoICMP   = 1
	protoICMPv6 = 58 //weft:family the protocol's name
	etherARP    = 0x0806
)

// frame is an Ethernet frame with an IP packet.
type frame struct {
	srcMAC, dstMAC model.MAC
	src, dst       netip.Addr
	proto          byte
	ttl            byte
	tos            byte
	fragment       uint16 // offset in 8 bytes, with 0x2000 for more to come
	payload        []byte // behind the IP header
}

func etherType(a netip.Addr) uint16 {
	if netset.Of(a) == netset.V4 {
		return 0x0800
	}
	return 0x86dd
}

func ethernet(dst, src model.MAC, proto uint16, payload []byte) []byte {
	b := append(append([]byte{}, dst[:]...), src[:]...)
	return append(binary.BigEndian.AppendUint16(b, proto), payload...)
}

func (f frame) bytes() []byte { return ethernet(f.dstMAC, f.srcMAC, etherType(f.src), f.packet()) }

// packet is the frame without the Ethernet header.
func (f frame) packet() []byte {
	ttl := f.ttl
	if ttl == 0 {
		ttl = 64
	}
	body := f.payload
	if netset.Of(f.src) == netset.V4 {
		h := make([]byte, 20)
		h[0], h[1] = 0x45, f.tos
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(body)))
		binary.BigEndian.PutUint16(h[6:], f.fragment)
		h[8], h[9] = ttl, f.proto
		copy(h[12:], f.src.AsSlice())
		copy(h[16:], f.dst.AsSlice())
		binary.BigEndian.PutUint16(h[10:], ^sum(h))
		return slices.Concat(h, body)
	}
	return f.widePacket()
}

// wide is the frame with an IPv6 header, whatever the addresses are.
func (f frame) wide() []byte { return ethernet(f.dstMAC, f.srcMAC, 0x86dd, f.widePacket()) }

func (f frame) widePacket() []byte {
	ttl, body, proto := f.ttl, f.payload, f.proto
	if ttl == 0 {
		ttl = 64
	}
	if f.fragment != 0 {
		ext := []byte{proto, 0, 0, 0, 0, 0, 0, 9}
		binary.BigEndian.PutUint16(ext[2:], f.fragment<<3|f.fragment>>13&1)
		body, proto = append(ext, body...), 44
	}
	h := make([]byte, 40)
	h[0], h[1] = 0x60|f.tos>>4, f.tos<<4
	binary.BigEndian.PutUint16(h[4:], uint16(len(body)))
	h[6], h[7] = proto, ttl
	src, dst := f.src.As16(), f.dst.As16()
	copy(h[8:], src[:])
	copy(h[24:], dst[:])
	return slices.Concat(h, body)
}

// sum is the Internet checksum's sum (RFC 1071), not inverted.
func sum(parts ...[]byte) uint16 {
	var s uint32
	for _, b := range parts {
		for i := 0; i+1 < len(b); i += 2 {
			s += uint32(b[i])<<8 | uint32(b[i+1])
		}
		if len(b)%2 == 1 {
			s += uint32(b[len(b)-1]) << 8
		}
	}
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// tcp is a TCP header without options, and a payload.
func tcp(sport, dport uint16, payload int) []byte {
	b := make([]byte, 20+payload)
	binary.BigEndian.PutUint16(b, sport)
	binary.BigEndian.PutUint16(b[2:], dport)
	b[12], b[13] = 5<<4, 0x10
	return b
}

// udp is a UDP datagram.
func udp(sport, dport uint16, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, sport)
	b = binary.BigEndian.AppendUint16(b, dport)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	return append(append(b, 0, 0), payload...)
}

// vxlan is the payload of a VXLAN datagram.
func vxlan(vni uint32, inner []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{8, 0, 0, 0}, vni<<8), inner...)
}

// forwarded is the frame as a router sends it on.
func (f frame) forwarded(dst, src model.MAC) frame {
	if f.ttl == 0 {
		f.ttl = 64
	}
	f.ttl--
	f.dstMAC, f.srcMAC = dst, src
	return f
}
