package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"weft/internal/api"
	"weft/internal/datapath/ebpf"
	"weft/internal/model"
	"weft/internal/plan"
)

// remembered is how many kinds of denied packets are kept for `weft why`; the least recent go first.
const remembered = 4096

// recent are denied packets, or those that rules log; those that are alike are put together.
type recent struct {
	mu    sync.Mutex
	drops map[string]*api.Drop // guarded by mu; by all that distinguishes them
	moved chan struct{}        // guarded by mu; closed and replaced when drops grow
}

func newRecent() *recent {
	return &recent{drops: map[string]*api.Drop{}, moved: make(chan struct{})}
}

// watchRecords takes in what the programs say of packets.
func (a *Agent) watchRecords(ctx context.Context) error {
	return a.ebpf.Records(ctx, func(r ebpf.Record) {
		to := a.denied
		if r.Logged != model.VerdictNone {
			to = a.logged
		}
		to.add(a.explain(r))
	})
}

func (d *recent) add(x api.Drop) {
	d.mu.Lock()
	defer d.mu.Unlock()
	key := strings.Join([]string{x.From, x.To, x.Proto, x.Direction, x.Verdict, x.Reason}, "\x00")
	if old := d.drops[key]; old != nil {
		old.Count++
		old.Time = x.Time
	} else {
		x.Count = 1
		d.drops[key] = &x
	}
	if len(d.drops) > remembered {
		d.forget()
	}
	close(d.moved)
	d.moved = make(chan struct{})
}

// forget drops the older half.
func (d *recent) forget() {
	times := make([]time.Time, 0, len(d.drops))
	for _, x := range d.drops {
		times = append(times, x.Time)
	}
	slices.SortFunc(times, time.Time.Compare)
	for k, x := range d.drops {
		if x.Time.Before(times[len(times)/2]) {
			delete(d.drops, k)
		}
	}
}

// since returns the drops after a time, oldest first, and a channel that is closed when there are more.
func (d *recent) since(t time.Time) ([]api.Drop, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []api.Drop
	for _, x := range d.drops {
		if x.Time.After(t) {
			out = append(out, *x)
		}
	}
	slices.SortFunc(out, func(a, b api.Drop) int { return a.Time.Compare(b.Time) })
	return out, d.moved
}

// explain says in words what was denied or logged, and by whom.
func (a *Agent) explain(d ebpf.Record) api.Drop {
	s := a.store.Snapshot()
	out := api.Drop{Time: d.Time, Proto: plan.ProtoName(int(d.Proto)), Direction: d.Direction.String()}
	out.From = a.who(s, d.Src)
	out.To = a.who(s, d.Dst)
	switch int(d.Proto) {
	case model.ProtoICMP, model.ProtoICMPv6:
		out.Proto += fmt.Sprintf(" type %d", d.DstPort>>8)
	default:
		out.To += fmt.Sprintf(" port %d", d.DstPort)
	}
	side := map[plan.Direction]string{plan.Egress: out.From, plan.Ingress: a.who(s, d.Dst)}[d.Direction]
	out.Reason = d.Reason
	if d.Logged != model.VerdictNone {
		out.Verdict = d.Logged.String()
	}
	if r := a.ruleOf(d.Rule); r.Origin != "" {
		out.Reason = fmt.Sprintf("%s of %s: %s", d.Direction, side, r.Origin)
		if d.Logged != model.VerdictNone {
			out.Reason = strings.TrimSpace(out.Reason + " " + r.Label)
		}
	} else if words := reasons()[d.Reason]; words != "" {
		out.Reason = words
	}
	return out
}

// reasons says in words what no rule decided.
func reasons() map[string]string {
	return map[string]string{
		"drop_closed":    "the pod is not under policy yet: its labels or rules are not in place, so that it is closed",
		"drop_fragment":  "a later fragment of a packet whose first one was not seen, so that its ports are not known",
		"drop_undecided": "the service's translation led to an address under which the sender cannot be recognised any more",
	}
}

// who names the holder of an address.
func (a *Agent) who(s model.Snapshot, addr netip.Addr) string {
	for ep := range model.All[*model.Endpoint](s, model.KindEndpoint) {
		if slices.Contains(ep.Addrs, addr) {
			return "pod " + ep.Pod.String()
		}
	}
	return addressEnd(s, addr).name()
}

// name is the end without its address where somebody has it.
func (e end) name() string {
	switch {
	case e.end.Pod != nil:
		return "pod " + e.end.Pod.PodRef.String()
	case e.end.Node != "":
		return "node " + e.end.Node
	}
	return e.end.Addr.String()
}

// ruleOf returns the rule with the counter, the zero rule for none.
func (a *Agent) ruleOf(id plan.ID) plan.PolicyRule {
	if id == 0 {
		return plan.PolicyRule{}
	}
	for s := range plan.All[*plan.PolicySet](a.store.View(), plan.KindPolicySet) {
		if i := slices.IndexFunc(s.Rules, func(r plan.PolicyRule) bool { return r.ID == id }); i >= 0 {
			return s.Rules[i]
		}
	}
	return plan.PolicyRule{Origin: "a rule that is not there any more"}
}

// why is the method behind `weft why` and `weft policy log`.
func (a *Agent) why(ctx context.Context, r api.WhyRequest, send func(any) error) error {
	last := r.Last
	if last == 0 {
		last = 5 * time.Minute
	}
	from, records := a.clock.Now().Add(-last), a.denied
	if r.Logged {
		records = a.logged
	}
	for {
		drops, more := records.since(from)
		for _, d := range drops {
			from = d.Time
			if r.Pod != "" && d.From != "pod "+r.Pod && !strings.HasPrefix(d.To, "pod "+r.Pod+" ") && d.To != "pod "+r.Pod {
				continue
			}
			if err := send(d); err != nil {
				return err
			}
		}
		if !r.Follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-more:
		}
	}
}
