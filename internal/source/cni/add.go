package cni

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"weft/internal/api"
	"weft/internal/ipam"
	"weft/internal/model"
	"weft/internal/netset"
)

// podWait is how long an ADD waits for the pod's annotations when the store does not know the pod yet.
const podWait = time.Second

// cleanWait is how long an answer waits for the kernel to be clean again; cleaning goes on after it.
const cleanWait = 5 * time.Second

// Add gives a container an interface and returns when the kernel holds everything that belongs to it. After an
// error nothing of it is left, or is being removed. The same request again returns the same result.
//
// The agent may die at any point: before the reservation is on disk, nothing has happened; after it, the next agent
// has the endpoint, and releases it when its namespace is gone (the runtime, which got no answer, deletes it).
func (s *Source) Add(ctx context.Context, r api.AddRequest) (api.AddReply, error) {
	ep, err := endpoint(r)
	if err != nil {
		return api.AddReply{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.AddTimeout)
	defer cancel()
	t, err := s.enter(ctx, ep.ID)
	if err != nil {
		return api.AddReply{}, err
	}
	ours := true // the turn is
	defer func() {
		if ours {
			s.leave(t)
		}
	}()
	ctx, err = s.outrun(ctx, t, r.Attachment)
	if err != nil {
		return api.AddReply{}, err
	}
	netns, err := s.cfg.Identify(ep.Netns)
	if err != nil {
		return api.AddReply{}, &api.Error{
			Code: api.CodeInvalidEnv, Msg: fmt.Sprintf("CNI_NETNS: %v", err),
			Details: "if the runtime sees it and the agent does not, the agent's mount of the directory lacks mountPropagation HostToContainer",
		}
	}
	if err := s.annotate(ctx, ep); err != nil {
		return api.AddReply{}, err
	}
	lease, err := s.reserve(ctx, ipam.Request{Endpoint: *ep, Network: r.Network, NetnsID: netns})
	if err != nil {
		return api.AddReply{}, s.refusal(err)
	}
	s.writer.Upsert(&lease.Endpoint)
	if err := s.waitDone(ctx, &lease); err != nil {
		err = s.failure(ctx, &lease, err)
		if lease.State == ipam.Committed {
			return api.AddReply{}, err // a repeated ADD does not undo what the first one did
		}
		ours = s.remove(ctx, "its ADD failed", t, lease)
		return api.AddReply{}, err
	}
	if lease.State != ipam.Committed {
		s.cfg.Go(func() {
			if err := s.alloc.Commit(lease.Endpoint.ID); err != nil {
				s.log.Warn("commit", "endpoint", lease.Endpoint.ID, "error", err)
			}
		})
	}
	return result(&lease.Endpoint), nil
}

func result(ep *model.Endpoint) api.AddReply {
	out := api.AddReply{HostIf: ep.HostIf, HostMAC: model.GatewayMAC.String(), MAC: ep.MAC.String()}
	for _, x := range ep.Addrs {
		out.IPs = append(out.IPs, api.Address{Addr: x, Gateway: netset.Gateway(netset.Of(x))})
	}
	return out
}

// endpoint validates the request and turns it into an endpoint without addresses.
func endpoint(r api.AddRequest) (*model.Endpoint, error) {
	if err := r.Attachment.Validate(); err != nil {
		return nil, err
	}
	if r.Netns == "" {
		return nil, api.Errorf(api.CodeInvalidEnv, "CNI_NETNS is missing")
	}
	ep := &model.Endpoint{
		ID: r.ID(), Pod: model.PodRef(r.Pod), Netns: r.Netns, IfName: r.IfName, HostIf: HostIf(r.ID()),
		Ingress: model.Rate{Bits: r.Bandwidth.IngressRate, Burst: r.Bandwidth.IngressBurst},
		Egress:  model.Rate{Bits: r.Bandwidth.EgressRate, Burst: r.Bandwidth.EgressBurst},
	}
	for _, x := range r.Addrs {
		if !x.IsValid() || x.IsUnspecified() || x.IsLoopback() || x.IsMulticast() || x.Zone() != "" {
			return nil, api.Errorf(api.CodeInvalidConfig, "requested address %s cannot be a pod's", x)
		}
		ep.Addrs = append(ep.Addrs, x.Unmap())
	}
	if r.MAC != "" {
		m, err := model.ParseMAC(r.MAC)
		if err != nil {
			return nil, api.Errorf(api.CodeInvalidConfig, "requested MAC: %v", err)
		}
		if m == model.GatewayMAC {
			return nil, api.Errorf(api.CodeInvalidConfig, "requested MAC %s is the node's side of every pod link", m)
		}
		ep.MAC = m
	}
	for _, p := range r.Ports {
		hp := model.HostPort{HostIP: p.HostIP, Protocol: strings.ToLower(p.Protocol), Port: p.HostPort, PodPort: p.ContainerPort}
		switch hp.Protocol {
		case "":
			hp.Protocol = "tcp"
		case "tcp", "udp", "sctp":
		default:
			return nil, api.Errorf(api.CodeInvalidConfig, "port mapping %s: protocol is not tcp, udp or sctp", hp)
		}
		if hp.Port == 0 {
			continue // a port that is only declared
		}
		if hp.PodPort == 0 {
			return nil, api.Errorf(api.CodeInvalidConfig, "port mapping %s: containerPort is missing", hp)
		}
		for _, q := range ep.HostPorts {
			if hp.Port == q.Port && hp.Protocol == q.Protocol && hp.HostIP == q.HostIP {
				return nil, api.Errorf(api.CodeInvalidConfig, "port mappings %s and %s of the pod conflict", q, hp)
			}
		}
		ep.HostPorts = append(ep.HostPorts, hp)
	}
	return ep, nil
}

// HostIf is the name of the host side of an endpoint's link: the same for the same ID always, and 15 characters, as long
// as the kernel takes.
func HostIf(id string) string {
	sum := sha256.Sum256([]byte(id))
	return fmt.Sprintf("weft%x", sum[:])[:15]
}

// annotate takes what the pod's annotations ask for, unless the runtime asked for something itself. A pod that nobody
// knows gets no wish, and one whose annotation is malformed neither: it is told where the pod is shown.
func (s *Source) annotate(ctx context.Context, ep *model.Endpoint) error {
	if ep.Pod.Name == "" || len(ep.Addrs) > 0 && !ep.MAC.IsZero() {
		return nil
	}
	pod := model.Get[*model.Pod](s.store.Snapshot(), model.PodKey(ep.Pod.Namespace, ep.Pod.Name))
	if same := pod != nil && (ep.Pod.UID == "" || pod.UID == "" || pod.UID == ep.Pod.UID); !same {
		pod = nil
		if s.PodByName != nil {
			ask, cancel := context.WithTimeout(ctx, podWait)
			defer cancel()
			if p, err := s.PodByName(ask, ep.Pod.Namespace, ep.Pod.Name); err == nil {
				pod = p
			}
		}
	}
	if pod == nil {
		return nil
	}
	if len(ep.Addrs) == 0 {
		ep.Addrs = append([]netip.Addr(nil), pod.WantAddrs...)
	}
	if ep.MAC.IsZero() && !pod.WantMAC.IsZero() {
		if pod.WantMAC == model.GatewayMAC {
			return api.Errorf(api.CodeInvalidConfig, "pod %s: requested MAC %s is the node's side of every pod link", ep.Pod, pod.WantMAC)
		}
		ep.MAC = pod.WantMAC
	}
	return nil
}

// reserve gets the endpoint a lease. Sandboxes of the same pod that are dead make room first; if that is not
// enough, all dead ones do.
func (s *Source) reserve(ctx context.Context, r ipam.Request) (ipam.Lease, error) {
	var old []ipam.Lease
	if p := r.Endpoint.Pod; p.Name != "" {
		old = s.alloc.LeasesOf(p.Namespace, p.Name)
	}
	if l, ok := s.alloc.Get(r.Endpoint.ID); ok && (l.Endpoint.Pod.Name == "" || l.Endpoint.Pod.String() != r.Endpoint.Pod.String()) {
		old = append(old, l)
	}
	s.removeDead(ctx, "another sandbox took its place", r.Endpoint.ID, old)
	lease, err := s.alloc.Reserve(r)
	if errors.Is(err, ipam.ErrExhausted) || errors.Is(err, ipam.ErrTaken) {
		if s.removeDead(ctx, "its network namespace is gone", r.Endpoint.ID, s.alloc.Leases()) > 0 {
			lease, err = s.alloc.Reserve(r)
		}
	}
	return lease, err
}

// waitDone waits for the endpoint's rows. What no repetition can cure ends it before ctx does.
func (s *Source) waitDone(ctx context.Context, l *ipam.Lease) error {
	for {
		slice, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		err := s.store.WaitDone(slice, l.Endpoint.Key())
		cancel()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil || errors.Is(err, syscall.EEXIST):
			return err
		case !s.alive(l):
			return fmt.Errorf("%w: its network namespace %s is gone", fs.ErrNotExist, l.Endpoint.Netns)
		}
	}
}

