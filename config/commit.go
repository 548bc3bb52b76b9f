package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

const (
	copySuffix = ".v"    // and the version: the copy of a file that was migrated
	goodSuffix = ".good" // what config.json held when it was written last
)

// plan is what an Edit writes.
type plan struct{ writes []change }

type change struct {
	path          string
	before, after []byte // nil: no such file
	copyTo        string // where before is kept, "" nowhere
}

// newPlan orders the writes so that after each of them the whole can be read: a profile comes
// after those that lie under it, and what goes, goes last.
func newPlan(docs []*document, layers map[string][]string) *plan {
	p := &plan{}
	byName, done := map[string]*document{}, map[*document]bool{}
	for _, doc := range docs {
		if !doc.removed {
			byName[doc.name] = doc
		}
	}
	var visit func(doc *document)
	visit = func(doc *document) {
		if doc == nil || done[doc] {
			return
		}
		done[doc] = true
		for _, layer := range layers[doc.name] {
			visit(byName[layer])
		}
		if doc.before == nil || !bytes.Equal(doc.before, doc.after) {
			w := change{path: doc.path, before: doc.before, after: doc.after}
			if doc.old {
				w.copyTo = doc.path + copySuffix + strconv.Itoa(doc.version)
			}
			p.writes = append(p.writes, w)
		}
	}
	for _, doc := range docs {
		if !doc.removed {
			visit(doc)
		}
	}
	for _, doc := range docs {
		if doc.removed && doc.before != nil {
			p.writes = append(p.writes, change{path: doc.path, before: doc.before})
		}
	}
	return p
}

// renderRuntime writes config.json in the order of the table.
func renderRuntime(root *yaml.Node) []byte {
	ordered := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	take := func(from, to *yaml.Node, key string) {
		if v := child(from, key); v != nil {
			setChild(to, key, v)
		}
	}
	take(root, ordered, "version")
	for _, s := range Table() {
		sectionName, name, _ := strings.Cut(s.Key, "/")
		from := child(root, sectionName)
		if from == nil {
			continue
		}
		to := child(ordered, sectionName)
		if to == nil {
			to = &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
			if from.Kind != yaml.MappingNode {
				to = from
			}
			setChild(ordered, sectionName, to)
		}
		take(from, to, name)
	}
	complete(root, ordered)
	var b strings.Builder
	renderJSON(&b, ordered, "")
	b.WriteByte('\n')
	return []byte(b.String())
}

// complete adds what the table does not know: it is refused, but not lost.
func complete(from, to *yaml.Node) {
	for i := 0; i+1 < len(from.Content); i += 2 {
		key, value := from.Content[i].Value, resolve(from.Content[i+1])
		switch have := child(to, key); {
		case have == nil:
			setChild(to, key, value)
		case have.Kind == yaml.MappingNode && value.Kind == yaml.MappingNode && have != value:
			complete(value, have)
		}
	}
}

func (d *Data) commit(p *plan) error {
	if d.dir == "" {
		return d.commitMemory(p)
	}
	if len(p.writes) == 0 {
		return nil
	}
	made := map[string]bool{}
	for _, w := range p.writes {
		if dir := filepath.Dir(w.path); !made[dir] {
			if err := makeDir(dir); err != nil {
				return err
			}
			made[dir] = true
		}
		now, err := os.ReadFile(w.path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if (err != nil) != (w.before == nil) || !bytes.Equal(now, w.before) {
			return fmt.Errorf("%s was changed by somebody else meanwhile: try again", w.path)
		}
	}
	for i, w := range p.writes {
		if err := w.prepare(); err != nil {
			for _, done := range p.writes[:i+1] {
				_ = os.Remove(temporaryName(done.path))
			}
			return fmt.Errorf("nothing was changed: %w", err)
		}
	}
	for i, w := range p.writes {
		if err := w.finish(); err != nil {
			return fmt.Errorf("%d of %d files were written: %w", i, len(p.writes), err)
		}
	}
	for _, w := range p.writes {
		if filepath.Base(w.path) == runtimeFile && w.after != nil {
			return replaceFile(w.path+goodSuffix, w.after)
		}
	}
	return nil
}

func (d *Data) commitMemory(p *plan) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range p.writes {
		if now, ok := d.memory[w.path]; ok != (w.before != nil) || !bytes.Equal(now, w.before) {
			return fmt.Errorf("%s was changed by somebody else meanwhile: try again", w.path)
		}
	}
	for _, w := range p.writes {
		if w.after == nil {
			delete(d.memory, w.path)
		} else {
			d.memory[w.path] = w.after
		}
	}
	return nil
}

// makeDir makes a directory that only its owner can use, and refuses one that others can write.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	w := &walker{}
	if !w.safeDir(dir) {
		return w.problems
	}
	return nil
}

// temporaryName is where a file is written before it takes its place; the readers pass over it.
func temporaryName(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
}

// prepare does all that may fail for want of space: the new file, and the copy of the old one.
func (w *change) prepare() error {
	if w.copyTo != "" {
		if err := replaceFile(w.copyTo, w.before); err != nil {
			return err
		}
	}
	if w.after == nil {
		return nil
	}
	return writeNew(temporaryName(w.path), w.after)
}

func (w *change) finish() error {
	if w.after == nil {
		if err := os.Remove(w.path); err != nil {
			return err
		}
	} else if err := os.Rename(temporaryName(w.path), w.path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(w.path))
}

// replaceFile puts a file in place as a whole.
func replaceFile(path string, data []byte) error {
	w := change{path: path, after: data}
	if err := w.prepare(); err != nil {
		return errors.Join(err, os.Remove(temporaryName(path)))
	}
	return w.finish()
}

// writeNew writes a file that was not there, and does not follow what somebody put in its place.
func writeNew(path string, data []byte) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// ReadTemporary returns what WriteTemporary kept last, nil if there is nothing. What is in it is
// the caller's; the file is as safe as all others.
func (d *Data) ReadTemporary() ([]byte, error) {
	if d.dir == "" {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.memory[temporaryFile], nil
	}
	w := newWalker()
	data, ok := w.readFile(d.path(temporaryFile), true)
	if !ok && len(w.problems) > 0 {
		return nil, w.problems
	}
	return data, nil
}

// WriteTemporary keeps the temporary rules, in the caller's format.
func (d *Data) WriteTemporary(data []byte) error {
	if d.dir == "" {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.memory[temporaryFile] = bytes.Clone(data)
		return nil
	}
	if err := makeDir(d.dir); err != nil {
		return err
	}
	return replaceFile(d.path(temporaryFile), data)
}
