package intel

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

const million = 1_000_000

// synthetic makes a list of n names such as lists have: 22 letters on average.
func synthetic(n int) []byte {
	var b bytes.Buffer
	for i := range n {
		fmt.Fprintf(&b, "t%d.%x.example%d.com\n", i%10, i*7919, i%1000)
	}
	return b.Bytes()
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// best is how long f takes, in the best of many batches: others use the machine, too.
func best(f func()) time.Duration {
	const batch = 200
	least := time.Hour
	for range 200 {
		start := time.Now()
		for range batch {
			f()
		}
		least = min(least, time.Since(start)/batch)
	}
	return least
}

// TestMillion holds performance.md's figures for 1 000 000 names: loaded in 3 s, less than 64 MiB,
// and no allocation where nothing matches.
func TestMillion(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	n := million
	if raceFactor > 1 { // what is measured is not what runs
		n /= 20
	}
	path := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(path, synthetic(n), 0o600); err != nil {
		t.Fatal(err)
	}
	country, asn := geoFiles(t)
	before, start := heap(), time.Now()
	s := New(Options{})
	if err := s.Configure(Spec{Lists: []ListSpec{{ID: "l", Category: "ADS", Format: "domains", Path: path}}, Country: country, ASN: asn}); err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	mib := float64(heap()-before) / (1 << 20)
	t.Logf("%d names in %v, %.1f MiB", s.Status()[0].Entries, took.Round(time.Millisecond), mib)
	if s.Status()[0].Entries != n || mib >= 64 {
		t.Errorf("%+v, %.1f MiB, want below 64", s.Status()[0], mib)
	}
	if limit := 20 * time.Second; took > limit*raceFactor { // the target is 3 s; the machine may be busy
		t.Errorf("loaded in %v", took)
	}
	cnames, addr := []string{"edge.cdn.example.net", "a.b.example.net"}, netip.MustParseAddr("198.51.100.7")
	s.Stamp("", nil, addr)
	if n := testing.AllocsPerRun(1000, func() { s.Stamp("www.shop.example.org", cnames, addr) }); n != 0 {
		t.Errorf("%v allocations where nothing matches, want 0", n)
	}
	listed := make([]string, 512)
	for i := range listed {
		k := i * (n / len(listed))
		listed[i] = fmt.Sprintf("t%d.%x.example%d.com", k%10, k*7919, k%1000)
	}
	hit := 0
	onList := func() {
		if len(s.Stamp(listed[hit%len(listed)], nil, addr).Lists) != 1 {
			t.Fatalf("%s is not found", listed[hit%len(listed)])
		}
		hit++
	}
	for range listed {
		onList()
	}
	if n := testing.AllocsPerRun(1000, onList); n > 0.2 { // two of the names may share a place
		t.Errorf("%v allocations where a name is on a list and was asked for before, want 0", n)
	}
	miss, found := best(func() { s.Stamp("www.shop.example.org", cnames, addr) }), best(onList)
	t.Logf("a look-up takes %v where nothing matches, with two aliases and an address; %v where a name matches", miss, found)
	if limit := 10 * time.Microsecond * raceFactor; miss > limit || found > limit { // the target is 1 µs; the machine may be busy
		t.Errorf("a look-up takes %v and %v", miss, found)
	}
	for _, i := range []int{0, n / 2, n - 1} {
		if got := s.Matches(fmt.Sprintf("www.t%d.%x.example%d.com", i%10, i*7919, i%1000)); len(got) != 1 || got[0].Line != i+1 {
			t.Errorf("name %d: %v", i, got)
		}
	}
	runtime.KeepAlive(s)
}

// TestDebianLists reads the real lists that Debian has.
func TestDebianLists(t *testing.T) {
	root := filepath.Join("/", os.Getenv("GATUN_DEBIAN"), "usr/share/chromium/extensions/ublock-origin/assets/thirdparties") + "/"
	files := []string{"easylist/easylist.txt", "easylist/easyprivacy.txt", "urlhaus-filter/urlhaus-filter-online.txt"}
	spec, distinct := Spec{}, map[string]bool{}
	for i, name := range files {
		data, err := os.ReadFile(root + name)
		if err != nil {
			t.Skip("needs the real lists: apt-get download webext-ublock-origin-chromium, dpkg -x it into a folder, and name that in GATUN_DEBIAN")
		}
		for line := range strings.Lines(string(data)) { // the slow way, as a second opinion
			line = strings.TrimSpace(line)
			if rule, ok := strings.CutSuffix(line, "^"); ok && strings.HasPrefix(rule, "||") && !strings.ContainsAny(rule[2:], "*/:^$|") && strings.Contains(rule, ".") {
				distinct[rule[2:]] = true
			}
		}
		spec.Lists = append(spec.Lists, ListSpec{ID: fmt.Sprintf("l%d", i), Category: "TRAC", Format: "adblock", Path: root + name})
	}
	before, start := heap(), time.Now()
	s := New(Options{})
	if err := s.Configure(spec); err != nil {
		t.Fatal(err)
	}
	took, all := time.Since(start), 0
	mib := float64(heap()-before) / (1 << 20)
	if took > 3*time.Second*raceFactor || mib >= 64 {
		t.Errorf("loaded in %v, %.1f MiB; want below 3 s and 64 MiB", took, mib)
	}
	for _, st := range s.Status() {
		t.Logf("%s: %d entries, %d exceptions, %d skipped, %d refused, %d invalid, %s%s", st.Source, st.Entries, st.Exceptions, st.Skipped, st.Refused, st.Invalid, st.Error, st.Warning)
		all += st.Entries
		if st.Error != "" || st.Invalid > 20 {
			t.Errorf("%+v", st)
		}
	}
	t.Logf("%d entries, %d distinct by the slow way, in %v, %.1f MiB; a look-up that finds nothing takes %v", all, len(distinct), took.Round(time.Millisecond), mib,
		best(func() { s.Stamp("www.shop.example.org", nil, netip.Addr{}) }))
	missing := 0
	for name := range distinct {
		if len(s.Matches("sub."+name)) == 0 && len(s.Matches(name)) == 0 {
			if missing++; missing < 10 {
				t.Logf("not found: %s", name)
			}
		}
	}
	if missing > 20 || len(distinct) < 50_000 {
		t.Errorf("%d of %d are not found", missing, len(distinct))
	}
}

func benchStore(b *testing.B, n int) *Store {
	b.Helper()
	path := filepath.Join(b.TempDir(), "list")
	if err := os.WriteFile(path, synthetic(n), 0o600); err != nil {
		b.Fatal(err)
	}
	country, asn := geoFiles(b)
	s := New(Options{})
	if err := s.Configure(Spec{Lists: []ListSpec{{ID: "l", Category: "ADS", Format: "domains", Path: path}}, Country: country, ASN: asn}); err != nil {
		b.Fatal(err)
	}
	return s
}

// BenchmarkStamp is the curve of performance.md: flat in the number of names.
func BenchmarkStamp(b *testing.B) {
	for _, n := range []int{1000, 100_000, million} {
		s := benchStore(b, n)
		addr := netip.MustParseAddr("198.51.100.7")
		asked := make([]string, 4096)
		for i := range asked {
			asked[i] = fmt.Sprintf("www.t%d.%x.example.org", i%10, i*104729)
		}
		b.Run(fmt.Sprintf("miss/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				s.Stamp(asked[i&4095], nil, addr)
				i++
			}
		})
		listed := strings.Fields(string(synthetic(n)[:1<<14]))
		b.Run(fmt.Sprintf("hit/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				s.Stamp(listed[i%(len(listed)-1)], nil, addr)
				i++
			}
		})
	}
}

// BenchmarkStampLists is the same in the number of lists, which all have the same names: the worst
// case for the index, because the records of one name lie side by side.
func BenchmarkStampLists(b *testing.B) {
	for _, n := range []int{1, 10, 100} {
		spec := Spec{}
		for i := range n {
			path := filepath.Join(b.TempDir(), "list")
			if err := os.WriteFile(path, synthetic(100_000/n), 0o600); err != nil {
				b.Fatal(err)
			}
			spec.Lists = append(spec.Lists, ListSpec{ID: fmt.Sprintf("l%d", i), Format: "domains", Path: path})
		}
		s := New(Options{})
		if err := s.Configure(spec); err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("miss/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				s.Stamp("www.shop.example.org", nil, netip.Addr{})
			}
		})
	}
}

func BenchmarkLoad(b *testing.B) {
	data := synthetic(100_000)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		e, err := parseList("domains", data, million)
		if err != nil {
			b.Fatal(err)
		}
		mergeIndex(maphash.MakeSeed(), []*entries{e})
	}
}
