package policy

import (
	"fmt"

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

// pickHosts finds the host endpoints of this node's devices. What it finds for the underlay's is for the overlay's as well, unless
// something else is found for that.
func (e *Engine) pickHosts() {
	l := e.locals[model.NodeKey(e.node)]
	devs := map[string]*model.HostEndpoint{}
	if l != nil {
		var hs model.HostEndpoints
		if len(e.hosts) > 0 {
			hs = model.HostEndpointsOf(e.snap, e.node)
		}
		under := hs.OnUnderlay(e.snap, l.holder.node)
		e.putHost(l, under)
		if over := hs.On(plan.OverlayName, nil); over != under {
			devs[plan.OverlayName] = over
		}
		e.otherDevices(hs, l.holder.node, devs)
	}
	for dev, d := range e.devs {
		if _, ok := devs[dev]; !ok {
			e.forget(d)
			delete(e.devs, dev)
		}
	}
	for dev, h := range devs {
		d := e.devs[dev]
		if d == nil {
			d = &local{key: ownKey(plan.KindGuard, dev)}
			e.devs[dev], e.locals[d.key] = d, d
		}
		d.holder, d.addrs = l.holder, l.addrs
		e.todo.locals[d] = true
		e.putHost(d, h)
	}
	e.unenforced(l)
}

// otherDevices adds the host endpoints of devices that weft has nothing else to do with.
func (e *Engine) otherDevices(hs model.HostEndpoints, n *model.Node, devs map[string]*model.HostEndpoint) {
	if len(hs) == 0 {
		return
	}
	under := model.UnderlayOf(e.snap, n)
	for d := range model.All[*model.Device](e.snap, model.KindDevice) {
		if d == under || !d.Reached() {
			continue
		}
		if h := hs.On(d.Name, d.Hosts()); h != nil {
			devs[d.Name] = h
		}
	}
}

// putHost gives the node on a device its host endpoint, with the policies that that one has by itself.
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

// unenforced notes which host endpoints of this node are for no device.
func (e *Engine) unenforced(l *local) {
	used := map[*model.HostEndpoint]bool{}
	if l != nil {
		used[l.host] = true
	}
	for _, d := range e.devs {
		used[d.host] = true
	}
	for k := range e.hosts {
		h := model.Get[*model.HostEndpoint](e.snap, k)
		e.dirty[k], e.hosts[k] = true, ""
		if !used[h] {
			e.hosts[k] = fmt.Sprintf("it is enforced nowhere: no interface of node %s with an address is meant by spec.interfaceName %q and expectedIPs %v "+
				"that no other host endpoint comes first for", h.Node, h.Interface, h.Addrs)
		}
	}
}

// deviceRows of a device that has other policies than the node's underlay.
func (e *Engine) deviceRows(by plan.By) []plan.Row {
	rows := e.devs[by.Name].rows(by)
	if len(rows) > 0 && by.Name != plan.OverlayName {
		rows = append(rows, &plan.Hook{By: by, Dev: by.Name, Role: plan.RoleHost})
	}
	return rows
}

// hostRows of a host endpoint are there if it is enforced nowhere. What is enforced is in the node's guards.
func (e *Engine) hostRows(by plan.By) []plan.Row {
	if why := e.hosts[by.Key]; why != "" {
		return []plan.Row{&plan.Problem{By: by, Name: "hostendpoint", Reason: why}}
	}
	return nil
}
