package config

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// readLists reads files as Load does.
func readLists(texts ...string) (*merger, []string) {
	m := newMerger(newWalker())
	for i, text := range texts {
		m.file(file{path: []string{"gatun.yaml", "conf.d/b.yaml"}[i], data: []byte(text), dropIn: i > 0})
	}
	var problems []string
	for _, p := range m.w.problems.Sort() {
		problems = append(problems, p.Error())
	}
	return m, problems
}

func TestLists(t *testing.T) {
	m, problems := readLists(`version: 1
lists:
  - {id: ads, category: TRAC, format: hosts, path: /etc/gatun/lists/ads.txt}
  - {id: mal, category: MAL, format: domains, url: "https://lists.example/mal.txt", every: 24h, checksum: "sha256:`+strings.Repeat("aB", 32)+`"}
geo: {country: /usr/share/GeoIP/country.mmdb, asn: /a.mmdb}
`, "lists: [{id: more, category: P2P, format: ips, path: /p2p}]\ngeo: {asn: /b.mmdb}\n")
	if problems != nil {
		t.Fatal(problems)
	}
	c := m.config(nil)
	if diff := cmp.Diff([]ListSpec{
		{Position: Position{"gatun.yaml", 3, 5}, ID: "ads", Category: "TRAC", Format: "hosts", Path: "/etc/gatun/lists/ads.txt"},
		{Position: Position{"gatun.yaml", 4, 5}, ID: "mal", Category: "MAL", Format: "domains", URL: "https://lists.example/mal.txt", Every: 24 * time.Hour, Checksum: "sha256:" + strings.Repeat("aB", 32)},
		{Position: Position{"conf.d/b.yaml", 1, 9}, ID: "more", Category: "P2P", Format: "ips", Path: "/p2p"},
	}, c.Lists()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(GeoSpec{Position: Position{"conf.d/b.yaml", 2, 6}, Country: "/usr/share/GeoIP/country.mmdb", ASN: "/b.mmdb"}, c.Geo()); diff != "" {
		t.Error(diff)
	}
	c.fingerprint()
	same, _ := readLists("version: 1\n")
	other := same.config(nil)
	if other.fingerprint(); c.Equal(other) {
		t.Error("files with and without lists are equal")
	}
}

func TestListProblems(t *testing.T) {
	for _, c := range []struct {
		text string
		want []string
	}{
		{"lists:\ngeo:\n", nil},
		{"lists: {}\n", []string{"gatun.yaml:2:8: lists: want a list of filter lists, each with id, category, format, and path or url, got a section"}},
		{"lists: [ads]\n", []string{`gatun.yaml:2:9: lists[0]: want a filter list such as {id: ads, category: TRAC, format: hosts, path: /etc/gatun/lists/ads.txt}, got "ads"`}},
		{"lists: [{}]\n", []string{
			"gatun.yaml:2:9: lists[0]: want id", "gatun.yaml:2:9: lists[0]: want category", "gatun.yaml:2:9: lists[0]: want format", "gatun.yaml:2:9: lists[0]: want path or url",
		}},
		{"lists:\n- {id: ads, categry: TRAC, category: trac, format: host, path: ads.txt, every: 1h}\n", []string{
			"gatun.yaml:3:3: lists[0]: has path and every: a file is read again when it changes; every is for a url",
			`gatun.yaml:3:13: lists[0]/categry: unknown key (did you mean "category"?)`,
			`gatun.yaml:3:38: lists[0]/category: want ` + oneOf(ListCategories()) + `, got "trac" (did you mean "TRAC"?)`,
			`gatun.yaml:3:52: lists[0]/format: want ` + oneOf(ListFormats()) + `, got "host" (did you mean "hosts"?)`,
			`gatun.yaml:3:64: lists[0]/path: want an absolute path, got "ads.txt"`,
		}},
		{"lists:\n- {id: TRAC, category: MAL, format: ips, path: /a, url: \"ftp://x\"}\n- {id: a b, category: 1, format: ips, url: \"https://x\", every: 5s, checksum: md5}\n- {id: -a, category: MAL, format: ips, url: x, every: soon}\n", []string{
			"gatun.yaml:3:3: lists[0]: has path and url; want one of them",
			`gatun.yaml:3:8: lists[0]/id: "TRAC" is a category; want a name of its own for the list (did you mean "trac"?)`,
			"gatun.yaml:3:57: lists[0]/url: want a URL such as https://lists.example/ads.txt",
			`gatun.yaml:4:8: lists[1]/id: want 1 to 64 letters, digits, -, _ and ., beginning with a letter or digit, got "a b"`,
			"gatun.yaml:4:23: lists[1]/category: want text in quotes, got the number 1",
			`gatun.yaml:4:64: lists[1]/every: want at least 1m0s, got "5s"`,
			"gatun.yaml:4:78: lists[1]/checksum: want sha256: and 64 hexadecimal digits",
			`gatun.yaml:5:8: lists[2]/id: want 1 to 64 letters, digits, -, _ and ., beginning with a letter or digit, got "-a"`,
			"gatun.yaml:5:45: lists[2]/url: want a URL such as https://lists.example/ads.txt",
			`gatun.yaml:5:55: lists[2]/every: want a duration such as 90s, 10m, 24h or 30d, got "soon"`,
		}},
		{"lists:\n- &a {id: a, category: MAL, format: ips, path: /a}\n- *a\n", []string{"gatun.yaml:3:3: lists[a]: there is already a list of that id at gatun.yaml:3"}},
		{"geo: x\n", []string{`gatun.yaml:2:6: geo: want a section with country and asn, got "x"`}},
		{"geo: {contry: /a, asn: 1, country: b.mmdb}\n", []string{
			`gatun.yaml:2:7: geo/contry: unknown key (did you mean "country"?)`, "gatun.yaml:2:24: geo/asn: want text in quotes, got the number 1",
			`gatun.yaml:2:36: geo/country: want an absolute path, got "b.mmdb"`,
		}},
	} {
		_, problems := readLists("version: 1\n" + c.text)
		if diff := cmp.Diff(c.want, problems); diff != "" {
			t.Errorf("%s\n%s", c.text, diff)
		}
	}
}

// TestListSettings: what the settings about lists accept, and what a person probably meant.
func TestListSettings(t *testing.T) {
	cfg := load(t, "version: 1\n")
	if got := cfg.Strings("filter/lists"); !slices.Equal(got, []string{"TRAC", "MAL", "DECEP", "BAD", "UNBREAK"}) {
		t.Errorf("filter/lists by default: %q", got)
	}
	good := "version: 1\nfilter:\n  lists: [ADS, mine, CUSTOM]\n  customLists: [/etc/lists/a.txt, \"https://lists.example/b\"]\n  includeSubdomains: off\n  includeCNAMEs: off\n  remoteIntel: \"https://stamp.example/v1?key=1\"\n" +
		"lists: [{id: mine, category: BAD, format: hosts, path: /a}]\ngeo: {asn: /b}\nprofiles: [{name: a, match: [{path: /a}], filter: {lists: []}}]\n"
	cfg = load(t, good)
	if len(cfg.Warnings()) > 0 || len(cfg.Lists()) != 1 || cfg.Geo().ASN != "/b" || cfg.String("filter/remoteIntel") != "https://stamp.example/v1?key=1" {
		t.Errorf("%v %+v %+v", cfg.Warnings(), cfg.Lists(), cfg.Geo())
	}
	if got := cfg.Strings("filter/customLists"); !slices.Equal(got, []string{"/etc/lists/a.txt", "https://lists.example/b"}) {
		t.Errorf("filter/customLists: %q", got)
	}
	for text, want := range map[string]string{
		"lists: [\"L:ads\"]":                        `gatun.yaml:3:12: filter/lists[0]: want the category or the id of a list without L: (did you mean "ads"?)`,
		"lists: [\"a b\"]":                          `gatun.yaml:3:12: filter/lists[0]: want 1 to 64 letters, digits, -, _ and ., beginning with a letter or digit, got "a b"`,
		"customLists: [a.txt]":                      `gatun.yaml:3:17: filter/customLists[0]: want an absolute path, got "a.txt"`,
		"customLists: [\"ftp://x/y\"]":              "gatun.yaml:3:18: filter/customLists[0]: want a URL such as https://lists.example/ads.txt",
		"remoteIntel: \"http://stamp.example/v1\"":  "gatun.yaml:3:16: filter/remoteIntel: want an https URL: it is told each name that is asked for",
		"remoteIntel: \"stamp.example\"":            "gatun.yaml:3:16: filter/remoteIntel: want a URL such as https://stamp.example/v1",
		"remoteIntel: \"https://stamp.example/#a\"": "gatun.yaml:3:16: filter/remoteIntel: want a URL such as https://stamp.example/v1",
		"lists: [mine]\nlists: [{id: CUSTOM, category: BAD, format: hosts, path: /a}]": `gatun.yaml:4:14: lists[0]/id: "CUSTOM" is a category; want a name of its own for the list (did you mean "custom"?)`,
	} {
		if got := problemsOf(t, "gatun.yaml", "version: 1\nfilter:\n  "+text+"\n"); len(got) != 1 || got[0] != want {
			t.Errorf("%s:\n%q, want\n%q", text, got, want)
		}
	}
}
