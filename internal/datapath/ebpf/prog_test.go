package ebpf

import (
	"testing"

	"github.com/cilium/ebpf"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/plan"
)

// Verdicts of a classifier.
const (
	verdictNext     = 0xffffffff
	verdictDrop     = 2
	verdictRedirect = 7
)

// skb is struct __sk_buff as far as a test may set it.
type skb struct {
	Len, PktType, Mark, QueueMapping, Protocol, VlanPresent, VlanTCI, VlanProto, Priority uint32
	IngressIfindex, Ifindex, TCIndex                                                     uint32
	CB                                                                                   [5]uint32
	Hash, TCClassid, Data, DataEnd, NAPI                                                  uint32
	_                                                                                    [14]uint32
	_                                                                                    uint64
	Tstamp                                                                               uint64
	WireLen, GSOSegs                                                                     uint32
	_                                                                                    uint64
	GSOSize                                                                              uint32
	_                                                                                    uint32
}

// lone is a node with two pods and rows to a node that does not exist: enough to run programs one by one.
func lone(t testing.TB, outer netset.Family, tunnel bool) (n *node, peer *node) {
	t.Helper()
	n, peer = network(t, 1500)
	n.addPod(1450)
	n.addPod(1450)
	if tunnel {
		n.overlay(1450)
	}
	n.reach(peer, outer, tunnel, 1450)
	n.apply()
	return n, peer
}

func (n *node) index(dev string) (i uint32) {
	n.t.Helper()
	within(n.t, n.ns, func() error {
		x, err := interfaceIndex(dev)
		i = uint32(x)
		return err
	})
	return i
}

// run runs a program on a packet that is on a device, and returns the verdict and the packet.
func (n *node) run(prog *ebpf.Program, dev string, in []byte, set ...func(*skb)) (uint32, []byte) {
	n.t.Helper()
	s := skb{Ifindex: n.index(dev)}
	for _, f := range set {
		f(&s)
	}
	out := make([]byte, len(in)+256)
	var verdict uint32
	within(n.t, n.ns, func() (err error) {
		opts := &ebpf.RunOptions{Data: in, DataOut: out, Context: s}
		verdict, err = prog.Run(opts)
		out = opts.DataOut
		return err
	})
	return verdict, out
}

func pktFrom(p *pod, f netset.Family, to *pod) frame {
	return frame{srcMAC: p.mac, dstMAC: model.GatewayMAC, src: p.addr(f), dst: to.addr(f), proto: protoTCP, payload: tcp(1000, 80, 10)}
}

var _ = plan.KindLocal
