package config

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"
)

const (
	runtimeFile   = "config.json"
	profilesDir   = "profiles"
	temporaryFile = "temporary.json"
)

// Data is what the program keeps itself: the settings that were changed at run time
// (config.json), one file for each profile that was made at run time (profiles/), and the
// temporary rules. Load reads it, an Edit changes it. Its methods may be called from any
// goroutine.
type Data struct {
	dir string

	mu     sync.Mutex
	memory map[string][]byte  // by path, where dir is ""
	parsed map[string]*parsed // by path, as Load found it last
}

// parsed is what a file of a profile says, so that thousands of unchanged ones are not decoded
// for each change of another. It is immutable.
type parsed struct {
	data     []byte
	lines    []string
	spec     ProfileSpec
	warnings Problems
	checked  [2]bool // by the checks of others
}

// OpenData returns the data in a directory, which need not exist yet. With dir "" the data is in
// memory only and ends with the program.
func OpenData(dir string) *Data { return &Data{dir: dir, memory: map[string][]byte{}} }

// Paths returns what has to be watched for changes by hand; nothing where the data is in memory.
func (d *Data) Paths() []string {
	if d.dir == "" {
		return nil
	}
	return []string{d.path(runtimeFile), d.path(profilesDir)}
}

func (d *Data) path(name string) string { return filepath.Join(d.dir, name) }

// profilePath is the file of a new profile: a name that every file system takes, and a digest
// that tells names apart that look alike there.
func (d *Data) profilePath(name string) string {
	safe := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' {
			return r
		}
		return '-'
	}, name)
	sum := sha256.Sum256([]byte(name))
	return d.path(filepath.Join(profilesDir, fmt.Sprintf("%s-%x.yaml", strings.Trim(safe[:min(len(safe), 40)], "-"), sum[:4])))
}

// read returns config.json and the profiles, as far as they are there.
func (d *Data) read(w *walker) []file {
	if d.dir == "" {
		return d.readMemory(w)
	}
	var files []file
	if !w.safeDir(d.dir) {
		return nil
	}
	if data, ok := w.readFile(d.path(runtimeFile), true); ok {
		files = append(files, file{path: d.path(runtimeFile), data: data})
	}
	for _, path := range w.listProfiles(d.path(profilesDir)) {
		if data, ok := w.readFile(path, false); ok {
			files = append(files, file{path: path, data: data})
		}
	}
	return files
}

func (d *Data) readMemory(w *walker) []file {
	d.mu.Lock()
	defer d.mu.Unlock()
	var files []file
	for path, data := range d.memory {
		if path != temporaryFile {
			files = append(files, file{path: path, data: data})
		}
	}
	slices.SortFunc(files, func(a, b file) int { return strings.Compare(a.path, b.path) })
	return files
}

// listProfiles returns profiles/*.yaml in lexical order.
func (w *walker) listProfiles(dir string) []string {
	if !w.ownDir(dir) {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		w.problem(Position{File: dir}, "", explain(err), "")
		return nil
	}
	var paths []string
	for _, e := range entries { // sorted by name
		path := filepath.Join(dir, e.Name())
		switch ext := filepath.Ext(path); {
		case strings.HasPrefix(e.Name(), "."): // an editor's own files, and ours while they are written
		case ext == ".yaml":
			paths = append(paths, path)
		case !strings.HasPrefix(ext, copySuffix):
			w.warn(Position{File: path}, "", "ignored: only files named *.yaml are read here")
		}
	}
	return paths
}

// document is one file of the Data.
type document struct {
	path    string
	before  []byte // as it is stored; nil: it is not
	after   []byte // what an Edit makes of it
	removed bool   // by an Edit
	touched bool   // by an Edit, in its tree

	parsed  *parsed // what is known of this text already; then the fields below are not set
	root    *yaml.Node
	broken  *Problem     // why it cannot be decoded
	old     bool         // it was migrated
	version int          // before that
	name    string       // of the profile
	spec    *ProfileSpec // what an Edit makes of the profile
}

func (m *merger) documents(d *Data) []*document {
	var docs []*document
	known := d.known()
	for _, f := range d.read(m.w) {
		doc := &document{path: f.path, before: f.data, after: f.data}
		if p := known[f.path]; p != nil && p.checked == m.w.checks() && bytes.Equal(p.data, f.data) {
			doc.parsed, doc.name, m.w.lines[f.path] = p, p.spec.Name, p.lines
		} else {
			m.w.keepLines(f.path, f.data)
			doc.put(f.data)
			doc.version, doc.old = m.w.migrate(doc.root)
		}
		docs = append(docs, doc)
	}
	return docs
}

func (d *Data) known() map[string]*parsed {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.parsed
}

func (d *Data) remember(list map[string]*parsed) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.parsed = list
}

// put replaces the text.
func (doc *document) put(data []byte) {
	doc.after, doc.spec, doc.parsed = data, nil, nil
	doc.root, doc.broken = decode(doc.path, data)
	doc.name = nameIn(doc.root)
}

// nameIn finds the name of the profile in a tree that may have any other fault.
func nameIn(root *yaml.Node) string {
	list := child(root, "profiles")
	if list == nil || list.Kind != yaml.SequenceNode || len(list.Content) != 1 {
		return ""
	}
	if name := child(resolve(list.Content[0]), "name"); name != nil && name.Kind == yaml.ScalarNode {
		return name.Value
	}
	return ""
}

