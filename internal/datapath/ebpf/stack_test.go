package ebpf

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// TestStack sums the frames along the deepest chain of calls, as the verifier of Linux 6.1 does: it rounds each up to 32 bytes, and
// refuses a program whose sum is above 512. Later kernels round to 16, so that a program that loads here may not load there.
func TestStack(t *testing.T) {
	const limit, round = 512, 32
	spec, err := loadWeft()
	if err != nil {
		t.Fatal(err)
	}
	for name, prog := range spec.Programs {
		if prog.Type == ebpf.UnspecifiedProgram { // a function that programs call
			continue
		}
		frames, calls := frames(prog.Instructions)
		var deepest func(f string) int
		deepest = func(f string) int {
			most := 0
			for callee := range calls[f] {
				most = max(most, deepest(callee))
			}
			return most + (max(frames[f], 1)+round-1)/round*round
		}
		first := prog.Instructions[0].Symbol()
		sum := deepest(first)
		t.Logf("%s: %d bytes", name, sum)
		if sum > limit {
			t.Errorf("%s: the deepest chain of calls has frames of %d bytes, Linux 6.1 takes %d", name, sum, limit)
		}
		if len(calls[first]) == 0 || frames[first] == 0 {
			t.Errorf("%s: no call or no frame was found in it", name)
		}
	}
}

// frames returns the size of each function's frame, the farthest place below r10 that it touches or takes the address of, and whom it calls
// directly or hands to a helper.
func frames(all asm.Instructions) (size map[string]int, calls map[string]map[string]bool) {
	size, calls = map[string]int{}, map[string]map[string]bool{}
	f := ""
	var based [11]bool // registers that are copies of r10
	touch := func(off int64) { size[f] = max(size[f], int(-off)) }
	for i := range all {
		ins := &all[i]
		if name := ins.Symbol(); name != "" && !ins.IsFunctionReference() && isFunction(all, name) {
			f, based, calls[name] = name, [11]bool{}, map[string]bool{}
		}
		class := ins.OpCode.Class()
		switch {
		case ins.IsFunctionReference():
			calls[f][ins.Reference()] = true
		case class.IsLoad() && ins.Src == asm.R10, class.IsStore() && ins.Dst == asm.R10:
			touch(int64(ins.Offset))
		case class.IsALU() && ins.OpCode.ALUOp() == asm.Mov:
			based[ins.Dst] = ins.OpCode.Source() == asm.RegSource && ins.Src == asm.R10
		case class.IsALU() && ins.OpCode.ALUOp() == asm.Add && ins.OpCode.Source() == asm.ImmSource && based[ins.Dst]:
			touch(ins.Constant)
			based[ins.Dst] = false
		}
	}
	return size, calls
}

// isFunction says whether a symbol is a function, and not a place in one that is jumped to.
func isFunction(all asm.Instructions, name string) bool {
	if all[0].Symbol() == name {
		return true
	}
	for i := range all {
		if all[i].IsFunctionReference() && all[i].Reference() == name {
			return true
		}
	}
	return false
}
