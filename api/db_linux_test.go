package api

import (
	"encoding/json"
	"errors"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"gatun/network"
)

func TestDatabase(t *testing.T) {
	d := start(t)
	d.link(1, network.Accept)
	d.link(2, network.Block)
	flow := d.want(t, 200, "", "GET", "/v1/db/flows/1", "").json(t)
	if flow["key"] != "flows/1" || flow["value"].(map[string]any)["verdict"] != "accept" || flow["schema"] != "gatun/v1" {
		t.Errorf("got %v", flow)
	}
	for path, want := range map[string]int{
		"flows": 2, "flows/": 2, "flows/1": -1, "flows?q=verdict=block": 1, "flows?q=verdict!=block": 1, "flows?q=process.name=curl": 2,
		"flows?q=process.name=curl,verdict=block": 1, "flows?q=names.dns=a.example": 2, "flows?q=names.dns=b.example": 0, "flows?q=process.pid=2": 1,
		"flows?q=verdict=block&q=process.pid=1": 0, "settings/filter/": -2, "settings/filter/blockLAN": -1, "communications": 2,
		"communications/1/": 1, "communications/1/curl/outbound/a.example": -1, "": -2, "flows/1?q=verdict=accept": 1,
	} {
		r := d.want(t, 200, "", "GET", "/v1/db/"+path, "").json(t)
		records, list := r["records"].([]any)
		switch {
		case want == -1 && list, want != -1 && !list, want >= 0 && len(records) != want, want == -2 && len(records) < 5:
			t.Errorf("%q: got %v", path, r)
		}
	}
	for path, code := range map[string]int{"flows/9": 404, "nothing": 404, "settings/filter/nothing": 404, "flows?q=verdict": 400, "flows?q==x": 400, "nothing?watch=1": 404} {
		d.want(t, code, "", "GET", "/v1/db/"+path, "")
	}
}

// Whoever looks at flows, by whatever way, sees what others count of them now.
func TestFlowsAreCountedWhenSomebodyLooks(t *testing.T) {
	d := start(t)
	d.link(1, network.Accept)
	looks := 0
	s := &Server{Daemon: d, Flows: d.table, Control: d.policy, Names: d.names, Lists: d.lists, Database: d.server.Database, Refresh: func() { looks++ }}
	for path, want := range map[string]int{"flows": 1, "flows/1": 1, "db/flows": 1, "db/flows/1": 1, "db/flows?q=verdict=accept": 1, "db/": 1, "db/settings": 0, "status": 0} {
		looks = 0
		w := httptest.NewRecorder()
		s.handler().ServeHTTP(w, httptest.NewRequest("GET", "/v1/"+path, nil))
		if w.Code != 200 || looks != want {
			t.Errorf("%s: %d, counted %d times, want %d", path, w.Code, looks, want)
		}
	}
}

// A watcher gets what is there, then what changes, and no record twice for nothing.
func TestWatchDatabase(t *testing.T) {
	d := start(t)
	enough := errors.New("enough")
	var got []string
	settings := 0
	err := d.client.Watch(t.Context(), "settings/filter/", func(event string, b json.RawMessage) error {
		var r struct {
			Key   string         `json:"key"`
			Value map[string]any `json:"value"`
		}
		if err := json.Unmarshal(b, &r); err != nil {
			return err
		}
		switch {
		case event == "ready" && settings > 0 && got == nil:
			got = []string{}
			d.want(t, 200, "", "PUT", "/v1/settings/filter/blockInternet", `{"value":"on"}`)
		case event == "ready":
			return enough
		case got == nil:
			settings++
		default:
			got = append(got, event+" "+r.Key+" "+r.Value["value"].(string))
		}
		return nil
	})
	if !errors.Is(err, enough) || !slices.Equal(got, []string{"put settings/filter/blockInternet on"}) || settings < 5 {
		t.Errorf("got %v after %d, %v", got, settings, err)
	}
}

func TestWatchSeesWhatIsGone(t *testing.T) {
	d := start(t)
	l := d.link(1, network.Accept)
	enough := errors.New("enough")
	var got []string
	err := d.client.Watch(t.Context(), "communications", func(event string, b json.RawMessage) error {
		got = append(got, event)
		switch {
		case event == "ready" && len(got) == 2:
			d.table.End(l, "done")
		case event == "delete":
			if !strings.Contains(string(b), "communications/1/curl/outbound/a.example") {
				t.Errorf("got %s", b)
			}
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) || strings.Join(got, " ") != "put ready delete" {
		t.Errorf("got %v, %v", got, err)
	}
}

// A busy table makes a watcher read once per interval, not once per event.
func TestWatchCollects(t *testing.T) {
	d := start(t)
	enough := errors.New("enough")
	batches, puts := 0, 0
	began := time.Now()
	err := d.client.Watch(t.Context(), "flows", func(event string, _ json.RawMessage) error {
		switch event {
		case "ready":
			if batches++; batches == 1 {
				for i := range 500 {
					d.link(uint16(i+1), network.Accept)
				}
			}
		case "put":
			puts++
		}
		if puts >= 500 && event == "ready" {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) || batches > 3 || puts != 500 {
		t.Errorf("%d puts in %d batches, %v", puts, batches, err)
	}
	if took := time.Since(began); took < settleWatch {
		t.Errorf("was told after %s", took)
	}
}
