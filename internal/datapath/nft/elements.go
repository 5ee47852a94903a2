package nft

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"weft/internal/netset"
	"weft/internal/plan"
)

// elements is what the sets of the table hold: set name → key bytes → data bytes. An interval set holds
// its boundaries: the data of a start is empty, that of an end is "end".
type elements struct {
	sets    map[string]map[string]string
	policed bool               // packets that policy rejects are to be answered
	rows    []plan.Key         // what it was compiled from
	refused map[plan.Key]error // rows that cannot be expressed
}

func (e elements) empty() bool {
	for _, s := range e.sets {
		if len(s) > 0 {
			return false
		}
	}
	return !e.policed
}

func (e elements) put(set, key, val string) { e.sets[set][key] = val }

const intervalEnd = "end"

// family is what differs between the families: the one pair of everything in this package.
type family struct {
	netset.Family
	name    string // suffix of set names
	proto   byte   // NFPROTO_*
	addr    nftables.SetDatatype
	srcOff  uint32 // of the source address in the network header
	dstOff  uint32
	addrLen uint32
}

func families() []family {
	return []family{
		{netset.V4, "v4", unix.NFPROTO_IPV4, nftables.TypeIPAddr, 12, 16, 4},
		{netset.V6, "v6", unix.NFPROTO_IPV6, nftables.TypeIP6Addr, 8, 24, 16},
	}
}

// The sets of each family, by their role.
const (
	podSet     = "pods-"      // sources of masquerade, intervals
	exceptSet  = "except-"    // destinations that are not masqueraded, intervals
	anyPorts   = "hostports-" // protocol . port → pod . port, on every local address
	addrPorts  = "hostaddrs-" // address . protocol . port → pod . port
	hairpinSet = "hairpin-"   // pod . pod: a pod that reaches itself through its host port
)

func pad(b []byte) string {
	return string(append(slices.Clone(b), make([]byte, (4-len(b)%4)%4)...))
}

func port(p uint16) string { return pad([]byte{byte(p >> 8), byte(p)}) }

func protocol(name string) (string, error) {
	n, ok := map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}[name]
	if !ok {
		return "", fmt.Errorf("protocol %q is not tcp, udp or sctp", name)
	}
	return pad([]byte{n}), nil
}

func addr(a netip.Addr) string { return string(a.Unmap().AsSlice()) }

// compile turns the wanted rows into elements.
func compile(want plan.View) elements {
	e := elements{sets: map[string]map[string]string{}, refused: map[plan.Key]error{}}
	for _, f := range families() {
		for _, set := range []string{podSet, exceptSet, anyPorts, addrPorts, hairpinSet} {
			e.sets[set+f.name] = map[string]string{}
		}
	}
	if s := plan.Get[*plan.Settings](want, (&plan.Settings{}).Key()); s != nil {
		e.policed = s.Policed
	}
	for m := range plan.All[*plan.Masquerade](want, plan.KindMasquerade) {
		e.rows = append(e.rows, m.Key())
		for _, f := range families() {
			e.intervals(podSet+f.name, f, m.Sources)
			if len(e.sets[podSet+f.name]) > 0 {
				e.intervals(exceptSet+f.name, f, m.Except)
			}
		}
	}
	for h := range plan.All[*plan.HostPort](want, plan.KindHostPort) {
		e.rows = append(e.rows, h.Key())
		pod := addr(h.Pod.Addr())
		proto, err := protocol(h.Protocol)
		given := h.HostIP.IsValid() && !h.HostIP.IsUnspecified()
		if err == nil && given && netset.Of(h.HostIP) != netset.Of(h.Pod.Addr()) {
			err = fmt.Errorf("host address %s and pod %s are of different families", h.HostIP, h.Pod.Addr())
		}
		if err != nil {
			e.refused[h.Key()] = fmt.Errorf("host port %s: %w", h, err)
			continue
		}
		for _, f := range families() {
			if netset.Of(h.Pod.Addr()) != f.Family {
				continue
			}
			e.put(hairpinSet+f.name, pod+pod, "")
			if given {
				e.put(addrPorts+f.name, addr(h.HostIP)+proto+port(h.Port), pod+port(h.Pod.Port()))
			} else {
				e.put(anyPorts+f.name, proto+port(h.Port), pod+port(h.Pod.Port()))
			}
		}
	}
	return e
}

