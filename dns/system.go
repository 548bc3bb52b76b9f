package dns

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	maxSystemResolvers = 8
	maxSearchDomains   = 32
	maxResolvConf      = 64 << 10
	reloadInterval     = time.Second
)

// ErrNoSystemResolver means that no file named a nameserver that may be used.
var ErrNoSystemResolver = errors.New("the system has no nameserver that can be used; set dns/nameservers")

// Stub says what to do with a nameserver on a loopback address.
type Stub uint8

// In `run` the host's stub resolver is the right one to ask. In `up` it would ask us back, so
// the file in which its daemon keeps the real ones is read instead.
const (
	AvoidStub Stub = iota
	UseStub
)

// SystemOptions says where the system's nameservers are found.
type SystemOptions struct {
	Stub Stub
	Own  func(netip.Addr) bool // addresses of ours, which are never asked; may be nil
	Root string                // prefix of all paths, for tests
}

// resolvConfs are the files that may name nameservers: the libc's, then where the daemons
// behind a loopback stub write the uplinks.
func resolvConfs() []string {
	return []string{
		"/etc/resolv.conf",
		"/run/systemd/resolve/resolv.conf",
		"/run/NetworkManager/no-stub-resolv.conf",
		"/run/NetworkManager/resolv.conf",
		"/var/run/NetworkManager/resolv.conf",
		"/run/resolvconf/resolv.conf",
	}
}

// assigned is what the network, or a person, gave the system for names.
type assigned struct {
	resolvers []Resolver
	search    []string // domains that are tried behind a short name; lower-case, without the final dot
}

// SystemResolvers reads the system's nameservers: the first file that names one which may be
// used.
func SystemResolvers(o SystemOptions) ([]Resolver, error) {
	a, err := o.read()
	return a.resolvers, err
}

func (o SystemOptions) read() (assigned, error) {
	var errs []error
	for _, path := range resolvConfs() {
		b, err := readLimited(filepath.Join(o.Root, path))
		if err != nil {
			if !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, err)
			}
			continue
		}
		servers, search := parseResolvConf(b)
		if list := o.usable(servers); len(list) > 0 {
			return assigned{list, search}, nil
		}
	}
	return assigned{}, errors.Join(append(errs, ErrNoSystemResolver)...)
}

func readLimited(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err == nil && len(b) > maxResolvConf {
		err = fmt.Errorf("%s is larger than %d bytes: not a resolv.conf", path, maxResolvConf)
	}
	return b, err
}

func (o SystemOptions) usable(addrs []netip.Addr) (list []Resolver) {
	for _, a := range addrs {
		switch {
		case o.Own != nil && o.Own(a), a.IsMulticast():
			continue
		case (a.IsLoopback() || a.IsUnspecified()) && o.Stub == AvoidStub:
			continue
		case a.IsUnspecified(): // the libc takes it for this machine
			a = loopbackOf(a)
		}
		r := Resolver{Scheme: SchemeDNS, Addr: netip.AddrPortFrom(a, dnsPort)}
		if !slices.Contains(list, r) && len(list) < maxSystemResolvers {
			list = append(list, r)
		}
	}
	return list
}

func loopbackOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}

// parseResolvConf returns the nameservers and the search domains of a resolv.conf
// (resolv.conf(5)): of several lines `search` or `domain` the last one counts. The program's libc
// applies them before it asks; here they only tell which network it is.
func parseResolvConf(b []byte) (servers []netip.Addr, search []string) {
	for line := range bytes.Lines(b) {
		f := strings.Fields(string(line))
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(f[1]); err == nil {
				servers = append(servers, a.Unmap())
			}
		case "search", "domain":
			search = searchDomains(f[1:])
		}
	}
	return servers, search
}

func searchDomains(fields []string) []string {
	list := make([]string, 0, min(len(fields), maxSearchDomains))
	for _, d := range fields {
		if d = strings.ToLower(strings.Trim(d, ".")); d != "" && len(list) < maxSearchDomains && !slices.Contains(list, d) {
			list = append(list, d)
		}
	}
	return list
}

// System keeps the system's nameservers up to date: it looks at the files when it is asked, at
// most once a second.
type System struct {
	options SystemOptions
	clock   func() time.Time

	mu      sync.Mutex
	checked time.Time
	stamps  []stamp
	found   assigned
	err     error
}

// stamp changes when a file does.
type stamp struct {
	modified time.Time
	size     int64
}

// NewSystem returns the system's nameservers as found by o. It looks for them at once: whoever
// asks while another one looks gets the list of before, and the first must not get none.
func NewSystem(o SystemOptions, clock func() time.Time) *System {
	s := &System{options: o, clock: clock}
	_, _ = s.current() // Err tells it again
	return s
}

// Resolvers returns the nameservers of now. The slice must not be changed.
func (s *System) Resolvers() []Resolver {
	found, _ := s.current()
	return found.resolvers
}

// Search returns the search domains that came with them: by the suffix that it assigns a network
// can be known. The slice must not be changed.
func (s *System) Search() []string {
	found, _ := s.current()
	return found.search
}

// Refresh makes the next question look at the files, however recently that was done: somebody
// has seen one change.
func (s *System) Refresh() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.checked = time.Time{}
}

// Paths are the files that are looked at, for who wants to know at once when one changes.
func (s *System) Paths() []string {
	paths := resolvConfs()
	for i, p := range paths {
		paths[i] = filepath.Join(s.options.Root, p)
	}
	return paths
}

// Err returns why there are none.
func (s *System) Err() error {
	_, err := s.current()
	return err
}

func (s *System) current() (assigned, error) {
	s.mu.Lock()
	now := s.clock()
	if age := now.Sub(s.checked); !s.checked.IsZero() && age >= 0 && age < reloadInterval {
		defer s.mu.Unlock()
		return s.found, s.err
	}
	s.checked = now // the others go on with the old list meanwhile
	old := s.stamps
	s.mu.Unlock()

	stamps := s.look()
	if slices.Equal(stamps, old) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.found, s.err
	}
	found, err := s.options.read()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stamps, s.found, s.err = stamps, found, err
	return found, err
}

func (s *System) look() []stamp {
	stamps := make([]stamp, 0, len(resolvConfs()))
	for _, path := range resolvConfs() {
		st := stamp{size: -1}
		if info, err := os.Stat(filepath.Join(s.options.Root, path)); err == nil {
			st = stamp{modified: info.ModTime(), size: info.Size()}
		}
		stamps = append(stamps, st)
	}
	return stamps
}
