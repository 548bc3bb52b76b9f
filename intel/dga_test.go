package intel

import (
	"crypto/md5"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"
)

// TestGeneratedHonest: names that people registered, the hardest ones found among 80 000 and a
// sample of the others. More of another list: GATUN_NAMES=FILE.
func TestGeneratedHonest(t *testing.T) {
	file := "testdata/names.txt"
	if other := os.Getenv("GATUN_NAMES"); other != "" {
		file = other
	}
	names := readNames(t, file)
	wrong := 0
	for _, name := range names {
		label, bits := Generated(name)
		if is := bits >= GeneratedLimit; is != IsGenerated(name) {
			t.Fatalf("%s: %d bits, IsGenerated %v", name, bits, !is)
		}
		if bits >= GeneratedLimit {
			wrong++
			if wrong <= 50 {
				t.Logf("%s: %q has %d bits", name, label, bits)
			}
		}
	}
	t.Logf("%d of %d", wrong, len(names))
	if len(names) < 1000 || wrong*10_000 > len(names) {
		t.Errorf("%d of %d honest names would be blocked", wrong, len(names))
	}
}

// TestGeneratedNot: what must never be hit, whatever it looks like.
func TestGeneratedNot(t *testing.T) {
	for _, name := range []string{
		"", "com", "co.uk", "localhost", "a", ".", "..", "x..y",
		"d111111abcdef8.cloudfront.net", "rr4---sn-4g5e6nzs7qx.googlevideo.com", "5f4dcc3b5aa765d61d8327deb882cf99.example.com",
		"e7a9f0c1b2d3e4f5.safeframe.googlesyndication.com", "kz2oq0xm6ie7gn5dkswlpv6m.s3.eu-west-1.amazonaws.com", "xkvbnqwrtzpl.github.io",
		"xn--80ak6aa92e.com", "xn--fiqs8s.cn", "xn--e1aybc.xn--p1ai", "12306.cn", "1234567890123.com", "4.3.2.1.in-addr.arpa",
		"b.a.9.8.7.6.5.4.3.2.1.0.ip6.arpa", "xkvbnqwrtzplxkvbnqwrtzpl.local", "xkvbnqwrtzplxkvbnqwrtzpl", "qxzkvbnwrtpl.corp", "qxzkvbnwrtplmjhg.onion",
		"fvwm.org", "slf4j.org", "xkcd.com", "hsbc.com", "nflxext.com", "wkhtmltopdf.org", "rechtsschutzversicherung.de", "szczesliwice.pl",
		"llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch.co.uk", "kjøbenhavn.dk", "\\200\\201\\202\\203\\204\\205.com",
	} {
		if label, bits := Generated(name); bits >= GeneratedLimit || IsGenerated(name) {
			t.Errorf("%s: %q has %d bits", name, label, bits)
		}
	}
}

// TestGeneratedFound measures what is found of the names that known algorithms make. Those that
// draw short names or put words together are here too: what is not found is known, not hoped for.
func TestGeneratedFound(t *testing.T) {
	for _, a := range algorithms() {
		found := 0
		for _, name := range a.names {
			if IsGenerated(name) {
				found++
			}
		}
		share := 100 * float64(found) / float64(len(a.names))
		t.Logf("%-14s %5.1f %% of %d, like %s", a.name, share, len(a.names), a.names[0])
		if share < a.least || len(a.names) < 400 {
			t.Errorf("%s: %.1f %% found of %d names, at least %.0f %% expected", a.name, share, len(a.names), a.least)
		}
		if a.least == 0 && share > 50 {
			t.Errorf("%s: %.1f %% found: say so", a.name, share)
		}
	}
}

type algorithm struct {
	name  string
	least float64 // per cent that must be found
	names []string
}

const letters = "abcdefghijklmnopqrstuvwxyz"

