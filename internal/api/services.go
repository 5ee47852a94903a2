package api

// MethodService is the method of `weft service explain`: ServiceRequest → ServiceReply.
const MethodService = "service.explain"

// ServiceRequest names a service: "namespace/name", or "name" of the namespace default.
type ServiceRequest struct {
	Name string `json:"name"`
}

// ServiceReply is what a service is on the node.
type ServiceReply struct {
	Service    string            `json:"service"` // namespace/name
	Type       string            `json:"type"`
	Internal   string            `json:"internalTrafficPolicy"`
	External   string            `json:"externalTrafficPolicy"`
	Affinity   int               `json:"affinitySeconds"` // 0: none
	Translator string            `json:"translator"`      // who translates its addresses on the node; "" if nobody does
	Frontends  []ServiceFrontend `json:"frontends"`
	Backends   []ServiceBackend  `json:"backends"`
	Notes      []string          `json:"notes,omitempty"` // why something that one would expect is not there
}

// ServiceFrontend is an address of the service.
type ServiceFrontend struct {
	Kind    string   `json:"kind"`              // ClusterIP, ExternalIP, LoadBalancer or NodePort
	Address string   `json:"address"`           // address:port/protocol; the address is * for every one of the node
	Inside  string   `json:"inside"`            // where connections of pods and nodes go, in words
	Outside string   `json:"outside"`           // where all others go
	Sources []string `json:"sources,omitempty"` // who may use it; none named: everybody
}

// ServiceBackend is a backend of one of the service's ports.
type ServiceBackend struct {
	Port    string `json:"port"` // name/protocol
	Address string `json:"address"`
	Node    string `json:"node"`
	State   string `json:"state"`   // ready, terminating, not ready
	Cluster string `json:"cluster"` // "used", or why not, where the traffic policy is Cluster
	Local   string `json:"local"`   // the same for Local
}
