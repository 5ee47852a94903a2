package main

import "weft/internal/bench"

// sameNodeTraffic is rows P1, P3 and P4.
func sameNodeTraffic(r *rig, o *options, rep *report) error {
	arms := rep.build([]builder{
		{"veth", func() (*arm, error) { return r.direct("veth") }},
		{"veth again", func() (*arm, error) { return r.direct("veth again") }},
		{"bridge", func() (*arm, error) { return r.withPlugin("bridge", "bridge", true, false) }},
		{"ptp", func() (*arm, error) { return r.withPlugin("ptp", "ptp", true, false) }},
		{"weft", func() (*arm, error) { a, _, err := r.weftArm(o, "weft", "vxlan", true); return a, err }},
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
		{"host", func() (*arm, error) { return r.host("host") }},
		{"host again", func() (*arm, error) { return r.host("host again") }},
		{"routed", func() (*arm, error) { return r.withPlugin("routed", "ptp", false, false) }},
		{"vxlan", func() (*arm, error) { return r.rawVXLAN("vxlan") }},
		{"vxlan-bridge", func() (*arm, error) { return r.withPlugin("vxlan-bridge", "bridge", false, true) }},
		{"flannel-hostgw", func() (*arm, error) { return r.flannelArm("flannel-hostgw", "host-gw") }},
		{"flannel-vxlan", func() (*arm, error) { return r.flannelArm("flannel-vxlan", "vxlan") }},
		{"weft-direct", func() (*arm, error) { a, _, err := r.weftArm(o, "weft-direct", "direct", false); return a, err }},
		{"weft-vxlan", func() (*arm, error) { a, _, err := r.weftArm(o, "weft-vxlan", "vxlan", false); return a, err }},
	})
	return r.compare(o, rep, crossNode, arms, trafficTests(o, bench.Stream, bench.RR, bench.CRR))
}

// builder makes one arm.
type builder struct {
	name string
	make func() (*arm, error)
}

// build makes the arms; one that cannot be made is left out, and the notes say why.
func (rep *report) build(bs []builder) []*arm {
	var out []*arm
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
