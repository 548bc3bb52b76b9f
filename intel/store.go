package intel

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// Options are what a Store needs of its surroundings.
type Options struct {
	CacheDir string           // keeps what URLs gave; "": in memory only
	Client   *http.Client     // goes around the firewall; nil: URLs are not fetched
	Clock    func() time.Time // default time.Now
	Logger   *zap.Logger      // default: none
	GeoDirs  []string         // where data files are looked for that the policy does not name; see GeoDirs
	Remote   *Remote          // what it says counts too; nil: nothing
	Changed  func()           // called after what Stamp says may have changed; default: nothing

	MaxBytes   int64 // of one list; default 64 MiB
	MaxEntries int   // of one list; default 4 000 000
}

// Store has the lists and data files of the policy. Stamp, Matches, Status, Geo and Generation
// may be called at any time from anywhere, and never wait.
type Store struct {
	o    Options
	seed maphash.Seed
	turn turns // of who fetches a list
	wake chan struct{}

	mu  sync.Mutex // held while a state is made from the last one, not while anything is read
	now atomic.Pointer[state]
}

// state is all that a Store knows at one time. It is never changed after it was made.
type state struct {
	*snapshot
	spec       Spec
	generation uint64
}

// New makes a Store that knows nothing until Configure.
func New(o Options) *Store {
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.Changed == nil {
		o.Changed = func() {}
	}
	if o.MaxBytes <= 0 {
		o.MaxBytes = 64 << 20
	}
	if o.MaxEntries <= 0 {
		o.MaxEntries = 4_000_000
	}
	s := &Store{o: o, seed: maphash.MakeSeed(), turn: turns{taken: map[string]chan struct{}{}}, wake: make(chan struct{}, 1)}
	s.now.Store(&state{snapshot: newSnapshot(s.seed, nil, newGeo(nil, nil), nil)})
	return s
}

// Configure takes over the lists and data files of a policy. It reads local files and the cache,
// never the network: Run does that. The error is about the policy, and then nothing changed;
// what is wrong with a file is in Status and Geo. One goroutine calls it at a time.
func (s *Store) Configure(spec Spec) error {
	if err := spec.check(); err != nil {
		return fmt.Errorf("filter lists: %w", err)
	}
	spec.Lists = slices.Clone(spec.Lists)
	old := s.now.Load()
	lists := make([]*list, len(spec.Lists))
	for i, l := range spec.Lists {
		lists[i] = s.local(l, old.list(l))
	}
	g := s.geoOf(spec, old.geo)
	s.replace(func(last *state) *state {
		for i, l := range lists { // what was fetched in the meantime is newer
			if known := last.list(l.spec); known != nil && known != old.list(l.spec) {
				lists[i] = known.with(func(n *list) { n.spec = l.spec })
			}
		}
		return &state{snapshot: newSnapshot(s.seed, lists, g, last.snapshot), spec: spec}
	})
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return nil
}

// Poll reads the local files that changed, now. Run does that from time to time.
func (s *Store) Poll() { s.pollFiles() }

// local returns a list as the files have it; old, which may be nil, is what was known of it.
func (s *Store) local(spec ListSpec, old *list) *list {
	switch {
	case old == nil && spec.URL != "":
		return s.readCache(newList(spec))
	case old == nil:
		return s.readPath(newList(spec), false)
	case spec.URL != "":
		return old.with(func(l *list) { l.spec = spec })
	default:
		return s.readPath(old.with(func(l *list) { l.spec = spec }), false)
	}
}

// readPath reads the file of a list, if it is another than before.
func (s *Store) readPath(l *list, insist bool) *list {
	mark := markOf(l.spec.Path)
	if mark == l.mark && mark != (fileMark{}) && !insist {
		return l
	}
	data, err := readFile(l.spec.Path, s.o.MaxBytes)
	if err != nil {
		mark = fileMark{} // it is tried again although it did not change: a person may let us read it
	} else {
		var next *list
		if next, err = l.take(data, s.o.MaxEntries, insist); err == nil {
			now := s.o.Clock()
			return next.with(func(n *list) {
				if n.entries != l.entries || n.updated.IsZero() {
					n.updated = now
				}
				n.mark, n.checked, n.fault = mark, now, ""
			})
		}
	}
	return s.failed(l, err).with(func(n *list) { n.mark = mark })
}

// failed returns a list with the reason why its last good copy stays.
func (s *Store) failed(l *list, err error) *list {
	fault := printable(err.Error())
	if l.good {
		fault += "; the last good copy is used"
	}
	if fault != l.fault {
		s.o.Logger.Warn("a filter list cannot be used", zap.String("list", l.spec.ID), zap.String("error", fault))
	}
	return l.with(func(n *list) { n.fault = fault })
}

func (s *Store) geoOf(spec Spec, old *geo) *geo {
	if spec.Country == "" {
		spec.Country = findGeo(s.o.GeoDirs, kindCountry)
	}
	if spec.ASN == "" {
		spec.ASN = findGeo(s.o.GeoDirs, kindASN)
	}
	country, asn := readGeoFile(kindCountry, spec.Country, old.country), readGeoFile(kindASN, spec.ASN, old.asn)
	if country == old.country && asn == old.asn {
		return old
	}
	return newGeo(country, asn)
}

