package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weft/internal/model"
	"weft/internal/plan"
)

// takeHostEndpoint takes in a host endpoint: by its addresses rules of every node know it, and policies of its own node select it.
func (e *Engine) takeHostEndpoint(k model.Key) {
	h := model.Get[*model.HostEndpoint](e.snap, k)
	e.takeAddressSet(k)
	e.ports.count(e, e.ported[k], -1)
	delete(e.ported, k)
	if h != nil && len(h.Ports) > 0 {
		e.ported[k] = h.Ports
		e.ports.count(e, h.Ports, 1)
	}
	mine := h != nil && h.Node == e.node
	if _, was := e.hosts[k]; !mine && !was {
		return
	}
	if mine {
		e.hosts[k] = ""
	} else {
		delete(e.hosts, k)
	}
	e.todo.hosts, e.dirty[k] = true, true
}

// pickHosts finds the host endpoints of this node's devices.
func (e *Engine) pickHosts() {
	l := e.locals[model.NodeKey(e.node)]
	if l == nil {
		for k := range e.hosts {
			e.hosts[k], e.dirty[k] = "", true
		}
		e.split(nil)
		return
	}
	var under, over *model.HostEndpoint
	if len(e.hosts) > 0 {
		under, over = model.HostEndpoints(e.snap, e.node)
	}
	for k := range e.hosts {
		e.hosts[k] = unenforced(e.snap, model.Get[*model.HostEndpoint](e.snap, k), under, over)
		e.dirty[k] = true
	}
	e.putHost(l, under)
	if under == over {
		e.split(nil)
		return
	}
	e.split(l)
	e.putHost(e.overlay, over)
}

// split makes the node have policies of its own on its overlay device, or, where l is nil, the same as everywhere.
func (e *Engine) split(l *local) {
	switch {
	case l == nil && e.overlay != nil:
		e.forget(e.overlay)
		e.overlay = nil
	case l != nil:
		if e.overlay == nil {
			e.overlay = &local{key: ownKey(plan.KindGuard, "overlay")}
			e.locals[e.overlay.key] = e.overlay
		}
		e.overlay.holder, e.overlay.addrs = l.holder, l.addrs
		e.todo.locals[e.overlay] = true
	}
}

// putHost gives the node its host endpoint, with the policies that that one has by itself.
func (e *Engine) putHost(l *local, h *model.HostEndpoint) {
	if l.host == h {
		return
	}
	l.host, l.own = h, nil
	if h != nil {
		for _, p := range h.Policies() {
			l.own = append(l.own, e.compile(p))
		}
	}
	e.todo.locals[l] = true
}

// unenforced says what of a host endpoint of this node is not enforced; "": nothing. Programs are on the underlay's and the overlay's
// device, so that they see no other.
func unenforced(s model.Snapshot, h, under, over *model.HostEndpoint) string {
	dev := model.UnderlayOf(s, model.Get[*model.Node](s, model.NodeKey(h.Node)))
	switch {
	case dev == nil:
		return "the interface between nodes is not known: nothing of this host endpoint is enforced"
	case h != under && h != over && (h.Interface == "*" || h.Interface == "" || h.Interface == dev.Name):
		for _, other := range []*model.HostEndpoint{under, over} {
			if other != nil && (h.Interface != "*" || other.Interface == "*") && other.Ref.Name < h.Ref.Name {
				return fmt.Sprintf("%s is for the same interface and counts in its place", other.Ref)
			}
		}
		return fmt.Sprintf("no address of %s is among spec.expectedIPs: nothing of this host endpoint is enforced", dev.Name)
	case h != under && h != over:
		return fmt.Sprintf("spec.interfaceName: only what passes %s, the interface between nodes, is looked at: nothing is enforced on %q", dev.Name, h.Interface)
	case h.Interface != "*":
		return ""
	}
	var unseen []string
	for d := range model.All[*model.Device](s, model.KindDevice) {
		if d.Up && d.Name != dev.Name && d.Name != "lo" && d.Kind != "dummy" &&
			slices.ContainsFunc(d.Addrs, func(p netip.Prefix) bool { return p.Addr().IsGlobalUnicast() }) {
			unseen = append(unseen, d.Name)
		}
	}
	if unseen == nil {
		return ""
	}
	slices.Sort(unseen)
	return fmt.Sprintf("spec.interfaceName: it is enforced on %s, the interface between nodes, and not on %s", dev.Name, strings.Join(unseen, ", "))
}

// hostRows of a host endpoint of this node are there if not all of it is enforced. What is enforced is in the node's guards.
func (e *Engine) hostRows(by plan.By) []plan.Row {
	if why := e.hosts[by.Key]; why != "" {
		return []plan.Row{&plan.Problem{By: by, Name: "hostendpoint", Reason: why}}
	}
	return nil
}
