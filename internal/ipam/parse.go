package ipam

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
)

// contents is what was read of a journal.
type contents struct {
	ops     []op
	seq     uint64        // of the last batch
	damage  *CorruptError // nil: none; else the ops are what could be read around it
	strewn  []netip.Addr  // addresses that the unreadable parts name
	dropped int           // bytes of an unfinished last line
}

// parse reads a journal. It never fails: it says what is damaged.
func parse(name string, data []byte) contents {
	var c contents
	var bad *CorruptError // the first unreadable line, not known yet whether it is the last
	var badBytes [][]byte
	for at := int64(0); at < int64(len(data)); {
		line, _, whole := bytes.Cut(data[at:], []byte{'\n'})
		seq, ops, err := decode(line)
		switch {
		case !whole:
			err = errors.New("the record has no end")
		case err == nil && c.seq > 0 && seq != c.seq+1 && bad == nil:
			err = fmt.Errorf("record %d follows record %d", seq, c.seq)
			c.damage = &CorruptError{File: name, Offset: at, Reason: err.Error()}
			err = nil
		case err == nil && c.seq == 0 && bad == nil && (len(ops) == 0 || ops[0].Op != "head"):
			c.damage = &CorruptError{File: name, Offset: at, Reason: "its beginning is missing"}
		}
		if err != nil {
			if bad == nil {
				bad = &CorruptError{File: name, Offset: at, Reason: err.Error()}
			}
			badBytes = append(badBytes, line)
		} else {
			if bad != nil && c.damage == nil {
				c.damage = bad
			}
			c.ops, c.seq, bad = append(c.ops, ops...), max(seq, c.seq), nil
		}
		at += int64(len(line)) + 1
	}
	if c.seq == 0 && c.damage == nil { // not even a beginning: replace never leaves that
		c.damage = &CorruptError{File: name, Reason: "it has no valid record"}
	} else if bad != nil {
		c.dropped = len(data) - int(bad.Offset)
	}
	for _, b := range badBytes {
		c.strewn = append(c.strewn, findAddrs(b)...)
	}
	return c
}

// findAddrs returns everything in b that reads as an address.
func findAddrs(b []byte) []netip.Addr {
	word := func(r rune) bool {
		return !(r == '.' || r == ':' || r >= '0' && r <= '9' || r >= 'a' && r <= 'f' || r >= 'A' && r <= 'F')
	}
	var out []netip.Addr
	for _, w := range bytes.FieldsFunc(b, word) {
		if a, err := netip.ParseAddr(string(bytes.Trim(w, ":"))); err == nil {
			out = append(out, a)
		} else if a, err := netip.ParseAddr(string(w)); err == nil {
			out = append(out, a)
		}
	}
	return out
}
