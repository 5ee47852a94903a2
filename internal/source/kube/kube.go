// Package kube is the source that reads the cluster's objects from the Kubernetes API server.
//
// It lists and watches exactly the kinds that are asked for, pods of its own node only, in
// protobuf, and reads of each object only what weft uses (see convert/k8s and convert/wire). With policy it watches
// NetworkPolicies and every policy API that has a CustomResourceDefinition, and, once there is a policy, pods of all
// nodes and whatever else policies ask for. It keeps
// no copy of the objects: the store is the only one. It is not a Kubernetes client library:
// of client-go it uses the connection alone (TLS,
// tokens and their rotation, kubeconfig files), not the typed clients and informers. It writes nothing to the cluster
// but what Policy.Languages asks for: definitions that are missing, and the statuses of policies.
package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"weft/internal/convert/k8s"
	"weft/internal/convert/language"
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

// PolicyWriter is where what policies became goes.
type PolicyWriter interface {
	Writer
	// Refuse keeps an object that is not used, so that it is shown with the reason.
	Refuse(o model.Object, problem error)
}

// Options say what is watched.
type Options struct {
	Node  string       // pods of this node only; empty: pods of all nodes
	Kinds []model.Kind // what is watched in any case, at least one; see Kinds
	// Report, when not nil, is told what an operator should know: objects that were not
	// understood, and an API server that is away.
	Report func(what, action string)
	Policy *Policy // nil: no policies, and nothing that only they need
}

