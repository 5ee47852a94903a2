package probe

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/host"
)

// Responder says what a pod's built-in responder serves: the ports of containers that
// have no command. On TCP it answers an HTTP request with who answers and whom it
// sees, and echoes anything else; on UDP it echoes, and answers the empty datagram
// with the same text.
type Responder struct {
	Ports []Port `json:"ports,omitempty"`
}

// Port is one port that is served.
type Port struct {
	Protocol string `json:"protocol,omitempty"` // "tcp" if empty
	Port     uint16 `json:"port"`
}

// Encode is the responder as a host's Spec.Data.
func (r Responder) Encode() json.RawMessage {
	b, _ := json.Marshal(r) // plain fields: never fails
	return b
}

// Unsupported names the ports that this kernel cannot serve.
func (r Responder) Unsupported() []string {
	var out []string
	for _, p := range r.Ports {
		switch p.Protocol {
		case "", "tcp", "udp":
		case "sctp":
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP)
			if err != nil {
				out = append(out, fmt.Sprintf("port %d/sctp is not served: %v", p.Port, errNoSCTP(err)))
				continue
			}
			_ = unix.Close(fd)
			out = append(out, fmt.Sprintf("port %d/sctp is not served: the responder has no SCTP", p.Port))
		default:
			out = append(out, fmt.Sprintf("port %d: protocol %q is not TCP, UDP or SCTP", p.Port, p.Protocol))
		}
	}
	return out
}

func errNoSCTP(err error) error {
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ESOCKTNOSUPPORT) {
		return errors.New("this kernel has no SCTP")
	}
	return err
}

// Answer is what the responder tells of itself and its client.
type Answer struct {
	Hostname string       `json:"hostname"`
	Addrs    []netip.Addr `json:"addrs"`
	From     string       `json:"from"` // the client's address and port
}

// Respond is the Builtin of every lab host: it serves what the spec's Data says, and
// fails if a port is taken.
func Respond(ctx context.Context, spec *host.Spec) error {
	var r Responder
	if len(spec.Data) == 0 {
		return nil
	}
	if err := json.Unmarshal(spec.Data, &r); err != nil {
		return err
	}
	var errs []error
	for _, p := range r.Ports {
		addr := fmt.Sprintf(":%d", p.Port)
		switch p.Protocol {
		case "", "tcp":
			l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			go serveTCP(ctx, l)
		case "udp":
			c, err := net.ListenUDP("udp", &net.UDPAddr{Port: int(p.Port)})
			if err != nil {
				errs = append(errs, err)
				continue
			}
			go serveUDP(c)
		}
	}
	return errors.Join(errs...)
}

func serveTCP(ctx context.Context, l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of descriptors, say
			continue
		}
		go answerTCP(ctx, c)
	}
}

// answerTCP speaks HTTP if the client does, else echoes.
func answerTCP(_ context.Context, c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(c)
	start, err := r.Peek(4)
	if err != nil && r.Buffered() == 0 {
		return
	}
	verbs := []string{"GET ", "HEAD", "POST", "PUT ", "DELE", "OPTI", "PATC"}
	if !slices.Contains(verbs, string(start)) {
		_, _ = io.Copy(c, r)
		return
	}
	for {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, req.Body)
		body := answerText(c.RemoteAddr())
		res := http.Response{
			StatusCode: http.StatusOK, ProtoMajor: 1, ProtoMinor: 1, Request: req, Close: req.Close,
			ContentLength: int64(len(body)), Body: io.NopCloser(strings.NewReader(body)),
			Header: http.Header{"Content-Type": {"application/json"}},
		}
		if res.Write(c) != nil || req.Close {
			return
		}
	}
}

// serveUDP answers from the address that was asked: a host may have several.
func serveUDP(c *net.UDPConn) {
	raw, err := c.SyscallConn()
	if err == nil {
		_ = raw.Control(func(fd uintptr) { // one of both, as the socket's family is
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		})
	}
	buf, oob := make([]byte, 65536), make([]byte, 256)
	for {
		n, m, _, from, err := c.ReadMsgUDP(buf, oob)
		if err != nil { // an ICMP error of an answer before
			time.Sleep(time.Millisecond)
			continue
		}
		out := buf[:n]
		if n == 0 {
			out = []byte(answerText(from))
		}
		// What says where a packet came in says, when sent, where the answer comes from.
		_, _, _ = c.WriteMsgUDP(out, oob[:m], from)
	}
}

// answerText is an Answer as a line of JSON.
func answerText(from net.Addr) string {
	a := Answer{From: from.String()}
	if ap, err := netip.ParseAddrPort(a.From); err == nil {
		a.From = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()).String()
	}
	a.Hostname, _ = os.Hostname()
	addrs, _ := net.InterfaceAddrs()
	for _, x := range addrs {
		if p, err := netip.ParsePrefix(x.String()); err == nil && p.Addr().IsGlobalUnicast() {
			a.Addrs = append(a.Addrs, p.Addr())
		}
	}
	b, _ := json.Marshal(a)
	return string(b) + "\n"
}
