package config

import (
	"encoding/hex"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// ListSpec is one filter list of the file. Package intel reads it.
type ListSpec struct {
	Position
	ID       string // as rules name it: L:ads
	Category string // one of ListCategories
	Format   string // one of ListFormats
	Path     string // of a file, or
	URL      string
	Every    time.Duration // how often URL is asked; 0: a day
	Checksum string        // "sha256:" and 64 hexadecimal digits; "" for none
}

// GeoSpec names the data files of countries and networks, "" for none.
type GeoSpec struct {
	Position
	Country, ASN string
}

// Lists returns the filter lists, in the order of the files.
func (c *Config) Lists() []ListSpec { return c.lists }

// Geo returns the data files of countries and networks.
func (c *Config) Geo() GeoSpec { return c.geo }

// ListCategories are the categories that a filter list may have.
func ListCategories() []string {
	return []string{
		"TRAC", "ADS", "ALYTC", "TELEM", "TRACO", "MAL", "DECEP", "PHISH", "FRAUD", "BAD", "NSFW", "PORN", "VIOL", "GAMBL", "NSFWM",
		"BIGT", "EXPERIMENTS", "UNBREAK", "SECUREDNS", "P2P",
	}
}

// ListFormats are the formats that a filter list may have.
func ListFormats() []string { return []string{"hosts", "domains", "adblock", "ips", "cidr"} }

func listKeys() []string {
	return []string{"id", "category", "format", "path", "url", "every", "checksum"}
}

const (
	maxListID = 64
	minEvery  = time.Minute
)

// intelligence reads the sections lists and geo.
func (m *merger) intelligence(s *scope, name string, value *yaml.Node) {
	switch {
	case value.Tag == "!!null":
	case name == "geo":
		m.w.geo(s, value, &m.geo)
	case value.Kind != yaml.SequenceNode:
		m.w.problem(s.at(value), name, "want a list of filter lists, each with id, category, format, and path or url, got "+describe(value.Value, value.Tag), "")
	default:
		for i, item := range value.Content {
			if l, ok := m.w.filterList(s, i, resolve(item)); ok {
				m.addList(l)
			}
		}
	}
}

func (m *merger) addList(l ListSpec) {
	for _, other := range m.lists {
		if other.ID == l.ID {
			m.w.problem(l.Position, fmt.Sprintf("lists[%s]", l.ID), fmt.Sprintf("there is already a list of that id at %s:%d", other.File, other.Line), "")
			return
		}
	}
	m.lists = append(m.lists, l)
}

// filterList reads one item of lists; ok is false if anything is wrong with it.
func (w *walker) filterList(s *scope, index int, n *yaml.Node) (l ListSpec, ok bool) {
	l.Position = s.at(n)
	key := fmt.Sprintf("lists[%d]", index)
	if n.Kind != yaml.MappingNode {
		w.problem(s.at(n), key, "want a filter list such as {id: ads, category: TRAC, format: hosts, path: /etc/gatun/lists/ads.txt}, got "+describe(n.Value, n.Tag), "")
		return l, false
	}
	before, has := len(w.problems), map[string]bool{}
	w.fields(s, key, n, func(name string, k, v *yaml.Node) {
		has[name] = true
		if !slices.Contains(listKeys(), name) {
			w.problem(s.at(k), s.name(join(key, name)), "unknown key", nearest(name, listKeys()))
			return
		}
		text := w.fingerprintText(s, join(key, name), v)
		if text == "" {
			return
		}
		if message, suggestion := l.set(name, text); message != "" {
			w.problem(s.at(v), s.name(join(key, name)), message, suggestion)
		}
	})
	for _, name := range []string{"id", "category", "format"} {
		if !has[name] {
			w.problem(l.Position, s.name(key), "want "+name, "")
		}
	}
	switch {
	case has["path"] && has["url"]:
		w.problem(l.Position, s.name(key), "has path and url; want one of them", "")
	case !has["path"] && !has["url"]:
		w.problem(l.Position, s.name(key), "want path or url", "")
	case has["path"] && has["every"]:
		w.problem(l.Position, s.name(key), "has path and every: a file is read again when it changes; every is for a url", "")
	}
	return l, len(w.problems) == before
}

// set takes over one key.
func (l *ListSpec) set(name, text string) (message, suggestion string) {
	switch name {
	case "id":
		l.ID = text
		return checkListID(text)
	case "category":
		l.Category = text
		return oneOfThese(text, ListCategories())
	case "format":
		l.Format = text
		return oneOfThese(text, ListFormats())
	case "path":
		l.Path = text
		return checkPath(text)
	case "url":
		l.URL = text
		return checkListURL(text), ""
	case "every":
		v, fault := parseDuration(text)
		if fault != "" {
			return fault, ""
		}
		if l.Every = v.(time.Duration); l.Every < minEvery {
			return fmt.Sprintf("want at least %v, got %q", minEvery, text), ""
		}
	case "checksum":
		l.Checksum = text
		sum, found := strings.CutPrefix(text, "sha256:")
		if raw, err := hex.DecodeString(sum); !found || err != nil || len(raw) != 32 {
			return "want sha256: and 64 hexadecimal digits", ""
		}
	}
	return "", ""
}

func oneOfThese(text string, known []string) (message, suggestion string) {
	if slices.Contains(known, text) {
		return "", ""
	}
	return fmt.Sprintf("want %s, got %q", oneOf(known), text), nearest(text, known)
}

// itemsOf makes the default of a list.
func itemsOf(texts ...string) []RuleText {
	items := make([]RuleText, len(texts))
	for i, text := range texts {
		items[i].Text = text
	}
	return items
}

// CustomCategory is the category of the lists of filter/customLists, which no list of the section
// lists may have.
const CustomCategory = "CUSTOM"

// checkListID accepts what rules can name and what is no category: L:TRAC means them all.
func checkListID(id string) (message, suggestion string) {
	switch {
	case !isListID(id):
		return wantedListID(id), ""
	case id == CustomCategory || slices.Contains(ListCategories(), id):
		return fmt.Sprintf("%q is a category; want a name of its own for the list", id), strings.ToLower(id)
	}
	return "", ""
}

func isListID(id string) bool {
	const first = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	return id != "" && len(id) <= maxListID && strings.Trim(id, first+"-_.") == "" && strings.Contains(first, id[:1])
}

func wantedListID(id string) string {
	return fmt.Sprintf("want 1 to %d letters, digits, -, _ and ., beginning with a letter or digit, got %q", maxListID, id)
}

// checkListName checks one item of filter/lists: a category, or the id of a list.
func checkListName(v any) (message, suggestion string) {
	name := v.(string)
	if isListID(name) {
		return "", ""
	}
	if rest, ok := strings.CutPrefix(name, "L:"); ok && isListID(rest) {
		return "want the category or the id of a list without L:", rest
	}
	return wantedListID(name), ""
}

// checkCustomList checks one item of filter/customLists.
func checkCustomList(v any) (message, suggestion string) {
	text := v.(string)
	if strings.Contains(text, "://") {
		return checkListURL(text), ""
	}
	if text == "" {
		return "want the path of a file, or a URL", ""
	}
	return checkPath(text)
}

func checkListURL(text string) string {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return "want a URL such as https://lists.example/ads.txt"
	}
	return ""
}

