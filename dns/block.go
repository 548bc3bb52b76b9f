package dns

import (
	"net"
	"strings"
	"time"
	"unicode/utf8"

	mdns "github.com/miekg/dns"

	"gatun/attribution"
	"gatun/network"
)

// BlockStyle is how a blocked name is answered.
type BlockStyle uint8

// The styles of dns/blockStyle. Zero answers 0.0.0.0 and ::, which on Linux reach this machine
// itself; it is there for programs that treat a missing name badly.
const (
	NXDomain BlockStyle = iota
	Refused
	Zero
)

const (
	maxReason    = 200 // bytes of a reason in a reply
	maxTXTString = 255
	zeroTTL      = time.Second // a change of policy takes effect at once
)

// deny ends a query that the firewall does not permit.
func (s *Server) deny(q *Query, d network.Decision) ending {
	if !q.Dry {
		s.blocked.Add(1)
	}
	if d.Verdict == network.Drop || d.Verdict == network.PermanentDrop {
		return ending{decision: d, cause: "dropped"}
	}
	style := Refused
	if q.Owner.Process.Kind != attribution.KindSelf {
		style = s.o.BlockStyle(q.Owner, d)
	}
	rep := blocked(q, style)
	text := reason(d)
	rep.ede = &mdns.EDNS0_EDE{InfoCode: mdns.ExtendedErrorCodeBlocked, ExtraText: cut(text, maxReason)}
	if d.Rule.Text != "" {
		rep.ede.InfoCode = mdns.ExtendedErrorCodeFiltered // the user asked for it
	}
	rep.extra = &mdns.TXT{
		Hdr: mdns.RR_Header{Name: "info." + ownZone + ".", Rrtype: mdns.TypeTXT, Class: mdns.ClassINET},
		Txt: []string{escapeTXT(cut(text, maxTXTString))},
	}
	return ending{reply: rep, decision: d, cause: "blocked"}
}

// blockedUpstream is the decision of a resolver that keeps names from those who ask it. No rule
// of ours undoes it: the resolver was chosen for that.
func blockedUpstream(resolver string) network.Decision {
	return network.Decision{
		Verdict: network.Block, Stage: network.StageAfterIntel, Code: "blocked-upstream", Setting: "dns/nameservers",
		Reason: "blocked by the resolver " + resolver,
	}
}

func blocked(q *Query, style BlockStyle) reply {
	switch style {
	case Refused:
		return failed(mdns.RcodeRefused)
	case Zero:
		var rr mdns.RR
		header := mdns.RR_Header{Name: mdns.Fqdn(q.Name), Rrtype: q.Type, Class: mdns.ClassINET}
		switch q.Type {
		case mdns.TypeA:
			rr = &mdns.A{Hdr: header, A: net.IPv4zero}
		case mdns.TypeAAAA:
			rr = &mdns.AAAA{Hdr: header, AAAA: net.IPv6zero}
		default:
			return failed(mdns.RcodeSuccess)
		}
		if a, err := newAnswer(q.Name, q.Type, mdns.RcodeSuccess, []mdns.RR{rr}, nil, 0); err == nil {
			return reply{answer: a, ttl: zeroTTL}
		}
	}
	return failed(mdns.RcodeNameError)
}

// reason is what the program and the person at dig are told.
func reason(d network.Decision) string {
	text := d.Reason
	if text == "" {
		text = "blocked by the firewall"
	}
	if d.Rule.Text != "" {
		text += ": " + d.Rule.Text
		if d.Rule.File != "" {
			text += " (" + d.Rule.String() + ")"
		}
	}
	return oneLineText(text)
}

// cut shortens s to n bytes without breaking a character.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

func oneLine(err error) string { return oneLineText(err.Error()) }

func oneLineText(s string) string {
	return strings.ToValidUTF8(strings.ReplaceAll(s, "\n", "; "), "?")
}

// escapeTXT makes s safe for the packer, which reads backslashes as escapes.
func escapeTXT(s string) string { return strings.ReplaceAll(s, `\`, `\\`) }
