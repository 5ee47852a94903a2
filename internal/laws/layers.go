// Package laws enforces the structure of this repository: its tests read every
// package and fail, with the reason, when one breaks a law; budgets are printed.
//
// It is not a linter for taste (see .golangci.yml) and nothing imports it. A new
// package is added to the table below, in the lowest layer that can hold it.
package laws

import "strings"

// layer says how high a package stands: it imports lower layers only.
type layer int

// The layers above 5 hold no product code that others could import.
const (
	mains layer = 6 // cmd/*: may import everything but tools
	tools layer = 7 // generators, test kits, test lanes: import anything, imported by tests and tools
)

// layers lists every package below the module, without "weft/" and "internal/".
// A name that ends in "/*" stands for each package directly below it.
func layers() map[string]layer {
	return map[string]layer{
		"netset": 0, "selector": 0, "delta": 0, "run": 0, "crd": 0,

		"model": 1, "plan": 1, "api": 1,

		"convert/*": 2, "compile/*": 2, "oracle": 2, "ipam": 2, "datapath/*": 2, "datapath/linux/rtnl": 2,

		"store": 3,

		"reconcile": 4, "source/*": 4, "bgp": 4, "l7": 4, "dns": 4, "crypt": 4, "mesh": 4, "trial": 4,
		"cloud/*": 4, "flow": 4, "host": 4, "bench": 4,

		"agent": 5, "lab": 5, "lab/*": 5, "cli": 5,

		"cmd/*": mains,

		"testkit": tools, "testkit/*": tools, "laws": tools, "image": tools, "image/cmd/*": tools, "gen": tools, "gen/*": tools,
		"test/*": tools, "test/*/*": tools, "test/*/*/*": tools,
	}
}

// siblings are the imports within one layer that the design wants.
func siblings() map[string][]string {
	return map[string][]string{
		"plan":           {"model"},
		"datapath/linux": {"datapath/linux/rtnl"},
		"datapath/ebpf":  {"datapath/linux"},
		"datapath/nft":   {"datapath/linux"},
		"datapath/ovs":   {"datapath/linux"},
		"convert/k8s":    {"convert/wire", "convert/object"},
		"convert/netpol": {"convert/object", "convert/wire"},
		"convert/golden": {"convert/object"},
		"convert/sig":    {"convert/object"},
		"convert/calico": {"convert/object"},
		"convert/cilium": {"convert/object"},
		"convert/antrea": {"convert/object"},
		"convert/gke":    {"convert/object", "convert/netpol"},
		"convert/aws":    {"convert/object", "convert/netpol", "convert/sig"},
		"convert/language": {
			"convert/antrea", "convert/aws", "convert/calico", "convert/cilium", "convert/gke", "convert/netpol", "convert/object",
			"convert/sig", "convert/wire",
		},
		"convert/status": {"convert/language"},
		"trial":          {"source/cache"},
		"lab/kubelet":    {"lab/objects", "lab/probe"},
		"lab/script":     {"lab", "lab/objects"},
		"cli":            {"agent", "lab", "lab/kubelet", "lab/objects", "lab/probe", "lab/script"},
	}
}

// owners says which packages alone may import a library, and why.
func owners() []owner {
	return []owner{
		{"k8s.io/client-go", []string{"source/kube"}, "every other package stays testable without an API server"},
		{"github.com/cilium/statedb", []string{"store", "reconcile"}, "how tables are kept is nobody else's business"},
		{"github.com/vishvananda/netlink", []string{"datapath/linux", "host"}, "one place touches links, routes and rules (host wires the lab's machines)"},
		{"github.com/cilium/ebpf", []string{"datapath/ebpf"}, "one place loads, attaches and pins"},
		{"github.com/google/nftables", []string{"datapath/nft"}, "one place writes nftables"},
	}
}

// owner is a library with the packages that may use it.
type owner struct {
	library  string
	packages []string
	why      string
}

// short strips the module and "internal/" from an import path.
func short(path string) string {
	return strings.TrimPrefix(strings.TrimPrefix(path, "weft/"), "internal/")
}

// layerOf finds a package's layer; ok is false if the table does not know it.
func layerOf(name string) (l layer, ok bool) {
	table := layers()
	if l, ok = table[name]; ok {
		return l, true
	}
	for cut := name; ; {
		i := strings.LastIndexByte(cut, '/')
		if i < 0 {
			return 0, false
		}
		cut = cut[:i]
		stars := strings.Count(name[i:], "/")
		if l, ok = table[cut+strings.Repeat("/*", stars)]; ok {
			return l, true
		}
	}
}
