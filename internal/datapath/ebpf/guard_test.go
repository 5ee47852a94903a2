package ebpf

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"

	"weft/internal/netset"
)

// TestVerified keeps the programs small: what the verifier walks through and what the object holds, with a quarter of
// room over what was measured on Linux 6.18. Raise a figure only for something that is worth it.
func TestVerified(t *testing.T) {
	n, _ := lone(t, netset.V4, true)
	spec, err := loadWeft()
	if err != nil {
		t.Fatal(err)
	}
	o := n.driver.objs
	for _, c := range []struct {
		name            string
		prog            *ebpf.Program
		verified, insns int
	}{
		{"from_pod", o.FromPod, 26600, 4290},
		{"from_pod_netkit", o.FromPodNetkit, 26600, 4290},
		{"to_pod", o.ToPod, 19400, 3180},
		{"from_net", o.FromNet, 27900, 3960},
		{"to_net", o.ToNet, 20100, 3090},
		{"from_overlay", o.FromOverlay, 19700, 3400},
		{"to_overlay", o.ToOverlay, 22200, 3570},
		{"to_node", o.ToNode, 11700, 1690},
	} {
		info, err := c.prog.Info()
		if err != nil {
			t.Fatal(err)
		}
		got, _ := info.VerifiedInstructions()
		have := len(spec.Programs[c.name].Instructions)
		t.Logf("%-15s %5d instructions, %6d verified", c.name, have, got)
		// How far the verifier walks differs between kernels; older ones prune less. The limits hold from 6.12 on.
		if kernelIs(t, 6, 12) && int(got) > c.verified || have > c.insns {
			t.Errorf("%s has %d instructions, the verifier walked through %d; want at most %d and %d", c.name, have, got, c.insns, c.verified)
		}
	}
}

// nestedMap is any map that is in an array of one.
const nestedMap = "nested"

// lookupCounter loads a program of the object so that it counts its own lookups: each call of the helper becomes a call of
// a function that adds one to a counter of that map first.
func lookupCounter(t *testing.T, n *node, program string) (*ebpf.Program, *ebpf.Map, []string) {
	t.Helper()
	spec, err := loadWeft()
	if err != nil {
		t.Fatal(err)
	}
	ps := spec.Programs[program]
	names := append(slices.Sorted(maps.Keys(spec.Maps)), nestedMap)
	counters, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: uint32(8 * len(names)), MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = counters.Close() })

	used := map[string]bool{}
	for i, ins := range ps.Instructions {
		if !ins.IsBuiltinCall() || asm.BuiltinFunc(ins.Constant) != asm.FnMapLookupElem {
			continue
		}
		name := ""
		for j := i - 1; j >= 0 && name == ""; j-- {
			switch p := ps.Instructions[j]; {
			case p.IsLoadFromMap() && p.Dst == asm.R1:
				name = p.Reference()
			case p.Dst == asm.R1 && (p.OpCode.Class().IsALU() || p.OpCode.Class().IsLoad()):
				name = nestedMap
			}
		}
		if name == "" {
			t.Fatalf("%s: instruction %d looks up a map that is not loaded before it", program, i)
		}
		used[name] = true
		call := asm.Call.Label("lookup_" + name)
		call.Metadata = ins.Metadata
		ps.Instructions[i] = call.WithReference("lookup_" + name)
	}
	void := &btf.Pointer{Target: &btf.Void{}}
	for i, name := range names {
		if !used[name] {
			continue
		}
		fn := asm.Instructions{
			asm.LoadMapValue(asm.R3, counters.FD(), uint32(8*i)).WithSymbol("lookup_" + name),
			asm.Mov.Imm(asm.R4, 1),
			asm.AddAtomic.Mem(asm.R3, asm.R4, asm.DWord, 0),
			asm.FnMapLookupElem.Call(),
			asm.Return(),
		}
		fn[0] = fn[0].WithSource(ps.Instructions[0].Source())
		fn[0] = btf.WithFuncMetadata(fn[0], &btf.Func{
			Name: "lookup_" + name, Linkage: btf.StaticFunc,
			Type: &btf.FuncProto{Return: void, Params: []btf.FuncParam{{Name: "map", Type: void}, {Name: "key", Type: void}}},
		})
		ps.Instructions = append(ps.Instructions, fn...)
	}
	spec.Programs = map[string]*ebpf.ProgramSpec{program: ps}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: n.driver.maps()})
	if err != nil && strings.Contains(err.Error(), "combined stack size") {
		t.Skipf("a counter is a call more, and this kernel sums the frames of calls that are not nested more strictly: %v", err)
	}
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(coll.Close)
	return coll.DetachProgram(program), counters, names
}

