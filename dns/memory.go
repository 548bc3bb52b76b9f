package dns

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"gatun/attribution"
	"gatun/network"
	"gatun/profiles"
)

const (
	memoryEntries = 65_536
	namesPerAddr  = 8

	// A name is believed for its TTL, at least leastMemory, and then for tailMemory more,
	// because programs keep connections and addresses longer than the DNS allows. While the
	// program goes on using it, each use gives it another tail, up to mostMemory.
	leastMemory = 10 * time.Minute
	tailMemory  = time.Hour
	mostMemory  = 24 * time.Hour
)

// MemoryOptions configures a Memory.
type MemoryOptions struct {
	Clock func() time.Time // default time.Now
	Max   int              // addresses remembered over all programs, default 65 536

	// Resolver reports whether an owner is the system's own resolver daemon, which asks for
	// everybody: the names it resolved count for every program that has no name of its own.
	// Nil means that no program is.
	Resolver func(attribution.Owner) bool

	// Changed is told of every address that has another newest name now for some program, or none any
	// more, before Remember or Moved returns. Nil: nobody is.
	Changed func(netip.Addr)
}

// Memory knows under which names each program resolved an address. A name that another program
// resolved is never returned for a program: it could have been chosen to slip through a rule.
type Memory struct {
	clock    func() time.Time
	max      int
	resolver func(attribution.Owner) bool
	changed  func(netip.Addr)

	mu       sync.Mutex
	news     []netip.Addr // for changed
	total    int
	programs map[program]*known
	byAddr   map[netip.Addr][]*resolved
	largest  *known
}

// known is what one program resolved, with its own order of use: a program that resolves a
// great many names pushes out its own.
type known struct {
	program program
	addrs   map[netip.Addr]*resolved
	ring    resolved // sentinel: next is the newest
}

type resolved struct {
	known      *known
	addr       netip.Addr
	names      []remembered // newest first
	prev, next *resolved
}

type remembered struct {
	name    string
	cnames  []string
	local   bool
	at      time.Time
	expires time.Time
}

// NewMemory returns an empty memory.
func NewMemory(o MemoryOptions) *Memory {
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Max <= 0 {
		o.Max = memoryEntries
	}
	return &Memory{
		clock: o.Clock, max: o.Max, resolver: o.Resolver, changed: o.Changed,
		programs: map[program]*known{}, byAddr: map[netip.Addr][]*resolved{},
	}
}

// IsSystemResolver recognises the resolver daemons that ask for everybody. It is meant for
// MemoryOptions.Resolver in `up`, as long as the queries of programs to a stub on loopback are not
// intercepted.
func IsSystemResolver(o attribution.Owner) bool {
	return profiles.IsSystemResolver(programOf(o).path)
}

// everybody is the identity of names that the system's resolver looked up.
func everybody() program { return program{path: "*", kind: attribution.KindSystem} }

func (m *Memory) identity(o attribution.Owner) program {
	if m.resolver != nil && m.resolver(o) {
		return everybody()
	}
	return programOf(o)
}

// Resolved is an answer that a program was given.
type Resolved struct {
	Name   string
	CNAMEs []string // that the name is an alias of, in order
	Addrs  []netip.Addr
	TTL    time.Duration
	Local  bool // who answered may give addresses of this network
}

// Remember notes what the owner resolved. The slices must not change any more.
func (m *Memory) Remember(o attribution.Owner, r Resolved) {
	if len(r.Addrs) == 0 {
		return
	}
	now, p := m.clock(), m.identity(o)
	n := remembered{
		name: r.Name, cnames: r.CNAMEs, local: r.Local,
		at: now, expires: now.Add(min(max(r.TTL, leastMemory)+tailMemory, mostMemory)),
	}
	defer m.tell()
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.programs[p]
	if k == nil {
		k = &known{program: p, addrs: map[netip.Addr]*resolved{}}
		k.ring.prev, k.ring.next = &k.ring, &k.ring
		m.programs[p] = k
	}
	for _, a := range r.Addrs {
		m.remember(k, a.Unmap().WithZone(""), n)
	}
	for m.total > m.max {
		m.evict()
	}
}

