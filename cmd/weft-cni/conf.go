package main

import (
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"

	"weft/internal/api"
)

// newest is the version of errors where the configuration does not say which to speak.
const newest = "1.1.0"

// maxConf is the size in bytes above which a network configuration is refused.
const maxConf = 1 << 20

// defaultSocket is the agent's socket where the configuration names none.
const defaultSocket = "/run/weft/" + api.SocketName

// supported lists the versions in their order. 0.3.0 and 0.3.1 differ in a typo of the specification.
func supported() []string { return []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} }

// netConf is the part of the network configuration that concerns us. Other fields are ignored, as
// the specification wants; a field of the wrong type is refused by name.
type netConf struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`
	Type       string `json:"type"`
	Socket     string `json:"socket"` // ours: the agent's socket
	Runtime    struct {
		Ports     []portMapping `json:"portMappings"`
		Bandwidth bandwidth     `json:"bandwidth"`
		IPs       []string      `json:"ips"`
		MAC       string        `json:"mac"`
	} `json:"runtimeConfig"`
	Args struct {
		CNI struct {
			IPs []string `json:"ips"`
		} `json:"cni"`
	} `json:"args"`
	DNS  dns             `json:"dns"`
	Prev json.RawMessage `json:"prevResult"`
	// Valid is raw because a list that is null is an empty one, and a list that is missing is not.
	Valid json.RawMessage `json:"cni.dev/valid-attachments"`
}

// dns goes into the result as it is.
type dns struct {
	Nameservers []string `json:"nameservers,omitempty"`
	Domain      string   `json:"domain,omitempty"`
	Search      []string `json:"search,omitempty"`
	Options     []string `json:"options,omitempty"`
}

// portMapping and bandwidth are as wide as the runtime's, so that what does not fit is named.
type portMapping struct {
	HostPort      int64  `json:"hostPort"`
	ContainerPort int64  `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`
}

type bandwidth struct {
	IngressRate  int64 `json:"ingressRate"`
	IngressBurst int64 `json:"ingressBurst"`
	EgressRate   int64 `json:"egressRate"`
	EgressBurst  int64 `json:"egressBurst"`
}

// parseConf decodes the configuration. With an error it returns what it could decode, for the version.
func parseConf(raw []byte) (*netConf, error) {
	if len(raw) > maxConf {
		return nil, api.Errorf(api.CodeDecode, "the network configuration is longer than %d bytes", maxConf)
	}
	if len(strings.TrimSpace(string(raw))) == 0 {
		return nil, api.Errorf(api.CodeDecode, "the network configuration on stdin is empty")
	}
	c := &netConf{}
	err := json.Unmarshal(raw, c)
	var wrong *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &wrong):
		field := wrong.Field
		if field == "" {
			field = "the configuration"
		}
		return c, api.Errorf(api.CodeDecode, "network configuration: %s: a %s cannot be used here, want %s", field, wrong.Value, kind(wrong))
	case errors.As(err, &syntax):
		return nil, api.Errorf(api.CodeDecode, "network configuration: byte %d: %v", syntax.Offset, err)
	case err != nil:
		return nil, api.Errorf(api.CodeDecode, "network configuration: %v", err)
	}
	if c.Socket == "" {
		c.Socket = defaultSocket
	}
	return c, nil
}

// kind is how JSON calls the type that was wanted.
func kind(e *json.UnmarshalTypeError) string {
	switch k := e.Type.Kind().String(); k {
	case "struct", "map":
		return "object"
	case "slice":
		return "array"
	case "int64":
		return "integer"
	default:
		return k
	}
}

// speaks says whether the configuration's version has the command, and whether we speak it.
func (c *netConf) speaks(command string) error {
	v := slices.Index(supported(), c.CNIVersion)
	if v < 0 {
		e := api.Errorf(api.CodeIncompatible, "incompatible CNI versions: the configuration has cniVersion %q, weft-cni speaks %s",
			c.CNIVersion, strings.Join(supported(), ", "))
		if c.CNIVersion == "" {
			e.Details = "cniVersion is missing, which means 0.1.0"
		}
		return e
	}
	since := map[string]string{"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}[command]
	if since != "" && v < slices.Index(supported(), since) {
		return api.Errorf(api.CodeIncompatible, "%s came with CNI %s, the configuration has cniVersion %s", command, since, c.CNIVersion)
	}
	return nil
}

// request is the ADD that configuration and arguments describe. What the runtime says in runtimeConfig goes before args,
// and that before CNI_ARGS (CNI conventions).
func (c *netConf) request(a api.Attachment, cniArgs string) (api.AddRequest, error) {
	r := api.AddRequest{Attachment: a, MAC: c.Runtime.MAC}
	args := map[string]string{}
	for pair := range strings.SplitSeq(cniArgs, ";") {
		k, v, ok := strings.Cut(pair, "=")
		if !ok && pair != "" {
			return r, api.Errorf(api.CodeInvalidEnv, "CNI_ARGS: %q is not KEY=VALUE", pair)
		}
		args[k] = v
	}
	r.Pod = api.PodRef{Namespace: args["K8S_POD_NAMESPACE"], Name: args["K8S_POD_NAME"], UID: args["K8S_POD_UID"]}
	ips, from := c.Runtime.IPs, "runtimeConfig.ips"
	if ips == nil {
		ips, from = c.Args.CNI.IPs, "args.cni.ips"
	}
	if ips == nil && args["IP"] != "" {
		ips, from = []string{args["IP"]}, "CNI_ARGS: IP"
	}
	for _, s := range ips {
		x, err := parseIP(s)
		if err != nil {
			return r, api.Errorf(api.CodeInvalidConfig, "%s: %q is not an address", from, s)
		}
		r.Addrs = append(r.Addrs, x)
	}
	for i, m := range c.Runtime.Ports {
		if m.HostPort <= 0 && m.HostPort >= -1 {
			continue // declared, not mapped
		}
		bad := func(what string) error {
			return api.Errorf(api.CodeInvalidConfig, "runtimeConfig.portMappings[%d]: %s", i, what)
		}
		p := api.PortMapping{HostPort: uint16(m.HostPort), ContainerPort: uint16(m.ContainerPort), Protocol: m.Protocol}
		switch {
		case int64(p.HostPort) != m.HostPort:
			return r, bad("hostPort is not in 1..65535")
		case m.ContainerPort == 0 || int64(p.ContainerPort) != m.ContainerPort:
			return r, bad("containerPort is not in 1..65535")
		}
		if m.HostIP != "" {
			x, err := netip.ParseAddr(m.HostIP)
			if err != nil {
				return r, bad("hostIP is not an address")
			}
			p.HostIP = x
		}
		r.Ports = append(r.Ports, p)
	}
	b := c.Runtime.Bandwidth
	if min(b.IngressRate, b.IngressBurst, b.EgressRate, b.EgressBurst) < 0 {
		return r, api.Errorf(api.CodeInvalidConfig, "runtimeConfig.bandwidth: a rate or burst is negative")
	}
	r.Bandwidth = api.Bandwidth{
		IngressRate: uint64(b.IngressRate), IngressBurst: uint64(b.IngressBurst),
		EgressRate: uint64(b.EgressRate), EgressBurst: uint64(b.EgressBurst),
	}
	return r, nil
}

// parseIP takes an address with or without a prefix length, which says nothing to us: pods have /32 and /128.
func parseIP(s string) (netip.Addr, error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Addr(), nil
	}
	return netip.ParseAddr(s)
}
