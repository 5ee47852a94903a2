package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"weft/internal/netset"
)

// Target is the server to measure against.
type Target struct {
	Host string // name or address
	Port uint16 // control port, 0: DefaultPort
	// Network is "tcp" for either family, "tcp4" or "tcp6", as in net.Dial.
	Network string
}

// client is the client's half of one test, in a locked thread.
type client struct {
	ctx    context.Context
	spec   *Spec
	remote netip.AddrPort // where the test's traffic goes
	addr   *sockaddr      // the same, encoded
	result *Result
}

// Run does one test and waits for the server's count. Errors name host and port.
func Run(ctx context.Context, t Target, spec Spec) (*Result, error) {
	quiet()
	spec.Defaults()
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	if t.Port == 0 {
		t.Port = DefaultPort
	}
	if t.Network == "" {
		t.Network = "tcp"
	}
	fail := func(what string, port uint16, err error) error {
		return fmt.Errorf("%s %s port %d: %w", what, t.Host, port, short(err))
	}
	dialer := net.Dialer{Timeout: stall}
	conn, err := dialer.DialContext(ctx, t.Network, net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port))))
	if err != nil {
		return nil, fail("connect to", t.Port, err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(stall + spec.span()))
	in, out := json.NewDecoder(conn), json.NewEncoder(conn)
	var ok ready
	if err := errors.Join(out.Encode(spec), in.Decode(&ok)); err != nil {
		return nil, fail("agree on a test with", t.Port, err)
	}
	if ok.Error != "" {
		return nil, fail(fmt.Sprintf("%s test refused by", spec.Mode), t.Port, errors.New(ok.Error))
	}
	at := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	c := &client{ctx: ctx, spec: &spec, remote: netip.AddrPortFrom(at, ok.Port)}
	c.addr = rawAddr(c.remote)
	c.result = &Result{Spec: spec, Host: t.Host, Remote: c.remote.String(), Family: netset.Of(at).String()}
	failed := make(chan error, 1)
	go locked(func() { failed <- c.run() })
	broken := <-failed
	if broken != nil { // the server may know better why
		_ = conn.SetDeadline(time.Now().Add(patience))
	}
	var r report
	if err := errors.Join(out.Encode(done{}), in.Decode(&r)); err != nil && broken == nil {
		return nil, fail("read the result of", t.Port, err)
	}
	if r.Error != "" {
		return nil, fail(fmt.Sprintf("%s test: server on", spec.Mode), t.Port, errors.New(r.Error))
	}
	if broken != nil {
		return nil, fail(fmt.Sprintf("%s test with", spec.Mode), ok.Port, broken)
	}
	return c.result, c.merge(&r)
}

// short strips what net adds to an error that the caller says already.
func short(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// run measures; it is called in the locked thread.
func (c *client) run() error {
	if err := place(c.spec.ClientCPU, c.spec.Priority); err != nil {
		return err
	}
	switch c.spec.Mode {
	case Stream:
		return c.stream()
	case RR:
		return c.rr()
	case CRR:
		return c.crr()
	case UDPRR:
		return c.udpRR()
	case UDPPPS:
		return c.udpPPS()
	case Flows:
		return c.flows()
	}
	return nil
}

// merge takes from the server's report what only the receiver knows.
func (c *client) merge(r *report) error {
	res := c.result
	res.Server = r.Side
	switch c.spec.Mode {
	case Stream:
		res.Bytes, res.Seconds, res.Longest = r.Bytes, r.Seconds, r.Longest
	case UDPPPS:
		res.Lost = max(res.Transactions, r.Total) - r.Total
		res.Bytes, res.Seconds, res.Transactions = r.Bytes, r.Seconds, r.Transactions
	default:
		res.Bytes = res.Transactions * uint64(c.spec.Size)
	}
	if res.Seconds == 0 || res.Bytes == 0 {
		return fmt.Errorf("%s test with %s port %d: nothing arrived", c.spec.Mode, res.Host, c.remote.Port())
	}
	res.finish()
	return nil
}
