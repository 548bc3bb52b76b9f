package api

import (
	"context"
	"fmt"
	"net/http"
	"os/user"
	"strconv"
	"time"

	"gatun/network"
)

// Prompts are the questions to a person that the firewall holds flows for.
type Prompts interface {
	Prompts() []Prompt
	// Answer decides a question. ErrNotFound: no such question; ErrConflict: it can no longer be
	// answered like that.
	Answer(id string, a Answer) error
}

// Prompt is one question: may this program talk to that name or scope? One is asked per program
// and registrable domain, or scope where no name is known.
type Prompt struct {
	ID        string    `json:"id"`
	State     string    `json:"state"` // waiting; unanswered: the time is over and the default action was applied once
	Program   string    `json:"program"`
	Path      string    `json:"path"`
	PID       int       `json:"pid"` // of the process that asked first
	Start     time.Time `json:"start"`
	User      string    `json:"user"`
	Profile   string    `json:"profile"`
	Direction string    `json:"direction"`
	Domain    string    `json:"domain"` // registrable; "" where no name is known
	Scope     string    `json:"scope"`  // where no name is known
	Names     []string  `json:"names"`
	Remotes   []string  `json:"remotes"` // ADDRESS:PORT/PROTO
	Setting   string    `json:"setting"` // that asks
	Rule      string    `json:"rule"`    // that asks, "" for the default action
	Flows     int       `json:"flows"`   // that wait now
	Asked     time.Time `json:"asked"`
	Until     time.Time `json:"until"`   // when the last of them gets the default
	Default   string    `json:"default"` // what happens then: accept, block, drop
}

// PromptList is the answer to GET /v1/prompts.
type PromptList struct {
	Schema  string   `json:"schema"`
	Prompts []Prompt `json:"prompts"`
}

// Answer is the body of POST /v1/prompts/{id}.
type Answer struct {
	Action string `json:"action"`        // allow, block
	For    string `json:"for,omitempty"` // once, a duration such as 10m, exit, always; "" is once

	Lifetime Lifetime `json:"-"` // what For says, where Once is false
	Once     bool     `json:"-"`
	By       string   `json:"-"` // who answered, as the kernel says
}

// Answered is the answer to POST /v1/prompts/{id}.
type Answered struct {
	Schema   string `json:"schema"`
	Answered string `json:"answered"`
	Action   string `json:"action"`
	For      string `json:"for"`
}

func (s *Server) prompts(w http.ResponseWriter, _ *http.Request) {
	reply(w, PromptList{Schema: network.Schema, Prompts: notNil(s.Control.Prompts())})
}

func (s *Server) answer(w http.ResponseWriter, r *http.Request) {
	var a Answer
	if !decode(w, r, &a) {
		return
	}
	if a.For == "" {
		a.For = "once"
	}
	err := checkAction(a.Action)
	if a.Once = a.For == "once"; err == nil && !a.Once {
		if a.Lifetime, err = ParseFor(a.For); err != nil {
			err = fmt.Errorf("%w; or once", err)
		}
	}
	if err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	a.By = peerName(r.Context())
	if err := s.Control.Answer(r.PathValue("id"), a); err != nil {
		refuse(w, http.StatusConflict, err)
		return
	}
	reply(w, Answered{Schema: network.Schema, Answered: r.PathValue("id"), Action: a.Action, For: a.For})
}

// peerName says who is at the other end of the socket.
func peerName(ctx context.Context) string {
	uid, _ := peerUID(ctx)
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return fmt.Sprintf("user %d", uid)
}
