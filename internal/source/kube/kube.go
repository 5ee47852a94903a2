// Package kube is the source that reads the cluster's objects from the Kubernetes API server.
//
// It lists and watches exactly the kinds that are asked for, pods of its own node only, in
// protobuf, and reads of each object only what weft uses (see convert/k8s and convert/wire). It keeps
// no copy of the objects: the store is the only one. It is not a Kubernetes client library:
// it writes nothing to the cluster, and of client-go it uses the connection alone (TLS,
// tokens and their rotation, kubeconfig files), not the typed clients and informers.
package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"slices"
	"sync"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"weft/internal/convert/k8s"
	"weft/internal/model"
)

// ErrNotFound is returned for an object that the API server says does not exist.
var ErrNotFound = errors.New("not found")

// Writer is where objects go.
type Writer interface {
	Upsert(objs ...model.Object)
	Delete(keys ...model.Key)
	Replace(kind model.Kind, objs []model.Object)
}

// Options say what is watched.
type Options struct {
	Node  string       // pods of this node only; empty: pods of all nodes
	Kinds []model.Kind // what is watched, at least one; see Kinds
	// Report, when not nil, is told what an operator should know: objects that were not
	// understood, and an API server that is away.
	Report func(what, action string)
}

// Kinds are the kinds that can be watched.
func Kinds() []model.Kind {
	return []model.Kind{model.KindNode, model.KindNamespace, model.KindPod, model.KindService, model.KindBackends}
}

// resource is how the API server knows a kind.
type resource struct {
	kind  model.Kind
	typ   k8s.Type
	path  string     // of the collection, below the server's URL
	query url.Values // for list and watch
}

// resourceOf returns the kind's resource.
func resourceOf(k model.Kind, node string) (resource, error) {
	r := resource{kind: k, typ: k8s.Type{APIVersion: "v1"}, query: url.Values{}}
	switch k {
	case model.KindNode:
		r.typ.Kind, r.path = "Node", "/api/v1/nodes"
	case model.KindNamespace:
		r.typ.Kind, r.path = "Namespace", "/api/v1/namespaces"
	case model.KindPod:
		r.typ.Kind, r.path = "Pod", "/api/v1/pods"
		if node != "" {
			r.query.Set("fieldSelector", "spec.nodeName="+node)
		}
	case model.KindService:
		r.typ.Kind, r.path = "Service", "/api/v1/services"
	case model.KindBackends:
		r.typ = k8s.Type{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"}
		r.path = "/apis/discovery.k8s.io/v1/endpointslices"
	default:
		return r, fmt.Errorf("kind %s does not come from the API server", k)
	}
	return r, nil
}

// Config returns how to reach the API server: by a kubeconfig file, or, if that is empty, by the pod's service account,
// whose token file is read again as it is rotated. APIServer, if not empty, overrides the server's URL.
func Config(kubeconfig, apiServer string) (*rest.Config, error) {
	if kubeconfig != "" {
		cfg, err := clientcmd.BuildConfigFromFlags(apiServer, kubeconfig)
		if err != nil {
			return nil, fmt.Errorf("kubeconfig %s: %w", kubeconfig, err)
		}
		return cfg, nil
	}
	const dir = "/var/run/secrets/kubernetes.io/serviceaccount/"
	cfg, err := rest.InClusterConfig()
	switch {
	case err == nil:
	case errors.Is(err, rest.ErrNotInCluster) && apiServer != "":
		// The kubelet sets the variables only with a cluster service; the override does without.
		cfg = &rest.Config{BearerTokenFile: dir + "token"}
		cfg.CAFile = dir + "ca.crt"
	default:
		return nil, fmt.Errorf("no kubeconfig is set, and the service account cannot be used: %w", err)
	}
	if apiServer != "" {
		cfg.Host = apiServer
	}
	return cfg, nil
}

// Status is how the watch of one kind is.
type Status struct {
	Kind   model.Kind
	Synced bool      // the complete state has been received at least once
	Err    error     // why there is no connection now; nil if there is
	Since  time.Time // of Err, or of the last complete state, or of the start
}

// Source watches the API server.
type Source struct {
	api      *client
	kinds    []resource
	w        Writer
	complete func()
	report   func(what, action string)
	log      *slog.Logger

	mu     sync.Mutex
	status map[model.Kind]Status // guarded by mu
	away   bool                  // guarded by mu: the outage has been reported
	broken map[string]string     // guarded by mu: what was not understood of an object, by its name
}

// New returns a source; it connects to nothing. Complete is called once, when the initial state of every kind is in.
func New(cfg *rest.Config, o Options, w Writer, complete func(), log *slog.Logger) (*Source, error) {
	api, err := newClient(cfg)
	if err != nil {
		return nil, err
	}
	s := &Source{api: api, w: w, complete: complete, report: o.Report, log: log, status: map[model.Kind]Status{}, broken: map[string]string{}}
	if s.report == nil {
		s.report = func(string, string) {}
	}
	for _, k := range o.Kinds {
		r, err := resourceOf(k, o.Node)
		if err != nil {
			return nil, err
		}
		s.kinds = append(s.kinds, r)
		s.status[k] = Status{Kind: k, Since: time.Now()}
	}
	if len(s.kinds) == 0 {
		return nil, errors.New("no kind to watch")
	}
	return s, nil
}

// Run watches until ctx ends and returns its error. An API server that is away, or that answers with errors, is tried
// again without end; each kind does so on its own.
func (s *Source) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, r := range s.kinds {
		wg.Go(func() {
			w := &watcher{Source: s, res: r}
			w.run(ctx)
		})
	}
	wg.Wait()
	return ctx.Err()
}