// child returns the value of a key, nil if there is none.
func child(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return resolve(n.Content[i+1])
		}
	}
	return nil
}

// data reads the Data, tries changes of it, and merges it. It returns what the changes are.
func (m *merger) data(d *Data, ops []operation) *plan {
	docs := m.documents(d)
	if ops != nil { // an Edit, if only to bring old files up to date
		e := &editor{m: m, data: d, docs: docs}
		for i := range ops {
			e.do(&ops[i])
		}
		e.finish()
		docs = e.docs
	}
	var specs []ProfileSpec
	known := map[string]*parsed{}
	for _, doc := range docs {
		switch {
		case doc.removed:
			continue
		case doc.broken != nil:
			m.w.problem(doc.broken.Position, doc.broken.Key, doc.broken.Message+d.remedy(doc.path), "")
		case doc.path == d.path(runtimeFile):
			m.runtimeSettings(doc)
		default:
			list := m.w.profileFile(doc)
			specs = append(specs, list...)
			if doc.parsed != nil {
				known[doc.path] = doc.parsed
			}
		}
		if doc.old {
			m.w.warn(Position{File: doc.path}, "version", fmt.Sprintf("version %d is read as %d; the next change writes it anew and keeps a copy", doc.version, fileVersion))
		}
	}
	d.remember(known)
	layers := make(map[string][]string, len(specs))
	for i := range specs {
		layers[specs[i].Name] = specs[i].Layers
	}
	m.addStored(specs)
	return newPlan(docs, layers)
}

// remedy says what to do with a file that cannot be read.
func (d *Data) remedy(path string) string {
	if _, err := os.Lstat(path + goodSuffix); path == d.path(runtimeFile) && err == nil {
		return fmt.Sprintf("; mend the file, or restore what gatun wrote last: cp %[1]s%[2]s %[1]s", path, goodSuffix)
	}
	return "; mend the file, or remove it with all that it holds"
}

// runtimeSettings merges config.json below what people set in their files.
func (m *merger) runtimeSettings(doc *document) {
	s := &scope{file: doc.path, kind: FromRuntime, keys: []string{"version"}, values: map[string]Value{}}
	m.w.root(s, doc.root, false, func(name string, key, value *yaml.Node) {
		if m.w.children[name] != nil {
			m.w.subsection(s, name, key, value)
		} else {
			m.w.unknown(s, "", key)
		}
	})
	for key := range s.values {
		if m.v.Get(key).(Value).Origin.Kind > FromRuntime {
			delete(s.values, key)
		}
	}
	m.merge(s.values)
}

// profileFile reads the one profile of a file, and remembers it if nothing is wrong with it.
func (w *walker) profileFile(doc *document) []ProfileSpec {
	if doc.parsed != nil {
		w.warnings = append(w.warnings, doc.parsed.warnings...)
		return []ProfileSpec{doc.parsed.spec}
	}
	problems, warnings := len(w.problems), len(w.warnings)
	list := w.profileDocument(&scope{file: doc.path, kind: FromRuntime}, doc.root)
	if text := strings.TrimSpace(string(doc.after)); !strings.HasSuffix(text, "\n"+strings.TrimSpace(endMark)) {
		w.problem(Position{File: doc.path, Line: 1 + strings.Count(text, "\n")}, "", "the file is cut off: want ... on a line of its own at the end, as gatun writes it", "")
	}
	if len(list) != 1 && len(w.problems) == problems {
		w.problem(Position{File: doc.path, Line: 1, Col: 1}, "profiles", fmt.Sprintf("want one profile in each file here, got %d", len(list)), "")
	}
	if len(w.problems) == problems && !doc.old {
		doc.parsed = &parsed{data: doc.after, lines: w.lines[doc.path], spec: list[0], warnings: slices.Clone(w.warnings[warnings:]), checked: w.checks()}
	}
	return list
}

// profileDocument reads a file that has profiles only.
func (w *walker) profileDocument(s *scope, root *yaml.Node) (list []ProfileSpec) {
	s.keys, s.bare = []string{"version", "profiles"}, true
	w.root(s, root, false, func(name string, key, value *yaml.Node) {
		if name == "profiles" {
			list = w.profileList(s, value)
		} else {
			w.unknown(s, "", key)
		}
	})
	if root != nil && root.Kind == yaml.MappingNode && child(root, "profiles") == nil {
		w.problem(Position{File: s.file, Line: 1, Col: 1}, "profiles", "missing; want profiles: with a list of profiles", "")
	}
	return list
}

// addStored adds the profiles of the Data behind those of the human's file, first what people
// made. One that the program made gives way to one of the same name.
func (m *merger) addStored(specs []ProfileSpec) {
	slices.SortStableFunc(specs, func(a, b ProfileSpec) int {
		if a.Origin != b.Origin {
			return int(a.Origin) - int(b.Origin)
		}
		return strings.Compare(a.Name, b.Name)
	})
	for _, p := range specs {
		other := m.profile(p.Name)
		switch {
		case other == nil:
			m.add(p)
		case other.Origin == Pinned && p.Origin == Automatic:
			m.w.warn(p.Position, fmt.Sprintf("profiles[%s]", p.Name), fmt.Sprintf("not used: the profile of that name at %s:%d counts", other.File, other.Line))
		default:
			m.sameName(p, other)
		}
	}
}
