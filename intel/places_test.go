package intel

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

// TestFindGeo: the best file of the usual names, the newest of several months, and nothing else.
func TestFindGeo(t *testing.T) {
	one, two := t.TempDir(), t.TempDir()
	touch := func(dir, name string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	is := func(kind, want string) {
		t.Helper()
		if got := findGeo([]string{one, two, filepath.Join(one, "none")}, kind); got != want {
			t.Errorf("%s: %q, want %q", kind, got, want)
		}
	}
	for _, name := range []string{"GeoIPv6.dat", "country.mmdb.gz", "countryside.mmdb", "asn-of-mine.mmdb", "GeoLite2-Country.csv"} {
		touch(one, name)
	}
	if err := os.Mkdir(filepath.Join(one, "country.mmdb"), 0o700); err != nil {
		t.Fatal(err)
	}
	is(kindCountry, "")
	is(kindASN, "")
	is(kindCountry, "")
	path := touch(two, "GeoLite2-City.mmdb")
	is(kindCountry, path)
	touch(one, "dbip-country-lite-2025-12.mmdb")
	path = touch(one, "dbip-country-lite-2026-01.mmdb")
	is(kindCountry, path)
	path = touch(two, "GeoLite2-Country.mmdb")
	is(kindCountry, path)
	is(kindASN, "")
	path = touch(one, "dbip-asn-lite-2026-01.mmdb")
	is(kindASN, path)
}

// TestGeoIsFound: a file that comes later is found when files are looked at, and a policy that names
// another one wins.
func TestGeoIsFound(t *testing.T) {
	dir := t.TempDir()
	s := New(Options{GeoDirs: []string{dir}})
	if err := s.Configure(Spec{}); err != nil {
		t.Fatal(err)
	}
	generation := s.Generation()
	if s.Poll(); s.Generation() != generation || len(s.Geo()) != 0 {
		t.Errorf("nothing is there: %+v", s.Geo())
	}
	country, asn := geoFiles(t)
	for from, to := range map[string]string{country: "GeoLite2-Country.mmdb", asn: "GeoLite2-ASN.mmdb"} {
		data, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, to), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	s.Poll()
	if got := s.Stamp("", nil, netip.MustParseAddr("198.51.100.7")); got.Country != "DE" || got.ASN != 64500 || s.Generation() != generation+1 {
		t.Errorf("%+v, generation %d, was %d", got, s.Generation(), generation)
	}
	if err := s.Configure(Spec{Country: filepath.Join(dir, "none")}); err != nil || s.Geo()[0].Error == "" || s.Geo()[1].Error != "" {
		t.Errorf("%v %+v", err, s.Geo())
	}
}
