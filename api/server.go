package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"go.uber.org/zap"

	"gatun/config"
	"gatun/network"
)

// Daemon is what the server can ask the running program for.
type Daemon interface {
	Status() Status
	Reload(context.Context) error // an error keeps the running policy
	Confirm() error               // `gatun confirm`; an error says why nothing waits for it
	Stop()                        // the explicit act that leaves On: `gatun down`
}

// Explainer answers "why".
type Explainer interface {
	WhyLink(*network.Link) Why
	WhyDry(DryRun) (Why, error)
}

// Server serves one daemon. The zero value is not usable; all fields but Log are needed.
type Server struct {
	Daemon Daemon
	Flows  *network.Table
	// Refresh brings the counters of flows up to date that somebody else carries; nil: there are none.
	Refresh func()
	Why     Explainer
	// Control reads and changes the policy.
	Control Control
	Names   Names
	Lists   Lists
	// Database is the virtual database.
	Database *network.Database
	Log      *zap.Logger
}

// Control is all that can be asked and changed of the policy while the program runs.
type Control interface {
	Policy
	Programs
	Overrides
	Prompts
}

// errNoDir says that the socket's folder is missing or unsafe.
var errNoDir = errors.New("the socket's folder belongs to somebody else or is writable by everybody: choose another with --socket")

// maxPath is what unix(7) leaves for a path (107 bytes) less the suffix under which the socket
// is made.
const maxPath = 103

// ErrServed means that another instance serves the socket. `gatun up` exits with 6.
var ErrServed = errors.New("gatun is already running")

// Listen makes the unix socket with mode 0660, with its folder (0755) where that is missing. A socket
// file that nobody listens on any more is replaced. The caller has made sure that this
// program runs once only.
func Listen(path string) (net.Listener, error) {
	if len(path) > maxPath {
		return nil, fmt.Errorf("%s: a unix socket's path has at most %d characters here: choose a shorter one with --socket", path, maxPath)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("cannot make the socket's folder: %w", err)
	}
	if err := checkDir(dir); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = c.Close()
		return nil, fmt.Errorf("%w: another instance serves %s", ErrServed, path)
	}
	if fi, err := os.Lstat(path); err == nil && fi.Mode().Type() == os.ModeSocket {
		_ = os.Remove(path)
	}
	return listenPrivate(path)
}

// Serve answers until ctx ends.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler: s.handler(), ReadHeaderTimeout: 5 * time.Second, MaxHeaderBytes: 16 << 10,
		ConnContext: withPeer, BaseContext: func(net.Listener) context.Context { return ctx },
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		endSoon(srv)
	})
	err := srv.Serve(l)
	if !stop() {
		<-ended
	}
	if err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("api: %w", err)
	}
	return nil
}

// endSoon lets the answers that are being written out, that to `down` among them.
func endSoon(srv *http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	if srv.Shutdown(ctx) != nil {
		_ = srv.Close()
	}
}

func (s *Server) mux() *http.ServeMux {
	mux := http.NewServeMux()
	for _, r := range s.routes() {
		h := r.handle
		if r.changes {
			h = s.change(h)
		}
		mux.HandleFunc(r.method+" "+r.path, h)
	}
	return mux
}

// handler answers as every other failure does where the mux has no route.
func (s *Server) handler() http.Handler {
	mux := s.mux()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h, pattern := mux.Handler(r)
		if pattern != "" {
			mux.ServeHTTP(w, r) // which sets the path's values, and Handler does not
			return
		}
		n := noRoute{header: http.Header{}}
		h.ServeHTTP(&n, r)
		if allow := n.header.Get("Allow"); allow != "" {
			w.Header().Set("Allow", allow)
			fail(w, http.StatusMethodNotAllowed, fmt.Sprintf("%s is not possible here, but %s", r.Method, allow))
			return
		}
		fail(w, http.StatusNotFound, fmt.Sprintf("nothing is at %s; GET /v1/openapi.json describes what there is", r.URL.Path))
	})
}

// noRoute takes the mux's own answer to a request that it has no route for.
type noRoute struct{ header http.Header }

// Header implements http.ResponseWriter.
func (n *noRoute) Header() http.Header { return n.header }

// Write implements http.ResponseWriter.
func (n *noRoute) Write(b []byte) (int, error) { return len(b), nil }

// WriteHeader implements http.ResponseWriter.
func (n *noRoute) WriteHeader(int) {}

// change lets only root and the daemon's own user through.
func (s *Server) change(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		uid, known := peerUID(r.Context())
		if !known || uid != 0 && uid != os.Geteuid() {
			fail(w, http.StatusForbidden, "only root and the user that gatun runs as may change it")
			return
		}
		next(w, r)
	}
}

// FlowList is the answer to GET /v1/flows.
type FlowList struct {
	Schema string           `json:"schema"`
	Flows  []network.Report `json:"flows"`
}

func (s *Server) flows(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	s.refresh()
	links := s.Flows.All()
	if q.Get("live") != "" {
		links = s.Flows.Live()
	}
	list := FlowList{Schema: network.Schema, Flows: make([]network.Report, 0, len(links))}
	match := Matcher(q)
	for _, l := range links {
		if rep := l.Report(); match(&rep) {
			list.Flows = append(list.Flows, rep)
		}
	}
	if n, err := strconv.Atoi(q.Get("last")); err == nil && n >= 0 && n < len(list.Flows) {
		list.Flows = list.Flows[len(list.Flows)-n:]
	}
	reply(w, list)
}

func (s *Server) refresh() {
	if s.Refresh != nil {
		s.Refresh()
	}
}

func (s *Server) flow(w http.ResponseWriter, r *http.Request) {
	s.refresh()
	if l := s.link(w, r.PathValue("id")); l != nil {
		reply(w, l.Report())
	}
}

func (s *Server) link(w http.ResponseWriter, id string) *network.Link {
	l := s.Flows.Get(id)
	if l == nil {
		fail(w, http.StatusNotFound, fmt.Sprintf("no flow has the id %q; `gatun flows` lists them", id))
	}
	return l
}

// Killed is the answer to DELETE /v1/flows/{id}.
type Killed struct {
	Schema string `json:"schema"`
	Killed string `json:"killed"`
}

func (s *Server) kill(w http.ResponseWriter, r *http.Request) {
	l := s.link(w, r.PathValue("id"))
	switch {
	case l == nil:
	case l.Ended():
		fail(w, http.StatusConflict, "the flow has already ended")
	case !l.Kill("killed"):
		fail(w, http.StatusConflict, "the flow has no connection that could be ended")
	default:
		reply(w, Killed{Schema: network.Schema, Killed: l.ID()})
	}
}

func (s *Server) reload(w http.ResponseWriter, r *http.Request) {
	if err := s.Daemon.Reload(r.Context()); err != nil {
		var problems config.Problems
		if !errors.As(err, &problems) {
			fail(w, http.StatusUnprocessableEntity, err.Error())
			return
		}
		refuse(w, http.StatusUnprocessableEntity, err)
		return
	}
	reply(w, s.Daemon.Status())
}

func (s *Server) confirm(w http.ResponseWriter, _ *http.Request) {
	if err := s.Daemon.Confirm(); err != nil {
		fail(w, http.StatusConflict, err.Error())
		return
	}
	reply(w, s.Daemon.Status())
}

func (s *Server) down(w http.ResponseWriter, _ *http.Request) {
	reply(w, s.Daemon.Status())
	s.Daemon.Stop()
}
