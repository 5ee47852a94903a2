// Package agent is the node daemon: it wires sources, store, compilers, drivers and
// servers by hand, in the order in which data flows.
//
// It decides nothing itself: whoever reads Run knows the whole agent. When it ends, it leaves the
// network as it is; the next agent adopts it.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"weft/internal/api"
	"weft/internal/compile/policy"
	"weft/internal/compile/route"
	"weft/internal/datapath/ebpf"
	"weft/internal/datapath/linux"
	"weft/internal/datapath/nft"
	"weft/internal/mesh"
	"weft/internal/model"
	"weft/internal/plan"
	"weft/internal/reconcile"
	"weft/internal/run"
	"weft/internal/source/cni"
	"weft/internal/store"
	"weft/internal/trial"
)

// Agent is one running daemon. Make it with Run.
type Agent struct {
	cfg     model.Config
	version string
	started time.Time
	clock   run.Clock
	log     *slog.Logger
	metrics metrics

	store     *store.Store
	loop      *reconcile.Loop
	group     *run.Group
	incidents *incidents
	features  *store.Writer
	linux     *linux.Driver
	nft       *nft.Driver
	ebpf      *ebpf.Driver
	cni       *cni.Source
	cluster   cluster
	denied    *recent // packets
	logged    *recent // first packets that rules log
	trials    *trial.Trials
	mesh      *mesh.Mesh

	mu       sync.Mutex
	findings []string // guarded by mu: what is wrong on the host now
}

// Run is the daemon. It returns when ctx ends, with nil, or when the agent cannot start.
func Run(ctx context.Context, cfg model.Config, version string, logTo io.Writer) error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.LogLevel)); err != nil {
		return fmt.Errorf("logLevel: %w", err)
	}
	log := slog.New(slog.NewTextHandler(logTo, &slog.HandlerOptions{Level: level}))
	unlock, err := api.Lock(cfg.Paths.Run)
	if err != nil {
		return err
	}
	defer unlock()
	a := &Agent{
		cfg: cfg, version: version, clock: run.System(), started: time.Now(), log: log,
		metrics: newMetrics(), denied: newRecent(), logged: newRecent(),
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a.group = run.NewGroup(ctx, log)
	if a.store, err = store.New(a.clock); err != nil {
		return err
	}
	a.features = a.store.Writer("kernel")
	a.incidents = newIncidents(a.store.Writer("host"), a.clock, log)
	if err := a.openDrivers(); err != nil {
		return err
	}
	a.loop = reconcile.New(a.store, a.clock, log, a.stages()...)
	log.Info("weft agent starts", "version", version, "node", cfg.NodeName, "backend", cfg.Backend.Type, "source", cfg.Source.Type)
	if err := a.start(ctx); err != nil {
		cancel()
		a.group.Wait()
		return err
	}
	<-ctx.Done()
	a.group.Wait()
	log.Info("weft agent ends; the network stays as it is")
	return errors.Join(a.cni.Close(), a.store.Close())
}

func (a *Agent) openDrivers() (err error) {
	if a.linux, err = linux.New(a.log.With("driver", "linux")); err != nil {
		return fmt.Errorf("open the netlink driver: %w", err)
	}
	if a.nft, err = nft.New(a.log.With("driver", "nft"), linux.ForgetFlows); err != nil {
		return fmt.Errorf("open the nftables driver: %w", err)
	}
	if a.ebpf, err = ebpf.New(a.cfg.Paths.BPF, a.log.With("driver", "ebpf")); err != nil {
		return fmt.Errorf("open the eBPF driver: %w", err)
	}
	a.linux.ShutNewLinks(a.ebpf.Shut)
	return nil
}

// stages are the drivers in the order in which new rows are applied.
func (a *Agent) stages() []reconcile.Stage {
	return []reconcile.Stage{
		{Name: "linux", Driver: a.linux, Kinds: linux.Kinds()},
		{Name: "nft", Driver: a.nft, Kinds: []plan.Kind{plan.KindMasquerade, plan.KindHostPort}},
		{Name: "ebpf", Driver: a.ebpf, Kinds: []plan.Kind{
			plan.KindIdentity, plan.KindPeerSet, plan.KindPolicySet, plan.KindAddress, plan.KindVIP, plan.KindGuard,
			plan.KindSettings, plan.KindHook, plan.KindRemote, plan.KindLocal,
		}},
	}
}

