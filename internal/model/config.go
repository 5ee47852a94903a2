package model

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"weft/internal/netset"
)

// Config is the agent's whole configuration: one YAML document, unknown fields refused.
// The comment of each field is its entry in docs/reference/configuration.md, which is generated.
type Config struct {
	// NodeName is this node's name in the cluster. Empty: $NODE_NAME, then the host's name in lower case.
	NodeName string `json:"nodeName,omitempty"`
	// ClusterCIDRs are the prefixes that all pod addresses of the cluster are in. Traffic to them is never
	// masqueraded. Empty: the pod CIDRs of all known nodes.
	ClusterCIDRs []netip.Prefix `json:"clusterCIDRs,omitempty"`
	Backend      Underlay       `json:"backend,omitzero"`
	IPAM         IPAM           `json:"ipam,omitzero"`
	Masquerade   Masquerade     `json:"masquerade,omitzero"`
	Policy       PolicyConfig   `json:"policy,omitzero"`
	// MTU is the MTU of pod interfaces in bytes. 0: measured (underlay MTU less the encapsulation's overhead,
	// lowered per peer where the path to it is narrower).
	MTU int `json:"mtu,omitempty"`
	// Link is what connects a new pod: a "veth" pair, or a "netkit" pair, whose program runs when the pod sends, so that packets
	// to other nodes skip a queue, and without which nothing leaves the pod. netkit needs Linux 6.10 with CONFIG_NETKIT;
	// elsewhere pods get veth pairs, and `weft status` says so. Pods that are there keep the pair that they have.
	Link string `json:"link,omitempty"`
	// Source is where the cluster's objects come from.
	Source SourceConfig `json:"source,omitzero"`
	// CNI says where the plugin and its configuration are installed.
	CNI CNI `json:"cni,omitzero"`
	// Paths are the agent's own directories.
	Paths Paths `json:"paths,omitzero"`
	// MetricsAddress serves /metrics, /healthz and /readyz. "off" serves nothing.
	MetricsAddress string `json:"metricsAddress,omitempty"`
	// LogLevel is "debug", "info", "warn" or "error".
	LogLevel string `json:"logLevel,omitempty"`
}

// Underlay chooses how packets travel between nodes.
type Underlay struct {
	// Type is "vxlan" or "direct". "direct" routes pod prefixes through the peer's address and needs an
	// underlay that delivers them: a shared subnet, or CrossSubnet.
	Type string `json:"type,omitempty"`
	// CrossSubnet switches per peer: direct to peers in a subnet of this node's underlay device, VXLAN to all others.
	CrossSubnet bool `json:"crossSubnet,omitempty"`
	// VNI is the VXLAN network identifier, 1 to 16777215.
	VNI uint32 `json:"vni,omitempty"`
	// Port is the VXLAN UDP port.
	Port uint16 `json:"port,omitempty"`
	// Device is the underlay interface. Empty: the one that has the node's address.
	Device string `json:"device,omitempty"`
	// ProbePort is the UDP port on which agents measure the path MTU between each other.
	ProbePort uint16 `json:"probePort,omitempty"`
}

// IPAM says which addresses pods get.
type IPAM struct {
	// Pools are used in place of Node.spec.podCIDRs on the nodes that they name.
	Pools []Pool `json:"pools,omitempty"`
	// Reserved are addresses that are never given to pods.
	Reserved []netip.Prefix `json:"reserved,omitempty"`
	// QuarantineSeconds is how long a freed address rests before it is given again, unless nothing else is free.
	QuarantineSeconds int `json:"quarantineSeconds,omitempty"`
}

// Pool is a set of prefixes for the pods of one node.
type Pool struct {
	// Name is what messages call the pool.
	Name string `json:"name"`
	// Node is the node whose pods are served; each node of a pool set has its own pool.
	Node string `json:"node"`
	// CIDRs are the prefixes, at least one, any family.
	CIDRs []netip.Prefix `json:"cidrs"`
}

