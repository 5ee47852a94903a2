package model_test

import (
	"net/netip"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"weft/internal/model"
)

func TestConfigRefusals(t *testing.T) {
	for yml, want := range map[string]string{
		"backend: {type: geneve}":             `backend.type: "geneve" is not one of`,
		"source: {type: etcd}":                `source.type: "etcd"`,
		"source: {type: file}":                "source.dir: needed",
		"backend: {vni: 16777216}":            "backend.vni: 16777216",
		"backend: {port: 8473}":               "backend.probePort: 8473 is the VXLAN port",
		"link: bridge":                        `link: "bridge" is not one of [veth netkit]`,
		"mtu: 100":                            "mtu: 100",
		"logLevel: loud":                      `logLevel: "loud"`,
		"ipam: {quarantineSeconds: -1}":       "ipam.quarantineSeconds: -1",
		"ipam: {pools: [{name: p, node: n}]}": "ipam.pools[0]: name, node and cidrs must be set",
		"ipam: {pools: [{name: p, node: n, cidrs: [10.0.0.1/24]}]}":                                       "did you mean 10.0.0.0/24",
		"ipam: {pools: [{name: p, node: n, cidrs: [10.0.0.0/8, 10.1.0.0/16]}]}":                           "overlap",
		"ipam: {pools: [{name: p, node: n, cidrs: [fd00::/64]}, {name: q, node: m, cidrs: [fd00::/80]}]}": "fd00::/64 and fd00::/80 overlap",
		"nonsense: 1": "unknown field",
	} {
		var c model.Config
		err := yaml.UnmarshalStrict([]byte(yml), &c)
		if err == nil {
			c.SetDefaults()
			err = c.Validate()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", yml, err, want)
		}
	}
	var c model.Config
	c.SetDefaults()
	if err := c.Validate(); err != nil {
		t.Errorf("the defaults are refused: %v", err)
	}
}

func TestObjectRefusals(t *testing.T) {
	mac := model.MAC{2, 1}
	a := []netip.Addr{netip.MustParseAddr("10.0.0.1")}
	for want, o := range map[string]model.Object{
		"status.addresses has no InternalIP": &model.Node{Name: "n"},
		"node without a name":                &model.Node{Addrs: a},
		"bits beyond its length":             &model.Node{Name: "n", Addrs: a, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")}},
		"no address":                         &model.Endpoint{ID: "i", Netns: "n", IfName: "e", HostIf: "h", MAC: mac},
		"no MAC":                             &model.Endpoint{ID: "i", Netns: "n", IfName: "e", HostIf: "h", Addrs: a},
		"must be set":                        &model.Endpoint{ID: "i", Addrs: a, MAC: mac},
		"not in 576..65535":                  &model.PathMTU{Node: "n", MTU: 100},
	} {
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestMAC(t *testing.T) {
	for s, ok := range map[string]bool{"02:00:00:00:00:01": true, "01:00:5e:00:00:01": false, "00:00:00:00:00:00": false, "02-00-00-00-00-01": true, "x": false, "02:00:00:00:00:00:00:01": false} {
		if _, err := model.ParseMAC(s); (err == nil) != ok {
			t.Errorf("%q: %v", s, err)
		}
	}
	var m model.MAC
	if err := m.UnmarshalText([]byte(model.GatewayMAC.String())); err != nil || m != model.GatewayMAC {
		t.Errorf("%v %v", m, err)
	}
}
