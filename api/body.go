package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"

	"gatun/config"
	"gatun/network"
)

// maxBody bounds a request: all profiles of a machine are far smaller.
const maxBody = 4 << 20

const (
	typeJSON = "application/json"
	typeYAML = "application/yaml"
)

// ErrNotFound and ErrConflict are what the interfaces of this package return, wrapped, for what
// is not there (404) and for what cannot be done in the state that things are in (409).
var (
	ErrNotFound = errors.New("not found")
	ErrConflict = errors.New("conflict")
)

// Problem is one config.Problem as JSON.
type Problem struct {
	File       string `json:"file"`
	Line       int    `json:"line"`
	Col        int    `json:"col"`
	Key        string `json:"key"`
	Message    string `json:"message"`
	Suggestion string `json:"suggestion"`
}

// Failure is the body of every answer that is not a success.
type Failure struct {
	Schema   string    `json:"schema"`
	Message  string    `json:"error"`
	Problems []Problem `json:"problems,omitempty"` // what is wrong in the configuration that was sent, or that is there
}

func fail(w http.ResponseWriter, code int, message string) {
	failWith(w, code, Failure{Schema: network.Schema, Message: message})
}

func failWith(w http.ResponseWriter, code int, f Failure) {
	w.Header().Set("Content-Type", typeJSON)
	w.WriteHeader(code)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(f) // the client went away: nobody is left to tell
}

// refuse answers with what an error of the program means to the client. code is what Problems
// stand for: 400 where the request is to blame, 409 where the state of things is.
func refuse(w http.ResponseWriter, code int, err error) {
	var problems config.Problems
	switch {
	case errors.As(err, &problems):
		f := Failure{Schema: network.Schema, Message: problems.Error()}
		for _, p := range problems {
			f.Problems = append(f.Problems, Problem{p.File, p.Line, p.Col, p.Key, p.Message, p.Suggestion})
		}
		failWith(w, code, f)
	case errors.Is(err, ErrNotFound):
		fail(w, http.StatusNotFound, says(err, ErrNotFound))
	case errors.Is(err, ErrConflict):
		fail(w, http.StatusConflict, says(err, ErrConflict))
	default:
		fail(w, http.StatusInternalServerError, err.Error())
	}
}

// says is what an error tells a person, without the word that stands for its kind.
func says(err, kind error) string { return strings.TrimSuffix(err.Error(), ": "+kind.Error()) }

// body reads a request of one of the types. A type that a form of a web page cannot send is what
// keeps other sites from using a browser as their hand.
func body(w http.ResponseWriter, r *http.Request, types ...string) ([]byte, bool) {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || !oneOf(kind, types) {
		fail(w, http.StatusUnsupportedMediaType, fmt.Sprintf("want Content-Type: %s, got %q", strings.Join(types, " or "), r.Header.Get("Content-Type")))
		return nil, false
	}
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		fail(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the body has more than %d MiB", maxBody>>20))
	case err != nil:
		fail(w, http.StatusBadRequest, err.Error())
	default:
		return b, true
	}
	return nil, false
}

func oneOf(s string, list []string) bool {
	for _, t := range list {
		if s == t {
			return true
		}
	}
	return false
}

// decode reads a JSON body strictly: an unknown field is a mistake that must not look done.
func decode(w http.ResponseWriter, r *http.Request, out any) bool {
	b, ok := body(w, r, typeJSON)
	if !ok {
		return false
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	err := dec.Decode(out)
	if err == nil {
		if _, more := dec.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("more than one JSON value")
		}
	}
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("the body is empty")
		}
		fail(w, http.StatusBadRequest, "the body cannot be read: "+strings.TrimPrefix(err.Error(), "json: "))
		return false
	}
	return true
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", typeJSON)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // the client went away: nobody is left to tell
}
