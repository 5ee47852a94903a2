package nft

import (
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// layoutChain names the version of chains and rules: a table that has it was made by a build with the same ones.
// It is an empty chain. Change the number with the rules.
const layoutChain = "layout-1"

// The registers: 16-byte ones from 1, their 4-byte quarters from 8 (linux/netfilter/nf_tables.h).
const reg = unix.NFT_REG_1

func quarter(bytes uint32) uint32 { return unix.NFT_REG32_00 + bytes/4 }

// podPrefix is what the names of pod links and of the overlay device begin with.
const podPrefix = "weft"

// The marks of bpf/config.h on packets that the eBPF programs leave to the stack.
const (
	markMask       = 0x1030
	markUndecided  = 0x1000 // to be decided when it has been translated
	markReject     = 0x1010 // to be answered with a refusal
	markNode       = 0x1020 // not for the node itself
	markNodeReject = 0x1030 // likewise, to be answered
)

// beforeFilter is the priority of the chains that refuse packets: before anybody else's filters accept them.
const beforeFilter = -10

func table() *nftables.Table {
	return &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}
}

// sets returns the table's sets and maps.
func sets(t *nftables.Table) []*nftables.Set {
	var out []*nftables.Set
	for _, f := range families() {
		portKey := nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
		addrKey := nftables.MustConcatSetType(f.addr, nftables.TypeInetProto, nftables.TypeInetService)
		pod := nftables.MustConcatSetType(f.addr, nftables.TypeInetService)
		pair := nftables.MustConcatSetType(f.addr, f.addr)
		out = append(out,
			&nftables.Set{Table: t, Name: podSet + f.name, KeyType: f.addr, Interval: true},
			&nftables.Set{Table: t, Name: exceptSet + f.name, KeyType: f.addr, Interval: true},
			&nftables.Set{Table: t, Name: anyPorts + f.name, KeyType: portKey, DataType: pod, IsMap: true, Concatenation: true},
			&nftables.Set{Table: t, Name: addrPorts + f.name, KeyType: addrKey, DataType: pod, IsMap: true, Concatenation: true},
			&nftables.Set{Table: t, Name: hairpinSet + f.name, KeyType: pair, Concatenation: true},
		)
	}
	return out
}

// chains returns the table's chains, each with the rules that belong in it.
func chains(t *nftables.Table, policed bool) (cs []*nftables.Chain, rules map[string][][]expr.Any) {
	base := func(name string, typ nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) {
		cs = append(cs, &nftables.Chain{Table: t, Name: name, Type: typ, Hooknum: hook, Priority: prio})
	}
	cs = append(cs, &nftables.Chain{Table: t, Name: layoutChain}, &nftables.Chain{Table: t, Name: "hostports"})
	base("guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	base("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	base("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)

	toLocal := []expr.Any{
		&expr.Fib{Register: reg, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
		&expr.Verdict{Kind: expr.VerdictJump, Chain: "hostports"},
	}
	rules = map[string][][]expr.Any{"prerouting": {toLocal}, "output": {toLocal}}
	// Host ports on 127.0.0.1 need route_localnet on the pod's link; a pod must not reach the host's loopback by it.
	loopback := []expr.Any{
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: []byte{255, 0, 0, 0}, Xor: []byte{0, 0, 0, 0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{127, 0, 0, 0}},
	}
	masquerade := &expr.Masq{FullyRandom: true}
	for _, f := range families() {
		inFamily := []expr.Any{
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{f.proto}},
		}
		add := func(chain string, es ...[]expr.Any) {
			rule := append([]expr.Any{}, inFamily...)
			for _, e := range es {
				rule = append(rule, e...)
			}
			rules[chain] = append(rules[chain], rule)
		}
		if f.addrLen == 4 {
			add("guard", podDevice(expr.MetaKeyIIFNAME, expr.CmpOpEq), f.load(f.dstOff, reg), loopback, []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}})
			add("postrouting", podDevice(expr.MetaKeyOIFNAME, expr.CmpOpEq), f.load(f.srcOff, reg), loopback, []expr.Any{masquerade})
		}
		add("hostports", f.load(f.dstOff, reg), ports(f.addrLen), f.dnat(addrPorts))
		add("hostports", ports(0), f.dnat(anyPorts))
		add("postrouting", podDevice(expr.MetaKeyOIFNAME, expr.CmpOpEq), f.load(f.srcOff, reg), f.load(f.dstOff, quarter(f.addrLen)),
			in(hairpinSet+f.name, false), []expr.Any{masquerade})
		add("postrouting", podDevice(expr.MetaKeyOIFNAME, expr.CmpOpNeq), f.load(f.srcOff, reg), in(podSet+f.name, false),
			f.load(f.dstOff, reg), in(exceptSet+f.name, true), []expr.Any{masquerade})
	}
	if policed {
		cs = append(cs, &nftables.Chain{Table: t, Name: refuseChain})
		base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityRef(beforeFilter))
		base("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityRef(beforeFilter))
		refusals(rules)
	}
	return cs, rules
}

// refuseChain is there when policy is enforced.
const refuseChain = "refuse"

