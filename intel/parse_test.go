package intel

import (
	"fmt"
	"hash/maphash"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// dump lists what entries say: "line name flags" and prefixes.
func dump(e *entries) []string {
	var all []string
	for offset := uint32(0); int(offset) < len(e.arena); {
		r := readRecord(e.arena, offset)
		kind := ""
		if r.flags&flagZone != 0 {
			kind += " zone"
		}
		if r.flags&flagExcept != 0 {
			kind += " except"
		}
		all, offset = append(all, fmt.Sprintf("%d %s%s", r.line, r.name, kind)), r.next
	}
	for _, a := range e.addrs {
		all = append(all, fmt.Sprintf("%d %s", a.line, a.prefix))
	}
	return all
}

func TestFormats(t *testing.T) {
	type counts struct{ skipped, broad, invalid int }
	for _, c := range []struct {
		format, text string
		want         []string
		counts
	}{
		{"hosts", "\xef\xbb\xbf# head\r\n127.0.0.1 localhost\r\n0.0.0.0 Ads.Example. b.example # why\n::1\tip6-localhost\n192.0.2.1 nas.example\n0.0.0.0\nads.example\n0.0.0.0 0.0.0.0\n:: c.example\n",
			[]string{"3 ads.example", "3 b.example", "9 c.example"}, counts{skipped: 1, invalid: 2}},
		{"hosts", "0.0.0.0 com\n0.0.0.0 co.uk\n0.0.0.0 github.io\n0.0.0.0 198.51.100.7",
			[]string{"3 github.io", "4 198.51.100.7/32"}, counts{broad: 2}},
		{"domains", "a.example\n*.b.example\n.c.example ; why\n! note\n; note\nA.EXAMPLE\nbücher.example\n_dmarc.d.example\n-x.example\nexa mple\nb..example\n*x.example\n192.0.2.9\n2001:db8::9\n1.2.3.4.5\n",
			[]string{"1 a.example", "2 b.example zone", "3 c.example zone", "7 xn--bcher-kva.example", "8 _dmarc.d.example", "13 192.0.2.9/32", "14 2001:db8::9/128"}, counts{invalid: 5}},
		{"domains", "a.example\n*.a.example\n", []string{"1 a.example zone"}, counts{}},
		{"adblock", "[Adblock Plus 2.0]\n! title\n||a.example^\n||b.example^$important\n||c.example^$third-party\n||d.example/path^\n@@||good.a.example^\n##.ad\nexample.org##.ad\n/banner/*\n||*.e.example^\n||f.*^\n||g.example\n|https://x^\n# note\n||192.0.2.8^\n||b.example^\n||*^\nplain.example.net\nads.js\n192.0.2.3\nall.example.net$all",
			[]string{"3 a.example zone", "4 b.example zone", "7 good.a.example zone except", "11 e.example zone", "19 plain.example.net zone", "22 all.example.net zone", "16 192.0.2.8/32", "21 192.0.2.3/32"}, counts{skipped: 10}},
		{"ips", "192.0.2.1\n198.51.100.9/24 ; SBL1\n2001:db8::/32\n::ffff:203.0.113.7\n203.0.113.8/33\nfe80::1%eth0\nold: 203.0.113.0-203.0.113.2\n203.0.113.9-203.0.113.1\n10.0.0.0/8\n0.0.0.0/0\n10.1.2.3\n# x\n127.0.0.1\n",
			[]string{"1 192.0.2.1/32", "2 198.51.100.0/24", "3 2001:db8::/32", "4 203.0.113.7/32", "7 203.0.113.0/31", "7 203.0.113.2/32", "11 10.1.2.3/32"}, counts{broad: 3, invalid: 3}},
		{"cidr", "192.0.2.0/24\n192.0.3.0 - 192.0.3.255 # why\n192.0.4.1 is bad\n192.0.5.2 - 192.0.5.1\n", []string{"1 192.0.2.0/24", "2 192.0.3.0/24", "3 192.0.4.1/32"}, counts{invalid: 1}},
		{"auto", "! title\n[Adblock Plus 2.0]\n# note\n0.0.0.0 a.example b.example # why\n::1 localhost\n||c.example^\n@@||d.c.example^\nexample.org##.ad\n/banner/*^\n.e.example\n*.f.example ; why\ng.example # why\n192.0.2.1\n" +
			"2001:db8::/32 # why\n198.51.100.9/24 ; SBL1\nold: 203.0.113.0-203.0.113.1\n203.0.113.4 - 203.0.113.5\nH.Example.\n192.0.2.5 nas.example\nnot a name\n%%%\n0.0.0.0 com\n",
			[]string{"4 a.example", "4 b.example", "6 c.example zone", "7 d.c.example zone except", "10 e.example zone", "11 f.example zone", "12 g.example", "18 h.example",
				"13 192.0.2.1/32", "14 2001:db8::/32", "15 198.51.100.0/24", "16 203.0.113.0/31", "17 203.0.113.4/31"}, counts{skipped: 3, broad: 1, invalid: 2}},
	} {
		e, err := parseList(c.format, []byte(c.text), 100)
		if err != nil {
			t.Errorf("%s %q: %v", c.format, c.text, err)
			continue
		}
		if diff := cmp.Diff(c.want, dump(e)); diff != "" {
			t.Errorf("%s %q: %s", c.format, c.text, diff)
		}
		if got := (counts{e.skipped, e.broad, e.invalid}); got != c.counts {
			t.Errorf("%s %q: counted %+v, want %+v", c.format, c.text, got, c.counts)
		}
	}
}

func TestNotAList(t *testing.T) {
	for name, c := range map[string]struct{ format, text, want string }{
		"page":        {"hosts", "\n <!DOCTYPE html><html>404</html>", "web page"},
		"xml":         {"hosts", "<?xml version='1'?>", "web page"},
		"gzip":        {"hosts", "\x1f\x8b\x08\x00", "compressed"},
		"utf-16":      {"hosts", "0\x00.\x000\x00", "binary"},
		"json":        {"domains", "{\"error\": \"rate limit\"}\n", "none of its 1 lines"},
		"text":        {"domains", strings.Repeat("please log in\n", 20) + "a.example\n", "20 of its lines cannot be read, 1 can"},
		"long line":   {"domains", strings.Repeat("a", maxLine+1), "none of its 1 lines"},
		"too many":    {"domains", "a.example\nb.example\nc.example\nd.example", "more than 3 entries"},
		"too many ip": {"ips", "192.0.2.1-192.0.2.254", "more than 3 entries"},
		"format":      {"csv", "", "unknown format"},
	} {
		if _, err := parseList(c.format, []byte(c.text), 3); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	for _, text := range []string{"", "# only a comment\n", "\n\n\r\n"} {
		if e, err := parseList("hosts", []byte(text), 3); err != nil || e.size() != 0 {
			t.Errorf("%q: %v, %v", text, e, err)
		}
	}
	e, err := parseList("domains", []byte("a.example\nb\x00.example\n"+strings.Repeat("x", 2000000)+"\nc.example"), 3)
	if err == nil {
		t.Error("NUL at the start of a list is binary data", e)
	}
	e, err = parseList("domains", []byte(strings.Repeat("# x\n", 500)+"b\x00.example\n"+strings.Repeat("x", 2000000)+"\nc.example"), 3)
	if err != nil || e.invalid != 2 || e.size() != 1 {
		t.Errorf("a NUL and a huge line: %+v, %v; want them counted and the rest read", e, err)
	}
}

// TestRanges covers each range by prefixes that hold exactly its addresses.
func TestRanges(t *testing.T) {
	for from := 0; from < 40; from++ {
		for to := from; to < 40; to++ {
			in := map[netip.Addr]int{}
			for _, p := range rangePrefixes(netip.AddrFrom4([4]byte{192, 0, 2, byte(from)}), netip.AddrFrom4([4]byte{192, 0, 2, byte(to)})) {
				for a := p.Addr(); p.Contains(a); a = a.Next() {
					in[a]++
				}
			}
			if len(in) != to-from+1 || in[netip.AddrFrom4([4]byte{192, 0, 2, byte(from)})] != 1 || in[netip.AddrFrom4([4]byte{192, 0, 2, byte(to)})] != 1 {
				t.Fatalf("%d to %d: %v", from, to, in)
			}
		}
	}
	all := rangePrefixes(netip.MustParseAddr("::"), lastOf(netip.MustParsePrefix("::/0")))
	if len(all) != 1 || all[0].Bits() != 0 {
		t.Errorf("all addresses: %v", all)
	}
	if n := len(rangePrefixes(netip.MustParseAddr("::1"), netip.MustParseAddr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe"))); n != 254 {
		t.Errorf("the longest range has %d prefixes, want 254", n)
	}
}

func FuzzList(f *testing.F) {
	for i, text := range []string{
		"0.0.0.0 ads.example\n", "*.b.example\n.c.example", "||a.example^\n@@||b.a.example^$important|", "1.2.3.0-1.2.4.255\nx:1.2.3.4-1.2.3.9", "2001:db8::/32 ; x",
		"bücher.example\nxn--a\n" + strings.Repeat("a.", 200), "::ffff:0:0/90\nfe80::1%x",
	} {
		f.Add(uint8(i), []byte(text))
	}
	seed := maphash.MakeSeed()
	f.Fuzz(func(t *testing.T, n uint8, data []byte) {
		formats := append(Formats(), AutoFormat)
		format := formats[int(n)%len(formats)]
		e, err := parseList(format, data, 1000)
		if err != nil {
			return
		}
		x := mergeIndex(seed, []*entries{e})
		names := 0
		for offset := uint32(0); int(offset) < len(e.arena); names++ {
			r := readRecord(e.arena, offset)
			name := string(r.name)
			if clean, ok := cleanName(nil, r.name); !ok || string(clean) != name || !normal(name) {
				t.Fatalf("%q is kept as a name", name)
			}
			if r.flags&flagExcept == 0 && tooBroad(r.name) {
				t.Fatalf("%q is kept", name)
			}
			if r.line < 1 || r.line > strings.Count(string(data), "\n")+1 {
				t.Fatalf("%q is in line %d", name, r.line)
			}
			if hits := x.find(nil, "www."+name); len(hits) == 0 || !strings.HasSuffix(name, hits[0].name) {
				t.Fatalf("%q is not found: %v", name, hits)
			}
			offset = r.next
		}
		if names != e.names+e.exceptions {
			t.Fatalf("%d records, %d and %d counted", names, e.names, e.exceptions)
		}
		for _, a := range e.addrs {
			if !a.prefix.IsValid() || a.prefix != a.prefix.Masked() || a.prefix.Addr().Is4In6() || !blockable(a.prefix) {
				t.Fatalf("%v is kept", a.prefix)
			}
		}
	})
}
