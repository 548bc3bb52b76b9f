package status

import (
	"encoding/json"
	"testing"
)

func TestWorst(t *testing.T) {
	m := func(name string, s ModuleState) Module { return Module{Name: name, State: s} }
	for _, c := range []struct {
		name    string
		modules []Module
		want    Module
	}{
		{"none", nil, Module{}},
		{"one", []Module{m("dns", OK)}, m("dns", OK)},
		{"all well", []Module{m("dns", OK), m("route", OK)}, m("dns", OK)},
		{"one info", []Module{m("dns", OK), m("route", Info)}, m("route", Info)},
		{"first of the worst", []Module{m("a", Warning), m("b", Error), m("c", Error), m("d", Info)}, m("b", Error)},
		{"what is no state", []Module{m("a", Error), m("b", 200)}, m("b", 200)},
	} {
		if got := Worst(c.modules); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

func TestModuleJSON(t *testing.T) {
	for state, want := range map[ModuleState]string{
		OK:      `{"name":"dns","state":"ok","message":"m"}`,
		Info:    `{"name":"dns","state":"info","message":"m"}`,
		Warning: `{"name":"dns","state":"warning","message":"m"}`,
		Error:   `{"name":"dns","state":"error","message":"m"}`,
	} {
		b, err := json.Marshal(Module{Name: "dns", State: state, Message: "m"})
		if err != nil || string(b) != want {
			t.Errorf("got %s, %v, want %s", b, err, want)
		}
		var back Module
		if err := json.Unmarshal(b, &back); err != nil || back.State != state {
			t.Errorf("%s read back is %+v, %v", b, back, err)
		}
	}
	var m Module
	if err := json.Unmarshal([]byte(`{"state":"fine"}`), &m); err == nil {
		t.Errorf("fine is read as %s", m.State)
	}
	if got := ModuleState(77).String(); got != "error" {
		t.Errorf("an unknown state is %q", got)
	}
}
