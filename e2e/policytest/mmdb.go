package policytest

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Write puts the data into files of a folder: one for each list, by its ID, and country.mmdb and
// asn.mmdb.
func (d *Data) Write(dir string) error {
	countries, networks := map[string]map[string]any{}, map[string]map[string]any{}
	for _, p := range d.Places {
		if p.Country != "" {
			countries[p.Prefix] = map[string]any{"country": map[string]any{"iso_code": p.Country}, "continent": map[string]any{"code": p.Continent}}
		}
		if p.ASN != 0 {
			networks[p.Prefix] = map[string]any{"autonomous_system_number": p.ASN}
		}
	}
	files := map[string][]byte{"country.mmdb": MMDB("Test-Country", countries), "asn.mmdb": MMDB("Test-ASN", networks)}
	for _, l := range d.Lists {
		files[l.ID] = []byte(strings.Join(l.Entries, "\n") + "\n")
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// encode writes a value as the data section of a MaxMind file has it.
func encode(b []byte, v any) []byte {
	control := func(kind, size int) {
		ext := []byte(nil)
		if kind > 7 {
			ext, kind = []byte{byte(kind - 7)}, 0
		}
		switch {
		case size < 29:
			b = append(append(b, byte(kind<<5|size)), ext...)
		default:
			b = append(append(append(b, byte(kind<<5|29)), ext...), byte(size-29))
		}
	}
	switch v := v.(type) {
	case string:
		control(2, len(v))
		b = append(b, v...)
	case uint16:
		control(5, 2)
		b = binary.BigEndian.AppendUint16(b, v)
	case uint32:
		control(6, 4)
		b = binary.BigEndian.AppendUint32(b, v)
	case uint64:
		control(9, 8)
		b = binary.BigEndian.AppendUint64(b, v)
	case map[string]any:
		control(7, len(v))
		for _, k := range slices.Sorted(maps.Keys(v)) {
			b = encode(encode(b, k), v[k])
		}
	}
	return b
}

// MMDB makes a MaxMind file of IPv6 with 32-bit records; the networks must not overlap.
func MMDB(kind string, networks map[string]map[string]any) []byte {
	type node struct {
		child [2]int
		data  [2]int // offset + 1
	}
	nodes := []node{{}}
	var data []byte
	for _, text := range slices.Sorted(maps.Keys(networks)) {
		p := netip.MustParsePrefix(text)
		raw, length := p.Addr().As16(), p.Bits()
		if p.Addr().Is4() {
			raw, length = [16]byte{12: raw[12], 13: raw[13], 14: raw[14], 15: raw[15]}, length+96
		}
		at := 0
		for i := range length {
			bit := int(raw[i/8] >> (7 - i%8) & 1)
			if i == length-1 {
				nodes[at].data[bit] = len(data) + 1
				break
			}
			if nodes[at].child[bit] == 0 {
				nodes = append(nodes, node{})
				nodes[at].child[bit] = len(nodes) - 1
			}
			at = nodes[at].child[bit]
		}
		data = encode(data, networks[text])
	}
	var b []byte
	for _, n := range nodes {
		for side := range 2 {
			record := len(nodes)
			switch {
			case n.data[side] != 0:
				record = len(nodes) + 16 + n.data[side] - 1
			case n.child[side] != 0:
				record = n.child[side]
			}
			b = binary.BigEndian.AppendUint32(b, uint32(record))
		}
	}
	b = append(append(b, make([]byte, 16)...), data...)
	b = append(b, "\xab\xcd\xefMaxMind.com"...)
	return encode(b, map[string]any{
		"node_count": uint32(len(nodes)), "record_size": uint16(32), "ip_version": uint16(6), "database_type": kind,
		"binary_format_major_version": uint16(2), "binary_format_minor_version": uint16(0), "build_epoch": uint64(1_700_000_000),
	})
}
