package main

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Types by number, as far as the table of queries names them. The proofs have a reader and a
// writer of messages of their own: what gatun's library cannot say or hides must still be seen.
const (
	typeA, typeNS, typeCNAME, typeSOA, typePTR, typeHINFO, typeMX, typeTXT = 1, 2, 5, 6, 12, 13, 15, 16
	typeAAAA, typeSRV, typeDNAME, typeOPT, typeDS, typeRRSIG, typeDNSKEY   = 28, 33, 39, 41, 43, 46, 48
	typeHTTPS, typeANY                                                     = 65, 255
)

// Bits of the header, and the DO bit of EDNS.
const (
	bitQR, bitAA, bitTC, bitRD, bitRA, bitZ, bitAD, bitCD = 0x8000, 0x400, 0x200, 0x100, 0x80, 0x40, 0x20, 0x10
	bitDO                                                 = 0x8000
)

// message is one DNS message as it is on the wire.
type message struct {
	id, flags  uint16
	questions  []string // hex, with the case as it came
	answer, ns []record
	extra      []record
	opt        *option
}

// record is one record; data is canonical: names in it are whole and lower-case.
type record struct {
	name, data string
	typ, class uint16
	ttl        uint32
}

func (r record) String() string {
	return fmt.Sprintf("%s %d %d %s", r.name, r.class, r.typ, r.data)
}

// option is the OPT record.
type option struct {
	size    uint16
	rcode   uint8
	version uint8
	do      bool
	codes   []uint16
}

// rcode is the whole of it, with EDNS's upper bits.
func (m message) rcode() int {
	n := int(m.flags & 0xf)
	if m.opt != nil {
		n |= int(m.opt.rcode) << 4
	}
	return n
}

