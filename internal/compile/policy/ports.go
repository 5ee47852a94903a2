package policy

import (
	"cmp"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strconv"

	"weft/internal/model"
	"weft/internal/plan"
	"weft/internal/selector"
)

// merge sorts ranges and joins those that touch.
func merge(rs []model.PortRange) []model.PortRange {
	out := slices.Clone(rs)
	slices.SortFunc(out, func(a, b model.PortRange) int { return cmp.Compare(a.First, b.First) })
	n := 0
	for _, r := range out {
		if n > 0 && int(r.First) <= int(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, r.Last)
			continue
		}
		out[n] = r
		n++
	}
	return out[:n]
}

// subtract returns what is left of merged ranges without other merged ranges.
func subtract(rs, not []model.PortRange) []model.PortRange {
	var out []model.PortRange
	for _, r := range rs {
		first := int(r.First)
		for _, n := range not {
			if int(n.Last) < first || n.First > r.Last {
				continue
			}
			if int(n.First) > first {
				out = append(out, model.PortRange{First: uint16(first), Last: n.First - 1})
			}
			first = int(n.Last) + 1
		}
		if first <= int(r.Last) {
			out = append(out, model.PortRange{First: uint16(first), Last: r.Last})
		}
	}
	return out
}

// portPrefixes cuts merged ranges into the fewest port prefixes.
func portPrefixes(proto int, rs []model.PortRange) []plan.L4 {
	var out []plan.L4
	for _, r := range rs {
		for first := int(r.First); first <= int(r.Last); {
			size := 1 << 16
			if first > 0 {
				size = 1 << bits.TrailingZeros16(uint16(first))
			}
			for first+size-1 > int(r.Last) {
				size >>= 1
			}
			out = append(out, plan.L4{Proto: proto, Port: uint16(first), Bits: uint8(16 - bits.TrailingZeros32(uint32(size)))})
			first += size
		}
	}
	return out
}

// tidy sorts port prefixes and leaves out those that others cover.
func tidy(ms []plan.L4) []plan.L4 {
	slices.SortFunc(ms, func(a, b plan.L4) int {
		return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Bits, b.Bits))
	})
	out := ms[:0]
	for _, m := range ms {
		if !slices.ContainsFunc(out, func(o plan.L4) bool { return o.Covers(m) }) {
			out = append(out, m)
		}
	}
	return out
}

// portNames is what is known of named ports: which numbers pods and host endpoints have for a name, and how many policies ask for it of their peers.
type portNames struct {
	pods    map[string]map[string]int // key "@port:tcp/http", number: pods
	users   map[string]int            // of a key, in egress rules
	behind  map[string]int            // users of the ports of a service's backends
	version int                       // changes with the values of a key that is used
}

func newPortNames() portNames {
	return portNames{pods: map[string]map[string]int{}, users: map[string]int{}, behind: map[string]int{}}
}

// names calls f for every named port that a policy's rules ask for in a direction.
func names(p *policy, d plan.Direction, f func(key string)) {
	for _, r := range p.rules[d] {
		for _, l := range r.L4 {
			for _, name := range slices.Concat(l.Named, l.NotNamed) {
				for _, proto := range protocols(l) {
					f(selector.Port + plan.ProtoName(proto) + "/" + name)
				}
			}
		}
	}
}

// use counts a policy, n 1 or -1, among the users of the names that it asks for of its peers.
func (n *portNames) use(p *policy, count int) {
	names(p, plan.Egress, func(key string) {
		n.users[key] += count
		if n.users[key] == 0 {
			delete(n.users, key)
		}
	})
	for _, r := range p.rules[plan.Egress] {
		for _, l := range r.L4 {
			if l.Service != "" {
				n.behind[l.Service] += count
			}
		}
	}
}

// asked reports whether a policy's rules in a direction depend on the names that the subject's own ports have.
func (n *portNames) asked(p *policy, d plan.Direction) bool {
	found := false
	if d == plan.Ingress {
		names(p, d, func(string) { found = true })
	}
	return found
}

// count takes in, n 1 or -1, the ports of a pod or a host endpoint.
func (n *portNames) count(e *Engine, ports []model.Port, count int) {
	for _, o := range ports {
		key, value := selector.Port+o.Protocol+"/"+o.Name, strconv.Itoa(int(o.Port))
		if n.pods[key] == nil {
			n.pods[key] = map[string]int{}
		}
		before := n.pods[key][value]
		n.pods[key][value] += count
		if n.pods[key][value] == 0 {
			delete(n.pods[key], value)
		}
		if (before > 0) != (n.pods[key][value] > 0) && n.users[key] > 0 {
			n.version++
			e.todo.ports = true
		}
	}
}

// values returns the numbers that a named port has.
func (n *portNames) values(key string) []string {
	return slices.Sorted(maps.Keys(n.pods[key]))
}

// of writes a holder's named ports.
func (n *portNames) of(h *holder) string {
	if h.pod == nil {
		return ""
	}
	return fmt.Sprint(h.pod.Ports)
}
