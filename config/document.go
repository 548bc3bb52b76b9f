package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/spf13/viper"
	"go.yaml.in/yaml/v3"
)

// decode reads one file by its extension. A problem of a decoder has the line it names.
func decode(file string, data []byte) (*yaml.Node, *Problem) {
	if !utf8.Valid(data) {
		return nil, &Problem{Position: Position{File: file, Line: 1 + bytes.Count(data[:invalidAt(data)], []byte("\n"))},
			Message: "not UTF-8 text: the file is damaged, or has another encoding"}
	}
	switch filepath.Ext(file) {
	case ".toml":
		return decodeTOML(file, data)
	case ".json":
		if p := checkJSON(file, data); p != nil {
			return nil, p
		}
		return decodeYAML(file, yamlOfJSON(data))
	default:
		return decodeYAML(file, data)
	}
}

func invalidAt(data []byte) int {
	for i := 0; i < len(data); {
		r, n := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return len(data)
}

func checkJSON(file string, data []byte) *Problem {
	var any any
	err := json.Unmarshal(data, &any)
	if err == nil {
		return nil
	}
	p := &Problem{Position: Position{File: file, Line: 1}, Message: "JSON: " + err.Error()}
	var at *json.SyntaxError
	if errors.As(err, &at) {
		before := data[:min(int(at.Offset), len(data))]
		p.Line = 1 + bytes.Count(before, []byte("\n"))
		p.Col = max(1, utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:]))
	}
	return p
}

// yamlOfJSON makes YAML of JSON: that is the same but for tabs between tokens, of which there are
// none inside of strings, and the escapes \/ and \ud83d\ude00, which the YAML decoder refuses.
func yamlOfJSON(data []byte) []byte {
	out := make([]byte, 0, len(data))
	for i := 0; i < len(data); i++ {
		switch {
		case data[i] == '\t':
			out = append(out, ' ')
		case data[i] != '\\' || i+1 == len(data):
			out = append(out, data[i])
		case data[i+1] == '/':
			i++
			out = append(out, '/')
		case data[i+1] == 'u':
			r, n := escapedRune(data[i:])
			out = fmt.Appendf(out, `\U%08x`, r)
			i += n - 1
		default:
			out = append(out, data[i], data[i+1])
			i++
		}
	}
	return out
}

// escapedRune reads \uXXXX, or two of them that stand for one character, and returns the length
// of what it read. Half a pair is U+FFFD, as for encoding/json.
func escapedRune(data []byte) (r rune, n int) {
	half := func(at int) rune {
		if len(data) < at+6 || data[at] != '\\' || data[at+1] != 'u' {
			return utf8.RuneError
		}
		v, err := strconv.ParseUint(string(data[at+2:at+6]), 16, 32)
		if err != nil {
			return utf8.RuneError
		}
		return rune(v)
	}
	first := half(0)
	if !utf16.IsSurrogate(first) {
		return first, 6
	}
	if r := utf16.DecodeRune(first, half(6)); r != utf8.RuneError {
		return r, 12
	}
	return utf8.RuneError, 6
}

func decodeYAML(file string, data []byte) (*yaml.Node, *Problem) {
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	switch err := decoder.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, nil
	case err != nil:
		return nil, yamlProblem(file, data, err)
	}
	var next yaml.Node
	switch err := decoder.Decode(&next); {
	case err == nil:
		return nil, &Problem{Position: Position{File: file, Line: next.Line, Col: next.Column}, Message: "a second YAML document begins here; want one document in a file"}
	case !errors.Is(err, io.EOF):
		return nil, yamlProblem(file, data, err)
	}
	if len(doc.Content) == 0 {
		return nil, nil
	}
	return doc.Content[0], nil
}

// yamlProblem takes the line out of the decoder's message: "yaml: line 3: did not find …". The
// lines of its scanner count from 1. Those of its parser ("did not find expected …") count
// from 0 and are often that where the broken block begins.
func yamlProblem(file string, data []byte, err error) *Problem {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	p := &Problem{Position: Position{File: file, Line: 1}, Message: "YAML: " + text}
	if m := regexp.MustCompile(`^line (\d+): (?s:(.*))$`).FindStringSubmatch(text); m != nil {
		p.Line, _ = strconv.Atoi(m[1])
		p.Message = "YAML: " + m[2]
		text = m[2]
	}
	if strings.HasPrefix(text, "did not find expected") {
		p.Message += "; look here and further down in this block"
		p.Line = min(p.Line+1, 1+bytes.Count(data, []byte("\n")))
	}
	if name, ok := strings.CutPrefix(text, "unknown anchor '"); ok {
		name, _, _ = strings.Cut(name, "'")
		if i := bytes.Index(data, []byte("*"+name)); i >= 0 {
			p.Line = 1 + bytes.Count(data[:i], []byte("\n"))
		}
	}
	return p
}

