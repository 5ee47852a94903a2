package ebpf

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
)

// What a policy set is in the maps: lists of rules, and which list is for which protocol and port (bpf/lib/policy.h).

// The flags and the end of bpf/lib/policy.h.
const (
	setHosts   = 1
	ruleHosts  = 0x04
	ruleNoted  = 0x08
	ruleLast   = 0x10
	ruleTurn   = 0x20
	ruleStaged = 0x40
	ruleLog    = 0x80
	ruleNone   = 0xffff
	// matchSet and matchProto are the lengths of keys in the trie without a port.
	matchSet   = 40
	matchProto = 48
)

// ruleFamily is the flag of a rule that is for one family only.
func ruleFamily(f netset.Family) uint8 {
	for i, x := range netset.Families() {
		if x == f {
			return 1 << i
		}
	}
	return 0
}

// ruleList is one list with the packets that it is for.
type ruleList struct {
	match  weftWeftMatch
	chunks []weftWeftRules
}

// listsOf makes the lists of a set, longest prefix first. number returns a rule's, and its peers'.
func listsOf(set uint32, row *plan.PolicySet, number func(*plan.PolicyRule) (rule, peers uint32)) ([]ruleList, error) {
	rules := make([]weftWeftRule, len(row.Rules))
	for i := range row.Rules {
		r := &row.Rules[i]
		// A range of source ports that ends before it begins is all of them: port 0 alone is one, too.
		x := weftWeftRule{SportFirst: 1, Answer: uint8(r.Verdict), Flags: ruleFamily(r.Family)}
		if r.SrcPorts != nil {
			x.SportFirst, x.SportLast = r.SrcPorts.First, r.SrcPorts.Last
		}
		if r.Hosts {
			x.Flags |= ruleHosts
		}
		if r.Staged || r.Verdict == model.VerdictLog {
			x.Flags |= ruleNoted
		}
		if r.Staged && r.Verdict != model.VerdictLog {
			x.Flags |= ruleStaged
		}
		if r.Log || r.Verdict == model.VerdictLog {
			x.Flags |= ruleLog
		}
		x.Number, x.Peers = number(r)
		rules[i] = x
	}
	var out []ruleList
	for _, l := range row.Lists() {
		x := ruleList{match: matchOf(set, l.L4), chunks: chunksOf(rules, row.Rules, l.Rules)}
		if len(x.chunks) >= ruleNone {
			return nil, fmt.Errorf("%d rules for %s are too many", len(l.Rules), l.L4)
		}
		out = append(out, x)
	}
	slices.SortStableFunc(out, func(a, b ruleList) int { return cmp.Compare(b.match.Len, a.match.Len) })
	return out, nil
}

func matchOf(set uint32, m plan.L4) weftWeftMatch {
	if m.Proto == model.ProtoAny {
		return weftWeftMatch{Len: matchSet, Set: set}
	}
	return weftWeftMatch{Len: matchProto + uint32(m.Bits), Set: set, Proto: uint8(m.Proto), Port: bigEndian(m.Port)}
}

// chunksOf makes the elements of a list of the rules with these indexes. An element begins where a rule leads that passes.
func chunksOf(rules []weftWeftRule, rows []plan.PolicyRule, list []int) []weftWeftRules {
	// target is the place in the list of the first rule of at least the level.
	target := func(from, level int) int {
		n := slices.IndexFunc(list[from:], func(j int) bool { return rows[j].Level >= level })
		if n < 0 {
			return -1
		}
		return from + n
	}
	begins := map[int]bool{}
	for i, at := range list {
		if rows[at].Verdict == model.VerdictPass {
			begins[target(i+1, rows[at].PassTo)] = true
		}
	}
	var out []weftWeftRules
	chunk := make([]int, len(list)) // that each rule is in
	n := 0
	for i, at := range list {
		if n == 0 || n == len(weftWeftRules{}.Rule) || begins[i] {
			if n > 0 && n < len(weftWeftRules{}.Rule) {
				out[len(out)-1].Rule[n-1].Flags |= ruleTurn
			}
			out, n = append(out, weftWeftRules{}), 0
		}
		chunk[i] = len(out) - 1
		r := rules[at]
		if i == len(list)-1 {
			r.Flags |= ruleLast
		}
		out[len(out)-1].Rule[n] = r
		n++
	}
	// Now that every rule has its element.
	n = 0
	for i, at := range list {
		if i > 0 && chunk[i] != chunk[i-1] {
			n = 0
		}
		if rows[at].Verdict == model.VerdictPass {
			next := uint16(ruleNone)
			if to := target(i+1, rows[at].PassTo); to >= 0 {
				next = uint16(chunk[to])
			}
			out[chunk[i]].Rule[n].Next = next
		}
		n++
	}
	return out
}

// content is a list as a comparable value.
func content(list []weftWeftRules) string {
	b, _ := binary.Append(nil, binary.NativeEndian, list) // fixed-size fields: cannot fail
	return string(b)
}

// putList writes a list that is not referred to yet.
func (p *policies) putList(list uint32, chunks []weftWeftRules) error {
	for i, c := range chunks {
		if err := p.lists.put(weftWeftList{List: list, Chunk: uint32(i)}, c); err != nil {
			return err
		}
	}
	return nil
}

// readList returns the list that the kernel holds.
func (p *policies) readList(list uint32) []weftWeftRules {
	var out []weftWeftRules
	for i := uint32(0); ; i++ {
		var c weftWeftRules
		if err := p.lists.m.Lookup(weftWeftList{List: list, Chunk: i}, &c); err != nil {
			return nil // it is written anew
		}
		out = append(out, c)
		if slices.ContainsFunc(c.Rule[:], func(r weftWeftRule) bool { return r.Flags&ruleLast != 0 }) {
			return out
		}
	}
}

// dropList removes a list that is not referred to any more.
func (p *policies) dropList(list uint32) error {
	for i := uint32(0); ; i++ {
		key := weftWeftList{List: list, Chunk: i}
		before := p.lists.writes
		if err := p.lists.drop(key); err != nil {
			return err
		}
		if p.lists.writes == before {
			return nil
		}
	}
}
