package config

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/viper"
	"go.yaml.in/yaml/v3"
)

const fileVersion = 1

// Source says where the configuration is.
type Source struct {
	File     string            // the human's file; "" for none
	Optional bool              // File may be absent: then the defaults hold
	Dir      bool              // the files conf.d/*.yaml beside File are merged over it, in lexical order
	Env      []string          // NAME=value, as os.Environ returns it
	Flags    map[string]string // key of the setting -> text
	Data     *Data             // what was changed at run time; nil: nothing
	Edit     *Edit             // changes of Data that are tried; nil: none

	// CheckRule, which may be nil, checks the rules of the lists, so that all problems come at
	// once. It returns the character from 1 at which a rule is wrong, 0 if it is not.
	CheckRule func(text string) (col int, message, suggestion string)
}

// Paths returns what has to be watched for changes: the file and the conf.d directory, also
// while they do not exist.
func (s Source) Paths() []string {
	if s.File == "" {
		return nil
	}
	if s.Dir {
		return []string{s.File, s.dropIns()}
	}
	return []string{s.File}
}

func (s Source) dropIns() string { return filepath.Join(filepath.Dir(s.File), "conf.d") }

// Load reads, checks and merges everything. The error is Problems with all that is wrong;
// then there is no Config: a half-valid one is never returned.
//
// A later file replaces scalars and lists of texts and appends to the list of profiles.
// The environment wins over files, flags over everything.
func Load(src Source) (*Config, error) {
	w := newWalker()
	w.checkRule = src.CheckRule
	var files []file
	if src.File != "" {
		files = w.readFiles(src)
	}
	m := newMerger(w)
	for _, f := range files {
		m.file(f)
	}
	m.environment(src.Env)
	m.flags(src.Flags)
	c := m.config(files)
	if len(w.problems) > 0 {
		return nil, w.problems.Sort()
	}
	c.fingerprint()
	return c, nil
}

// merger puts the layers into a viper of its own, with Values as leaves, so that the origin
// travels with the value. viper ranks them: Set over MergeConfigMap over SetDefault.
type merger struct {
	w        *walker
	v        *viper.Viper
	profiles []ProfileSpec
	preset   Value // zero: none chosen
}

func newMerger(w *walker) *merger {
	m := &merger{w: w, v: viper.NewWithOptions(viper.KeyDelimiter("/"))}
	for _, s := range Table() {
		m.v.SetDefault(s.Key, Value{v: defaultOf(&s)})
	}
	return m
}

func defaultOf(s *Setting) any {
	if s.Default == nil && s.Type != TypeObjects {
		return []RuleText{}
	}
	return s.Default
}

// file checks one file and merges it.
func (m *merger) file(f file) {
	w := m.w
	s := &scope{file: f.path, keys: []string{"version", "preset", "profiles"}, values: map[string]Value{}}
	root, p := decode(f.path, f.data)
	if p != nil {
		w.problem(p.Position, p.Key, p.Message, "")
		return
	}
	start := Position{File: f.path, Line: 1, Col: 1}
	hasVersion := false
	switch {
	case root == nil: // empty, or comments only
	case root.Kind != yaml.MappingNode:
		w.problem(s.at(root), "", "want keys such as version and filter, got "+describe(root.Value, root.Tag), "")
		return
	default:
		m.root(s, root, &hasVersion)
	}
	if !hasVersion && !f.dropIn {
		// Also what tells a file that was cut off at its start from one that sets nothing.
		w.problem(start, "version", "missing; want version: 1 at the top of the file", "")
	}
	m.merge(s.values)
}

func (m *merger) root(s *scope, root *yaml.Node, hasVersion *bool) {
	m.w.fields(s, "", root, func(name string, key, value *yaml.Node) {
		switch {
		case name == "version":
			*hasVersion = true
			m.version(s, value)
		case name == "preset":
			m.setPreset(value.Value, value.Tag, Value{Origin: Origin{Kind: FromFile, Position: s.at(key)}}, s.at(value))
		case name == "profiles":
			m.addProfiles(m.w.profileList(s.file, value))
		case m.w.children[name] != nil:
			m.w.subsection(s, name, key, value)
		default:
			m.w.unknown(s, "", key)
		}
	})
}

func (m *merger) version(s *scope, n *yaml.Node) {
	number, err := strconv.Atoi(n.Value)
	switch {
	case n.Tag != "!!int" || err != nil || number < 1:
		m.w.problem(s.at(n), "version", "want 1, got "+describe(n.Value, n.Tag), "")
	case number > fileVersion:
		m.w.problem(s.at(n), "version", fmt.Sprintf("version %d is newer than this program, which knows %d: update gatun", number, fileVersion), "")
	}
}

func (m *merger) setPreset(name, tag string, v Value, at Position) {
	_, missing, known := preset(name)
	switch {
	case !known:
		m.w.problem(at, "preset", fmt.Sprintf("want %s, got %s", oneOf(presets()), describe(name, tag)), nearest(name, presets()))
	case missing != "":
		m.w.problem(at, "preset", fmt.Sprintf("%q is not available in this version: it needs %s", name, missing), "")
	default:
		v.v = name
		m.preset = v
	}
}

func (m *merger) addProfiles(list []ProfileSpec) {
	for _, p := range list {
		i := slices.IndexFunc(m.profiles, func(o ProfileSpec) bool { return p.Name != "" && o.Name == p.Name })
		if i >= 0 {
			at := m.profiles[i].Position
			m.w.problem(p.Position, fmt.Sprintf("profiles[%s]", p.Name), fmt.Sprintf("there is already a profile of that name at %s:%d", at.File, at.Line), "")
			continue
		}
		m.profiles = append(m.profiles, p)
	}
}

