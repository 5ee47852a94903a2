package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/fsnotify/fsnotify"
	corev1 "k8s.io/api/core/v1"

	"weft/internal/host"
)

// Runtime is a node's stand-in for kubelet and container runtime. It runs on the node
// as a process of its own, watches the lab's objects and makes the pods that are bound
// to the node run: network namespace, CNI ADD, containers, status. Pods outlive it; it
// finds them again by their directories, and undoes first what a dead one left half done.
type Runtime struct {
	node  string
	store *store
	log   *slog.Logger
	cni   *libcni.CNIConfig
	slots chan struct{} // limits how many pods start or stop at once

	mu      sync.Mutex
	workers map[string]*worker // by pod UID
}

// NewRuntime returns the runtime of a node. It uses the paths of the node's file system.
func NewRuntime(node string, log io.Writer) (*Runtime, error) {
	s, err := newStore(clusterPath)
	if err != nil {
		return nil, err
	}
	return &Runtime{
		node: node, store: s, workers: map[string]*worker{},
		log:   slog.New(slog.NewTextHandler(log, nil)),
		cni:   libcni.NewCNIConfigWithCacheDir([]string{cniBinPath}, cniCache, nil),
		slots: make(chan struct{}, 8),
	}, nil
}

// Run works until ctx ends.
func (r *Runtime) Run(ctx context.Context) error {
	for _, d := range []string{podsPath, confPath, netnsPath} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer w.Close()
	for _, d := range []string{filepath.Join(r.store.dir, objectsDir), confPath} {
		if err := w.Add(d); err != nil {
			return fmt.Errorf("watch %s: %w", d, err)
		}
	}
	if err := r.adopt(); err != nil {
		return err
	}
	for {
		if err := r.sync(ctx); err != nil {
			r.log.Error("read objects", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-w.Events:
			drain(w.Events)
		case err := <-w.Errors:
			r.log.Error("watch", "err", err)
		}
	}
}

// adopt takes over the pods that another runtime of this node started.
func (r *Runtime) adopt() error {
	files, err := filepath.Glob(filepath.Join(podsPath, "*", sandboxFile))
	if err != nil {
		return err
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		var s sandbox
		if err := json.Unmarshal(b, &s); err != nil { // the machine went down while it was written
			r.log.Error("read sandbox", "file", f, "err", err)
			continue
		}
		r.worker(s.UID).sandbox = &s // sync starts it, when it knows whether the pod is wanted
	}
	return nil
}

// sync tells every pod's worker what is wanted now.
func (r *Runtime) sync(ctx context.Context) error {
	objs, err := r.store.list("Pod")
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := map[string]bool{}
	for _, o := range objs {
		if nodeOf(o) != r.node {
			continue
		}
		uid := string(o.GetUID())
		seen[uid] = true
		pod, err := decode[corev1.Pod](o)
		if err != nil { // apply refuses what cannot be decoded
			r.log.Error("read pod", "err", err)
			continue
		}
		w := r.workers[uid]
		if w == nil {
			w = r.worker(uid)
		}
		w.tell(pod)
	}
	for uid, w := range r.workers {
		if !seen[uid] {
			w.tell(nil)
		}
		if !w.runs {
			w.runs = true
			go w.run(ctx)
		}
	}
	return nil
}

// worker makes the worker of a pod. The caller holds mu, or is alone.
func (r *Runtime) worker(uid string) *worker {
	w := &worker{r: r, uid: uid, poke: make(chan struct{}, 1)}
	r.workers[uid] = w
	return w
}

// worker is the life of one pod, in one goroutine.
type worker struct {
	r       *Runtime
	uid     string
	runs    bool     // guarded by Runtime.mu
	sandbox *sandbox // nil: none; used by run only
	status  podStatus

	mu   sync.Mutex
	pod  *corev1.Pod // what is wanted; nil: gone
	poke chan struct{}
}

// tell gives the worker a new wish.
func (w *worker) tell(pod *corev1.Pod) {
	w.mu.Lock()
	w.pod = pod
	w.mu.Unlock()
	select {
	case w.poke <- struct{}{}:
	default:
	}
}

func (w *worker) wanted() *corev1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pod == nil || w.pod.DeletionTimestamp != nil {
		return nil
	}
	return w.pod
}

const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 3 * time.Second
)

// run keeps the pod as it is wanted, until it is gone.
func (w *worker) run(ctx context.Context) {
	log := w.r.log.With("uid", w.uid)
	delay := firstRetry
	for ctx.Err() == nil {
		pod := w.wanted()
		if pod == nil && w.sandbox == nil {
			w.forget()
			return
		}
		err := w.step(ctx, pod)
		if err == nil {
			delay = firstRetry
			continue
		}
		if ctx.Err() != nil {
			return
		}
		log.Error("pod", "sandbox", w.sandbox, "err", err)
		if pod != nil {
			w.status.message = err.Error()
			w.publish(pod)
		}
		select {
		case <-ctx.Done():
		case <-time.After(delay):
		}
		delay = min(2*delay, lastRetry)
	}
}

// step does the next thing: stop what is not wanted or broken, start what is wanted,
// or wait while all is well.
func (w *worker) step(ctx context.Context, pod *corev1.Pod) error {
	if w.sandbox == nil {
		return w.inSlot(ctx, func() error { return w.start(ctx, pod) })
	}
	h, err := host.Open(w.sandbox.dir())
	switch {
	case err == nil && pod != nil:
		return w.follow(ctx, h, pod)
	case err == nil || errors.Is(err, host.ErrNotRunning):
		return w.inSlot(ctx, func() error { return w.stop(ctx, pod) })
	}
	return err
}

func (w *worker) inSlot(ctx context.Context, f func() error) error {
	select {
	case w.r.slots <- struct{}{}:
		defer func() { <-w.r.slots }()
		return f()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// follow publishes what the pod's containers do, until the pod dies or is not wanted.
func (w *worker) follow(ctx context.Context, h *host.Host, pod *corev1.Pod) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	updates := make(chan []host.Status, 1)
	gone := make(chan error, 1)
	go func() {
		gone <- h.Watch(ctx, func(list []host.Status) error {
			select {
			case updates <- list:
			case <-ctx.Done():
			}
			return nil
		})
	}()
	for {
		select {
		case list := <-updates:
			w.status.processes = list
			w.status.message = ""
			w.publish(pod)
		case <-w.poke:
			if pod = w.wanted(); pod == nil {
				return nil
			}
			w.publish(pod)
		case <-gone:
			return nil // step sees whether it died
		}
	}
}

// forget ends the worker: the pod is not wanted and nothing is left of it.
func (w *worker) forget() {
	w.r.mu.Lock()
	delete(w.r.workers, w.uid)
	w.r.mu.Unlock()
	w.mu.Lock()
	pod := w.pod
	w.mu.Unlock()
	if pod == nil {
		return
	}
	err := w.r.store.locked(func() error {
		r := ref{"Pod", pod.Namespace, pod.Name}
		o, err := w.r.store.get(r)
		if err != nil || o == nil || string(o.GetUID()) != w.uid {
			return err
		}
		return w.r.store.remove(r)
	})
	if err != nil {
		w.r.log.Error("remove object", "pod", pod.Name, "err", err)
	}
}
