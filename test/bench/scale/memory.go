package scale

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	cebpf "github.com/cilium/ebpf"

	"weft/internal/compile/policy"
	"weft/internal/datapath/ebpf"
	"weft/internal/model"
	"weft/internal/plan"
	"weft/internal/selector"
)

// MapMemory is what the policy maps take (row Y4), in bytes that the kernel counts for them.
type MapMemory struct {
	Empty    float64 `json:"empty"`    // without policies
	One      float64 `json:"one"`      // one pod with the policies of 100 peers and 10 ports
	Replicas float64 `json:"replicas"` // a thousand pods with the same
	Distinct float64 `json:"distinct"` // some pods with as many policies of their own, each
	// Entries are a peer at a port, as a map of verdicts would have them, and Members an identity in a peer set.
	Entries, Members int
	PerEntry         float64 `json:"perEntry"` // of Distinct: members included
	PerMember        float64 `json:"perMember"`
	Slab             float64 `json:"slab"` // of Distinct: how much the kernel's slabs grew, whoever made them
}

// The shape that the goal table names, and how many pods have policies of their own where sharing is not the matter.
const (
	peersOf  = 100
	portsOf  = 10
	distinct = 20
)

// view is a plan.View of rows.
type view map[plan.Key]plan.Row

// Get implements plan.View.
func (v view) Get(k plan.Key) plan.Row { return v[k] }

// All implements plan.View.
func (v view) All(kind plan.Kind) iter.Seq[plan.Row] {
	return func(yield func(plan.Row) bool) {
		for k, r := range v {
			if k.Kind == kind && !yield(r) {
				return
			}
		}
	}
}

// Memory fills the maps of a driver with each shape. dir is on a bpffs.
func Memory(dir string) (out MapMemory, err error) {
	for _, c := range []struct {
		name           string
		pods, policies int
		to             *float64
	}{
		{"empty", 1000, 0, &out.Empty},
		{"one", 1, 1, &out.One},
		{"replicas", 1000, 1, &out.Replicas},
		{"distinct", distinct, distinct, &out.Distinct},
	} {
		slab := slabBytes()
		rows := rowsOf(shape(c.pods, c.policies))
		maps, err := fill(filepath.Join(dir, c.name), rows)
		if err != nil {
			return out, fmt.Errorf("%s: %w", c.name, err)
		}
		for _, bytes := range maps {
			*c.to += bytes
		}
		switch c.name {
		case "empty":
			out.PerMember, out.PerEntry = -maps["members"], -out.Empty
			continue
		case "distinct":
		default:
			continue
		}
		out.Slab = slabBytes() - slab
		for r := range rows.All(plan.KindPolicySet) {
			for _, l := range r.(*plan.PolicySet).Lists() {
				if l.L4.Bits > 0 {
					out.Entries += len(l.Rules)
				}
			}
		}
		for r := range rows.All(plan.KindPeerSet) {
			out.Members += len(r.(*plan.PeerSet).Members)
		}
		out.PerEntry = (out.PerEntry + out.Distinct) / float64(out.Entries)
		out.PerMember = (out.PerMember + maps["members"]) / float64(out.Members)
	}
	return out, nil
}

// fill applies rows with a new driver, and returns the memory of its policy maps by name.
func fill(dir string, rows view) (map[string]float64, error) {
	d, err := ebpf.New(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	defer func() { _ = d.Close() }()
	var ch plan.Changes
	for _, k := range ebpf.Kinds() {
		ch.Upsert = slices.AppendSeq(ch.Upsert, rows.All(k))
	}
	for k, err := range d.Apply(context.Background(), rows, ch) {
		if err != nil {
			return nil, fmt.Errorf("%s: %w", k, err)
		}
	}
	return policyMaps()
}

// policyMaps is the memory of the maps of policy that this process holds. Those of packets and connections have a fixed size, and
// addresses have an entry whether there is policy or not.
func policyMaps() (map[string]float64, error) {
	out := map[string]float64{}
	var errs []error
	for id, bytes := range mapBytes() {
		m, err := cebpf.NewMapFromID(cebpf.MapID(id))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		info, err := m.Info()
		if err == nil && slices.Contains([]string{"sets", "matches", "lists", "members", "networks", "rulestats", "numbers"}, info.Name) {
			out[info.Name] += bytes
		}
		errs = append(errs, err, m.Close())
	}
	return out, errors.Join(errs...)
}

// rowsOf compiles objects, and keeps the rows that need no device.
func rowsOf(objs []model.Object) view {
	s, keys, out := objects{}, []model.Key{}, view{}
	for _, o := range objs {
		s[o.Key()] = o
		keys = append(keys, o.Key())
	}
	e := policy.New(thisNode)
	for _, owner := range e.Update(s, keys) {
		for _, r := range e.Rows(owner) {
			if r.Key().Kind != plan.KindGuard {
				out[r.Key()] = r
			}
		}
	}
	return out
}

// shape is so many local pods; with policies every pod is selected by those of its own application, one for each peer.
func shape(pods, policies int) []model.Object {
	out := []model.Object{&model.Namespace{Name: "m"}}
	pod := func(name, app, node string, a netip.Addr) *model.Pod {
		return &model.Pod{
			PodRef: model.PodRef{Namespace: "m", Name: name}, Node: node, Addrs: []netip.Addr{a}, Labels: map[string]string{"app": app}, Account: "default",
		}
	}
	for i := range peersOf {
		out = append(out, pod(fmt.Sprint("peer", i), fmt.Sprint("peer", i), otherNode, netip.AddrFrom4([4]byte{10, 1, 0, byte(i)})))
	}
	for i := range pods {
		p := pod(fmt.Sprint("pod", i), fmt.Sprint("app", i%max(1, policies)), thisNode, netip.AddrFrom4([4]byte{10, 200, byte(i >> 8), byte(i)}))
		out = append(out, p, Size{}.endpoint(i, p))
	}
	in := func(app string) *selector.Expr {
		return selector.AllOf(selector.Equal(selector.Kind, selector.KindPod), selector.Equal(selector.NamespaceName, "m"), selector.Equal("app", app))
	}
	var ports []model.PortRange
	for i := range portsOf {
		ports = append(ports, model.PortRange{First: uint16(1000 + 37*i), Last: uint16(1000 + 37*i)})
	}
	for i := range policies * peersOf {
		out = append(out, &model.Policy{
			Ref: model.Ref{Group: "networking.k8s.io", Kind: "NetworkPolicy", Namespace: "m", Name: fmt.Sprint("np", i)}, Set: true, Order: 1000,
			Tier:    model.TierRef{Name: "normal", Order: model.TierNormal},
			Subject: in(fmt.Sprint("app", i/peersOf)),
			Ingress: &model.Section{Isolates: true, Rules: []model.Rule{{
				Field: "spec.ingress[0]", Verdict: model.VerdictAllow, Peers: []model.Peer{{Select: in(fmt.Sprint("peer", i%peersOf))}},
				L4: []model.L4{{Proto: model.ProtoTCP, Ports: ports}},
			}}},
		})
	}
	return out
}

// slabBytes is what the kernel's slabs take.
func slabBytes() float64 {
	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	return number(string(raw), "Slab:") * 1024
}
