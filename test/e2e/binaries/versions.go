package binaries

import _ "embed" // of sources

// Module is one Go module that programs are built from. Modules are resolved apart from each other and from
// this repository's own module, so that no version here influences weft's.
type Module struct {
	Name     string   // directory in the cache
	Requires []string // module@version; the first has the programs' versions
	Programs []Program
	// Replaced says that the first module names its companions with local replacements, as Kubernetes does with
	// its staging modules. They are published apart, under v0 and the same minor and patch version.
	Replaced bool
	// Sources are Go files of packages of our own, by their path in the module that is made for the build.
	Sources map[string]string `json:",omitempty"`
	// Files are files of the last module, by their name in the directory of binaries.
	Files map[string]string `json:",omitempty"`
}

// Program is one binary.
type Program struct {
	Name    string // file in the directory of binaries; may have a directory of its own
	Package string // import path
	Tags    string // build tags
	Stamp   bool   // the Kubernetes version is linked in: clients negotiate by it
	Test    bool   // built by go test -c
	Cgo     bool   // needs a C compiler and Header
	Header  string // C header file that Cgo needs
}

// Versions of everything that the cluster consists of. They stand here and nowhere else.
const (
	Kubernetes = "v1.37.2"
	etcd       = "v3.7.3"
	containerd = "v2.4.2"
	runc       = "v1.5.2"
	CoreDNS    = "v1.15.0"
	plugins    = "v1.9.1"
	helm       = "v3.22.0"
	// policyAPI is sig-network's ClusterNetworkPolicy with its conformance suite; policyAlpha is the last release that has
	// AdminNetworkPolicy and BaselineAdminNetworkPolicy, and policyHost the Kubernetes whose test framework it uses.
	policyAPI   = "v0.3.0"
	policyAlpha = "v0.1.1"
	policyHost  = "v1.26.15"
)

// Modules lists the modules that the cluster consists of, in the order in which they are built: what fails fast comes first.
func Modules() []Module {
	return []Module{
		{Name: "runc", Requires: []string{"github.com/opencontainers/runc@" + runc}, Programs: []Program{{
			// Without seccomp runc refuses the kubelet's default profile; it is the one that needs C.
			Name: "runc", Package: "github.com/opencontainers/runc", Tags: "seccomp,netgo,osusergo", Cgo: true,
			Header: "/usr/include/seccomp.h",
		}}},
		{Name: "plugins", Requires: []string{"github.com/containernetworking/plugins@" + plugins}, Programs: []Program{
			{Name: "cni/loopback", Package: "github.com/containernetworking/plugins/plugins/main/loopback"},
			{Name: "cni/ptp", Package: "github.com/containernetworking/plugins/plugins/main/ptp"},
			{Name: "cni/host-local", Package: "github.com/containernetworking/plugins/plugins/ipam/host-local"},
		}},
		{Name: "etcd", Requires: []string{"go.etcd.io/etcd/server/v3@" + etcd}, Programs: []Program{
			{Name: "etcd", Package: "go.etcd.io/etcd/server/v3"},
		}},
		{Name: "containerd", Requires: []string{"github.com/containerd/containerd/v2@" + containerd}, Programs: []Program{
			{Name: "containerd", Package: "github.com/containerd/containerd/v2/cmd/containerd", Tags: leanContainerd},
			{Name: "containerd-shim-runc-v2", Package: "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2", Tags: leanContainerd},
			{Name: "ctr", Package: "github.com/containerd/containerd/v2/cmd/ctr", Tags: leanContainerd},
		}},
		{Name: "coredns", Requires: []string{"github.com/coredns/coredns@" + CoreDNS}, Programs: []Program{
			{Name: "coredns", Package: "github.com/coredns/coredns"},
		}},
		{Name: "helm", Requires: []string{"helm.sh/helm/v3@" + helm}, Programs: []Program{
			{Name: "helm", Package: "helm.sh/helm/v3/cmd/helm"},
		}},
		{Name: "kubernetes", Requires: []string{"k8s.io/kubernetes@" + Kubernetes}, Replaced: true, Programs: []Program{
			{Name: "kube-apiserver", Package: "k8s.io/kubernetes/cmd/kube-apiserver", Stamp: true},
			{Name: "kube-controller-manager", Package: "k8s.io/kubernetes/cmd/kube-controller-manager", Stamp: true},
			{Name: "kube-scheduler", Package: "k8s.io/kubernetes/cmd/kube-scheduler", Stamp: true},
			{Name: "kubelet", Package: "k8s.io/kubernetes/cmd/kubelet", Stamp: true},
			{Name: "kube-proxy", Package: "k8s.io/kubernetes/cmd/kube-proxy", Stamp: true},
			{Name: "kubectl", Package: "k8s.io/kubernetes/cmd/kubectl", Stamp: true},
			{Name: "agnhost", Package: "k8s.io/kubernetes/test/images/agnhost"},
			{Name: "ginkgo", Package: "github.com/onsi/ginkgo/v2/ginkgo"},
			{Name: "e2e.test", Package: "k8s.io/kubernetes/test/e2e", Stamp: true, Test: true},
		}},
	}
}

// Suites lists the modules of further test suites. Their files have versions in their names, and are no part of the directory's
// hash: a new suite is no reason to build the cluster again.
func Suites() []Module {
	const module = "sigs.k8s.io/network-policy-api"
	return []Module{
		{Name: "policy-" + policyAPI, Requires: []string{module + "@" + policyAPI}, Programs: []Program{
			{Name: PolicySuite, Package: module + "/conformance", Test: true},
		}, Files: map[string]string{
			PolicySuite + "-crd/clusternetworkpolicies.yaml": "config/crd/experimental/policy.networking.k8s.io_clusternetworkpolicies.yaml",
		}},
		{Name: "policy-" + policyAlpha, Requires: []string{"k8s.io/kubernetes@" + policyHost, module + "@" + policyAlpha}, Replaced: true, Programs: []Program{
			{Name: PolicyAlphaSuite, Package: "./suite", Test: true},
		}, Sources: map[string]string{"suite/suite_test.go": alphaSuite}, Files: map[string]string{
			PolicyAlphaSuite + "-crd/adminnetworkpolicies.yaml":         "config/crd/policy.networking.k8s.io_adminnetworkpolicies.yaml",
			PolicyAlphaSuite + "-crd/baselineadminnetworkpolicies.yaml": "config/crd/policy.networking.k8s.io_baselineadminnetworkpolicies.yaml",
		}},
	}
}

//go:embed alpha_test.go.txt
var alphaSuite string

// Programs of suites that are Go test binaries, with the definitions that they need in the directory of that name and "-crd".
const (
	PolicySuite      = "policy-" + policyAPI + ".test"
	PolicyAlphaSuite = "policy-" + policyAlpha + "-patient.test"
)

// leanContainerd leaves out the snapshotters that need C libraries.
const leanContainerd = "no_btrfs,no_devmapper,no_zfs"
