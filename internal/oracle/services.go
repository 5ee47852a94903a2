package oracle

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"weft/internal/model"
	"weft/internal/netset"
)

// Call is the first packet of a connection, before services have been translated. It knows nothing of earlier ones: affinity is not its affair.
type Call struct {
	Outside  bool // the client is no pod and no node of the cluster
	Src, Dst netip.Addr
	Protocol string
	Port     uint16
}

// Answer says where a call goes.
type Answer struct {
	Service  model.Key        // zero: it is to no service, and goes where it was sent
	Backends []netip.AddrPort // in order; one of them
	Drop     bool             // without backends: it is dropped, else refused
}

// Translate says where a call that the node handles goes. Two services may not have the same address and port.
func Translate(s model.Snapshot, node string, c Call) Answer {
	for svc := range model.All[*model.Service](s, model.KindService) {
		if svc.Type == "ExternalName" || svc.Elsewhere != "" || !netset.First(svc.Addrs, netset.Of(c.Dst)).IsValid() {
			continue
		}
		for _, p := range svc.Ports {
			if p.Protocol != c.Protocol {
				continue
			}
			at := func(port uint16, addrs []netip.Addr) bool { return port == c.Port && slices.Contains(addrs, c.Dst) }
			var local bool
			switch n := model.Get[*model.Node](s, model.NodeKey(node)); {
			case at(p.Port.Port, svc.Addrs):
				local = svc.InternalLocal
			case at(p.Port.Port, svc.Balancers):
				if svc.SourceRanges != nil && !netset.Contains(svc.SourceRanges, c.Src) {
					return Answer{Service: svc.Key(), Drop: true}
				}
				local = svc.ExternalLocal && c.Outside
			case at(p.Port.Port, svc.ExternalIPs), p.NodePort > 0 && n != nil && at(p.NodePort, n.Addrs):
				local = svc.ExternalLocal && c.Outside
			default:
				continue
			}
			all := behind(s, svc, p.Port, netset.Of(c.Dst))
			ans := Answer{Service: svc.Key(), Backends: pick(s, node, all, local)}
			ans.Drop = len(ans.Backends) == 0 && len(pick(s, node, all, false)) > 0
			return ans
		}
	}
	return Answer{}
}

// behind is every backend of a service's port in a family.
func behind(s model.Snapshot, svc *model.Service, port model.Port, f netset.Family) map[netip.AddrPort]model.Backend {
	out := map[netip.AddrPort]model.Backend{}
	for sl := range model.All[*model.Backends](s, model.KindBackends) {
		if sl.Namespace != svc.Namespace || sl.Service != svc.Name || sl.Family != f {
			continue
		}
		for _, p := range sl.Ports {
			for _, b := range sl.Backends {
				at := netip.AddrPortFrom(b.Addr, p.Port)
				old, known := out[at]
				better := b.Ready && !old.Ready || !old.Ready && !(old.Serving && old.Terminating) && b.Serving && b.Terminating
				if p.Name == port.Name && p.Protocol == port.Protocol && p.Port != 0 && (!known || better) {
					out[at] = b
				}
			}
		}
	}
	return out
}

// pick takes those that a new connection may go to.
func pick(s model.Snapshot, node string, all map[netip.AddrPort]model.Backend, local bool) []netip.AddrPort {
	those := func(ok func(model.Backend) bool) []netip.AddrPort {
		var out []netip.AddrPort
		for at, b := range all {
			if ok(b) && (!local || b.Node == node) {
				out = append(out, at)
			}
		}
		slices.SortFunc(out, netip.AddrPort.Compare)
		return out
	}
	ready := those(func(b model.Backend) bool { return b.Ready })
	if len(ready) == 0 {
		return those(func(b model.Backend) bool { return b.Serving && b.Terminating })
	}
	if local {
		return ready
	}
	zone := ""
	if n := model.Get[*model.Node](s, model.NodeKey(node)); n != nil {
		zone = n.Labels["topology.kubernetes.io/zone"]
	}
	forNode := func(b model.Backend) (all []string, us string) { return cmp.Or(b.Hints, &model.Hints{}).Nodes, node }
	forZone := func(b model.Backend) (all []string, us string) { return cmp.Or(b.Hints, &model.Hints{}).Zones, zone }
	for _, hint := range []func(model.Backend) ([]string, string){forNode, forZone} {
		ours := those(func(b model.Backend) bool {
			all, us := hint(b)
			return b.Ready && slices.Contains(all, us)
		})
		unhinted := slices.ContainsFunc(slices.Collect(maps.Values(all)), func(b model.Backend) bool {
			all, _ := hint(b)
			return b.Ready && len(all) == 0
		})
		if len(ours) > 0 && !unhinted {
			return ours
		}
	}
	return ready
}
