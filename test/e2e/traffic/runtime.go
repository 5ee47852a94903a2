package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Work is what `traffic pods` is to do, as JSON on standard input. For each pod it makes a network namespace in which somebody already sends SYNs and
// datagrams to forbidden ends, as fast as he may, until the end, calls the plugin's ADD, connects to an allowed end, waits, and calls DEL.
type Work struct {
	Pods      []string      `json:"pods"`      // "namespace/name"
	Parallel  int           `json:"parallel"`  // at the same time
	Forbidden []string      `json:"forbidden"` // address:port
	Allowed   []string      `json:"allowed"`
	Interval  time.Duration `json:"interval"` // of the forbidden packets
	After     time.Duration `json:"after"`    // how long they go on after ADD
}

// Added is what became of a pod.
type Added struct {
	Pod     string          `json:"pod"`
	Add     time.Duration   `json:"add"`     // of the plugin's process
	Connect []time.Duration `json:"connect"` // of each allowed end; the first since ADD returned
	Hostile int             `json:"hostile"` // packets to forbidden ends that the namespace let out
	Code    int             `json:"code"`    // of ADD's error; 0: none
	Left    []string        `json:"left"`    // interfaces after an ADD that failed
	Errors  []string        `json:"errors"`
}

func addPods() error {
	var w Work
	if err := json.NewDecoder(os.Stdin).Decode(&w); err != nil {
		return err
	}
	var forbidden, allowed []netip.AddrPort
	for _, x := range w.Forbidden {
		forbidden = append(forbidden, netip.MustParseAddrPort(x))
	}
	for _, x := range w.Allowed {
		allowed = append(allowed, netip.MustParseAddrPort(x))
	}
	out := make([]Added, len(w.Pods))
	for i := 0; i < len(w.Pods); i += w.Parallel {
		batch := out[i:min(len(out), i+w.Parallel)]
		var ready, done sync.WaitGroup
		start := make(chan struct{})
		for j := range batch {
			a := &batch[j]
			a.Pod = w.Pods[i+j]
			ready.Add(1)
			done.Go(func() { a.live(&w, i+j, forbidden, allowed, ready.Done, start) })
		}
		ready.Wait()
		close(start)
		done.Wait()
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

// live is one pod's life. It calls ready when its namespace is there and goes on at start.
func (a *Added) live(w *Work, n int, forbidden, allowed []netip.AddrPort, ready func(), start chan struct{}) {
	fail := func(err error) bool {
		if err != nil {
			a.Errors = append(a.Errors, err.Error())
		}
		return err != nil
	}
	ns, err := newNamespace(fmt.Sprintf("traffic-%d", n))
	if fail(err) {
		ready()
		return
	}
	defer ns.remove()
	var sent atomic.Int64
	stop := make(chan struct{})
	var hostile sync.WaitGroup
	hostile.Go(func() { fail(ns.do(func() error { return attack(forbidden, w.Interval, &sent, stop) })) })
	end := sync.OnceFunc(func() { close(stop); hostile.Wait() })
	defer end()
	dial := make(chan time.Time, 1)
	var connected sync.WaitGroup
	connected.Go(func() {
		fail(ns.do(func() error { // a thread that waits in the namespace: to enter it takes time
			for i, to := range allowed {
				began := time.Now()
				if i == 0 {
					if began = <-dial; began.IsZero() {
						return nil
					}
				}
				if err := connect(to); err != nil {
					return err
				}
				a.Connect = append(a.Connect, time.Since(began))
			}
			return nil
		}))
	})
	time.Sleep(10 * time.Millisecond) // both at work
	ready()
	<-start
	began := time.Now()
	_, err = ns.plugin("ADD", a.Pod, nil)
	a.Add = time.Since(began)
	if err != nil {
		var e *pluginError
		if errors.As(err, &e) {
			a.Code = e.Code
		}
		fail(err)
		close(dial)
		connected.Wait()
		end()
		fail(ns.do(func() (err error) { a.Left, err = links(); return err }))
		return
	}
	dial <- time.Now()
	connected.Wait()
	time.Sleep(w.After)
	_, err = ns.plugin("DEL", a.Pod, nil) // still under attack
	fail(err)
	end()
	a.Hostile = int(sent.Load())
}

// attack sends SYNs and datagrams until told to stop, whether there is a network or not.
func attack(to []netip.AddrPort, interval time.Duration, sent *atomic.Int64, stop chan struct{}) error {
	udp := map[bool]int{}
	for _, six := range []bool{false, true} {
		fd, err := unix.Socket(domain(six), unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		udp[six] = fd
	}
	for {
		for _, x := range to {
			six := x.Addr().Is6()
			if unix.Sendto(udp[six], []byte("hostile"), 0, sockaddr(x)) == nil {
				sent.Add(1)
			}
			fd, err := unix.Socket(domain(six), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			if err := unix.Connect(fd, sockaddr(x)); err == nil || errors.Is(err, unix.EINPROGRESS) {
				sent.Add(1)
			}
			_ = unix.Close(fd)
		}
		select {
		case <-stop:
			return nil
		case <-time.After(interval):
		}
	}
}

// connect is one blocking connect of the calling thread.
func connect(to netip.AddrPort) error {
	fd, err := unix.Socket(domain(to.Addr().Is6()), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	limit := unix.NsecToTimeval(int64(5 * time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit); err != nil {
		return err
	}
	if err := unix.Connect(fd, sockaddr(to)); err != nil {
		return fmt.Errorf("connect to the allowed %s: %w", to, err)
	}
	return nil
}

func domain(six bool) int {
	if six {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is6() {
		return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
}

// links lists the interfaces of the calling thread's namespace, without those that every namespace has.
func links() ([]string, error) {
	list, err := net.Interfaces()
	var out []string
	for _, x := range list {
		if x.Name != "lo" && x.Flags&net.FlagUp != 0 {
			out = append(out, x.Name)
		}
	}
	return out, err
}

// namespace is a network namespace with a name, as a container runtime makes it.
type namespace struct{ name, path string }

func newNamespace(name string) (*namespace, error) {
	n := &namespace{name, filepath.Join("/run/netns", name)}
	if err := os.MkdirAll(filepath.Dir(n.path), 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(n.path, nil, 0o444); err != nil {
		return nil, err
	}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", n.path, "", unix.MS_BIND, "")
		}
		made <- err
	}()
	if err := <-made; err != nil {
		_ = os.Remove(n.path)
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	return n, nil
}

func (n *namespace) remove() {
	_ = unix.Unmount(n.path, unix.MNT_DETACH)
	_ = os.Remove(n.path)
}

// do runs f on a thread in the namespace.
func (n *namespace) do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good
		h, err := os.Open(n.path)
		if err == nil {
			err = unix.Setns(int(h.Fd()), unix.CLONE_NEWNET)
			_ = h.Close()
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// pluginError is what the plugin says on standard output when it fails.
type pluginError struct {
	Code    int    `json:"code"`
	Msg     string `json:"msg"`
	Details string `json:"details"`
}

func (e *pluginError) Error() string { return fmt.Sprintf("code %d: %s: %s", e.Code, e.Msg, e.Details) }

// plugin executes weft-cni for a pod, with these addresses if there are any.
func (n *namespace) plugin(verb, pod string, addrs []string) ([]byte, error) {
	ns, name, _ := strings.Cut(pod, "/")
	conf := map[string]any{"cniVersion": "1.1.0", "name": "weft", "type": "weft-cni"}
	if addrs != nil {
		conf["runtimeConfig"] = map[string]any{"ips": addrs}
	}
	in, err := json.Marshal(conf)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/opt/cni/bin/weft-cni")
	cmd.Stdin = bytes.NewReader(in)
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_CONTAINERID="+n.name, "CNI_NETNS="+n.path, "CNI_IFNAME=eth0", "CNI_PATH=/opt/cni/bin",
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE="+ns+";K8S_POD_NAME="+name)
	out, err := cmd.Output()
	if err != nil {
		e := &pluginError{}
		if json.Unmarshal(out, e) == nil && e.Code != 0 {
			return out, fmt.Errorf("%s %s: %w", verb, pod, e)
		}
		return out, fmt.Errorf("%s %s: %w: %s", verb, pod, err, out)
	}
	return out, nil
}