// maps returns the driver's maps by name.
func (d *Driver) maps() map[string]*ebpf.Map {
	o := d.objs
	return map[string]*ebpf.Map{
		"settings": o.Settings, "locals": o.Locals, "slots": o.Slots, "remotes": o.Remotes, "peers": o.Peers, "track": o.Track, "stats": o.Stats,
		"sets": o.Sets, "matches": o.Matches, "lists": o.Lists, "members": o.Members, "addresses": o.Addresses, "networks": o.Networks,
		"rulestats": o.Rulestats, "numbers": o.Numbers, "conns": o.Conns, "vips": o.Vips, "frags": o.Frags, "records": o.Records, "pace": o.Pace, "devices": o.Devices,
	}
}

// TestLookups counts the lookups of each path. settings, slots and stats are arrays, whose lookups
// the JIT inlines.
func TestLookups(t *testing.T) {
	want := map[string]string{
		"from_pod/local":    "settings 1 slots 2 stats 1",
		"from_pod/tunnel":   "remotes 1 settings 1 slots 2 stats 1",
		"from_pod/direct":   "remotes 1 settings 1 slots 2 stats 1",
		"from_pod/stack":    "remotes 1 settings 1 slots 2 stats 1",
		"from_net/local":    "remotes 1 settings 1 slots 1 stats 1",
		"from_net/other":    "settings 1 slots 1",
		"from_net/tunnel":   "peers 1 settings 1 slots 1 stats 1",
		"to_overlay/tunnel": "remotes 1 settings 1 stats 1",
		"to_pod/untracked":  "settings 1",
		"to_net/untracked":  "settings 1",

		// An established flow is in conns, and looks once at the set of each of its ends that is here.
		"from_pod/policed-local":  "conns 1 sets 2 settings 2 slots 2 stats 1 nested 1",
		"from_pod/policed-direct": "conns 1 remotes 1 sets 1 settings 2 slots 2 stats 1 nested 1",
		"from_net/policed-local":  "conns 1 remotes 1 sets 1 settings 2 slots 1 stats 1 nested 1",
		"to_pod/policed":          "conns 1 sets 1 settings 2 slots 2 nested 1",
	}
	n, ways := paths(t, netset.V4)
	countLookups(t, n, ways, want)
	n, ways = policedPaths(t)
	countLookups(t, n, ways, want)
}

func countLookups(t *testing.T, n *node, ways []path, want map[string]string) {
	t.Helper()
	for _, p := range ways {
		way := strings.Replace(p.name[:strings.LastIndexByte(p.name, '/')], "_netkit", "", 1) // the same lookups
		if want[way] == "" {
			continue
		}
		if p.name == "from_net/tunnel/IPv6" && !popsOther(t) {
			continue // over IPv4
		}
		program, _, _ := strings.Cut(p.name, "/")
		prog, counters, names := lookupCounter(t, n, program)
		if _, _, err := p.prog.Test(p.packet); err != nil { // a flow's first packet, if it is one
			t.Fatal(err)
		}
		if got, _, err := prog.Test(p.packet); err != nil || got != p.want {
			t.Fatalf("%s: verdict %d, %v, want %d", p.name, int32(got), err, int32(p.want))
		}
		got := make([]uint64, len(names))
		if err := counters.Lookup(uint32(0), &got); err != nil {
			t.Fatal(err)
		}
		var text []string
		for i, name := range names {
			if got[i] > 0 {
				text = append(text, fmt.Sprintf("%s %d", name, got[i]))
			}
		}
		t.Logf("%-24s %s", p.name, strings.Join(text, ", "))
		if line := strings.Join(text, " "); line != want[way] {
			t.Errorf("%s looks up %q, want %q", p.name, line, want[way])
		}
	}
}
