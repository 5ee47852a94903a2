package model

import "math"

// The tiers of APIs whose policies name them.
const (
	APICalico = "calico"
	APIAntrea = "antrea"
)

// AntreaTierOrder is where an Antrea tier of a priority (0 to 255) lies on the common axis: priorities below that of the
// sig-network Admin tier (220) before it, those up to 250 between it and Kubernetes NetworkPolicy, the baseline after.
func AntreaTierOrder(priority int) float64 {
	switch {
	case priority <= 220:
		return TierAdmin * float64(priority) / 220
	case priority <= 251:
		return TierAdmin + float64(priority-220)*(TierNormal-TierAdmin)/31
	}
	return TierLate
}

// FindTier returns the tier that a policy is in. The three that all APIs share are the same by whatever name. One that no object describes is asked after all others: a policy must not
// come before those of its cluster's administrators because their tier was deleted.
func FindTier(s Snapshot, r TierRef) Tier {
	switch {
	case r.API == "" && r.Order == TierAdmin, r.API == APICalico && r.Name == "kube-admin":
		return Tier{Name: "admin", Order: TierAdmin, Pass: true}
	case r.API == "" && r.Order == TierNormal, r.API == APICalico && r.Name == "default":
		return Tier{Name: "normal", Order: TierNormal}
	case r.API == "" && r.Order == TierBaseline, r.API == APICalico && r.Name == "kube-baseline":
		return Tier{Name: "baseline", Order: TierBaseline, Pass: true}
	case r.API == "":
		return Tier{Name: r.Name, Order: r.Order}
	}
	if t := Get[*Tier](s, TierKey(r.API, r.Name)); t != nil {
		return *t
	}
	t := Tier{API: r.API, Name: r.Name, Order: math.Inf(1)}
	switch r.API + "/" + r.Name {
	case "antrea/emergency":
		t.Order = AntreaTierOrder(50)
	case "antrea/securityops":
		t.Order = AntreaTierOrder(100)
	case "antrea/networkops":
		t.Order = AntreaTierOrder(150)
	case "antrea/platform":
		t.Order = AntreaTierOrder(200)
	case "antrea/application":
		t.Order = AntreaTierOrder(250)
	case "antrea/baseline":
		t.Order = AntreaTierOrder(253)
	}
	return t
}
