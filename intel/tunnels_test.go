package intel

import (
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	typeA, typeNULL, typeMX, typeTXT, typeCNAME, typePTR = 1, 10, 15, 16, 5, 12
	typeSRV                                              = 33
)

// source gives the n-th query of something, and how long after the one before it comes.
type source func(n int) (name string, qtype uint16, after time.Duration)

// shape is how something asks.
type shape struct {
	name    string
	queries int
	next    source
}

// run asks until a tunnel is found; found is the number of the query, 0 for none.
func (s shape) run() (found, sent int, after time.Duration, last Tunnel) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	start := now
	w := NewTunnels(func() time.Time { return now })
	for i := range s.queries {
		name, qtype, wait := s.next(i)
		now = now.Add(wait)
		sent += len(name)
		last = w.Observe("/usr/bin/program", strings.ToLower(name), qtype)
		if last.Found {
			return i + 1, sent, now.Sub(start), last
		}
	}
	return 0, sent, now.Sub(start), last
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// labelled cuts text into labels of at most n characters.
func labelled(text string, n int) string {
	var parts []string
	for len(text) > n {
		parts = append(parts, text[:n])
		text = text[n:]
	}
	return strings.Join(append(parts, text), ".")
}

// TestTunnelsFound measures after how much tunnels are found, by the shapes of their queries.
func TestTunnelsFound(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	b32 := base32.NewEncoding("abcdefghijklmnopqrstuvwxyz012345").WithPadding(base32.NoPadding)
	ms := time.Millisecond
	for _, c := range []struct {
		shape
		queries int           // at most until it is found
		after   time.Duration // at most until it is found
	}{
		{shape{"iodine, NULL, upload", 2000, func(n int) (string, uint16, time.Duration) {
			return labelled(fmt.Sprintf("0%c", 'a'+n%26)+b32.EncodeToString(randomBytes(r, 125)), 57) + ".t.example.com", typeNULL, 50 * ms
		}}, 60, 5 * time.Second},
		{shape{"iodine, base128", 2000, func(n int) (string, uint16, time.Duration) {
			var text strings.Builder
			for i, c := range randomBytes(r, 150) {
				if i%57 == 56 {
					text.WriteByte('.')
				}
				fmt.Fprintf(&text, "\\%03d", 128+c&127)
			}
			return text.String() + ".t.example.com", typeA, 50 * ms
		}}, 130, 10 * time.Second},
		{shape{"iodine, download", 2000, func(n int) (string, uint16, time.Duration) {
			return "p" + b32.EncodeToString(randomBytes(r, 4)) + ".t.example.com", typeNULL, 20 * ms
		}}, 600, 15 * time.Second},
		{shape{"dnscat2, idle", 3000, func(n int) (string, uint16, time.Duration) {
			return "dnscat." + hex.EncodeToString(randomBytes(r, 17)) + ".example.com", []uint16{typeTXT, typeMX, typeCNAME}[n%3], time.Second
		}}, 300, 5 * time.Minute},
		{shape{"dnscat2, upload", 2000, func(n int) (string, uint16, time.Duration) {
			return labelled(hex.EncodeToString(randomBytes(r, 100)), 60) + ".example.com", []uint16{typeTXT, typeMX, typeCNAME}[n%3], 100 * ms
		}}, 60, 10 * time.Second},
		{shape{"files by A, 60 bytes a name", 3000, func(n int) (string, uint16, time.Duration) {
			return fmt.Sprintf("%d.", n) + b32.EncodeToString(randomBytes(r, 37)) + ".example.com", typeA, 200 * ms
		}}, 320, 2 * time.Minute},
		{shape{"cobalt strike, upload by A", 3000, func(n int) (string, uint16, time.Duration) {
			return "post.1" + labelled(hex.EncodeToString(randomBytes(r, 48)), 48) + fmt.Sprintf(".%x.19997cf2.example.com", n), typeA, 200 * ms
		}}, 250, time.Minute},
		{shape{"files by A, labels of 8", 5000, func(n int) (string, uint16, time.Duration) {
			return labelled(b32.EncodeToString(randomBytes(r, 30)), 8) + ".example.com", typeA, 100 * ms
		}}, 700, 3 * time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			found, sent, after, last := c.run()
			t.Logf("found by query %d, after %d bytes of names and %v (%d bytes of data counted)", found, sent, after, last.Bytes)
			if found == 0 || found > c.queries || after > c.after {
				t.Errorf("found by query %d after %v; want at most %d, %v", found, after, c.queries, c.after)
			}
		})
	}
}

