package intel

import (
	_ "embed" // of the table
	"strings"

	"golang.org/x/net/publicsuffix"
)

// GeneratedLimit is the score of Generated from which on a name counts as made by a program: so
// rare among names that people registered that one in 10 000 has it, and words do not.
const GeneratedLimit = 14

const (
	minGenerated = 10 // characters; in shorter labels chance looks like an abbreviation
	longShare    = 2  // bits times this reach the length: a long name in a rare language has some bits in all
	idnPrefix    = "xn--"

	// The alphabet of trigrams: letters, any digit, the hyphen, and the border of a label.
	digitSymbol  = 26
	hyphenSymbol = 27
	borderSymbol = 28
	symbols      = 29
	bitScale     = 8 // the table is in eighths of a bit
	digitBits    = 27
	letterBits   = 38 // log2(26) for one of 26 letters
	mixedBits    = 41 // log2(36) for one of letters and digits
	hexBits      = 32
)

// trigrams has for each three symbols how many eighths of a bit of surprise the third is after
// the first two, in names that people registered. See docs/decisions/0011-domain-heuristics.md.
//
//go:embed trigrams.bin
var trigrams string

// Generated scores how a name was made that somebody registered: how many times likelier it is,
// as a power of two, that chance drew its letters than that a person chose them. Programs that
// look for their master draw hundreds of such names a day (domain generation algorithms, DGA).
//
// Only the label that was registered counts, label tells which: what a service puts below its own
// name, such as the hosts of a content network, is its own matter. Internationalised names,
// numbers and names of no public registry have the score 0.
func Generated(name string) (label string, bits int) {
	label = registeredLabel(name)
	return label, labelBits(label)
}

// IsGenerated reports whether the score of a name reaches GeneratedLimit. It is Generated for
// every query: almost all names are passed over without a look into the list of suffixes.
func IsGenerated(name string) bool {
	for rest, found := name, true; found; {
		var label string
		label, rest, found = strings.Cut(rest, ".")
		if labelBits(label) >= GeneratedLimit {
			_, bits := Generated(name)
			return bits >= GeneratedLimit
		}
	}
	return false
}

func labelBits(label string) int {
	if len(label) < minGenerated || strings.HasPrefix(label, idnPrefix) {
		return 0
	}
	part := longestPart(label)
	if len(part) < minGenerated {
		return 0
	}
	bits := chance(part) / bitScale
	if bits*longShare < len(part) {
		return 0
	}
	return bits
}

// registeredLabel returns the label below the suffix of a public registry; "" where there is
// none. Unlike a registrable name it passes over suffixes of companies: cloudfront.net is
// registered, what is below it is not.
func registeredLabel(name string) string {
	for rest := name; rest != ""; {
		suffix, icann := publicsuffix.PublicSuffix(rest)
		if !icann {
			_, rest, _ = strings.Cut(suffix, ".")
			continue
		}
		if len(suffix) == len(name) || suffix == "onion" { // that one is a hash by design
			return ""
		}
		below := name[:len(name)-len(suffix)-1]
		return below[strings.LastIndexByte(below, '.')+1:]
	}
	return ""
}

// longestPart returns the longest of the parts that hyphens separate.
func longestPart(label string) string {
	longest := ""
	for {
		part, rest, found := strings.Cut(label, "-")
		if len(part) > len(longest) {
			longest = part
		}
		if !found {
			return longest
		}
		label = rest
	}
}

// chance compares two explanations of a text of letters, digits and hyphens, in eighths of a bit:
// above zero, drawing each character alike explains it better than the habits of people. Where
// there is no letter, or what no host name has, it is zero. The same character a third time in a row, which people like and
// chance does not, explains nothing.
func chance(text string) int {
	var surprise, digits, hex, repeated int
	a, b := borderSymbol, borderSymbol
	for i := range len(text) {
		c := symbolOf(text[i])
		if c < 0 {
			return 0
		}
		if c == digitSymbol {
			digits++
			surprise += digitBits
		} else if text[i] >= 'a' && text[i] <= 'f' {
			hex++
		}
		surprise += int(trigrams[(a*symbols+b)*symbols+c])
		if c == a && c == b && text[i] == text[i-1] {
			surprise -= int(trigrams[(a*symbols+b)*symbols+c])
			repeated++
		}
		a, b = b, c
	}
	surprise += int(trigrams[(a*symbols+b)*symbols+borderSymbol])
	drawn := mixedBits
	switch {
	case digits == len(text):
		return 0
	case digits+hex == len(text):
		drawn = hexBits
	case digits == 0:
		drawn = letterBits
	}
	return surprise - drawn*(len(text)-repeated)
}

// symbolOf is negative for what no host name has.
func symbolOf(c byte) int {
	switch {
	case c >= 'a' && c <= 'z':
		return int(c - 'a')
	case c >= '0' && c <= '9':
		return digitSymbol
	case c == '-' || c == '_':
		return hyphenSymbol
	default:
		return -1
	}
}
