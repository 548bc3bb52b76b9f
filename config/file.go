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
	data, err := readSafe(path)
	if err != nil {
		if !optional || !errors.Is(err, fs.ErrNotExist) {
			w.problem(Position{File: path}, "", explain(err), "")
		}
		return nil, false
	}
	return data, true
}

func readSafe(path string) ([]byte, error) {
	if err := checkLink(path); err != nil {
		return nil, err
	}
	f, err := openFile(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := checkFile(f); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("larger than %d MiB", maxFile>>20)
	}
	return data, err
}

// checkLink refuses symbolic links: whoever can change one chooses what is read, and the file
// that it leads to may lie where others can replace it.
func checkLink(path string) error {
	info, err := os.Lstat(path)
	if err != nil || info.Mode()&fs.ModeSymlink == 0 {
		return err
	}
	target, err := os.Readlink(path)
	if err != nil {
		return err
	}
	return fmt.Errorf("is a symbolic link to %s, and links are not followed: whoever can change one chooses what is read; put the file itself here", target)
}

// ownDir is safeDir for a directory that may not be a link either.
func (w *walker) ownDir(dir string) bool {
	if err := checkLink(dir); err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			w.problem(Position{File: dir}, "", explain(err), "")
		}
		return false
	}
	return w.safeDir(dir)
}

// safeDir reports whether a directory is there that nobody else can write to: who can could add
// a file, or replace one.
func (w *walker) safeDir(dir string) bool {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	if err == nil {
		defer f.Close()
		err = checkDir(f)
	}
	if err != nil {
		w.problem(Position{File: dir}, "", explain(err), "")
	}
	return err == nil
}

// listDropIns returns conf.d/*.yaml in lexical order.
func (w *walker) listDropIns(dir string) []string {
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
	text := err.Error()
	var p *fs.PathError
	if errors.As(err, &p) {
		text = p.Err.Error()
	}
	if errors.Is(err, fs.ErrPermission) {
		text += fmt.Sprintf(": uid %d may not read it", os.Geteuid())
	}
	return text
}

func keysOf[V any](m map[string]V) iter.Seq[string] { return maps.Keys(m) }
