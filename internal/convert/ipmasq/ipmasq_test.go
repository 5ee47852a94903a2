package ipmasq

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"weft/internal/model"
)

func TestParse(t *testing.T) {
	pfx := netip.MustParsePrefix
	for name, tc := range map[string]struct {
		in   string
		want model.Masquerade
		err  string
	}{
		"empty": {in: ""},
		"YAML": {
			in:   "nonMasqueradeCIDRs:\n- 10.0.0.0/8\n- fd00::/8\nmasqLinkLocal: false\nresyncInterval: 60s\n",
			want: model.Masquerade{NonMasqueradeCIDRs: []netip.Prefix{pfx("10.0.0.0/8"), pfx("fd00::/8")}},
		},
		"JSON": {
			in:   `{"nonMasqueradeCIDRs": ["10.0.0.0/8"], "masqLinkLocal": true, "masqLinkLocalIPv6": true, "resyncInterval": "1m"}`,
			want: model.Masquerade{NonMasqueradeCIDRs: []netip.Prefix{pfx("10.0.0.0/8")}, MasqLinkLocal: true},
		},
		"link-local of one family": {
			in:   "masqLinkLocal: true\n",
			want: model.Masquerade{NonMasqueradeCIDRs: []netip.Prefix{pfx("fe80::/10")}, MasqLinkLocal: true},
		},
		"link-local of the other": {
			in:   "masqLinkLocalIPv6: true\n",
			want: model.Masquerade{NonMasqueradeCIDRs: []netip.Prefix{pfx("169.254.0.0/16")}, MasqLinkLocal: true},
		},
		"two mistakes": {
			in: "nonMasqueradeCIDRs: [10.0.0.1/8, ten]\n",
			err: `nonMasqueradeCIDRs[0]: 10.0.0.1/8 has bits beyond its length, did you mean 10.0.0.0/8?
ip-masq-agent file: nonMasqueradeCIDRs[1]: "ten" is not a prefix in CIDR notation`,
		},
		"a typing mistake": {in: "nonMasqueradeCIDR: []\n", err: `unknown field "nonMasqueradeCIDR": known are nonMasqueradeCIDRs,`},
		"a wrong type":     {in: "masqLinkLocal: yep\n", err: "masqLinkLocal: want bool, got a JSON string"},
		"not a list":       {in: "nonMasqueradeCIDRs: 10.0.0.0/8\n", err: "nonMasqueradeCIDRs: want []string, got a JSON string"},
		"no mapping":       {in: "- 10.0.0.0/8\n", err: "got a JSON array"},
		"no YAML":          {in: "a: b: c\n", err: "ip-masq-agent file: not YAML: mapping values are not allowed"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Parse([]byte(tc.in))
			if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Fatalf("error %v, want %q", err, tc.err)
			}
			if !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("nonMasqueradeCIDRs: [10.0.0.0/8]\nmasqLinkLocal: true\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := Parse(raw)
		for _, p := range m.NonMasqueradeCIDRs {
			if err != nil || p != p.Masked() {
				t.Fatalf("prefix %s with error %v", p, err)
			}
		}
	})
}
