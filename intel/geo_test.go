package intel

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatun/e2e/policytest"
)

func geoFiles(t testing.TB) (country, asn string) {
	t.Helper()
	dir := t.TempDir()
	country, asn = filepath.Join(dir, "country.mmdb"), filepath.Join(dir, "asn.mmdb")
	for path, data := range map[string][]byte{
		country: policytest.MMDB("Test-Country", map[string]map[string]any{
			"198.51.100.0/24": {"country": map[string]any{"iso_code": "DE"}, "continent": map[string]any{"code": "EU"}},
			"203.0.113.0/24":  {"country_code": "US"},
			"192.0.2.0/25":    {"country": "jp", "continent": "AS"},
			"192.0.2.128/25":  {"country": "not a code", "continent": "Moon"},
			"2001:db8::/32":   {"country_code": "BR"},
			"10.0.0.0/8":      {"country_code": "FR"},
			"127.0.0.0/8":     {"country_code": "FR"},
		}),
		asn: policytest.MMDB("Test-ASN", map[string]map[string]any{
			"198.51.100.0/24": {"autonomous_system_number": uint32(64500), "autonomous_system_organization": "Example\x1b[31m Net"},
			"203.0.113.0/24":  {"asn": "AS64501", "name": "Other"},
			"192.0.2.0/25":    {"asn": "AS99999999999"},
			"fc00::/7":        {"asn": "AS64501"},
		}),
	} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return country, asn
}

func TestGeo(t *testing.T) {
	country, asn := geoFiles(t)
	s := New(Options{})
	if err := s.Configure(Spec{Country: country, ASN: asn}); err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]Stamp{
		"198.51.100.7":        {Country: "DE", Continent: "EU", ASN: 64500, ASOwner: "Example[31m Net"},
		"::ffff:198.51.100.7": {Country: "DE", Continent: "EU", ASN: 64500, ASOwner: "Example[31m Net"},
		"203.0.113.9":         {Country: "US", Continent: "NA", ASN: 64501, ASOwner: "Other"},
		"192.0.2.1":           {Country: "JP", Continent: "AS"},
		"192.0.2.200":         {},
		"2001:db8::1":         {Country: "BR", Continent: "SA"},
		"1.1.1.1":             {},
		"10.1.2.3":            {},
		"127.0.0.1":           {},
		"fd00::1":             {},
	} {
		for range 2 { // the second is from the cache
			got := s.Stamp("", nil, netip.MustParseAddr(addr))
			if got.Country != want.Country || got.Continent != want.Continent || got.ASN != want.ASN || got.ASOwner != want.ASOwner {
				t.Errorf("%s: %+v, want %+v", addr, got, want)
			}
		}
	}
	st := s.Geo()
	if len(st) != 2 || st[0].Type != "Test-Country" || st[1].Kind != "asn" || !st[0].Built.Equal(time.Unix(1_700_000_000, 0)) || st[0].Error != "" {
		t.Errorf("Geo: %+v", st)
	}
	badGeo(t, s, country, asn)
}

// badGeo: a data file that is broken leaves the last good one in use.
func badGeo(t *testing.T, s *Store, country, asn string) {
	t.Helper()
	good, err := os.ReadFile(country)
	if err != nil {
		t.Fatal(err)
	}
	de := netip.MustParseAddr("198.51.100.7")
	for name, data := range map[string]string{
		"empty": "", "text": "US,1.2.3.0", "cut off": string(good[:len(good)/2]), "no tree": string(good[len(good)-150:]),
	} {
		write(t, country, data)
		s.pollFiles()
		if st := s.Geo()[0]; !strings.Contains(st.Error, "last good copy") || s.Stamp("", nil, de).Country != "DE" {
			t.Errorf("%s: %+v", name, st)
		}
	}
	write(t, country, string(good))
	generation := s.Generation()
	s.pollFiles()
	if st := s.Geo()[0]; st.Error != "" || s.Stamp("", nil, de).Country != "DE" {
		t.Errorf("good again: %+v, generation %d, was %d", st, s.Generation(), generation)
	}
	if err := s.Configure(Spec{ASN: asn}); err != nil || s.Stamp("", nil, de).Country != "" || s.Stamp("", nil, de).ASN != 64500 {
		t.Errorf("without countries: %v %+v", err, s.Stamp("", nil, de))
	}
	later := filepath.Join(t.TempDir(), "none")
	if err := s.Configure(Spec{Country: later}); err != nil || s.Geo()[0].Error == "" {
		t.Errorf("a file that is not there: %v %+v", err, s.Geo())
	}
	generation = s.Generation()
	if s.pollFiles(); s.Generation() != generation {
		t.Error("a file that is not there changes something each time it is looked for")
	}
	write(t, later, string(good))
	if s.pollFiles(); s.Generation() != generation+1 || s.Geo()[0].Error != "" || s.Stamp("", nil, de).Country != "DE" {
		t.Errorf("it came: %+v", s.Geo())
	}
}

// TestContinents: every country is on one continent.
func TestContinents(t *testing.T) {
	seen := map[string]bool{}
	for _, line := range strings.Split(strings.TrimSpace(continents), "\n") {
		name, rest, _ := strings.Cut(line, " ")
		for _, c := range strings.Fields(rest) {
			if seen[c] || len(c) != 2 || continentOf(c) != name {
				t.Errorf("%s: twice, or on %q rather than %q", c, continentOf(c), name)
			}
			seen[c] = true
		}
	}
	if len(seen) != 250 { // ISO 3166-1 has 249, and XK
		t.Errorf("%d countries", len(seen))
	}
	if continentOf("NA") != "AF" || continentOf("AS") != "OC" || continentOf("EU") != "" || continentOf("ZZ") != "" {
		t.Errorf("NA %q, AS %q, EU %q, ZZ %q", continentOf("NA"), continentOf("AS"), continentOf("EU"), continentOf("ZZ"))
	}
}

func FuzzGeo(f *testing.F) {
	f.Add(policytest.MMDB("Test", map[string]map[string]any{
		"198.51.100.0/24": {"country": map[string]any{"iso_code": "DE"}, "continent": map[string]any{"code": "EU"}},
		"192.0.2.0/25":    {"asn": "AS64501", "name": "Other"},
	}))
	f.Fuzz(func(t *testing.T, data []byte) {
		file := &geoFile{}
		if file.open(data, nil) != nil {
			return
		}
		g := newGeo(file, file)
		for _, a := range []string{"198.51.100.7", "1.1.1.1", "2001:db8::1", "192.0.2.1"} {
			if got := g.stamp(netip.MustParseAddr(a)); len(got.Country) != 0 && len(got.Country) != 2 || len(got.Continent) != 0 && len(got.Continent) != 2 {
				t.Fatalf("%+v", got)
			}
		}
	})
}
