package intel

import (
	"bytes"
	"net/netip"

	"golang.org/x/net/publicsuffix"
)

// lineReader reads one line that is not empty, trimmed, and adds what it says.
type lineReader func(p *parser, line []byte)

// AutoFormat reads each line in the format that it looks like. It is for lists of which nobody says
// what they are.
const AutoFormat = "auto"

// Formats returns the formats that lists of the policy may have.
func Formats() []string { return []string{"hosts", "domains", "adblock", "ips", "cidr"} }

func readerOf(format string) lineReader {
	switch format {
	case "hosts":
		return hostsLine
	case "domains":
		return domainLine
	case "adblock":
		return adblockLine
	case "ips", "cidr":
		return addressLine
	case AutoFormat:
		return autoLine
	default:
		return nil
	}
}

// autoLine reads a line in the format that it looks like. What is in no format is invalid; what
// only adblock rules can have is read as one, and counted as skipped if it says nothing of a name.
func autoLine(p *parser, line []byte) {
	first := line
	if i := bytes.IndexAny(line, " \t"); i >= 0 {
		first = line[:i]
	}
	_, addrErr := netip.ParseAddr(string(first))
	_, prefixErr := netip.ParsePrefix(string(first))
	isRange := func() bool { _, _, ok := parseRange(string(uncomment(line, "#;"))); return ok }
	switch {
	case bytes.HasPrefix(line, []byte("||")), bytes.HasPrefix(line, []byte("@@")), line[0] == '!', line[0] == '[',
		bytes.Contains(line, []byte("##")), bytes.Contains(line, []byte("#@")), bytes.IndexAny(first, "^$|") >= 0:
		adblockLine(p, line)
	case addrErr == nil && len(bytes.Fields(uncomment(line, "#;"))) == 1, prefixErr == nil, isRange():
		addressLine(p, line)
	case addrErr == nil:
		hostsLine(p, line)
	default:
		domainLine(p, line)
	}
}

// uncomment cuts a line at the first of these characters.
func uncomment(line []byte, marks string) []byte {
	if i := bytes.IndexAny(line, marks); i >= 0 {
		line = line[:i]
	}
	return bytes.TrimSpace(line)
}

// hostsLine reads "0.0.0.0 name name". An address that leads somewhere names a machine rather
// than blocking it.
func hostsLine(p *parser, line []byte) {
	fields := bytes.Fields(uncomment(line, "#"))
	if len(fields) == 0 {
		return
	}
	addr, err := netip.ParseAddr(string(fields[0]))
	switch {
	case err != nil || len(fields) == 1:
		p.invalid++
	case !addr.IsUnspecified() && !addr.IsLoopback():
		p.skipped++
	default:
		for _, name := range fields[1:] {
			if !ownName(string(name)) {
				p.entity(name, 0)
			}
		}
	}
}

// ownName knows the names of this machine that hosts files begin with.
func ownName(name string) bool {
	switch name {
	case "localhost", "localhost.localdomain", "local", "broadcasthost", "0.0.0.0", "ip6-localhost", "ip6-loopback",
		"ip6-localnet", "ip6-mcastprefix", "ip6-allnodes", "ip6-allrouters", "ip6-allhosts", "localhost4", "localhost6",
		"localhost4.localdomain4", "localhost6.localdomain6":
		return true
	}
	return false
}

// domainLine reads a name, "*.name" or ".name"; these say that they mean the names below.
func domainLine(p *parser, line []byte) {
	if line[0] == '!' {
		return
	}
	if line = uncomment(line, "#;"); len(line) == 0 {
		return
	}
	name, star := bytes.CutPrefix(line, []byte("*"))
	name, dot := bytes.CutPrefix(name, []byte("."))
	switch {
	case star && !dot:
		p.invalid++
	case dot:
		p.name(name, flagZone)
	default:
		p.entity(line, 0)
	}
}

// adblockLine reads the rules that say something of a name whatever is asked of it: "||name^",
// a name alone, and "@@||name^", which takes it back. All others need the page or the path and
// are counted.
func adblockLine(p *parser, line []byte) {
	if line[0] == '!' || line[0] == '[' || line[0] == '#' && !bytes.HasPrefix(line, []byte("##")) && !bytes.HasPrefix(line, []byte("#@")) {
		return
	}
	rule, flags := line, byte(flagZone)
	if rest, ok := bytes.CutPrefix(rule, []byte("@@")); ok {
		rule, flags = rest, flagZone|flagExcept
	}
	rule, anchored := bytes.CutPrefix(rule, []byte("||"))
	rule, option, _ := bytes.Cut(rule, []byte("$"))
	rule, whole := bytes.CutSuffix(bytes.TrimSuffix(rule, []byte("|")), []byte("^"))
	rule = bytes.TrimPrefix(rule, []byte("*."))
	switch {
	case len(option) > 0 && string(option) != "important" && string(option) != "all":
		p.skipped++
	case !anchored && !whole && flags&flagExcept == 0 && isHost(rule):
		p.entity(rule, flags)
	case !anchored || !whole:
		p.skipped++
	case bytes.ContainsAny(rule, "*/:^"):
		p.skipped++
	default:
		p.entity(rule, flags)
	}
}

// isHost knows a host's name or address from part of a path, such as "ads.js".
func isHost(line []byte) bool {
	if _, err := netip.ParseAddr(string(line)); err == nil {
		return true
	}
	name, ok := cleanName(nil, line)
	if !ok || len(name) != len(line) {
		return false
	}
	suffix, icann := publicsuffix.PublicSuffix(string(name))
	return icann && len(suffix) < len(name)
}

// addressLine reads an address, a prefix or a range; what a P2P list has before a colon is a
// description.
func addressLine(p *parser, line []byte) {
	if line = uncomment(line, "#;"); len(line) == 0 {
		return
	}
	fields := bytes.Fields(line)
	text, spaced := string(fields[0]), len(fields) > 2 && string(fields[1]) == "-" // "FROM - TO"
	if addr, err := netip.ParseAddr(text); err == nil && addr.Zone() == "" && !spaced {
		p.prefix(netip.PrefixFrom(addr, addr.BitLen()))
		return
	}
	if prefix, err := netip.ParsePrefix(text); err == nil {
		p.prefix(prefix)
		return
	}
	if from, to, ok := parseRange(string(line)); ok {
		for _, prefix := range rangePrefixes(from, to) {
			p.prefix(prefix)
		}
		return
	}
	p.invalid++
}
