package network

import "fmt"

// Verdict is what happens to a flow. Verdicts are never compared by number.
type Verdict uint8

// The verdicts of policy.md section 5. The zero value is Undecided, which the Gate treats as
// Block: nothing passes because somebody forgot to decide.
const (
	Undecided Verdict = iota
	Accept
	Block
	Drop
	PermanentAccept
	PermanentBlock
	PermanentDrop
	RerouteToNameserver
	RerouteToTunnel
)

// String returns the JSON value of the verdict (product.md).
func (v Verdict) String() string {
	switch v {
	case Accept:
		return "accept"
	case Block:
		return "block"
	case Drop:
		return "drop"
	case PermanentAccept:
		return "permanent-accept"
	case PermanentBlock:
		return "permanent-block"
	case PermanentDrop:
		return "permanent-drop"
	case RerouteToNameserver:
		return "reroute-nameserver"
	case RerouteToTunnel:
		return "reroute-tunnel"
	default:
		return "undecided"
	}
}

// Permits reports whether the verdict lets the flow's bytes go somewhere.
func (v Verdict) Permits() bool {
	switch v {
	case Accept, PermanentAccept, RerouteToNameserver, RerouteToTunnel:
		return true
	default:
		return false
	}
}

// Effect is what the verdict does to a packet, however long it holds.
func (v Verdict) Effect() Verdict {
	switch v {
	case PermanentAccept:
		return Accept
	case PermanentBlock:
		return Block
	case PermanentDrop:
		return Drop
	default:
		return v
	}
}

// Permanent reports whether the verdict also holds for all future packets of the link.
func (v Verdict) Permanent() bool {
	switch v {
	case PermanentAccept, PermanentBlock, PermanentDrop:
		return true
	default:
		return false
	}
}

// Stage is the point at which a decision was made.
type Stage uint8

// The stages of policy.md section 4, in the order in which a flow meets them.
const (
	StageNone Stage = iota
	StageBeforeIntel
	StageAfterIntel
	StageCommunication
	StageLink
	StageInspection
	StagePrompt
	StageFastTrack
)

// String returns the JSON value of the stage (product.md).
func (s Stage) String() string {
	switch s {
	case StageBeforeIntel:
		return "before-intel"
	case StageAfterIntel:
		return "after-intel"
	case StageCommunication:
		return "communication"
	case StageLink:
		return "link"
	case StageInspection:
		return "inspection"
	case StagePrompt:
		return "prompt"
	case StageFastTrack:
		return "fast-track"
	default:
		return ""
	}
}

// CodeNotCarried is the reason_code of what the policy permits and nothing here can carry.
const CodeNotCarried = "not-carried"

// RuleRef points at the line a person wrote. Line and Col count from 1; 0 means unknown, as
// for a rule given on the command line.
type RuleRef struct {
	Text string `json:"text"`
	File string `json:"file"`
	Line int    `json:"line"`
	Col  int    `json:"-"`
}

// String formats r as file:line, or the rule's text where no file is known.
func (r RuleRef) String() string {
	if r.File == "" {
		return r.Text
	}
	return fmt.Sprintf("%s:%d", r.File, r.Line)
}

// Decision is a verdict and everything needed to answer "why". It is an immutable value; the
// zero Decision is undecided.
type Decision struct {
	Verdict Verdict
	Stage   Stage
	Reason  string  // for people: one sentence without a full stop
	Code    string  // reason_code, stable: "rule", "default-action", "scope-lan", "own-traffic", …
	Setting string  // the setting that decided: "filter/endpoints"
	Profile string  // ID of the profile whose layer decided; "" is the global one
	Rule    RuleRef // zero where no rule decided
	List    string  // ID of the filter list that decided, "" if none
}

// Decided reports whether d carries a verdict.
func (d Decision) Decided() bool { return d.Verdict != Undecided }

// Asks reports whether a person has to be asked: `ask` is an action, not a verdict.
func (d Decision) Asks() bool { return d.Verdict == Undecided && d.Stage == StagePrompt }