// refusals adds the rules that answer what the eBPF programs rejected. A pod's packet to a service that ends at the node itself
// is decided about when its socket is looked for; of protocols for which none is, nobody could decide, and they are not let in.
func refusals(rules map[string][][]expr.Any) {
	marked := func(mark uint32, then ...expr.Any) []expr.Any {
		return append([]expr.Any{
			&expr.Meta{Key: expr.MetaKeyMARK, Register: reg},
			&expr.Bitwise{
				SourceRegister: reg, DestRegister: reg, Len: 4,
				Mask: binaryutil.NativeEndian.PutUint32(markMask), Xor: binaryutil.NativeEndian.PutUint32(0),
			},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binaryutil.NativeEndian.PutUint32(mark)},
		}, then...)
	}
	refuse := &expr.Verdict{Kind: expr.VerdictJump, Chain: refuseChain}
	drop := &expr.Verdict{Kind: expr.VerdictDrop}
	rules["forward"] = [][]expr.Any{marked(markReject, refuse)}
	rules["input"] = [][]expr.Any{
		marked(markReject, refuse), marked(markNodeReject, refuse), marked(markNode, drop),
		marked(markUndecided, append(noSocket(), &expr.Counter{}, drop)...),
	}
	rules[refuseChain] = [][]expr.Any{
		{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{unix.IPPROTO_TCP}},
			&expr.Reject{Type: unix.NFT_REJECT_TCP_RST},
		},
		{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}},
	}
}

// noSocket matches protocols whose sockets are looked up without asking a program.
func noSocket() []expr.Any {
	load := &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}
	return []expr.Any{
		load, &expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: []byte{unix.IPPROTO_TCP}},
		load, &expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: []byte{unix.IPPROTO_UDP}},
	}
}

// podDevice matches (or not) packets of a device whose name begins as pod links' do.
func podDevice(key expr.MetaKey, op expr.CmpOp) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: reg}, &expr.Cmp{Op: op, Register: reg, Data: []byte(podPrefix)}}
}

// load puts an address of the network header into a register.
func (f family) load(offset, register uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.addrLen}}
}

// ports puts protocol and destination port behind the first bytes of a concatenation.
func ports(behind uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: quarter(behind)},
		&expr.Payload{DestRegister: quarter(behind + 4), Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

func in(set string, not bool) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg, SetName: set, Invert: not}}
}

// dnat sends what is in the map to the pod and port that stand there.
func (f family) dnat(set string) []expr.Any {
	return []expr.Any{
		&expr.Lookup{SourceRegister: reg, DestRegister: reg, IsDestRegSet: true, SetName: set + f.name},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.proto), RegAddrMin: reg, RegProtoMin: quarter(f.addrLen), Specified: true},
	}
}

// build queues the whole table.
func build(conn *nftables.Conn, t *nftables.Table, e elements) error {
	for _, set := range sets(t) {
		err := conn.AddSet(set, nil)
		if err == nil {
			err = inChunks(set, e.sets[set.Name], conn.SetAddElements)
		}
		if err != nil {
			return fmt.Errorf("set %s: %w", set.Name, err)
		}
	}
	cs, rules := chains(t, e.policed)
	for _, c := range cs {
		conn.AddChain(c)
	}
	for _, c := range cs {
		for _, r := range rules[c.Name] {
			conn.AddRule(&nftables.Rule{Table: t, Chain: c, Exprs: r})
		}
	}
	return nil
}

// read returns what the table in the kernel holds. whole is false if its chains and rules are not those of this build;
// no table at all is whole, and empty.
func read(conn *nftables.Conn) (e elements, whole bool, err error) {
	e.sets = map[string]map[string]string{}
	t := table()
	if there, err := exists(conn); err != nil || !there {
		return e, true, err
	}
	have, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return e, false, fmt.Errorf("list chains: %w", err)
	}
	known := map[string]*nftables.Chain{}
	for _, c := range have {
		if c.Table.Name == TableName {
			known[c.Name] = c
		}
	}
	e.policed = known[refuseChain] != nil
	cs, rules := chains(t, e.policed)
	for _, c := range cs {
		if known[c.Name] == nil {
			return e, false, nil
		}
		rs, err := conn.GetRules(t, c)
		if err != nil || len(rs) != len(rules[c.Name]) {
			return e, false, nil //nolint:nilerr // what cannot be read is written anew
		}
	}
	for _, set := range sets(t) {
		els, err := conn.GetSetElements(set)
		if err != nil {
			return e, false, nil //nolint:nilerr // as above
		}
		s := map[string]string{}
		for _, el := range els {
			switch {
			case !set.Interval:
				s[string(el.Key)] = string(el.Val)
			case el.IntervalEnd:
				// The kernel adds an end at the lowest address where a set does not begin there.
				if strings.Trim(string(el.Key), "\x00") != "" {
					s[string(el.Key)] = intervalEnd
				}
			default:
				s[string(el.Key)] = ""
			}
		}
		e.sets[set.Name] = s
	}
	return e, true, nil
}

// exists reports whether the kernel has the table.
func exists(conn *nftables.Conn) (bool, error) {
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("list tables: %w", err)
	}
	for _, t := range tables {
		if t.Name == TableName {
			return true, nil
		}
	}
	return false, nil
}