// Policy says how policies are followed.
type Policy struct {
	// Writer returns a writer of its own for a watch, once for each name: "tiers.crd.antrea.io", "pods of other nodes".
	Writer func(watch string) PolicyWriter
	// Languages are the languages whose CustomResourceDefinitions are installed where they are missing, and whose
	// objects get a status, by the agent that holds the lease. Empty: nothing is ever written.
	Languages []string
	// Realized, when not nil, waits until what the store holds now is in force on this node.
	Realized func(context.Context) error
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

// Status is how one watch is.
type Status struct {
	Watch  string    // "nodes", "tiers.crd.antrea.io"
	Synced bool      // the complete state has been received at least once
	Err    error     // why there is no connection now; nil if there is
	Since  time.Time // of Err, or of the last complete state, or of the start
}

// Source watches the API server.
type Source struct {
	api      *client
	opts     Options
	core     []resource              // of Options.Kinds
	policies []resource              // of all languages; empty without policy
	writers  map[string]PolicyWriter // of Policy.Writer, by watch
	w        Writer
	complete func()
	log      *slog.Logger
	linger   time.Duration // how long a watch that only policies need outlives the need
	patience time.Duration // how long policies wait for what they are the first to need
	wake     chan struct{} // something that adjust looks at has changed; capacity 1
	office   *office       // nil: nothing is written to the cluster

	mu       sync.Mutex
	watches  map[string]*watch         // guarded by mu: those that stand or should, by name
	crds     map[string]bool           // guarded by mu: names of the cluster's CustomResourceDefinitions that are a language's
	needs    map[string]language.Needs // guarded by mu: of the objects of each watch of policies
	services bool                      // guarded by mu: see SetServices
	looking  int                       // guarded by mu: calls of Look
	counting bool                      // guarded by mu: this agent counts where policies are in force
	back     map[string]string         // guarded by mu: see SetTakenBack
	done     bool                      // guarded by mu: complete was called
	moved    chan struct{}             // guarded by mu: closed and replaced when a watch is synced
	away     bool                      // guarded by mu: the outage has been reported
	broken   map[string]problem        // guarded by mu: what was not understood, by the object's name
}

// problem is what was not understood of an object.
type problem struct {
	watch string
	err   error
}

// New returns a source; it connects to nothing. Complete is called once, when the initial state is in: of every kind,
// of all policies, and of what these need.
func New(cfg *rest.Config, o Options, w Writer, complete func(), log *slog.Logger) (*Source, error) {
	api, err := newClient(cfg)
	if err != nil {
		return nil, err
	}
	s := &Source{
		api: api, opts: o, w: w, complete: complete, log: log, linger: 30 * time.Second, patience: 15 * time.Second, wake: make(chan struct{}, 1),
		watches: map[string]*watch{}, crds: map[string]bool{}, needs: map[string]language.Needs{}, moved: make(chan struct{}),
		broken: map[string]problem{},
	}
	if s.opts.Report == nil {
		s.opts.Report = func(string, string) {}
	}
	for _, k := range o.Kinds {
		r, err := coreResource(k, o.Node)
		if err != nil {
			return nil, err
		}
		s.core = append(s.core, r)
	}
	if len(s.core) == 0 {
		return nil, errors.New("no kind to watch")
	}
	if o.Policy != nil {
		s.policies, s.writers = policies(), map[string]PolicyWriter{remoteWatch: o.Policy.Writer(remoteWatch)}
		for _, r := range s.policies {
			// Of two that write one key the store takes the first by name: Calico's new group before its old one.
			s.writers[r.name] = o.Policy.Writer(strings.Replace(r.name, ".crd.projectcalico.org", ".projectcalico.org (crd)", 1))
		}
		if len(o.Policy.Languages) > 0 {
			s.office = newOffice(s)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range s.desired() {
		s.watches[name] = s.newWatch(name)
	}
	return s, nil
}

// Status returns the state of every watch that should stand, in order: those of Options.Kinds first.
func (s *Source) Status() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Status
	for _, name := range s.desired() {
		if w := s.watches[name]; w != nil {
			out = append(out, w.Status)
		}
	}
	return out
}

// silence is how long the first answer of the API server may take before it counts as away. A server that is
// cut off by the network gives no error for much longer.
const silence = 3 * time.Second

// Away reports whether something has never been received and cannot be, as it seems.
func (s *Source) Away() bool { return slices.ContainsFunc(s.Status(), Status.away) }

func (st Status) away() bool {
	return !st.Synced && (st.Err != nil || time.Since(st.Since) > silence) && code(st.Err) != http.StatusNotFound
}

// Problems says what is wrong now: watches that do not stand, and objects that were not understood.
func (s *Source) Problems() []string {
	var out []string
	for _, st := range s.Status() {
		switch since := st.Since.Format(time.TimeOnly); {
		case st.Err != nil:
			out = append(out, fmt.Sprintf("%v (since %s)", st.Err, since))
		case st.away():
			out = append(out, fmt.Sprintf("watch %s: API server %s: no answer (since %s)", st.Watch, s.api.base.Host, since))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(s.broken)) {
		out = append(out, s.broken[name].err.Error())
	}
	return out
}

// understood notes whether an object of a watch was understood, and reports false if it was not and that is new.
func (s *Source) understood(watch string, i item) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i.err == nil {
		delete(s.broken, i.name)
		return true
	}
	_, known := s.broken[i.name]
	s.broken[i.name] = problem{watch, i.err}
	return known
}

// onlyBroken forgets what was wrong with objects of a watch that are not among all.
func (s *Source) onlyBroken(watch string, all []change) {
	still := map[string]bool{}
	for _, c := range all {
		still[c.name] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, p := range s.broken {
		if p.watch == watch && !still[name] {
			delete(s.broken, name)
		}
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
	p, err := readPage(resp, core(k8s.Type{APIVersion: "v1", Kind: "Pod"}), nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if len(p.items) == 0 {
		return nil, fmt.Errorf("%s: %w", what, ErrNotFound)
	}
	for _, o := range p.items[0].objs {
		if pod, ok := o.(*model.Pod); ok && pod.Namespace == namespace && pod.Name == name {
			return pod, nil
		}
	}
	return nil, fmt.Errorf("%s: the API server sent something else: %q, %v", what, p.items[0].name, p.items[0].err) //nolint:errorlint // it may be nil
}
