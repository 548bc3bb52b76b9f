package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/idna"

	"gatun/api"
	"gatun/attribution"
	"gatun/config"
	"gatun/firewall"
	"gatun/intel"
	"gatun/netenv"
	"gatun/network"
	"gatun/profiles"
	"gatun/status"
)

// casesHelp explains the file of cases.
const casesHelp = `With --cases FILE the policy itself is tested: each case of that file says what shall become of a
flow, is decided as "why" does it, and compared. Nothing is sent.

  cases:
    - {program: /usr/bin/curl, domain: a.example, to: 192.0.2.1:443/tcp, expect: accept}
    - {program: /usr/bin/curl, user: 1000, to: 192.0.2.1:25/tcp, rating: danger, expect: block, rule: "- * TCP/25"}
    - {program: /usr/sbin/sshd, direction: inbound, from: 198.51.100.7, to: 10.0.0.1:22/tcp, expect: drop}

domain alone is a name that is asked for; with to, both the name and the connection have to pass. An
inbound flow comes from an address to an end on this machine. user, unit and container belong to the
program; country, asn and lists (of the other end), if one of them is given, stand in for what the files of
lists and countries say. expect is accept, block, drop or ask; rule, if given, has to be the one that decides.`

// caseKeys are the keys of one case.
var caseKeys = []string{
	"program", "user", "unit", "container", "domain", "to", "from", "direction", "rating", "country", "asn", "lists", "expect", "rule",
}

// policyCase is one expectation: what shall become of a flow.
type policyCase struct {
	at       config.Position
	about    string
	question firewall.Question
	rating   string
	expect   string
	rule     string // canonical; "" for any
}

// caseFailure is one case that came out otherwise.
type caseFailure struct {
	File         string  `json:"file"`
	Line         int     `json:"line"`
	Col          int     `json:"col"`
	About        string  `json:"about"`
	Expected     string  `json:"expected"`
	Got          string  `json:"got"`
	ExpectedRule string  `json:"expected_rule"`
	Why          api.Why `json:"why"`
}

// casesReport is the answer of `check --cases --json`.
type casesReport struct {
	Schema string        `json:"schema"`
	OK     bool          `json:"ok"`
	Cases  int           `json:"cases"`
	Failed []caseFailure `json:"failed"`
}

// runCases tests a policy: every case is decided by the firewall as a dry run.
func runCases(cfg *config.Config, file string) (casesReport, error) {
	cases, err := readCases(file)
	if err != nil {
		return casesReport{}, err
	}
	known := intel.New(intel.Options{GeoDirs: intel.GeoDirs()})
	if err := known.Configure(intelSpec(cfg)); err != nil {
		return casesReport{}, err
	}
	masters := map[string]*firewall.Master{}
	report := casesReport{Schema: network.Schema, Cases: len(cases), Failed: []caseFailure{}}
	for _, c := range cases {
		m := masters[c.rating]
		if m == nil {
			if m, err = masterAt(cfg, c.rating); err != nil {
				return casesReport{}, err
			}
			masters[c.rating] = m
		}
		m.Intel = stated{known, categorised(c.question.Entity.Stamp, cfg.Lists())}
		d, trail := m.Why(c.question)
		got := outcomeOf(d)
		if got == c.expect && (c.rule == "" || c.rule == canonical(d.Rule.Text)) {
			continue
		}
		report.Failed = append(report.Failed, caseFailure{
			File: c.at.File, Line: c.at.Line, Col: c.at.Col, About: c.about, Expected: c.expect, Got: got, ExpectedRule: c.rule, Why: answer(d, trail),
		})
	}
	report.OK = len(report.Failed) == 0
	return report, nil
}

// masterAt returns a firewall with the policy at a network rating, "" for the configured one.
func masterAt(cfg *config.Config, rating string) (*firewall.Master, error) {
	st := status.Judge(cfg, netenv.Snapshot{}, time.Now())
	if rating != "" {
		r, err := status.ParseRating(rating)
		if err != nil {
			return nil, err
		}
		st.Rating, st.Origin = r, "the case"
	}
	store, err := profiles.NewStore(cfg, st, profiles.Options{})
	if err != nil {
		return nil, err
	}
	return firewall.New(store), nil
}

// stated is what a case says of the other end; where it says nothing, what the files do.
type stated struct {
	files *intel.Store
	stamp *intel.Stamp
}

// Stamp implements firewall.Intel.
func (s stated) Stamp(domain string, cnames []string, addr netip.Addr) *intel.Stamp {
	if s.stamp != nil {
		return s.stamp
	}
	return s.files.Stamp(domain, cnames, addr)
}

