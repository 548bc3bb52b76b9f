package intel

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/oschwald/maxminddb-golang/v2"
)

// GeoStatus tells what a data file of countries or networks is worth.
type GeoStatus struct {
	Kind  string // country or asn
	Path  string
	Type  string    // as the file names itself
	Built time.Time // zero: unknown
	Error string    // why the file is not used, or its last good copy instead
}

// Kinds of data files.
const (
	kindCountry = "country"
	kindASN     = "asn"
)

// geoFile is one data file. It is read into memory: a file that is mapped and then cut short
// ends the process.
type geoFile struct {
	reader *maxminddb.Reader
	mark   fileMark
	sum    [sha256.Size]byte
	status GeoStatus
}

const maxGeoFile = 512 << 20

// geo knows countries and networks. Both files may be missing. The stamps that it made are kept:
// most flows go to few networks.
type geo struct {
	country, asn *geoFile
	empty        *Stamp
	nowhere      *Stamp // of no address, where lists have some
	cache        []atomic.Pointer[geoStamp]
}

// geoStamp is what the records at two offsets say.
type geoStamp struct {
	country, asn uintptr
	stamp        *Stamp
}

const geoCache = 1 << 12

func newGeo(country, asn *geoFile) *geo {
	return &geo{country: country, asn: asn, empty: &Stamp{}, nowhere: &Stamp{MoreByAddr: true}, cache: make([]atomic.Pointer[geoStamp], geoCache)}
}

// readGeoFile reads a data file unless it is the one that is there. What cannot be read leaves
// the old one in place, with the reason.
func readGeoFile(kind, path string, old *geoFile) *geoFile {
	if path == "" {
		return nil
	}
	if old != nil && old.status.Path != path {
		old = nil
	}
	mark := markOf(path)
	if old != nil && old.mark == mark && mark != (fileMark{}) {
		return old
	}
	f := &geoFile{status: GeoStatus{Kind: kind, Path: path}}
	data, err := readFile(path, maxGeoFile)
	if err == nil { // else it is tried again although it did not change: a person may let us read it
		f.mark = mark
		err = f.open(data, old)
	}
	if err != nil {
		f.status.Error = printable(err.Error())
		if old != nil && old.reader != nil {
			f.reader, f.sum, f.status.Type, f.status.Built = old.reader, old.sum, old.status.Type, old.status.Built
			f.status.Error += "; the last good copy is used"
		}
	}
	if old != nil && old.reader == f.reader && old.status == f.status {
		return old
	}
	return f
}

func (f *geoFile) open(data []byte, old *geoFile) error {
	f.sum = sha256.Sum256(data)
	if old != nil && old.reader != nil && old.sum == f.sum {
		f.reader, f.status.Type, f.status.Built = old.reader, old.status.Type, old.status.Built
		return nil
	}
	r, err := maxminddb.OpenBytes(data)
	if err != nil {
		return fmt.Errorf("not a MaxMind file: %w", err)
	}
	if err := r.Lookup(netip.AddrFrom4([4]byte{1, 1, 1, 1})).Err(); err != nil {
		return fmt.Errorf("the file is broken: %w", err)
	}
	f.reader, f.status.Type, f.status.Built = r, r.Metadata.DatabaseType, r.Metadata.BuildTime().UTC()
	return nil
}

// lookup returns the record of an address.
func (f *geoFile) lookup(a netip.Addr) (r maxminddb.Result, offset uintptr) {
	if f == nil || f.reader == nil || a.Is6() && f.reader.Metadata.IPVersion == 4 {
		return r, 0
	}
	if r = f.reader.Lookup(a); !r.Found() {
		return r, 0
	}
	return r, r.Offset() + 1
}

