package plan

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"

	"weft/internal/model"
	"weft/internal/netset"
)

// ID names an identity, a peer set or a policy set: a hash of what it is, so that whoever compiles the same
// intent anew, on any node and after any restart, arrives at the same name. 0 is none.
type ID uint64

// String returns 16 hexadecimal digits, or "-" for none.
func (i ID) String() string {
	if i == 0 {
		return "-"
	}
	return fmt.Sprintf("%016x", uint64(i))
}

// IdentityWorld is the identity of every address that no Address row covers.
const IdentityWorld ID = 1

// Identity is a set of addresses that no policy of this node can tell apart. It is there to be shown: what it means is in
// the peer sets that it is a member of.
type Identity struct {
	By
	ID   ID
	Text string // labels, or what else distinguishes it
}

// Key implements Row.
func (i *Identity) Key() Key { return Key{KindIdentity, i.ID.String()} }

func (i *Identity) String() string { return text(i.ID.String(), i.Text) }

// Address gives the addresses of a prefix their identity; the longest prefix counts.
type Address struct {
	By
	Prefix   netip.Prefix
	Identity ID
}

// Key implements Row.
func (a *Address) Key() Key { return Key{KindAddress, a.Prefix.String()} }

func (a *Address) String() string { return text(a.Prefix.String(), "identity", a.Identity.String()) }

// PeerSet is the identities that one description of peers matches.
type PeerSet struct {
	By
	ID      ID
	Text    string // the description
	Members []ID   // sorted
}

// Key implements Row.
func (p *PeerSet) Key() Key { return Key{KindPeerSet, p.ID.String()} }

func (p *PeerSet) String() string {
	h := fnv.New32a() // who they are is in identities; that they are others must show
	for _, m := range p.Members {
		_ = binary.Write(h, binary.BigEndian, uint64(m))
	}
	return text(p.ID.String(), fmt.Sprintf("members %d (%08x)", len(p.Members), h.Sum32()), p.Text)
}

// Direction of a policy, as its subject sees it.
type Direction uint8

// The directions.
const (
	Ingress Direction = iota
	Egress
)

// String returns the direction in lower case.
func (d Direction) String() string { return [...]string{"ingress", "egress"}[d] }

// L4 is protocols and ports that a rule matches: a port prefix in the sense of routing. Of ICMP, the port is type<<8 | code.
type L4 struct {
	Proto int    // 0 to 255, or model.ProtoAny, then Bits is 0
	Port  uint16 // the first of the range; bits beyond Bits are 0
	Bits  uint8  // 0 (every port) to 16 (one port)
}

// String returns "any", "tcp", "tcp/80" or "tcp/80-95".
func (m L4) String() string {
	if m.Proto == model.ProtoAny {
		return "any"
	}
	if m.Bits == 0 {
		return ProtoName(m.Proto)
	}
	r := model.PortRange{First: m.Port, Last: m.Port | uint16(uint32(0xffff)>>m.Bits)}
	return ProtoName(m.Proto) + "/" + r.String()
}

// Covers says whether m matches all that o does.
func (m L4) Covers(o L4) bool {
	if m.Proto == model.ProtoAny {
		return true
	}
	return m.Proto == o.Proto && m.Bits <= o.Bits && (m.Port^o.Port)>>(16-m.Bits) == 0
}

// ProtoName returns the name of a protocol number where it has one here, else the number.
func ProtoName(p int) string {
	switch p {
	case model.ProtoAny:
		return "any"
	case model.ProtoICMP:
		return "icmp"
	case model.ProtoTCP:
		return "tcp"
	case model.ProtoUDP:
		return "udp"
	case model.ProtoICMPv6:
		return "icmpv6"
	case model.ProtoSCTP:
		return "sctp"
	}
	return fmt.Sprint(p)
}

