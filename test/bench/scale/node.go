package scale

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"weft/internal/compile/policy"
	"weft/internal/compile/route"
	"weft/internal/datapath/ebpf"
	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
	"weft/internal/reconcile"
	"weft/internal/run"
	"weft/internal/store"
	"weft/test/bench/lab"
)

// Place is where a node runs: the process is in the node's namespace.
type Place struct {
	Size   Size   `json:"size"`
	BPF    string `json:"bpf"`    // directory on a bpffs
	Server string `json:"server"` // network namespaces
	Client string `json:"client"`
	Other  string `json:"other"` // of the other node
}

// node is what an agent consists of between its sources and the kernel: the same store, compilers, reconciler and eBPF driver.
// Rows of netlink and nftables are answered by a stub, since no change of policy makes any, and the links are made by hand.
type node struct {
	Place
	store *store.Store
	w     *store.Writer
	loop  *reconcile.Loop
	run   *run.Group
	cold  time.Duration // from the objects in memory until all is in the kernel
	stop  context.CancelFunc
}

// nothing is the driver of rows that are not the matter here.
type nothing struct{}

// Apply implements reconcile.Driver.
func (nothing) Apply(_ context.Context, _ plan.View, changed plan.Changes) plan.Results {
	res := plan.Results{}
	for _, r := range slices.Concat(changed.Upsert, changed.Delete) {
		res[r.Key()] = nil
	}
	return res
}

// Sweep implements reconcile.Driver.
func (nothing) Sweep(context.Context, plan.View) error { return nil }

// compiler is what the agent derives its plan with.
func compiler() store.Compiler {
	engine := policy.New(thisNode)
	return store.Compiler{
		Dirty: func(s model.Snapshot, changed []model.Key) []model.Key {
			return append(route.Dirty(s, changed), engine.Update(s, changed)...)
		},
		Compile: func(s model.Snapshot) func(model.Key) []plan.Row {
			routes := route.Compile(s)
			return func(k model.Key) []plan.Row { return append(routes(k), engine.Rows(k)...) }
		},
	}
}

