package lab

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"weft/internal/netset"
)

// Result is one probe's outcome.
type Result struct {
	Source string
	Dest   string // as asked for
	Target Target
	Took   time.Duration
	Answer *Answer
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
	if from.Netns == "" {
		return nil, fmt.Errorf("%s is an address: a probe starts at a pod, a node or outside", src)
	}
	targets, err := l.targets(namespace, dst, from, only)
	if err != nil {
		return nil, err
	}
	out := make([]Result, len(targets))
	index := make([]int, len(targets))
	for i := range index {
		index[i] = i
	}
	err = each(index, func(i int) error {
		r := Result{Source: src, Dest: dst, Target: targets[i]}
		r.Took, r.Answer, r.Err = Probe(ctx, from.Netns, targets[i])
		out[i] = r
		if errors.Is(r.Err, ErrCannotProbe) {
			return fmt.Errorf("%s -> %s: %w", src, dst, r.Err)
		}
		return nil
	})
	return out, err
}

// targets resolves a destination to one target a family.
func (l *Lab) targets(namespace, dst string, from *Party, only netset.Family) ([]Target, error) {
	name, port, proto, err := splitTarget(dst)
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
	var out []Target
	for _, a := range to.Addrs {
		f := netset.Of(a)
		if only != 0 && f != only || len(addrsOf([]netset.Family{f}, from.Addrs...)) == 0 {
			continue
		}
		t, err := newTarget(a, port, proto)
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

// expectation is a line "expect reachable SRC -> DST[:PORT][/PROTO] [family 4|6] [within 5s]".
type expectation struct {
	namespace string
	reachable bool
	src, dst  string
	family    netset.Family // 0: all
	within    time.Duration
}

func parseExpect(namespace string, args []string) (expectation, error) {
	usage := errors.New("want: expect reachable|unreachable SRC -> DST[:PORT][/PROTO] [family 4|6] [within 5s]")
	e := expectation{namespace: namespace, within: 5 * time.Second}
	if len(args) < 4 || args[2] != "->" || len(args)%2 != 0 {
		return e, usage
	}
	switch args[0] {
	case "reachable":
		e.reachable = true
	case "unreachable":
	default:
		return e, usage
	}
	e.src, e.dst = args[1], args[3]
	for i := 4; i < len(args); i += 2 {
		switch v := args[i+1]; args[i] {
		case "within":
			d, err := time.ParseDuration(v)
			if err != nil || d <= 0 {
				return e, fmt.Errorf("within: %q is not a time such as 5s", v)
			}
			e.within = d
		case "family":
			switch v {
			case "4":
				e.family = netset.V4
			case "6":
				e.family = netset.V6
			default:
				return e, fmt.Errorf("family: %q is not 4 or 6", v)
			}
		default:
			return e, usage
		}
	}
	return e, nil
}

// check tries until the expectation holds in every family, or its time is over.
func (l *Lab) check(ctx context.Context, e expectation) ([]Result, error) {
	ctx, cancel := context.WithTimeout(ctx, e.within)
	defer cancel()
	began := time.Now()
	for {
		// An attempt that began in time may end later.
		attempt, done := context.WithTimeout(context.WithoutCancel(ctx), min(probeTimeout, e.within))
		results, err := l.ProbeAll(attempt, e.namespace, e.src, e.dst, e.family)
		done()
		if errors.Is(err, ErrCannotProbe) {
			return results, err
		}
		var wrong []string
		for _, r := range results {
			if (r.Err == nil) != e.reachable {
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