// TestTunnelsHonest: who asks for much, or for odd names, and tunnels nothing.
func TestTunnelsHonest(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	hash := func(n int) string { return hex.EncodeToString(randomBytes(r, n)) }
	pool := func(n int, f func() string) []string {
		p := make([]string, n)
		for i := range p {
			p[i] = f()
		}
		return p
	}
	v4 := func() string { b := randomBytes(r, 4); return fmt.Sprintf("%d.%d.%d.%d", b[0], b[1], b[2], b[3]) }
	shards := pool(60, func() string { return fmt.Sprintf("rr%d---sn-%s.googlevideo.com", r.IntN(9), hash(5)) })
	devices := pool(60, func() string {
		return fmt.Sprintf("%s-%s-%s-%s-%s.fleet.vendor.com", hash(4), hash(2), hash(2), hash(2), hash(6))
	})
	words := strings.Fields("cats dogs music travel photo garden daily green happy little blue river north summer kitchen letters from home art and books")
	word := func() string { return words[r.IntN(len(words))] }
	ms := time.Millisecond
	for _, s := range []shape{
		{"video shards", 20000, func(n int) (string, uint16, time.Duration) { return shards[n%60], typeA, 10 * ms }},
		{"content network", 5000, func(n int) (string, uint16, time.Duration) { return "d" + hash(7) + ".cloudfront.net", typeA, 10 * ms }},
		{"akamai", 5000, func(n int) (string, uint16, time.Duration) {
			return fmt.Sprintf("e%d.dscb.akamaiedge.net", r.IntN(99999)), typeA, 10 * ms
		}},
		{"page frames", 3000, func(n int) (string, uint16, time.Duration) {
			return hash(16) + ".safeframe.googlesyndication.com", typeA, 500 * ms
		}},
		{"a name for each page", 2000, func(n int) (string, uint16, time.Duration) {
			return hash(16) + ".frames.example.com", typeA, 2 * time.Second
		}},
		{"devices of a fleet", 20000, func(n int) (string, uint16, time.Duration) { return devices[n%60], typeA, 50 * ms }},
		{"mail: spamhaus", 20000, func(n int) (string, uint16, time.Duration) { return v4() + ".zen.spamhaus.org", typeA, 20 * ms }},
		{"mail: a block list of its own", 20000, func(n int) (string, uint16, time.Duration) { return v4() + ".dnsbl.example.org", typeA, 20 * ms }},
		{"mail: a block list, IPv6", 20000, func(n int) (string, uint16, time.Duration) {
			return strings.Join(strings.Split(hash(16), ""), ".") + ".dnsbl.example.org", typeA, 20 * ms
		}},
		{"mail: links", 20000, func(n int) (string, uint16, time.Duration) {
			return word() + word() + ".com.multi.example.org", typeA, 20 * ms
		}},
		{"mail: keys and policies", 20000, func(n int) (string, uint16, time.Duration) {
			return fmt.Sprintf("s%d._domainkey.%s%s%d.com", r.IntN(3), word(), word(), r.IntN(9999)), typeTXT, 20 * ms
		}},
		{"mail: SPF macros", 20000, func(n int) (string, uint16, time.Duration) { return v4() + "._spf.bank.example.com", typeA, 20 * ms }},
		{"mail: exchangers", 20000, func(n int) (string, uint16, time.Duration) {
			return fmt.Sprintf("%s%d.com", word(), r.IntN(99999)), typeMX, 20 * ms
		}},
		{"reverse", 20000, func(n int) (string, uint16, time.Duration) { return v4() + ".in-addr.arpa", typePTR, 5 * ms }},
		{"reverse, IPv6", 20000, func(n int) (string, uint16, time.Duration) {
			return strings.Join(strings.Split(hash(16), ""), ".") + ".ip6.arpa", typePTR, 5 * ms
		}},
		{"virus scanner: mcafee", 20000, func(n int) (string, uint16, time.Duration) { return hash(13) + ".avts.mcafee.com", typeA, 10 * ms }},
		{"virus scanner: hashes", 20000, func(n int) (string, uint16, time.Duration) {
			return hash(16) + ".malware.hash.cymru.com", typeTXT, 10 * ms
		}},
		{"virus scanner of a small maker", 1000, func(n int) (string, uint16, time.Duration) {
			return hash(16) + ".lookup.example.com", typeA, 2 * time.Second
		}},
		{"crawler", 20000, func(n int) (string, uint16, time.Duration) {
			return fmt.Sprintf("%s-%s%d.blogs.example.com", word(), word(), r.IntN(999)), typeA, 5 * ms
		}},
		{"domain controllers", 20000, func(n int) (string, uint16, time.Duration) {
			return []string{"_ldap._tcp.dc._msdcs.example.com", "_kerberos._tcp.example.com", "_ldap._tcp.site._sites.example.com", "_gc._tcp.example.com"}[n%4], typeSRV, 20 * ms
		}},
	} {
		t.Run(s.name, func(t *testing.T) {
			if found, sent, after, last := s.run(); found > 0 {
				t.Errorf("a tunnel by query %d after %d bytes and %v: %+v", found, sent, after, last)
			}
		})
	}
}

