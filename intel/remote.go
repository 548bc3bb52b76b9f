package intel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// RemoteOptions are what a Remote needs of its surroundings. What is zero has a default.
type RemoteOptions struct {
	URL      string                 // https; "": nobody is asked
	Client   *http.Client           // goes around the firewall; must be set
	Skip     func(name string) bool // names that nobody else shall hear of; default: none
	Deadline time.Duration          // how long a query waits for what is known of its name; default 300 ms
	Keep     time.Duration          // of an answer that does not say how long it holds; default 1 h
	Failed   time.Duration          // how long nobody is asked again after a failure; default 10 s
	Most     int                    // names that are remembered; default 20 000
	Clock    func() time.Time       // default time.Now
	Logger   *zap.Logger            // default: none
}

const (
	remoteLateness = 10       // deadlines after which a request is given up: what comes late is for the next one
	remoteBytes    = 64 << 10 // of one answer
	remoteLists    = 64       // in one answer
	remoteAtOnce   = 64       // requests
	remoteKeepMin  = time.Minute
	remoteKeepMax  = 24 * time.Hour
)

// Remote asks a server over HTTPS what it knows of names, one GET for each name: the URL with the
// parameter name. The answer is a JSON object of which everything may be missing:
//
//	{"lists": [{"id": "ads", "category": "ADS"}], "country": "DE", "continent": "EU",
//	 "asn": 64496, "as_owner": "Example", "ttl": 3600}
//
// 404 means that nothing is known. A name is decided without what does not come in time: the server
// can make decisions stricter, and be away, but it holds up nobody. Its methods may be called from
// any goroutine.
type Remote struct {
	o   RemoteOptions
	url atomic.Pointer[string]

	mu      sync.Mutex
	known   generations
	flights map[string]chan struct{}

	asked, failed, late atomic.Uint64
	fault               atomic.Pointer[string]
}

// RemoteStatus tells what the server is worth.
type RemoteStatus struct {
	URL                 string // without a password or query; "": nobody is asked
	Asked, Failed, Late uint64
	Known               int    // names
	Error               string // of the newest request, "" if it succeeded
}

// remembered is what the server said of a name; stamp is nil where it said nothing.
type remembered struct {
	stamp *Stamp
	until time.Time
}

// generations remembers at most twice as many names as one generation has: the names that nobody
// asked for in a generation's time go together.
type generations struct {
	young, old map[string]remembered
	most       int
}

func (g *generations) get(name string) (remembered, bool) {
	r, ok := g.young[name]
	if ok {
		return r, true
	}
	if r, ok = g.old[name]; ok {
		g.put(name, r)
	}
	return r, ok
}

func (g *generations) put(name string, r remembered) {
	if g.young == nil || len(g.young) >= g.most {
		g.young, g.old = map[string]remembered{}, g.young
	}
	g.young[name] = r
}

// NewRemote makes a Remote.
func NewRemote(o RemoteOptions) *Remote {
	setDefault(&o.Deadline, 300*time.Millisecond)
	setDefault(&o.Keep, time.Hour)
	setDefault(&o.Failed, 10*time.Second)
	setDefault(&o.Most, 20_000)
	if o.Skip == nil {
		o.Skip = func(string) bool { return false }
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	r := &Remote{o: o, flights: map[string]chan struct{}{}}
	r.Configure(o.URL)
	return r
}

func setDefault[T time.Duration | int](v *T, to T) {
	if *v <= 0 {
		*v = to
	}
}

// Configure changes who is asked; "" asks nobody. What another one said is forgotten.
func (r *Remote) Configure(url string) {
	if now := r.url.Load(); now != nil && *now == url {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.url.Store(&url)
	r.known = generations{most: max(r.o.Most/2, 1)}
	r.fault.Store(nil)
}

// Wants reports whether Fetch would ask somebody about a name.
func (r *Remote) Wants(name string) bool {
	if *r.url.Load() == "" || name == "" || r.o.Skip(name) {
		return false
	}
	_, known := r.recall(name)
	return !known
}

func (r *Remote) recall(name string) (remembered, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m, ok := r.known.get(name)
	return m, ok && m.until.After(r.o.Clock())
}

// Fetch returns when it is known what the server says of the name, at the deadline, or when ctx
// ends. Who asks for the same name at the same time waits for the same request.
func (r *Remote) Fetch(ctx context.Context, name string) {
	if !r.Wants(name) {
		return
	}
	done := r.fly(name)
	if done == nil {
		return
	}
	deadline := time.NewTimer(r.o.Deadline)
	defer deadline.Stop()
	select {
	case <-done:
	case <-ctx.Done():
	case <-deadline.C:
		r.late.Add(1)
	}
}

// fly returns what is closed when the request for the name is over, nil where there are too many.
func (r *Remote) fly(name string) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if done := r.flights[name]; done != nil {
		return done
	}
	if len(r.flights) >= remoteAtOnce {
		return nil
	}
	done := make(chan struct{})
	r.flights[name] = done
	go r.ask(name, *r.url.Load(), done)
	return done
}

// ask outlives the query that began it: others may wait, and what comes late is for the next one.
func (r *Remote) ask(name, server string, done chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), remoteLateness*r.o.Deadline)
	defer cancel()
	r.asked.Add(1)
	stamp, keep, err := r.request(ctx, server, name)
	if err != nil {
		r.failed.Add(1)
		keep = r.o.Failed
		fault := printable(err.Error())
		if old := r.fault.Swap(&fault); old == nil || *old != fault {
			r.o.Logger.Warn("the remote intelligence cannot be asked", zap.String("server", bareURL(server)), zap.String("error", fault))
		}
	} else {
		r.fault.Store(nil)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if *r.url.Load() == server {
		r.known.put(name, remembered{stamp, r.o.Clock().Add(keep)})
	}
	delete(r.flights, name)
	close(done)
}

