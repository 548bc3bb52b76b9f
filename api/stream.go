package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"gatun/network"
)

const keepAlive = 15 * time.Second // a comment line, so that a dead client is noticed

func itoa(n int) string { return strconv.Itoa(n) }

// events streams Server-Sent Events. Last-Event-ID, or ?since=N, replays what is still kept.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	since := network.Now
	for _, v := range []string{r.Header.Get("Last-Event-ID"), r.URL.Query().Get("since")} {
		if v == "" {
			continue
		}
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			fail(w, http.StatusBadRequest, fmt.Sprintf("since: want a sequence number, got %q", v))
			return
		}
		since = n
	}
	watch := s.Flows.Watch(since)
	defer watch.Close()
	w.Header().Set("Content-Type", "text/event-stream")
	out := http.NewResponseController(w)
	_ = out.Flush()
	tick := time.NewTicker(keepAlive)
	defer tick.Stop()
	var lost uint64
	for {
		var err error
		select {
		case <-r.Context().Done():
			return
		case <-tick.C:
			_, err = fmt.Fprint(w, ": alive\n\n")
		case e := <-watch.Events():
			if n := watch.Lost(); n != lost {
				lost = n
				_, _ = fmt.Fprintf(w, ": %d events were lost because the reader was too slow\n\n", n)
			}
			err = writeEvent(w, e)
		}
		if err != nil {
			return
		}
		if len(watch.Events()) == 0 {
			_ = out.Flush()
		}
	}
}

func writeEvent(w http.ResponseWriter, e network.Event) error {
	rep := e.Report()
	b, err := json.Marshal(rep)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "id: %d\nevent: %s\ndata: %s\n\n", rep.Seq, rep.Event, b)
	return err
}

func (s *Server) why(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if id := q.Get("id"); id != "" {
		if l := s.link(w, id); l != nil {
			reply(w, s.Why.WhyLink(l))
		}
		return
	}
	answer, err := s.Why.WhyDry(DryRun{Exe: q.Get("exe"), User: q.Get("user"), Domain: q.Get("domain"), To: q.Get("to"), From: q.Get("from"), Inbound: q.Get("inbound") != ""})
	if err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	reply(w, answer)
}

// metrics prints the counters in the Prometheus text format.
func (s *Server) metrics(w http.ResponseWriter, _ *http.Request) {
	st := s.Daemon.Status()
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	_, _ = fmt.Fprintf(w, "# TYPE gatun_links gauge\ngatun_links %d\n", st.Links.Live)
	_, _ = fmt.Fprintf(w, "# TYPE gatun_links_decided_total counter\ngatun_links_decided_total %d\n", st.Links.Decided)
	_, _ = fmt.Fprintf(w, "# TYPE gatun_links_denied_total counter\ngatun_links_denied_total %d\n", st.Links.Denied)
	_, _ = fmt.Fprintf(w, "# TYPE gatun_prompts_waiting gauge\ngatun_prompts_waiting %d\n", st.Prompts)
	_, _ = fmt.Fprintf(w, "# TYPE gatun_temporary_rules gauge\ngatun_temporary_rules %d\n", len(st.Temporary))
	_, _ = fmt.Fprintf(w, "# TYPE gatun_paused gauge\ngatun_paused %d\n", map[bool]int{true: 1}[st.PausedUntil != nil])
	_, _ = fmt.Fprintf(w, "# TYPE gatun_policy_revision gauge\ngatun_policy_revision %d\n", st.Config.Revision)
	_, _ = fmt.Fprint(w, "# TYPE gatun_packets_total counter\n")
	for _, k := range sortedKeys(st.Packets) {
		_, _ = fmt.Fprintf(w, "gatun_packets_total{kind=%q} %d\n", k, st.Packets[k])
	}
	_, _ = fmt.Fprint(w, "# TYPE gatun_owners_total counter\n")
	for _, k := range sortedKeys(st.Owners) {
		_, _ = fmt.Fprintf(w, "gatun_owners_total{cause=%q} %d\n", k, st.Owners[k])
	}
	s.metricsOfNames(w)
}

// metricsOfNames prints what the nameserver and the filter lists count.
func (s *Server) metricsOfNames(w http.ResponseWriter) {
	n := s.Names.Nameserver()
	_, _ = fmt.Fprintf(w, "# TYPE gatun_dns_cache_entries gauge\ngatun_dns_cache_entries %d\n", n.Cache.Entries)
	_, _ = fmt.Fprintf(w, "# TYPE gatun_dns_cache_bytes gauge\ngatun_dns_cache_bytes %d\n", n.Cache.Bytes)
	_, _ = fmt.Fprint(w, "# TYPE gatun_dns_total counter\n")
	for _, k := range sortedKeys(n.Counters) {
		_, _ = fmt.Fprintf(w, "gatun_dns_total{kind=%q} %d\n", k, n.Counters[k])
	}
	_, _ = fmt.Fprint(w, "# TYPE gatun_list_entries gauge\n")
	for _, l := range s.Lists.Lists() {
		_, _ = fmt.Fprintf(w, "gatun_list_entries{list=%q} %d\n", l.ID, l.Entries)
	}
}
