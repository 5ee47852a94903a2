package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"weft/internal/compile/policy"
	"weft/internal/model"
	"weft/internal/store"
	"weft/internal/trial"
)

// dnsPort is that of the cluster's DNS.
const dnsPort = 53

// maxWitnesses is how many other agents are asked, and how many DNS servers: enough to tell a policy from an accident.
const maxWitnesses = 4

// startTrials goes on with the trials of policies of an earlier agent.
func (a *Agent) startTrials() {
	w := a.store.Writer(store.TrialSource)
	w.Complete() // changes come later and are never complete
	b := &bystanders{a: a}
	a.trials = trial.New(trial.Options{
		Mode: a.confirmMode(), Window: time.Duration(a.cfg.Policy.ConfirmSeconds) * time.Second,
		File: filepath.Join(a.cfg.Paths.State, "trials.json"), Snapshot: a.store.Snapshot, Invariants: b.invariants,
		Report: a.incidents.add, Clock: a.clock, Log: a.log,
	}, w)
	if err := a.trials.Restore(); err != nil {
		a.incidents.add(err.Error(), "ignored: what the cluster says is in force")
	}
}

func (a *Agent) confirmMode() string {
	if a.cfg.Policy.Disabled {
		return model.ConfirmOff
	}
	return a.cfg.Policy.Confirm
}

// server is the host:port of an API server's URL, or "".
func server(apiServer string) string {
	u, err := url.Parse(apiServer)
	if err != nil || u.Host == "" {
		return ""
	}
	port := cmp.Or(u.Port(), map[string]string{"http": "80"}[u.Scheme], "443")
	return net.JoinHostPort(u.Hostname(), port)
}

// bystanders are what must not suffer from a change of policy on trial: what this node and its pods live on.
type bystanders struct {
	a *Agent

	mu      sync.Mutex
	changed <-chan struct{}   // guarded by mu; closed when pods is out of date; nil at first
	pods    []trial.Invariant // guarded by mu
}

// invariants lists them as they are now.
func (b *bystanders) invariants() []trial.Invariant {
	var out []trial.Invariant
	if addr := b.a.cluster.server; addr != "" {
		out = append(out, trial.Connects("API server "+addr, addr))
	}
	snap := b.a.store.Snapshot()
	servers := b.a.dnsServers(snap)
	for i, s := range servers {
		for _, addr := range addrsOf(s) {
			if i < maxWitnesses {
				out = append(out, trial.Resolves("DNS "+addr.String(), netip.AddrPortFrom(addr, dnsPort)))
			}
		}
	}
	for _, name := range b.a.witnesses(snap) {
		out = append(out, trial.Invariant{Name: "agent of " + name, Check: func(ctx context.Context) error { return b.a.mesh.Ping(ctx, name) }})
	}
	return append(out, b.ofPods(snap, servers)...)
}

// dnsServers are those of the cluster's DNS.
func (a *Agent) dnsServers(s model.Snapshot) []policy.End {
	var out []policy.End
	for _, addr := range a.cfg.Policy.DNS {
		out = append(out, policy.End{Addr: addr})
	}
	if len(out) > 0 {
		return out
	}
	for p := range model.All[*model.Pod](s, model.KindPod) {
		if p.Labels["k8s-app"] == "kube-dns" && !p.Finished && len(p.Addrs) > 0 {
			out = append(out, policy.End{Pod: p})
		}
	}
	return out
}

func addrsOf(e policy.End) []netip.Addr {
	if e.Pod != nil {
		return e.Pod.Addrs
	}
	return []netip.Addr{e.Addr}
}

// witnesses are other nodes whose agents are asked: those that come after this one by name, so that not all ask the same.
func (a *Agent) witnesses(s model.Snapshot) []string {
	var before, after []string
	for n := range model.All[*model.Node](s, model.KindNode) {
		switch strings.Compare(n.Name, a.cfg.NodeName) {
		case -1:
			before = append(before, n.Name)
		case 1:
			after = append(after, n.Name)
		}
	}
	all := append(after, before...)
	return all[:min(len(all), maxWitnesses)]
}

// ofPods is that each pod of this node may ask at least one DNS server, worked out from the policies: no packet is sent in a pod's name.
func (b *bystanders) ofPods(s model.Snapshot, servers []policy.End) []trial.Invariant {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.changed != nil {
		select {
		case <-b.changed:
		default:
			return b.pods
		}
	}
	b.changed, _ = b.a.store.Watch()
	var pods []*model.Pod
	for ep := range model.All[*model.Endpoint](s, model.KindEndpoint) {
		if p := model.Get[*model.Pod](s, model.PodKey(ep.Pod.Namespace, ep.Pod.Name)); p != nil {
			own := *p
			own.Addrs = ep.Addrs
			pods = append(pods, &own)
		}
	}
	b.pods = nil
	for i, ok := range policy.Reach(s, pods, servers, model.ProtoUDP, dnsPort) {
		b.pods = append(b.pods, trial.Invariant{Name: "DNS of pod " + pods[i].PodRef.String(), Check: func(context.Context) error {
			if !ok {
				return errors.New("policies allow no DNS server")
			}
			return nil
		}})
	}
	return b.pods
}

// takenBack says what is not in force on this node although the cluster says so.
func takenBack(s model.Snapshot) []string {
	var out []string
	for t := range model.All[*model.Trial](s, model.KindTrial) {
		if t.Back {
			out = append(out, fmt.Sprintf("%s is not in force: it was taken back at %s, because %s failed; %s", t.Name, t.Since.Format(time.TimeOnly), strings.Join(t.Why, ", "), t.Instead))
		}
	}
	return slices.Compact(out)
}

// tellTakenBack tells which policies this node has taken back, and what had broken.
func (a *Agent) tellTakenBack(ctx context.Context, tell func(map[model.Ref]string)) error {
	for {
		changed := a.store.WatchKind(model.KindTrial)
		back := map[model.Ref]string{}
		for t := range model.All[*model.Trial](a.store.Snapshot(), model.KindTrial) {
			if t.Back && !t.Ref.IsZero() {
				back[t.Ref] = strings.Join(t.Why, ", ")
			}
		}
		tell(back)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// trialNotes is what `weft policy order` says of a policy on trial.
func trialNotes(s model.Snapshot, k model.Key) []string {
	t := model.Get[*model.Trial](s, model.TrialKey(k))
	switch {
	case t == nil:
		return nil
	case t.Back:
		return []string{"taken back, because " + strings.Join(t.Why, ", ") + " failed"}
	}
	return []string{"on trial until " + t.Until.Format(time.TimeOnly)}
}

func trialCells(t *model.Trial) []string {
	state, until := "on trial", t.Until.Format(time.TimeOnly)
	if t.Back {
		state, until = "taken back", ""
	}
	return []string{t.Name, state, t.Since.Format(time.TimeOnly), until, strings.Join(t.Why, ", "), t.Instead}
}
