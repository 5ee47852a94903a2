package agent

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"strings"

	"weft/internal/api"
	"weft/internal/compile/service"
	"weft/internal/model"
	"weft/internal/netset"
)

// explainService is the method behind `weft service explain`.
func (a *Agent) explainService(ctx context.Context, r api.ServiceRequest) (out api.ServiceReply, err error) {
	ns, name := qualified(r.Name)
	look := func() error {
		out, err = explainService(a.store.Snapshot(), a.cfg.NodeName, ns, name)
		return err
	}
	if a.cluster.look == nil {
		err = look()
	} else {
		err = a.cluster.look(ctx, look)
	}
	return out, err
}

// explainService says what a service is on a node.
func explainService(s model.Snapshot, node, ns, name string) (api.ServiceReply, error) {
	svc := model.Get[*model.Service](s, model.Key{Kind: model.KindService, Name: ns + "/" + name})
	if svc == nil {
		return api.ServiceReply{}, api.Errorf(api.CodeInvalidConfig, "service %s/%s: there is none", ns, name)
	}
	policy := map[bool]string{false: "Cluster", true: "Local"}
	out := api.ServiceReply{
		Service: ns + "/" + name, Type: svc.Type, Internal: policy[svc.InternalLocal], External: policy[svc.ExternalLocal], Affinity: svc.Affinity,
		Frontends: []api.ServiceFrontend{}, Backends: []api.ServiceBackend{},
	}
	if f := model.Get[*model.Feature](s, model.Key{Kind: model.KindFeature, Name: model.ForeignNAT}); f != nil && model.Translated(s) {
		out.Translator, _, _ = strings.Cut(f.Detail, ": ")
	}
	var all []*model.Backends
	for b := range model.All[*model.Backends](s, model.KindBackends) {
		if b.Namespace == ns && b.Service == name {
			all = append(all, b)
		}
	}
	for _, f := range service.Frontends(s, node, svc, all) {
		out.Frontends = append(out.Frontends, explainFrontend(f))
	}
	for _, f := range netset.Families() {
		for _, p := range svc.Ports {
			cs := service.Candidates(s, node, p.Port, f, all)
			for _, c := range cs {
				out.Backends = append(out.Backends, explainBackend(p.Port, c))
			}
			if len(cs) == 0 && netset.First(svc.Addrs, f).IsValid() {
				out.Notes = append(out.Notes, fmt.Sprintf("port %s has no backend in %s: %s", portName(p.Port), f, missing(f, all)))
			}
		}
	}
	switch {
	case svc.Elsewhere != "":
		out.Notes = append(out.Notes, "it has the label "+svc.Elsewhere+": somebody else serves it")
	case svc.Type == "ExternalName":
		out.Notes = append(out.Notes, "its type is ExternalName: it is a name in DNS, and has no address")
	case len(svc.Addrs) == 0:
		out.Notes = append(out.Notes, "it is headless: DNS answers with the addresses of its backends, and nothing is translated")
	}
	return out, nil
}

// missing says why a port has no backends, although the service has the family.
func missing(f netset.Family, all []*model.Backends) string {
	if len(all) == 0 {
		return "no EndpointSlice names the service"
	}
	names := []string{}
	empty := false
	for _, b := range all {
		if b.Family != f {
			continue
		}
		empty = empty || len(b.Backends) == 0
		for _, p := range b.Ports {
			names = append(names, portName(p))
		}
	}
	switch {
	case len(names) > 0 && empty:
		return "its EndpointSlices have no endpoints"
	case len(names) > 0:
		return "its EndpointSlices have other ports: " + strings.Join(names, ", ")
	}
	return "no EndpointSlice of that family has ports"
}

func explainFrontend(f service.Frontend) api.ServiceFrontend {
	at := netip.AddrPortFrom(f.Addr, f.Port).String()
	if f.Kind == service.NodePort {
		at = fmt.Sprintf("* (%s):%d", netset.Of(f.Addr), f.Port)
	}
	out := api.ServiceFrontend{Kind: string(f.Kind), Address: at + "/" + f.Protocol, Inside: explainChoice(f.Inside), Outside: explainChoice(f.Outside)}
	if f.Limited && len(f.Sources) == 0 {
		out.Sources = []string{"nobody: spec.loadBalancerSourceRanges has no valid prefix of the family"}
	}
	for _, s := range f.Sources {
		out.Sources = append(out.Sources, s.String())
	}
	return out
}

func explainChoice(c service.Choice) string {
	switch n := len(c.Backends); {
	case n == 1:
		return "1 backend"
	case n > 1:
		return fmt.Sprintf("%d backends", n)
	case c.Drop:
		return "dropped: this node has none"
	}
	return "refused: there is none"
}

func explainBackend(p model.Port, c service.Candidate) api.ServiceBackend {
	return api.ServiceBackend{
		Port: portName(p), Address: netip.AddrPortFrom(c.Addr, c.Port).String(), Node: c.Node, State: c.State(),
		Cluster: cmp.Or(c.Cluster, "used"), Local: cmp.Or(c.Local, "used"),
	}
}

// portName is "name/protocol", or the protocol of a port that has no name.
func portName(p model.Port) string { return strings.TrimPrefix(p.Name+"/"+p.Protocol, "/") }
