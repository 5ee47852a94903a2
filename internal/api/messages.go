package api

import (
	"net/netip"
	"time"
)

// The methods that weft-cni and `weft ipam` call.
const (
	MethodCNIAdd    = "cni.add"      // AddRequest → AddReply
	MethodCNIDel    = "cni.del"      // Attachment → nothing
	MethodCNICheck  = "cni.check"    // CheckRequest → nothing
	MethodCNIGC     = "cni.gc"       // GCRequest → GCReply
	MethodCNIStatus = "cni.status"   // nothing → StatusReply, or CodeNotAvailable, CodeLimited
	MethodExplain   = "ipam.explain" // ExplainRequest → ExplainReply
	MethodPools     = "ipam.pools"   // nothing → PoolsReply
)

// PodRef names the pod of an attachment, as CNI_ARGS told it; all empty outside Kubernetes.
type PodRef struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	UID       string `json:"uid,omitempty"`
}

// Attachment names one interface of one container.
type Attachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifname"`
	Network     string `json:"network,omitempty"` // name of the CNI network
	Netns       string `json:"netns,omitempty"`   // path; may be empty for DEL
	// Started is when the plugin was executed. An ADD that was started before a DEL of the
	// same attachment has been overtaken by it and is refused.
	Started time.Time `json:"started,omitzero"`
}

// ID is the endpoint's ID: container ID and interface name.
func (a Attachment) ID() string { return a.ContainerID + "/" + a.IfName }

// AddRequest asks for an interface.
type AddRequest struct {
	Attachment
	Pod       PodRef        `json:"pod,omitzero"`
	Addrs     []netip.Addr  `json:"addrs,omitempty"` // wanted, at most one a family
	MAC       string        `json:"mac,omitempty"`   // wanted
	Ports     []PortMapping `json:"ports,omitempty"`
	Bandwidth Bandwidth     `json:"bandwidth,omitzero"`
}

// PortMapping is one entry of the CNI capability portMappings.
type PortMapping struct {
	HostPort      uint16     `json:"hostPort"`
	ContainerPort uint16     `json:"containerPort"`
	Protocol      string     `json:"protocol,omitempty"` // tcp, udp or sctp in any case; empty: tcp
	HostIP        netip.Addr `json:"hostIP,omitzero"`
}

// Bandwidth is the CNI capability bandwidth: bits per second and bits; 0 is no limit.
type Bandwidth struct {
	IngressRate  uint64 `json:"ingressRate,omitempty"` // toward the pod
	IngressBurst uint64 `json:"ingressBurst,omitempty"`
	EgressRate   uint64 `json:"egressRate,omitempty"`
	EgressBurst  uint64 `json:"egressBurst,omitempty"`
}

// AddReply is what a CNI result of any version is made of.
type AddReply struct {
	HostIf  string    `json:"hostIf"`
	HostMAC string    `json:"hostMAC"`
	MAC     string    `json:"mac"`
	MTU     int       `json:"mtu,omitempty"` // of the pod's interface; 0: not known
	IPs     []Address `json:"ips"`
}

// Address is one address of a pod and the gateway of its family.
type Address struct {
	Addr    netip.Addr `json:"addr"`
	Gateway netip.Addr `json:"gateway"`
}

// CheckRequest asks whether an attachment still is as the result of its ADD said.
type CheckRequest struct {
	Attachment
	Addrs []netip.Addr `json:"addrs,omitempty"` // of prevResult, those on the attachment's interface
	MAC   string       `json:"mac,omitempty"`   // likewise
}

// GCRequest lists the attachments of a network that are still valid: all others of it go.
type GCRequest struct {
	Network string       `json:"network"`
	Valid   []Attachment `json:"valid"`
}

// GCReply lists what was released.
type GCReply struct {
	Released []string `json:"released,omitempty"` // endpoint IDs
}

// StatusReply says how many more pods can be served.
type StatusReply struct {
	Pools []PoolUse `json:"pools,omitempty"`
}

// PoolUse is the use of the pools of one family. Size = Live + Quarantined + Free, always.
type PoolUse struct {
	Family      string `json:"family"`      // "IPv4" or "IPv6"
	Size        uint64 `json:"size"`        // addresses that can be given, capped at 1<<62
	Live        uint64 `json:"live"`        // reserved for or used by an endpoint
	Quarantined uint64 `json:"quarantined"` // resting, or suspected to be in use
	Free        uint64 `json:"free"`
	Outside     uint64 `json:"outside,omitempty"` // live, but in no pool any more
}

// PoolsReply is the use of all pools.
type PoolsReply struct {
	Prefixes []netip.Prefix `json:"prefixes"`
	Reserved []netip.Prefix `json:"reserved,omitempty"`
	Use      []PoolUse      `json:"use"`
}

// ExplainRequest asks who has, or had, an address. Query is an address, "namespace/pod",
// a pod's name, an endpoint ID or a container ID, or their first 6 or more characters; empty: everything.
type ExplainRequest struct {
	Query string `json:"query"`
}

// ExplainReply has one entry for each address that the query matches.
type ExplainReply struct {
	Holdings []Holding `json:"holdings"`
}

// Holding is what is known of one address.
type Holding struct {
	Addr   netip.Addr `json:"addr"`
	State  string     `json:"state"`           // reserved, committed, quarantined, suspect, free, excluded or foreign
	Owner  string     `json:"owner,omitempty"` // endpoint ID; of a quarantined address its last one
	Pod    PodRef     `json:"pod,omitzero"`
	Netns  string     `json:"netns,omitempty"`
	Since  time.Time  `json:"since,omitzero"`
	Until  time.Time  `json:"until,omitzero"` // end of the quarantine
	Reason string     `json:"reason"`         // one sentence
}

// Validate refuses what is no attachment, naming the CNI variable. The container ID is as the CNI specification
// defines it; the interface name is one that the kernel takes (dev_valid_name).
func (a Attachment) Validate() error {
	word := func(c byte) bool {
		return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
	}
	switch {
	case a.ContainerID == "":
		return Errorf(CodeInvalidEnv, "CNI_CONTAINERID is missing")
	case len(a.ContainerID) > 200:
		return Errorf(CodeInvalidEnv, "CNI_CONTAINERID has %d characters, more than 200", len(a.ContainerID))
	case a.IfName == "":
		return Errorf(CodeInvalidEnv, "CNI_IFNAME is missing")
	case len(a.IfName) > 15 || a.IfName == "." || a.IfName == "..":
		return Errorf(CodeInvalidEnv, "CNI_IFNAME=%q is not an interface name of 1 to 15 characters", a.IfName)
	}
	for i := range len(a.ContainerID) {
		if c := a.ContainerID[i]; !word(c) && (i == 0 || c != '_' && c != '.' && c != '-') {
			return Errorf(CodeInvalidEnv, "CNI_CONTAINERID=%q: %q cannot be at place %d", a.ContainerID, c, i+1)
		}
	}
	for i := range len(a.IfName) {
		if c := a.IfName[i]; c == '/' || c == ':' || c <= ' ' || c >= 0x7f {
			return Errorf(CodeInvalidEnv, "CNI_IFNAME=%q: %q cannot be in an interface name", a.IfName, c)
		}
	}
	return nil
}

// TombstoneDir is the directory beside the socket in which the plugin leaves a DEL that it could not
// deliver, as a file with an Attachment in JSON under the name TombstoneName. The agent executes them.
const TombstoneDir = "deleted"

// TombstoneName is the file name of the attachment in TombstoneDir.
func (a Attachment) TombstoneName() string { return a.ContainerID + "@" + a.IfName }
