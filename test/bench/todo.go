package main

func agentDeath(r *rig, o *options, rep *report) error               { return nil }
func agentRows(r *rig, o *options, rep *report) error                { return nil }
func (r *rig) firstPacket(o *options, rep *report, s *subject) error { return nil }
func (r *rig) kills(o *options, rep *report, s *subject) error       { return nil }

type weftNode struct{ plugin *plugin }

func (r *rig) startWeft(o *options, ns string, index int, backend string) (*weftNode, error) {
	return nil, errNotYet
}
