package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// editor tries the operations of an Edit on documents.
type editor struct {
	m    *merger
	data *Data
	docs []*document
}

// refuse reports what a change asks for and cannot have.
func (e *editor) refuse(key, message, suggestion string, cause error) {
	e.m.w.problems = append(e.m.w.problems, Problem{Key: key, Message: message, Suggestion: suggestion, Cause: cause})
}

// pinned refuses a change of what is set at a place that only a person changes.
func (e *editor) pinned(key string, o Origin) {
	at, where := o.Position, o.String()
	switch o.Kind {
	case FromEnv:
		at, where = Position{File: o.Name}, "the "+where
	case FromFlag:
		at, where = Position{File: "flag " + o.Name}, "the "+where
	}
	e.m.w.problems = append(e.m.w.problems, Problem{Position: at, Key: key, Excerpt: lineOf(e.m.w.lines, at),
		Message: fmt.Sprintf("is set in %s; change it there", where), Cause: ErrPinned})
}

func (e *editor) do(op *operation) {
	switch {
	case op.kind == opPut:
		e.putProfile(op)
	case op.kind == opDelete:
		e.deleteProfile(op)
	case op.profile != "":
		e.inProfile(op)
	default:
		e.global(op)
	}
}

// setting returns what the table says of the key, nil if it is refused.
func (e *editor) setting(op *operation, prefix string) *Setting {
	set := e.m.w.table[op.key]
	switch {
	case set == nil:
		e.refuse(join(prefix, op.key), "unknown setting", nearest(op.key, slices.Collect(maps.Keys(e.m.w.table))), ErrUnknown)
		return nil
	case op.kind == opPrepend && set.Type != TypeRules:
		e.refuse(join(prefix, op.key), "is no list of rules", "", nil)
		return nil
	}
	if message := set.refusal(prefix != ""); message != "" && op.kind != opUnset {
		e.refuse(join(prefix, op.key), message, "", nil)
		return nil
	}
	return set
}

// value reads what an operation sets; list is what it prepends to.
func (e *editor) value(op *operation, set *Setting, prefix string, list []RuleText) (Value, bool) {
	s := &scope{fixed: &Position{}, prefix: prefix}
	warnings := len(e.m.w.warnings)
	defer func() { e.m.w.warnings = e.m.w.warnings[:warnings] }() // they come again, with a place
	if op.kind == opPrepend {
		rule, _ := op.value.(string)
		if len(list) > 0 && list[0].Text == rule {
			return Value{v: list}, true
		}
		ok := e.m.w.item(set, s.name(set.Key)+"[0]", RuleText{Text: rule})
		return Value{v: slices.Concat([]RuleText{{Text: rule}}, list)}, ok
	}
	if text, ok := op.value.(string); ok {
		if !utf8.ValidString(text) {
			e.refuse(s.name(set.Key), "want UTF-8 text", "", nil)
			return Value{}, false
		}
		return e.m.text(s, set, text)
	}
	return e.m.node(s, set, nodeOf(op.value))
}

// global changes config.json.
func (e *editor) global(op *operation) {
	doc := e.find(func(doc *document) bool { return doc.path == e.data.path(runtimeFile) })
	var section, stored *yaml.Node
	if doc != nil {
		if doc.broken != nil {
			return // that is reported anyway
		}
		name, key, _ := strings.Cut(op.key, "/")
		section = child(doc.root, name)
		stored = child(section, key)
	}
	if op.kind == opUnset && stored != nil { // also what should not be there
		e.store(doc, op.key, nil)
		return
	}
	set := e.setting(op, "")
	if set == nil {
		return
	}
	if o := e.m.v.Get(set.Key).(Value).Origin; o.Kind > FromRuntime {
		e.pinned(set.Key, o)
		return
	}
	if op.kind == opUnset {
		return
	}
	var list []RuleText
	if stored != nil && op.kind == opPrepend {
		w := e.m.w.silent()
		list, _ = w.list(&scope{file: doc.path}, set, stored)
	}
	if v, ok := e.value(op, set, "", list); ok {
		if doc == nil {
			doc = &document{path: e.data.path(runtimeFile), root: &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}}
			setChild(doc.root, "version", nodeOf(fileVersion))
			e.docs = append(e.docs, doc)
		}
		e.store(doc, set.Key, nodeOf(plain(v.v)))
	}
}

// find returns the first document that is not removed.
func (e *editor) find(f func(*document) bool) *document {
	i := slices.IndexFunc(e.docs, func(doc *document) bool { return !doc.removed && f(doc) })
	if i < 0 {
		return nil
	}
	return e.docs[i]
}

// store puts a value into the tree of config.json, or with nil takes it out.
func (e *editor) store(doc *document, key string, value *yaml.Node) {
	if doc.root.Kind != yaml.MappingNode {
		return // that is reported anyway
	}
	sectionName, name, _ := strings.Cut(key, "/")
	section := child(doc.root, sectionName)
	if section == nil || section.Kind != yaml.MappingNode {
		if value == nil {
			return
		}
		section = &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
		setChild(doc.root, sectionName, section)
	}
	setChild(section, name, value)
	if len(section.Content) == 0 {
		setChild(doc.root, sectionName, nil)
	}
	doc.touched = true
}

// setChild sets, or with nil removes, a key of a mapping.
func setChild(n *yaml.Node, key string, value *yaml.Node) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value != key {
			continue
		}
		if value == nil {
			n.Content = slices.Delete(n.Content, i, i+2)
		} else {
			n.Content[i+1] = value
		}
		return
	}
	if value != nil {
		n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: key}, value)
	}
}

// finish writes the changed trees, and those of an older version, as texts, whose positions then
// count.
func (e *editor) finish() {
	for _, doc := range e.docs {
		isRuntime := doc.path == e.data.path(runtimeFile)
		if doc.old && !isRuntime && doc.spec == nil && !doc.removed {
			doc.spec = e.spec(doc)
		}
		switch {
		case doc.removed:
			continue
		case isRuntime && (doc.touched || doc.old):
			doc.put(renderRuntime(doc.root))
		case doc.spec != nil:
			doc.put(renderProfiles([]*ProfileSpec{doc.spec}, withOrigin))
		default:
			continue
		}
		e.m.w.keepLines(doc.path, doc.after)
	}
}
