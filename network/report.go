package network

import (
	"net/netip"
	"slices"
	"time"

	"gatun/intel"
)

// Schema heads every JSON document of the program.
const Schema = "gatun/v1"

// Report is one flow as JSON, the same object in `flows --json`, the API, the events and the
// page (product.md). Fields are only ever added.
type Report struct {
	ID           string         `json:"id"`
	Kind         string         `json:"kind"`
	Direction    string         `json:"direction"`
	Proto        string         `json:"proto"`
	Local        string         `json:"local"`
	Remote       string         `json:"remote"`
	Domain       string         `json:"domain"`
	DomainSource string         `json:"domain_source"`
	Process      *ReportProcess `json:"process"`
	Confidence   string         `json:"owner_confidence"`
	Cause        string         `json:"owner_cause"`
	Profile      string         `json:"profile"`
	Names        ReportNames    `json:"names"`
	Protocol     string         `json:"protocol"`
	Device       string         `json:"device"`
	NetNS        string         `json:"netns"`
	Verdict      string         `json:"verdict"`
	Stage        string         `json:"stage"`
	Reason       string         `json:"reason"`
	ReasonCode   string         `json:"reason_code"`
	Setting      string         `json:"setting"`
	Rule         *RuleRef       `json:"rule"`
	List         *ReportList    `json:"list"`
	Lists        []string       `json:"lists"`
	Country      string         `json:"country"`
	ASN          uint32         `json:"asn"`
	ASOwner      string         `json:"as_owner"`
	Tunnel       string         `json:"tunnel"`
	Exit         string         `json:"exit"`
	HandedBack   bool           `json:"handed_back"`
	Sent         uint64         `json:"bytes_sent"`
	Received     uint64         `json:"bytes_received"`
	Started      time.Time      `json:"started"`
	Ended        *time.Time     `json:"ended"`
	CloseCause   string         `json:"close_cause"`
	QueryType    string         `json:"query_type"` // of a DNS query: the records that were asked for,
	Resolver     string         `json:"resolver"`   // who answered it, and what the program was told
	Rcode        string         `json:"rcode"`
}

// ReportProcess is the process of a Report; PID and Start are its identity.
type ReportProcess struct {
	PID       int       `json:"pid"`
	Start     time.Time `json:"start"`
	Path      string    `json:"path"`
	Name      string    `json:"name"`
	Args      []string  `json:"args"`
	UID       uint32    `json:"uid"`
	User      string    `json:"user"`
	Unit      string    `json:"unit"`
	Container string    `json:"container"`
}

// ReportNames are the names by which the other side is known, by source.
type ReportNames struct {
	DNS  []string `json:"dns"`
	SNI  string   `json:"sni"`
	HTTP string   `json:"http"`
}

// ReportList is the filter list that decided, and the place where it names the other end.
type ReportList struct {
	ID       string `json:"id"`
	Category string `json:"category"`
	Source   string `json:"source"` // file or URL
	Line     int    `json:"line"`   // 0 unknown
	Name     string `json:"name"`   // what the list has there
}

// ReportEvent is one event as JSON.
type ReportEvent struct {
	Schema string  `json:"schema"`
	Seq    uint64  `json:"seq"`
	Event  string  `json:"event"`
	Flow   *Report `json:"flow,omitempty"`
}

// Report renders the event with the link's facts as they are now.
func (e Event) Report() ReportEvent {
	r := ReportEvent{Schema: Schema, Seq: e.Seq, Event: e.Type.String()}
	if e.Link != nil {
		f := e.Link.Report()
		r.Flow = &f
	}
	return r
}

// Report renders the link as it is now.
func (l *Link) Report() Report {
	d := l.Decision()
	r := Report{
		ID: l.ID(), Kind: l.Kind.String(), Proto: l.Flow.Proto.String(),
		Local: printable(l.Flow.Local), Remote: printable(l.Flow.Remote),
		DomainSource: DomainNone.String(), Direction: Outbound.String(),
		Names: ReportNames{DNS: []string{}}, Lists: []string{},
		Verdict: d.Verdict.String(), Stage: d.Stage.String(), Reason: d.Reason, ReasonCode: d.Code, Setting: d.Setting,
		Started: l.Started().UTC(),
	}
	if d.Rule.Text != "" {
		rule := d.Rule
		r.Rule = &rule
	}
	if s := l.Stamp(); s != nil {
		r.stamp(s, d.List)
	}
	r.HandedBack = l.HandedBack()
	r.Sent, r.Received = l.Bytes()
	if e := l.ended.Load(); e != nil {
		at := e.at.UTC()
		r.Ended, r.CloseCause = &at, e.cause
	}
	if a := l.answered.Load(); a != nil {
		r.QueryType, r.Resolver, r.Rcode = a.Type, a.Resolver, a.Rcode
	}
	if c := l.Comm(); c != nil {
		c.report(&r)
	}
	return r
}

// stamp renders what is known of the other end; decided is the ID of the list that decided.
func (r *Report) stamp(s *intel.Stamp, decided string) {
	r.Country, r.ASN, r.ASOwner = s.Country, s.ASN, s.ASOwner
	for i := range s.Lists {
		m := &s.Lists[i]
		if !slices.Contains(r.Lists, m.ID) {
			r.Lists = append(r.Lists, m.ID)
		}
		if r.List == nil && m.ID == decided {
			r.List = &ReportList{m.ID, m.Category, m.Source, m.Line, m.Name}
		}
	}
}

func (c *Communication) report(r *Report) {
	r.Direction = c.Direction.String()
	r.Profile = c.Profile
	r.Domain, r.DomainSource = c.Entity.Domain, c.Entity.Source.String()
	if c.Entity.Domain != "" && c.Entity.Source == DomainDNS {
		r.Names.DNS = append([]string{c.Entity.Domain}, c.Entity.Others...)
	}
	r.Confidence, r.Cause = c.Owner.Confidence.String(), c.Owner.Cause
	p := c.Owner.Process
	args := p.Args
	if args == nil {
		args = []string{}
	}
	r.Process = &ReportProcess{
		PID: p.PID, Start: p.Started.UTC(), Path: p.Path, Name: p.Name, Args: args,
		UID: p.UID, User: p.User, Unit: p.Unit, Container: p.Container,
	}
}

func printable(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
