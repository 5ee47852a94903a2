package cluster

import (
	"context"
	"encoding/json"
	"net/netip"
	"os"

	"weft/internal/host"
	"weft/internal/netset"
)

// UpWithPTP makes the cluster with InstallPTP's network.
func (c *Cluster) UpWithPTP(ctx context.Context) error {
	if err := c.Up(ctx); err != nil {
		return err
	}
	if err := c.InstallPTP(ctx); err != nil {
		return err
	}
	return c.waitReady(ctx)
}

// InstallPTP is the simplest network that works, in place of weft: the reference plugins ptp and host-local,
// and routes between the nodes. It shows whether a failure is weft's or the cluster's own.
func (c *Cluster) InstallPTP(ctx context.Context) error {
	cidrs, err := c.podCIDRs(ctx)
	if err != nil {
		return err
	}
	for _, n := range c.NodeNames() {
		h, err := host.Open(c.path(n))
		if err != nil {
			return err
		}
		if err := routeTo(h, cidrs); err != nil {
			return err
		}
		if _, err := h.Output(ctx, "/bin/sh", "-c", "mkdir -p /opt/cni/bin && cp "+c.program("cni")+"/* /opt/cni/bin/"); err != nil {
			return err
		}
		list, err := ptpConfig(cidrs[n])
		if err != nil {
			return err
		}
		dir := h.Root() + "/etc/cni/net.d"
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(dir+"/10-ptp.conflist", list, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// routeControlPlane routes the pods' addresses on the control plane's host through their nodes. The API server
// needs it to reach pods (webhooks, aggregated APIs), as it would in a network of machines.
func (c *Cluster) routeControlPlane(ctx context.Context) error {
	cidrs, err := c.podCIDRs(ctx)
	if err != nil {
		return err
	}
	h, err := host.Open(c.path(ControlPlane))
	if err != nil {
		return err
	}
	return routeTo(h, cidrs)
}

// podCIDRs returns the nodes' prefixes by node, as soon as each has one.
func (c *Cluster) podCIDRs(ctx context.Context) (map[string][]netip.Prefix, error) {
	args := []string{"wait", "--for=jsonpath={.spec.podCIDRs}", "nodes", "--all", "--timeout=60s"}
	if _, err := c.Kubectl(ctx, args...); err != nil {
		return nil, err
	}
	var nodes struct {
		Items []struct {
			Metadata struct{ Name string }
			Spec     struct{ PodCIDRs []netip.Prefix }
		}
	}
	if err := c.Get(ctx, &nodes, "nodes"); err != nil {
		return nil, err
	}
	cidrs := map[string][]netip.Prefix{}
	for _, n := range nodes.Items {
		cidrs[n.Metadata.Name] = n.Spec.PodCIDRs
	}
	return cidrs, nil
}

// routeTo gives a host routes to the prefixes of all other nodes.
func routeTo(h *host.Host, cidrs map[string][]netip.Prefix) error {
	for node, ps := range cidrs {
		if node == h.Name() {
			continue
		}
		for _, p := range ps {
			if err := h.AddRoute(p, Address(node, netset.OfPrefix(p))); err != nil {
				return err
			}
		}
	}
	return nil
}

func ptpConfig(ps []netip.Prefix) ([]byte, error) {
	type object = map[string]any
	var ranges [][]object
	var routes []object
	for _, p := range ps {
		ranges = append(ranges, []object{{"subnet": p.String()}})
		routes = append(routes, object{"dst": netset.Default(netset.OfPrefix(p)).String()})
	}
	return json.Marshal(object{
		"cniVersion": "1.0.0", "name": "ptp", "plugins": []object{{
			"type": "ptp", "mtu": wireMTU, "ipMasq": false,
			"ipam": object{"type": "host-local", "ranges": ranges, "routes": routes},
		}},
	})
}
