package antrea

import (
	"encoding/json"
	"strings"

	"weft/internal/model"
)

// The names of tiers that mean something here.
const (
	tierDefault  = "application" // of policies that name none
	tierBaseline = "baseline"    // the only one after the policies of Kubernetes
)

// The priorities of tiers that have a meaning. Where they lie on the axis of all tiers says model.AntreaTierOrder.
const (
	priorityAdmin    = 220 // where sig-network's Admin tier stands
	priorityLast     = 250 // of tierDefault, the last before the policies of Kubernetes
	priorityBaseline = 253
	priorityMax      = 255
)

// statics are the tiers that Antrea creates on its own, in their order. Policies name them freely: model.FindTier knows them without
// an object.
func statics() []string {
	return []string{"emergency", "securityops", "networkops", "platform", tierDefault, tierBaseline}
}

// staticPriority returns the priority of one of the statics.
func staticPriority(name string) (priority int, ok bool) {
	switch name {
	case "emergency":
		return 50, true
	case "securityops":
		return 100, true
	case "networkops":
		return 150, true
	case "platform":
		return 200, true
	case tierDefault:
		return priorityLast, true
	case tierBaseline:
		return priorityBaseline, true
	}
	return 0, false
}

// newTier makes a tier. What none of its policies decides goes on: Antrea's policies do not isolate.
func newTier(name string, priority int) *model.Tier {
	return &model.Tier{API: model.APIAntrea, Name: name, Order: model.AntreaTierOrder(priority), Pass: true}
}

// tierRef returns the reference to a tier that a policy names; "" is the default tier. The names of static tiers were
// once written in capitals, and are still taken.
func tierRef(name string) model.TierRef {
	if name == "" {
		name = tierDefault
	}
	return model.TierRef{API: model.APIAntrea, Name: strings.ToLower(name)}
}

// tierSpec is the spec of a Tier.
type tierSpec struct {
	Priority    *json.RawMessage `json:"priority"`
	Description *string          `json:"description"`
}

// tier converts a Tier. One that Antrea's admission refuses is not there, except that nobody can take a static tier away.
func (c *conversion) tier() []model.Object {
	const field = "spec.priority"
	var spec tierSpec
	c.decode("spec", c.obj.Spec, &spec)
	name := c.obj.Meta.Name
	static, isStatic := staticPriority(name)
	p := -1
	switch {
	case spec.Priority == nil:
		c.mistake(field, "is missing")
	case !c.decode(field, *spec.Priority, &p):
	case isStatic && p != static:
		c.mistake(field, "tier %s is Antrea's own and has priority %d, which stays", name, static)
	case isStatic:
	case p < 0 || p > priorityMax:
		c.mistake(field, "%d is not in 0..%d", p, priorityMax)
	case p == priorityAdmin:
		c.mistake(field, "tier %s priority %d is reserved for the Admin tier of policy.networking.k8s.io", name, p)
	case p > priorityLast && p != priorityBaseline:
		c.mistake(field, "tier %s priority %d is reserved", name, p)
	default:
		return c.customTier(name, p)
	}
	if isStatic {
		return []model.Object{newTier(name, static)}
	}
	return nil
}

// customTier makes a tier of a user, unless its priority is that of a static tier.
func (c *conversion) customTier(name string, p int) []model.Object {
	for _, s := range statics() {
		if q, _ := staticPriority(s); p == q {
			c.mistake("spec.priority", "tier %s priority %d is that of tier %s", name, p, s)
			return nil
		}
	}
	return []model.Object{newTier(name, p)}
}
