package linux

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
)

const ndaProtocol = 12 // NDA_PROTOCOL: who made the entry

// neighbour is a neighbour entry as rtnetlink has it.
type neighbour struct {
	dev       int // index
	addr      netip.Addr
	mac       model.MAC
	permanent bool
}

// ndmsg is struct ndmsg.
func ndmsg(family uint8, index int, state uint16) []byte {
	b := make([]byte, unix.SizeofNdMsg)
	b[0] = family
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	binary.NativeEndian.PutUint16(b[8:], state)
	return b
}

func parseNeighbour(b []byte) neighbour {
	if len(b) < unix.SizeofNdMsg {
		return neighbour{}
	}
	n := neighbour{dev: int(binary.NativeEndian.Uint32(b[4:])), permanent: binary.NativeEndian.Uint16(b[8:])&unix.NUD_PERMANENT != 0}
	if b[0] != unix.AF_INET && b[0] != unix.AF_INET6 {
		return neighbour{} // a bridge's
	}
	for typ, v := range attrs(b[unix.SizeofNdMsg:]) {
		switch typ {
		case unix.NDA_DST:
			n.addr = getAddr(v)
		case unix.NDA_LLADDR:
			copy(n.mac[:], v)
		}
	}
	return n
}

// neighbourRequest makes or replaces a permanent entry.
func neighbourRequest(n *plan.Neighbour, index int) *request {
	r := newRequest(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, ndmsg(afOf(netset.Of(n.Addr)), index, unix.NUD_PERMANENT))
	return r.addr(unix.NDA_DST, n.Addr).bytes(unix.NDA_LLADDR, n.MAC[:]...).bytes(ndaProtocol, Protocol)
}

// setNeighbours makes permanent entries; one that is right stays untouched. They are ours if they are permanent and
// on a link of ours; Sweep deletes those that nobody wants, and they go with their link.
func (a *apply) setNeighbours(rows []*plan.Neighbour) {
	var reqs []*request
	var asked []*plan.Neighbour
	for _, row := range rows {
		i := a.linkIndex(row.Dev)
		if i == 0 {
			a.res[row.Key()] = fmt.Errorf("add neighbour %s: there is no interface %s", row.Addr, row.Dev)
			continue
		}
		reqs = append(reqs, neighbourRequest(row, i))
		asked = append(asked, row)
	}
	for i, rep := range a.nl.do(reqs...) {
		if a.res[asked[i].Key()] = nil; rep.err != nil {
			a.res[asked[i].Key()] = fmt.Errorf("add neighbour %s: %w", asked[i], rep.err)
		}
	}
}

func (a *apply) deleteNeighbours(rows []*plan.Neighbour) {
	var reqs []*request
	var asked []*plan.Neighbour
	for _, row := range rows {
		a.res[row.Key()] = nil
		if i := a.linkIndex(row.Dev); i != 0 {
			msg := newRequest(unix.RTM_DELNEIGH, 0, ndmsg(afOf(netset.Of(row.Addr)), i, 0))
			reqs = append(reqs, msg.addr(unix.NDA_DST, row.Addr))
			asked = append(asked, row)
		}
	}
	for i, rep := range a.nl.do(reqs...) {
		if rep.err != nil && !gone(rep.err) {
			a.res[asked[i].Key()] = fmt.Errorf("delete neighbour %s: %w", asked[i], rep.err)
		}
	}
}

// neighbour returns the entry of an address on a device; the zero entry if there is none.
func (c *conn) neighbour(index int, addr netip.Addr) (neighbour, error) {
	r := newRequest(unix.RTM_GETNEIGH, 0, ndmsg(afOf(netset.Of(addr)), index, 0)).addr(unix.NDA_DST, addr)
	r.answer = true
	rep := c.one(r)
	switch {
	case gone(rep.err):
		return neighbour{}, nil
	case rep.err != nil:
		return neighbour{}, fmt.Errorf("look up neighbour %s: %w", addr, rep.err)
	}
	return parseNeighbour(rep.msgs[0]), nil
}

// sweepNeighbours deletes permanent entries on our links that are not wanted.
func (d *Driver) sweepNeighbours(want plan.View) error {
	all, err := d.nl.links()
	if err != nil {
		return err
	}
	ours := map[int]string{}
	for _, l := range all {
		if l.ours() {
			ours[l.index] = l.name
		}
	}
	var reqs []*request
	err = d.nl.dump(newRequest(unix.RTM_GETNEIGH, 0, ndmsg(0, 0, 0)), func(_ uint16, b []byte) {
		n := parseNeighbour(b)
		dev, found := ours[n.dev]
		if !found || !n.permanent || want.Get((&plan.Neighbour{Dev: dev, Addr: n.addr}).Key()) != nil {
			return
		}
		msg := newRequest(unix.RTM_DELNEIGH, 0, ndmsg(afOf(netset.Of(n.addr)), n.dev, 0))
		reqs = append(reqs, msg.addr(unix.NDA_DST, n.addr))
	})
	if err != nil {
		return fmt.Errorf("list the neighbours: %w", err)
	}
	for _, rep := range d.nl.do(reqs...) {
		if rep.err != nil && !gone(rep.err) {
			return fmt.Errorf("sweep neighbours: %w", rep.err)
		}
	}
	return nil
}
