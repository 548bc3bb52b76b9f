package api

import (
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"

	"gatun/config"
	"gatun/network"
	"gatun/profiles"
)

// Programs knows the profiles in force and the programs they are for.
type Programs interface {
	Profiles() []profiles.Info
	// Match says which profile judges a program with that path. Its Fingerprint is "" where none
	// fits and only the global settings hold.
	Match(path string) profiles.MatchReport
}

// Match is the answer to GET /v1/match.
type Match struct {
	Schema  string `json:"schema"`
	Program string `json:"program"`
	profiles.MatchReport
}

func (s *Server) match(w http.ResponseWriter, r *http.Request) {
	program := r.URL.Query().Get("program")
	if !filepath.IsAbs(program) {
		fail(w, http.StatusBadRequest, fmt.Sprintf("program: want an absolute path, got %q", program))
		return
	}
	reply(w, Match{Schema: network.Schema, Program: program, MatchReport: s.Control.Match(program)})
}

// ProfileList is the answer to GET /v1/profiles.
type ProfileList struct {
	Schema   string          `json:"schema"`
	Profiles []profiles.Info `json:"profiles"`
}

// Profile is the answer to GET /v1/profiles/{name}.
type Profile struct {
	Schema string `json:"schema"`
	profiles.Info
	Settings []config.SettingState `json:"settings"` // what the profile can set, with what holds for it
	YAML     string                `json:"yaml"`     // as export writes it; "" for a built-in one
}

// Deleted is the answer to a DELETE that took something away.
type Deleted struct {
	Schema  string `json:"schema"`
	Deleted string `json:"deleted"`
}

// Imported is the answer to POST /v1/profiles/import.
type Imported struct {
	Schema   string   `json:"schema"`
	Imported []string `json:"imported"`
}

func (s *Server) profiles(w http.ResponseWriter, _ *http.Request) {
	reply(w, ProfileList{Schema: network.Schema, Profiles: notNil(s.Control.Profiles())})
}

func (s *Server) profile(w http.ResponseWriter, r *http.Request) {
	s.replyProfile(w, r.PathValue("name"))
}

func (s *Server) replyProfile(w http.ResponseWriter, name string) {
	info, ok := s.info(name)
	if !ok {
		noProfile(w, name)
		return
	}
	cfg := s.Control.Config()
	p := Profile{Schema: network.Schema, Info: info, Settings: []config.SettingState{}}
	if states, ok := cfg.ProfileStates(name); ok {
		p.Settings = states
		text, err := cfg.ExportProfiles(name)
		if err != nil {
			refuse(w, http.StatusInternalServerError, err)
			return
		}
		p.YAML = string(text)
	}
	reply(w, p)
}

func (s *Server) info(name string) (profiles.Info, bool) {
	list := s.Control.Profiles()
	i := slices.IndexFunc(list, func(p profiles.Info) bool { return p.Name == name })
	if i < 0 {
		return profiles.Info{}, false
	}
	return list[i], true
}

func noProfile(w http.ResponseWriter, name string) {
	fail(w, http.StatusNotFound, fmt.Sprintf("no profile has the name %q; `gatun profile list` lists them", name))
}

// pinned reports whether the human's file keeps the profile from being changed.
func (s *Server) pinned(name string) bool {
	p, ok := specOf(s.Control.Config(), name)
	return ok && p.Origin == config.Pinned
}

func specOf(cfg *config.Config, name string) (config.ProfileSpec, bool) {
	list := cfg.Profiles()
	i := slices.IndexFunc(list, func(p config.ProfileSpec) bool { return p.Name == name })
	if i < 0 {
		return config.ProfileSpec{}, false
	}
	return list[i], true
}

// changeProfile makes one change to a profile and answers with its new state.
func (s *Server) changeProfile(w http.ResponseWriter, name string, edit func(*config.Edit)) bool {
	blamed := http.StatusBadRequest
	if s.pinned(name) {
		blamed = http.StatusConflict
	}
	err := s.Control.Change(func(e *config.Edit) error {
		edit(e)
		return nil
	})
	if err != nil {
		refuse(w, blamed, err)
		return false
	}
	return true
}

// putProfile takes the export of exactly one profile. What the profile is for and what it sets
// is replaced as a whole.
func (s *Server) putProfile(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	specs, ok := s.readProfiles(w, r)
	if !ok {
		return
	}
	if len(specs) != 1 || specs[0].Name != name {
		fail(w, http.StatusBadRequest, fmt.Sprintf("want exactly one profile with the name %q, got %s", name, namesOf(specs)))
		return
	}
	if s.changeProfile(w, name, func(e *config.Edit) { e.PutProfile(specs[0]) }) {
		s.replyProfile(w, name)
	}
}

