package config

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// ExportProfiles writes profiles in the one format that files have as well, sorted by name; all
// of them where no name is given. The same profiles always give the same bytes, also after they
// were imported elsewhere. An unknown name is a Problem with ErrUnknown.
func (c *Config) ExportProfiles(names ...string) ([]byte, error) {
	var list []*ProfileSpec
	var problems Problems
	if len(names) == 0 {
		for i := range c.profiles {
			list = append(list, &c.profiles[i])
		}
	}
	for _, name := range names {
		i, ok := c.byName[name]
		if !ok {
			known := make([]string, 0, len(c.byName))
			for name := range c.byName {
				known = append(known, name)
			}
			slices.Sort(known)
			problems = append(problems, Problem{Key: "profiles[" + name + "]", Message: "there is no profile of that name", Suggestion: nearest(name, known), Cause: ErrUnknown})
			continue
		}
		list = append(list, &c.profiles[i])
	}
	if len(problems) > 0 {
		return nil, problems
	}
	slices.SortFunc(list, func(a, b *ProfileSpec) int { return strings.Compare(a.Name, b.Name) })
	return renderProfiles(slices.Compact(list), exported), nil
}

// ParseProfiles reads what ExportProfiles wrote, or a person in that format. The error is
// Problems. Rules, and layers that are elsewhere, are checked by Load with an Edit.
func ParseProfiles(file string, data []byte) ([]ProfileSpec, error) {
	w := newWalker()
	w.keepLines(file, data)
	root, p := decode(file, data)
	if p != nil {
		w.problem(p.Position, p.Key, p.Message, "")
		return nil, w.problems
	}
	w.migrate(root)
	list := w.profileDocument(&scope{file: file, kind: FromFile}, root)
	seen := map[string]Position{}
	for i := range list {
		list[i].lines = w.lines[file]
		if at, twice := seen[list[i].Name]; twice && list[i].Name != "" {
			w.problem(list[i].Position, "profiles["+list[i].Name+"]", fmt.Sprintf("there is already a profile of that name in line %d", at.Line), "")
		}
		seen[list[i].Name] = list[i].Position
	}
	if len(w.problems) > 0 {
		return nil, w.problems.Sort()
	}
	return list, nil
}

// style says what a written profile has beside what it does.
type style uint8

const (
	exported   style = iota // the origin only where it is not the usual one of an import
	withOrigin              // as the Data keeps it
)

// endMark ends a document. YAML that was cut off between two lines is YAML still: without this
// line a file of the Data is not used.
const endMark = "...\n"

func renderProfiles(list []*ProfileSpec, st style) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "version: %d\nprofiles:", fileVersion)
	if len(list) == 0 {
		b.WriteString(" []")
	}
	b.WriteByte('\n')
	table := Table()
	for _, p := range list {
		renderProfile(&b, p, st)
		renderValues(&b, table, p.values)
	}
	b.WriteString(endMark)
	return []byte(b.String())
}

func renderProfile(b *strings.Builder, p *ProfileSpec, st style) {
	fmt.Fprintf(b, "  - name: %s\n", word(p.Name))
	switch {
	case p.Origin == Automatic:
		b.WriteString("    origin: automatic\n")
	case st == withOrigin:
		b.WriteString("    origin: runtime\n")
	}
	if !p.Created.IsZero() {
		fmt.Fprintf(b, "    created: %s\n", quote(p.Created.UTC().Format(time.RFC3339Nano)))
	}
	if len(p.Facts) > 0 {
		b.WriteString("    facts:\n")
		for _, name := range sortedKeys(p.Facts) {
			fmt.Fprintf(b, "      %s: %s\n", word(name), word(p.Facts[name]))
		}
	}
	if p.Match != nil {
		b.WriteString("    match:\n")
		for _, f := range p.Match {
			fmt.Fprintf(b, "      - %s\n", f.flow())
		}
	}
	if len(p.Layers) > 0 {
		words := make([]string, len(p.Layers))
		for i, name := range p.Layers {
			words[i] = word(name)
		}
		fmt.Fprintf(b, "    layers: [%s]\n", strings.Join(words, ", "))
	}
	if p.When != nil {
		fmt.Fprintf(b, "    when: %s\n", p.When.flow())
	}
}

// flow writes a fingerprint in its shortest form.
func (f *Fingerprint) flow() string {
	switch {
	case f.Type == "env" || f.Type == "tag":
		return fmt.Sprintf("{%s: %s, %s: %s}", f.Type, word(f.Name), f.Op, word(f.Value))
	case f.Op == "equals":
		return fmt.Sprintf("{%s: %s}", f.Type, word(f.Value))
	default:
		return fmt.Sprintf("{%s: {%s: %s}}", f.Type, f.Op, word(f.Value))
	}
}

// renderValues writes what a profile sets, in the order of the table.
func renderValues(b *strings.Builder, table []Setting, values map[string]Value) {
	last := ""
	for i := range table {
		v, ok := values[table[i].Key]
		if !ok {
			continue
		}
		section, name, _ := strings.Cut(table[i].Key, "/")
		if section != last {
			fmt.Fprintf(b, "    %s:\n", section)
			last = section
		}
		items, isList := v.v.([]RuleText)
		switch text, isText := v.v.(string); {
		case isList && len(items) == 0:
			fmt.Fprintf(b, "      %s: []\n", name)
		case isList:
			fmt.Fprintf(b, "      %s:\n", name)
			for _, item := range items {
				fmt.Fprintf(b, "        - %s\n", quote(item.Text))
			}
		case isText:
			fmt.Fprintf(b, "      %s: %s\n", name, word(text))
		default:
			fmt.Fprintf(b, "      %s: %s\n", name, FormatValue(v.v))
		}
	}
}