// intervals fills an interval set with the union of the family's prefixes: adjacent ones are merged.
func (e elements) intervals(set string, f family, ps []netip.Prefix) {
	s := e.sets[set]
	for _, p := range netset.Minimal(ps) {
		if netset.OfPrefix(p) != f.Family {
			continue
		}
		start := addr(p.Addr())
		if s[start] == intervalEnd {
			delete(s, start) // it goes on where the last one ended
		} else {
			s[start] = ""
		}
		if end := netset.Last(p).Next(); end.IsValid() {
			s[addr(end)] = intervalEnd
		}
	}
}

func isInterval(set string) bool {
	return bytes.HasPrefix([]byte(set), []byte(podSet)) || bytes.HasPrefix([]byte(set), []byte(exceptSet))
}

func equalSet(a, b map[string]string) bool { return maps.Equal(a, b) }

// list turns a set's elements into the library's form, in a fixed order.
func list(set string, s map[string]string) []nftables.SetElement {
	var out []nftables.SetElement
	for _, k := range slices.Sorted(maps.Keys(s)) {
		el := nftables.SetElement{Key: []byte(k)}
		if isInterval(set) {
			el.IntervalEnd = s[k] == intervalEnd
		} else if s[k] != "" {
			el.Val = []byte(s[k])
		}
		out = append(out, el)
	}
	return out
}

// chunk is how many elements go into one message: the length of a netlink attribute is 16 bits.
const chunk = 400

// inChunks hands over a set's elements in messages that are not too long.
func inChunks(set *nftables.Set, s map[string]string, f func(*nftables.Set, []nftables.SetElement) error) error {
	for part := range slices.Chunk(list(set.Name, s), chunk) {
		if err := f(set, part); err != nil {
			return err
		}
	}
	return nil
}

// diffSets queues what turns the elements have into want: as much as differs.
func diffSets(conn *nftables.Conn, have, want elements) {
	for _, set := range sets(table()) {
		gone, added := differ(have.sets[set.Name], want.sets[set.Name])
		_ = inChunks(set, gone, conn.SetDeleteElements) // what cannot be marshalled fails the flush
		_ = inChunks(set, added, conn.SetAddElements)
	}
}

// differ returns the elements of old that now has not, and the other way round; a changed one is in both.
func differ(old, now map[string]string) (gone, added map[string]string) {
	gone, added = map[string]string{}, map[string]string{}
	for k, v := range old {
		if nv, ok := now[k]; !ok || nv != v {
			gone[k] = v
		}
	}
	for k, v := range now {
		if ov, ok := old[k]; !ok || ov != v {
			added[k] = v
		}
	}
	return gone, added
}

// moved lists the host ports that go elsewhere now, or nowhere: with the pod's port 0.
func moved(was, is elements) []plan.HostPort {
	var out []plan.HostPort
	for _, f := range families() {
		for _, set := range []string{anyPorts, addrPorts} {
			gone, added := differ(was.sets[set+f.name], is.sets[set+f.name])
			for k := range gone {
				if _, again := added[k]; !again {
					added[k] = string(make([]byte, f.addrLen+4))
				}
			}
			for _, k := range slices.Sorted(maps.Keys(added)) {
				out = append(out, f.decode(k, added[k]))
			}
		}
	}
	return out
}

// decode is the inverse of what compile makes of a host port.
func (f family) decode(key, val string) plan.HostPort {
	var h plan.HostPort
	if len(key) > 8 {
		h.HostIP, _ = netip.AddrFromSlice([]byte(key[:f.addrLen]))
		key = key[f.addrLen:]
	}
	h.Protocol = map[byte]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_SCTP: "sctp"}[key[0]]
	h.Port = binary.BigEndian.Uint16([]byte(key[4:]))
	pod, _ := netip.AddrFromSlice([]byte(val[:f.addrLen]))
	h.Pod = netip.AddrPortFrom(pod, binary.BigEndian.Uint16([]byte(val[f.addrLen:])))
	return h
}
