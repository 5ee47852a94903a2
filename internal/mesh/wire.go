package mesh

import (
	"encoding/binary"
	"errors"
)

// kind is what a datagram is for.
type kind uint8

const (
	kindProbe kind = 1 // padded to the size that is tried
	kindEcho  kind = 2 // "your probe of this size arrived", as short as can be
	kindHello kind = 3 // "my own MTU is now …"
)

const (
	magic      = 0x77656674 // "weft"
	version    = 1
	headerSize = 20
	maxSize    = 65535 // of an IP packet
)

var errMalformed = errors.New("not a datagram of the mesh")

// header is the beginning of every datagram, big-endian: magic (4 bytes), version, kind,
// size, mtu (2 bytes each), two zero bytes, cookie (8 bytes).
type header struct {
	kind   kind
	size   uint16 // of the probe as an IP packet, bytes; echoed
	mtu    uint16 // of the sender's own underlay device, bytes
	cookie uint64 // random, of the probe; echoed
}

// put writes the header to the front of b and leaves what follows alone.
func (h header) put(b []byte) {
	_ = b[headerSize-1]
	binary.BigEndian.PutUint32(b, magic)
	b[4], b[5] = version, byte(h.kind)
	binary.BigEndian.PutUint16(b[6:], h.size)
	binary.BigEndian.PutUint16(b[8:], h.mtu)
	b[10], b[11] = 0, 0
	binary.BigEndian.PutUint64(b[12:], h.cookie)
}

// parse reads the header of a datagram.
func parse(b []byte) (header, error) {
	if len(b) < headerSize || binary.BigEndian.Uint32(b) != magic || b[4] != version {
		return header{}, errMalformed
	}
	h := header{
		kind: kind(b[5]), size: binary.BigEndian.Uint16(b[6:]), mtu: binary.BigEndian.Uint16(b[8:]),
		cookie: binary.BigEndian.Uint64(b[12:]),
	}
	if h.kind < kindProbe || h.kind > kindHello || h.kind != kindProbe && len(b) != headerSize {
		return header{}, errMalformed
	}
	return h, nil
}
