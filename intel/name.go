package intel

import (
	"bytes"
	"strings"

	"golang.org/x/net/idna"
	"golang.org/x/net/publicsuffix"
)

const (
	maxName  = 253
	maxLabel = 63
)

// cleanName writes a host name as DNS has it into buf: lower-case, punycode, without the final
// dot. ok is false for what can be no host name; an address is none.
func cleanName(buf, text []byte) (name []byte, ok bool) {
	text = bytes.TrimSuffix(text, []byte{'.'})
	for _, c := range text {
		if c >= 0x80 {
			ascii, err := idna.New(idna.MapForLookup(), idna.Transitional(false), idna.StrictDomainName(false)).ToASCII(string(text))
			if err != nil {
				return nil, false
			}
			text = []byte(ascii)
			break
		}
	}
	if len(text) == 0 || len(text) > maxName {
		return nil, false
	}
	buf = append(buf[:0], text...)
	return buf, lowerAndCheck(buf)
}

// lowerAndCheck makes letters small and reports whether the labels are such as names have.
func lowerAndCheck(name []byte) bool {
	label, digits := 0, true // of the label that is read
	for i, c := range name {
		switch {
		case c == '.':
			if label == 0 {
				return false
			}
			label, digits = 0, true
			continue
		case c >= 'A' && c <= 'Z':
			name[i], digits = c+'a'-'A', false
		case c >= 'a' && c <= 'z', c == '_', c == '-' && label > 0:
			digits = false
		case c >= '0' && c <= '9':
		default:
			return false
		}
		if label++; label > maxLabel {
			return false
		}
	}
	return label > 0 && !digits // a last label of digits makes it an address
}

// tooBroad reports whether a name is no host's but a registry's: "com", "co.uk", "localhost". A
// list that has one would block a country, by mistake or on purpose. Suffixes of companies, such
// as "github.io", are names like others.
func tooBroad(name []byte) bool {
	dots := bytes.Count(name, []byte{'.'})
	if dots == 0 {
		return true
	}
	if dots > 3 { // no registry has as many labels
		return false
	}
	text := string(name)
	suffix, icann := publicsuffix.PublicSuffix(text)
	return icann && suffix == text
}

// normal reports whether a name is written as the index has it.
func normal(name string) bool {
	for i := range len(name) {
		if c := name[i]; c >= 0x80 || c >= 'A' && c <= 'Z' {
			return false
		}
	}
	return !strings.HasSuffix(name, ".")
}