func (m *Memory) remember(k *known, a netip.Addr, n remembered) {
	e := k.addrs[a]
	if e == nil || !e.names[0].same(&n) {
		m.newsOf(a)
	}
	if e == nil {
		e = &resolved{known: k, addr: a}
		k.addrs[a] = e
		m.byAddr[a] = append(m.byAddr[a], e)
		m.total++
	} else {
		e.unlink()
	}
	k.push(e)
	if m.largest == nil || len(k.addrs) > len(m.largest.addrs) {
		m.largest = k
	}
	e.names = slices.DeleteFunc(e.names, func(old remembered) bool { return old.name == n.name || !old.expires.After(n.at) })
	if len(e.names) == namesPerAddr {
		e.names = e.names[:namesPerAddr-1]
	}
	e.names = slices.Insert(e.names, 0, n)
}

// same reports whether n, which is newer, says what is said already.
func (r *remembered) same(n *remembered) bool {
	return r.name == n.name && r.local == n.local && r.expires.After(n.at) && slices.Equal(r.cnames, n.cnames)
}

// newsOf has changed told of the address. m.mu is held.
func (m *Memory) newsOf(a netip.Addr) {
	if m.changed != nil {
		m.news = append(m.news, a)
	}
}

// tell tells changed of what is new.
func (m *Memory) tell() {
	m.mu.Lock()
	news := m.news
	m.news = nil
	m.mu.Unlock()
	for _, a := range news {
		m.changed(a)
	}
}

// Entity returns the address with the newest name under which this program resolved it, and
// its other names.
func (m *Memory) Entity(o attribution.Owner, a netip.Addr) network.Entity {
	e := network.Entity{Addr: a}
	now, p, key := m.clock(), m.identity(o), a.Unmap().WithZone("")
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.name(&e, p, key, now) || m.resolver == nil {
		return e
	}
	m.name(&e, everybody(), key, now)
	return e
}

// name fills e with what the program knows about the address.
func (m *Memory) name(e *network.Entity, p program, a netip.Addr, now time.Time) bool {
	k := m.programs[p]
	if k == nil || k.addrs[a] == nil {
		return false
	}
	r := k.addrs[a]
	for i := range r.names {
		n := &r.names[i]
		if !n.expires.After(now) {
			continue
		}
		if e.Domain != "" {
			e.Others = append(e.Others, n.name)
			continue
		}
		e.Domain, e.Source, e.CNAMEs, e.Local = n.name, network.DomainDNS, n.cnames, n.local
		if tail := now.Add(tailMemory); tail.After(n.expires) && tail.Before(n.at.Add(mostMemory)) {
			n.expires = tail
		}
	}
	if e.Domain == "" {
		m.drop(r)
		return false
	}
	r.unlink()
	k.push(r)
	return true
}

// Moved forgets the names of addresses that mean another host in another network.
func (m *Memory) Moved() {
	defer m.tell()
	m.mu.Lock()
	defer m.mu.Unlock()
	for a, list := range m.byAddr {
		if network.ScopeOf(a) != network.LAN {
			continue
		}
		for _, r := range slices.Clone(list) {
			m.drop(r)
		}
	}
}

// Display returns the newest name under which any program resolved the address, "" if none
// did. It is for people only: no decision to let something through may rest on it.
func (m *Memory) Display(a netip.Addr) string {
	now := m.clock()
	m.mu.Lock()
	defer m.mu.Unlock()
	var newest remembered
	for _, r := range m.byAddr[a.Unmap().WithZone("")] {
		for _, n := range r.names {
			if n.expires.After(now) && n.at.After(newest.at) {
				newest = n
			}
		}
	}
	return newest.name
}

// Len returns how many addresses are remembered over all programs.
func (m *Memory) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.total
}

// evict drops the least recently used address of the program that has the most.
func (m *Memory) evict() {
	if m.largest == nil || len(m.largest.addrs) == 0 {
		m.largest = nil
		for _, k := range m.programs {
			if m.largest == nil || len(k.addrs) > len(m.largest.addrs) {
				m.largest = k
			}
		}
	}
	m.drop(m.largest.ring.prev)
}

func (m *Memory) drop(r *resolved) {
	m.newsOf(r.addr)
	k := r.known
	r.unlink()
	delete(k.addrs, r.addr)
	m.total--
	if len(k.addrs) == 0 {
		delete(m.programs, k.program)
		if m.largest == k {
			m.largest = nil
		}
	}
	left := slices.DeleteFunc(m.byAddr[r.addr], func(o *resolved) bool { return o == r })
	if len(left) == 0 {
		delete(m.byAddr, r.addr)
		return
	}
	m.byAddr[r.addr] = left
}

func (k *known) push(r *resolved) {
	r.prev, r.next = &k.ring, k.ring.next
	r.prev.next, r.next.prev = r, r
}

func (r *resolved) unlink() { r.prev.next, r.next.prev = r.next, r.prev }