// TestTunnelsWindow: what is slow passes, what stops is forgotten, and what is found hits the
// queries that carry something only.
func TestTunnelsWindow(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	w := NewTunnels(func() time.Time { return now })
	ask := func(program string) Tunnel {
		return w.Observe(program, hex.EncodeToString(randomBytes(r, 30))+".t.example.com", typeA)
	}
	for range 5000 {
		now = now.Add(3 * time.Second)
		if got := ask("/slow"); got.Found {
			t.Fatalf("20 bytes a second: %+v", got)
		}
	}
	for range 300 {
		ask("/fast")
	}
	name := hex.EncodeToString(randomBytes(r, 30)) + ".t.example.com"
	before := w.Look("/fast", name, typeA)
	if !before.Found || before.Domain != "example.com" {
		t.Fatalf("%+v", before)
	}
	for range 1000 {
		w.Look("/fast", name, typeA)
	}
	if after := w.Look("/fast", name, typeA); after != before {
		t.Errorf("looking counts: %+v, then %+v", before, after)
	}
	if again := w.Observe("/fast", name, typeA); w.Observe("/fast", name, typeA) != again {
		t.Error("a name counts twice")
	}
	if got := w.Observe("/fast", "www.example.com", typeA); got.Found {
		t.Errorf("a host of the domain: %+v", got)
	}
	if got := w.Observe("/other", name, typeA); got.Found {
		t.Errorf("another program: %+v", got)
	}
	if got := w.Observe("/fast", strings.Replace(name, "example.com", "example.org", 1), typeA); got.Found {
		t.Errorf("another domain: %+v", got)
	}
	now = now.Add(2*tunnelWindow + time.Second)
	if got := w.Look("/fast", name, typeA); got.Found || got.Bytes != 0 {
		t.Errorf("ten minutes later: %+v", got)
	}
	if got := ask("/fast"); got.Found {
		t.Errorf("ten minutes later: %+v", got)
	}
}

// TestTunnelsBounded: many domains neither fill the memory nor hide the one that matters.
func TestTunnelsBounded(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	w := NewTunnels(func() time.Time { return now })
	found := false
	for i := range 400 {
		for j := range 50 {
			w.Observe("/usr/bin/program", fmt.Sprintf("%s.d%d.com", hex.EncodeToString(randomBytes(r, 20)), i*50+j), typeA)
		}
		got := w.Observe("/usr/bin/program", hex.EncodeToString(randomBytes(r, 60))[:63]+".x.tunnel.example", typeA)
		found = found || got.Found
	}
	if !found {
		t.Error("not found among 20 000 other domains")
	}
	if len(w.carriers) > maxCarriers {
		t.Errorf("%d are kept", len(w.carriers))
	}
}

func TestTunnelsTogether(t *testing.T) {
	w := NewTunnels(nil)
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 1))
			for range 2000 {
				w.Observe("/p", hex.EncodeToString(randomBytes(r, 20))+".example.com", typeTXT)
			}
		})
	}
	all.Wait()
	if got := w.Look("/p", strings.Repeat("3f", 16)+".example.com", typeTXT); !got.Found {
		t.Errorf("%+v", got)
	}
}

func TestTunnelsAllocates(t *testing.T) {
	w := NewTunnels(nil)
	if n := testing.AllocsPerRun(100, func() {
		w.Observe("/p", "www.images.static.example.com", typeA)
		w.Observe("/p", "e123.g.akamaiedge.net", typeA)
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzTunnels: any name can be asked for.
func FuzzTunnels(f *testing.F) {
	for _, s := range []string{"", ".", "a.b", "\\200\\", "..", strings.Repeat("ab1", 20) + ".com"} {
		f.Add(s, uint16(16))
	}
	w := NewTunnels(nil)
	f.Fuzz(func(t *testing.T, name string, qtype uint16) {
		if got := w.Observe("/p", name, qtype); got.Found && got.Domain == "" {
			t.Fatalf("%q: %+v", name, got)
		}
	})
}

func BenchmarkTunnels(b *testing.B) {
	w := NewTunnels(nil)
	for _, name := range []string{"www.images.static.example.com", strings.Repeat("3f9ab02c", 7) + ".t.example.com"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				w.Observe("/p", name, typeA)
			}
		})
	}
}
