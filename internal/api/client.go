package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// acceptWait is how long an agent may take to accept a request; longer, and it hangs, or is stopped. With the
// plugin's own start it stays below the 2 s in which an ADD must fail when the agent is away.
const acceptWait = 1700 * time.Millisecond

// Call asks the agent at the socket and stores the first result in *result, which may be nil.
// The agent's refusal is an *Error. An agent that is not there, or goes away before it answered, is an
// error that Away recognises.
func Call(ctx context.Context, socket, method string, params, result any) error {
	answered := errors.New("answered")
	err := Stream(ctx, socket, method, params, func(raw json.RawMessage) error {
		if result == nil {
			return answered
		}
		if err := json.Unmarshal(raw, result); err != nil {
			return fmt.Errorf("%s: decode result: %w", method, err)
		}
		return answered
	})
	if errors.Is(err, answered) {
		return nil
	}
	return err
}

// Stream asks the agent and hands every result to each, until the agent ends the stream (nil), ctx ends, or
// each returns an error, which is returned.
func Stream(ctx context.Context, socket, method string, params any, each func(json.RawMessage) error) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return &awayError{fmt.Errorf("connect to the agent: %w", err), false}
	}
	defer conn.Close()
	// Closing is what wakes a blocked read or write when ctx ends; it also is what tells the agent.
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	req := request{Method: method}
	if params != nil {
		if req.Params, err = json.Marshal(params); err != nil {
			return fmt.Errorf("%s: encode parameters: %w", method, err)
		}
	}
	if t, ok := ctx.Deadline(); ok {
		req.TimeoutMillis = max(time.Until(t).Milliseconds(), 1)
	}
	if err := writeFrame(conn, req); err != nil {
		return lost(ctx, method, err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(acceptWait))
	for {
		var rep reply
		if err := readFrame(conn, &rep); err != nil {
			return lost(ctx, method, err)
		}
		switch {
		case rep.Accepted:
			_ = conn.SetReadDeadline(time.Time{})
			continue
		case rep.Error != nil:
			return rep.Error
		case rep.End:
			return nil
		}
		if err := each(rep.Result); err != nil {
			return err
		}
	}
}

// Away reports whether err means that there is no agent to talk to, or that it went away
// without an answer.
func Away(err error) bool {
	var a *awayError
	return errors.As(err, &a)
}

// Lost reports whether the agent went away after it was asked: what was asked may have happened.
func Lost(err error) bool {
	var a *awayError
	return errors.As(err, &a) && a.asked
}

type awayError struct {
	err   error
	asked bool
}

func (e *awayError) Error() string { return e.err.Error() }
func (e *awayError) Unwrap() error { return e.err }

// lost explains a connection that broke before the end of the stream.
func lost(ctx context.Context, method string, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", method, context.Cause(ctx))
	case errors.Is(err, ErrFrame):
		return fmt.Errorf("%s: %w", method, err)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &awayError{fmt.Errorf("%s: the agent hangs: it did not accept the request within %s", method, acceptWait), true}
	case errors.Is(err, io.EOF):
		return &awayError{fmt.Errorf("%s: the agent closed the connection without an answer", method), true}
	}
	return &awayError{fmt.Errorf("%s: %w", method, err), true}
}
