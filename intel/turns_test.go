package intel

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// silent is a web that answers for one host only; the others are silent until the request is
// given up.
type silent struct{ asked atomic.Int32 }

func (h *silent) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Host == "good.example" {
		return &http.Response{StatusCode: 200, Header: http.Header{}, Request: r, ContentLength: -1, Body: io.NopCloser(strings.NewReader("a.example\n"))}, nil
	}
	h.asked.Add(1)
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// TestSilentServerHoldsUpNobodyElse: while one list is being fetched in vain the others are
// updated at once, and who wants the same list waits for it instead of asking twice at once.
func TestSilentServerHoldsUpNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		web := &silent{}
		s := New(Options{Client: &http.Client{Transport: web}})
		path := t.TempDir() + "/list"
		write(t, path, "b.example\n")
		if err := s.Configure(Spec{Lists: []ListSpec{
			{ID: "dead", Category: "MAL", Format: "domains", URL: "https://dead.example/"}, {ID: "good", Category: "MAL", Format: "domains", URL: "https://good.example/"},
			{ID: "file", Category: "MAL", Format: "domains", Path: path},
		}}); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		synctest.Wait() // it waits for dead.example
		began := time.Now()
		write(t, path, "b.example\nc.example\n")
		if err := s.Update(t.Context(), "good", "file"); err != nil || len(s.Matches("a.example")) != 1 || len(s.Matches("c.example")) != 1 || time.Since(began) != 0 {
			t.Errorf("after %s: %v, %+v", time.Since(began), err, s.Status())
		}
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		if err := s.Update(short, "dead"); !errors.Is(err, context.DeadlineExceeded) || web.asked.Load() != 1 {
			t.Errorf("%v, asked %d times", err, web.asked.Load())
		}
		cancel()
		if err := s.Update(t.Context(), "dead"); err == nil || web.asked.Load() != 2 || time.Since(began) != 2*fetchTimeout {
			t.Errorf("after %s: %v, asked %d times", time.Since(began), err, web.asked.Load())
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