func (s *Server) readProfiles(w http.ResponseWriter, r *http.Request) ([]config.ProfileSpec, bool) {
	b, ok := body(w, r, typeYAML, "application/x-yaml", "text/yaml", "text/x-yaml")
	if !ok {
		return nil, false
	}
	specs, err := config.ParseProfiles("", b)
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return nil, false
	}
	if len(specs) == 0 {
		fail(w, http.StatusBadRequest, "there is no profile in the body")
		return nil, false
	}
	return specs, true
}

func namesOf(specs []config.ProfileSpec) string {
	names := make([]string, len(specs))
	for i, p := range specs {
		names[i] = p.Name
	}
	return strings.Join(names, ", ")
}

func (s *Server) deleteProfile(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	if _, ok := specOf(s.Control.Config(), name); !ok {
		noProfile(w, name)
		return
	}
	if s.changeProfile(w, name, func(e *config.Edit) { e.DeleteProfile(name) }) {
		reply(w, Deleted{Schema: network.Schema, Deleted: name})
	}
}

func (s *Server) settingInProfile(w http.ResponseWriter, r *http.Request) {
	name, key := r.PathValue("name"), r.PathValue("key")
	states, ok := s.Control.Config().ProfileStates(name)
	if !ok {
		noProfile(w, name)
		return
	}
	state, ok := FindSetting(states, key)
	if !ok {
		noSetting(w, key, states)
		return
	}
	reply(w, Setting{Schema: network.Schema, Profile: name, SettingState: state})
}

func (s *Server) setInProfile(w http.ResponseWriter, r *http.Request) {
	var v SettingValue
	if !decode(w, r, &v) {
		return
	}
	if v.Value == nil {
		fail(w, http.StatusBadRequest, `want a body such as {"value": "on"}; DELETE leaves the setting to the layers below`)
		return
	}
	s.changeInProfile(w, r, func(e *config.Edit, name, key string) { e.SetInProfile(name, key, v.Value) })
}

func (s *Server) unsetInProfile(w http.ResponseWriter, r *http.Request) {
	s.changeInProfile(w, r, func(e *config.Edit, name, key string) { e.UnsetInProfile(name, key) })
}

func (s *Server) changeInProfile(w http.ResponseWriter, r *http.Request, edit func(e *config.Edit, name, key string)) {
	name, key := r.PathValue("name"), r.PathValue("key")
	cfg := s.Control.Config()
	if _, ok := cfg.ProfileStates(name); !ok {
		noProfile(w, name)
		return
	}
	if _, ok := FindSetting(cfg.States(), key); !ok {
		noSetting(w, key, cfg.States())
		return
	}
	if !s.changeProfile(w, name, func(e *config.Edit) { edit(e, name, key) }) {
		return
	}
	states, _ := s.Control.Config().ProfileStates(name)
	after, _ := FindSetting(states, key)
	reply(w, Setting{Schema: network.Schema, Profile: name, SettingState: after})
}

func (s *Server) exportProfiles(w http.ResponseWriter, r *http.Request) {
	names := r.URL.Query()["name"]
	for _, name := range names {
		if _, ok := specOf(s.Control.Config(), name); !ok {
			noProfile(w, name)
			return
		}
	}
	text, err := s.Control.Config().ExportProfiles(names...)
	if err != nil {
		refuse(w, http.StatusInternalServerError, err)
		return
	}
	w.Header().Set("Content-Type", typeYAML)
	_, _ = w.Write(text)
}

// importProfiles puts all profiles of the body in force, or none. One that exists is replaced,
// unless the human's file has it.
func (s *Server) importProfiles(w http.ResponseWriter, r *http.Request) {
	specs, ok := s.readProfiles(w, r)
	if !ok {
		return
	}
	blamed := http.StatusBadRequest
	imported := Imported{Schema: network.Schema}
	for _, p := range specs {
		if s.pinned(p.Name) {
			blamed = http.StatusConflict
		}
		imported.Imported = append(imported.Imported, p.Name)
	}
	err := s.Control.Change(func(e *config.Edit) error {
		for _, p := range specs {
			e.PutProfile(p)
		}
		return nil
	})
	if err != nil {
		refuse(w, blamed, err)
		return
	}
	reply(w, imported)
}
