package intel

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// GeoDirs are the places where packages and updaters put data files of countries and networks.
func GeoDirs() []string {
	return []string{"/usr/share/GeoIP", "/var/lib/GeoIP", "/usr/local/share/GeoIP"}
}

// findGeo returns the data file of a kind in the usual places, the best one first by name; "" if
// there is none. The names are those of MaxMind and db-ip, whose files may have a month at the end:
// then the newest counts.
func findGeo(dirs []string, kind string) string {
	for _, stem := range stems(kind) {
		for _, dir := range dirs {
			found, err := filepath.Glob(filepath.Join(dir, stem+"*.mmdb"))
			if err != nil {
				continue
			}
			found = slices.DeleteFunc(found, func(path string) bool {
				rest := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), stem), ".mmdb")
				info, err := os.Stat(path)
				return strings.Trim(rest, "-0123456789") != "" || err != nil || !info.Mode().IsRegular()
			})
			if len(found) > 0 {
				return slices.Max(found)
			}
		}
	}
	return ""
}

func stems(kind string) []string {
	if kind == kindCountry {
		return []string{"GeoIP2-Country", "GeoLite2-Country", "dbip-country", "dbip-country-lite", "country", "GeoIP2-City", "GeoLite2-City", "dbip-city", "dbip-city-lite"}
	}
	return []string{"GeoIP2-ISP", "GeoLite2-ASN", "dbip-asn", "dbip-asn-lite", "asn"}
}
