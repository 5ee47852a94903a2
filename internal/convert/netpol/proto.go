package netpol

import (
	"fmt"

	"weft/internal/convert/object"
	"weft/internal/convert/wire"
)

// The cases of the read functions are the field numbers of k8s.io/api/networking/v1, apimachinery's meta/v1 and
// intstr; a test compares them with the real ones. A number that is not here is a field of a newer Kubernetes, which
// may narrow what is around it: it fails closed, as an unknown name does in JSON.

func (s *Spec) readMeta(f wire.Field) error {
	switch f.Num {
	case 1:
		s.Ref.Name = f.Text()
	case 3:
		s.Ref.Namespace = f.Shared()
	}
	return nil
}

func (s *Spec) read(f wire.Field) error {
	switch f.Num {
	case 1:
		s.Pods = new(object.LabelSelector)
		return f.Message(selectorOf(s.Pods, &s.Bad, "spec.podSelector"))
	case 2:
		s.Ingress = append(s.Ingress, Rule{Field: fmt.Sprintf("spec.ingress[%d]", len(s.Ingress))})
		return f.Message(s.Ingress[len(s.Ingress)-1].reader("from"))
	case 3:
		s.Egress = append(s.Egress, Rule{Field: fmt.Sprintf("spec.egress[%d]", len(s.Egress))})
		return f.Message(s.Egress[len(s.Egress)-1].reader("to"))
	case 4:
		s.Types = append(s.Types, f.Shared())
	default:
		unknown(&s.Bad, "spec", f)
	}
	return nil
}

// unknown notes a field that has no name here.
func unknown(bad *object.Mistakes, field string, f wire.Field) {
	bad.Add(field, "unknown field number %d", f.Num)
}

// reader reads a rule, whose peers are in the field of that name.
func (r *Rule) reader(peers string) func(wire.Field) error {
	return func(f wire.Field) error {
		switch f.Num {
		case 1:
			r.Ports = append(r.Ports, Port{Field: fmt.Sprintf("%s.ports[%d]", r.Field, len(r.Ports))})
			p := &r.Ports[len(r.Ports)-1]
			return f.Message(func(f wire.Field) error { return p.read(f, &r.Bad) })
		case 2:
			r.Peers = append(r.Peers, Peer{Field: fmt.Sprintf("%s.%s[%d]", r.Field, peers, len(r.Peers))})
			p := &r.Peers[len(r.Peers)-1]
			return f.Message(func(f wire.Field) error { return p.read(f, &r.Bad) })
		}
		unknown(&r.Bad, r.Field, f)
		return nil
	}
}

func (p *Port) read(f wire.Field, bad *object.Mistakes) error {
	switch f.Num {
	case 1:
		v := f.Shared()
		p.Protocol = &v
	case 2:
		p.Port = new(Value)
		return f.Message(p.Port.read)
	case 3:
		v := f.Int()
		p.EndPort = &v
	default:
		unknown(bad, p.Field, f)
	}
	return nil
}

// read reads an IntOrString, of which the type says which of the values counts.
func (v *Value) read(f wire.Field) error {
	switch f.Num {
	case 1:
		v.Named = f.Int() == 1
	case 2:
		v.Number = f.Int()
	case 3:
		v.Name = f.Shared()
	}
	return nil
}

func (p *Peer) read(f wire.Field, bad *object.Mistakes) error {
	switch f.Num {
	case 1:
		p.Pods = new(object.LabelSelector)
		return f.Message(selectorOf(p.Pods, bad, p.Field+".podSelector"))
	case 2:
		p.Namespaces = new(object.LabelSelector)
		return f.Message(selectorOf(p.Namespaces, bad, p.Field+".namespaceSelector"))
	case 3:
		p.Block = new(IPBlock)
		return f.Message(func(f wire.Field) error {
			switch f.Num {
			case 1:
				p.Block.CIDR = f.Text()
			case 2:
				p.Block.Except = append(p.Block.Except, f.Text())
			default:
				unknown(bad, p.Field+".ipBlock", f)
			}
			return nil
		})
	}
	unknown(bad, p.Field, f)
	return nil
}

// selectorOf reads a label selector.
func selectorOf(s *object.LabelSelector, bad *object.Mistakes, field string) func(wire.Field) error {
	return func(f wire.Field) error {
		switch f.Num {
		case 1:
			return f.Entry(&s.MatchLabels)
		case 2:
			s.MatchExpressions = append(s.MatchExpressions, object.Requirement{})
			r := &s.MatchExpressions[len(s.MatchExpressions)-1]
			at := fmt.Sprintf("%s.matchExpressions[%d]", field, len(s.MatchExpressions)-1)
			return f.Message(func(f wire.Field) error {
				switch f.Num {
				case 1:
					r.Key = f.Shared()
				case 2:
					r.Operator = f.Shared()
				case 3:
					r.Values = append(r.Values, f.Shared())
				default:
					unknown(bad, at, f)
				}
				return nil
			})
		}
		unknown(bad, field, f)
		return nil
	}
}
