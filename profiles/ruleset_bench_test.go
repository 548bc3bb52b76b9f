package profiles

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"gatun/intel"
	"gatun/network"
	"gatun/network/packet"
)

// flatKinds are the kinds of rules whose number must not matter (performance.md), linearKinds
// those where it does.
var (
	flatKinds   = []string{"exact", "zone", "address", "cidr", "range", "range6", "country", "asn", "list", "port", "suffix", "mixed"}
	linearKinds = []string{"contains", "prefix", "regex"}
)

func v4(i int) netip.Addr { return netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}) }

// span and span6 are addresses of the ranges, which have to be others.
func span(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{12, byte(i >> 16), byte(i >> 8), byte(i)})
}

func span6(i int) netip.Addr {
	a := v6(i).As16()
	a[1] = 1
	return netip.AddrFrom16(a)
}

func v6(i int) netip.Addr {
	a := addr("2a00::1").As16()
	a[5], a[6], a[7] = byte(i>>16), byte(i>>8), byte(i)
	return netip.AddrFrom16(a)
}

// nthRule is rule i of a kind: no two are alike, and matchingFacts fits one of them alone.
func nthRule(kind string, i int) string {
	countries := strings.Fields(isoCountries)
	switch kind {
	case "exact":
		return fmt.Sprintf("- host%d.example TCP/443", i)
	case "zone":
		return fmt.Sprintf("- .zone%d.example", i)
	case "address":
		return "- " + v4(i).String()
	case "cidr":
		return fmt.Sprintf("- %s/64", netip.PrefixFrom(v6(i), 64).Masked().Addr())
	case "range":
		return fmt.Sprintf("- %s-%s", span(i*5+1), span(i*5+4))
	case "range6":
		p := netip.PrefixFrom(span6(i), 64).Masked().Addr().As16()
		lo, hi := p, p
		lo[15], hi[15] = 1, 0xfe
		return fmt.Sprintf("- %s-%s", netip.AddrFrom16(lo), netip.AddrFrom16(hi))
	case "country": // 250 countries with 400 ports each
		return fmt.Sprintf("- %s TCP/%d", countries[i%250], 60_000+i/250)
	case "asn":
		return fmt.Sprintf("- AS%d", i+1)
	case "list":
		return fmt.Sprintf("- L:list%d", i)
	case "port":
		return fmt.Sprintf("- * %s/%d", []string{"TCP", "UDP"}[i%2], i/2+1)
	case "suffix":
		return fmt.Sprintf("- *w.below%d.example", i)
	case "contains":
		return fmt.Sprintf("- *part%dx*", i)
	case "prefix":
		return fmt.Sprintf("- host%d.*", i)
	case "regex":
		return fmt.Sprintf(`- /^host%d\.(com|net)$/`, i)
	default: // mixed
		return nthRule(flatKinds[i%11], i)
	}
}

// matchingFacts fit rule i of the kind.
func matchingFacts(kind string, i int) Facts {
	f := linkFacts("", "198.51.100.7", packet.TCP, 443)
	f.Entity.Stamp = &intel.Stamp{Country: "DE", Continent: "EU", ASN: 4_000_000_000}
	switch kind {
	case "exact":
		f.Entity.Domain = fmt.Sprintf("host%d.example", i)
	case "zone":
		f.Entity.Domain = fmt.Sprintf("a.b.www.zone%d.example", i)
	case "address":
		f.Entity.Addr = v4(i)
	case "cidr":
		f.Entity.Addr = v6(i)
	case "range6":
		f.Entity.Addr = span6(i)
	case "range":
		f.Entity.Addr = span(i*5 + 2)
	case "country":
		f.Entity.Stamp, f.Port = &intel.Stamp{Country: strings.Fields(isoCountries)[i%250], Continent: "EU", ASN: 1}, uint16(60_000+i/250)
	case "asn":
		f.Entity.Stamp = &intel.Stamp{Country: "DE", ASN: uint32(i + 1)}
	case "list":
		f.Entity.Stamp = &intel.Stamp{Lists: []intel.Match{{ID: fmt.Sprintf("list%d", i), Category: "TRAC"}}}
	case "port":
		f.Proto, f.Port = []packet.Proto{packet.TCP, packet.UDP}[i%2], uint16(i/2+1)
	case "suffix":
		f.Entity.Domain = fmt.Sprintf("ww.below%d.example", i)
	case "contains":
		f.Entity.Domain = fmt.Sprintf("a.part%dx.example", i)
	case "prefix":
		f.Entity.Domain = fmt.Sprintf("host%d.example", i)
	case "regex":
		f.Entity.Domain = fmt.Sprintf("host%d.com", i)
	case "mixed":
		return matchingFacts(flatKinds[i%11], i)
	}
	return f
}