// checkRemoteIntel wants encryption: whoever is between would see each name that is asked for.
func checkRemoteIntel(v any) (message, suggestion string) {
	text := v.(string)
	if text == "" {
		return "", ""
	}
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.Fragment != "":
		return "want a URL such as https://stamp.example/v1", ""
	case u.Scheme != "https":
		return "want an https URL: it is told each name that is asked for", ""
	}
	return "", ""
}

// geo reads the section geo over what the files before it say.
func (w *walker) geo(s *scope, n *yaml.Node, g *GeoSpec) {
	if n.Kind != yaml.MappingNode {
		w.problem(s.at(n), "geo", "want a section with country and asn, got "+describe(n.Value, n.Tag), "")
		return
	}
	g.Position = s.at(n)
	w.fields(s, "geo", n, func(name string, k, v *yaml.Node) {
		to := map[string]*string{"country": &g.Country, "asn": &g.ASN}[name]
		if to == nil {
			w.problem(s.at(k), s.name(join("geo", name)), "unknown key", nearest(name, []string{"country", "asn"}))
			return
		}
		text := w.fingerprintText(s, join("geo", name), v)
		if message, suggestion := checkPath(text); message != "" {
			w.problem(s.at(v), s.name(join("geo", name)), message, suggestion)
			return
		}
		*to = text
	})
}

// digestIntelligence writes what Equal compares.
func (c *Config) digestIntelligence(h io.Writer) {
	for i := range c.lists {
		fmt.Fprintf(h, "%#v\n", c.lists[i])
	}
	if c.geo != (GeoSpec{}) {
		fmt.Fprintf(h, "%#v\n", c.geo)
	}
}

func filterListSchema() object {
	text := object{"type": "string", "minLength": 1}
	return object{
		"type": "object", "additionalProperties": false, "required": []string{"id", "category", "format"},
		"properties": object{
			"id":       object{"type": "string", "pattern": `^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`, "description": "As rules name it: L:ads."},
			"category": object{"enum": ListCategories()},
			"format":   object{"enum": ListFormats(), "description": "hosts, plain names, the domain rules of adblock lists, or addresses and networks."},
			"path":     object{"type": "string", "minLength": 1, "description": "A file; it is read again when it changes."},
			"url":      object{"type": "string", "pattern": `^https?://`},
			"every":    object{"$ref": "#/$defs/duration", "description": "How often the URL is asked."},
			"checksum": object{"type": "string", "pattern": `^sha256:[0-9a-fA-F]{64}$`},
		},
		"oneOf": []object{
			{"required": []string{"path"}, "properties": object{"path": text, "every": false}},
			{"required": []string{"url"}, "properties": object{"url": text}},
		},
	}
}

func geoSchema() object {
	path := object{"type": "string", "minLength": 1}
	return object{"type": []string{"object", "null"}, "properties": object{"country": path, "asn": path}, "additionalProperties": false}
}
