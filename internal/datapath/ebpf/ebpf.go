// Package ebpf makes the BPF maps and the programs on network devices equal to the plan: it applies the rows
// that Kinds lists. The programs are in bpf/; docs/design/datapath.md draws them, docs/design/policy.md says how they decide.
//
// It does not make links, routes or rules (see datapath/linux), and it decides nothing: which prefix is reached
// how, and who may reach whom, is compiled. A dead agent leaves maps, programs and links pinned, and packets flow on.
package ebpf

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
)

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel,bpfeb -no-global-types -type weft_addr -type weft_mac -type weft_settings -type weft_local -type weft_slot -type weft_prefix -type weft_remote -type weft_guard -type weft_set -type weft_match -type weft_matched -type weft_rule -type weft_rules -type weft_list -type weft_block -type weft_bits -type weft_network -type weft_hits -type weft_name -type weft_pair -type weft_conn -type weft_record -type weft_pace weft ../../../bpf/weft.c -- -O2 -mcpu=v3 -Wall -Wextra -Werror -fms-extensions -Wno-microsoft-anon-tag -nostdinc -I../../../bpf

// Driver owns what is pinned below one directory of a bpffs, and the clsact filters named weft_*. Apply and Sweep are called from one goroutine; the other methods from any.
//
// A new driver recognises maps by their pin below maps-<layout>, links by their pin below links, named after
// device and direction. Map entries, pins and filters that the plan does not want, and maps of another
// layout, go in Sweep. If the agent dies between any two steps, the programs keep reading the entries that are
// there; a link that was attached but not yet pinned detaches with the process.
type Driver struct {
	dir    string
	log    *slog.Logger
	objs   weftObjects
	names  []string      // of stats' keys
	wake   chan struct{} // of Watch, after Apply
	layout string
	salt   string // of the layout's hash, for tests

	settings *table[uint32, weftWeftSettings]
	locals   *table[weftWeftAddr, weftWeftLocal]
	slots    *table[uint32, weftWeftSlot]
	remotes  *table[weftWeftPrefix, weftWeftRemote]
	peers    *table[weftWeftAddr, uint32]
	devices  *table[uint32, weftWeftGuard]

	policy *policies
	gate   *ebpf.Program // of Shut; never nil after New

	// What this process wrote, to find what a changed row no longer has. Sweep does that for earlier processes.
	owner  map[netip.Addr]string       // the local whose address it is
	addrs  map[string][]netip.Addr     // a local's addresses
	via    map[netip.Prefix]netip.Addr // a remote's node
	pods   map[string]local            // locals by device
	filled bool
	swept  bool      // all that is wanted is known
	want   plan.View // of the Apply or Sweep that runs

	apply sync.Mutex // held by whoever changes the kernel; taken before mu
	mode  attacher   // guarded by apply
	last  time.Time  // guarded by apply; when Apply ended

	mu       sync.Mutex
	features map[string]*model.Feature // guarded by mu
	hooked   map[plan.Key]hooked       // guarded by mu; rows whose programs are attached
	waiting  map[plan.Key]bool         // guarded by mu; pods with filters that links shall replace
}

// Option changes how a Driver works; there is none that a node needs.
type Option func(*Driver)

// WithClsact attaches with clsact filters even where the kernel has TCX.
func WithClsact() Option { return func(d *Driver) { d.mode.clsact = true } }

