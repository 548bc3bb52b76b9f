package main

import (
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// stampPatience is how long one of the two servers waits for the other one's request.
const stampPatience = 4 * time.Second

// stampServer is a name server and a server of intelligence in one. For the names below
// gate.example.org each of them answers only after the other one was asked about that name: who
// asks one after the other gets no answer from the first, or none in time from the second.
type stampServer struct {
	server *server
	files  string

	mu    sync.Mutex
	asked map[string]chan struct{} // by "dns NAME" and "stamp NAME": closed when it was asked for
}

// stampServe is "stamp -dns ADDR:PORT -https ADDR:PORT -cert FILE -key FILE [-log FILE] [-files DIR]".
// GET /stamp?name=NAME tells what it knows; below /files/ are the files of DIR.
func stampServe(args []string) error {
	var dns, web, cert, key, log string
	s := &stampServer{server: &server{log: io.Discard}, asked: map[string]chan struct{}{}}
	if _, err := flags("stamp", args, 0, func(fs *flag.FlagSet) {
		fs.StringVar(&dns, "dns", "", "address of the name server")
		fs.StringVar(&web, "https", "", "address of the server of intelligence")
		fs.StringVar(&cert, "cert", "", "certificate")
		fs.StringVar(&key, "key", "", "key")
		fs.StringVar(&log, "log", "", "a line of JSON per request")
		fs.StringVar(&s.files, "files", "", "folder of files")
	}); err != nil {
		return err
	}
	if log != "" {
		f, err := os.Create(log)
		if err != nil {
			return err
		}
		s.server.log = f
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return err
	}
	z := labZone()
	c, err := net.ListenPacket("udp", dns)
	if err != nil {
		return err
	}
	go s.names(c, z)
	mux := http.NewServeMux()
	mux.HandleFunc("/stamp", s.stamp)
	if s.files != "" {
		mux.HandleFunc("/files/", s.file)
	}
	l, err := tls.Listen("tcp", web, &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2", "http/1.1"}})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	return http.Serve(l, mux)
}

// meet notes that side was asked about the name and waits for the other side.
func (s *stampServer) meet(side, other, name string) bool {
	if !strings.HasSuffix(name, ".gate.example.org") {
		return true
	}
	s.mu.Lock()
	mine, theirs := s.of(side+" "+name), s.of(other+" "+name)
	select {
	case <-mine:
	default:
		close(mine)
	}
	s.mu.Unlock()
	select {
	case <-theirs:
		return true
	case <-time.After(stampPatience):
		return false
	}
}

func (s *stampServer) of(key string) chan struct{} {
	if s.asked[key] == nil {
		s.asked[key] = make(chan struct{})
	}
	return s.asked[key]
}

func (s *stampServer) names(c net.PacketConn, z zone) {
	b := make([]byte, 4096)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		query := append([]byte(nil), b[:n]...)
		go func() {
			name, ok := questionName(query)
			if reply := s.server.answer(z, query, "udp"); ok && reply != nil && s.meet("dns", "stamp", name) {
				_, _ = c.WriteTo(reply, from)
			}
		}()
	}
}

// stamp knows that bad.… is on a list, and where place.… is.
func (s *stampServer) stamp(w http.ResponseWriter, r *http.Request) {
	name := r.FormValue("name")
	s.server.record("stamped", name, r.RemoteAddr)
	if !s.meet("stamp", "dns", name) {
		http.Error(w, "nobody asked the name server", http.StatusGatewayTimeout)
		return
	}
	label, _, _ := strings.Cut(name, ".")
	answer := map[string]any{}
	switch label {
	case "bad":
		answer["lists"] = []map[string]string{{"id": "far", "category": "MAL"}}
	case "place":
		answer["country"], answer["asn"] = "BR", 64510
	case "unknown":
		http.NotFound(w, r)
		return
	case "broken":
		_, _ = io.WriteString(w, "<html>")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer)
}

// file serves DIR/NAME. What ends in .cut is announced longer than it is; .endless never ends.
func (s *stampServer) file(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/files/")
	s.server.record("fetched", name, r.RemoteAddr)
	if _, err := os.Stat(s.files + "/mode"); err == nil {
		mode, _ := os.ReadFile(s.files + "/mode")
		switch strings.TrimSpace(string(mode)) {
		case "cut":
			b, _ := os.ReadFile(s.files + "/" + name)
			w.Header().Set("Content-Length", fmt.Sprint(2*len(b)+1))
			_, _ = w.Write(b)
			return
		case "endless":
			line := []byte(strings.Repeat("0.0.0.0 endless.example.com\n", 4096))
			for {
				if _, err := w.Write(line); err != nil {
					return
				}
			}
		case "away":
			http.Error(w, "away", http.StatusServiceUnavailable)
			return
		}
	}
	http.ServeFile(w, r, s.files+"/"+name)
}
