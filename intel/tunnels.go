package intel

import (
	"hash/maphash"
	"math/bits"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/publicsuffix"
)

// What counts as a tunnel: this much within one window and the one before it, so within ten
// minutes at most, by one program under one registrable domain.
const (
	TunnelBytes = 16 << 10 // in names that were not asked before; twice where the type brings much back
	TunnelPolls = 500      // names that were not asked before, of a type that brings much back, whatever is in them

	tunnelWindow = 5 * time.Minute

	minData     = 16 // bytes of data in a name; fewer are an identifier
	minDataPart = 6  // bytes of one label
	dataBits    = 2 * bitScale
	minNumber   = 12   // digits that are data and no number of a host
	maxCarriers = 2048 // 1 KiB each
	evictSample = 8
	seenWords   = 64
)

// Tunnels watches queries for data that names carry out and answers carry in: such traffic goes
// wherever names are resolved, and past every firewall that looks at connections only. It keeps
// of each program and domain how much of names that it did not ask before looks drawn by chance,
// as encoded or encrypted bytes do. Its methods may be called from any goroutine.
//
// Not found: what is slower than TunnelBytes in ten minutes, what is spread over many registered
// domains, words in place of bytes, labels of one or two characters.
type Tunnels struct {
	clock func() time.Time
	seed  maphash.Seed
	limit int

	mu       sync.Mutex
	carriers map[uint64]*carrier // by program and domain
}

// Tunnel is what is known of a program's queries under one domain.
type Tunnel struct {
	Found  bool   // there is a tunnel, and the query is part of it
	Domain string // what somebody registered; "" where the query carries nothing
	Bytes  int    // within the window, of data in names that were not asked before
	Polls  int    // names that were not asked before, of types that bring much back
}

// carrier is one domain of one program. A generation lasts one window; the last one counts too.
type carrier struct {
	epoch     int64
	now, last generation
}

// generation has names as two bits each in a set that takes some new ones for known: it rather
// counts too little.
type generation struct {
	bytes, polls int
	seen         [seenWords]uint64
}

// NewTunnels returns a watch that has seen nothing; clock is time.Now if it is nil.
func NewTunnels(clock func() time.Time) *Tunnels {
	if clock == nil {
		clock = time.Now
	}
	return &Tunnels{clock: clock, seed: maphash.MakeSeed(), limit: maxCarriers, carriers: map[uint64]*carrier{}}
}

// Observe counts a query, once per name. The name is lower-case, without the final dot.
func (t *Tunnels) Observe(program, name string, qtype uint16) Tunnel {
	return t.look(program, name, qtype, true)
}

// Look returns what Observe would without counting.
func (t *Tunnels) Look(program, name string, qtype uint16) Tunnel {
	return t.look(program, name, qtype, false)
}

func (t *Tunnels) look(program, name string, qtype uint16, count bool) Tunnel {
	much := bringsMuch(qtype)
	if !much && data(name) < minData || strings.HasSuffix(name, ".arpa") {
		return Tunnel{}
	}
	domain, err := publicsuffix.EffectiveTLDPlusOne(name)
	if err != nil || len(domain) == len(name) || carriesByDesign(domain) {
		return Tunnel{}
	}
	below := name[:len(name)-len(domain)-1]
	size := data(below)
	if size < minData {
		size = 0
	}
	if size == 0 && !much {
		return Tunnel{}
	}
	where := maphash.String(t.seed, program) ^ bits.RotateLeft64(maphash.String(t.seed, domain), 32)
	what := maphash.String(t.seed, below)
	epoch := t.clock().UnixNano() / int64(tunnelWindow)

	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.carriers[where]
	if c == nil && !count {
		return Tunnel{Domain: domain}
	}
	if c == nil {
		t.makeRoom(epoch)
		c = &carrier{epoch: epoch}
		t.carriers[where] = c
	}
	if count {
		c.count(epoch, what, size, much)
	}
	return c.tunnel(domain, epoch)
}

