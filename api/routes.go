package api

import (
	"net/http"

	"gatun/network"
)

// route is one method of one path, with all that the OpenAPI document says of it.
type route struct {
	method, path string
	summary      string
	query        map[string]string // name of a parameter -> what it is for
	body         any               // a value of the type of the JSON body; text for YAML; nil: none
	answer       any               // a value of the type of the JSON answer; text for another type
	codes        []int             // of the answers that are no success, beside those of every change
	changes      bool              // only root and the daemon's user may
	handle       http.HandlerFunc
}

// either is an answer of one of several types.
type either []any

// text stands for a body that is not JSON, by its type.
type text string

const streamType = text("text/event-stream")

// routes is every request that the server answers. The document is made from it, so what is
// not here is neither served nor described.
func (s *Server) routes() []route {
	list := s.flowRoutes()
	list = append(list, s.settingRoutes()...)
	list = append(list, s.profileRoutes()...)
	list = append(list, s.overrideRoutes()...)
	list = append(list, s.dnsRoutes()...)
	list = append(list, s.listRoutes()...)
	return append(list, s.otherRoutes()...)
}

const (
	get    = http.MethodGet
	put    = http.MethodPut
	post   = http.MethodPost
	remove = http.MethodDelete
)

func (s *Server) flowRoutes() []route {
	filters := map[string]string{
		"live": "1: only flows that have not ended", "last": "at most that many, the newest", "verdict": "equals", "proto": "equals", "kind": "equals: link or dns",
		"direction": "equals", "domain": "contains", "remote": "contains", "process": "name, path or pid",
	}
	dry := map[string]string{
		"id": "of a flow; without it the others describe one", "exe": "path of the program", "user": "number or name",
		"domain": "that the program resolved", "to": "ADDR:PORT/PROTO", "inbound": "1: the flow comes in", "from": "of an inbound flow: ADDR of the other end",
	}
	return []route{
		{method: get, path: "/v1/flows", summary: "The flows with their programs, verdicts and reasons", query: filters, answer: FlowList{}, handle: s.flows},
		{method: get, path: "/v1/flows/{id}", summary: "One flow", answer: network.Report{}, codes: []int{404}, handle: s.flow},
		{method: remove, path: "/v1/flows/{id}", summary: "End a live flow", answer: Killed{}, codes: []int{404, 409}, changes: true, handle: s.kill},
		{method: get, path: "/v1/events", summary: "What happens, as Server-Sent Events: decided, updated, ended, dns, prompt, state", answer: streamType, codes: []int{400},
			query: map[string]string{"since": "sequence number; kept events above it come first (or the header Last-Event-ID)"}, handle: s.events},
		{method: get, path: "/v1/why", summary: "Every decider with its result, for a flow that exists or one that might", query: dry, answer: Why{}, codes: []int{400, 404}, handle: s.why},
	}
}

func (s *Server) settingRoutes() []route {
	level := map[string]string{"level": "user, expert or developer; default: core/expertiseLevel"}
	return []route{
		{method: get, path: "/v1/settings", summary: "All settings up to an expertise level", query: level, answer: SettingList{}, codes: []int{400}, handle: s.settings},
		{method: get, path: "/v1/settings/{key...}", summary: "One setting", answer: Setting{}, codes: []int{404}, handle: s.setting},
		{method: put, path: "/v1/settings/{key...}", summary: "Change a setting; 409: the human's file sets it", body: SettingValue{}, answer: Setting{}, codes: []int{400, 404, 409, 413, 415}, changes: true, handle: s.setSetting},
		{method: remove, path: "/v1/settings/{key...}", summary: "Take back a change: the file, the preset or the default holds again", answer: Setting{}, codes: []int{400, 404, 409}, changes: true, handle: s.unsetSetting},
		{method: get, path: "/v1/schema", summary: "The JSON schema of the configuration file", answer: text("application/schema+json"), handle: s.schema},
		{method: get, path: "/v1/rating", summary: "The network rating and where it comes from", answer: Rating{}, handle: s.rating},
		{method: put, path: "/v1/rating", summary: "Rate the network by hand: trusted, untrusted, danger, or auto", body: RatingValue{}, answer: Rating{}, codes: []int{400, 409, 413, 415}, changes: true, handle: s.setRating},
		{method: remove, path: "/v1/rating", summary: "Let the rules rate the network", answer: Rating{}, codes: []int{400, 409}, changes: true, handle: s.unsetRating},
	}
}

