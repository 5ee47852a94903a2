// Package kubelet is the lab's stand-in for kubelet and the container runtime: on its
// node it makes the pods that are bound to the node run, through the CNI plugin.
//
// It pulls no images, runs no probes and knows no volumes. A container is a program of
// this machine, or the built-in responder on the ports that it declares.
package kubelet

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
	"weft/internal/lab/objects"
)

// Paths on a node; all are the node's own.
const (
	StoreDir = "/opt/weft/cluster"      // the lab's objects
	PodsDir  = "/var/lib/weft-lab/pods" // a directory for each pod, named by its UID
	ConfDir  = "/etc/cni/net.d"

	cniBinDir = "/opt/cni/bin"
	cniCache  = "/var/lib/cni"
)

// Kubelet watches the lab's objects and runs the node's pods: network namespace, CNI
// ADD, containers, status. Pods outlive it; it finds them again by their directories,
// and undoes first what a dead one left half done.
type Kubelet struct {
	node     string
	initArgs []string
	store    *objects.Store
	log      *slog.Logger
	cni      *libcni.CNIConfig
	slots    chan struct{} // limits how many pods start or stop at once

	mu      sync.Mutex
	workers map[string]*worker // by pod UID
}

// New returns the kubelet of a node, which runs on it. initArgs is the command that
// makes this program pid 1 of a pod (see host.Start).
func New(node string, initArgs []string, log io.Writer) (*Kubelet, error) {
	s, err := objects.New(StoreDir)
	if err != nil {
		return nil, err
	}
	return &Kubelet{
		node: node, initArgs: initArgs, store: s, workers: map[string]*worker{},
		log:   slog.New(slog.NewTextHandler(log, nil)),
		cni:   libcni.NewCNIConfigWithCacheDir([]string{cniBinDir}, cniCache, nil),
		slots: make(chan struct{}, 8),
	}, nil
}

// Run works until ctx ends.
func (k *Kubelet) Run(ctx context.Context) error {
	for _, d := range []string{PodsDir, ConfDir, netnsPath} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer func() { _ = w.Close() }()
	for _, d := range []string{k.store.Dir(), ConfDir} {
		if err := w.Add(d); err != nil {
			return fmt.Errorf("watch %s: %w", d, err)
		}
	}
	if err := k.adopt(); err != nil {
		return err
	}
	for {
		if err := k.sync(ctx); err != nil {
			k.log.Error("read objects", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-w.Events:
			objects.Drain(w.Events)
		case err := <-w.Errors:
			k.log.Error("watch", "err", err)
		}
	}
}

// adopt takes over the pods that another kubelet of this node started.
func (k *Kubelet) adopt() error {
	files, err := filepath.Glob(filepath.Join(PodsDir, "*", sandboxFile))
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
			k.log.Error("read sandbox", "file", f, "err", err)
			continue
		}
		k.worker(s.UID).sandbox = &s // sync starts it, when it knows whether the pod is wanted
	}
	return nil
}

// sync tells every pod's worker what is wanted now.
func (k *Kubelet) sync(ctx context.Context) error {
	objs, err := k.store.List("Pod")
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	seen := map[string]bool{}
	for _, o := range objs {
		if objects.NodeOf(o) != k.node {
			continue
		}
		uid := string(o.GetUID())
		seen[uid] = true
		pod, err := objects.Decode[corev1.Pod](o)
		if err != nil { // apply refuses what cannot be decoded
			k.log.Error("read pod", "err", err)
			continue
		}
		w := k.workers[uid]
		if w == nil {
			w = k.worker(uid)
		}
		w.tell(pod)
	}
	for uid, w := range k.workers {
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
func (k *Kubelet) worker(uid string) *worker {
	w := &worker{k: k, uid: uid, poke: make(chan struct{}, 1)}
	k.workers[uid] = w
	return w
}

// worker is the life of one pod, in one goroutine.
type worker struct {
	k       *Kubelet
	uid     string
	runs    bool     // guarded by Kubelet.mu
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
	log := w.k.log.With("uid", w.uid)
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
	case w.k.slots <- struct{}{}:
		defer func() { <-w.k.slots }()
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
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_ = h.Watch(ctx, func(list []host.Status) error {
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
	w.k.mu.Lock()
	delete(w.k.workers, w.uid)
	w.k.mu.Unlock()
	w.mu.Lock()
	pod := w.pod
	w.mu.Unlock()
	if pod == nil {
		return
	}
	err := w.k.store.Locked(func() error {
		r := objects.Ref{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name}
		o, err := w.k.store.Get(r)
		if err != nil || o == nil || string(o.GetUID()) != w.uid {
			return err
		}
		return w.k.store.Remove(r)
	})
	if err != nil {
		w.k.log.Error("remove object", "pod", pod.Name, "err", err)
	}
}
