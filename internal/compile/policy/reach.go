package policy

import (
	"net/netip"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
)

// Reach tells of each pod whether policies let it open connections to at least one of the targets: pods or addresses. It compiles
// once for all of them, as Can does for each question.
func Reach(s model.Snapshot, pods []*model.Pod, targets []End, proto int, port uint16) []bool {
	over := newOverlay(s)
	join := func(p *model.Pod) {
		ep := endpointOf(p)
		over.objs[p.Key()], over.objs[ep.Key()] = p, ep
	}
	for _, p := range pods {
		join(p)
	}
	for _, t := range targets {
		if t.Pod != nil && !t.Pod.HostNetwork {
			join(t.Pod)
		}
	}
	e := New("")
	e.Update(over, over.keys())
	at := func(x End) *local {
		if x.Pod == nil || x.Pod.HostNetwork {
			return nil // it has no policies that are known here
		}
		return e.locals[endpointOf(x.Pod).Key()]
	}
	out := make([]bool, len(pods))
	for i, p := range pods {
		from := End{Pod: p}
		for _, t := range targets {
			for _, f := range netset.Families() {
				src, dst := from.addr(over, f), t.addr(over, f)
				pkt := plan.Packet{Family: f, Proto: proto, DstPort: port, SrcPort: 32768}
				out[i] = out[i] || src.IsValid() && dst.IsValid() && allowed(e, at(from), at(t), src, dst, pkt)
			}
		}
	}
	return out
}

func allowed(e *Engine, from, to *local, src, dst netip.Addr, pkt plan.Packet) bool {
	return verdict(e, from, to, src, dst, pkt).Verdict() == model.VerdictAllow
}
