package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"strings"
)

// maxFile bounds what is read into memory: 100 000 rules are about 4 MiB.
const maxFile = 32 << 20

type file struct {
	path   string
	data   []byte
	dropIn bool
}

// readFiles reads the human's file and its drop-ins.
func (w *walker) readFiles(src Source) []file {
	var files []file
	if data, ok := w.readFile(src.File, src.Optional); ok {
		files = append(files, file{path: src.File, data: data})
	}
	if !src.Dir {
		return files
	}
	for _, path := range w.listDropIns(src.dropIns()) {
		if data, ok := w.readFile(path, false); ok {
			files = append(files, file{path: path, data: data, dropIn: true})
		}
	}
	return files
}

// readFile reads a file that nobody but root and the own user can have written: whoever
// writes the policy is the policy's owner.
func (w *walker) readFile(path string, optional bool) ([]byte, bool) {
	at := Position{File: path}
	if err := checkLink(path); err != nil {
		if optional && errors.Is(err, fs.ErrNotExist) {
			return nil, false
		}
		w.problem(at, "", explain(err), "")
		return nil, false
	}
	f, err := openFile(path)
	if err != nil {
		w.problem(at, "", explain(err), "")
		return nil, false
	}
	defer f.Close()
	if err := checkFile(f); err != nil {
		w.problem(at, "", explain(err), "")
		return nil, false
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("larger than %d MiB", maxFile>>20)
	}
	if err != nil {
		w.problem(at, "", explain(err), "")
		return nil, false
	}
	w.keepLines(path, data)
	return data, true
}

// listDropIns returns conf.d/*.yaml in lexical order. Who can write to the directory can add
// a file, so the directory has to be as safe as the files.
func (w *walker) listDropIns(dir string) []string {
	at := Position{File: dir}
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		defer d.Close()
		err = checkDir(d)
	}
	if err != nil {
		w.problem(at, "", explain(err), "")
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		w.problem(at, "", explain(err), "")
		return nil
	}
	var paths []string
	for _, e := range entries { // sorted by name
		path := filepath.Join(dir, e.Name())
		switch ext := filepath.Ext(path); {
		case strings.HasPrefix(e.Name(), "."): // an editor's own files
		case ext == ".yaml":
			paths = append(paths, path)
		case ext == ".yml" || ext == ".json" || ext == ".toml":
			w.warn(Position{File: path}, "", "ignored: only files named *.yaml are read here")
		}
	}
	return paths
}

// explain drops what the position says already from a file error.
func explain(err error) string {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err.Error()
	}
	return err.Error()
}

func keysOf[V any](m map[string]V) iter.Seq[string] { return maps.Keys(m) }