func (r *Remote) request(ctx context.Context, server, name string) (*Stamp, time.Duration, error) {
	u, err := url.Parse(server)
	if err != nil {
		return nil, 0, errors.New("the URL cannot be read")
	}
	query := u.Query()
	query.Set("name", name)
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, 0, bare(err)
	}
	req.Header.Set("User-Agent", "gatun")
	req.Header.Set("Accept", "application/json")
	resp, err := r.o.Client.Do(req)
	if err != nil {
		return nil, 0, bare(err)
	}
	defer resp.Body.Close()
	switch {
	case resp.Request != nil && u.Scheme == "https" && resp.Request.URL.Scheme != "https":
		return nil, 0, errors.New("the server leads from https to a place without encryption")
	case resp.StatusCode == http.StatusNotFound:
		return nil, r.o.Keep, nil
	case resp.StatusCode != http.StatusOK:
		return nil, 0, fmt.Errorf("the server says %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	}
	data, err := readLimited(resp.Body, remoteBytes)
	if err != nil {
		return nil, 0, bare(err)
	}
	return r.read(data, bareURL(server), name)
}

// read takes from an answer what can be understood, and leaves out the rest.
func (r *Remote) read(data []byte, place, name string) (*Stamp, time.Duration, error) {
	var a struct {
		Lists []struct {
			ID       string `json:"id"`
			Category string `json:"category"`
		} `json:"lists"`
		Country   string  `json:"country"`
		Continent string  `json:"continent"`
		ASN       uint32  `json:"asn"`
		ASOwner   string  `json:"as_owner"`
		TTL       float64 `json:"ttl"`
	}
	if err := json.Unmarshal(data, &a); err != nil {
		return nil, 0, fmt.Errorf("the answer is not what a server of intelligence says: %w", err)
	}
	s := &Stamp{ASN: a.ASN, ASOwner: printable(a.ASOwner)}
	record := map[string]any{"country": a.Country, "continent": a.Continent}
	s.Country, s.Continent = code(record, "", "", "country"), continentFrom(record)
	if s.Continent == "" {
		s.Continent = continentOf(s.Country)
	}
	for _, l := range a.Lists[:min(len(a.Lists), remoteLists)] {
		if validID(l.ID) && KnownCategory(l.Category) {
			s.Lists = append(s.Lists, Match{ID: l.ID, Category: l.Category, Source: place, Name: name})
		}
	}
	keep := r.o.Keep
	if a.TTL > 0 {
		keep = time.Duration(min(max(a.TTL, remoteKeepMin.Seconds()), remoteKeepMax.Seconds())) * time.Second
	}
	return s, keep, nil
}

func continentFrom(record map[string]any) string {
	c := code(record, "", "", "continent")
	if !strings.Contains(continents, "\n"+c+" ") {
		return ""
	}
	return c
}

// bareURL names a server without the secrets that its URL may have.
func bareURL(text string) string { return place(ListSpec{URL: text}) }

// merge adds what the server said of a name and its aliases to what is known here. Where a place is
// known here that counts, because it is that of the address.
func (r *Remote) merge(known *Stamp, domain string, cnames []string, addr netip.Addr) *Stamp {
	if r == nil || domain == "" || *r.url.Load() == "" {
		return known
	}
	full := known
	change := func() *Stamp {
		if full == known {
			c := *known
			c.Lists = append([]Match(nil), known.Lists...)
			full = &c
		}
		return full
	}
	m, ok := r.recall(domain)
	if ok && m.stamp != nil {
		if public := addr.Unmap().WithZone(""); public.IsValid() && !local(public) {
			fillPlace(change(), m.stamp)
		}
		if len(m.stamp.Lists) > 0 {
			s := change()
			s.Lists = append(s.Lists, m.stamp.Lists...)
		}
	}
	for _, name := range cnames {
		if m, ok := r.recall(name); ok && m.stamp != nil {
			for _, l := range m.stamp.Lists {
				l.Alias = true
				s := change()
				s.Lists = append(s.Lists, l)
			}
		}
	}
	return full
}

func fillPlace(s, from *Stamp) {
	if s.Country == "" {
		s.Country, s.Continent = from.Country, from.Continent
	}
	if s.ASN == 0 {
		s.ASN, s.ASOwner = from.ASN, from.ASOwner
	}
}

// Status tells what the server is worth.
func (r *Remote) Status() RemoteStatus {
	s := RemoteStatus{Asked: r.asked.Load(), Failed: r.failed.Load(), Late: r.late.Load()}
	if server := *r.url.Load(); server != "" {
		s.URL = bareURL(server)
	}
	if fault := r.fault.Load(); fault != nil {
		s.Error = *fault
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s.Known = len(r.known.young) + len(r.known.old)
	return s
}
