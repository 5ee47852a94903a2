// Package cni serves the container runtime: what weft-cni asks over the agent's socket becomes
// Endpoint rows, and the answer is given when the kernel holds them.
//
// It is a source like any other: it writes intent and waits for statuses. It does not touch the
// kernel, and does not decide what a pod's network consists of (compile/route). Addresses are
// package ipam's, whose journal is also its memory over restarts.
package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"weft/internal/api"
	"weft/internal/ipam"
	"weft/internal/model"
	"weft/internal/run"
)

// Writer is where endpoints go: a store.Writer.
type Writer interface {
	Upsert(objs ...model.Object)
	Delete(keys ...model.Key)
	Replace(kind model.Kind, objs []model.Object)
}

// Store is what has become of them: a store.Store.
type Store interface {
	Snapshot() model.Snapshot
	// WaitDone returns nil once the kernel holds everything that the object caused.
	WaitDone(ctx context.Context, owner model.Key) error
	// WaitGone returns nil once the kernel holds nothing of it any more.
	WaitGone(ctx context.Context, owner model.Key) error
}

// Config is what New needs. Only Dir is needed; the functions may be nil.
type Config struct {
	Dir        string // of the allocation journal; must survive a reboot
	Run        string // directory of the agent's socket, where the plugin leaves tombstones; "": none are looked for
	Quarantine time.Duration
	Reserved   []netip.Prefix

	// AddTimeout bounds an ADD. 0: 20 s, which a loaded node does not need and kubelet (4 min) does not wait for.
	AddTimeout time.Duration
	// Ready returns why ADD cannot be served now, or nil. Limited likewise, for what running pods suffer from, too.
	Ready, Limited func() error
	// CheckLink returns what is wrong with the host side of a pod's link, for CHECK.
	CheckLink func(hostIf string) error
	// InUse returns the addresses that the kernel routes to links of ours, with the links' names. With it, not even a
	// journal that lost its last records unnoticed leads to an address that two pods have.
	InUse func() (map[netip.Addr]string, error)

	// For tests. Nil or empty: the machine's own.
	FS    ipam.FS
	Clock run.Clock
	Boot  string
	// Identify returns the identity of the network namespace at the path.
	Identify func(path string) (string, error)
	// Go runs what an answer does not wait for. Nil: a goroutine.
	Go func(func())
}

// Source serves the methods of the plugin.
type Source struct {
	// PodByName asks the cluster for a pod that the store does not know yet; nil: nobody can be asked.
	// Set it before Register.
	PodByName func(ctx context.Context, namespace, name string) (*model.Pod, error)

	cfg    Config
	alloc  *ipam.Allocator
	writer Writer
	store  Store
	log    *slog.Logger
	life   context.Context // ends with Close
	end    context.CancelFunc
	tasks  sync.WaitGroup // what runs in the background

	mu    sync.Mutex
	turns map[string]*turn     // by endpoint ID: who works on it, and who waits
	dels  map[string]time.Time // by endpoint ID: start of its last DEL
}

// New opens the journal. A damaged one is salvaged, and told by Damage.
func New(cfg Config, w Writer, s Store, log *slog.Logger) (*Source, error) {
	if cfg.FS == nil {
		cfg.FS = ipam.Dir(cfg.Dir)
	}
	if cfg.Clock == nil {
		cfg.Clock = run.System()
	}
	if cfg.AddTimeout == 0 {
		cfg.AddTimeout = 20 * time.Second
	}
	if cfg.Identify == nil {
		cfg.Identify = identify
	}
	if cfg.Boot == "" {
		id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return nil, fmt.Errorf("read the boot ID: %w", err)
		}
		cfg.Boot = strings.TrimSpace(string(id))
	}
	alloc, err := ipam.Open(cfg.FS, cfg.Clock, ipam.Options{
		Boot: cfg.Boot, Reserved: cfg.Reserved, Quarantine: cfg.Quarantine, Salvage: true,
	})
	if err != nil {
		return nil, fmt.Errorf("journal in %s: %w", cfg.Dir, err)
	}
	src := &Source{
		cfg: cfg, alloc: alloc, writer: w, store: s, log: log,
		turns: map[string]*turn{}, dels: map[string]time.Time{},
	}
	src.life, src.end = context.WithCancel(context.Background())
	if src.cfg.Go == nil {
		src.cfg.Go = func(f func()) { src.tasks.Go(f) }
	}
	if d := src.Damage(); d != nil {
		log.Error("the address journal was damaged and has been salvaged; the old file is kept", "error", d,
			"kept", filepath.Join(cfg.Dir, ipam.JournalName+".damaged"))
	}
	return src, nil
}

// Damage returns what was found wrong in the journal, or nil.
func (s *Source) Damage() error {
	if d := s.alloc.Salvaged(); d != nil {
		return d
	}
	return nil
}

