package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"gatun/network"
)

// settleWatch is how long changes are collected before a watcher is told: a busy machine must
// not make it read the same records again for every packet.
const settleWatch = 200 * time.Millisecond

// RecordList is the answer to a query of the virtual database.
type RecordList struct {
	Schema  string           `json:"schema"`
	Records []network.Record `json:"records"`
}

// Record is the answer to GET of one key of the virtual database.
type Record struct {
	Schema string `json:"schema"`
	network.Record
}

// db answers a key with its record, and a prefix or a filter with all records that fit.
func (s *Server) db(w http.ResponseWriter, r *http.Request) {
	key, q := r.PathValue("path"), r.URL.Query()
	filter, err := parseFilter(q["q"])
	if err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	if key == "" || strings.HasPrefix(key, "flows") {
		s.refresh()
	}
	if q.Get("watch") != "" {
		s.watchRecords(w, r, key, filter)
		return
	}
	if v, ok := s.Database.Get(key); ok && len(filter) == 0 {
		reply(w, Record{Schema: network.Schema, Record: network.Record{Key: key, Value: v}})
		return
	}
	records, known := s.query(key, filter)
	prefix := key == "" || strings.HasSuffix(key, "/") || !strings.Contains(key, "/") || len(filter) > 0
	if !known || len(records) == 0 && !prefix {
		fail(w, http.StatusNotFound, fmt.Sprintf("nothing has the key %q; there are %s", key, strings.Join(s.Database.Branches(), ", ")))
		return
	}
	reply(w, RecordList{Schema: network.Schema, Records: records})
}

func (s *Server) query(prefix string, filter recordFilter) (list []network.Record, known bool) {
	records, known := s.Database.Query(prefix)
	list = []network.Record{}
	for _, r := range records {
		if filter.fits(r.Value) {
			list = append(list, r)
		}
	}
	return list, known
}

// recordFilter is a list of conditions, of which all have to hold.
type recordFilter []condition

type condition struct {
	path   []string // process.name is {process, name}
	value  string
	differ bool // != instead of =
}

// parseFilter reads conditions such as verdict=block or process.name!=curl; several in one
// parameter are separated by commas.
func parseFilter(list []string) (recordFilter, error) {
	var f recordFilter
	for _, text := range strings.Split(strings.Join(list, ","), ",") {
		if text == "" {
			continue
		}
		field, value, ok := strings.Cut(text, "=")
		if !ok || field == "" || field == "!" {
			return nil, fmt.Errorf("q: want conditions such as verdict=block or process.name!=curl, got %q", text)
		}
		field, differ := strings.CutSuffix(field, "!")
		f = append(f, condition{path: strings.Split(field, "."), value: value, differ: differ})
	}
	return f, nil
}

func (f recordFilter) fits(v any) bool {
	if len(f) == 0 {
		return true
	}
	b, err := json.Marshal(v)
	if err != nil {
		return false
	}
	var tree any
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	if dec.Decode(&tree) != nil {
		return false
	}
	for _, c := range f {
		if has(tree, c.path, c.value) == c.differ {
			return false
		}
	}
	return true
}

// has looks for a value at a path. Of a list, any item will do.
func has(v any, path []string, want string) bool {
	switch v := v.(type) {
	case []any:
		return slices.ContainsFunc(v, func(item any) bool { return has(item, path, want) })
	case map[string]any:
		return len(path) > 0 && has(v[path[0]], path[1:], want)
	case nil:
		return len(path) == 0 && (want == "" || want == "null")
	default:
		return len(path) == 0 && fmt.Sprint(v) == want
	}
}

// watchRecords streams Server-Sent Events: a put for every record that fits now and ready when all
// is told; then the same for what changes, with a delete for what is gone.
func (s *Server) watchRecords(w http.ResponseWriter, r *http.Request, prefix string, filter recordFilter) {
	watch := s.Flows.Watch(network.Now) // before the first look: nothing falls between
	defer watch.Close()
	records, known := s.query(prefix, filter)
	if !known {
		fail(w, http.StatusNotFound, fmt.Sprintf("nothing has the key %q; there are %s", prefix, strings.Join(s.Database.Branches(), ", ")))
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	v := view{w: w, have: map[string]string{}}
	v.show(records)
	alive, settled := time.NewTicker(keepAlive), time.NewTimer(settleWatch)
	settled.Stop()
	defer alive.Stop()
	defer settled.Stop()
	pending, took := false, time.Duration(0) // a look that is dear is taken less often
	for v.err == nil {
		select {
		case <-r.Context().Done():
			return
		case <-alive.C:
			_, v.err = fmt.Fprint(w, ": alive\n\n")
			v.flush()
		case <-watch.Events():
			if !pending {
				pending = true
				settled.Reset(max(settleWatch, 10*took))
			}
		case <-settled.C:
			pending = false
			began := time.Now()
			records, _ := s.query(prefix, filter)
			v.show(records)
			took = time.Since(began)
		}
	}
}

// view is what a watcher has been shown.
type view struct {
	w     http.ResponseWriter
	have  map[string]string // key -> record as JSON
	ready bool              // something was shown
	err   error
}

// show writes the difference between what the watcher has and what is there.
func (v *view) show(records []network.Record) {
	defer v.flush()
	gone := maps.Clone(v.have)
	changed := !v.ready
	for _, r := range records {
		delete(gone, r.Key)
		b, err := json.Marshal(r.Value)
		if err != nil || v.have[r.Key] == string(b) {
			continue
		}
		v.have[r.Key] = string(b)
		changed = true
		v.write("put", r)
	}
	for _, key := range slices.Sorted(maps.Keys(gone)) {
		changed = true
		delete(v.have, key)
		v.write("delete", struct {
			Key string `json:"key"`
		}{key})
	}
	if changed {
		v.ready = true
		v.write("ready", struct{}{})
	}
}

func (v *view) write(event string, data any) {
	b, err := json.Marshal(data)
	if err == nil {
		_, err = fmt.Fprintf(v.w, "event: %s\ndata: %s\n\n", event, b)
	}
	if v.err == nil {
		v.err = err
	}
}

func (v *view) flush() { _ = http.NewResponseController(v.w).Flush() }
