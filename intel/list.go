package intel

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
)

// ListSpec is one list as the policy names it.
type ListSpec struct {
	ID       string
	Category string
	Format   string // one of Formats, or AutoFormat
	Path     string // of a file, or
	URL      string // http or https
	Every    time.Duration
	Checksum string // "sha256:" and 64 hexadecimal digits; "" for none
	Source   string // file:line of the policy
}

// Spec is all that the policy says of intelligence.
type Spec struct {
	Lists        []ListSpec
	Country, ASN string // MaxMind files, "" for none
}

// ListStatus tells what a list is worth.
type ListStatus struct {
	ID, Category, Format string
	Source               string // file or URL, without a password or query
	Position             string // file:line of the policy
	Entries              int    // names and prefixes that are in use
	Exceptions           int    // names that the list takes back
	Skipped              int    // rules that say nothing of a name or an address as such
	Refused              int    // names and networks that are too large for a list
	Invalid              int    // lines that cannot be read
	Updated              time.Time
	Checked              time.Time // when the source was last asked with success
	Next                 time.Time // zero: not by itself
	Error                string    // why the source is not used, or its last good copy instead
	Warning              string
}

// list is one list and what became of it. It is never changed after it was made.
type list struct {
	spec    ListSpec
	place   string
	entries *entries
	good    bool // the entries are from a copy that was in order
	sum     [sha256.Size]byte
	mark    fileMark // of a file

	etag, modified         string // of a URL, as the server said
	updated, checked, next time.Time
	failures               int
	fault                  string
}

const (
	defaultEvery = 24 * time.Hour
	checksumHead = "sha256:"
)

// check returns what is wrong with the policy itself.
func (spec Spec) check() error {
	var errs []error
	if len(spec.Lists) > maxLists {
		errs = append(errs, fmt.Errorf("%d filter lists; at most %d can be used", len(spec.Lists), maxLists))
	}
	seen := map[string]bool{}
	for _, l := range spec.Lists {
		if fault := l.check(); fault != "" {
			errs = append(errs, fmt.Errorf("list %q: %s", l.ID, fault))
		}
		if seen[l.ID] {
			errs = append(errs, fmt.Errorf("list %q: there are two of that name", l.ID))
		}
		seen[l.ID] = true
	}
	return errors.Join(errs...)
}

func (l ListSpec) check() string {
	sum, ok := strings.CutPrefix(l.Checksum, checksumHead)
	raw, err := hex.DecodeString(sum)
	switch {
	case !validID(l.ID):
		return "want letters, digits, -, _ and . as its name"
	case l.Format != AutoFormat && !slices.Contains(Formats(), l.Format):
		return "want one of " + strings.Join(Formats(), ", ") + " as its format"
	case (l.Path == "") == (l.URL == ""):
		return "want either a path or a URL"
	case l.Checksum != "" && (!ok || err != nil || len(raw) != sha256.Size):
		return "want sha256: and 64 hexadecimal digits as its checksum"
	case l.URL != "":
		u, err := url.Parse(l.URL)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
			return "want an http or https URL"
		}
	}
	return ""
}

// validID keeps an id such that it can be a file's name.
func validID(id string) bool {
	for i := range len(id) {
		c := id[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && (i == 0 || c != '-' && c != '_' && c != '.') {
			return false
		}
	}
	return id != "" && len(id) <= 64
}

// same reports whether both have the same contents by definition.
func (l ListSpec) same(o ListSpec) bool {
	return l.ID == o.ID && l.Format == o.Format && l.Path == o.Path && l.URL == o.URL && l.Checksum == o.Checksum
}

func newList(spec ListSpec) *list {
	return &list{spec: spec, place: place(spec), entries: &entries{}}
}

// place names the source without the secrets that a URL may have.
func place(spec ListSpec) string {
	if spec.Path != "" {
		return spec.Path
	}
	u, err := url.Parse(spec.URL)
	if err != nil {
		return "a URL"
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return u.String()
}

// with returns a copy with a change.
func (l *list) with(change func(*list)) *list {
	c := *l
	change(&c)
	return &c
}

// shrunk are the entries from which on a list that lost half of them is taken for cut off.
const shrunk = 1000

// take returns the list with new contents, or an error if they are not in order. insist takes a
// list that became much smaller: a person asked for it by name.
func (l *list) take(data []byte, limit int, insist bool) (*list, error) {
	sum := sha256.Sum256(data)
	if want, ok := strings.CutPrefix(l.spec.Checksum, checksumHead); ok && !strings.EqualFold(want, hex.EncodeToString(sum[:])) {
		return nil, fmt.Errorf("the contents have another checksum, sha256:%x", sum)
	}
	if l.good && l.sum == sum {
		return l, nil
	}
	e, err := parseList(l.spec.Format, data, limit)
	if err != nil {
		return nil, err
	}
	had, has := l.entries.size(), e.size()
	switch {
	case l.good && has == 0 && had > 0 && (l.spec.URL != "" || had >= shrunk) && !(insist && l.spec.Path != ""):
		return nil, fmt.Errorf("it is empty, and had %d entries", had)
	case l.good && had >= shrunk && has < had/2 && !insist:
		return nil, fmt.Errorf("it has %d entries, and had %d: it may have been cut off; update it by its name to take it", has, had)
	}
	return l.with(func(n *list) { n.entries, n.good, n.sum = e, true, sum }), nil
}

// warning tells what is doubtful in a list that is used.
func (l *list) warning() string {
	e := l.entries
	lines := e.size() + e.exceptions + e.skipped + e.broad + e.invalid
	switch {
	case l.good && 10*e.invalid > lines:
		return fmt.Sprintf("%d of %d lines cannot be read: is the format %s?", e.invalid, lines, l.spec.Format)
	case l.good && e.size() == 0 && e.skipped > 0:
		return fmt.Sprintf("none of its %d rules is about a name or an address as such: is the format %s?", e.skipped, l.spec.Format)
	}
	return ""
}

func (l *list) status() ListStatus {
	e := l.entries
	return ListStatus{
		ID: l.spec.ID, Category: l.spec.Category, Format: l.spec.Format, Source: l.place, Position: l.spec.Source,
		Entries: e.size(), Exceptions: e.exceptions, Skipped: e.skipped, Refused: e.broad, Invalid: e.invalid,
		Updated: l.updated, Checked: l.checked, Next: l.next, Error: l.fault, Warning: l.warning(),
	}
}