// Restore puts the endpoints of an earlier agent into the store, after releasing those that are dead: deleted while no
// agent was there, or without a network namespace. The caller then says that the source is complete.
func (s *Source) Restore() error {
	leases := s.alloc.Leases()
	buried := s.tombstones()
	var dead []string
	var live []model.Object
	for _, l := range leases {
		switch t, deleted := buried[l.Endpoint.ID]; {
		case deleted && l.Since.Before(t.Started):
			dead = append(dead, l.Endpoint.ID)
			s.log.Info("released: deleted while the agent was away", "endpoint", l.Endpoint.ID, "pod", l.Endpoint.Pod)
		case !s.alive(&l):
			dead = append(dead, l.Endpoint.ID)
			s.log.Info("released: its network namespace is gone", "endpoint", l.Endpoint.ID, "pod", l.Endpoint.Pod)
		default:
			live = append(live, &l.Endpoint)
		}
	}
	if err := s.alloc.Release("its pod was gone when the agent started", dead...); err != nil {
		s.log.Error("release endpoints", "error", err)
	}
	s.bury(buried)
	s.writer.Replace(model.KindEndpoint, live)
	if s.cfg.InUse == nil {
		return nil
	}
	used, err := s.cfg.InUse()
	if err != nil {
		return fmt.Errorf("find addresses in use: %w", err)
	}
	for x, link := range used {
		if err := s.alloc.Suspect("the kernel still routed it to "+link+" when the agent started", x); err != nil {
			s.log.Error("suspect address", "addr", x, "error", err)
		}
	}
	return nil
}

// Swept is to be called when the kernel holds no link of ours any more that is not in the plan: addresses that were
// suspected to be in use rest like those of deleted pods, and become free.
func (s *Source) Swept() {
	if err := s.alloc.Absolve(); err != nil {
		s.log.Error("end suspicions", "error", err) // ended all the same; after a restart, to be ended again
	}
}

// Run looks every minute for pods whose network namespace went away without a DEL, and for DELs that the
// plugin could not deliver. It returns when ctx ends.
func (s *Source) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			s.Reap(ctx)
		}
	}
}

// Close ends what runs in the background and closes the journal.
func (s *Source) Close() error {
	s.end()
	s.tasks.Wait()
	return s.alloc.Close()
}

// SetPools changes the prefixes that addresses are given from.
func (s *Source) SetPools(pools []netip.Prefix) error {
	s.alloc.SetPools(pools, s.cfg.Reserved)
	return nil
}

// Pools returns the pools and their use.
func (s *Source) Pools() api.PoolsReply {
	pools, reserved := s.alloc.Pools()
	return api.PoolsReply{Prefixes: pools, Reserved: reserved, Use: s.alloc.Use()}
}

// Explain says who has, or had, the addresses that the query matches (see api.ExplainRequest).
func (s *Source) Explain(query string) []api.Holding { return s.alloc.Explain(query) }

// Counters returns the allocator's counters.
func (s *Source) Counters() ipam.Counters { return s.alloc.Counters() }

// Register makes the server serve the methods.
func (s *Source) Register(srv *api.Server) {
	type none = struct{}
	srv.Handle(api.MethodCNIAdd, api.Func(s.Add))
	srv.Handle(api.MethodCNIDel, api.Func(func(ctx context.Context, a api.Attachment) (none, error) { return none{}, s.Del(ctx, a) }))
	srv.Handle(api.MethodCNICheck, api.Func(func(ctx context.Context, r api.CheckRequest) (none, error) { return none{}, s.Check(ctx, r) }))
	srv.Handle(api.MethodCNIGC, api.Func(s.GC))
	srv.Handle(api.MethodCNIStatus, api.Func(func(ctx context.Context, _ none) (api.StatusReply, error) { return s.Status(ctx) }))
	srv.Handle(api.MethodExplain, api.Func(func(_ context.Context, r api.ExplainRequest) (api.ExplainReply, error) {
		return api.ExplainReply{Holdings: s.Explain(r.Query)}, nil
	}))
	srv.Handle(api.MethodPools, api.Func(func(context.Context, none) (api.PoolsReply, error) { return s.Pools(), nil }))
}

// tombstones reads the DELs that the plugin left, by endpoint ID.
func (s *Source) tombstones() map[string]api.Attachment {
	out := map[string]api.Attachment{}
	if s.cfg.Run == "" {
		return out
	}
	dir := filepath.Join(s.cfg.Run, api.TombstoneDir)
	files, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Error("read tombstones", "error", err)
	}
	for _, f := range files {
		var a api.Attachment
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err == nil {
			err = json.Unmarshal(b, &a)
		}
		if err == nil && a.TombstoneName() != f.Name() {
			err = fmt.Errorf("%s does not say what its name says", f.Name())
		}
		if err != nil {
			s.log.Error("read tombstone", "error", err)
			continue
		}
		out[a.ID()] = a
	}
	return out
}

// bury removes tombstones that have been executed.
func (s *Source) bury(executed map[string]api.Attachment) {
	for _, a := range executed {
		err := os.Remove(filepath.Join(s.cfg.Run, api.TombstoneDir, a.TombstoneName()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.Error("remove tombstone", "error", err)
		}
	}
}
