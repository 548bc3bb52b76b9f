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

// Get decodes the answer to GET path?q into out.
func (c *Client) Get(ctx context.Context, path string, q url.Values, out any) error {
	return c.call(ctx, http.MethodGet, path, q, out)
}

// Post sends an empty POST and decodes the answer into out.
func (c *Client) Post(ctx context.Context, path string, out any) error {
	return c.call(ctx, http.MethodPost, path, nil, out)
}

// Delete sends DELETE path and decodes the answer into out.
func (c *Client) Delete(ctx context.Context, path string, out any) error {
	return c.call(ctx, http.MethodDelete, path, nil, out)
}

func (c *Client) call(ctx context.Context, method, path string, q url.Values, out any) error {
	res, err := c.do(ctx, method, path, q)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	return json.NewDecoder(res.Body).Decode(out)
}

func (c *Client) do(ctx context.Context, method, path string, q url.Values) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://gatun"+path+"?"+q.Encode(), nil)
	if err != nil {
		return nil, err
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
	b, _ := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	var f Failure
	if json.Unmarshal(b, &f) != nil || f.Message == "" {
		f.Message = strings.TrimSpace(string(b))
	}
	if res.StatusCode == http.StatusForbidden {
		return fmt.Errorf("%s: %w", f.Message, os.ErrPermission)
	}
	return errors.New(f.Message)
}

// Events calls f with every event as JSON until ctx ends or f fails. since = nil begins now;
// otherwise the kept events above it come first.
func (c *Client) Events(ctx context.Context, since *uint64, f func(json.RawMessage) error) error {
	q := url.Values{}
	if since != nil {
		q.Set("since", fmt.Sprint(*since))
	}
	res, err := c.do(ctx, http.MethodGet, "/v1/events", q)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	lines := bufio.NewReader(res.Body)
	for {
		line, err := lines.ReadBytes('\n')
		if data, ok := bytes.CutPrefix(line, []byte("data: ")); ok {
			if err := f(bytes.TrimSpace(data)); err != nil {
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

func sortedKeys(m map[string]uint64) []string { return slices.Sorted(maps.Keys(m)) }