// Masquerade says what leaves under the node's own address.
type Masquerade struct {
	// Disabled turns it off altogether.
	Disabled bool `json:"disabled,omitempty"`
	// NonMasqueradeCIDRs are destinations that see the pod's own address, beside the cluster's own.
	NonMasqueradeCIDRs []netip.Prefix `json:"nonMasqueradeCIDRs,omitempty"`
	// MasqLinkLocal masquerades traffic to 169.254.0.0/16 and fe80::/10 too.
	MasqLinkLocal bool `json:"masqLinkLocal,omitempty"`
	// ConfigFile is a file in the ip-masq-agent's format that is read and watched, and replaces
	// NonMasqueradeCIDRs and MasqLinkLocal when it is there.
	ConfigFile string `json:"configFile,omitempty"`
}

// PolicyConfig says how policies are enforced.
type PolicyConfig struct {
	// Disabled enforces no policy and watches none: every connection is allowed.
	Disabled bool `json:"disabled,omitempty"`
	// Established says what a change of policy means to connections that are open: "recheck" ends those that are no longer
	// allowed, "keep" lets them be until they close.
	Established string `json:"established,omitempty"`
	// Languages are the policy APIs whose CustomResourceDefinitions weft installs where they are missing: sig-network, calico,
	// cilium, antrea, aws, gke. Kubernetes' own NetworkPolicy needs none; an API whose definitions are there is understood in any case.
	Languages []string `json:"languages,omitempty"`
	// Confirm says which changes of policy a node takes back by itself if they break what it lives on (the API server, the
	// cluster's DNS, other agents) within ConfirmSeconds: "annotated", those of objects with the annotation weft.io/policy-mode:
	// confirm; "all", every new or changed one but those with weft.io/policy-mode: enforce; "off", none. What was taken back is
	// reported, and tried again when the object changes.
	Confirm string `json:"confirm,omitempty"`
	// ConfirmSeconds is how long a change is on trial, 10 to 3600.
	ConfirmSeconds int `json:"confirmSeconds,omitempty"`
	// DNS are the addresses of the cluster's DNS that changes on trial must not cut off, on UDP port 53. Empty: the pods with the label
	// k8s-app: kube-dns.
	DNS []netip.Addr `json:"dns,omitempty"`
}

// SourceConfig chooses where objects come from.
type SourceConfig struct {
	// Type is "kube" or "file".
	Type string `json:"type,omitempty"`
	// Dir is the directory of Kubernetes YAML that the file source watches.
	Dir string `json:"dir,omitempty"`
	// Kubeconfig is a file; empty: the pod's service account.
	Kubeconfig string `json:"kubeconfig,omitempty"`
	// APIServer overrides the API server's URL, for nodes without kube-proxy.
	APIServer string `json:"apiServer,omitempty"`
}

// CNI says where the plugin goes.
type CNI struct {
	// BinDir receives the plugin binary. "off" installs neither binary nor configuration.
	BinDir string `json:"binDir,omitempty"`
	// ConfDir receives the network configuration list, once the agent can serve.
	ConfDir string `json:"confDir,omitempty"`
	// ConfName is its file name.
	ConfName string `json:"confName,omitempty"`
	// Plugin is the path of the weft-cni binary to install. Empty: beside the weft binary.
	Plugin string `json:"plugin,omitempty"`
}

// Paths are the agent's directories. All are created.
type Paths struct {
	// Run holds the agent's socket.
	Run string `json:"run,omitempty"`
	// State holds the allocation journal and the last known objects; it must survive a reboot.
	State string `json:"state,omitempty"`
	// BPF is a directory on a bpffs, which is mounted if it is not.
	BPF string `json:"bpf,omitempty"`
}

// The values of Config.Link.
const (
	LinkVeth   = "veth"
	LinkNetkit = "netkit"
)

// The values of PolicyConfig.Confirm.
const (
	ConfirmAnnotated = "annotated"
	ConfirmAll       = "all"
	ConfirmOff       = "off"
)

// Key implements Object: there is one configuration.
func (c *Config) Key() Key { return ConfigKey() }

// ConfigKey is the key of the configuration.
func ConfigKey() Key { return Key{KindConfig, "config"} }