// PolicyRule is one step of a PolicySet. The first rule of the list whose parts all match decides, but for those that are
// Staged or VerdictLog, which are noted, and VerdictPass, which leaves out what is of a lower Level than PassTo.
type PolicyRule struct {
	ID       ID     // of the rule: its counter
	Origin   string // which object's rule this is, or at the end of a tier "default/web, default/db: none allows"
	Level    int    // the place of the rule's tier in the set, from 1
	Verdict  model.Verdict
	PassTo   int              // of VerdictPass: the level to go on at
	Family   netset.Family    // 0: both
	Peers    ID               // of a PeerSet that the other side must be in; 0: anything
	L4       []L4             // one of them must match; never empty
	SrcPorts *model.PortRange // nil: all
	Hosts    bool             // asked about the node's own traffic as well
	Staged   bool
	Log      bool
	Label    string // of what is logged, the user's
}

// String is the rule on one line.
func (r PolicyRule) String() string {
	src := ""
	if r.SrcPorts != nil {
		src = "from ports " + r.SrcPorts.String()
	}
	to, family, peers := "", "", "any"
	if r.Verdict == model.VerdictPass {
		to = fmt.Sprintf("to level %d", r.PassTo)
	}
	if r.Family != 0 {
		family = r.Family.String()
	}
	if r.Peers != 0 {
		peers = r.Peers.String()
	}
	return text(fmt.Sprint(r.Level), flag("staged", r.Staged), r.Verdict.String(), to, family, "peers", peers, list("l4", r.L4), src,
		flag("hosts", r.Hosts), flag("log", r.Log), r.Label, "by", r.Origin, "#"+r.ID.String())
}

// PolicySet decides about one direction of all endpoints for which the same rules count.
type PolicySet struct {
	By
	ID        ID
	Direction Direction
	Rules     []PolicyRule // in order. What none of them decides is allowed
}

// Key implements Row.
func (p *PolicySet) Key() Key { return Key{KindPolicySet, p.ID.String()} }

func (p *PolicySet) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", p.ID, p.Direction)
	for _, r := range p.Rules {
		b.WriteString("; ")
		b.WriteString(r.String())
	}
	return b.String()
}

// Lists returns, for every protocol and port prefix that the rules distinguish, the indexes of the rules that can match
// there, in order. The longest prefix that covers a packet has all of them. The first entry is for every protocol.
func (p *PolicySet) Lists() []RuleList {
	seen := map[L4]bool{{Proto: model.ProtoAny}: true}
	for _, r := range p.Rules {
		for _, m := range r.L4 {
			if m.Bits > 0 { // a packet of the protocol that is in no prefix needs a list as well
				seen[L4{Proto: m.Proto}] = true
			}
			seen[m] = true
		}
	}
	out := make([]RuleList, 0, len(seen))
	for m := range seen {
		l := RuleList{L4: m}
		for i, r := range p.Rules {
			if slices.ContainsFunc(r.L4, func(o L4) bool { return o.Covers(m) }) {
				l.Rules = append(l.Rules, i)
			}
		}
		out = append(out, l)
	}
	slices.SortFunc(out, func(a, b RuleList) int {
		return cmp.Or(cmp.Compare(a.L4.Proto, b.L4.Proto), cmp.Compare(a.L4.Port, b.L4.Port), cmp.Compare(a.L4.Bits, b.L4.Bits))
	})
	return out
}

// RuleList is the rules of a set that can match packets of a protocol and port prefix.
type RuleList struct {
	L4    L4
	Rules []int // indexes of PolicySet.Rules
}

// Guard puts an endpoint under policy: a pod of this node, or the node itself.
type Guard struct {
	By
	Dev      string // host side of the pod's link; "" for the node itself, on the underlay's device and the overlay's
	Node     bool   // of the node itself on Dev: the overlay's device, or another of the host
	Identity ID
	Ingress  ID // of the PolicySet; 0: everything is allowed
	Egress   ID
}

// Key implements Row.
func (g *Guard) Key() Key {
	if g.Node {
		return NodeGuardKey(g.Dev)
	}
	return Key{KindGuard, cmp.Or(g.Dev, "host")}
}

// OfNode says whether it is the node itself that is under policy.
func (g *Guard) OfNode() bool { return g.Dev == "" || g.Node }

// NodeGuardKey is the key of the guard of the node itself on a device. No device has a slash in its name.
func NodeGuardKey(dev string) Key { return Key{KindGuard, "host/" + dev} }

func (g *Guard) String() string {
	return text(g.Key().Name, "id", g.By.Name, "identity", g.Identity.String(), "ingress", g.Ingress.String(), "egress", g.Egress.String())
}
