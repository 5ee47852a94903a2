package plan

import (
	"slices"

	"weft/internal/model"
	"weft/internal/netset"
)

// Packet is what a PolicySet is asked about: the first packet of a connection as the programs see it.
type Packet struct {
	Family           netset.Family
	Proto            int    // 0 to 255
	SrcPort, DstPort uint16 // DstPort of ICMP: type<<8 | code
	FromHost         bool   // the node's own processes sent it to a pod of the node
}

// Decide is what the programs do on a connection's first packet: it returns the index of the rule that decides, or -1 if none
// does, which allows, and calls noted for those that are noted on the way: those that log, and the staged one that would decide. Member says whether the other side is in a peer set.
func (p *PolicySet) Decide(pkt Packet, member func(ID) bool, noted func(rule int)) int {
	level, staged := 0, false
	for i := range p.Rules {
		r := &p.Rules[i]
		switch {
		case r.Level < level, pkt.FromHost && !r.Hosts, !r.matches(pkt), r.Peers != 0 && !member(r.Peers):
		case r.Verdict == model.VerdictLog:
			noted(i)
		case r.Staged: // the first one would decide
			if !staged {
				noted(i)
			}
			staged = true
		case r.Verdict == model.VerdictPass:
			level = r.PassTo
		default:
			return i
		}
	}
	return -1
}

func (r *PolicyRule) matches(pkt Packet) bool {
	if r.Family != 0 && r.Family != pkt.Family {
		return false
	}
	if r.SrcPorts != nil && (pkt.SrcPort < r.SrcPorts.First || pkt.SrcPort > r.SrcPorts.Last) {
		return false
	}
	at := L4{Proto: pkt.Proto, Port: pkt.DstPort, Bits: 16}
	return slices.ContainsFunc(r.L4, func(m L4) bool { return m.Covers(at) })
}
