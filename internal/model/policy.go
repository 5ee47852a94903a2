package model

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	"weft/internal/netset"
	"weft/internal/selector"
)

// Ref names an object of any API: what verdicts, counters and messages call it.
type Ref struct {
	Group     string // API group, "networking.k8s.io"
	Kind      string // "NetworkPolicy"
	Namespace string // "" for cluster-scoped kinds
	Name      string
}

// String returns "Kind.group namespace/name"; kinds of several groups have the same name, so that the group is never left out.
func (r Ref) String() string {
	if r.Namespace == "" {
		return fmt.Sprintf("%s.%s %s", r.Kind, r.Group, r.Name)
	}
	return fmt.Sprintf("%s.%s %s/%s", r.Kind, r.Group, r.Namespace, r.Name)
}

// path is the Ref as the name of a Key.
func (r Ref) path() string {
	return strings.Join([]string{r.Group, r.Kind, r.Namespace, r.Name}, "/")
}

// IsZero reports whether it names nothing.
func (r Ref) IsZero() bool { return r == Ref{} }

// The orders of tiers that every cluster has, on the one axis on which all APIs meet: tiers are asked in ascending order.
// Calico's are its own; those of others lie between them as their documents demand.
const (
	TierAdmin    = 1_000      // sig-network Admin tier, Calico's kube-admin
	TierNormal   = 1_000_000  // Kubernetes NetworkPolicy, Cilium, Calico's default
	TierLate     = 5_000_000  // Antrea's baseline
	TierBaseline = 10_000_000 // sig-network Baseline tier, Calico's kube-baseline
)

// TierRef names the tier of a policy: by its order if API is "", else the Tier object of that API.
type TierRef struct {
	API   string // "", "calico" or "antrea"
	Name  string // of the object; of a fixed tier the word to show, "admin"
	Order float64
}

// Tier is an object that users order policies by.
type Tier struct {
	API   string // "calico" or "antrea"
	Name  string
	Order float64 // on the common axis; +Inf where the user gave none
	Pass  bool    // traffic that no policy of the tier decides goes on to the next tier; else it is denied where a policy isolates
}

// Key implements Object.
func (t *Tier) Key() Key { return TierKey(t.API, t.Name) }

// TierKey is the key of a tier of an API.
func TierKey(api, name string) Key { return Key{KindTier, api + "/" + name} }

// Validate implements Object.
func (t *Tier) Validate() error {
	if math.IsNaN(t.Order) {
		return fmt.Errorf("tier %s: order is not a number", t.Name)
	}
	return nil
}

// Hook is where a policy's packets are looked at.
type Hook uint8

// The hooks. Workload is the usual one: traffic to and from the subject itself, a pod or (as its own traffic) a host. The
// others are of host endpoints only.
const (
	HookWorkload  Hook = iota
	HookForward        // what the host forwards (Calico applyOnForward)
	HookPreDNAT        // what comes in, before services are translated (Calico preDNAT)
	HookUntracked      // stateless, before everything else (Calico doNotTrack)
	HookService        // what is sent to a service's node port (Antrea appliedTo.service)
)

// Policy is one policy of any language in the common form.
//
// For every endpoint and direction, the policies that select it are asked tier by tier, and within a tier by (Order, Tie). Rules
// of an ordered policy are asked one by one. Rules of policies with Set that have equal Order and Tie form one group in
// which order means nothing: deny goes before allow, and allow before pass. See package oracle for the whole of it.
type Policy struct {
	Ref     Ref
	Tier    TierRef
	Order   float64 // within the tier, lower first; +Inf: the user gave none
	Tie     string  // decides between equal orders; "" sorts first
	Set     bool
	Hook    Hook
	Subject *selector.Expr // the endpoints that it applies to, by their labels; nil: none
	Groups  []Ref          // or those that are in one of these groups (KindGroup) by labels: members by Nets are no subjects
	Staged  bool           // says what it would do, and does nothing
	Confirm Confirm        // whether a node may take a change of it back
	// Nil: the policy says nothing of the direction. Not nil: it selects the subject in that direction, also without rules.
	Ingress, Egress *Section
	// Unsupported are the fields that weft does not enforce yet. What they narrow fails closed: see Rule.Unsupported.
	Unsupported []string
	Problem     string // what is wrong with a part of the object, or not enforced of it; "" if nothing is
	// Part counts the policies that one object became, from 0 (Cilium's specs).
	Part int
}