// count adds a name to the generation of now, unless one that counts has it.
func (c *carrier) count(epoch int64, what uint64, size int, much bool) {
	switch {
	case epoch == c.epoch+1:
		c.last, c.now = c.now, generation{}
	case epoch != c.epoch:
		c.last, c.now = generation{}, generation{}
	}
	c.epoch = epoch
	if c.last.has(what) || c.now.has(what) {
		return
	}
	c.now.seen[what%seenWords] |= bitsOf(what)
	if much {
		size *= 2
		c.now.polls++
	}
	c.now.bytes += size
}

func (g *generation) has(what uint64) bool {
	b := bitsOf(what)
	return g.seen[what%seenWords]&b == b
}

// bitsOf spreads a name over its word of the set.
func bitsOf(what uint64) uint64 { return 1<<(what>>16&63) | 1<<(what>>32&63) | 1<<(what>>48&63) }

func (c *carrier) tunnel(domain string, epoch int64) Tunnel {
	w := Tunnel{Domain: domain}
	switch epoch {
	case c.epoch:
		w.Bytes, w.Polls = c.now.bytes+c.last.bytes, c.now.polls+c.last.polls
	case c.epoch + 1:
		w.Bytes, w.Polls = c.now.bytes, c.now.polls
	}
	w.Found = w.Bytes >= TunnelBytes || w.Polls >= TunnelPolls
	return w
}

// makeRoom forgets one of a few where there are too many: one that is over, or that carried
// least, so that who asks for many domains does not hide the one that matters.
func (t *Tunnels) makeRoom(epoch int64) {
	if len(t.carriers) < t.limit {
		return
	}
	var (
		least uint64
		size  = -1
		n     int
	)
	for where, c := range t.carriers { // in an order that nobody chooses
		w := c.tunnel("", epoch)
		if s := w.Bytes + w.Polls; size < 0 || s < size {
			least, size = where, s
		}
		if n++; n == evictSample || size == 0 {
			break
		}
	}
	delete(t.carriers, least)
}

// data returns how many bytes of a name look drawn by chance. Escaped bytes are no text at all.
func data(name string) int {
	sum := 0
	for rest, found := name, true; found; {
		var label string
		label, rest, found = strings.Cut(rest, ".")
		escaped := strings.Count(label, "\\")
		switch size := len(label) - 3*escaped; {
		case len(label) < minDataPart || strings.HasPrefix(label, idnPrefix):
		case escaped > 0:
			sum += max(size, 0)
		case chance(label) >= dataBits, len(label) >= minNumber && strings.Trim(label, "0123456789") == "":
			sum += size
		}
	}
	return sum
}

// bringsMuch knows the types that tunnels ask for because their answers hold the most, beside
// those that programs ask for to connect somewhere.
func bringsMuch(qtype uint16) bool {
	switch qtype {
	case 5, 10, 15, 16, 25, 33: // CNAME, NULL, MX, TXT, KEY, SRV
		return true
	}
	return qtype >= 65280 && qtype <= 65534 // for private use
}

// carriesByDesign knows services that are asked by names which hold the question: block lists of
// senders, hashes of files. Whoever wants to tunnel cannot answer for them.
func carriesByDesign(domain string) bool {
	switch domain {
	case "spamhaus.org", "spamhaus.net", "surbl.org", "uribl.com", "spamcop.net", "sorbs.net", "barracudacentral.org", "abuseat.org",
		"dnswl.org", "mailspike.net", "senderscore.com", "spameatingmonkey.net", "invaluement.com", "junkemailfilter.com", "uceprotect.net",
		"support-intelligence.net", "nszones.com", "rspamd.com", // senders and links of mail
		"mcafee.com", "trellix.com", "sophosxl.net", "sophosxl.com", "e5.sk", "eset.com", "bitdefender.net", "avast.com", "avcdn.net",
		"trendmicro.com", "f-secure.com", "fsapi.com", "kaspersky-labs.com", "kaspersky.com", "brightcloud.com", "symantec.com",
		"cymru.com", "mandiant.com", "clamav.net", // files and addresses that scanners look up
		"googlesyndication.com", "footprintdns.com": // a name for each page, or each measurement
		return true
	}
	return false
}
