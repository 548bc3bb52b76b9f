package config

import (
	"fmt"
	"slices"

	"go.yaml.in/yaml/v3"
)

// Nearest returns the candidate that is most like word, or "" if none is near: what the
// messages of other packages suggest.
func Nearest(word string, candidates []string) string { return nearest(word, candidates) }

// Items is a file that holds one list of flat mappings, such as the cases of `check --cases`.
type Items struct {
	List  []Item
	lines map[string][]string
}

// Item is one mapping. Values holds the text of each key that is set, with its place.
type Item struct {
	Position
	Values map[string]RuleText
}

// Problem makes a Problem at a place of the file, with the excerpt filled in.
func (i *Items) Problem(p Position, key, message, suggestion string) Problem {
	return Problem{Position: p, Key: key, Message: message, Suggestion: suggestion, Excerpt: lineOf(i.lines, p)}
}

// ParseItems reads a file with the key list at its top, as strictly as a configuration: each
// item is a mapping of these keys to text or numbers. The error is Problems.
func ParseItems(file string, data []byte, list string, keys []string) (*Items, error) {
	w := newWalker()
	w.keepLines(file, data)
	items := &Items{lines: w.lines}
	s := &scope{file: file}
	start := Position{File: file, Line: 1, Col: 1}
	switch root, p := decode(file, data); {
	case p != nil:
		w.problem(p.Position, p.Key, p.Message, "")
	case root == nil:
		w.problem(start, "", fmt.Sprintf("the file is empty; want %s: and a list", list), "")
	case root.Kind != yaml.MappingNode:
		w.problem(s.at(root), "", fmt.Sprintf("want %s: and a list, got %s", list, describe(root.Value, root.Tag)), "")
	default:
		found := false
		w.fields(s, "", root, func(name string, key, value *yaml.Node) {
			if name != list {
				w.problem(s.at(key), name, "unknown key", nearest(name, []string{list}))
				return
			}
			found = true
			items.List = w.items(s, list, keys, value)
		})
		if !found && len(w.problems) == 0 {
			w.problem(start, list, "missing; want a list", "")
		}
	}
	if len(w.problems) > 0 {
		return nil, w.problems.Sort()
	}
	return items, nil
}

func (w *walker) items(s *scope, list string, keys []string, n *yaml.Node) []Item {
	if n.Kind != yaml.SequenceNode || len(n.Content) == 0 {
		w.problem(s.at(n), list, "want a list that is not empty, got "+describe(n.Value, n.Tag), "")
		return nil
	}
	var found []Item
	for i, node := range n.Content {
		node = resolve(node)
		name := fmt.Sprintf("%s[%d]", list, i)
		if node.Kind != yaml.MappingNode {
			w.problem(s.at(node), name, "want keys such as "+oneOf(keys)+", got "+describe(node.Value, node.Tag), "")
			continue
		}
		item := Item{Position: s.at(node), Values: map[string]RuleText{}}
		w.fields(s, name, node, func(key string, k, v *yaml.Node) {
			switch {
			case !slices.Contains(keys, key):
				w.problem(s.at(k), join(name, key), "unknown key", nearest(key, keys))
			case v.Kind != yaml.ScalarNode || v.Tag != "!!str" && v.Tag != "!!int" || v.Value == "":
				w.problem(s.at(v), join(name, key), "want text, got "+describe(v.Value, v.Tag), "")
			default:
				item.Values[key] = RuleText{Text: v.Value, Position: textStart(s, v)}
			}
		})
		found = append(found, item)
	}
	return found
}