// Confirm says whether a node takes a change of a policy back by itself if it breaks what the node lives on: see Trial.
type Confirm uint8

// The values of Confirm. ConfirmDefault leaves it to the configuration.
const (
	ConfirmDefault Confirm = iota
	ConfirmNever
	ConfirmAlways
)

// SetsFirst orders policies of equal rank: those whose rules are one group come before the others, so that nothing parts them.
func SetsFirst(a, b *Policy) int {
	switch {
	case a.Set == b.Set:
		return 0
	case a.Set:
		return -1
	}
	return 1
}

// Section is one direction of a policy.
type Section struct {
	// Isolates: what no rule of the tier decides is denied at the tier's end. Of an API whose tiers may pass (Calico), the tier has
	// the last word.
	Isolates bool
	Rules    []Rule
}

// Verdict is what a rule says of the packets that match it.
type Verdict uint8

// The verdicts. VerdictLog does not end the search.
const (
	VerdictNone Verdict = iota
	VerdictAllow
	VerdictDeny
	VerdictReject // deny, and tell the sender: TCP reset, else ICMP "administratively prohibited"
	VerdictPass   // leave the decision to a later tier
	VerdictLog
)

// String returns the verdict in lower case.
func (v Verdict) String() string {
	return [...]string{"none", "allow", "deny", "reject", "pass", "log"}[v]
}

// Rule is one rule. All of its parts must match.
type Rule struct {
	Name    string // the user's, or ""
	Index   int    // of the object's list that it comes from, for messages
	Field   string // of the object, "spec.ingress[2]"
	Verdict Verdict
	// PassTo is where VerdictPass continues: the first tier of at least this order; 0: the next tier.
	PassTo float64
	Family netset.Family // 0: both
	// Peers is the other side: one of them must match. Nil: anything. Empty but not nil: nothing.
	Peers []Peer
	// Local narrows the policy's own side for this rule alone, as the destination of an ingress rule does in Calico. Nil: not
	// narrowed. Several must all match.
	Local []Peer
	// Subject, if not nil, replaces the policy's Subject and Groups for this rule (Antrea's appliedTo of rules).
	Subject *selector.Expr
	Groups  []Ref
	// Hosts: the peers name nodes by intention (an entity, a node selector). A node's own traffic to its pods, which no
	// other rule is asked about, is not exempt from this one.
	Hosts bool
	// L4 is the protocols and ports: one of them must match. Nil: anything. Empty but not nil: nothing.
	L4  []L4
	Log *Log // nil: matches are counted, and not logged
	// Unsupported names the field of this rule that weft does not enforce yet; "" if there is none. Such a rule fails closed: if it
	// allows or passes, it matches nothing, and if it denies, it denies whatever its other parts match.
	Unsupported string
}

// Log asks for a record of every connection that a rule decides.
type Log struct {
	Prefix string // put before the record; "" where the API has none
}

// Peer is one description of the other side. All parts that are set must match; a Peer without any matches everything.
type Peer struct {
	Select    *selector.Expr // labels; nil: whatever they are
	NotSelect *selector.Expr // nil: nothing is excluded
	Nets      []netip.Prefix // in one of them; nil: whatever the address is. Empty but not nil: nothing
	NotNets   []netip.Prefix // in none of them
	// External: Nets match only what is neither a pod nor a node of the cluster (Cilium).
	External bool
	Group    *Ref // a member of that group (KindGroup, KindAddressSet); one that is not there has no members
	// SameNamespace and SameLabels look at the policy's own side as well (Antrea's namespaces): a peer in the namespace of the
	// subject; or in one with the subject's value of each of these namespace labels. What has no namespace, or one without a
	// label, is not matched, on either side.
	SameNamespace bool
	SameLabels    []string // Kubernetes keys, without prefix; nil: not asked
	// Names are DNS names or patterns that the peer must have been resolved from. A Peer with names matches nothing yet.
	Names []string
}

// PortRange is a range of ports, ends included.
type PortRange struct{ First, Last uint16 }