// New loads the programs with the maps that an earlier agent left below dir, or with new ones if there are
// none of this layout. dir is on a bpffs; one is mounted if it is not. Nothing is attached before Apply.
func New(dir string, log *slog.Logger, opts ...Option) (*Driver, error) {
	d := &Driver{
		dir: dir, log: log, pods: map[string]local{},
		owner: map[netip.Addr]string{}, addrs: map[string][]netip.Addr{}, via: map[netip.Prefix]netip.Addr{},
		features: map[string]*model.Feature{}, hooked: map[plan.Key]hooked{}, waiting: map[plan.Key]bool{},
		wake: make(chan struct{}, 1),
	}
	for _, o := range opts {
		o(d)
	}
	if err := ensureBPFFS(dir); err != nil {
		return nil, err
	}
	spec, err := d.load()
	if err != nil {
		return nil, err
	}
	if d.policy, err = openPolicies(d, spec); err != nil {
		_ = d.objs.Close()
		return nil, err
	}
	if d.gate, err = newGate(); err != nil {
		return nil, errors.Join(err, d.policy.close(), d.objs.Close())
	}
	d.mode.links = filepath.Join(dir, linksDir)
	if err := os.MkdirAll(d.mode.links, 0o700); err != nil {
		return nil, errors.Join(fmt.Errorf("make directory for pinned links: %w", err), d.Close())
	}
	d.settings = &table[uint32, weftWeftSettings]{m: d.objs.Settings, name: "settings"}
	d.locals = &table[weftWeftAddr, weftWeftLocal]{m: d.objs.Locals, name: "locals"}
	d.slots = &table[uint32, weftWeftSlot]{m: d.objs.Slots, name: "slots"}
	d.remotes = &table[weftWeftPrefix, weftWeftRemote]{m: d.objs.Remotes, name: "remotes"}
	d.peers = &table[weftWeftAddr, uint32]{m: d.objs.Peers, name: "peers"}
	d.devices = &table[uint32, weftWeftGuard]{m: d.objs.Devices, name: "devices"}
	return d, nil
}

// Close releases the driver's descriptors. What is pinned stays, and packets flow on.
func (d *Driver) Close() error {
	return errors.Join(d.policy.close(), d.objs.Close(), d.gate.Close())
}

// Kinds are the kinds of rows that the driver applies, referents first.
func Kinds() []plan.Kind {
	return []plan.Kind{
		plan.KindIdentity, plan.KindPeerSet, plan.KindPolicySet, plan.KindAddress, plan.KindVIP, plan.KindGuard,
		plan.KindSettings, plan.KindHook, plan.KindRemote, plan.KindLocal,
	}
}

// Apply implements the reconciler's Driver. The first call enters all that is wanted into the maps before
// it touches a link, so that maps of a new layout are complete when packets begin to see them.
func (d *Driver) Apply(ctx context.Context, want plan.View, changed plan.Changes) plan.Results {
	d.apply.Lock()
	defer d.apply.Unlock()
	defer d.applied()
	d.want = want
	res := plan.Results{}
	if !d.filled && len(changed.Upsert) > 0 {
		d.fill(want)
		d.filled = true
	}
	for _, r := range changed.Upsert {
		if err := ctx.Err(); err != nil {
			res[r.Key()] = err
			continue
		}
		res[r.Key()] = d.upsert(r)
	}
	// The settings know devices by their index, and a device that a hook is for may have been made again.
	if s, ok := want.Get((&plan.Settings{}).Key()).(*plan.Settings); ok && hasHook(changed.Upsert) {
		if err := d.putSettings(s); err != nil {
			d.log.Debug("settings not written again", "err", err) // a device is missing, and its hook's row says so
		}
	}
	for _, r := range changed.Delete {
		if err := ctx.Err(); err != nil {
			res[r.Key()] = err
			continue
		}
		res[r.Key()] = d.remove(r)
	}
	if err := d.policy.heed(want); err != nil {
		d.log.Error("addresses that there is no room for narrow rules", "err", err)
	}
	if err := d.policy.raiseStale(); err != nil { // a set that was not raised lets its old flows live until it is
		d.log.Error("live flows are not asked about again", "err", err)
	}
	return res
}

func hasHook(rows []plan.Row) bool {
	return slices.ContainsFunc(rows, func(r plan.Row) bool { return r.Key().Kind == plan.KindHook })
}

