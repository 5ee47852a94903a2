package plan

import "net/netip"

// VIP is an address that somebody else's service translation listens on (kube-proxy's ClusterIPs): what a pod under policy sends
// there is decided where it leaves the stack, with the address that it was translated to.
type VIP struct {
	By
	Addr netip.Addr
}

// Key implements Row.
func (v *VIP) Key() Key { return Key{KindVIP, v.Addr.String()} }

func (v *VIP) String() string { return text(v.Addr.String(), "of", v.By.Name) }
