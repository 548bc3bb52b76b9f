package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"
)

// Client talks to the daemon behind one socket. It may be used by several goroutines.
type Client struct {
	http   http.Client
	socket string
}

// ErrNotRunning means that nobody serves the socket.
var ErrNotRunning = errors.New("gatun is not running")

// NewClient returns a client for that socket; it connects on the first call.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	return &Client{socket: socket, http: http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// Error is an answer that is not a success.
type Error struct {
	Code int // the HTTP status
	Failure
}

// Error is what the program said.
func (e *Error) Error() string { return e.Message }

// Is makes an answer of 403 a missing permission.
func (e *Error) Is(target error) bool {
	return e.Code == http.StatusForbidden && target == os.ErrPermission
}

// Get decodes the answer to GET path?q into out.
func (c *Client) Get(ctx context.Context, path string, q url.Values, out any) error {
	return c.call(ctx, message{method: http.MethodGet, path: path, query: q}, out)
}

// Post sends an empty POST and decodes the answer into out.
func (c *Client) Post(ctx context.Context, path string, out any) error {
	return c.call(ctx, message{method: http.MethodPost, path: path}, out)
}

// Delete sends DELETE path and decodes the answer into out.
func (c *Client) Delete(ctx context.Context, path string, out any) error {
	return c.call(ctx, message{method: http.MethodDelete, path: path}, out)
}

// DeleteSome sends DELETE path?q and decodes the answer into out.
func (c *Client) DeleteSome(ctx context.Context, path string, q url.Values, out any) error {
	return c.call(ctx, message{method: http.MethodDelete, path: path, query: q}, out)
}

// Send sends body as JSON with that method and decodes the answer into out.
func (c *Client) Send(ctx context.Context, method, path string, body, out any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	return c.call(ctx, message{method: method, path: path, kind: typeJSON, body: b}, out)
}

// SendYAML sends a text of YAML with that method and decodes the answer into out.
func (c *Client) SendYAML(ctx context.Context, method, path string, body []byte, out any) error {
	return c.call(ctx, message{method: method, path: path, kind: typeYAML, body: body}, out)
}

// Raw returns the answer to GET path?q as it was sent.
func (c *Client) Raw(ctx context.Context, path string, q url.Values) ([]byte, error) {
	res, err := c.do(ctx, message{method: http.MethodGet, path: path, query: q})
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	return io.ReadAll(res.Body)
}

// message is what is sent.
type message struct {
	method, path string
	query        url.Values
	kind         string // content type of the body
	body         []byte
}

func (c *Client) call(ctx context.Context, r message, out any) error {
	res, err := c.do(ctx, r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	return json.NewDecoder(res.Body).Decode(out)
}

func (c *Client) do(ctx context.Context, r message) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, r.method, "http://gatun"+r.path+"?"+r.query.Encode(), bytes.NewReader(r.body))
	if err != nil {
		return nil, err
	}
	if r.kind != "" {
		req.Header.Set("Content-Type", r.kind)
	}
	res, err := c.http.Do(req)
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w: nobody listens on %s", ErrNotRunning, c.socket)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("%s: %w", c.socket, os.ErrPermission)
	case err != nil:
		return nil, err
	case res.StatusCode == http.StatusOK:
		return res, nil
	}
	defer res.Body.Close()
	return nil, failure(res)
}

func failure(res *http.Response) error {
	e := &Error{Code: res.StatusCode}
	b, _ := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if json.Unmarshal(b, &e.Failure) != nil || e.Message == "" {
		e.Message = strings.TrimSpace(string(b))
	}
	return e
}

// Events calls f with every event as JSON until ctx ends or f fails. since = nil begins now;
// otherwise the kept events above it come first.
func (c *Client) Events(ctx context.Context, since *uint64, f func(json.RawMessage) error) error {
	q := url.Values{}
	if since != nil {
		q.Set("since", fmt.Sprint(*since))
	}
	return c.stream(ctx, "/v1/events", q, func(_ string, data json.RawMessage) error { return f(data) })
}

// Watch calls f with every change below a prefix of the virtual database, first with what is
// there: event is put, ready, or delete.
func (c *Client) Watch(ctx context.Context, prefix string, f func(event string, data json.RawMessage) error) error {
	return c.stream(ctx, "/v1/db/"+prefix, url.Values{"watch": {"1"}}, f)
}

func (c *Client) stream(ctx context.Context, path string, q url.Values, f func(event string, data json.RawMessage) error) error {
	res, err := c.do(ctx, message{method: http.MethodGet, path: path, query: q})
	if err != nil {
		return err
	}
	defer res.Body.Close()
	lines := bufio.NewReader(res.Body)
	event := ""
	for {
		line, err := lines.ReadBytes('\n')
		if name, ok := bytes.CutPrefix(line, []byte("event: ")); ok {
			event = string(bytes.TrimSpace(name))
		}
		if data, ok := bytes.CutPrefix(line, []byte("data: ")); ok {
			if err := f(event, bytes.TrimSpace(data)); err != nil {
				return err
			}
		}
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("%w: the connection ended", ErrNotRunning)
		}
	}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
