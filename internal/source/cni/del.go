package cni

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"weft/internal/api"
	"weft/internal/ipam"
	"weft/internal/model"
)

// Del takes an interface away. It succeeds for one that is not known; an ADD of it that is still under way, or comes
// only now though it was started before, fails. It returns when the kernel holds nothing of it and its addresses
// rest, or after cleanWait, when the rest goes on in the background.
//
// If the agent dies in between, the next one has the endpoint again; the runtime, which got no answer, repeats the
// DEL, or its namespace is found gone.
func (s *Source) Del(ctx context.Context, a api.Attachment) error {
	if err := a.Validate(); err != nil {
		return err
	}
	s.overtake(a)
	t, err := s.enter(ctx, a.ID())
	if err != nil {
		return err
	}
	l, ok := s.alloc.Get(a.ID())
	if !ok || s.remove(ctx, "deleted by the runtime", t, l) {
		s.leave(t)
	}
	return nil
}

// remove ends an endpoint whose turn the caller has: rows, kernel, then addresses. If that takes longer than cleanWait it returns
// false: it goes on in the background, and the turn is the background's.
func (s *Source) remove(ctx context.Context, why string, t *turn, l ipam.Lease) bool {
	key := l.Endpoint.Key()
	s.writer.Delete(key)
	wait, done := s.cleaning(ctx)
	defer done()
	if err := s.store.WaitGone(wait, key); err != nil {
		s.goOn(why, t, l, err)
		return false
	}
	s.release(why, l.Endpoint.ID)
	return true
}

// cleaning is the context of a removal: a caller that has gone must not leave things half done.
func (s *Source) cleaning(ctx context.Context) (context.Context, func()) {
	wait, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanWait)
	stop := context.AfterFunc(s.life, cancel)
	return wait, func() {
		stop()
		cancel()
	}
}

// goOn finishes a removal in the background, and gives the turn back.
func (s *Source) goOn(why string, t *turn, l ipam.Lease, err error) {
	s.log.Warn("an endpoint's removal takes long and goes on", "endpoint", l.Endpoint.ID, "pod", l.Endpoint.Pod, "error", err)
	s.cfg.Go(func() {
		defer s.leave(t)
		if s.store.WaitGone(s.life, l.Endpoint.Key()) == nil {
			s.release(why, l.Endpoint.ID)
		}
	})
}

func (s *Source) release(why string, ids ...string) {
	if err := s.alloc.Release(why, ids...); err != nil {
		// It is released all the same; a next agent would find it dead.
		s.log.Error("record the release", "endpoints", ids, "error", err)
	}
}

// removeDead removes those of the leases whose network namespace is gone, as removeAll does. It returns their number.
func (s *Source) removeDead(ctx context.Context, why, own string, leases []ipam.Lease) int {
	return len(s.removeAll(ctx, why, own, slices.DeleteFunc(leases, func(l ipam.Lease) bool { return s.alive(&l) })))
}

// removeAll removes the leases on which nobody works, all at once, and returns the IDs of those that are gone.
// The turn of the ID own is the caller's.
func (s *Source) removeAll(ctx context.Context, why, own string, leases []ipam.Lease) []string {
	type job struct {
		t *turn
		l ipam.Lease
	}
	var jobs []job
	var keys []model.Key
	for _, l := range leases {
		j := job{l: l}
		if l.Endpoint.ID != own {
			if j.t = s.tryEnter(l.Endpoint.ID); j.t == nil {
				continue
			}
			// It may have changed until it was our turn.
			if now, ok := s.alloc.Get(l.Endpoint.ID); !ok || now.NetnsID != l.NetnsID {
				s.leave(j.t)
				continue
			}
		}
		jobs, keys = append(jobs, j), append(keys, l.Endpoint.Key())
	}
	if len(jobs) == 0 {
		return nil
	}
	s.writer.Delete(keys...)
	wait, done := s.cleaning(ctx)
	defer done()
	var gone []string
	for _, j := range jobs {
		err := s.store.WaitGone(wait, j.l.Endpoint.Key())
		switch {
		case err == nil:
			gone = append(gone, j.l.Endpoint.ID)
			s.log.Info("removed", "endpoint", j.l.Endpoint.ID, "pod", j.l.Endpoint.Pod, "why", why)
			if j.t != nil {
				defer s.leave(j.t)
			}
		case j.t != nil:
			s.goOn(why, j.t, j.l, err)
		}
	}
	s.release(why, gone...)
	return gone
}

