// Package ipmasq reads the configuration file of the ip-masq-agent, which GKE, AKS and many others use.
//
// It is pure: it converts the file's bytes into the part of the configuration that they stand for. It
// neither reads nor watches the file, and decides nothing about packets.
package ipmasq

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"sigs.k8s.io/yaml"

	"weft/internal/model"
	"weft/internal/netset"
)

// file is the format. resyncInterval has no meaning here: a change of the file is seen when it happens.
type file struct {
	NonMasqueradeCIDRs []string         `json:"nonMasqueradeCIDRs"`
	MasqLinkLocal      bool             `json:"masqLinkLocal"`
	MasqLinkLocalV     bool             `json:"masqLinkLocalIPv6"`
	ResyncInterval     *json.RawMessage `json:"resyncInterval"`
}

// Parse converts a file, YAML or JSON. NonMasqueradeCIDRs and MasqLinkLocal of the result are set. The file has a
// switch for the link-local prefix of each family; where they differ, MasqLinkLocal is true and the prefix
// that stays unmasqueraded is in the list. An error names every field that is wrong; then nothing is to be used.
func Parse(raw []byte) (model.Masquerade, error) {
	var f file
	data, err := yaml.YAMLToJSONStrict(raw)
	if err != nil {
		return model.Masquerade{}, fmt.Errorf("ip-masq-agent file: not YAML: %s", strings.TrimPrefix(strings.TrimPrefix(err.Error(), "error converting YAML to JSON: "), "yaml: "))
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return model.Masquerade{}, fmt.Errorf("ip-masq-agent file: %w", explain(err))
	}
	var errs []error
	var out model.Masquerade
	for i, s := range f.NonMasqueradeCIDRs {
		p, err := netip.ParsePrefix(s)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("ip-masq-agent file: nonMasqueradeCIDRs[%d]: %q is not a prefix in CIDR notation", i, s))
		case p != p.Masked():
			errs = append(errs, fmt.Errorf("ip-masq-agent file: nonMasqueradeCIDRs[%d]: %s has bits beyond its length, did you mean %s?", i, s, p.Masked()))
		default:
			out.NonMasqueradeCIDRs = append(out.NonMasqueradeCIDRs, p)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return model.Masquerade{}, err
	}
	on := map[netset.Family]bool{netset.V4: f.MasqLinkLocal, netset.V6: f.MasqLinkLocalV}
	out.MasqLinkLocal = f.MasqLinkLocal || f.MasqLinkLocalV
	for _, fam := range netset.Families() {
		if out.MasqLinkLocal && !on[fam] {
			out.NonMasqueradeCIDRs = append(out.NonMasqueradeCIDRs, linkLocal(fam))
		}
	}
	return out, nil
}

// linkLocal returns the family's link-local prefix (RFC 3927, RFC 4291 §2.5.6).
func linkLocal(f netset.Family) netip.Prefix {
	bits := 16
	if f != netset.V4 {
		bits = 10
	}
	return netip.PrefixFrom(netset.Gateway(f), bits).Masked()
}

// explain words a JSON error for the user who wrote the file.
func explain(err error) error {
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		return fmt.Errorf("%s: want %s, got a JSON %s", wrong.Field, wrong.Type, wrong.Value)
	}
	if s, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		return fmt.Errorf("unknown field %s: known are nonMasqueradeCIDRs, masqLinkLocal, masqLinkLocalIPv6 and resyncInterval", s)
	}
	return err
}
