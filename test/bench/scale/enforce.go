package scale

import (
	"fmt"
	"net/netip"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/model"
	"weft/internal/plan"
	"weft/test/bench/lab"
)

// ProbePort is where the server listens.
const ProbePort = 9

// poll is how often the prober asks.
const poll = 100 * time.Microsecond

// Enforced is how long changes took to reach the packets (rows Y2 and Y3): from just before the object is written to the store
// until the first probe with the new verdict, in ms.
type Enforced struct {
	ColdSeconds float64   `json:"coldSeconds"`
	Change      []float64 `json:"change"`  // a policy allows, then no longer
	Delete      []float64 `json:"delete"`  // a policy that denies goes, and comes again
	NewPod      []float64 `json:"newPod"`  // a pod of a known identity comes on another node
	Churned     []float64 `json:"churned"` // the same while a thousand other pods come or go in a second
	// Sets and peer sets that a new pod made be compiled again or written.
	PodSets int `json:"podSets"`
	// Memory is what the process took after the start, which it gave back what it needed no more of, and after all changes.
	Memory memory `json:"memory"`
	After  memory `json:"after"`
}

// Enforce measures so many changes of each kind.
func Enforce(p Place, changes int) (out Enforced, err error) {
	n, err := startNode(p)
	if err != nil {
		return out, err
	}
	defer n.stop()
	out.ColdSeconds = n.cold.Seconds()
	pr, err := n.prober()
	if err != nil {
		return out, err
	}
	preferred()
	debug.FreeOSMemory() // as the agent does
	out.Memory = ownMemory()
	from := pr.client
	allow, deny := n.Size.policy(0, fmt.Sprint("a", n.Size.client()/n.Size.namespaces())), n.Size.policy(0, "a2")
	if err := pr.until(from, false, time.Second); err != nil {
		return out, fmt.Errorf("at first: %w", err)
	}
	for range changes / 2 {
		for _, c := range []struct {
			obj  *model.Policy
			want bool
		}{{allow, true}, {deny, false}} {
			ms, err := pr.timed(from, c.want, func() { n.w.Upsert(c.obj) })
			if err != nil {
				return out, err
			}
			out.Change = append(out.Change, ms)
		}
	}
	for range changes / 4 {
		ms, err := pr.timed(from, true, func() { n.w.Delete(deny.Key()) })
		if err != nil {
			return out, err
		}
		back, err := pr.timed(from, false, func() { n.w.Upsert(deny) })
		if err != nil {
			return out, err
		}
		out.Delete = append(out.Delete, ms, back)
	}
	if _, err := pr.timed(from, true, func() { n.w.Upsert(allow) }); err != nil {
		return out, err
	}
	time.Sleep(200 * time.Millisecond) // what the last policy left is removed after the new one is in force
	before := n.sets()
	if out.NewPod, err = n.newPods(pr, changes); err != nil {
		return out, err
	}
	out.PodSets = differing(before, n.sets())
	done := make(chan struct{})
	stopped := n.churn(done)
	out.Churned, err = n.newPods(pr, changes)
	close(done)
	<-stopped
	out.After = ownMemory()
	return out, err
}

// newPods lets a pod come on the other node, which was there in the network already, and go again.
func (n *node) newPods(pr *prober, count int) ([]float64, error) {
	var out []float64
	for i := range count {
		from, err := pr.other(otherAddr(i % others))
		if err != nil {
			return out, err
		}
		pod := n.Size.pod(n.Size.client())
		pod.Node, pod.Name, pod.Addrs = otherNode, fmt.Sprint("fresh", i), []netip.Addr{otherAddr(i % others)}
		if err := pr.until(from, false, time.Second); err != nil {
			return out, fmt.Errorf("before the pod is known: %w", err)
		}
		ms, err := pr.timed(from, true, func() { n.w.Upsert(pod) })
		if err == nil {
			_, err = pr.timed(from, false, func() { n.w.Delete(pod.Key()) })
		}
		_ = unix.Close(from)
		if err != nil {
			return out, err
		}
		out = append(out, ms)
	}
	return out, nil
}

// churn lets pods come and go, a thousand events a second, until done.
func (n *node) churn(done chan struct{}) chan struct{} {
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			for j := range 10 {
				pod := n.Size.pod(n.Size.Local + n.Size.Remote + j)
				if pod.Name = fmt.Sprint("churn", j); i%2 == 0 {
					n.w.Upsert(pod)
				} else {
					n.w.Delete(pod.Key())
				}
			}
		}
	}()
	return stopped
}

