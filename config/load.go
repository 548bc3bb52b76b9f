package config

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/viper"
	"go.yaml.in/yaml/v3"
)

// fileVersion is the version that all files have.
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

	// CheckResolver, which may be nil, checks the texts of dns/nameservers in the same way.
	CheckResolver func(text string) (message, suggestion string)

	migrations map[int]migration // of older files, by the version that they migrate from
}

// Paths returns what has to be watched for changes by hand: the file, the conf.d directory and
// the Data, also while they do not exist.
func (s Source) Paths() []string {
	var paths []string
	if s.File != "" {
		paths = append(paths, s.File)
		if s.Dir {
			paths = append(paths, s.dropIns())
		}
	}
	if s.Data != nil {
		paths = append(paths, s.Data.Paths()...)
	}
	return paths
}

func (s Source) dropIns() string { return filepath.Join(filepath.Dir(s.File), "conf.d") }

// Load reads, checks and merges everything. The error is Problems with all that is wrong;
// then there is no Config: a half-valid one is never returned.
//
// A later file replaces scalars and lists of texts and appends to lists of objects. The human's
// file wins over Data, the environment over files, flags over everything.
func Load(src Source) (*Config, error) {
	w := newWalker()
	w.checkRule, w.checkResolver, w.migrations = src.CheckRule, src.CheckResolver, src.migrations
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
	var p *plan
	switch {
	case src.Edit != nil:
		p = m.data(src.Edit.data, src.Edit.ops)
	case src.Data != nil:
		m.data(src.Data, nil)
	}
	m.checkLayers()
	c := m.config(files)
	if len(w.problems) > 0 {
		return nil, w.problems.Sort()
	}
	c.fingerprint()
	if src.Edit != nil {
		src.Edit.plan = p
	}
	return c, nil
}

// merger puts the layers into a viper of its own, with Values as leaves, so that the origin
// travels with the value. viper ranks them: Set over MergeConfigMap over SetDefault.
type merger struct {
	w        *walker
	v        *viper.Viper
	profiles []ProfileSpec
	byName   map[string]int // -> index of profiles
	preset   Value          // zero: none chosen
	lists    []ListSpec
	geo      GeoSpec
}

func newMerger(w *walker) *merger {
	m := &merger{w: w, v: viper.NewWithOptions(viper.KeyDelimiter("/")), byName: map[string]int{}}
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
	s := &scope{file: f.path, kind: FromFile, keys: []string{"version", "preset", "profiles", "lists", "geo"}, values: map[string]Value{}}
	m.w.keepLines(f.path, f.data)
	root, p := decode(f.path, f.data)
	if p != nil {
		m.w.problem(p.Position, p.Key, p.Message, "")
		return
	}
	if old, ok := m.w.migrate(root); ok {
		m.w.warn(Position{File: f.path}, "version", fmt.Sprintf("version %d is old and is read as %d; bring the file up to date, gatun does not write it", old, fileVersion))
	}
	m.w.root(s, root, f.dropIn, func(name string, key, value *yaml.Node) {
		switch {
		case name == "preset":
			m.setPreset(value.Value, value.Tag, Value{Origin: Origin{Kind: FromFile, Position: s.at(key)}}, s.at(value))
		case name == "profiles":
			m.addPinned(m.w.profileList(s, value))
		case name == "lists" || name == "geo":
			m.intelligence(s, name, value)
		case m.w.children[name] != nil:
			m.w.subsection(s, name, key, value)
		default:
			m.w.unknown(s, "", key)
		}
	})
	m.merge(s.values)
}

// root walks the keys of a file but for its version, which it checks.
func (w *walker) root(s *scope, root *yaml.Node, dropIn bool, f func(name string, key, value *yaml.Node)) {
	hasVersion := false
	switch {
	case root == nil: // empty, or comments only
	case root.Kind != yaml.MappingNode:
		w.problem(s.at(root), "", "want keys such as version and filter, got "+describe(root.Value, root.Tag), "")
		return
	default:
		w.fields(s, "", root, func(name string, key, value *yaml.Node) {
			if name == "version" {
				hasVersion = true
				w.version(s, value)
				return
			}
			f(name, key, value)
		})
	}
	if !hasVersion && !dropIn {
		// Also what tells a file that was cut off at its start from one that sets nothing.
		w.problem(Position{File: s.file, Line: 1, Col: 1}, "version", "missing; want version: 1 at the top of the file", "")
	}
}

