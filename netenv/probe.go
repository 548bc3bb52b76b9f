package netenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Probe is how it is found out whether the Internet can be reached. Its functions go around the
// TUN, to the network itself.
type Probe struct {
	// URL is a page in plain HTTP. What its content has to begin with stands behind a #, as in
	// http://connectivity.example/nm.txt#NetworkManager; without, it has to be empty with
	// status 204, or the word success. What is no such address, as "" or "off": nothing is
	// asked, only hints count.
	URL string
	// Resolve asks the system's nameservers, past every cache. nil: no name is resolved, and only
	// a page whose host is an address is asked for.
	Resolve func(ctx context.Context, name string) ([]netip.Addr, error)
	// Dial connects to an address.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

const (
	resolveWithin = 5 * time.Second
	dialWithin    = 3 * time.Second // of one address
	pageWithin    = 8 * time.Second // of all of them
	maxAddrs      = 4
	maxBody       = 4 << 10 // of the page that is looked at
	maxHeader     = 16 << 10
	maxPortalURL  = 512
)

// usualAnswer is what the common test pages say that have no form of their own.
const usualAnswer = "success"

// page is the parsed URL of a Probe.
type page struct {
	url    *url.URL // without the fragment
	expect string
	addr   netip.Addr // where the host is one
}

// checked is what a check has found.
type checked struct {
	page, names finding
	portal      string       // where the portal wants people to go
	addrs       []netip.Addr // of the page's host
	err         error        // why the page could not be had
}

// parse reads the URL; ok is false where nothing is to be asked.
func (p *Probe) parse() (page, bool) {
	u, err := url.Parse(p.URL)
	if err != nil || u.Scheme != "http" || u.Hostname() == "" {
		return page{}, false
	}
	g := page{url: u, expect: u.Fragment}
	u.Fragment, u.RawFragment, u.User = "", "", nil
	g.addr, _ = netip.ParseAddr(u.Hostname())
	return g, p.Dial != nil && (g.addr.IsValid() || p.Resolve != nil)
}

// run asks once. known are the addresses that the page's host had last time: while names are not
// resolved they tell whether that is all that is missing.
func (p *Probe) run(ctx context.Context, known []netip.Addr) checked {
	g, ok := p.parse()
	if !ok {
		return checked{}
	}
	var c checked
	if g.addr.IsValid() {
		c.addrs = []netip.Addr{g.addr}
	} else {
		c.addrs, c.err = p.resolve(ctx, strings.ToLower(strings.TrimSuffix(g.url.Hostname(), ".")))
		c.names = succeeded
		if c.err != nil {
			c.names, c.addrs = failed, known
		}
	}
	if len(c.addrs) == 0 {
		c.page = failed
		return c
	}
	var err error
	if c.page, c.portal, err = p.get(ctx, g, c.addrs); err != nil {
		c.err = err
	}
	return c
}

// resolve returns the addresses that may be asked, IPv4 first, because portals answer there and
// many drop IPv6 in silence. The network chooses them: a page of this very machine is none of its
// pages.
func (p *Probe) resolve(ctx context.Context, name string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, resolveWithin)
	defer cancel()
	all, err := p.Resolve(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", name, err)
	}
	var addrs []netip.Addr
	for _, a := range all {
		if a = a.Unmap(); !a.IsLoopback() && !a.IsUnspecified() && !a.IsMulticast() {
			addrs = append(addrs, a)
		}
	}
	slices.SortStableFunc(addrs, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	return addrs[:min(len(addrs), maxAddrs)], nil
}

// get asks for the page and looks at what came.
func (p *Probe) get(ctx context.Context, g page, addrs []netip.Addr) (f finding, portal string, err error) {
	ctx, cancel := context.WithTimeout(ctx, pageWithin)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.url.String(), nil)
	if err != nil {
		return failed, "", err
	}
	req.Header.Set("User-Agent", "") // not sent
	req.Header.Set("Cache-Control", "no-cache")
	t := &http.Transport{
		DialContext:        p.dialer(g, addrs),
		DisableKeepAlives:  true, // every check is a connection of its own
		DisableCompression: true, MaxResponseHeaderBytes: maxHeader,
	}
	defer t.CloseIdleConnections()
	resp, err := t.RoundTrip(req) // follows nothing, keeps no cookies
	if err != nil {
		return failed, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return failed, "", err
	}
	f, portal, err = g.judge(resp, body)
	return f, portal, err
}

// dialer tries the addresses in turn, whatever the transport wants to dial.
func (p *Probe) dialer(g page, addrs []netip.Addr) func(context.Context, string, string) (net.Conn, error) {
	port := g.url.Port()
	if port == "" {
		port = "80"
	}
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		var errs []error
		for _, a := range addrs {
			one, cancel := context.WithTimeout(ctx, dialWithin)
			c, err := p.Dial(one, "tcp", net.JoinHostPort(a.String(), port))
			cancel()
			if err == nil {
				return c, nil
			}
			errs = append(errs, err)
		}
		return nil, errors.Join(errs...)
	}
}

// judge tells the page itself, somebody else's, and what says neither. A server that is broken,
// or that leads to its own encrypted pages, is no portal.
func (g page) judge(resp *http.Response, body []byte) (f finding, portal string, err error) {
	switch code := resp.StatusCode; {
	case g.expected(code, body):
		return succeeded, "", nil
	case code == http.StatusNetworkAuthenticationRequired:
	case code >= 200 && code < 300:
	case code >= 300 && code < 400 && code != http.StatusNotModified:
		to, err := resp.Location()
		if err == nil && to.Scheme == "https" && strings.EqualFold(to.Hostname(), g.url.Hostname()) {
			return failed, "", fmt.Errorf("%s leads to its encrypted pages: set network/onlineCheck to a page in plain HTTP", g.url)
		}
		if err == nil {
			return foreign, portalURL(to, g.url), nil
		}
	default:
		return failed, "", fmt.Errorf("%s answers %s", g.url, resp.Status)
	}
	return foreign, portalURL(g.url, g.url), nil // in a browser, it shows what came
}

func (g page) expected(code int, body []byte) bool {
	switch {
	case g.expect != "":
		return code == http.StatusOK && bytes.HasPrefix(body, []byte(g.expect))
	case code == http.StatusNoContent:
		return len(body) == 0
	default:
		return code == http.StatusOK && string(bytes.TrimSpace(body)) == usualAnswer
	}
}

// portalURL makes the address that a portal gave fit to be shown: it comes from strangers, and
// goes to terminals.
func portalURL(to, fallback *url.URL) string {
	shown := *to
	shown.User = nil
	text := shown.String()
	if shown.Scheme != "http" && shown.Scheme != "https" || shown.Hostname() == "" || len(text) > maxPortalURL || !printable(text) {
		return fallback.String()
	}
	return text
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}
