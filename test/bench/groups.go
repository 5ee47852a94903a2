package main

import (
	"weft/internal/bench"
	"weft/test/bench/lab"
)

// sameNodeTraffic is rows P1, P3 and P4.
func sameNodeTraffic(r *rig, o *options, rep *report) error {
	arms := rep.build([]builder{
		{"veth", func() (*lab.Arm, error) { return r.Direct("veth") }},
		{"veth again", func() (*lab.Arm, error) { return r.Direct("veth again") }},
		{"bridge", func() (*lab.Arm, error) { return r.WithPlugin("bridge", "bridge", true, false) }},
		{"ptp", func() (*lab.Arm, error) { return r.WithPlugin("ptp", "ptp", true, false) }},
		{"weft", func() (*lab.Arm, error) { a, _, err := r.WeftArm("weft", "vxlan", true); return a, err }},
	})
	var modes []bench.Mode
	for _, m := range []struct {
		row  string
		mode bench.Mode
	}{{"P1", bench.Stream}, {"P3", bench.RR}, {"P4", bench.CRR}} {
		if o.wants(m.row) {
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