// Status returns the state of every watch, in the order of Options.Kinds.
func (s *Source) Status() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Status, 0, len(s.kinds))
	for _, r := range s.kinds {
		out = append(out, s.status[r.kind])
	}
	return out
}

// silence is how long the first answer of the API server may take before it counts as away. A server that is
// cut off by the network gives no error for much longer.
const silence = 3 * time.Second

// Away reports whether some kind has never been received and cannot be, as it seems.
func (s *Source) Away() bool { return slices.ContainsFunc(s.Status(), Status.away) }

func (st Status) away() bool { return !st.Synced && (st.Err != nil || time.Since(st.Since) > silence) }

// Problems says what is wrong now: watches that do not stand, and objects that were not understood.
func (s *Source) Problems() []string {
	var out []string
	for _, st := range s.Status() {
		switch since := st.Since.Format(time.TimeOnly); {
		case st.Err != nil:
			out = append(out, fmt.Sprintf("%v (since %s)", st.Err, since))
		case st.away():
			out = append(out, fmt.Sprintf("watch %s: API server %s: no answer (since %s)", st.Kind, s.api.base.Host, since))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.AppendSeq(out, maps.Values(s.broken))
}

// understood notes whether an object was understood, and reports false if it was not and that is new.
func (s *Source) understood(item k8s.Item) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := item.Name()
	if item.Err == nil {
		delete(s.broken, name)
		return true
	}
	_, known := s.broken[name]
	s.broken[name] = item.Err.Error()
	return known
}

// synced notes that the complete state of a kind has been received.
func (s *Source) synced(k model.Kind) {
	if s.last(k) {
		s.complete()
	}
}

// last reports whether k was the last kind that was not synced.
func (s *Source) last(k model.Kind) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := !s.status[k].Synced
	s.status[k] = Status{Kind: k, Synced: true, Since: time.Now()}
	for _, st := range s.status {
		if !st.Synced {
			return false
		}
	}
	return first
}

// connected notes that a watch stands.
func (s *Source) connected(k model.Kind) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.status[k]; st.Err != nil {
		s.log.Info("API server is back", "kind", k, "away", time.Since(st.Since).Round(time.Millisecond))
		s.status[k] = Status{Kind: k, Synced: st.Synced, Since: time.Now()}
	}
	s.away = false
}

// failed notes the try-th failure in a row.
func (s *Source) failed(k model.Kind, try int, err error) {
	s.mu.Lock()
	st := s.status[k]
	if st.Err == nil {
		st.Since = time.Now()
		s.log.Warn("watch failed, trying again", "kind", k, "err", err)
	}
	st.Err = err
	s.status[k] = st
	tell := try >= reportAfter && !s.away
	s.away = s.away || tell
	s.mu.Unlock()
	if tell {
		s.report("API server "+s.api.base.Host+" cannot be used", fmt.Sprintf("the last known objects are used, trying again: %v", err))
	}
}

// PodByName reads a pod from the API server, past the watch, which may lag. ErrNotFound is wrapped where it does not
// exist. It lists with a name, which the API server answers as fast as a get, so that the permissions of the
// watches are enough.
func (s *Source) PodByName(ctx context.Context, namespace, name string) (*model.Pod, error) {
	what := fmt.Sprintf("get pod %s/%s", namespace, name)
	path := "/api/v1/namespaces/" + url.PathEscape(namespace) + "/pods"
	resp, err := s.api.get(ctx, path, url.Values{"fieldSelector": {"metadata.name=" + name}}, acceptObject)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	defer resp.Body.Close()
	p, err := readPage(resp, k8s.Type{APIVersion: "v1", Kind: "Pod"}, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if len(p.items) == 0 {
		return nil, fmt.Errorf("%s: %w", what, ErrNotFound)
	}
	pod, ok := p.items[0].Object.(*model.Pod)
	if !ok || pod.Namespace != namespace || pod.Name != name {
		return nil, fmt.Errorf("%s: the API server sent something else: %q, %v", what, p.items[0].Name(), p.items[0].Err) //nolint:errorlint // it may be nil
	}
	return pod, nil
}