// Reap removes the endpoints whose network namespace is gone, and executes the DELs that the plugin left.
func (s *Source) Reap(ctx context.Context) {
	s.removeDead(ctx, "its network namespace is gone", "", s.alloc.Leases())
	buried := s.tombstones()
	for _, a := range buried {
		if l, ok := s.alloc.Get(a.ID()); !ok || !l.Since.Before(a.Started) {
			continue
		}
		if err := s.Del(ctx, a); err != nil {
			s.log.Error("execute tombstone", "endpoint", a.ID(), "error", err)
			delete(buried, a.ID())
		}
	}
	s.bury(buried)
}

// GC removes the endpoints of the network that are not in the list. One whose ADD is under way is left alone.
func (s *Source) GC(ctx context.Context, r api.GCRequest) (api.GCReply, error) {
	valid := map[string]bool{}
	for _, a := range r.Valid {
		if err := a.Validate(); err != nil {
			return api.GCReply{}, fmt.Errorf("valid attachments: %w", err)
		}
		valid[a.ID()] = true
	}
	stale := slices.DeleteFunc(s.alloc.Leases(), func(l ipam.Lease) bool {
		return l.Network != r.Network || valid[l.Endpoint.ID]
	})
	return api.GCReply{Released: s.removeAll(ctx, "the runtime does not list it any more", "", stale)}, nil
}

// Check looks whether an attachment still is what its ADD said.
func (s *Source) Check(ctx context.Context, r api.CheckRequest) error {
	if err := r.Attachment.Validate(); err != nil {
		return err
	}
	l, ok := s.alloc.Get(r.ID())
	if !ok {
		return api.Errorf(api.CodeUnknownContainer, "%s: the agent knows no such attachment", r.ID())
	}
	ep := &l.Endpoint
	var errs []error
	bad := func(f string, a ...any) { errs = append(errs, fmt.Errorf(f, a...)) }
	if id, err := s.cfg.Identify(r.Netns); err != nil {
		bad("CNI_NETNS: %w", err)
	} else if l.NetnsID != "" && id != l.NetnsID {
		bad("CNI_NETNS %s is not the namespace that %s was added to", r.Netns, ep.IfName)
	}
	for _, x := range r.Addrs {
		if !slices.Contains(ep.Addrs, x.Unmap()) {
			bad("prevResult has %s, which is not assigned to the attachment; it has %v", x, ep.Addrs)
		}
	}
	for _, x := range ep.Addrs {
		if r.Addrs != nil && !slices.Contains(r.Addrs, x) {
			bad("%s is assigned to the attachment and not in prevResult", x)
		}
	}
	if r.MAC != "" && r.MAC != ep.MAC.String() {
		bad("prevResult has MAC %s, assigned is %s", r.MAC, ep.MAC)
	}
	wait, cancel := context.WithTimeout(ctx, cleanWait)
	defer cancel()
	if err := s.store.WaitDone(wait, ep.Key()); err != nil {
		errs = append(errs, err)
	}
	if s.cfg.CheckLink != nil {
		if err := s.cfg.CheckLink(ep.HostIf); err != nil {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return &api.Error{Code: api.CodeCheckFailed, Msg: "check of " + r.ID() + " failed", Details: err.Error()}
	}
	return nil
}

// Status says whether ADD can be served.
func (s *Source) Status(ctx context.Context) (api.StatusReply, error) {
	if s.cfg.Limited != nil {
		if err := s.cfg.Limited(); err != nil {
			return api.StatusReply{}, &api.Error{Code: api.CodeLimited, Msg: "the node's network is impaired", Details: err.Error()}
		}
	}
	if s.cfg.Ready != nil {
		if err := s.cfg.Ready(); err != nil {
			return api.StatusReply{}, &api.Error{Code: api.CodeNotAvailable, Msg: "the agent is not ready", Details: err.Error()}
		}
	}
	full := func() (name string, use []api.PoolUse) {
		use = s.alloc.Use()
		for _, u := range use {
			if u.Size > 0 && u.Free+u.Quarantined == 0 {
				return u.Family, use
			}
		}
		return "", use
	}
	family, use := full()
	if family != "" && s.removeDead(ctx, "its network namespace is gone", "", s.alloc.Leases()) > 0 {
		family, use = full()
	}
	switch {
	case family != "":
		return api.StatusReply{}, api.Errorf(api.CodeNotAvailable, "no free %s address", family)
	case !slices.ContainsFunc(use, func(u api.PoolUse) bool { return u.Size > 0 }):
		return api.StatusReply{}, api.Errorf(api.CodeNotAvailable, "%v", ipam.ErrNoPools)
	}
	return api.StatusReply{Pools: use}, nil
}
