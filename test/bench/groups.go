package main

import (
	"slices"

	"weft/internal/bench"
	"weft/test/bench/lab"
)

// policyArms are the arms of row Y5 with how many policies each has.
func policyArms() map[string]int {
	return map[string]int{"weft-policy-1": 1, "weft-policy-1k": 1_000, "weft-policy-10k": 10_000}
}

// sameNodeTraffic is rows P1, P3 and P4, and with policies row Y5.
func sameNodeTraffic(r *rig, o *options, rep *report) error {
	builders := []builder{
		{"veth", func() (*lab.Arm, error) { return r.Direct("veth") }},
		{"veth again", func() (*lab.Arm, error) { return r.Direct("veth again") }},
		{"bridge", func() (*lab.Arm, error) { return r.WithPlugin("bridge", "bridge", true, false) }},
		{"ptp", func() (*lab.Arm, error) { return r.WithPlugin("ptp", "ptp", true, false) }},
		{"weft", func() (*lab.Arm, error) { a, _, err := r.WeftArm("weft", "vxlan", true); return a, err }},
	}
	if o.wants("Y5") {
		for _, name := range slices.Sorted(mapKeys(policyArms())) {
			objects := lab.Policies(policyArms()[name], "bench0", "bench1")
			builders = append(builders, builder{name, func() (*lab.Arm, error) { a, _, err := r.WeftArm(name, "vxlan", true, objects); return a, err }})
		}
	}
	arms := rep.build(builders)
	var modes []bench.Mode
	for _, m := range []struct {
		row  string
		mode bench.Mode
	}{{"P1", bench.Stream}, {"P3", bench.RR}, {"P4", bench.CRR}} {
		if o.wants(m.row, "Y5") {
			modes = append(modes, m.mode)
		}
	}
	return r.compare(o, rep, sameNode, arms, trafficTests(o, modes...))
}

// crossNodeTraffic is rows P5 and P6.
func crossNodeTraffic(r *rig, o *options, rep *report) error {
	arms := rep.build([]builder{
		{"host", func() (*lab.Arm, error) { return r.Host("host") }},
		{"host again", func() (*lab.Arm, error) { return r.Host("host again") }},
		{"routed", func() (*lab.Arm, error) { return r.WithPlugin("routed", "ptp", false, false) }},
		{"vxlan", func() (*lab.Arm, error) { return r.RawVXLAN("vxlan") }},
		{"vxlan-bridge", func() (*lab.Arm, error) { return r.WithPlugin("vxlan-bridge", "bridge", false, true) }},
		{"flannel-hostgw", func() (*lab.Arm, error) { return r.FlannelArm("flannel-hostgw", "host-gw") }},
		{"flannel-vxlan", func() (*lab.Arm, error) { return r.FlannelArm("flannel-vxlan", "vxlan") }},
		{"weft-direct", func() (*lab.Arm, error) { a, _, err := r.WeftArm("weft-direct", "direct", false); return a, err }},
		{"weft-vxlan", func() (*lab.Arm, error) { a, _, err := r.WeftArm("weft-vxlan", "vxlan", false); return a, err }},
	})
	return r.compare(o, rep, crossNode, arms, trafficTests(o, bench.Stream, bench.RR, bench.CRR))
}

// builder makes one arm.
type builder struct {
	name string
	make func() (*lab.Arm, error)
}

// build makes the arms; one that cannot be made is left out, and the notes say why.
func (rep *report) build(bs []builder) []*lab.Arm {
	var out []*lab.Arm
	for _, b := range bs {
		a, err := b.make()
		if err != nil {
			rep.note("arm %s left out: %v", b.name, err)
			continue
		}
		out = append(out, a)
	}
	return out
}