// algorithms makes names as malware does, or did: written from public analyses of each, with the
// parameters that those give.
func algorithms() []algorithm {
	day := func(n int) time.Time { return time.Date(2015, 3, 1, 0, 0, 0, 0, time.UTC).AddDate(0, 0, n) }
	r := rand.New(rand.NewPCG(1, 2))
	drawn := func(low, high int, from string) func(int) string {
		return func(int) string {
			b := make([]byte, low+r.IntN(high-low+1))
			for i := range b {
				b[i] = from[r.IntN(len(from))]
			}
			return string(b) + ".com"
		}
	}
	many := func(name string, least float64, next func(i int) string) algorithm {
		a := algorithm{name: name, least: least}
		for i := range 2000 {
			a.names = append(a.names, next(i))
		}
		return a
	}
	return []algorithm{
		many("letters 14-24", 90, drawn(14, 24, letters)),
		many("letters+digits", 95, drawn(12, 20, letters+"0123456789")),
		many("hex 16", 95, drawn(16, 16, "0123456789abcdef")),
		many("bamital", 99, func(i int) string { // MD5 of the date and a number
			sum := md5.Sum([]byte(strconv.Itoa(i) + day(i/20).Format("02-01-2006")))
			return hex.EncodeToString(sum[:]) + ".info"
		}),
		many("dyre", 99, func(i int) string { // a letter and 33 hex digits of a hash
			sum := md5.Sum(fmt.Appendf(nil, "%s%d", day(i/333).Format("2006-1-2"), i%333))
			return string('a'+byte(i%26)) + (hex.EncodeToString(sum[:]) + hex.EncodeToString(sum[:]))[:33] + ".to"
		}),
		many("murofet", 95, murofet(day)),
		many("newgoz", 98, newgoz(day)),
		many("cryptolocker", 85, cryptolocker(day)),
		many("ranbyus", 88, ranbyus(day)),
		many("tinba", 80, tinba),
		many("padcrypt", 70, drawn(16, 16, "abcdnfolmk")), // SHA-256 digits through this alphabet
		many("corebot", 85, drawn(12, 22, letters+"12345678")),
		many("emotet", 90, drawn(16, 16, letters[:25])),
		many("necurs", 65, drawn(7, 21, letters[:25])),
		many("ramnit", 65, ramnit),
		many("conficker", 15, drawn(5, 11, letters)),
		many("pushdo", 0, drawnPairs(r)), // consonants and vowels in turn: meant to look like words
		many("words", 0, func(i int) string { // like suppobox and matsnu: words of a list
			list := []string{"increase", "gentle", "mountain", "children", "separate", "window", "market", "thirteen", "husband", "measure"}
			return list[i%10] + list[i/10%10] + list[i/100%10] + ".net"
		}),
	}
}

func murofet(day func(int) time.Time) func(int) string {
	return func(i int) string { // Zeus: MD5 of year, month, day and number; a letter of each half byte pair
		d := day(i / 800)
		seed := []byte{byte(d.Year() + 48), byte(d.Month()), byte(d.Day()), 0, 0, 0, 0, 0}
		binary.LittleEndian.PutUint32(seed[4:], uint32(i%800))
		sum := md5.Sum(seed)
		var b []byte
		for _, c := range sum {
			low, high := c&0x1f+'a', c/8+'a'
			if low <= 'z' {
				b = append(b, low)
			}
			if low != high && high <= 'z' {
				b = append(b, high)
			}
		}
		return string(b) + ".biz"
	}
}

func newgoz(day func(int) time.Time) func(int) string {
	return func(i int) string { // Gameover Zeus after 2014: MD5 words in base 36
		d := day(i / 1000)
		seed := make([]byte, 0, 16)
		seed = binary.LittleEndian.AppendUint32(seed, uint32(i%1000))
		seed = binary.LittleEndian.AppendUint16(seed, uint16(d.Year()))
		seed = binary.LittleEndian.AppendUint32(seed, 0x35190501)
		seed = binary.LittleEndian.AppendUint16(seed, uint16(d.Month()))
		seed = binary.LittleEndian.AppendUint16(seed, uint16(d.Day()))
		sum := md5.Sum(seed)
		text := ""
		for k := 0; k < 16; k += 4 {
			text += strconv.FormatUint(uint64(binary.LittleEndian.Uint32(sum[k:])), 36)
		}
		return text + ".org"
	}
}

