package cni

import (
	"context"
	"errors"
	"maps"
	"time"

	"weft/internal/api"
)

// errOvertaken is why an ADD ends whose DEL came meanwhile.
var errOvertaken = errors.New("a DEL of this attachment came after this ADD was started")

// turn is the right to work on one endpoint: one holder, others wait.
type turn struct {
	id     string
	free   chan struct{}           // holds a token when nobody works
	users  int                     // holder and waiting ones; guarded by Source.mu
	cancel context.CancelCauseFunc // ends the holder, if it is an ADD; guarded by Source.mu
}

// enter waits for the turn of the ID.
func (s *Source) enter(ctx context.Context, id string) (*turn, error) {
	t := s.join(id)
	select {
	case <-t.free:
		return t, nil
	default:
	}
	select {
	case <-t.free:
		return t, nil
	case <-ctx.Done():
		s.part(t)
		return nil, api.Errorf(api.CodeTryAgain, "another operation on %s takes its time: %v", id, context.Cause(ctx))
	}
}

// tryEnter returns the turn of the ID if nobody has it, else nil.
func (s *Source) tryEnter(id string) *turn {
	t := s.join(id)
	select {
	case <-t.free:
		return t
	default:
		s.part(t)
		return nil
	}
}

func (s *Source) join(id string) *turn {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.turns[id]
	if t == nil {
		t = &turn{id: id, free: make(chan struct{}, 1)}
		t.free <- struct{}{}
		s.turns[id] = t
	}
	t.users++
	return t
}

func (s *Source) part(t *turn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.users--; t.users == 0 {
		delete(s.turns, t.id)
	}
}

// leave gives the turn to the next one.
func (s *Source) leave(t *turn) {
	s.mu.Lock()
	t.cancel = nil
	s.mu.Unlock()
	t.free <- struct{}{}
	s.part(t)
}

// outrun refuses an ADD that was started before the last DEL of its attachment, and lets a DEL that comes
// later end it. The caller has the turn.
func (s *Source) outrun(ctx context.Context, t *turn, a api.Attachment) (context.Context, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if del, ok := s.dels[a.ID()]; ok && !a.Started.IsZero() && a.Started.Before(del) {
		return nil, api.Errorf(api.CodeTryAgain, "%v", errOvertaken)
	}
	ctx, t.cancel = context.WithCancelCause(ctx)
	return ctx, nil
}

// overtake notes the DEL of an attachment and ends an ADD of it that is under way.
func (s *Source) overtake(a api.Attachment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.turns[a.ID()]; t != nil && t.cancel != nil {
		t.cancel(errOvertaken)
	}
	if a.Started.IsZero() {
		return
	}
	s.dels[a.ID()] = a.Started
	// No runtime lets a plugin run that long, so no ADD of before can still come.
	old := s.cfg.Clock.Now().Add(-15 * time.Minute)
	if len(s.dels) > 1000 {
		maps.DeleteFunc(s.dels, func(_ string, t time.Time) bool { return t.Before(old) })
	}
}
