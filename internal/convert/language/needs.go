package language

import (
	"strings"

	"weft/internal/model"
	"weft/internal/selector"
)

// Needs says what of the cluster an object must be decided with, beside nodes.
type Needs struct {
	Pods     bool // pods of all nodes, and namespaces
	Accounts bool // labels of service accounts
	Backends bool // which addresses are behind a service
}

// Or joins the needs of two objects.
func (n Needs) Or(o Needs) Needs {
	return Needs{n.Pods || o.Pods, n.Accounts || o.Accounts, n.Backends || o.Backends}
}

// NeedsOf returns the needs of an object that became of a user's. Tiers, groups and sets alone decide nothing and need no pods.
func NeedsOf(o model.Object) Needs {
	var n Needs
	switch o := o.(type) {
	case *model.Policy:
		n.Pods = true
		n.see(o.Subject)
		for _, s := range []*model.Section{o.Ingress, o.Egress} {
			if s == nil {
				continue
			}
			for i := range s.Rules {
				n.rule(&s.Rules[i])
			}
		}
	case *model.Group:
		n.peers(o.Members)
	}
	return n
}

func (n *Needs) rule(r *model.Rule) {
	n.see(r.Subject)
	n.peers(r.Peers)
	n.peers(r.Local)
	for _, l := range r.L4 {
		n.Backends = n.Backends || l.Service != ""
	}
}

func (n *Needs) peers(ps []model.Peer) {
	for _, p := range ps {
		n.see(p.Select)
		n.see(p.NotSelect)
	}
}

// see looks for keys that no pod and no namespace has.
func (n *Needs) see(e *selector.Expr) {
	if e == nil {
		return
	}
	n.Accounts = n.Accounts || strings.HasPrefix(e.Key, selector.ServiceAccount)
	n.Backends = n.Backends || strings.HasPrefix(e.Key, selector.Service)
	for _, s := range e.Sub {
		n.see(s)
	}
}
