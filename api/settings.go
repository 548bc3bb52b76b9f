package api

import (
	"fmt"
	"net/http"
	"path"
	"strings"

	"gatun/config"
	"gatun/network"
)

// Policy is where the configuration in force is read and changed.
type Policy interface {
	Config() *config.Config
	// Change puts a set of edits in force and keeps them, or does neither: then the error is
	// config.Problems where the edits are to blame.
	Change(func(*config.Edit) error) error
}

// SettingList is the answer to GET /v1/settings.
type SettingList struct {
	Schema         string                `json:"schema"`
	Level          string                `json:"level"` // what is shown: settings up to this level
	ExpertiseLevel string                `json:"expertise_level"`
	ReleaseLevel   string                `json:"release_level"`
	Preset         string                `json:"preset"`
	Settings       []config.SettingState `json:"settings"`
}

// Setting is the answer to a request for one setting, or for one in a profile.
type Setting struct {
	Schema  string `json:"schema"`
	Profile string `json:"profile,omitempty"`
	config.SettingState
}

// SettingValue is the body of PUT /v1/settings/{key}.
type SettingValue struct {
	Value any `json:"value"`
}

// Levels lists the expertise levels, from what everybody sees to everything.
func Levels() []string {
	return []string{config.User.String(), config.Expert.String(), config.Developer.String()}
}

// NewSettingList lists what people of that level want to see; "" is the level that is
// configured. A hidden setting stays in effect.
func NewSettingList(cfg *config.Config, level string) (SettingList, error) {
	own := cfg.String("core/expertiseLevel")
	if level == "" {
		level = own
	}
	rank := rankOf(level)
	if rank < 0 {
		return SettingList{}, fmt.Errorf("level: want %s, got %q", strings.Join(Levels(), ", "), level)
	}
	list := SettingList{
		Schema: network.Schema, Level: level, ExpertiseLevel: own, ReleaseLevel: cfg.String("core/releaseLevel"),
		Preset: cfg.Preset(), Settings: []config.SettingState{},
	}
	for _, s := range cfg.States() {
		if rankOf(s.Expertise) <= rank {
			list.Settings = append(list.Settings, s)
		}
	}
	return list, nil
}

func rankOf(level string) int {
	for i, l := range Levels() {
		if l == level {
			return i
		}
	}
	return -1
}

func (s *Server) settings(w http.ResponseWriter, r *http.Request) {
	list, err := NewSettingList(s.Control.Config(), r.URL.Query().Get("level"))
	if err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	reply(w, list)
}

func (s *Server) setting(w http.ResponseWriter, r *http.Request) {
	key, states := r.PathValue("key"), s.Control.Config().States()
	state, ok := FindSetting(states, key)
	if !ok {
		noSetting(w, key, states)
		return
	}
	reply(w, Setting{Schema: network.Schema, SettingState: state})
}

// noSetting answers for a key that is not in the table. What differs in case only, or lacks its
// section, is suggested.
func noSetting(w http.ResponseWriter, key string, states []config.SettingState) {
	refuse(w, http.StatusNotFound, config.Problems{UnknownSetting(key, states)})
}

// UnknownSetting is the Problem of a key that is none of the states'.
func UnknownSetting(key string, states []config.SettingState) config.Problem {
	p := config.Problem{Key: key, Message: "unknown setting; `gatun settings list --level developer` lists them"}
	for _, st := range states {
		if strings.EqualFold(st.Key, key) || strings.EqualFold(path.Base(st.Key), key) {
			p.Suggestion = st.Key
		}
	}
	return p
}

// FindSetting returns the state of that key.
func FindSetting(states []config.SettingState, key string) (config.SettingState, bool) {
	for _, st := range states {
		if st.Key == key {
			return st, true
		}
	}
	return config.SettingState{}, false
}

func (s *Server) setSetting(w http.ResponseWriter, r *http.Request) {
	var v SettingValue
	if !decode(w, r, &v) {
		return
	}
	if v.Value == nil {
		fail(w, http.StatusBadRequest, `want a body such as {"value": "on"}; DELETE goes back to the default`)
		return
	}
	s.changeSetting(w, r.PathValue("key"), func(e *config.Edit, key string) { e.Set(key, v.Value) })
}

func (s *Server) unsetSetting(w http.ResponseWriter, r *http.Request) {
	s.changeSetting(w, r.PathValue("key"), func(e *config.Edit, key string) { e.Unset(key) })
}

func (s *Server) changeSetting(w http.ResponseWriter, key string, edit func(e *config.Edit, key string)) {
	states := s.Control.Config().States()
	before, ok := FindSetting(states, key)
	if !ok {
		noSetting(w, key, states)
		return
	}
	err := s.Control.Change(func(e *config.Edit) error {
		edit(e, key)
		return nil
	})
	if err != nil {
		refuse(w, blame(before), err)
		return
	}
	after, _ := FindSetting(s.Control.Config().States(), key)
	reply(w, Setting{Schema: network.Schema, SettingState: after})
}

// blame is the code for a change of that setting that was refused: the human's file is in the
// way, or the value is wrong.
func blame(before config.SettingState) int {
	if before.Pinned {
		return http.StatusConflict
	}
	return http.StatusBadRequest
}

func (s *Server) schema(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/schema+json")
	_, _ = w.Write(config.Schema())
}

// Rating is the answer to GET /v1/rating.
type Rating struct {
	Schema string `json:"schema"`
	Rating string `json:"rating"`
	Origin string `json:"origin"` // default, a place in a file, config.json, or the rule that rates
}

// RatingValue is the body of PUT /v1/rating. auto is the same as DELETE: the rules decide.
type RatingValue struct {
	Rating string `json:"rating"`
}

const ratingKey = "network/rating"

func (s *Server) rating(w http.ResponseWriter, _ *http.Request) {
	st := s.Daemon.Status()
	reply(w, Rating{Schema: network.Schema, Rating: st.Rating, Origin: st.RatingOrigin})
}

func (s *Server) setRating(w http.ResponseWriter, r *http.Request) {
	var v RatingValue
	if !decode(w, r, &v) {
		return
	}
	if v.Rating == "" {
		fail(w, http.StatusBadRequest, `want a body such as {"rating": "untrusted"}: trusted, untrusted, danger or auto`)
		return
	}
	s.changeRating(w, v.Rating)
}

func (s *Server) unsetRating(w http.ResponseWriter, _ *http.Request) { s.changeRating(w, "auto") }

func (s *Server) changeRating(w http.ResponseWriter, to string) {
	before, _ := FindSetting(s.Control.Config().States(), ratingKey)
	err := s.Control.Change(func(e *config.Edit) error {
		if to == "auto" {
			e.Unset(ratingKey)
		} else {
			e.Set(ratingKey, to)
		}
		return nil
	})
	if err != nil {
		refuse(w, blame(before), err)
		return
	}
	s.rating(w, nil)
}
