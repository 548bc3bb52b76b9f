package intel

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
)

const (
	maxLine = 4096 // longer ones are counted as invalid, unread
	sniff   = 1024 // bytes at the start that tell a list from something else
)

// parser reads one list.
type parser struct {
	*builder
	line    int
	buf     []byte
	content int // lines that are neither empty nor comment
}

// parseList reads a list. What is no list at all is an error; lines that cannot be read are
// counted.
func parseList(format string, data []byte, limit int) (*entries, error) {
	read := readerOf(format)
	if read == nil {
		return nil, fmt.Errorf("unknown format %q", format)
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	if err := notAList(data); err != nil {
		return nil, err
	}
	p := &parser{builder: newBuilder(bytes.Count(data, []byte{'\n'})+1, limit), buf: make([]byte, 0, maxName)}
	for len(data) > 0 && !p.full {
		var line []byte
		line, data, _ = bytes.Cut(data, []byte{'\n'})
		p.line++
		p.readLine(read, line)
	}
	switch {
	case p.full:
		return nil, fmt.Errorf("more than %d entries", limit)
	case p.size() == 0 && p.invalid > 0:
		return nil, fmt.Errorf("not a list in the format %s: none of its %d lines can be read", format, p.invalid)
	case p.invalid > 10 && p.invalid > p.size()+p.skipped+p.exceptions:
		return nil, fmt.Errorf("not a list in the format %s: %d of its lines cannot be read, %d can", format, p.invalid, p.size()+p.skipped+p.exceptions)
	}
	return p.finish(), nil
}

func (p *parser) readLine(read lineReader, line []byte) {
	if len(line) > maxLine {
		p.invalid++
		return
	}
	line = bytes.TrimSpace(line)
	switch {
	case len(line) == 0 || line[0] == '#' && !bytes.HasPrefix(line, []byte("##")) && !bytes.HasPrefix(line, []byte("#@")):
	case bytes.IndexByte(line, 0) >= 0:
		p.invalid++
	default:
		read(p, line)
	}
}

// notAList knows what is often served in place of a list.
func notAList(data []byte) error {
	head := bytes.ToLower(bytes.TrimSpace(data[:min(len(data), sniff)]))
	switch {
	case bytes.HasPrefix(head, []byte("<!doctype")), bytes.HasPrefix(head, []byte("<html")), bytes.HasPrefix(head, []byte("<?xml")):
		return errors.New("a web page, not a list")
	case bytes.HasPrefix(data, []byte{0x1f, 0x8b}), bytes.HasPrefix(data, []byte("PK\x03\x04")), bytes.HasPrefix(data, []byte("\xfd7zXZ")):
		return errors.New("compressed, not text: unpack it first")
	case bytes.IndexByte(head, 0) >= 0:
		return errors.New("binary data, not text")
	}
	return nil
}

// entity adds what may be a name or an address.
func (p *parser) entity(text []byte, flags byte) {
	if last := text[max(0, len(text)-1):]; len(last) == 1 && (last[0] >= '0' && last[0] <= '9' || bytes.IndexByte(text, ':') >= 0) {
		if addr, err := netip.ParseAddr(string(text)); err == nil && addr.Zone() == "" && flags&flagExcept == 0 {
			p.prefix(netip.PrefixFrom(addr, addr.BitLen()))
			return
		}
	}
	p.name(text, flags)
}

func (p *parser) name(text []byte, flags byte) {
	name, ok := cleanName(p.buf, text)
	switch {
	case !ok:
		p.invalid++
	case flags&flagExcept == 0 && tooBroad(name):
		p.broad++
	default:
		p.addName(name, p.line, flags)
	}
}

func (p *parser) prefix(prefix netip.Prefix) {
	addr := prefix.Addr()
	if addr.Is4In6() {
		if prefix.Bits() < 96 {
			p.invalid++
			return
		}
		prefix = netip.PrefixFrom(addr.Unmap(), prefix.Bits()-96)
	}
	if prefix = prefix.Masked(); !blockable(prefix) {
		p.broad++
		return
	}
	p.addPrefix(prefix, p.line)
}
