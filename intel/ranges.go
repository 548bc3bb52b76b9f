package intel

import (
	"math/bits"
	"net/netip"
	"strings"
)

// parseRange reads "FROM-TO", after "description:" where there is one.
func parseRange(text string) (from, to netip.Addr, ok bool) {
	a, b, ok := cutLast(text, "-")
	if !ok {
		return from, to, false
	}
	a, b = strings.TrimSpace(a), strings.TrimSpace(b)
	from, err := netip.ParseAddr(a)
	if err != nil {
		_, a, _ = cutLast(a, ":")
		from, err = netip.ParseAddr(strings.TrimSpace(a))
	}
	to, toErr := netip.ParseAddr(b)
	if err != nil || toErr != nil || from.Zone() != "" || to.Zone() != "" {
		return from, to, false
	}
	from, to = from.Unmap(), to.Unmap()
	return from, to, from.BitLen() == to.BitLen() && from.Compare(to) <= 0
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, s, false
	}
	return s[:i], s[i+len(sep):], true
}

// rangePrefixes returns the prefixes that cover exactly the addresses from one to another, at
// most two for each bit.
func rangePrefixes(from, to netip.Addr) []netip.Prefix {
	var list []netip.Prefix
	for {
		length := from.BitLen() - trailingZeros(from)
		for lastOf(netip.PrefixFrom(from, length)).Compare(to) > 0 {
			length++
		}
		p := netip.PrefixFrom(from, length)
		list = append(list, p)
		last := lastOf(p)
		if last.Compare(to) >= 0 || !last.Next().IsValid() {
			return list
		}
		from = last.Next()
	}
}

func trailingZeros(a netip.Addr) int {
	n, raw := 0, a.AsSlice()
	for i := len(raw) - 1; i >= 0; i-- {
		if raw[i] != 0 {
			return n + bits.TrailingZeros8(raw[i])
		}
		n += 8
	}
	return n
}

// lastOf returns the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	raw := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(raw); i++ {
		raw[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(raw)
	return last
}

// local reports whether an address is no address of the Internet: nothing is known of it beside
// what the network around this machine knows.
func local(a netip.Addr) bool {
	if a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() {
		return true
	}
	if !a.Is4() {
		return false
	}
	b := a.As4()
	return b[0] == 0 || b[0] == 100 && b[1]&0xc0 == 64 || b[0] >= 240
}

// broadest are the largest networks that a list may name.
const (
	broadest4 = 8
	broadest6 = 16
)

// blockable reports whether a list may name a network: none that is larger than any that one
// owner has, and no local network as a whole. Lists of addresses that nobody uses on the
// Internet have these, and would cut this machine off its own network.
func blockable(p netip.Prefix) bool {
	if p.IsSingleIP() {
		return !p.Addr().IsLoopback() && !p.Addr().IsUnspecified()
	}
	if p.Addr().Is4() && p.Bits() < broadest4 || p.Addr().Is6() && p.Bits() < broadest6 {
		return false
	}
	return !local(p.Addr()) && !local(lastOf(p))
}