// categorised adds the categories of the lists that a case names.
func categorised(s *intel.Stamp, lists []config.ListSpec) *intel.Stamp {
	if s == nil {
		return nil
	}
	full := *s
	full.Lists = slices.Clone(s.Lists)
	for i := range full.Lists {
		m := &full.Lists[i]
		if m.Name, m.Source = "the other end", "the case"; intel.KnownCategory(m.ID) {
			m.Category = m.ID
		}
		for _, l := range lists {
			if l.ID == m.ID {
				m.Category = l.Category
			}
		}
	}
	return &full
}

// outcomeOf says what a program would notice.
func outcomeOf(d network.Decision) string {
	switch {
	case d.Asks():
		return "ask"
	case d.Verdict.Permits():
		return "accept"
	case d.Verdict == network.Drop, d.Verdict == network.PermanentDrop:
		return "drop"
	default:
		return "block"
	}
}

// canonical spells a rule as it would be printed, so that spaces and comments do not matter.
func canonical(text string) string {
	r, err := profiles.ParseRule(text, network.RuleRef{})
	if err != nil {
		return text
	}
	return r.String()
}

// readCases reads the file of cases; the error is config.Problems with all that is wrong in it.
func readCases(file string) ([]policyCase, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, config.Problems{{Position: config.Position{File: file}, Message: "cannot be read: " + errors.Unwrap(err).Error()}}
	}
	items, err := config.ParseItems(file, data, "cases", caseKeys)
	if err != nil {
		return nil, err
	}
	r := caseReader{items: items}
	var cases []policyCase
	for i := range items.List {
		r.item, r.name = &items.List[i], fmt.Sprintf("cases[%d]", i)
		cases = append(cases, r.read())
	}
	if len(r.problems) > 0 {
		return nil, r.problems.Sort()
	}
	return cases, nil
}

// caseReader reads one case after the other and collects all problems.
type caseReader struct {
	items    *config.Items
	item     *config.Item
	name     string
	problems config.Problems
}

func (r *caseReader) text(key string) string { return r.item.Values[key].Text }

// wrong reports a problem with a key, or with the whole case if it is "" or not set.
func (r *caseReader) wrong(key, message, suggestion string) {
	at, name := r.item.Position, r.name
	if v, ok := r.item.Values[key]; ok {
		at, name = v.Position, name+"/"+key
	}
	r.problems = append(r.problems, r.items.Problem(at, name, message, suggestion))
}

func (r *caseReader) oneOf(key string, meant map[string]string, values ...string) string {
	v := r.text(key)
	if v == "" || slices.Contains(values, v) {
		return v
	}
	suggestion := meant[strings.ToLower(v)]
	if suggestion == "" {
		suggestion = config.Nearest(v, values)
	}
	r.wrong(key, fmt.Sprintf("want %s, got %q", strings.Join(values, ", "), v), suggestion)
	return ""
}

func (r *caseReader) read() policyCase {
	c := policyCase{at: r.item.Position, about: r.about(), rule: r.text("rule")}
	meant := map[string]string{"allow": "accept", "permit": "accept", "deny": "block", "reject": "block", "prompt": "ask"}
	c.expect = r.oneOf("expect", meant, "accept", "block", "drop", "ask")
	if r.text("expect") == "" {
		r.wrong("", "want expect: accept, block, drop or ask", "")
	}
	c.rating = r.oneOf("rating", nil, "trusted", "untrusted", "danger")
	c.question.Owner = r.owner()
	if r.oneOf("direction", map[string]string{"in": "inbound", "out": "outbound"}, "outbound", "inbound") == "inbound" {
		c.question.Direction = network.Inbound
	}
	r.ends(&c.question)
	c.question.Entity.Stamp = r.stamp()
	if c.rule != "" {
		if col, message, suggestion := profiles.CheckRule(c.rule); col != 0 {
			r.wrong("rule", fmt.Sprintf("column %d: %s", col, message), suggestion)
		}
		c.rule = canonical(c.rule)
	}
	return c
}

// about names the case in messages.
func (r *caseReader) about() string {
	parts := []string{"any program"}
	if p := r.text("program"); p != "" {
		parts[0] = p
	}
	for _, key := range []string{"from", "to", "domain"} {
		switch v := r.text(key); {
		case v == "":
		case key == "domain":
			parts = append(parts, "("+v+")")
		default:
			parts = append(parts, key, v)
		}
	}
	return strings.Join(parts, " ")
}