func (w *walker) version(s *scope, n *yaml.Node) {
	number, err := strconv.Atoi(n.Value)
	switch {
	case n.Tag != "!!int" || err != nil || number < fileVersion:
		w.problem(s.at(n), "version", fmt.Sprintf("want %d, got %s", fileVersion, describe(n.Value, n.Tag)), "")
	case number > fileVersion:
		w.problem(s.at(n), "version", fmt.Sprintf("version %d is newer than this program, which knows %d: update gatun", number, fileVersion), "")
	}
}

func (m *merger) setPreset(name, tag string, v Value, at Position) {
	if _, known := preset(name); !known {
		m.w.problem(at, "preset", fmt.Sprintf("want %s, got %s", oneOf(presets()), describe(name, tag)), nearest(name, presets()))
		return
	}
	if part := missingPresets()[name]; part != "" {
		m.w.warn(at, "preset", fmt.Sprintf("%s sets defaults only: what it is for needs %s, which is not in this version", name, part))
	}
	v.v = name
	m.preset = v
}

func (m *merger) addPinned(list []ProfileSpec) {
	for _, p := range list {
		p.Origin = Pinned
		if other := m.profile(p.Name); other != nil {
			m.sameName(p, other)
			continue
		}
		m.add(p)
	}
}

// profile returns the profile of that name, nil if there is none.
func (m *merger) profile(name string) *ProfileSpec {
	if i, ok := m.byName[name]; ok {
		return &m.profiles[i]
	}
	return nil
}

func (m *merger) add(p ProfileSpec) {
	if p.Name != "" {
		m.byName[p.Name] = len(m.profiles)
	}
	m.profiles = append(m.profiles, p)
}

func (m *merger) sameName(p ProfileSpec, other *ProfileSpec) {
	m.w.problem(p.Position, fmt.Sprintf("profiles[%s]", p.Name), fmt.Sprintf("there is already a profile of that name at %s:%d", other.File, other.Line), "")
}

// merge puts values over those of the files before. A list that replaces another one is
// worth a warning: rules disappear.
func (m *merger) merge(values map[string]Value) {
	for key, v := range values {
		old := m.v.Get(key).(Value)
		if list := old.Rules(); len(list) > 0 && v.Origin.Kind == FromFile && old.Origin.Kind == FromFile {
			m.w.warn(v.Origin.Position, key, "replaces the list of "+old.Origin.String())
		}
		if list, ok := v.v.([]RatingRule); ok && v.Origin.Kind == FromFile && old.Origin.Kind == FromFile {
			v.v = slices.Concat(old.v.([]RatingRule), list)
		}
		section, name, _ := strings.Cut(key, "/")
		if err := m.v.MergeConfigMap(map[string]any{section: map[string]any{name: v}}); err != nil {
			m.w.problem(v.Origin.Position, key, err.Error(), "")
		}
	}
}

// config resolves presets and release levels and returns the result.
func (m *merger) config(files []file) *Config {
	c := &Config{values: map[string]Value{}, profiles: m.profiles, byName: m.byName, lines: m.w.lines, lists: m.lists, geo: m.geo}
	for _, f := range files {
		c.paths = append(c.paths, f.path)
	}
	var defaults map[string]any
	if name, ok := m.preset.v.(string); ok {
		c.preset = name
		defaults, _ = preset(name)
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
			c.values[s.Key] = Value{v: defaultOf(&s), stored: v.v, Inactive: why, Origin: v.Origin}
		}
		for i := range c.profiles {
			if v, ok := c.profiles[i].values[s.Key]; ok {
				m.w.warn(v.Origin.Position, fmt.Sprintf("profiles[%s]/%s", c.profiles[i].Name, s.Key), why)
				v.Inactive = why
				c.profiles[i].values = maps.Clone(c.profiles[i].values) // Data remembers the profile
				c.profiles[i].values[s.Key] = v
			}
		}
	}
}
