package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"weft/internal/api"
	"weft/internal/compile/policy"
	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
)

// can is the method behind `weft can`.
func (a *Agent) can(_ context.Context, r api.CanRequest) (api.CanReply, error) {
	s := a.store.Snapshot()
	from, err := parseEnd(s, r.From)
	if err != nil {
		return api.CanReply{}, api.Errorf(api.CodeInvalidConfig, "from: %v", err)
	}
	to, err := parseEnd(s, r.To)
	if err != nil {
		return api.CanReply{}, api.Errorf(api.CodeInvalidConfig, "to: %v", err)
	}
	proto, port, err := parsePort(r.Port)
	if err != nil {
		return api.CanReply{}, api.Errorf(api.CodeInvalidConfig, "port: %v", err)
	}
	var out api.CanReply
	for _, f := range netset.Families() {
		q := policy.Question{From: from.end, To: to.end, Family: f, Proto: proto, Port: port}
		if proto == model.ProtoICMP && f == netset.V6 {
			if q.Proto = model.ProtoICMPv6; port == echoRequest(model.ProtoICMP) {
				q.Port = echoRequest(model.ProtoICMPv6)
			}
		}
		ans, err := policy.Can(s, q)
		if err != nil {
			continue // an end has no address of the family
		}
		out.Answers = append(out.Answers, api.CanAnswer{
			Family: f.String(), From: from.text, To: to.text, Verdict: ans.Verdict().String(), Egress: canSide(ans.Egress), Ingress: canSide(ans.Ingress),
		})
	}
	if out.Answers == nil {
		return out, api.Errorf(api.CodeInvalidConfig, "%s and %s have no addresses of one family", from.text, to.text)
	}
	return out, nil
}

func canSide(s policy.Side) api.CanSide {
	return api.CanSide{Verdict: s.Verdict.String(), By: s.By, Notes: s.Notes}
}

// end is one side of a question, with what it was understood as.
type end struct {
	end  policy.End
	text string
}

// parseEnd understands the notations of api.CanRequest.
func parseEnd(s model.Snapshot, text string) (end, error) {
	if name, ok := strings.CutPrefix(text, "node:"); ok {
		if model.Get[*model.Node](s, model.NodeKey(name)) == nil {
			return end{}, fmt.Errorf("no node %q", name)
		}
		return nodeEnd(s, name), nil
	}
	if addr, err := netip.ParseAddr(text); err == nil {
		return addressEnd(s, addr.Unmap()), nil
	}
	if strings.Contains(text, "=") || strings.HasSuffix(text, ":") {
		return labelEnd(text)
	}
	ns, name := qualified(text)
	pod := model.Get[*model.Pod](s, model.PodKey(ns, name))
	if pod == nil {
		return end{}, fmt.Errorf("no pod %s/%s is known (an end is NAMESPACE/POD, an address, node:NAME, or NAMESPACE:key=value,… for a pod that there might be)", ns, name)
	}
	if len(pod.Addrs) == 0 {
		for ep := range model.All[*model.Endpoint](s, model.KindEndpoint) {
			if ep.Pod.Namespace == ns && ep.Pod.Name == name {
				clone := *pod
				clone.Addrs = ep.Addrs
				pod = &clone
			}
		}
	}
	return end{policy.End{Pod: pod}, "pod " + ns + "/" + name}, nil
}

// qualified splits "namespace/name"; a name alone is of the namespace default.
func qualified(text string) (ns, name string) {
	ns, name, found := strings.Cut(text, "/")
	if !found {
		return "default", text
	}
	return ns, name
}

// addressEnd is whoever has the address.
func addressEnd(s model.Snapshot, a netip.Addr) end {
	for pod := range model.All[*model.Pod](s, model.KindPod) {
		if !pod.HostNetwork && slices.Contains(pod.Addrs, a) {
			return end{policy.End{Pod: pod}, fmt.Sprintf("%s, pod %s", a, pod.PodRef)}
		}
	}
	for n := range model.All[*model.Node](s, model.KindNode) {
		if slices.Contains(n.Addrs, a) {
			e := nodeEnd(s, n.Name)
			e.text = a.String() + ", " + e.text
			return e
		}
	}
	return end{policy.End{Addr: a}, a.String() + ", outside of the cluster"}
}

// nodeEnd is a node, as its underlay's device has it.
func nodeEnd(s model.Snapshot, name string) end {
	e := end{policy.End{Node: name}, "node " + name}
	if n := model.Get[*model.Node](s, model.NodeKey(name)); n != nil {
		if h := model.HostEndpointsOf(s, name).OnUnderlay(s, n); h != nil {
			e.text += " (host endpoint " + h.Ref.Name + ")"
		}
	}
	return e
}

// labelEnd makes up a pod: "namespace:key=value,key=value", without a namespace in default.
func labelEnd(text string) (end, error) {
	ns, list, found := strings.Cut(text, ":")
	if !found {
		ns, list = "default", text
	}
	pod := &model.Pod{
		PodRef: model.PodRef{Namespace: ns, Name: "made-up"}, Node: "made-up", Labels: map[string]string{}, Account: "default",
		// Documentation addresses (RFC 5737, RFC 3849): nobody's.
		Addrs: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, 1}), netip.MustParseAddr("2001:db8::1")},
	}
	for kv := range strings.SplitSeq(list, ",") {
		k, v, ok := strings.Cut(kv, "=")
		if !ok && list != "" {
			return end{}, fmt.Errorf("%q is not key=value", kv)
		}
		if list != "" {
			pod.Labels[k] = v
		}
	}
	return end{policy.End{Pod: pod}, fmt.Sprintf("a pod in %s with labels %v", ns, list)}, nil
}

// parsePort understands "80", "80/tcp", "tcp/80", "icmp" (a ping), "icmp/8" and protocol numbers.
func parsePort(text string) (proto int, port uint16, err error) {
	proto = model.ProtoTCP
	if text == "" {
		return proto, 80, nil
	}
	typed := false
	for _, w := range strings.Split(strings.ToLower(text), "/") {
		if p := protoNumber(w); p >= 0 {
			proto = p
			continue
		}
		n, err := strconv.ParseUint(w, 10, 16)
		if err != nil {
			return 0, 0, fmt.Errorf("%q: want PORT/PROTOCOL, such as 80/tcp, or icmp/TYPE", text)
		}
		port, typed = uint16(n), true
	}
	switch icmp := proto == model.ProtoICMP || proto == model.ProtoICMPv6; {
	case icmp && !typed:
		port = echoRequest(proto)
	case icmp:
		port <<= 8
	}
	return proto, port, nil
}

// echoRequest is what ping sends, as the port of a question.
func echoRequest(proto int) uint16 {
	if proto == model.ProtoICMPv6 {
		return 128 << 8
	}
	return 8 << 8
}

func protoNumber(name string) int {
	for _, p := range []int{model.ProtoTCP, model.ProtoUDP, model.ProtoSCTP, model.ProtoICMP, model.ProtoICMPv6} {
		if plan.ProtoName(p) == name {
			return p
		}
	}
	return -1
}