func (r *caseReader) owner() attribution.Owner {
	path := r.text("program")
	if path == "" {
		for _, key := range []string{"user", "unit", "container"} {
			if r.text(key) != "" {
				r.wrong(key, "want a program as well: without one the flow has no owner", "")
			}
		}
		return attribution.Unidentified("a case without a program")
	}
	if !filepath.IsAbs(path) {
		r.wrong("program", fmt.Sprintf("want the absolute path of a program, got %q", path), "")
	}
	uid, user, err := userOf(r.text("user"))
	if err != nil {
		r.wrong("user", strings.TrimPrefix(err.Error(), "--user: "), "")
	}
	return attribution.Owner{
		Process: &attribution.Process{
			Path: path, Name: filepath.Base(path), UID: uid, User: user, Unit: r.text("unit"), Container: r.text("container"), Kind: attribution.KindProgram,
		},
		Confidence: attribution.Exact, Cause: "a case",
	}
}

// ends reads the two ends of the flow.
func (r *caseReader) ends(q *firewall.Question) {
	domain, to, from := r.text("domain"), r.text("to"), r.text("from")
	if domain == "" && to == "" {
		r.wrong("", "want domain, to, or both", "")
	}
	if domain != "" {
		ascii, err := idna.New(idna.MapForLookup(), idna.StrictDomainName(false)).ToASCII(strings.TrimSuffix(domain, "."))
		if _, addr := netip.ParseAddr(domain); err != nil || addr == nil || strings.ContainsAny(domain, "*/ ") {
			r.wrong("domain", fmt.Sprintf("want a domain name, got %q", domain), "")
		}
		q.Entity.Domain, q.Entity.Source = strings.ToLower(ascii), network.DomainDNS
	}
	if to != "" {
		f, err := destination(to)
		if err != nil {
			r.wrong("to", strings.TrimPrefix(err.Error(), "--to: "), "")
		}
		q.Flow, q.Entity.Addr = f, f.Remote.Addr()
	}
	switch {
	case q.Direction == network.Inbound:
		r.inboundEnds(q, domain, from)
	case from != "":
		r.wrong("from", "stands for the other end of an inbound flow; want direction: inbound", "")
	}
}

// inboundEnds turns the flow around: `to` is the end on this machine.
func (r *caseReader) inboundEnds(q *firewall.Question, domain, from string) {
	peer, err := netip.ParseAddr(from)
	switch {
	case domain != "":
		r.wrong("domain", "an inbound flow has no name", "")
	case r.text("to") == "" || from == "":
		r.wrong("", "an inbound flow needs from: ADDR, the other end, and to: ADDR:PORT/PROTO on this machine", "")
	case err != nil || peer.Zone() != "":
		r.wrong("from", fmt.Sprintf("want an address, got %q", from), "")
	default:
		q.Flow.Local, q.Flow.Remote = q.Flow.Remote, netip.AddrPortFrom(peer.Unmap(), 0)
		q.Entity.Addr = peer.Unmap()
	}
}

// stamp reads what is known of the other end; nil where the case does not say.
func (r *caseReader) stamp() *intel.Stamp {
	country, asn, lists := r.text("country"), r.text("asn"), r.text("lists")
	if country == "" && asn == "" && lists == "" {
		return nil
	}
	for key, prefix := range map[string]string{"country": "", "asn": "", "lists": "L:"} {
		if v := r.text(key); v != "" {
			r.word(key, prefix+v)
		}
	}
	s := &intel.Stamp{Country: country}
	if n, err := strconv.ParseUint(strings.TrimPrefix(asn, "AS"), 10, 32); err == nil {
		s.ASN = uint32(n)
	}
	for id := range strings.SplitSeq(lists, ",") {
		if id != "" {
			s.Lists = append(s.Lists, intel.Match{ID: id})
		}
	}
	return s
}

// word checks a country, ASN or list by the grammar of rules.
func (r *caseReader) word(key, word string) {
	_, message, suggestion := profiles.CheckRule("- " + word)
	switch {
	case message != "":
		r.wrong(key, message, strings.TrimPrefix(suggestion, "L:"))
	case key == "asn" && (!strings.HasPrefix(word, "AS") || len(word) < 3), key == "country" && len(word) != 2:
		r.wrong(key, fmt.Sprintf("want %s, got %q", map[string]string{"asn": "an ASN such as AS64500", "country": "a country such as DE"}[key], word), "")
	}
}

// printCases shows what came out otherwise, with the way to it.
func printCases(out io.Writer, r casesReport) error {
	for _, f := range r.Failed {
		at := config.Position{File: f.File, Line: f.Line, Col: f.Col}
		wanted := f.Expected
		if f.ExpectedRule != "" {
			wanted += fmt.Sprintf(" by %q", f.ExpectedRule)
		}
		_, _ = fmt.Fprintf(out, "%s: %s: expected %s, got %s\n", at, f.About, wanted, f.Got)
		if err := printWhy(out, f.Why); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(out, "%d of %d cases are as expected\n", r.Cases-len(r.Failed), r.Cases)
	return err
}
