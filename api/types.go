package api

import (
	"encoding/json"
	"net/url"
	"strings"
	"time"

	"gatun/network"
	"gatun/profiles"
	"gatun/status"
)

// Status is the answer to GET /v1/status.
type Status struct {
	Schema       string               `json:"schema"`
	State        string               `json:"state"` // off, starting, on, reconfiguring, degraded, stopping
	Mode         string               `json:"mode"`  // run, up
	Version      string               `json:"version"`
	PID          int                  `json:"pid"`
	Started      time.Time            `json:"started"`
	Config       ConfigStatus         `json:"config"`
	Rating       string               `json:"rating"`
	RatingOrigin string               `json:"rating_origin"` // default, a place in a file, config.json, or the rule that rates
	PausedUntil  *time.Time           `json:"paused_until"`  // null: not paused
	Confirm      *ConfirmStatus       `json:"confirm"`       // null: nothing waits for `gatun confirm`
	Temporary    []profiles.Temporary `json:"temporary"`     // rules that end by themselves
	Modules      []status.Module      `json:"modules"`
	Worst        string               `json:"worst"`   // ok, info, warning, error: the worst state of a module
	Prompts      int                  `json:"prompts"` // questions that wait for an answer
	Inbound      string               `json:"inbound"`
	Notes        []string             `json:"notes"` // what is not enforced, in words
	Resolvers    []string             `json:"resolvers"`
	Online       string               `json:"online"`      // unknown, offline, limited, portal, semi-online, online
	Portal       string               `json:"portal"`      // where to log in while online is portal, "" else
	Nameservers  []string             `json:"nameservers"` // the system's
	Names        map[string]any       `json:"names"`       // device, table, mark: what gatun calls its things in the kernel
	Guard        *GuardStatus         `json:"guard,omitempty"`
	Links        LinkCounts           `json:"links"`
	Packets      map[string]uint64    `json:"packets"`
	Owners       map[string]uint64    `json:"owners"` // links by owner_cause since the start
	NetNS        string               `json:"netns"`
}

// ConfigStatus says which policy is in force.
type ConfigStatus struct {
	File     string   `json:"file"`
	Revision uint64   `json:"revision"`
	Problem  string   `json:"problem"` // why the newest edit is not in force; "" if it is
	Warnings []string `json:"warnings"`
}

// ConfirmStatus says that what `gatun up --confirm` brought up is not confirmed yet.
type ConfirmStatus struct {
	Until       time.Time `json:"until"` // then everything is rolled back
	SecondsLeft int       `json:"seconds_left"`
}

// GuardStatus says whether what keeps traffic from leaking is in place.
type GuardStatus struct {
	OK       bool   `json:"ok"`
	Repairs  uint64 `json:"repairs"`
	Snapshot int    `json:"snapshot"` // flows that were open before `up` and keep their old path
}

// LinkCounts counts links.
type LinkCounts struct {
	Live    int    `json:"live"`
	Decided uint64 `json:"decided"`
	Denied  uint64 `json:"denied"`
}

// Why is the answer to GET /v1/why.
type Why struct {
	Schema  string          `json:"schema"`
	Verdict string          `json:"verdict"`
	Stage   string          `json:"stage"`
	Reason  string          `json:"reason"`
	Setting string          `json:"setting"`
	Profile string          `json:"profile"`
	Rule    json.RawMessage `json:"rule"`
	Trail   json.RawMessage `json:"trail"`
}

// DryRun is a flow that need not exist.
type DryRun struct {
	Exe, User, Domain, To string // To: ADDR:PORT/PROTO
	From                  string // inbound: the address of the other end; To is then our end
	Inbound               bool
}

// Values encodes d for a request's query.
func (d DryRun) Values() url.Values {
	v := url.Values{}
	for k, s := range map[string]string{"exe": d.Exe, "user": d.User, "domain": d.Domain, "to": d.To, "from": d.From} {
		if s != "" {
			v.Set(k, s)
		}
	}
	if d.Inbound {
		v.Set("inbound", "1")
	}
	return v
}

// Matcher selects flows by the query's fields: proto, verdict, direction and kind must be
// equal, domain and remote may be a part, process is a name, a path or a pid.
func Matcher(q url.Values) func(*network.Report) bool {
	return func(r *network.Report) bool {
		return equal(q, "proto", r.Proto) && equal(q, "verdict", r.Verdict) && equal(q, "direction", r.Direction) &&
			equal(q, "kind", r.Kind) && part(q, "domain", r.Domain) && part(q, "remote", r.Remote) && program(q.Get("process"), r.Process)
	}
}

func equal(q url.Values, key, have string) bool { return q.Get(key) == "" || q.Get(key) == have }

func part(q url.Values, key, have string) bool { return strings.Contains(have, q.Get(key)) }

func program(want string, p *network.ReportProcess) bool {
	return want == "" || p != nil && (p.Name == want || p.Path == want || want == itoa(p.PID))
}