// String returns "80" or "80-90".
func (r PortRange) String() string {
	if r.First == r.Last {
		return fmt.Sprint(r.First)
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// The protocol numbers that have names here (IANA), and ProtoAny.
const (
	ProtoAny     = -1
	ProtoICMP    = 1
	ProtoTCP     = 6
	ProtoUDP     = 17
	ProtoICMPv6  = 58
	ProtoSCTP    = 132
	ProtoUDPLite = 136
)

// L4 is one description of protocol and ports. All parts that are set must match.
type L4 struct {
	Proto    int   // 0 to 255, or ProtoAny
	NotProto []int // none of these; nil: nothing is excluded
	// Destination ports. Of ICMP, the first is type<<8 | code of the range's ends. Named ports are those of the destination's
	// containers (or of a host endpoint), of L4.Proto. A range or a name must match, where there is any.
	Ports    []PortRange
	Named    []string
	NotPorts []PortRange
	NotNamed []string
	// Source ports, numbers only.
	SrcPorts    []PortRange
	NotSrcPorts []PortRange
	// Service, "namespace/name", wants the destination's protocol, address and port to be those of a backend of that service
	// (Calico's destination.services); "" asks nothing.
	Service string
}

// ICMPTypes is the port range that stands for an ICMP type, and code unless it is negative.
func ICMPTypes(typ uint8, code int) PortRange {
	if code < 0 {
		return PortRange{uint16(typ) << 8, uint16(typ)<<8 | 0xff}
	}
	v := uint16(typ)<<8 | uint16(uint8(code))
	return PortRange{v, v}
}

// Key implements Object.
func (p *Policy) Key() Key { return PolicyKey(p.Ref, p.Part) }

// PolicyKey is the key of a policy that an object became.
func PolicyKey(r Ref, part int) Key {
	if part == 0 {
		return Key{KindPolicy, r.path()}
	}
	return Key{KindPolicy, fmt.Sprintf("%s/%d", r.path(), part)}
}

// Validate implements Object.
func (p *Policy) Validate() error {
	if math.IsNaN(p.Order) {
		return fmt.Errorf("%s: order is not a number", p.Ref)
	}
	for _, s := range []*Section{p.Ingress, p.Egress} {
		if s == nil {
			continue
		}
		for i := range s.Rules {
			if err := s.Rules[i].validate(); err != nil {
				return fmt.Errorf("%s: %s: %w", p.Ref, s.Rules[i].Field, err)
			}
		}
	}
	return nil
}

func (r *Rule) validate() error {
	for _, l := range r.L4 {
		for _, ports := range [][]PortRange{l.Ports, l.NotPorts, l.SrcPorts, l.NotSrcPorts} {
			if i := slices.IndexFunc(ports, func(p PortRange) bool { return p.First > p.Last }); i >= 0 {
				return fmt.Errorf("port range %d-%d is reversed", ports[i].First, ports[i].Last)
			}
		}
		if l.Proto < ProtoAny || l.Proto > 255 {
			return fmt.Errorf("protocol %d is not in 0..255", l.Proto)
		}
	}
	return nil
}

// Group is a named set of endpoints that policies refer to (Antrea's ClusterGroup and Group).
type Group struct {
	Ref      Ref
	Members  []Peer // one of them must match
	Children []Ref  // or it is in one of these groups; their own Children do not count
	// Unsupported are the fields that are wrong or not enforced yet. Others may be members too, so that a rule that denies to or from
	// the group denies whatever its other parts match. A rule that allows or passes is for the known members.
	Unsupported []string
}

// Key implements Object.
func (g *Group) Key() Key { return GroupKey(g.Ref) }

// GroupKey is the key of a group.
func GroupKey(r Ref) Key { return Key{KindGroup, r.path()} }

// Validate implements Object.
func (g *Group) Validate() error { return nil }

// AddressSet is a set of prefixes with labels, by which selectors find it (Calico's NetworkSet, Cilium's CIDR group).
// An address in several sets is matched by whatever matches one of them.
type AddressSet struct {
	Ref    Ref
	Labels selector.Map // with NamespaceName, Kind and the like
	Nets   []netip.Prefix
}

// Key implements Object.
func (a *AddressSet) Key() Key { return AddressSetKey(a.Ref) }

// AddressSetKey is the key of an address set.
func AddressSetKey(r Ref) Key { return Key{KindAddressSet, r.path()} }

// Validate implements Object.
func (a *AddressSet) Validate() error { return nil }

// ServiceAccount has the labels that Calico's selectors see.
type ServiceAccount struct {
	Namespace, Name string
	Labels          map[string]string
}

// Key implements Object.
func (a *ServiceAccount) Key() Key { return Key{KindServiceAccount, a.Namespace + "/" + a.Name} }

// Validate implements Object.
func (a *ServiceAccount) Validate() error { return nil }