func manyRules(tb testing.TB, kind string, n int) *RuleSet {
	tb.Helper()
	rules := make([]Rule, n)
	for i := range rules {
		rules[i] = mustRule(tb, nthRule(kind, i))
	}
	return NewRuleSet(rules)
}

// TestManyRules: what the benchmarks measure is right, for the first, a middle and the last
// rule, and it costs no allocation at any stage.
func TestManyRules(t *testing.T) {
	const n = 3000
	for _, kind := range append(flatKinds, linearKinds...) {
		set := manyRules(t, kind, n)
		query := Facts{Entity: network.Entity{Domain: "www.nobody.example", CNAMEs: []string{"x.nobody.example"}}}
		early := Facts{Entity: network.Entity{Addr: addr("198.51.100.8")}}
		for _, i := range []int{0, 1234, n - 1} {
			f := matchingFacts(kind, i)
			r, m, _ := set.First(&f, nil)
			if m != Matched || r != &set.rules[i] {
				t.Errorf("%s %d: got %v %v, want %v", kind, i, r, m, &set.rules[i])
			}
			if kind == "regex" {
				continue // the regexp package takes its machines from a pool, which may be empty
			}
			if n := testing.AllocsPerRun(20, func() {
				set.First(&f, nil)
				set.First(&query, nil)
				set.First(&early, nil)
			}); n != 0 {
				t.Errorf("%s: %v allocations", kind, n)
			}
		}
	}
}

// BenchmarkFirst shows the cost of a decision by kind and number of rules: it has to be flat
// for the kinds that have an index. Each decision is the last rule's.
func BenchmarkFirst(b *testing.B) {
	for _, kind := range append(flatKinds, linearKinds...) {
		for _, n := range []int{0, 10, 100, 1000, 100_000} {
			b.Run(fmt.Sprintf("%s/%d", kind, n), func(b *testing.B) {
				set, f, want := manyRules(b, kind, n), matchingFacts(kind, max(0, n-1)), Matched
				if n == 0 {
					want = NoMatch
				}
				b.ReportAllocs()
				for b.Loop() {
					if _, m, _ := set.First(&f, nil); m != want {
						b.Fatal(m)
					}
				}
			})
		}
	}
}

// BenchmarkFirstMiss is a flow that no rule mentions, BenchmarkFirstQuery a name before its
// addresses are known.
func BenchmarkFirstMiss(b *testing.B) {
	f := linkFacts("www.nobody.example", "198.51.100.7", packet.TCP, 65535)
	f.Entity.Stamp = &intel.Stamp{Country: "DE", Continent: "EU", ASN: 4_000_000_000}
	benchmarkMixed(b, f)
}

func BenchmarkFirstQuery(b *testing.B) {
	benchmarkMixed(b, dnsFacts("www.nobody.example"))
}

func benchmarkMixed(b *testing.B, f Facts) {
	for _, n := range []int{0, 10, 100, 1000, 100_000} {
		b.Run(fmt.Sprintf("mixed/%d", n), func(b *testing.B) {
			set := manyRules(b, "mixed", n)
			b.ReportAllocs()
			for b.Loop() {
				if _, m, _ := set.First(&f, nil); m != NoMatch {
					b.Fatal(m)
				}
			}
		})
	}
}

// BenchmarkNewRuleSet is what a change of the policy costs.
func BenchmarkNewRuleSet(b *testing.B) {
	rules := manyRules(b, "mixed", 100_000).rules
	b.ReportAllocs()
	for b.Loop() {
		NewRuleSet(rules)
	}
}