// stamp returns what is known of an address; the caller must not change it. Local addresses have
// no country, whatever a file says.
func (g *geo) stamp(a netip.Addr) *Stamp {
	if !a.IsValid() || g.country == nil && g.asn == nil || local(a) {
		return g.empty
	}
	country, c := g.country.lookup(a)
	network, n := g.asn.lookup(a)
	if c == 0 && n == 0 {
		return g.empty
	}
	slot := &g.cache[(uint64(c)*31+uint64(n))*0x9e3779b97f4a7c15>>(64-12)]
	if known := slot.Load(); known != nil && known.country == c && known.asn == n {
		return known.stamp
	}
	s := &Stamp{}
	if c != 0 {
		readCountry(country, s)
	}
	if n != 0 {
		readASN(network, s)
	}
	slot.Store(&geoStamp{c, n, s})
	return s
}

// readCountry understands the layouts of the usual files: {country: {iso_code}, continent:
// {code}}, {country_code}, and {country, continent} as codes. A code that is none is left out.
func readCountry(r maxminddb.Result, s *Stamp) {
	var record map[string]any
	if r.Decode(&record) != nil {
		return
	}
	s.Country = code(record, "country", "iso_code", "country_code", "country")
	s.Continent = code(record, "continent", "code", "continent_code", "continent")
	if s.Continent == "" || !strings.Contains(continents, "\n"+s.Continent+" ") {
		s.Continent = continentOf(s.Country)
	}
}

// code finds two capital letters below section/inner, or at one of the names.
func code(record map[string]any, section, inner string, names ...string) string {
	text := ""
	if m, ok := record[section].(map[string]any); ok {
		text, _ = m[inner].(string)
	}
	for _, name := range names {
		if t, ok := record[name].(string); ok && text == "" {
			text = t
		}
	}
	text = strings.ToUpper(text)
	if len(text) != 2 || strings.Trim(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
		return ""
	}
	return text
}

// readASN understands {autonomous_system_number, autonomous_system_organization} and {asn,
// as_name or name}.
func readASN(r maxminddb.Result, s *Stamp) {
	var record map[string]any
	if r.Decode(&record) != nil {
		return
	}
	for _, name := range []string{"autonomous_system_number", "asn"} {
		if n, ok := number(record[name]); ok && s.ASN == 0 {
			s.ASN = n
		}
	}
	for _, name := range []string{"autonomous_system_organization", "as_name", "as_org", "name"} {
		if text, ok := record[name].(string); ok && s.ASOwner == "" {
			s.ASOwner = printable(text)
		}
	}
}

func number(v any) (uint32, bool) {
	switch v := v.(type) {
	case uint64:
		return uint32(v), v <= 1<<32-1
	case string:
		n, err := strconv.ParseUint(strings.TrimPrefix(strings.ToUpper(v), "AS"), 10, 32)
		return uint32(n), err == nil
	}
	return 0, false
}

// printable keeps a text from the outside such that a terminal can show it.
func printable(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u202e' || r == '\ufffd' {
			return -1
		}
		return r
	}, text)
	return string([]rune(text)[:min(len([]rune(text)), 128)])
}

// fileMark tells versions of a file apart without reading it.
type fileMark struct {
	size     int64
	modified int64
}

// markOf returns the zero mark for what cannot be asked.
func markOf(path string) fileMark {
	info, err := os.Stat(path)
	if err != nil {
		return fileMark{}
	}
	return fileMark{info.Size(), info.ModTime().UnixNano()}
}

// readFile reads a regular file up to a size.
func readFile(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s: not a file", path)
	case info.Size() > limit:
		return nil, fmt.Errorf("%s: larger than %d MiB", path, limit>>20)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := readLimited(f, limit)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return data, nil
}

var errTooLarge = errors.New("too large")

// readLimited reads all, or fails where it is more than the limit.
func readLimited(r io.Reader, limit int64) ([]byte, error) {
	var b bytes.Buffer
	if n, err := b.ReadFrom(io.LimitReader(r, limit+1)); err != nil {
		return nil, err
	} else if n > limit {
		return nil, fmt.Errorf("%w: more than %d MiB", errTooLarge, limit>>20)
	}
	return b.Bytes(), nil
}