// sets are the rows that hold rules and their peers.
func (n *node) sets() map[plan.Key]plan.Row {
	out := map[plan.Key]plan.Row{}
	for _, k := range []plan.Kind{plan.KindPeerSet, plan.KindPolicySet, plan.KindIdentity} {
		for _, r := range n.store.Rows(k) {
			out[r.Row.Key()] = r.Row
		}
	}
	return out
}

// differing counts the rows of which there is another version now.
func differing(a, b map[plan.Key]plan.Row) (count int) {
	for k, r := range b {
		if a[k] != r {
			count++
		}
	}
	for k := range a {
		if b[k] == nil {
			count++
		}
	}
	return count
}

// others is how many addresses the other node has for pods.
const others = 200

// prober sends datagrams to the server pod and looks whether they arrive.
type prober struct {
	n      *node
	server int // sockets
	client int
	to     unix.Sockaddr
	serial uint32
}

func (n *node) prober() (*prober, error) {
	p := &prober{n: n, to: &unix.SockaddrInet4{Addr: n.Size.localAddr(server).As4(), Port: ProbePort}}
	runtime.LockOSThread() // for lab.Readable, and so that probes do not wait for the scheduler as well
	err := lab.InNS(n.Server, func() (err error) {
		if p.server, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(p.server, &unix.SockaddrInet4{Port: ProbePort})
	})
	if err != nil {
		return nil, fmt.Errorf("listen in the server pod: %w", err)
	}
	err = lab.InNS(n.Client, func() (err error) {
		p.client, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	return p, err
}

// other is a socket of the other node that is bound to an address.
func (p *prober) other(a netip.Addr) (fd int, err error) {
	err = lab.InNS(p.n.Other, func() error {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrInet4{Addr: a.As4()})
	})
	return fd, err
}

// passes sends one datagram and says whether it arrived within the poll interval.
func (p *prober) passes(from int) (bool, error) {
	p.serial++
	out := []byte{byte(p.serial >> 24), byte(p.serial >> 16), byte(p.serial >> 8), byte(p.serial)}
	if err := unix.Sendto(from, out, 0, p.to); err != nil {
		return false, fmt.Errorf("send a probe: %w", err)
	}
	in := make([]byte, 4)
	for deadline := time.Now().Add(poll); lab.Readable(p.server, time.Until(deadline)); {
		got, _, err := unix.Recvfrom(p.server, in, unix.MSG_DONTWAIT)
		if err == nil && got == 4 && [4]byte(in) == [4]byte(out) {
			return true, nil
		}
	}
	return false, nil
}

// until probes until the verdict is what is wanted. That nothing comes has to be seen three times: a probe may be late.
func (p *prober) until(from int, want bool, limit time.Duration) error {
	_, err := p.first(from, want, time.Now().Add(limit))
	return err
}

// first returns when the first probe of the wanted verdict was sent.
func (p *prober) first(from int, want bool, deadline time.Time) (time.Time, error) {
	var at time.Time
	for seen := 0; ; {
		now := time.Now()
		got, err := p.passes(from)
		if err != nil {
			return at, err
		}
		if got != want {
			seen = 0
		} else {
			if seen == 0 {
				if at = now; want {
					at = time.Now()
				}
			}
			if seen++; want || seen == 3 {
				return at, nil
			}
		}
		if now.After(deadline) {
			return at, fmt.Errorf("the verdict that was waited for, pass %v, has not come", want)
		}
		if rest := poll - time.Since(now); rest > 0 {
			lab.Readable(-1, rest)
		}
	}
}

// timed makes a change and returns ms until the first probe of the wanted verdict. Before it everything of the last change is
// done: what is measured is a change, not a queue.
func (p *prober) timed(from int, want bool, change func()) (float64, error) {
	if err := p.until(from, !want, 5*time.Second); err != nil {
		return 0, err
	}
	time.Sleep(2 * time.Millisecond)
	began := time.Now()
	written := make(chan struct{})
	go func() { change(); close(written) }()
	at, err := p.first(from, want, began.Add(5*time.Second))
	<-written
	return float64(at.Sub(began).Nanoseconds()) / 1e6, err
}