// startNode makes the links, writes all objects to a store and waits until the kernel has what follows from them.
func startNode(p Place) (*node, error) {
	objs, err := p.cluster()
	if err != nil {
		return nil, err
	}
	n := &node{Place: p}
	if n.store, err = store.New(run.System()); err != nil {
		return nil, err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	driver, err := ebpf.New(p.BPF, log)
	if err != nil {
		return nil, err
	}
	others := slices.DeleteFunc(plan.Kinds(), func(k plan.Kind) bool { return slices.Contains(ebpf.Kinds(), k) })
	n.loop = reconcile.New(n.store, run.System(), log,
		reconcile.Stage{Name: "nothing", Driver: nothing{}, Kinds: others}, reconcile.Stage{Name: "ebpf", Driver: driver, Kinds: ebpf.Kinds()})
	var ctx context.Context
	ctx, n.stop = context.WithCancel(context.Background())
	n.run = run.NewGroup(ctx, slog.New(slog.DiscardHandler))
	n.w = n.store.Writer("bench")
	began := time.Now()
	n.w.Upsert(objs...)
	n.w.Complete()
	n.store.Seal()
	n.run.Go("derive", func(ctx context.Context) error { return n.store.Derive(ctx, compiler()) })
	n.run.Go("reconcile", n.loop.Run)
	select {
	case <-n.loop.Swept():
	case <-time.After(10 * time.Minute):
		return nil, fmt.Errorf("not all is in the kernel after 10 minutes: %+v", n.loop.Stats())
	}
	n.cold = time.Since(began)
	for f := range n.store.Failed() {
		return nil, fmt.Errorf("%s: %w", f.Row.Key(), f.Err)
	}
	return n, nil
}

// cluster makes the links of the local pods and the objects.
func (p Place) cluster() ([]model.Object, error) {
	if p.Size.Local <= p.Size.client() {
		return nil, errors.New("there are too few local pods for a client")
	}
	if err := bulk(p.Size); err != nil {
		return nil, err
	}
	macs := map[string]model.MAC{}
	for i, pod := range []string{p.Server, p.Client} {
		if err := (lab.Limit{}).Add(i, pod); err != nil {
			return nil, err
		}
		err := lab.InNS(pod, func() error {
			eth, err := net.InterfaceByName("eth0")
			if err == nil {
				macs[fmt.Sprint("lim", i)] = model.MAC(eth.HardwareAddr)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	underlay, err := net.InterfaceByName("eth0")
	if err != nil {
		return nil, err
	}
	cfg := &model.Config{NodeName: thisNode}
	cfg.SetDefaults()
	cfg.Backend.Type = "direct"
	objs := []model.Object{cfg, &model.Device{
		Name: "eth0", Index: underlay.Index, MTU: underlay.MTU, MAC: model.MAC(underlay.HardwareAddr), Up: true, Addrs: lab.Both(lab.NodePrefix, 1),
	}}
	for i, name := range []string{thisNode, otherNode} {
		node := &model.Node{Name: name, PodCIDRs: lab.Both(lab.PodPrefix, i+1)}
		for _, a := range lab.Both(lab.NodePrefix, i+1) {
			node.Addrs = append(node.Addrs, a.Addr())
		}
		objs = append(objs, node)
	}
	for _, o := range p.Size.objects() {
		if e, ok := o.(*model.Endpoint); ok {
			if mac, ok := macs[e.HostIf]; ok {
				e.MAC = mac
			}
		}
		objs = append(objs, o)
	}
	return objs, nil
}

// bulk makes the links of the pods that no packet goes to.
func bulk(s Size) error {
	var b strings.Builder
	for i := range s.Local {
		if name := s.hostIf(i); strings.HasPrefix(name, "bulk") {
			fmt.Fprintf(&b, "link add %s type veth peer name %s\n", name, "x"+name[4:])
		}
	}
	cmd := lab.Program("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(b.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make links: %w: %s", err, out)
	}
	return nil
}

// memory is what a process takes, in MB.
type memory struct {
	RSS  float64 `json:"rss"`
	Heap float64 `json:"heap"`
	Maps float64 `json:"maps"` // memlock of the BPF maps that it holds
}

// ownMemory reads this process's.
func ownMemory() memory {
	out := memory{}
	if raw, err := os.ReadFile("/proc/self/status"); err == nil {
		out.RSS = number(string(raw), "VmRSS:") * 1024 / 1e6
	}
	for _, bytes := range mapBytes() {
		out.Maps += bytes / 1e6
	}
	out.Heap = heap()
	return out
}

// mapBytes is the memory of every BPF map that this process holds, by ID.
func mapBytes() map[uint32]float64 {
	out := map[uint32]float64{}
	entries, err := os.ReadDir("/proc/self/fdinfo")
	if err != nil {
		return out
	}
	for _, e := range entries {
		raw, err := os.ReadFile("/proc/self/fdinfo/" + e.Name())
		if err == nil && strings.Contains(string(raw), "map_id:") {
			out[uint32(number(string(raw), "map_id:"))] = number(string(raw), "memlock:")
		}
	}
	return out
}

// number finds "key number" at the beginning of a line.
func number(text, key string) float64 {
	for l := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(l, key); ok {
			v, _ := strconv.ParseFloat(strings.Fields(rest + " 0")[0], 64)
			return v
		}
	}
	return 0
}

// otherAddr is the nth address of the other node's pods.
func otherAddr(n int) netip.Addr { return netset.Nth(podCIDR(2), uint64(2+n)) }

// Addresses gives the other node the addresses of its pods. Whoever makes the namespaces calls it once.
func (p Place) Addresses() error {
	var b strings.Builder
	for i := range others {
		fmt.Fprintf(&b, "address add %s/32 dev lo\n", otherAddr(i))
	}
	fmt.Fprintf(&b, "route add %s via %s\n", podCIDR(1), lab.Both(lab.NodePrefix, 1)[0].Addr())
	cmd := lab.Program("ip", "-n", p.Other, "-batch", "-")
	cmd.Stdin = strings.NewReader(b.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("addresses of %s: %w: %s", p.Other, err, out)
	}
	return nil
}
