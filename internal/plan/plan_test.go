package plan_test

import (
	"fmt"
	"net/netip"
	"reflect"
	"testing"

	"weft/internal/model"
	"weft/internal/plan"
)

// rows has one of every type, with every field set.
func rows() []plan.Row {
	by := plan.By{Key: model.Key{Kind: model.KindEndpoint, Name: "c1/eth0"}}
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	p := netip.MustParsePrefix("10.0.0.0/24")
	rate := model.Rate{Bits: 1, Burst: 2}
	m := model.MAC{2, 0, 0, 0, 0, 1}
	return []plan.Row{
		&plan.Sysctl{By: by, Path: "net/x", Value: "1"},
		&plan.Overlay{By: by, Name: "o", MAC: m, MTU: 1, Port: 1},
		&plan.Rule{By: by, Family: "IPv4", Priority: 1, Table: 1},
		&plan.PodLink{
			By: by, HostIf: "w", Netns: "n", IfName: "e", MAC: m, MTU: 1, Addrs: []netip.Addr{a, b},
			Narrow: []plan.RouteMTU{{Dst: p, MTU: 1}}, Ingress: rate, Egress: rate,
		},
		&plan.Neighbour{By: by, Dev: "w", Addr: a, MAC: m},
		&plan.Route{By: by, Dst: p, Dev: "w", Via: a, Src: b, MTU: 1},
		&plan.Masquerade{By: by, Sources: []netip.Prefix{p}, Except: []netip.Prefix{p}},
		&plan.HostPort{By: by, HostIP: a, Protocol: "tcp", Port: 1, Pod: netip.AddrPortFrom(b, 1)},
		&plan.Settings{By: by, GatewayMAC: m, VNI: 1, Port: 1, Overlay: "o", Underlay: "u", Addrs: []netip.Addr{a}, Tracked: true},
		&plan.Hook{By: by, Dev: "w", Role: plan.RoleOverlay},
		&plan.Remote{By: by, Prefix: p, Via: a, Tunnel: true, VTEPMAC: m, MTU: 1},
		&plan.Local{By: by, HostIf: "w", MAC: m, Addrs: []netip.Addr{a}, Shaped: true},
		&plan.Problem{By: by, Name: "n", Reason: "r"},
		&plan.Identity{By: by, ID: 2, Text: "pod"},
		&plan.PeerSet{By: by, ID: 2, Text: "pods", Members: []plan.ID{3}},
		&plan.PolicySet{By: by, ID: 2, Rules: []plan.PolicyRule{{ID: 4, L4: []plan.L4{{Proto: 6, Port: 80, Bits: 16}}}}},
		&plan.Address{By: by, Prefix: p, Identity: 2},
		&plan.VIP{By: by, Addr: a},
		&plan.Guard{By: by, Dev: "w", Identity: 2, Ingress: 3, Egress: 4},
	}
}

// TestTextIsComplete changes every field of every row: key, owner and text together must tell.
func TestTextIsComplete(t *testing.T) {
	seen := map[plan.Kind]bool{}
	for i, r := range rows() {
		seen[r.Key().Kind] = true
		v := reflect.ValueOf(r).Elem()
		for f := range v.NumField() {
			changed := rows()[i]
			change(reflect.ValueOf(changed).Elem().Field(f))
			if all(r) == all(changed) {
				t.Errorf("%T: a change of %s does not show in %q", r, v.Type().Field(f).Name, all(r))
			}
		}
	}
	for _, k := range plan.Kinds() {
		if !seen[k] {
			t.Errorf("no row of kind %s in this test", k)
		}
	}
}

func all(r plan.Row) string { return fmt.Sprint(r.Key(), r.Owner(), r.String()) }

func change(v reflect.Value) {
	switch x := v.Addr().Interface().(type) {
	case *netip.Addr:
		*x = x.Next()
	case *netip.AddrPort:
		*x = netip.AddrPortFrom(x.Addr(), x.Port()+1)
	case *netip.Prefix:
		*x = netip.PrefixFrom(x.Addr(), x.Bits()+1)
	case *plan.By:
		x.Name += "2"
	default:
		switch v.Kind() {
		case reflect.String:
			v.SetString(v.String() + "2")
		case reflect.Int:
			v.SetInt(v.Int() + 1)
		case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
			v.SetUint(v.Uint() + 1)
		case reflect.Bool:
			v.SetBool(!v.Bool())
		case reflect.Pointer:
			change(v.Elem())
		case reflect.Slice, reflect.Array:
			change(v.Index(0))
		case reflect.Struct:
			change(v.Field(0))
		default:
			panic(v.Kind())
		}
	}
}

// TestRuleText changes every field of a rule.
func TestRuleText(t *testing.T) {
	rule := func() plan.PolicyRule {
		return plan.PolicyRule{
			ID: 1, Origin: "o", Level: 1, Verdict: model.VerdictPass, PassTo: 2, Family: 4, Peers: 5,
			L4: []plan.L4{{Proto: 6, Port: 80, Bits: 16}}, SrcPorts: &model.PortRange{First: 1, Last: 2},
		}
	}
	was := rule()
	v := reflect.ValueOf(was)
	for f := range v.NumField() {
		now := rule()
		if name := v.Type().Field(f).Name; name == "Verdict" {
			now.Verdict = model.VerdictAllow
		} else if name == "Family" {
			now.Family = 6
		} else {
			change(reflect.ValueOf(&now).Elem().Field(f))
		}
		if was.String() == now.String() {
			t.Errorf("a change of %s does not show in %q", v.Type().Field(f).Name, was)
		}
	}
}