// decodeTOML lets viper read the file and builds the tree from its map. viper lower-cases
// keys, so known ones get their own spelling back, and positions are those of the line where
// the key is found.
func decodeTOML(file string, data []byte) (*yaml.Node, *Problem) {
	// No key contains NUL, so that a quoted key is never taken for a path.
	v := viper.NewWithOptions(viper.KeyDelimiter("\x00"))
	v.SetConfigType("toml")
	if err := v.ReadConfig(bytes.NewReader(data)); err != nil {
		p := &Problem{Position: Position{File: file, Line: 1}, Message: "TOML: " + errors.Unwrap(err).Error()}
		var at interface{ Position() (row, column int) }
		if errors.As(err, &at) {
			p.Line, p.Col = at.Position()
		}
		return nil, p
	}
	t := tomlTree{lines: tomlLines(data), names: map[string]string{}}
	for _, s := range Table() {
		for name := range strings.SplitSeq(s.Key, "/") {
			t.names[strings.ToLower(name)] = name
		}
	}
	for _, name := range conditionKeys() {
		t.names[strings.ToLower(name)] = name
	}
	settings := v.AllSettings()
	if len(settings) == 0 {
		return nil, nil
	}
	return t.node("", settings), nil
}

type tomlTree struct {
	lines map[string]int    // lower-case path -> line
	names map[string]string // lower-case -> as the table spells it
}

func (t *tomlTree) node(path string, v any) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Line: max(1, t.lines[path]), Column: 1}
	switch v := v.(type) {
	case map[string]any:
		n.Kind, n.Tag = yaml.MappingNode, "!!map"
		for _, name := range sortedKeys(v) {
			child := t.node(strings.TrimPrefix(path+"/"+name, "/"), v[name])
			spelled := name
			if known, ok := t.names[name]; ok {
				spelled = known
			}
			n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: spelled, Line: child.Line, Column: 1}, child)
		}
	case []any:
		n.Kind, n.Tag = yaml.SequenceNode, "!!seq"
		for i, item := range v {
			n.Content = append(n.Content, t.node(fmt.Sprintf("%s[%d]", path, i), item))
			if t.lines[fmt.Sprintf("%s[%d]", path, i)] == 0 {
				n.Content[i].Line = n.Line
			}
		}
	case string:
		n.Tag, n.Value = "!!str", v
	case bool:
		n.Tag, n.Value = "!!bool", strconv.FormatBool(v)
	case int64:
		n.Tag, n.Value = "!!int", strconv.FormatInt(v, 10)
	case nil:
		n.Tag = "!!null"
	case time.Time:
		n.Tag, n.Value = "!!timestamp", v.String()
	default:
		n.Tag, n.Value = "!!float", fmt.Sprint(v)
	}
	return n
}

func sortedKeys[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// tomlLines finds the line of every key that stands at the beginning of a line.
func tomlLines(data []byte) map[string]int {
	lines, section, tables := map[string]int{}, "", map[string]int{}
	header := regexp.MustCompile(`^\s*(\[\[?)\s*([\w."'-]+)\s*\]`)
	key := regexp.MustCompile(`^\s*([\w."'-]+)\s*=`)
	path := strings.NewReplacer(".", "/", `"`, "", "'", "")
	for i, line := range strings.Split(string(data), "\n") {
		if m := header.FindStringSubmatch(line); m != nil {
			section = strings.ToLower(path.Replace(m[2]))
			if m[1] == "[[" {
				tables[section]++
				lines[section] = max(lines[section], 1)
				section = fmt.Sprintf("%s[%d]", section, tables[section]-1)
			}
			lines[section] = i + 1
		} else if m := key.FindStringSubmatch(line); m != nil {
			lines[strings.TrimPrefix(section+"/"+strings.ToLower(path.Replace(m[1])), "/")] = i + 1
		}
	}
	return lines
}
