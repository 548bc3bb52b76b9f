package intel

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	fetchTimeout = 5 * time.Minute
	pollFiles    = 30 * time.Second // how often local files are asked whether they changed
	retryFirst   = time.Minute      // after a failure, doubled with each further one
	retryLast    = time.Hour
)

// Run keeps the lists up to date until ctx ends: URLs when they are due, with some jitter so that
// not all machines ask at once, and files when they changed.
func (s *Store) Run(ctx context.Context) error {
	for {
		wait := s.round(ctx)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-s.wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// retrySoon is when a list is fetched again that could not be, after the network changed.
const retrySoon = 3 * time.Second

// Retry has the lists fetched again soon that could not be fetched: the network is another one.
func (s *Store) Retry() {
	s.replace(func(last *state) *state {
		lists := slices.Clone(last.lists)
		for i, l := range lists {
			if soon := s.o.Clock().Add(jitter(retrySoon)); l.spec.URL != "" && l.failures > 0 && l.next.After(soon) {
				lists[i] = l.with(func(n *list) { n.next = soon })
			}
		}
		return &state{snapshot: newSnapshot(s.seed, lists, last.geo, last.snapshot), spec: last.spec}
	})
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// round does what is due and returns how long nothing will be.
func (s *Store) round(ctx context.Context) time.Duration {
	s.pollFiles()
	wait := pollFiles
	for _, l := range s.now.Load().lists {
		if l.spec.URL == "" || s.o.Client == nil && l.fault != "" {
			continue
		}
		if !l.next.After(s.o.Clock()) && ctx.Err() == nil {
			next, err := s.refresh(ctx, l, false)
			if err != nil {
				return pollFiles // the program ends
			}
			l = next
		}
		wait = min(wait, max(l.next.Sub(s.o.Clock()), time.Millisecond))
	}
	return wait
}

// pollFiles reads the local files that changed.
func (s *Store) pollFiles() {
	st := s.now.Load()
	var changed []*list
	for _, l := range st.lists {
		if l.spec.Path == "" {
			continue
		}
		if next := s.readPath(l, false); next != l && (next.fault != l.fault || next.mark != l.mark) {
			changed = append(changed, next)
		}
	}
	if changed != nil {
		s.put(changed...)
	}
	if g := s.geoOf(st.spec, st.geo); g != st.geo {
		s.replace(func(last *state) *state {
			if last.spec.Country != st.spec.Country || last.spec.ASN != st.spec.ASN {
				g = last.geo
			}
			return &state{snapshot: newSnapshot(s.seed, last.lists, g, last.snapshot), spec: last.spec}
		})
	}
}

// fetch asks the server of a list for a newer copy. The list that it returns has one, or the
// reason why not.
func (s *Store) fetch(ctx context.Context, l *list, insist bool) *list {
	next, data, err := s.request(ctx, l, insist)
	now := s.o.Clock()
	switch {
	case err != nil && errors.Is(ctx.Err(), context.Canceled): // the program ends: nothing is wrong with the list
		return l
	case err != nil:
		return s.failed(l, err).with(func(n *list) {
			n.next = now.Add(jitter(min(retryFirst<<min(n.failures, 10), retryLast, every(n.spec))))
			n.failures++
		})
	}
	next = next.with(func(n *list) {
		n.checked, n.next, n.failures, n.fault = now, now.Add(jitter(every(n.spec))), 0, ""
		if data != nil {
			n.updated = now
		}
	})
	if err := s.writeCache(next, data); err != nil {
		return s.failed(next, fmt.Errorf("the copy cannot be kept: %w", err))
	}
	return next
}

func every(spec ListSpec) time.Duration {
	if spec.Every <= 0 {
		return defaultEvery
	}
	return spec.Every
}

// jitter returns a time from nine to eleven tenths of d.
func jitter(d time.Duration) time.Duration { return d - d/10 + rand.N(max(d/5, 1)) }

// request returns the list with the contents that the server has; data is nil where they are the
// ones that are there.
func (s *Store) request(ctx context.Context, l *list, insist bool) (next *list, data []byte, err error) {
	if s.o.Client == nil {
		return nil, nil, errors.New("nothing is fetched in this mode")
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, l.spec.URL, nil)
	if err != nil {
		return nil, nil, bare(err)
	}
	req.Header.Set("User-Agent", "gatun")
	if l.good && !insist {
		setIf(req.Header, "If-None-Match", l.etag)
		setIf(req.Header, "If-Modified-Since", l.modified)
	}
	resp, err := s.o.Client.Do(req)
	if err != nil {
		return nil, nil, bare(err)
	}
	defer resp.Body.Close()
	switch {
	case resp.Request != nil && req.URL.Scheme == "https" && resp.Request.URL.Scheme != "https":
		return nil, nil, errors.New("the server leads from https to a place without encryption")
	case resp.StatusCode == http.StatusNotModified && l.good && !insist:
		return l, nil, nil
	case resp.StatusCode != http.StatusOK:
		return nil, nil, fmt.Errorf("the server says %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	case resp.ContentLength > s.o.MaxBytes:
		return nil, nil, fmt.Errorf("%w: %d MiB, at most %d", errTooLarge, resp.ContentLength>>20, s.o.MaxBytes>>20)
	}
	if data, err = readLimited(resp.Body, s.o.MaxBytes); err != nil {
		return nil, nil, bare(err)
	}
	if next, err = l.take(data, s.o.MaxEntries, insist); err != nil {
		return nil, nil, err
	}
	if next == l {
		data = nil
	}
	return next.with(func(n *list) { n.etag, n.modified = header(resp, "Etag"), header(resp, "Last-Modified") }), data, nil
}

func setIf(h http.Header, name, value string) {
	if value != "" {
		h.Set(name, value)
	}
}

// header returns a header that can be sent back.
func header(resp *http.Response, name string) string {
	value := resp.Header.Get(name)
	if len(value) > 256 || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }) {
		return ""
	}
	return value
}

// bare takes the URL out of an error: it may have a password.
func bare(err error) error {
	var of *url.Error
	if errors.As(err, &of) {
		return of.Err
	}
	return err
}
