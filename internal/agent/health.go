package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"weft/internal/model"
	"weft/internal/plan"
	"weft/internal/store"
)

// waiting lists what readiness waits for, in words; empty once pods can be served. Where the API server is away,
// the objects that were known last are enough: the sweep waits for it, pods do not.
func (a *Agent) waiting() []string {
	var out []string
	offline := a.cluster.offline()
	for _, s := range a.store.Incomplete() {
		if !offline || s != a.cfg.Source.Type {
			out = append(out, "source "+s)
		}
	}
	select {
	case <-a.loop.Swept():
	default:
		if !offline || a.untried() {
			out = append(out, "the first pass over the kernel")
		}
	}
	for _, r := range a.store.Rows(plan.KindProblem) {
		if r.Row.Owner() == model.ConfigKey() {
			out = append(out, r.Err.Error())
		}
	}
	return out
}

// untried reports whether a row has not been handed to its driver yet.
func (a *Agent) untried() bool {
	for _, k := range plan.Kinds() {
		for _, r := range a.store.Rows(k) {
			if r.Status == store.Pending && r.Tries == 0 {
				return true
			}
		}
	}
	return false
}

// serveHTTP serves /metrics, /healthz and /readyz until ctx ends.
func (a *Agent) serveHTTP(ctx context.Context) error {
	if a.cfg.MetricsAddress == "off" {
		return nil
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(a)
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if wait := a.waiting(); len(wait) > 0 {
			http.Error(w, "waiting for "+strings.Join(wait, ", "), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", a.cfg.MetricsAddress)
	if err != nil {
		return fmt.Errorf("metricsAddress %s: %w", a.cfg.MetricsAddress, err)
	}
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return ctx.Err()
}

// metrics are read from the tables when somebody asks: nothing is counted twice.
type metrics struct {
	rows, packets, addrs, tasks, up, batches, applied, failed, policy, conns, back *prometheus.Desc
}

func newMetrics() metrics {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("weft_"+name, help, labels, nil)
	}
	return metrics{
		rows:    d("rows", "Rows of the plan by table and status.", "table", "status"),
		packets: d("datapath_packets_total", "Packets by what the data path did with them.", "reason"),
		addrs:   d("ipam_addresses", "Addresses of this node's pools by family and state.", "family", "state"),
		tasks:   d("task_restarts_total", "Restarts of the agent's own tasks.", "task"),
		up:      d("ready", "1 if the agent can serve pods."),
		batches: d("reconcile_batches_total", "Batches handed to drivers."),
		applied: d("reconcile_rows_applied_total", "Rows that drivers applied."),
		failed:  d("reconcile_rows_failed_total", "Tries of rows that failed."),
		policy: d("policy_packets_total", "Packets that the rules of a policy decided about: first ones of connections that were allowed, and every denied one.",
			"policy", "direction", "verdict"),
		conns: d("policy_connections", "Connections that are known to be allowed."),
		back:  d("policy_taken_back", "Policies that are not in force on this node, because it took them back."),
	}
}

// Describe implements prometheus.Collector.
func (a *Agent) Describe(ch chan<- *prometheus.Desc) {
	m := a.metrics
	for _, d := range []*prometheus.Desc{m.rows, m.packets, m.addrs, m.tasks, m.up, m.batches, m.applied, m.failed, m.policy, m.conns, m.back} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (a *Agent) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	ready := 1.0
	if len(a.waiting()) > 0 {
		ready = 0
	}
	gauge(a.metrics.up, ready)
	for _, k := range plan.Kinds() {
		by := map[string]float64{}
		for _, r := range a.store.Rows(k) {
			by[string(r.Status)]++
		}
		for status, n := range by {
			gauge(a.metrics.rows, n, string(k), status)
		}
	}
	for reason, n := range a.ebpf.Stats() {
		count(a.metrics.packets, n, reason)
	}
	a.collectPolicy(gauge, count)
	for _, u := range a.pools() {
		gauge(a.metrics.addrs, float64(u.Live), u.Family, "live")
		gauge(a.metrics.addrs, float64(u.Quarantined), u.Family, "quarantined")
		gauge(a.metrics.addrs, float64(u.Free), u.Family, "free")
	}
	for _, h := range a.group.Health() {
		count(a.metrics.tasks, uint64(h.Restarts), h.Name)
	}
	st := a.loop.Stats()
	count(a.metrics.batches, st.Batches)
	count(a.metrics.applied, st.Applied)
	count(a.metrics.failed, st.Failed)
}

// collectPolicy counts by policy, not by rule: there may be tens of thousands of rules, and `weft show policyrules` has them.
func (a *Agent) collectPolicy(gauge func(*prometheus.Desc, float64, ...string), count func(*prometheus.Desc, uint64, ...string)) {
	if a.cfg.Policy.Disabled {
		return
	}
	if n, err := a.ebpf.Conns(); err == nil {
		gauge(a.metrics.conns, float64(n))
	}
	gauge(a.metrics.back, float64(len(takenBack(a.store.Snapshot()))))
	by := map[[3]string]uint64{}
	for _, r := range a.rules() {
		policy, _, _ := strings.Cut(r.rule.Origin, " spec")
		by[[3]string{policy, r.direction.String(), r.rule.Verdict.String()}] += r.hits.Packets
	}
	for k, n := range by {
		count(a.metrics.policy, n, k[:]...)
	}
}
