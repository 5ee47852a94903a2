package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"k8s.io/client-go/rest"

	"weft/internal/convert/wire"
)

// maxBody bounds what is read into memory at once: a page of a list, or one event. etcd's own limit for an
// object is 1.5 MiB.
const maxBody = 64 << 20

// client does requests.
type client struct {
	http *http.Client
	base *url.URL
}

func newClient(cfg *rest.Config) (*client, error) {
	cfg = rest.CopyConfig(cfg)
	// Decompressing costs more than the bytes of a watch on a cluster's own network.
	cfg.DisableCompression = true
	if cfg.UserAgent == "" {
		cfg.UserAgent = "weft"
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}).DialContext
	}
	hc, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to the API server %s: %w", cfg.Host, err)
	}
	base, _, err := rest.DefaultServerUrlFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("URL of the API server %q: %w", cfg.Host, err)
	}
	return &client{hc, base}, nil
}

// apiError is a metav1.Status, or an HTTP error without one.
type apiError struct {
	Code    int           `json:"code"`
	Reason  string        `json:"reason"`
	Message string        `json:"message"`
	retry   time.Duration // the server's wish, 0 if none
}

func (e *apiError) Error() string {
	if e.Message != "" {
		return e.Message
	}
	return fmt.Sprintf("HTTP status %d %s", e.Code, e.Reason)
}

func (e *apiError) read(f wire.Field) error {
	switch f.Num {
	case 3:
		e.Message = f.Text()
	case 4:
		e.Reason = f.Text()
	case 6:
		e.Code = int(f.Int())
	}
	return nil
}

// statusOf decodes a Status object.
func statusOf(body []byte, proto bool) *apiError {
	e := new(apiError)
	if proto {
		if _, raw, err := envelope(body); err == nil {
			_ = wire.Walk(raw, nil, e.read)
		}
		return e
	}
	_ = json.Unmarshal(body, e)
	return e
}

// expired reports whether err says that a resource version or a continue token is too old.
func expired(err error) bool {
	var e *apiError
	return errors.As(err, &e) && (e.Code == http.StatusGone || e.Reason == "Expired" || e.Reason == "Gone")
}

// code returns the HTTP status that an error stands for; 0 if there was no answer.
func code(err error) int {
	var e *apiError
	if !errors.As(err, &e) {
		return 0
	}
	return e.Code
}

// refused reports whether the server does not understand the request (400, 404, 405, 422), so that repeating it is no use.
func refused(err error) bool {
	switch code(err) {
	case http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusUnprocessableEntity:
		return true
	}
	return false
}

// get sends a GET request. The caller closes the body of a response; an answer other than 200 is an *apiError.
func (c *client) get(ctx context.Context, path string, query url.Values, accept string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url(path, query), nil)
	if err != nil {
		return nil, fmt.Errorf("request %s: %w", path, err)
	}
	req.Header.Set("Accept", accept)
	return c.do(req)
}

func (c *client) url(path string, query url.Values) string {
	u := *c.base
	u.Path = strings.TrimSuffix(u.Path, "/") + path
	u.RawPath = ""
	u.RawQuery = query.Encode()
	return u.String()
}

// do sends a request. The caller closes the body of a response; an answer that is not 2xx is an *apiError.
func (c *client) do(req *http.Request) (*http.Response, error) {
	resp, err := c.http.Do(req)
	if err != nil {
		var long *url.Error // its text has the whole query
		if errors.As(err, &long) {
			err = long.Err
		}
		return nil, fmt.Errorf("API server %s: %w", c.base.Host, err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	e := statusOf(body, isProto(resp))
	if e.Code == 0 {
		e.Code = resp.StatusCode
		e.Message = strings.TrimSpace(fmt.Sprintf("HTTP status %s: %.200s", resp.Status, bytes.TrimSpace(body)))
	}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
		e.retry = min(time.Duration(s)*time.Second, time.Minute)
	}
	return nil, e
}

// The bodies that are sent.
const (
	jsonBody   = "application/json"
	mergePatch = "application/merge-patch+json"
)

// write sends an object, or a change of one, and decodes the answer into out, if that is not nil. It is given up after half a minute.
func (c *client) write(ctx context.Context, method, path, contentType string, body, out any) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	raw, isRaw := body.([]byte)
	if !isRaw {
		var err error
		if raw, err = json.Marshal(body); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, c.url(path, nil), bytes.NewReader(raw))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("Accept", jsonBody)
	resp, err := c.do(req)
	if err != nil {
		return fmt.Errorf("%s %s: %w", strings.ToLower(method), path, err)
	}
	return decodeBody(resp, out)
}

// read gets an object as JSON.
func (c *client) read(ctx context.Context, path string, out any) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	resp, err := c.get(ctx, path, nil, jsonBody)
	if err != nil {
		return fmt.Errorf("get %s: %w", path, err)
	}
	return decodeBody(resp, out)
}

func decodeBody(resp *http.Response, out any) error {
	defer resp.Body.Close()
	b, err := readBody(resp)
	if err != nil || out == nil {
		return err
	}
	return json.Unmarshal(b, out)
}

func isProto(r *http.Response) bool { return strings.HasPrefix(r.Header.Get("Content-Type"), protobuf) }

// readBody reads a response whole.
func readBody(r *http.Response) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err == nil && len(b) > maxBody {
		err = fmt.Errorf("answer of more than %d bytes", maxBody)
	}
	return b, err
}
