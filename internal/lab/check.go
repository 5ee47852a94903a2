package lab

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"weft/internal/lab/probe"
	"weft/internal/netset"
)

// Result is one probe's outcome.
type Result struct {
	Source string
	Dest   string // as asked for
	Target probe.Target
	Took   time.Duration
	Answer *probe.Answer
	Err    error // nil: reached
}

// Verdict is "reached" or why not.
func (r Result) Verdict() string {
	if r.Err != nil {
		return r.Err.Error()
	}
	return "reached"
}

// Time is how long it took, in milliseconds.
func (r Result) Time() string {
	return fmt.Sprintf("%.1f ms", float64(r.Took.Microseconds())/1000)
}

// Said is what a responder answered: who it is, and whom it saw.
func (r Result) Said() string {
	if r.Answer == nil || r.Answer.Hostname == "" {
		return ""
	}
	return r.Answer.Hostname + " saw " + r.Answer.From
}

// probeTimeout is how long one attempt waits for an answer; longer than the first
// retransmission of a SYN would only wait for the second.
const probeTimeout = 900 * time.Millisecond

// ProbeAll tries dst, "NAME[:PORT][/PROTOCOL]", from src once in each family that
// both have, or the one given. An error means that nothing could be tried.
func (l *Lab) ProbeAll(ctx context.Context, namespace, src, dst string, only netset.Family) ([]Result, error) {
	from, err := l.Party(namespace, src)
	if err != nil {
		return nil, err
	}
	if from.Down != nil {
		return nil, from.Down
	}
	if from.Netns == "" {
		return nil, fmt.Errorf("%s is an address: a probe starts at a pod, a node or outside", src)
	}
	targets, err := l.targets(namespace, dst, from, only)
	if err != nil {
		return nil, err
	}
	out := make([]Result, len(targets))
	var wg sync.WaitGroup
	for i, t := range targets {
		wg.Go(func() {
			r := &out[i]
			r.Source, r.Dest, r.Target = src, dst, t
			r.Took, r.Answer, r.Err = probe.Try(ctx, from.Netns, t)
		})
	}
	wg.Wait()
	for _, r := range out {
		if errors.Is(r.Err, probe.ErrCannot) {
			return out, fmt.Errorf("%s -> %s: %w", src, dst, r.Err)
		}
	}
	return out, nil
}

// targets resolves a destination to one target a family.
func (l *Lab) targets(namespace, dst string, from *Party, only netset.Family) ([]probe.Target, error) {
	name, port, proto, err := probe.SplitTarget(dst)
	if err != nil {
		return nil, err
	}
	to, err := l.Party(namespace, name)
	if err != nil {
		return nil, err
	}
	if port == 0 && proto != "icmp" && (proto == "" || proto == to.Proto) {
		port, proto = to.Port, to.Proto
	}
	var out []probe.Target
	for _, a := range to.Addrs {
		f := netset.Of(a)
		if only != 0 && f != only || len(addrsOf([]netset.Family{f}, from.Addrs...)) == 0 {
			continue
		}
		t, err := probe.NewTarget(a, port, proto)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", dst, err)
		}
		out = append(out, t)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s and %s have no address family in common", from.Name, to.Name)
	}
	return out, nil
}

// Expectation is what a probe is to show. The zero Family is all that both ends have.
type Expectation struct {
	Namespace string
	Reachable bool
	How       string // an unreachable one must be "refused" (it is told at once) or "dropped" (nothing comes back); "": either
	Source    string
	Dest      string // NAME[:PORT][/PROTOCOL]
	Family    netset.Family
	Within    time.Duration
}

// holds reports whether an outcome is the expected one.
func (e Expectation) holds(err error) bool {
	if err == nil || e.Reachable || e.How == "" {
		return (err == nil) == e.Reachable
	}
	return errors.Is(err, probe.ErrNoAnswer) == (e.How == "dropped")
}

// Check tries until the expectation holds in every family, or its time is over.
func (l *Lab) Check(ctx context.Context, e Expectation) ([]Result, error) {
	ctx, cancel := context.WithTimeout(ctx, e.Within)
	defer cancel()
	began := time.Now()
	for {
		// An attempt that began in time may end later.
		attempt, done := context.WithTimeout(context.WithoutCancel(ctx), min(probeTimeout, e.Within))
		results, err := l.ProbeAll(attempt, e.Namespace, e.Source, e.Dest, e.Family)
		done()
		if errors.Is(err, probe.ErrCannot) {
			return results, err
		}
		var wrong []string
		for _, r := range results {
			if !e.holds(r.Err) {
				wrong = append(wrong, r.Target.String()+": "+r.Verdict())
			}
		}
		if err == nil && len(wrong) == 0 {
			return results, nil
		}
		select {
		case <-ctx.Done():
			if err == nil {
				err = fmt.Errorf("after %.1f s: %s", time.Since(began).Seconds(), strings.Join(wrong, "; "))
			}
			return results, err
		case <-time.After(20 * time.Millisecond):
		}
	}
}
