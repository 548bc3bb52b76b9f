package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// try loads with an Edit and commits it.
func try(t testing.TB, src Source, change func(e *Edit)) (*Config, error) {
	t.Helper()
	src.Edit = src.Data.Edit()
	change(src.Edit)
	cfg, err := Load(src)
	if err != nil {
		return nil, err
	}
	if err := src.Edit.Commit(); err != nil {
		t.Fatal(err)
	}
	src.Edit = nil
	again, err := Load(src)
	if err != nil {
		t.Fatalf("what was committed is refused: %v", err)
	}
	if !again.Equal(cfg) {
		t.Fatal("after the commit the configuration is another one than before")
	}
	return cfg, nil
}

// TestEdit: what is set at run time holds, comes back after a start, and goes again; on disk and
// in memory.
func TestEdit(t *testing.T) {
	for _, dir := range []string{"", filepath.Join(t.TempDir(), "state")} {
		file := write(t, t.TempDir(), "gatun.yaml", "version: 1\npreset: server\nfilter: {ping: rules}\nprofiles: [{name: mine, match: [{path: /m}]}]\n")
		src := Source{File: file, Data: OpenData(dir)}
		change := func(f func(e *Edit)) *Config {
			t.Helper()
			cfg, err := try(t, src, f)
			if err != nil {
				t.Fatal(err)
			}
			return cfg
		}
		cfg := change(func(e *Edit) {
			e.Set("filter/blockLAN", true)
			e.Set("filter/blockInbound", "danger")
			e.Set("filter/askTimeout", "90s")
			e.Set("core/mark", float64(77))
			e.Set("filter/endpoints", []any{"- RU", "+ *"})
			e.Set("network/ratingRules", []any{map[string]any{"rating": "danger", "interface": "wlan0", "vpn": false}})
			e.PrependRule("", "filter/endpoints", "- LAN")
			e.PutProfile(NewProfile("curl", []Fingerprint{{Type: "path", Op: "equals", Value: "/usr/bin/curl"}}, Automatic, map[string]string{"path": "/usr/bin/curl"}))
		})
		if cfg.Grade("filter/blockLAN") != On || cfg.Grade("filter/blockInbound") != Danger || cfg.Duration("filter/askTimeout").Seconds() != 90 || cfg.Int("core/mark") != 77 {
			t.Error("a value is wrong")
		}
		if got := strings.Join(cfg.Strings("filter/endpoints"), "|"); got != "- LAN|- RU|+ *" {
			t.Errorf("endpoints %s", got)
		}
		if r := cfg.RatingRules(); len(r) != 1 || r[0].Rating != "danger" || r[0].When.Interface != "wlan0" || r[0].When.VPN == nil || *r[0].When.VPN {
			t.Errorf("rating rules %+v", r)
		}
		if o := cfg.Value("filter/blockInbound").Origin; o.String() != "config.json" || o.Position.Line == 0 {
			t.Errorf("origin %v", o)
		}
		if p := cfg.Profiles(); len(p) != 2 || p[0].Origin != Pinned || p[1].Origin != Automatic || p[1].Facts["path"] != "/usr/bin/curl" {
			t.Errorf("profiles %+v", p)
		}
		cfg = change(func(e *Edit) {
			e.Unset("filter/blockInbound")
			e.SetInProfile("curl", "filter/defaultAction", "block")
			e.PrependRule("curl", "filter/endpoints", "+ .example.org")
		})
		if v := cfg.Value("filter/blockInbound"); v.Origin.String() != "preset server" {
			t.Errorf("after Unset: %v from %s", v.Any(), v.Origin)
		}
		p := cfg.Profiles()[1]
		if v, ok := p.Value("filter/defaultAction"); !ok || v.Any() != "block" || p.Origin != Runtime || !strings.HasPrefix(v.Origin.String(), "profiles/curl-") {
			t.Errorf("profile %+v", p)
		}
		cfg = change(func(e *Edit) { e.DeleteProfile("curl") })
		if len(cfg.Profiles()) != 1 {
			t.Error("the profile is still there")
		}
		_, err := try(t, src, func(e *Edit) { e.Set("filter/ping", "permit") })
		if !errors.Is(err, ErrPinned) || err.Error() != file+":3:10: filter/ping: is set in "+file+":3; change it there" {
			t.Errorf("pinned: %v", err)
		}
		if dir != "" {
			text, _ := os.ReadFile(filepath.Join(dir, "config.json"))
			t.Logf("%s", text)
		}
	}
}