// refusal gives an error of the allocator its code.
func (s *Source) refusal(err error) error {
	code := api.CodeInternal
	switch {
	case errors.Is(err, ipam.ErrNoPools):
		code = api.CodeTryAgain
	case errors.Is(err, ipam.ErrExhausted):
		code = api.CodeExhausted
	case errors.Is(err, ipam.ErrTaken):
		code = api.CodeTaken
	case errors.Is(err, ipam.ErrOutside), errors.Is(err, ipam.ErrInvalid), errors.Is(err, ipam.ErrExists),
		errors.Is(err, ipam.ErrSecond):
		code = api.CodeInvalidConfig
	case errors.Is(err, ipam.ErrJournal):
		code = api.CodeIO
	}
	return &api.Error{Code: code, Msg: err.Error()}
}

// failure says why an endpoint's rows did not become Done.
func (s *Source) failure(ctx context.Context, l *ipam.Lease, err error) error {
	cause := context.Cause(ctx)
	out := &api.Error{Code: api.CodeDatapath, Msg: fmt.Sprintf("connect %s of pod %s: %v", l.Endpoint.IfName, l.Endpoint.Pod, err)}
	switch {
	case errors.Is(cause, errOvertaken):
		out.Code, out.Msg = api.CodeTryAgain, cause.Error()
	case errors.Is(err, fs.ErrNotExist):
		out.Code = api.CodeUnknownContainer
	case errors.Is(err, syscall.EEXIST):
		out.Code = api.CodeInvalidConfig
	case errors.Is(cause, context.DeadlineExceeded):
		out.Details = "gave up at the deadline of the ADD"
		if s.cfg.Ready != nil {
			if why := s.cfg.Ready(); why != nil {
				out.Code, out.Details = api.CodeTryAgain, "the agent is not ready: "+why.Error()
			}
		}
	}
	return out
}