// compiler is all compilers as one: an owner's rows are those that each has for it.
func compiler(node string) store.Compiler {
	engine := policy.New(node)
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

// start starts everything, in flow order: sources, compilers, drivers, servers.
func (a *Agent) start(ctx context.Context) error {
	if err := a.startSources(ctx); err != nil {
		return err
	}
	a.group.Go("trials", a.trials.Run)
	a.store.Seal()
	a.group.Go("derive", func(ctx context.Context) error {
		return a.store.Derive(ctx, compiler(a.cfg.NodeName))
	})
	a.group.Go("reconcile", a.loop.Run)
	a.group.Go("watch linux", func(ctx context.Context) error { return a.linux.Watch(ctx, a.repair) })
	a.group.Go("watch nft", func(ctx context.Context) error { return a.nft.Watch(ctx, a.repair) })
	a.group.Go("watch ebpf", func(ctx context.Context) error { return a.ebpf.Watch(ctx, a.repair) })
	a.group.Go("examine", a.examine)
	if !a.cfg.Policy.Disabled {
		a.group.Go("records", a.watchRecords)
	}
	a.group.Go("http", a.serveHTTP)
	a.group.Go("ready", a.becomeReady)
	return a.serveSocket()
}

// repair is called by a driver that sees a row of ours changed by somebody else.
func (a *Agent) repair(k plan.Key, what string) {
	if len(a.store.Again(k)) > 0 {
		a.incidents.add(what, "restored")
	}
}

// serveSocket starts the agent's own API.
func (a *Agent) serveSocket() error {
	srv := api.NewServer()
	a.cni.Register(srv)
	srv.Handle(api.MethodShow, api.StreamFunc(a.show))
	srv.Handle(api.MethodStatus, api.Func(func(context.Context, struct{}) (api.Status, error) { return a.status(), nil }))
	srv.Handle(api.MethodDoctor, api.Func(func(context.Context, struct{}) (api.Doctor, error) { return a.doctor(), nil }))
	srv.Handle(api.MethodCan, api.Func(a.can))
	srv.Handle(api.MethodPolicyOrder, api.Func(a.policyOrder))
	srv.Handle(api.MethodPolicyUnused, api.Func(a.policyUnused))
	srv.Handle(api.MethodPolicyDiff, api.Func(a.policyDiff))
	srv.Handle(api.MethodService, api.Func(a.explainService))
	srv.Handle(api.MethodWhy, api.StreamFunc(a.why))
	l, err := api.Listen(socketPath(a.cfg))
	if err != nil {
		return err
	}
	a.group.Go("socket", func(ctx context.Context) error { return srv.Serve(ctx, l) })
	return nil
}

func socketPath(cfg model.Config) string { return cfg.Paths.Run + "/weft.sock" }

// becomeReady waits until the agent can serve pods, says so, and installs the plugin: kubelet starts pods as
// soon as it sees the configuration.
func (a *Agent) becomeReady(ctx context.Context) error {
	swept, complete := a.loop.Swept(), a.store.Complete()
	for {
		intent, rows := a.store.Watch()
		if len(a.waiting()) == 0 {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-intent:
		case <-rows:
		case <-swept:
			swept = nil // closed for good
		case <-complete:
			complete = nil
		case <-time.After(time.Second): // that the API server is away is in no table
		}
	}
	a.tellFeatures()
	if err := a.installPlugin(); err != nil {
		return err
	}
	a.log.Info("ready: pods can be served", "after", time.Since(a.started).Round(time.Millisecond), "offline", a.cluster.offline())
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-a.loop.Swept():
	}
	debug.FreeOSMemory() // what starting took, above all to read the types of the programs, is not needed again
	a.cni.Swept()
	return nil
}