// records are the records of a section as text, sorted, so that two sets can be compared.
func records(list []record) string {
	var out []string
	for _, r := range list {
		out = append(out, r.String())
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

var errMessage = errors.New("not a whole DNS message")

func parseMessage(b []byte) (m message, err error) {
	if len(b) < 12 {
		return m, errMessage
	}
	m.id, m.flags = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	off := 12
	for range binary.BigEndian.Uint16(b[4:]) {
		begin := off
		if _, off, err = readName(b, off); err != nil || off+4 > len(b) {
			return m, errMessage
		}
		off += 4
		m.questions = append(m.questions, hex.EncodeToString(b[begin:off]))
	}
	for i, section := range []*[]record{&m.answer, &m.ns, &m.extra} {
		for range binary.BigEndian.Uint16(b[6+2*i:]) {
			var r record
			if r, off, err = m.readRecord(b, off); err != nil {
				return m, err
			}
			if r.typ != typeOPT {
				*section = append(*section, r)
			}
		}
	}
	if off != len(b) {
		return m, fmt.Errorf("%d bytes behind the message: %w", len(b)-off, errMessage)
	}
	return m, nil
}

func (m *message) readRecord(b []byte, off int) (r record, next int, err error) {
	r.name, off, err = readName(b, off)
	if err != nil || off+10 > len(b) {
		return r, 0, errMessage
	}
	r.typ, r.class = binary.BigEndian.Uint16(b[off:]), binary.BigEndian.Uint16(b[off+2:])
	r.ttl = binary.BigEndian.Uint32(b[off+4:])
	data := off + 10
	next = data + int(binary.BigEndian.Uint16(b[off+8:]))
	if next > len(b) {
		return r, 0, errMessage
	}
	if r.typ == typeOPT {
		return r, next, m.readOption(r, b[data:next])
	}
	r.data, err = canonical(b, r.typ, data, next)
	return r, next, err
}

func (m *message) readOption(r record, b []byte) error {
	if m.opt != nil || r.name != "." {
		return fmt.Errorf("a second OPT, or one with a name: %w", errMessage)
	}
	m.opt = &option{size: r.class, rcode: uint8(r.ttl >> 24), version: uint8(r.ttl >> 16), do: r.ttl&bitDO != 0}
	for len(b) > 0 {
		if len(b) < 4 || len(b) < 4+int(binary.BigEndian.Uint16(b[2:])) {
			return errMessage
		}
		m.opt.codes = append(m.opt.codes, binary.BigEndian.Uint16(b))
		b = b[4+int(binary.BigEndian.Uint16(b[2:])):]
	}
	return nil
}

// canonical is the data of a record with the names that may be compressed (RFC 3597, 4) written
// out.
func canonical(b []byte, typ uint16, off, end int) (string, error) {
	before, names := 0, 0
	switch typ {
	case typeNS, typeCNAME, typePTR, typeDNAME, 3, 4, 7, 8, 9:
		names = 1
	case typeMX, 18, 21, 36:
		before, names = 2, 1
	case typeSRV:
		before, names = 6, 1
	case typeSOA, 14, 17:
		names = 2
	}
	if off+before > end {
		return "", errMessage
	}
	text := hex.EncodeToString(b[off : off+before])
	off += before
	for range names {
		name, next, err := readName(b, off)
		if err != nil || next > end {
			return "", errMessage
		}
		text, off = text+" "+name, next
	}
	return text + " " + hex.EncodeToString(b[off:end]), nil
}

// readName reads the name at off in lower case, with everything unusual as \DDD.
func readName(b []byte, off int) (name string, next int, err error) {
	var text strings.Builder
	for jumps := 0; ; {
		if off >= len(b) || text.Len() > 1100 {
			return "", 0, errMessage
		}
		c := int(b[off])
		switch {
		case c == 0:
			if next == 0 {
				next = off + 1
			}
			if text.Len() == 0 {
				return ".", next, nil
			}
			return text.String(), next, nil
		case c&0xc0 == 0xc0:
			if off+2 > len(b) || jumps > 64 {
				return "", 0, errMessage
			}
			if next == 0 {
				next = off + 2
			}
			off, jumps = int(binary.BigEndian.Uint16(b[off:])&0x3fff), jumps+1
		case c > 63 || off+1+c > len(b):
			return "", 0, errMessage
		default:
			writeLabel(&text, b[off+1:off+1+c])
			off += 1 + c
		}
	}
}

func writeLabel(text *strings.Builder, label []byte) {
	for _, c := range label {
		switch {
		case 'A' <= c && c <= 'Z':
			text.WriteByte(c + 'a' - 'A')
		case c <= ' ' || c >= 0x7f || c == '.' || c == '\\':
			fmt.Fprintf(text, "\\%03d", c)
		default:
			text.WriteByte(c)
		}
	}
	text.WriteByte('.')
}

// wireName is a name as it is written in a zone file: \. and \DDD are bytes of a label. It does
// not refuse names that are too long.
func wireName(name string) []byte {
	var out, label []byte
	for i := 0; i < len(name); i++ {
		switch c := name[i]; {
		case c == '.':
			if len(label) > 0 {
				out = append(append(out, byte(len(label))), label...)
			}
			label = nil
		case c == '\\' && i+3 < len(name) && name[i+1] >= '0' && name[i+1] <= '9':
			n, _ := strconv.Atoi(name[i+1 : i+4])
			label, i = append(label, byte(n)), i+3
		case c == '\\' && i+1 < len(name):
			label, i = append(label, name[i+1]), i+1
		default:
			label = append(label, c)
		}
	}
	if len(label) > 0 {
		out = append(append(out, byte(len(label))), label...)
	}
	return append(out, 0)
}

// question is a query with flags and no additional records.
func question(id, flags uint16, name string, typ, class uint16) []byte {
	b := binary.BigEndian.AppendUint16(nil, id)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = append(b, 0, 1, 0, 0, 0, 0, 0, 0)
	b = append(b, wireName(name)...)
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, typ), class)
}

// withOPT adds an OPT record.
func withOPT(b []byte, size uint16, ttl uint32, options ...byte) []byte {
	b = append(slices.Clone(b), 0, 0, typeOPT)
	b = binary.BigEndian.AppendUint16(b, size)
	b = binary.BigEndian.AppendUint32(b, ttl)
	b = binary.BigEndian.AppendUint16(b, uint16(len(options)))
	b[11]++
	return append(b, options...)
}

// ednsOption is one option of an OPT record.
func ednsOption(code uint16, data ...byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, code)
	return append(binary.BigEndian.AppendUint16(b, uint16(len(data))), data...)
}
