package config

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"
)

// inProfile changes what a profile sets.
func (e *editor) inProfile(op *operation) {
	doc := e.editable(op.profile)
	if doc == nil {
		return
	}
	spec := e.spec(doc)
	if spec == nil {
		return // what is wrong with it is reported anyway
	}
	old, has := spec.values[op.key]
	if op.kind == opUnset && has {
		delete(spec.values, op.key)
		e.keep(doc, spec)
		return
	}
	prefix := "profiles[" + op.profile + "]"
	set := e.setting(op, prefix)
	if set == nil || op.kind == opUnset {
		return
	}
	v, ok := e.value(op, set, prefix, old.Rules())
	if ok && (!has || !reflect.DeepEqual(plain(v.v), plain(old.v))) {
		spec.values[set.Key] = v
		e.keep(doc, spec)
	}
}

// keep takes over a changed profile. Whoever changes a profile has made it his.
func (e *editor) keep(doc *document, spec *ProfileSpec) {
	spec.Origin = Runtime
	doc.spec = spec
}

// editable returns the file of a profile that may be changed, nil if it is refused.
func (e *editor) editable(name string) *document {
	if p := e.m.profile(name); p != nil { // only those of the human's file are there yet
		e.pinned("profiles["+name+"]", Origin{Kind: FromFile, Position: p.Position})
		return nil
	}
	if doc := e.byName(name); doc != nil {
		return doc
	}
	e.noProfile(name)
	return nil
}

func (e *editor) noProfile(name string) {
	var names []string
	for _, doc := range e.docs {
		if doc.name != "" && !doc.removed {
			names = append(names, doc.name)
		}
	}
	e.refuse("profiles["+name+"]", "there is no profile of that name", nearest(name, names), ErrUnknown)
}

func (e *editor) byName(name string) *document {
	return e.find(func(doc *document) bool { return doc.name == name && doc.path != e.data.path(runtimeFile) })
}

func (e *editor) byPath(path string) *document {
	return e.find(func(doc *document) bool { return doc.path == path })
}

// spec returns a copy of the profile of a file, nil if something is wrong with it.
func (e *editor) spec(doc *document) *ProfileSpec {
	if doc.spec != nil {
		return doc.spec
	}
	w := e.m.w.silent()
	list := w.profileFile(doc)
	if doc.broken != nil || len(w.problems) > 0 || len(list) != 1 {
		return nil
	}
	list[0].values = maps.Clone(list[0].values) // Data remembers the profile
	return &list[0]
}

func (e *editor) deleteProfile(op *operation) {
	doc := e.byName(op.profile)
	if doc == nil { // what cannot be read any more is found by the name of its file
		if doc = e.byPath(e.data.profilePath(op.profile)); doc != nil && doc.name != "" {
			doc = nil
		}
	}
	switch {
	case doc != nil:
		doc.removed = true
	case e.m.profile(op.profile) != nil:
		e.editable(op.profile)
	default:
		e.noProfile(op.profile)
	}
}

func (e *editor) putProfile(op *operation) {
	p := op.spec
	if other := e.m.profile(p.Name); other != nil {
		e.pinned("profiles["+p.Name+"]", Origin{Kind: FromFile, Position: other.Position})
		return
	}
	if p.Origin != Automatic {
		p.Origin = Runtime
	}
	p.Match, p.values, p.Facts = slices.Clone(p.Match), maps.Clone(p.values), validFacts(p.Facts)
	if !e.valid(&p) {
		return
	}
	doc := e.byName(p.Name)
	for i := 1; doc == nil; i++ {
		path := e.data.profilePath(p.Name)
		if i > 1 {
			path = fmt.Sprintf("%s-%d.yaml", strings.TrimSuffix(path, ".yaml"), i)
		}
		switch found := e.byPath(path); {
		case found == nil:
			doc = e.fresh(path)
		case found.name == "": // what cannot be read any more
			doc = found
		}
	}
	doc.name, doc.spec = p.Name, &p
}

// fresh returns the document of a file that is not there, or that an operation before removed.
func (e *editor) fresh(path string) *document {
	for _, doc := range e.docs {
		if doc.path == path {
			doc.removed = false
			return doc
		}
	}
	doc := &document{path: path}
	e.docs = append(e.docs, doc)
	return doc
}

// validFacts replaces what is not UTF-8: file names and arguments may be any bytes.
func validFacts(facts map[string]string) map[string]string {
	valid := make(map[string]string, len(facts))
	for name, text := range facts {
		valid[name] = strings.ToValidUTF8(text, "\uFFFD")
	}
	return valid
}

// valid reports whether a profile says what a file may say. Its problems have the place where
// the profile came from.
func (e *editor) valid(p *ProfileSpec) bool {
	before := len(e.m.w.problems)
	refuse := func(at Position, key, message, suggestion string) {
		if e.m.w.lines[at.File] == nil && p.lines != nil {
			e.m.w.lines[at.File] = p.lines
		}
		e.m.w.problem(at, "profiles["+p.Name+"]"+key, message, suggestion)
	}
	for i, f := range p.Match {
		if !utf8.ValidString(f.Name + f.Value) {
			refuse(f.Position, fmt.Sprintf("/match[%d]", i), fmt.Sprintf("%q is not UTF-8: files cannot say it", f.Value), "")
			return false
		}
	}
	w := e.m.w.silent()
	w.lines = map[string][]string{}
	for file, lines := range map[string][]string{p.File: p.lines} {
		w.lines[file] = lines
	}
	for _, key := range sortedKeys(p.values) {
		for i, text := range p.values[key].Rules() {
			w.item(w.table[key], fmt.Sprintf("/%s[%d]", key, i), text)
		}
	}
	if len(w.problems) == 0 {
		doc := &document{}
		doc.put(renderProfiles([]*ProfileSpec{p}, withOrigin))
		w.profileFile(doc)
		for i := range w.problems { // the places in a text that nobody has seen
			_, key, _ := strings.Cut(w.problems[i].Key, "]")
			w.problems[i].Position, w.problems[i].Key = p.Position, key
		}
	}
	for _, problem := range w.problems {
		refuse(problem.Position, problem.Key, problem.Message, problem.Suggestion)
	}
	return len(e.m.w.problems) == before
}