// merge puts values over those of the files before. A list that replaces another one is
// worth a warning: rules disappear.
func (m *merger) merge(values map[string]Value) {
	for key, v := range values {
		old := m.v.Get(key).(Value)
		if list := old.Rules(); len(list) > 0 && v.Origin.Kind == FromFile {
			m.w.warn(v.Origin.Position, key, "replaces the list of "+old.Origin.String())
		}
		section, name, _ := strings.Cut(key, "/")
		if err := m.v.MergeConfigMap(map[string]any{section: map[string]any{name: v}}); err != nil {
			m.w.problem(v.Origin.Position, key, err.Error(), "")
		}
	}
}

// environment reads GATUN_SECTION__KEY variables, and the two short ones for the state
// directory and the socket. Others that begin with GATUN_ belong to the program's flags.
func (m *merger) environment(env []string) {
	names := map[string]*Setting{"GATUN_STATE": m.w.table["core/state"], "GATUN_SOCKET": m.w.table["core/socket"]}
	var known []string
	for key, s := range m.w.table {
		name := "GATUN_" + strings.ToUpper(strings.ReplaceAll(key, "/", "__"))
		names[name] = s
		known = append(known, name)
	}
	slices.Sort(known)
	values := map[string]Value{}
	sorted := slices.Clone(env)
	slices.Sort(sorted) // the long form of a name comes before the short one, which wins
	for _, entry := range sorted {
		name, text, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, "GATUN_") || text == "" {
			continue
		}
		at := Position{File: name}
		if name == "GATUN_PRESET" {
			m.setPreset(text, "", Value{Origin: Origin{Kind: FromEnv, Name: name}}, at)
			continue
		}
		s := names[name]
		if s == nil {
			if strings.Contains(name, "__") {
				m.w.problem(at, "", "unknown environment variable", nearest(name, known))
			}
			continue
		}
		if v, ok := m.text(s, text, at); ok {
			v.Origin = Origin{Kind: FromEnv, Name: name}
			values[s.Key] = v
		}
	}
	m.merge(values)
}

func (m *merger) flags(flags map[string]string) {
	for key, text := range flags {
		at := Position{File: "flag " + key}
		s := m.w.table[key]
		switch {
		case key == "preset":
			m.setPreset(text, "", Value{Origin: Origin{Kind: FromFlag, Name: key}}, at)
		case s == nil:
			m.w.problem(at, "", "unknown setting", nearest(key, slices.Collect(keysOf(m.w.table))))
		default:
			if v, ok := m.text(s, text, at); ok {
				v.Origin = Origin{Kind: FromFlag, Name: key}
				m.v.Set(key, v)
			}
		}
	}
}

// text reads a value that is not in a file. A list is written as YAML writes it on one line,
// ["- RU", "+ *"]; any other text is a list of that one item.
func (m *merger) text(s *Setting, text string, at Position) (Value, bool) {
	refuse := func(message, suggestion string) (Value, bool) {
		m.w.problem(at, s.Key, message, suggestion)
		return Value{}, false
	}
	if s.Missing != "" {
		return refuse("not available in this version: it needs "+s.Missing, "")
	}
	if s.Type != TypeStrings && s.Type != TypeRules {
		v, message, suggestion := s.parse(text, "")
		if message != "" {
			return refuse(message, suggestion)
		}
		return Value{v: v}, true
	}
	n := &yaml.Node{Kind: yaml.SequenceNode, Content: []*yaml.Node{{Kind: yaml.ScalarNode, Tag: "!!str", Value: text}}}
	if strings.HasPrefix(text, "[") {
		root, p := decodeYAML(at.File, []byte(text))
		if p != nil {
			return refuse(p.Message, "")
		}
		n = root
	}
	list, ok := m.w.list(&scope{file: at.File, values: map[string]Value{}}, s, n)
	for i := range list {
		list[i].Position = at
	}
	return Value{v: list}, ok
}

// config resolves presets and release levels and returns the result.
func (m *merger) config(files []file) *Config {
	c := &Config{values: map[string]Value{}, profiles: m.profiles, lines: m.w.lines}
	for _, f := range files {
		c.paths = append(c.paths, f.path)
	}
	var defaults map[string]any
	if name, ok := m.preset.v.(string); ok {
		c.preset = name
		defaults, _, _ = preset(name)
	}
	for _, s := range Table() {
		v := m.v.Get(s.Key).(Value)
		if d, ok := defaults[s.Key]; ok && v.Origin.Kind == FromDefault {
			v = Value{Origin: Origin{Kind: FromPreset, Name: c.preset}, v: d}
		}
		c.values[s.Key] = v
	}
	m.gate(c)
	c.warnings = m.w.warnings.Sort()
	return c
}

// gate replaces what is above core/releaseLevel by its default. The stored value stays in the
// file and comes back as soon as the level is raised.
func (m *merger) gate(c *Config) {
	active := c.String("core/releaseLevel")
	level := Release(slices.Index([]string{"stable", "beta", "experimental"}, active))
	for _, s := range Table() {
		if s.Release <= level {
			continue
		}
		why := fmt.Sprintf("inactive because core/releaseLevel is %s and this setting is %s", active, s.Release)
		if v := c.values[s.Key]; v.Origin.Kind > FromPreset {
			m.w.warn(v.Origin.Position, s.Key, why)
			c.values[s.Key] = Value{v: defaultOf(&s), Inactive: why, Origin: v.Origin}
		}
		for i := range c.profiles {
			if v, ok := c.profiles[i].values[s.Key]; ok {
				m.w.warn(v.Origin.Position, fmt.Sprintf("profiles[%s]/%s", c.profiles[i].Name, s.Key), why)
				v.Inactive = why
				c.profiles[i].values[s.Key] = v
			}
		}
	}
}
