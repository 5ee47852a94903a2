package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"weft/internal/compile/route"
	"weft/internal/convert/ipmasq"
	"weft/internal/convert/language"
	"weft/internal/datapath/linux"
	"weft/internal/mesh"
	"weft/internal/model"
	"weft/internal/plan"
	"weft/internal/source/cache"
	"weft/internal/source/cni"
	"weft/internal/source/file"
	"weft/internal/source/kube"
	"weft/internal/store"
)

// watched are the kinds that come from the cluster in any case. What else there is, is watched once a policy needs it.
func watched() []model.Kind { return []model.Kind{model.KindNode, model.KindPod} }

// startSources starts everything that writes intent.
func (a *Agent) startSources(ctx context.Context) error {
	if err := a.startConfig(); err != nil {
		return err
	}
	a.startDevices()
	a.features.Complete() // what the kernel can do is told when it has been tried
	a.incidents.w.Complete()
	if err := a.startCNI(ctx); err != nil {
		return err
	}
	paths := a.store.Writer("mesh")
	paths.Complete() // what is measured comes later and is never complete
	a.mesh = mesh.New(a.cfg, paths, a.log)
	a.group.Go("mesh", a.mesh.Run)
	a.group.Go("follow", func(ctx context.Context) error { return a.follow(ctx, a.mesh) })
	return a.startCluster()
}

// startConfig writes the configuration and follows the ip-masq-agent file.
func (a *Agent) startConfig() error {
	w := a.store.Writer("config")
	w.Upsert(&a.cfg)
	w.Complete()
	name := a.cfg.Masquerade.ConfigFile
	if name == "" || name == "off" {
		return nil
	}
	a.group.Go("ip-masq file", func(ctx context.Context) error {
		return watchFile(ctx, name, func() { w.Upsert(a.withMasqFile(name)) })
	})
	return nil
}

// withMasqFile is the configuration with what the ip-masq-agent file says; as it is if there is none. A broken file
// changes nothing: masquerading pods that must not be, or the other way round, would be worse than yesterday's file.
func (a *Agent) withMasqFile(name string) *model.Config {
	cfg := a.cfg
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return &cfg
	}
	var m model.Masquerade
	if err == nil {
		m, err = ipmasq.Parse(b)
	}
	if err != nil {
		a.incidents.add(fmt.Sprintf("%s: %v", name, err), "ignored: what was in force stays")
		if last := model.Get[*model.Config](a.store.Snapshot(), model.ConfigKey()); last != nil {
			return last
		}
		return &cfg
	}
	cfg.Masquerade.NonMasqueradeCIDRs, cfg.Masquerade.MasqLinkLocal = m.NonMasqueradeCIDRs, m.MasqLinkLocal
	return &cfg
}

// watchFile calls changed now and whenever the file may have changed, also where its directory is a mounted
// ConfigMap whose ..data link is swapped. While the directory does not exist it looks again every minute.
func watchFile(ctx context.Context, name string, changed func()) error {
	dir := filepath.Dir(name)
	for {
		if err := watchDir(ctx, dir, changed); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("watch %s: %w", dir, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Minute):
		}
	}
}

func watchDir(ctx context.Context, dir string, changed func()) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.Add(dir); err != nil {
		return err
	}
	for {
		changed()
		select {
		case <-ctx.Done():
			return nil
		case ev := <-w.Events:
			if ev.Name == dir && ev.Has(fsnotify.Remove) {
				return nil
			}
		case err := <-w.Errors:
			return err
		}
	}
}

// startDevices follows the host's own interfaces.
func (a *Agent) startDevices() {
	w := a.store.Writer("devices")
	a.group.Go("devices", func(ctx context.Context) error {
		return a.linux.WatchDevices(ctx, func(ds []model.Device) {
			objs := make([]model.Object, 0, len(ds))
			for _, d := range ds {
				objs = append(objs, &d)
			}
			w.Replace(model.KindDevice, objs)
			w.Complete()
		})
	})
}

// cluster is how the source of the cluster's objects is. The zero value is a source that is well; it is set
// before anything asks.
type cluster struct {
	problems func() []string // what is wrong now
	away     func() bool     // the API server is away, and what it last said is used
	server   string          // host:port of the API server; "": none is known
	// look calls a function when services and their backends are in the store; nil: they are.
	look func(context.Context, func() error) error
}

func (c cluster) offline() bool { return c.away != nil && c.away() }

