package calico

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"

	"weft/internal/convert/object"
	"weft/internal/model"
	"weft/internal/selector"
)

// hostEndpoint converts a HostEndpoint. One that cannot be said to be any interface of any node is not an object.
func hostEndpoint(o *object.Object) object.Result {
	r := &report{}
	spec, _ := structure[struct {
		Node      json.RawMessage `json:"node"`
		Interface json.RawMessage `json:"interfaceName"`
		IPs       json.RawMessage `json:"expectedIPs"`
		Profiles  json.RawMessage `json:"profiles"`
		Ports     json.RawMessage `json:"ports"`
	}](r, "spec", o.Spec)
	h := &model.HostEndpoint{Ref: o.Ref()}
	h.Node, _ = decode[string](r, "spec.node", spec.Node)
	h.Interface, _ = decode[string](r, "spec.interfaceName", spec.Interface)
	r.each("spec.expectedIPs", spec.IPs, func(at, text string) {
		if a, err := netip.ParseAddr(text); err != nil || a.Zone() != "" {
			r.errorf(at, "%q is not an IP address", clip(text))
		} else {
			h.Addrs = append(h.Addrs, a.Unmap())
		}
	})
	h.Profiles, _ = r.texts("spec.profiles", spec.Profiles)
	h.Ports = r.endpointPorts("spec.ports", spec.Ports)
	h.Labels = ownLabels(o.Meta.Labels)
	h.Labels[selector.Kind], h.Labels[selector.Name], h.Labels[selector.Node] = selector.KindHostEndpoint, o.Meta.Name, h.Node
	for _, p := range h.Ports {
		h.Labels[selector.Port+p.Protocol+"/"+p.Name] = strconv.Itoa(int(p.Port))
	}
	for i, name := range h.Profiles {
		h.Labels[selector.Profile+name] = strconv.Itoa(i)
	}
	usable := true
	if h.Node == "" {
		r.errorf("spec.node", "is missing")
		usable = false
	}
	if h.Interface == "" && len(h.Addrs) == 0 {
		r.errorf("spec.interfaceName", "or expectedIPs is missing")
		usable = false
	}
	if !usable {
		return object.Result{Err: r.err()}
	}
	return object.Result{Objects: []model.Object{h}, Err: r.err()}
}

// endpointPorts reads the named ports of a host endpoint; those that are not understood are left out.
func (r *report) endpointPorts(field string, raw json.RawMessage) []model.Port {
	var out []model.Port
	items, _ := r.list(field, raw)
	for i, item := range items {
		at := fmt.Sprintf("%s[%d]", field, i)
		s, ok := structure[struct {
			Name     string          `json:"name"`
			Protocol json.RawMessage `json:"protocol"`
			Port     uint16          `json:"port"`
		}](r, at, item)
		p, known := parseProtocol(s.Protocol)
		name := map[int]string{model.ProtoTCP: "tcp", model.ProtoUDP: "udp", model.ProtoSCTP: "sctp"}[p]
		switch {
		case !ok: // reported
		case !portName(s.Name):
			r.errorf(at+".name", "%q is not a port's name", clip(s.Name))
		case !known || name == "":
			r.errorf(at+".protocol", "is not one of TCP, UDP, SCTP")
		case s.Port == 0:
			r.errorf(at+".port", "is not in 1..65535")
		default:
			out = append(out, model.Port{Name: s.Name, Protocol: name, Port: s.Port})
		}
	}
	return out
}

// profile converts a Profile as far as host endpoints need it. Those of pods are namespaces and service accounts, which are known.
func profile(o *object.Object) object.Result {
	r := &report{}
	spec, ok := structure[struct {
		Ingress json.RawMessage `json:"ingress"`
		Egress  json.RawMessage `json:"egress"`
		Labels  json.RawMessage `json:"labelsToApply"`
	}](r, "spec", o.Spec)
	bad := ""
	if !ok {
		bad = blame("spec", r.errs[0])
	}
	p := model.ProfilePolicy(o.Ref())
	in, inOK := r.list("spec.ingress", spec.Ingress)
	eg, egOK := r.list("spec.egress", spec.Egress)
	if !inOK || !egOK {
		bad = "spec"
	}
	p.Ingress.Rules = rules(r, "ingress", "", bad, in)
	p.Egress.Rules = rules(r, "egress", "", bad, eg)
	if labels, _ := decode[map[string]string](r, "spec.labelsToApply", spec.Labels); len(labels) > 0 {
		r.unsupported = append(r.unsupported, "spec.labelsToApply")
	}
	p.Unsupported = r.unsupported
	return object.Result{Objects: []model.Object{p}, Err: r.err()}
}