// SetDefaults fills every field that is empty with its default. NodeName has none here.
func (c *Config) SetDefaults() {
	def := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	def(&c.Backend.Type, "vxlan")
	if c.Backend.VNI == 0 {
		c.Backend.VNI = 1
	}
	if c.Backend.Port == 0 {
		c.Backend.Port = 8472
	}
	if c.Backend.ProbePort == 0 {
		c.Backend.ProbePort = 8473
	}
	if c.IPAM.QuarantineSeconds == 0 {
		c.IPAM.QuarantineSeconds = 30
	}
	def(&c.Policy.Established, "recheck")
	def(&c.Policy.Confirm, ConfirmAnnotated)
	if c.Policy.ConfirmSeconds == 0 {
		c.Policy.ConfirmSeconds = 30
	}
	def(&c.Link, LinkVeth)
	def(&c.Source.Type, "kube")
	def(&c.CNI.BinDir, "/opt/cni/bin")
	def(&c.CNI.ConfDir, "/etc/cni/net.d")
	def(&c.CNI.ConfName, "05-weft.conflist")
	def(&c.Paths.Run, "/run/weft")
	def(&c.Paths.State, "/var/lib/weft")
	def(&c.Paths.BPF, "/sys/fs/bpf/weft")
	def(&c.Masquerade.ConfigFile, "/etc/config/ip-masq-agent")
	def(&c.MetricsAddress, "127.0.0.1:9810")
	def(&c.LogLevel, "info")
}

// Validate implements Object. It reports every problem, each with the field's path.
func (c *Config) Validate() error {
	var errs []error
	bad := func(f string, a ...any) { errs = append(errs, fmt.Errorf("config: "+f, a...)) }
	oneOf := func(field, v string, allowed ...string) {
		if !slices.Contains(allowed, v) {
			bad("%s: %q is not one of %v", field, v, allowed)
		}
	}
	oneOf("backend.type", c.Backend.Type, "vxlan", "direct")
	oneOf("policy.established", c.Policy.Established, "recheck", "keep")
	oneOf("policy.confirm", c.Policy.Confirm, ConfirmAnnotated, ConfirmAll, ConfirmOff)
	if s := c.Policy.ConfirmSeconds; s < 10 || s > 3600 {
		bad("policy.confirmSeconds: %d is not in 10..3600", s)
	}
	for i, l := range c.Policy.Languages {
		oneOf(fmt.Sprintf("policy.languages[%d]", i), l, "sig-network", "calico", "cilium", "antrea", "aws", "gke")
	}
	oneOf("link", c.Link, LinkVeth, LinkNetkit)
	oneOf("source.type", c.Source.Type, "kube", "file")
	oneOf("logLevel", c.LogLevel, "debug", "info", "warn", "error")
	if c.Source.Type == "file" && c.Source.Dir == "" {
		bad("source.dir: needed with source.type file")
	}
	if c.Backend.VNI > 1<<24-1 {
		bad("backend.vni: %d is not in 1..16777215", c.Backend.VNI)
	}
	if c.Backend.Port == c.Backend.ProbePort {
		bad("backend.probePort: %d is the VXLAN port", c.Backend.ProbePort)
	}
	if c.MTU != 0 && (c.MTU < 1280 || c.MTU > 65535) {
		bad("mtu: %d is not 0 or in 1280..65535", c.MTU)
	}
	if c.IPAM.QuarantineSeconds < 0 {
		bad("ipam.quarantineSeconds: %d is negative", c.IPAM.QuarantineSeconds)
	}
	var all []netip.Prefix
	for i, p := range c.IPAM.Pools {
		if p.Name == "" || p.Node == "" || len(p.CIDRs) == 0 {
			bad("ipam.pools[%d]: name, node and cidrs must be set", i)
		}
		for _, x := range p.CIDRs {
			if x != x.Masked() {
				bad("ipam.pools[%d].cidrs: %s has bits beyond its length, did you mean %s?", i, x, x.Masked())
			}
		}
		all = append(all, p.CIDRs...)
	}
	if a, b, found := netset.Overlap(all); found {
		bad("ipam.pools: %s and %s overlap", a, b)
	}
	return errors.Join(errs...)
}