// startCluster starts the source of the cluster's objects, and serves what was last known until it answers.
func (a *Agent) startCluster() error {
	a.startTrials()
	live := a.store.Writer(a.cfg.Source.Type)
	last := a.store.Writer(store.CacheSource)
	defer last.Complete() // what is on disk is in at once
	cached := cache.New(a.cfg.Paths.State, a.cfg.NodeName, a.unlessDisabled(last), a.log)
	if a.cfg.Source.Type != "file" { // a directory is as near, and newer: what has been revoked since must not come back, not for a moment
		if err := cached.Restore(); err != nil {
			a.incidents.add(fmt.Sprintf("last known objects: %v", err), "ignored: waiting for the "+a.cfg.Source.Type+" source")
		}
	}
	if cached.Serving() {
		a.trials.Begin()
	}
	complete := func() {
		live.Complete()
		a.trials.Complete()
		cached.Withdraw()
	}
	a.group.Go("cache", func(ctx context.Context) error { return cached.Keep(ctx, a.store.Snapshot, a.store.WatchKind) })
	if a.cfg.Source.Type == "file" {
		src := file.New(a.cfg.Source.Dir, a.trials.Gate(a.unlessDisabled(live)), complete, a.incidents.add, a.log)
		a.cluster = cluster{problems: src.Problems, server: server(a.cfg.Source.APIServer)}
		a.group.Go("source file", src.Run)
		return nil
	}
	rc, err := kube.Config(a.cfg.Source.Kubeconfig, a.cfg.Source.APIServer)
	if err != nil {
		return err
	}
	o := kube.Options{Node: a.cfg.NodeName, Kinds: watched(), Report: a.incidents.add}
	if !a.cfg.Policy.Disabled {
		o.Policy = &kube.Policy{Writer: a.policyWriter, Languages: a.cfg.Policy.Languages, Realized: a.realized}
	}
	src, err := kube.New(rc, o, live, complete, a.log)
	if err != nil {
		return err
	}
	a.cni.PodByName = src.PodByName
	a.cluster = cluster{problems: src.Problems, server: server(rc.Host), away: func() bool { return src.Away() && cached.Serving() }, look: src.Look}
	a.group.Go("source kube", src.Run)
	a.group.Go("services", func(ctx context.Context) error { return a.tellTranslated(ctx, src.SetServices) })
	a.group.Go("taken back", func(ctx context.Context) error { return a.tellTakenBack(ctx, src.SetTakenBack) })
	return nil
}

// policyWriter is the writer of one watch of the kube source, which waits for it itself.
func (a *Agent) policyWriter(watch string) kube.PolicyWriter {
	w := a.store.Writer(a.cfg.Source.Type + "/" + watch)
	w.Complete()
	return a.trials.Gate(w)
}

