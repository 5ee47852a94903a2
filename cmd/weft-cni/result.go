package main

import (
	"encoding/json"
	"net/netip"

	"weft/internal/api"
)

// result is a CNI result of any version that we speak. What others put into it passes unread.
type result struct {
	CNIVersion string            `json:"cniVersion"`
	Interfaces []json.RawMessage `json:"interfaces,omitempty"`
	IPs        []json.RawMessage `json:"ips,omitempty"`
	Routes     []json.RawMessage `json:"routes,omitempty"`
	DNS        json.RawMessage   `json:"dns,omitempty"`
}

// iface is an entry of interfaces. mtu came with 1.1.0.
type iface struct {
	Name    string `json:"name"`
	MAC     string `json:"mac,omitempty"`
	MTU     int    `json:"mtu,omitempty"`
	Sandbox string `json:"sandbox,omitempty"`
}

// ip is an entry of ips. version went with 1.0.0.
type ip struct {
	Version   string `json:"version,omitempty"`
	Address   string `json:"address"`
	Gateway   string `json:"gateway,omitempty"`
	Interface *int   `json:"interface,omitempty"`
}

type route struct {
	Dst string `json:"dst"`
	GW  string `json:"gw"`
}

// prevResult decodes the result of the plugins before us; nil if there is none.
func (c *netConf) prevResult() (*result, error) {
	if len(c.Prev) == 0 || string(c.Prev) == "null" {
		return nil, nil
	}
	r := &result{}
	if err := json.Unmarshal(c.Prev, r); err != nil {
		return nil, api.Errorf(api.CodeDecode, "prevResult: %v", err)
	}
	if r.CNIVersion != "" && r.CNIVersion != c.CNIVersion {
		return nil, api.Errorf(api.CodeInvalidConfig, "prevResult has cniVersion %s, the configuration %s", r.CNIVersion, c.CNIVersion)
	}
	return r, nil
}

// find returns the place of the attachment's interface, or -1.
func (r *result) find(a api.Attachment) (at int, i iface, err error) {
	if r != nil {
		for n, raw := range r.Interfaces {
			var i iface
			if err := json.Unmarshal(raw, &i); err != nil {
				return -1, i, api.Errorf(api.CodeDecode, "prevResult: interfaces[%d]: %v", n, err)
			}
			if i.Name == a.IfName && i.Sandbox != "" {
				return n, i, nil
			}
		}
	}
	return -1, iface{}, nil
}

func (r *result) has(a api.Attachment) bool {
	at, _, err := r.find(a)
	return at >= 0 && err == nil
}

// of returns the addresses and the MAC that the result has on the attachment's interface.
func (r *result) of(a api.Attachment) (addrs []netip.Addr, mac string, err error) {
	at, i, err := r.find(a)
	if err != nil {
		return nil, "", err
	}
	if at < 0 {
		return nil, "", api.Errorf(api.CodeInvalidConfig, "prevResult has no interface %s in a sandbox", a.IfName)
	}
	addrs = []netip.Addr{}
	for n, raw := range r.IPs {
		var x ip
		if err := json.Unmarshal(raw, &x); err != nil {
			return nil, "", api.Errorf(api.CodeDecode, "prevResult: ips[%d]: %v", n, err)
		}
		if x.Interface == nil || *x.Interface != at {
			continue
		}
		p, err := netip.ParsePrefix(x.Address)
		if err != nil {
			return nil, "", api.Errorf(api.CodeDecode, "prevResult: ips[%d]: %v", n, err)
		}
		addrs = append(addrs, p.Addr())
	}
	return addrs, i.MAC, nil
}

// with returns the result with what the agent did added.
func (r *result) with(c *netConf, a api.Attachment, reply api.AddReply) (*result, error) {
	out := &result{CNIVersion: c.CNIVersion}
	if r != nil {
		out.Interfaces, out.IPs, out.Routes, out.DNS = r.Interfaces, r.IPs, r.Routes, r.DNS
	}
	var err error
	if len(out.DNS) == 0 {
		if out.DNS, err = json.Marshal(c.DNS); err != nil {
			return nil, err
		}
	}
	host, pod := iface{Name: reply.HostIf, MAC: reply.HostMAC}, iface{Name: a.IfName, MAC: reply.MAC, Sandbox: a.Netns}
	if c.CNIVersion == "1.1.0" {
		host.MTU, pod.MTU = reply.MTU, reply.MTU
	}
	inside := len(out.Interfaces) + 1
	add := func(to *[]json.RawMessage, v any) {
		raw, e := json.Marshal(v)
		if e != nil {
			err = e
		}
		*to = append(*to, raw)
	}
	add(&out.Interfaces, host)
	add(&out.Interfaces, pod)
	for _, x := range reply.IPs {
		version, everything := "6", "::/0"
		if x.Addr.Is4() {
			version, everything = "4", "0.0.0.0/0"
		}
		if c.CNIVersion >= "1" {
			version = ""
		}
		add(&out.IPs, ip{version, netip.PrefixFrom(x.Addr, x.Addr.BitLen()).String(), x.Gateway.String(), &inside})
		add(&out.Routes, route{everything, x.Gateway.String()})
	}
	return out, err
}