// list returns the list that has the same contents by definition, nil if there is none.
func (st *state) list(spec ListSpec) *list {
	for _, l := range st.lists {
		if l.spec.same(spec) {
			return l
		}
	}
	return nil
}

// replace makes the next state from the last one.
func (s *Store) replace(next func(last *state) *state) {
	s.mu.Lock()
	last := s.now.Load()
	st := next(last)
	changed := st.names != last.names || st.geo != last.geo || !sameLabels(st.lists, last.lists)
	st.generation = last.generation
	if changed {
		st.generation++
	}
	s.now.Store(st)
	s.mu.Unlock()
	if changed {
		s.o.Changed()
	}
}

func sameLabels(a, b []*list) bool {
	return slices.EqualFunc(a, b, func(x, y *list) bool { return x.spec.ID == y.spec.ID && x.spec.Category == y.spec.Category })
}

// put replaces the lists that are still in the policy, all at once.
func (s *Store) put(changed ...*list) {
	s.replace(func(last *state) *state {
		lists := slices.Clone(last.lists)
		for i, l := range lists {
			for _, n := range changed {
				if l.spec.same(n.spec) {
					lists[i] = n.with(func(c *list) { c.spec = l.spec })
				}
			}
		}
		return &state{snapshot: newSnapshot(s.seed, lists, last.geo, last.snapshot), spec: last.spec}
	})
}

// Stamp returns what is known of a domain, the names that it is an alias of, and an address; each
// may be missing. It is never nil, and the caller must not change it. A name is looked up with
// all names above it: see Match.Above.
func (s *Store) Stamp(domain string, cnames []string, addr netip.Addr) *Stamp {
	return s.o.Remote.merge(s.now.Load().stamp(domain, cnames, addr), domain, cnames, addr)
}

// Matches returns the lists that a name or an address is on, as a person writes it.
func (s *Store) Matches(text string) []Match {
	text = strings.TrimSpace(text)
	if addr, err := netip.ParseAddr(text); err == nil {
		return s.Stamp("", nil, addr).Lists
	}
	return s.Stamp(text, nil, netip.Addr{}).Lists
}

// Status tells what the lists are worth, in the order of the policy.
func (s *Store) Status() []ListStatus {
	st := s.now.Load()
	all := make([]ListStatus, len(st.lists))
	for i, l := range st.lists {
		all[i] = l.status()
	}
	return all
}

// Geo tells what the data files are worth that the policy names.
func (s *Store) Geo() []GeoStatus {
	g := s.now.Load().geo
	var all []GeoStatus
	for _, f := range []*geoFile{g.country, g.asn} {
		if f != nil {
			all = append(all, f.status)
		}
	}
	return all
}

// Generation counts the changes of what Stamp may say.
func (s *Store) Generation() uint64 { return s.now.Load().generation }

// ErrNoList means that the policy has no list of that name.
var ErrNoList = errors.New("no such list")

// Update reads or fetches lists now, all if none is named. A list that is named is taken also if
// it became much smaller.
func (s *Store) Update(ctx context.Context, ids ...string) error {
	return s.update(ctx, ids, func(id string) bool { return slices.Contains(ids, id) })
}

// Renew reads or fetches lists now, all if none is named, as Run does when their time has come.
func (s *Store) Renew(ctx context.Context, ids ...string) error {
	return s.update(ctx, ids, func(string) bool { return false })
}

// update returns one error for each list that could not be used.
func (s *Store) update(ctx context.Context, ids []string, insist func(id string) bool) error {
	st := s.now.Load()
	var errs []error
	for _, id := range ids {
		if !slices.ContainsFunc(st.lists, func(l *list) bool { return l.spec.ID == id }) {
			errs = append(errs, fmt.Errorf("there is no filter list %q: %w", id, ErrNoList))
		}
	}
	if errs != nil {
		return errors.Join(errs...)
	}
	for _, l := range st.lists {
		if len(ids) > 0 && !slices.Contains(ids, l.spec.ID) {
			continue
		}
		next, err := s.refresh(ctx, l, insist(l.spec.ID))
		if err != nil {
			return err
		}
		if next.fault != "" {
			errs = append(errs, fmt.Errorf("list %s: %s", l.spec.ID, next.fault))
		}
	}
	return errors.Join(errs...)
}

// refresh reads or fetches one list and puts it in place. Whoever does it already is waited for.
func (s *Store) refresh(ctx context.Context, l *list, insist bool) (*list, error) {
	if err := s.turn.take(ctx, l.spec.ID); err != nil {
		return nil, err
	}
	defer s.turn.leave(l.spec.ID)
	if newer := s.now.Load().list(l.spec); newer != nil {
		l = newer
	}
	if l.spec.Path != "" {
		l = s.readPath(l.with(func(n *list) { n.mark = fileMark{} }), insist)
	} else {
		l = s.fetch(ctx, l, insist)
	}
	s.put(l)
	return l, nil
}
