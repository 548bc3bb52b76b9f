package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// Flow is one object of `gatun flows --json`.
type Flow map[string]any

// Flows returns what `gatun flows --json` lists.
func (g *Gatun) Flows() ([]Flow, error) {
	out, err := g.Client("flows", "--json")
	if err != nil {
		return nil, err
	}
	var list struct {
		Schema string
		Flows  []Flow
	}
	if err := json.Unmarshal(out, &list); err != nil {
		return nil, fmt.Errorf("gatun flows --json: %w: %.200s", err, out)
	}
	if list.Schema != "gatun/v1" {
		return nil, fmt.Errorf("gatun flows --json: schema %q", list.Schema)
	}
	return list.Flows, nil
}

// WaitFlow waits for a flow that has all the wanted fields. A field is named by its path in the
// JSON (process.pid, rule.line) or by a short name (pid, start, path). Times may differ by the
// second to which the kernel rounds the time of boot; a file matches by its base name; a list
// like "kind=link|dns" matches each of its parts.
func (g *Gatun) WaitFlow(limit time.Duration, want map[string]string) (Flow, error) {
	var found Flow
	var flows []Flow
	err := Wait(limit, fmt.Sprintf("a flow with %v", want), func() (bool, error) {
		var err error
		if flows, err = g.Flows(); err != nil {
			return false, err
		}
		found = nil
		for _, f := range flows {
			if f.Match(want) {
				found = f
			}
		}
		return found != nil, nil
	})
	if errors.Is(err, ErrTimeout) {
		err = fmt.Errorf("%w; the flows are:\n%s", err, listing(flows))
	}
	return found, err
}

// Match says whether the flow has all the wanted fields.
func (f Flow) Match(want map[string]string) bool {
	for key, value := range want {
		if !matchField(key, f.Field(key), value) {
			return false
		}
	}
	return true
}

// Field returns a field as text, "" where there is none.
func (f Flow) Field(path string) string {
	short := map[string]string{"pid": "process.pid", "start": "process.start", "path": "process.path", "line": "rule.line", "file": "rule.file"}
	if long := short[path]; long != "" {
		path = long
	}
	var v any = map[string]any(f)
	for _, part := range strings.Split(path, ".") {
		m, ok := v.(map[string]any)
		if !ok {
			return ""
		}
		v = m[part]
	}
	if v == nil {
		return ""
	}
	if n, ok := v.(float64); ok {
		return fmt.Sprintf("%.0f", n)
	}
	return fmt.Sprint(v)
}

func matchField(key, have, want string) bool {
	switch key {
	case "start":
		a, err1 := time.Parse(time.RFC3339Nano, have)
		b, err2 := time.Parse(time.RFC3339Nano, want)
		return err1 == nil && err2 == nil && a.Sub(b).Abs() <= 1100*time.Millisecond
	case "file":
		return filepath.Base(have) == want && have != ""
	}
	for _, w := range strings.Split(want, "|") {
		if have == w {
			return true
		}
	}
	return false
}

func listing(flows []Flow) string {
	var b strings.Builder
	for i, f := range flows {
		if i >= 40 {
			fmt.Fprintf(&b, "… and %d more\n", len(flows)-i)
			break
		}
		for _, key := range []string{"kind", "proto", "local", "remote", "domain", "verdict", "pid", "start", "owner_confidence", "owner_cause", "file", "line", "reason", "close_cause"} {
			if v := f.Field(key); v != "" {
				fmt.Fprintf(&b, "%s=%s ", key, v)
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}