// applied lets Watch know that there may be something to do when the node is calm.
func (d *Driver) applied() {
	d.last = time.Now()
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// fill enters rows without attaching anything. Errors are told when the row's turn comes.
func (d *Driver) fill(want plan.View) {
	d.fillPolicy(want)
	for r := range plan.All[*plan.Remote](want, plan.KindRemote) {
		_ = d.putRemote(r)
	}
	for r := range plan.All[*plan.Local](want, plan.KindLocal) {
		if index, err := interfaceIndex(r.HostIf); err == nil {
			_ = d.putLocal(r, index)
		}
	}
	for r := range plan.All[*plan.Settings](want, plan.KindSettings) { // last: it says whether a pod is under policy
		_ = d.putSettings(r)
	}
}

func (d *Driver) upsert(r plan.Row) error {
	switch r := r.(type) {
	case *plan.Settings:
		return errors.Join(d.putSettings(r), d.guardAll(), d.sockets(r.Policed))
	case *plan.Remote:
		return d.putRemote(r)
	case *plan.Local:
		index, err := interfaceIndex(r.HostIf)
		if err != nil {
			return err
		}
		if err := d.putLocal(r, index); err != nil {
			return err
		}
		netkit, err := isNetkit(r.HostIf)
		if err != nil {
			return err
		}
		prog := d.objs.FromPod
		if netkit {
			prog = d.objs.FromPodNetkit
		}
		return d.attach(r.Key(), hooked{dev: r.HostIf, index: index, quick: true, netkit: netkit}, prog, d.objs.ToPod)
	case *plan.Hook:
		index, err := interfaceIndex(r.Dev)
		if err != nil {
			return err
		}
		if r.Role == plan.RoleOverlay {
			return d.attach(r.Key(), hooked{dev: r.Dev, index: index}, d.objs.FromOverlay, d.objs.ToOverlay)
		}
		return d.attach(r.Key(), hooked{dev: r.Dev, index: index}, d.objs.FromNet, d.objs.ToNet)
	}
	return d.upsertPolicy(r)
}

func (d *Driver) remove(r plan.Row) error {
	switch r := r.(type) {
	case *plan.Settings:
		return errors.Join(d.settings.put(0, weftWeftSettings{}), d.sockets(false))
	case *plan.Remote:
		return d.dropRemote(r.Prefix)
	case *plan.Local:
		delete(d.pods, r.HostIf)
		delete(d.policy.left, r.HostIf)
		delete(d.policy.mine, r.HostIf)
		return errors.Join(d.shutPod(r.Key(), r.HostIf), d.keepAddrs(r.HostIf, nil))
	case *plan.Hook:
		return d.detach(r.Key(), r.Dev)
	}
	return d.removePolicy(r)
}

func (d *Driver) putSettings(r *plan.Settings) error {
	s := weftWeftSettings{
		Vni: r.VNI, Port: bigEndian(r.Port), Gateway: macOf(r.GatewayMAC), Sender: macOf(senderOf(r.GatewayMAC)), Ready: 1,
	}
	if r.Tracked {
		s.Tracked = 1
	}
	if err := d.policySettings(r, &s); err != nil {
		return err
	}
	for i, f := range netset.Families() {
		if a := netset.First(r.Addrs, f); a.IsValid() {
			s.Own[i] = addrOf(a)
		}
	}
	for _, dev := range []struct {
		name string
		to   *uint32
	}{{r.Underlay, &s.Underlay}, {r.Overlay, &s.Overlay}} {
		if dev.name == "" {
			continue
		}
		index, err := interfaceIndex(dev.name)
		if err != nil {
			return err
		}
		*dev.to = uint32(index)
	}
	return d.settings.put(0, s)
}

// senderOf is the inner source of tunnelled packets. It cannot be the gateway's MAC, which every VXLAN device has:
// the kernel takes a packet from a device's own MAC for a loop and drops it.
func senderOf(gateway model.MAC) model.MAC {
	gateway[len(gateway)-1] ^= 0x80
	return gateway
}

func (d *Driver) putRemote(r *plan.Remote) error {
	if r.MTU <= 0 || r.MTU > 65535 {
		return fmt.Errorf("remote %s: MTU %d is not in 1..65535", r.Prefix, r.MTU)
	}
	// The node first: its packets must not be refused once ours have reached it.
	if err := d.peers.put(addrOf(r.Via), 1); err != nil {
		return fmt.Errorf("remote %s: node %s: %w", r.Prefix, r.Via, err)
	}
	v := weftWeftRemote{Via: addrOf(r.Via), Mac: macOf(r.VTEPMAC), Mtu: uint16(r.MTU)}
	if r.Tunnel {
		v.Tunnel = 1
	}
	if r.OnLink || !r.Tunnel {
		v.Onlink = 1
	}
	if err := d.remotes.put(prefixOf(r.Prefix), v); err != nil {
		return fmt.Errorf("remote %s: %w", r.Prefix, err)
	}
	before, known := d.via[r.Prefix]
	d.via[r.Prefix] = r.Via
	if known && before != r.Via {
		return d.dropPeer(before)
	}
	return nil
}

func (d *Driver) dropRemote(p netip.Prefix) error {
	if err := d.remotes.drop(prefixOf(p)); err != nil {
		return fmt.Errorf("remote %s: %w", p, err)
	}
	via, known := d.via[p]
	delete(d.via, p)
	if !known {
		return nil
	}
	return d.dropPeer(via)
}

// dropPeer removes a node's address once no prefix is reached through it.
func (d *Driver) dropPeer(via netip.Addr) error {
	for _, a := range d.via {
		if a == via {
			return nil
		}
	}
	if err := d.peers.drop(addrOf(via)); err != nil {
		return fmt.Errorf("node %s: %w", via, err)
	}
	return nil
}

func (d *Driver) putLocal(r *plan.Local, index int) error {
	v := weftWeftLocal{Ifindex: uint32(index), Mac: macOf(r.MAC)}
	if r.Shaped {
		v.Shaped = 1
	}
	if err := d.guardLocal(r, &v); err != nil {
		return err
	}
	for _, a := range r.Addrs {
		if err := d.putAddr(a, v); err != nil {
			return fmt.Errorf("local %s: address %s: %w", r.HostIf, a, err)
		}
		d.owner[a] = r.HostIf
	}
	return d.keepAddrs(r.HostIf, r.Addrs)
}

// keepAddrs removes the addresses that a local had and that are not in keep, unless another local has them now.
func (d *Driver) keepAddrs(hostIf string, keep []netip.Addr) error {
	for _, a := range d.addrs[hostIf] {
		if slices.Contains(keep, a) || d.owner[a] != hostIf {
			continue
		}
		if err := d.dropAddr(a); err != nil {
			return fmt.Errorf("local %s: address %s: %w", hostIf, a, err)
		}
		delete(d.owner, a)
	}
	if len(keep) == 0 {
		delete(d.addrs, hostIf)
	} else {
		d.addrs[hostIf] = slices.Clone(keep)
	}
	return nil
}

// Sweep implements the reconciler's Driver.
func (d *Driver) Sweep(_ context.Context, want plan.View) error {
	d.apply.Lock()
	defer d.apply.Unlock()
	d.want, d.swept = want, true
	locals, devices := map[weftWeftAddr]bool{}, map[string]bool{}
	for r := range plan.All[*plan.Local](want, plan.KindLocal) {
		devices[r.HostIf] = true
		for _, a := range r.Addrs {
			locals[addrOf(a)] = true
		}
	}
	remotes, peers := map[weftWeftPrefix]bool{}, map[weftWeftAddr]bool{}
	for r := range plan.All[*plan.Remote](want, plan.KindRemote) {
		remotes[prefixOf(r.Prefix)] = true
		peers[addrOf(r.Via)] = true
	}
	for r := range plan.All[*plan.Hook](want, plan.KindHook) {
		devices[r.Dev] = true
	}
	return errors.Join(
		d.sweepPolicy(want), d.locals.keep(locals), d.rebuildSlots(), d.remotes.keep(remotes), d.peers.keep(peers),
		d.mode.keep(devices), d.removeLayouts())
}

// Features says what of the kernel is used, and what instead of what is missing.
func (d *Driver) Features() []model.Feature {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []model.Feature
	for _, name := range slices.Sorted(maps.Keys(d.features)) {
		out = append(out, *d.features[name])
	}
	return out
}

// Stats returns what became of packets since the maps were made, by reason, summed over CPUs. The names are
// those of enum weft_reason in bpf/lib/stats.h in lower case, without the prefix.
func (d *Driver) Stats() map[string]uint64 {
	out := make(map[string]uint64, len(d.names))
	for i, name := range d.names {
		var perCPU []uint64
		if err := d.objs.Stats.Lookup(uint32(i), &perCPU); err != nil {
			continue // the map is an array: only a closed driver gets here
		}
		for _, n := range perCPU {
			out[name] += n
		}
	}
	return out
}