func cryptolocker(day func(int) time.Time) func(int) string {
	return func(i int) string {
		d := day(i / 1000)
		key := uint32(i%1000) + 0x8a2f_7c10
		dd, mm, yy := uint32(d.Day())<<16^key, uint32(d.Month())<<16^key, uint32(d.Year())<<16^key
		if dd <= 1 {
			dd = key << 24
		}
		if mm <= 7 {
			mm = key << 24
		}
		if yy <= 15 {
			yy = key << 24
		}
		step := func() {
			dd = (dd<<13>>19&^7 | dd>>19) ^ dd<<12
			mm = mm<<2 ^ mm>>25 ^ mm<<4
			yy = yy&0x1fffffff ^ yy<<11 ^ yy>>8
		}
		step()
		n := (dd^mm^yy)%4 + 12
		b := make([]byte, n)
		for k := range b {
			step()
			b[k] = 'a' + byte((dd^mm^yy)%25)
		}
		return string(b) + ".ru"
	}
}

func ranbyus(day func(int) time.Time) func(int) string {
	seed, year, month, date := uint32(0x65ba0743), uint32(2015), uint32(3), uint32(0)
	return func(i int) string {
		if i%40 == 0 {
			d := day(i / 40)
			year, month, date = uint32(d.Year()), uint32(d.Month()), uint32(d.Day())
		}
		b := make([]byte, 14)
		for k := range b {
			date = date>>15 ^ 16*(date&0x1fff^4*(seed^date))
			year = (year&0xfffffff0)<<17 ^ (year^7*year)>>11
			month = 14*(month&0xfffffffe) ^ (month^4*month)>>8
			seed = seed>>6 ^ (date+8*seed)<<8&0x3ffff00
			b[k] = 'a' + byte((year^month^date)%25)
		}
		return string(b) + ".in"
	}
}

// tinba makes each name of the last one and a name that its masters own.
func tinba(i int) string {
	seed := uint32(0x1c2d) * uint32(i+1)
	for _, c := range []byte("spaines.pw") {
		seed = seed*1103515245 + uint32(c)*12345
	}
	b := make([]byte, 12)
	for k := range b {
		seed = seed*1103515245 + 12345
		b[k] = 'a' + byte(seed>>16%25)
	}
	return string(b) + ".cc"
}

// ramnit draws with the minimal standard generator of Park and Miller, 8 to 19 letters.
func ramnit(i int) string {
	seed := int64(0x7ea1 + i*7919)
	next := func(n int64) int64 {
		seed = 16807*(seed%127773) - 2836*(seed/127773)
		if seed < 0 {
			seed += math.MaxInt32
		}
		return seed % n
	}
	next(7)
	b := make([]byte, next(12)+8)
	for k := range b {
		b[k] = 'a' + byte(next(25))
	}
	return string(b) + ".com"
}

func drawnPairs(r *rand.Rand) func(int) string {
	return func(int) string {
		var b []byte
		for range 5 {
			b = append(b, "bcdfghklmnprstvz"[r.IntN(16)], "aeiou"[r.IntN(5)])
		}
		return string(b) + ".kz"
	}
}

// FuzzGenerated: any text has a score, and what is below a registered name does not change it.
func FuzzGenerated(f *testing.F) {
	for _, s := range []string{"example.com", "a.b.co.uk", "..", "xn--x.com", "-.-.com", "\xff.com"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		label, bits := Generated(name)
		if bits < 0 || label == "" && bits != 0 {
			t.Fatalf("%q: %q %d", name, label, bits)
		}
		if below, b := Generated("www." + name); label != "" && (below != label || b != bits) {
			t.Fatalf("%q: %q %d, below it %q %d", name, label, bits, below, b)
		}
	})
}

func BenchmarkGenerated(b *testing.B) {
	for _, name := range []string{"www.example.com", "www.some-quite-long-registered-name.co.uk", "d111111abcdef8.cloudfront.net", "xkvbnqwrtzpl.com"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				IsGenerated(name)
			}
		})
	}
}

// TestGeneratedAllocates: names of everyday cost nothing.
func TestGeneratedAllocates(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() { IsGenerated("www.some-quite-long-registered-name.co.uk"); IsGenerated("e123.g.akamaiedge.net") }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