// realized waits until the policies that the store holds now are in force on this node.
func (a *Agent) realized(ctx context.Context) error {
	if err := a.store.Settled(ctx); err != nil {
		return err
	}
	kinds := []plan.Kind{plan.KindIdentity, plan.KindPeerSet, plan.KindPolicySet, plan.KindAddress, plan.KindVIP, plan.KindGuard}
	for {
		todo, changed := a.store.Todo(func(*store.Row) bool { return true })
		if !slices.ContainsFunc(todo, func(r *store.Row) bool { return slices.Contains(kinds, r.Row.Key().Kind) }) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// tellTranslated tells whether somebody else translates services' addresses on this host.
func (a *Agent) tellTranslated(ctx context.Context, tell func(bool)) error {
	for {
		changed := a.store.WatchKind(model.KindFeature)
		tell(model.Translated(a.store.Snapshot()))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// unlessDisabled is the writer without policies where the configuration wants none to be enforced.
func (a *Agent) unlessDisabled(w *store.Writer) policyFilter {
	return policyFilter{w, a.cfg.Policy.Disabled}
}

// policyFilter is a writer that may leave out policies.
type policyFilter struct {
	*store.Writer
	off bool
}

// drops reports whether objects of the kind are left out.
func (f policyFilter) drops(k model.Kind) bool { return f.off && slices.Contains(language.Models(), k) }

func (f policyFilter) Upsert(objs ...model.Object) {
	f.Writer.Upsert(slices.DeleteFunc(objs, func(o model.Object) bool { return f.drops(o.Key().Kind) })...)
}

func (f policyFilter) Replace(kind model.Kind, objs []model.Object) {
	if !f.drops(kind) {
		f.Writer.Replace(kind, objs)
	}
}

func (f policyFilter) Refuse(o model.Object, problem error) {
	if !f.drops(o.Key().Kind) {
		f.Writer.Refuse(o, problem)
	}
}

// startCNI opens the journal and puts the endpoints of an earlier agent back.
func (a *Agent) startCNI(context.Context) error {
	w := a.store.Writer("cni")
	src, err := cni.New(cni.Config{
		Dir: filepath.Join(a.cfg.Paths.State, "ipam"), Quarantine: time.Duration(a.cfg.IPAM.QuarantineSeconds) * time.Second,
		Reserved: a.cfg.IPAM.Reserved, Run: a.cfg.Paths.Run, Ready: a.canServe, InUse: a.linux.PodAddrs,
		CheckLink: func(hostIf string) error {
			_, err := linux.IndexByName(hostIf)
			return err
		},
	}, w, a.store, a.log)
	if err != nil {
		return err
	}
	a.cni = src
	if err := src.Restore(); err != nil {
		return err
	}
	w.Complete()
	a.group.Go("cni", src.Run)
	return nil
}

// canServe is why CNI ADD cannot be served now, or nil.
func (a *Agent) canServe() error {
	if wait := a.waiting(); len(wait) > 0 {
		return fmt.Errorf("the agent is starting: waiting for %s", strings.Join(wait, ", "))
	}
	return nil
}

// follow hands on what the sources say of this node and its peers: its prefixes to the allocator, its peers and
// its MTU to the mesh.
func (a *Agent) follow(ctx context.Context, m *mesh.Mesh) error {
	var prefixes []netip.Prefix
	var mtu int
	peers := map[string][]netip.Addr{}
	for {
		config, nodes, devices := a.store.WatchKind(model.KindConfig), a.store.WatchKind(model.KindNode), a.store.WatchKind(model.KindDevice)
		snap := a.store.Snapshot()
		if now := route.PodPrefixes(snap, a.cfg.NodeName); now != nil && !slices.Equal(now, prefixes) {
			if err := a.cni.SetPools(now); err != nil {
				return fmt.Errorf("pools %v: %w", now, err)
			}
			prefixes = now
		}
		if dev, _, err := route.Underlay(snap); err == nil && dev.MTU != mtu {
			mtu = dev.MTU
			m.LocalMTU(mtu)
		}
		now := map[string][]netip.Addr{}
		for n := range model.All[*model.Node](snap, model.KindNode) {
			now[n.Name] = n.Addrs
		}
		if !maps.EqualFunc(now, peers, slices.Equal[[]netip.Addr]) {
			peers = now
			m.SetPeers(now)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-config:
		case <-nodes:
		case <-devices:
		}
	}
}

// examine looks for what is wrong on the host and not ours to change: at the start, when any firewall rule
// changed, and every ten seconds, or so seldom that it takes a fivehundredth of a processor; but no more often
// than every five seconds, since others may change theirs all the time.
func (a *Agent) examine(ctx context.Context) error {
	for {
		began := time.Now()
		var found []string
		drops, err := a.nft.ForeignDrops(ctx)
		if err != nil {
			return fmt.Errorf("look for foreign rules: %w", err)
		}
		for _, d := range drops {
			found = append(found, "foreign rules drop forwarded packets: "+d)
		}
		found = append(found, a.linux.Doctor(ctx)...)
		if err := a.lookForTranslators(ctx); err != nil {
			return err
		}
		a.mu.Lock()
		for _, f := range found {
			if !slices.Contains(a.findings, f) {
				a.incidents.add(f, "reported only: it is not ours to change")
			}
		}
		a.findings = found
		a.mu.Unlock()
		rest := max(10*time.Second, 500*time.Since(began))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Second):
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-a.nft.Changed():
		case <-time.After(rest):
		}
	}
}

// lookForTranslators says whether somebody else translates addresses on this host: then replies of such flows have
// to pass the stack, see plan.Settings.Tracked.
func (a *Agent) lookForTranslators(ctx context.Context) error {
	who, err := a.nft.ForeignNAT(ctx)
	if err != nil {
		return fmt.Errorf("look for foreign translation: %w", err)
	}
	f := &model.Feature{Name: model.ForeignNAT, State: "missing", Detail: "nobody else translates addresses here"}
	if len(who) > 0 {
		f.State, f.Detail = "active", strings.Join(who, ", ")+": replies of translated flows pass the stack"
	}
	a.features.Upsert(f)
	return nil
}

// tellFeatures writes what the drivers found out of this kernel.
func (a *Agent) tellFeatures() {
	for _, f := range slices.Concat(a.ebpf.Features(), a.nft.Features()) {
		a.features.Upsert(&f)
	}
	netkit := &model.Feature{Name: model.LinkNetkit, State: "off", Detail: "new pods get veth pairs; link in the configuration chooses"}
	if a.cfg.Link == model.LinkNetkit {
		netkit = a.linux.Netkit()
	}
	a.features.Upsert(netkit)
}

// installPlugin puts the CNI plugin and its configuration where the runtime looks for them.
func (a *Agent) installPlugin() error {
	if a.cfg.CNI.BinDir == "off" {
		return nil
	}
	plugin := a.cfg.CNI.Plugin
	if plugin == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find weft-cni beside the agent: %w", err)
		}
		plugin = filepath.Join(filepath.Dir(self), "weft-cni")
	}
	return cni.Install(cni.Installation{
		Plugin: plugin, BinDir: a.cfg.CNI.BinDir, ConfDir: a.cfg.CNI.ConfDir, ConfName: a.cfg.CNI.ConfName, Socket: socketPath(a.cfg),
	})
}
