package config

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// tagNames are the tags that attribution can tell in this version; missingTags come later.
var (
	tagNames    = []string{"systemd-unit", "container", "cgroup", "flatpak", "snap", "appimage", "script", "user", "special"}
	missingTags = []string{"device"}
)

// SpecialProfiles are the values of the tag "special": identities that stand in where there
// is no program.
func SpecialProfiles() []string {
	return []string{"unidentified", "unsolicited", "system", "system-resolver", "self"}
}

func (w *walker) matchList(s *scope, n *yaml.Node) []Fingerprint {
	if n.Kind != yaml.SequenceNode || len(n.Content) == 0 {
		w.problem(s.at(n), s.name("match"), "want a list such as [{path: /usr/bin/curl}], got "+describe(n.Value, n.Tag), "")
		return nil
	}
	var list []Fingerprint
	for i, item := range n.Content {
		item = resolve(item)
		key := fmt.Sprintf("match[%d]", i)
		if item.Kind != yaml.MappingNode {
			w.problem(s.at(item), s.name(key), "want {path: …}, {cmdline: …}, {env: NAME, equals: …} or {tag: NAME, equals: …}, got "+describe(item.Value, item.Tag), "")
			continue
		}
		if f, ok := w.fingerprint(s, key, item); ok {
			list = append(list, f)
		}
	}
	return list
}

// fingerprint reads {path: VALUE}, {path: {prefix: VALUE}} (the same for cmdline) and
// {tag: NAME, equals|prefix|regex: VALUE} (the same for env).
func (w *walker) fingerprint(s *scope, key string, n *yaml.Node) (Fingerprint, bool) {
	f := Fingerprint{Position: s.at(n)}
	before := len(w.problems)
	w.fields(s, key, n, func(name string, k, v *yaml.Node) {
		switch name {
		case "path", "cmdline":
			w.setOnce(s, key, &f, name, k)
			if v.Kind == yaml.MappingNode {
				w.fields(s, join(key, name), v, func(op string, k, v *yaml.Node) { w.operation(s, join(key, name), &f, op, k, v) })
			} else {
				w.equals(s, join(key, name), &f, v)
			}
		case "env", "tag":
			w.setOnce(s, key, &f, name, k)
			f.Name = w.fingerprintText(s, join(key, name), v)
		default:
			w.operation(s, key, &f, name, k, v)
		}
	})
	if len(w.problems) > before {
		return f, false
	}
	switch {
	case f.Type == "":
		w.problem(f.Position, s.name(key), "want path, cmdline, env or tag", "")
	case f.Op == "":
		w.problem(f.Position, s.name(key), "want equals, prefix or regex with a value", "")
	case f.Type == "tag":
		w.checkTag(s, key, f)
	case f.Type == "path" && f.Op != "regex" && !strings.HasPrefix(f.Value, "/") && !strings.Contains(f.Value, `:\`):
		w.problem(f.Position, s.name(key), fmt.Sprintf("want an absolute path, got %q", f.Value), "")
	}
	return f, len(w.problems) == before
}

func (w *walker) setOnce(s *scope, key string, f *Fingerprint, name string, k *yaml.Node) {
	if f.Type != "" {
		w.problem(s.at(k), s.name(key), fmt.Sprintf("has %s and %s; want one of them: each item of match stands alone", f.Type, name), "")
	}
	f.Type = name
}

// equals is the short form {path: VALUE}. A second type in the same item was refused already.
func (w *walker) equals(s *scope, key string, f *Fingerprint, v *yaml.Node) {
	if f.Op == "" {
		f.Op, f.Value = "equals", w.fingerprintText(s, key, v)
	}
}

func (w *walker) operation(s *scope, key string, f *Fingerprint, op string, k, v *yaml.Node) {
	ops := []string{"equals", "prefix", "regex"}
	if !slices.Contains(ops, op) {
		w.problem(s.at(k), s.name(join(key, op)), "unknown key", nearest(op, append(ops, "path", "cmdline", "env", "tag")))
		return
	}
	if f.Op != "" {
		hint := ""
		if f.Type == "path" || f.Type == "cmdline" {
			hint = fmt.Sprintf("{%s: {%s: %s}}", f.Type, op, v.Value)
		}
		w.problem(s.at(k), s.name(key), fmt.Sprintf("has %s and %s; want one of them", f.Op, op), hint)
		return
	}
	f.Op, f.Value = op, w.fingerprintText(s, join(key, op), v)
	if op == "regex" {
		if _, err := regexp.Compile(f.Value); err != nil {
			w.problem(s.at(v), s.name(join(key, op)), "not a regular expression: "+strings.TrimPrefix(err.Error(), "error parsing regexp: "), "")
		}
	}
}

func (w *walker) fingerprintText(s *scope, key string, v *yaml.Node) string {
	if v.Kind != yaml.ScalarNode || v.Tag != "!!str" || v.Value == "" {
		w.problem(s.at(v), s.name(key), "want text in quotes, got "+describe(v.Value, v.Tag), "")
		return ""
	}
	return v.Value
}

func (w *walker) checkTag(s *scope, key string, f Fingerprint) {
	switch {
	case slices.Contains(missingTags, f.Name):
		w.problem(f.Position, s.name(key), fmt.Sprintf("tag %s is not available in this version", f.Name), "")
	case !slices.Contains(tagNames, f.Name):
		w.problem(f.Position, s.name(key), fmt.Sprintf("unknown tag %q; want %s", f.Name, oneOf(tagNames)), nearest(f.Name, tagNames))
	case f.Name == "special" && (f.Op != "equals" || !slices.Contains(SpecialProfiles(), f.Value)):
		w.problem(f.Position, s.name(key), "want equals: "+oneOf(SpecialProfiles()), nearest(f.Value, SpecialProfiles()))
	}
}
