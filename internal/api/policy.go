package api

import "time"

// The methods of `weft can`, `weft policy` and `weft why`.
const (
	MethodCan          = "policy.can"    // CanRequest → CanReply
	MethodPolicyOrder  = "policy.order"  // nothing → Table
	MethodPolicyUnused = "policy.unused" // nothing → Table
	MethodPolicyDiff   = "policy.diff"   // DiffRequest → DiffReply
	MethodWhy          = "policy.why"    // WhyRequest → stream of Drop
)

// CanRequest asks whether a connection would be allowed. An end is "namespace/pod", "pod" (of the namespace default), an address, "node:NAME", or labels
// of a pod that there might be, "namespace:key=value,key=value".
type CanRequest struct {
	From string `json:"from"`
	To   string `json:"to"`
	Port string `json:"port"` // "80/tcp", "icmp" (a ping), "icmp/8"; empty: 80/tcp
}

// CanReply has one answer for each family that both ends have.
type CanReply struct {
	Answers []CanAnswer `json:"answers"`
}

// CanAnswer is what both sides say of a connection.
type CanAnswer struct {
	Family  string  `json:"family"`
	From    string  `json:"from"` // the end as it was understood
	To      string  `json:"to"`
	Verdict string  `json:"verdict"` // allow, deny or reject
	Egress  CanSide `json:"egress"`  // what the sender's policies say
	Ingress CanSide `json:"ingress"` // and the receiver's
}

// CanSide is what one side's policies say.
type CanSide struct {
	Verdict string   `json:"verdict"`
	By      string   `json:"by"` // the deciding rule, or why there is none
	Notes   []string `json:"notes,omitempty"`
}

// DiffRequest asks what applying objects would change.
type DiffRequest struct {
	Manifest []byte `json:"manifest"`         // Kubernetes YAML
	Delete   bool   `json:"delete,omitempty"` // the objects would be deleted instead
}

// DiffReply lists what would change.
type DiffReply struct {
	Changes []DiffChange `json:"changes"`
	Open    int          `json:"open"`  // connections of this node that would be affected
	Pairs   int          `json:"pairs"` // that were compared
}

// DiffChange is one pair of groups of equal pods between which a verdict would change.
type DiffChange struct {
	From   string `json:"from"`
	To     string `json:"to"`
	Port   string `json:"port"`
	Before string `json:"before"`
	After  string `json:"after"`
	By     string `json:"by"`   // the rule that decides afterwards
	Seen   int    `json:"seen"` // open connections of this node between them; 0: not seen now, which does not mean never
}

// WhyRequest asks for recent drops.
type WhyRequest struct {
	Logged bool          `json:"logged,omitempty"` // instead, for what rules log
	Pod    string        `json:"pod,omitempty"`    // "namespace/pod"; empty: all
	Last   time.Duration `json:"last,omitempty"`
	Follow bool          `json:"follow,omitempty"`
}

// Drop is one denied packet, or several alike; or first packets that a rule logs.
type Drop struct {
	Verdict   string    `json:"verdict,omitempty"` // of what a rule logs: of all rules in the end, "allow", "deny" or "reject"
	Time      time.Time `json:"time"`
	From      string    `json:"from"` // pod, node or address, with port
	To        string    `json:"to"`
	Proto     string    `json:"proto"`
	Direction string    `json:"direction"` // whose policies denied: egress the sender's, ingress the receiver's
	Reason    string    `json:"reason"`    // a sentence that names the policy and rule
	Count     uint64    `json:"count"`
}
