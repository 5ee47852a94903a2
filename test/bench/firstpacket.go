package main

import (
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/bench"
	"weft/internal/netset"
	"weft/test/bench/lab"
)

// probePort is where the new pod listens.
const probePort = 9

// firstPacket is row C3: from the moment in which ADD returns until a datagram of a neighbour that sends
// one every 100 microseconds arrives in the new pod.
func (r *rig) firstPacket(o *options, rep *report, s *subject) error {
	if err := lab.InNS(s.node, func() error { return s.add(0) }); err != nil {
		return err
	}
	defer func() { _ = lab.InNS(s.node, func() error { return s.del(0) }) }()
	for _, f := range netset.Families() {
		var took []float64
		for i := 1; i <= min(50, len(s.pods)-1); i++ {
			ms, err := r.firstPacketTo(s, i, f)
			if err != nil {
				return err
			}
			took = append(took, ms)
		}
		rep.Samples = append(rep.Samples, sampleRow{Subject: s.name, What: "ADD to first packet " + f.String(), Unit: "ms", Rounds: [][]float64{took}})
		test := fmt.Sprintf("ADD to first packet, %s", f)
		rep.inform("C3", test+", p50", s.name, "ms", bench.Quantile(took, .5))
		bound := noBound()
		if s.weft != nil {
			bound = 5
		}
		rep.absolute("C3", test+", p99", s.name, "ms", bench.Quantile(took, .99), bound)
	}
	return nil
}

// firstPacketTo adds pod i, waits for the packet, and removes the pod.
func (r *rig) firstPacketTo(s *subject, i int, f netset.Family) (float64, error) {
	runtime.LockOSThread() // for lab.Readable
	defer runtime.UnlockOSThread()
	receiver, err := udpIn(s.pods[i], f, true)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(receiver) }()
	sender, err := udpIn(s.pods[0], f, false)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(sender) }()
	var target netip.Addr
	if err := lab.InNS(s.node, func() (err error) { target, err = s.addAddress(i, f); return }); err != nil {
		return 0, err
	}
	begin := time.Now()
	defer func() { _ = lab.InNS(s.node, func() error { return s.del(i) }) }()
	to := sockaddr(target, probePort)
	for {
		_ = unix.Sendto(sender, []byte{0}, 0, to) // no route yet is an answer as well
		if lab.Readable(receiver, 100*time.Microsecond) {
			return milliseconds(time.Since(begin)), nil
		}
		if time.Since(begin) > 5*time.Second {
			return 0, fmt.Errorf("no packet reached %s within 5 s of its ADD", target)
		}
	}
}

// udpIn opens a UDP socket in a namespace: bound to the probe port, or for sending.
func udpIn(ns string, f netset.Family, listen bool) (fd int, err error) {
	err = lab.InNS(ns, func() error {
		all := lab.Unspecified(f)
		domain := unix.AF_INET
		if f == netset.V6 {
			domain = unix.AF_INET6
		}
		if fd, err = unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil || !listen {
			return err
		}
		return unix.Bind(fd, sockaddr(all, probePort))
	})
	return fd, err
}

func sockaddr(a netip.Addr, port int) unix.Sockaddr {
	if netset.Of(a) == netset.V4 {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: port}
	}
	return &unix.SockaddrInet6{Addr: a.As16(), Port: port}
}