func (s *Server) profileRoutes() []route {
	yaml := text(typeYAML)
	return []route{
		{method: get, path: "/v1/profiles", summary: "The profiles in force", answer: ProfileList{}, handle: s.profiles},
		{method: get, path: "/v1/profiles/{name}", summary: "One profile with its settings", answer: Profile{}, codes: []int{404}, handle: s.profile},
		{method: put, path: "/v1/profiles/{name}", summary: "Make or replace a profile; the body is the export of one", body: yaml, answer: Profile{}, codes: []int{400, 409, 413, 415}, changes: true, handle: s.putProfile},
		{method: remove, path: "/v1/profiles/{name}", summary: "Delete a profile", answer: Deleted{}, codes: []int{400, 404, 409}, changes: true, handle: s.deleteProfile},
		{method: get, path: "/v1/profiles/{name}/settings/{key...}", summary: "One setting as it holds for a profile", answer: Setting{}, codes: []int{404}, handle: s.settingInProfile},
		{method: put, path: "/v1/profiles/{name}/settings/{key...}", summary: "Change a setting of a profile", body: SettingValue{}, answer: Setting{}, codes: []int{400, 404, 409, 413, 415}, changes: true, handle: s.setInProfile},
		{method: remove, path: "/v1/profiles/{name}/settings/{key...}", summary: "Leave a setting of a profile to the layers below", answer: Setting{}, codes: []int{400, 404, 409}, changes: true, handle: s.unsetInProfile},
		{method: get, path: "/v1/match", summary: "Which profile judges a program, and why", query: map[string]string{"program": "absolute path of the binary"}, answer: Match{}, codes: []int{400}, handle: s.match},
		{method: get, path: "/v1/profiles/export", summary: "Profiles as YAML", query: map[string]string{"name": "of a profile, may be repeated; without it all"}, answer: yaml, codes: []int{404}, handle: s.exportProfiles},
		{method: post, path: "/v1/profiles/import", summary: "Make or replace the profiles of the body, all or none", body: yaml, answer: Imported{}, codes: []int{400, 409, 413, 415}, changes: true, handle: s.importProfiles},
	}
}

func (s *Server) overrideRoutes() []route {
	return []route{
		{method: get, path: "/v1/prompts", summary: "The questions that wait for a person, and those that nobody answered in time", answer: PromptList{}, handle: s.prompts},
		{method: post, path: "/v1/prompts/{id}", summary: "Answer a question", body: Answer{}, answer: Answered{}, codes: []int{400, 404, 409, 413, 415}, changes: true, handle: s.answer},
		{method: get, path: "/v1/rules", summary: "The temporary rules", answer: RuleList{}, handle: s.rules},
		{method: post, path: "/v1/rules", summary: "Allow or block something for a program, for a time or always", body: NewRule{}, answer: RuleMade{}, codes: []int{400, 404, 409, 413, 415}, changes: true, handle: s.addRule},
		{method: remove, path: "/v1/rules/{id}", summary: "End a temporary rule", answer: Deleted{}, codes: []int{404}, changes: true, handle: s.removeRule},
		{method: get, path: "/v1/pause", summary: "Whether filtering is paused", answer: Pause{}, handle: s.pause},
		{method: put, path: "/v1/pause", summary: "Pause filtering for at most a day", body: PauseFor{}, answer: Pause{}, codes: []int{400, 413, 415}, changes: true, handle: s.setPause},
		{method: remove, path: "/v1/pause", summary: "Go on filtering", answer: Pause{}, changes: true, handle: s.endPause},
	}
}

func (s *Server) otherRoutes() []route {
	records := map[string]string{
		"q": "conditions field=value or field!=value that all have to hold, separated by commas; dots lead into objects", "watch": "1: Server-Sent Events: put, ready, then put and delete",
	}
	return []route{
		{method: get, path: "/v1/status", summary: "Whether the program is well, and what it does not control", answer: Status{}, handle: s.status},
		{method: post, path: "/v1/reload", summary: "Read the configuration again; an error keeps the running one", answer: Status{}, codes: []int{422}, changes: true, handle: s.reload},
		{method: post, path: "/v1/confirm", summary: "Keep what `gatun up --confirm` brought up; 409: nothing waits for it", answer: Status{}, codes: []int{409}, changes: true, handle: s.confirm},
		{method: post, path: "/v1/down", summary: "End the program and leave the machine as it was", answer: Status{}, changes: true, handle: s.down},
		{method: get, path: "/v1/db/{path...}", summary: "The virtual database: a record by its key (flows/7), or a list by a prefix (flows, settings/filter/)", query: records, answer: either{Record{}, RecordList{}}, codes: []int{400, 404}, handle: s.db},
		{method: get, path: "/v1/openapi.json", summary: "This document", answer: map[string]any{}, handle: s.openAPI},
		{method: get, path: "/metrics", summary: "Counters in the Prometheus text format", answer: text("text/plain"), handle: s.metrics},
	}
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request) { reply(w, s.Daemon.Status()) }

func (s *Server) openAPI(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", typeJSON)
	_, _ = w.Write(s.document())
}
