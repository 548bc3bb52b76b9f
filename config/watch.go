package config

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settle is how long nothing may happen before a change counts: an editor writes, renames and
// changes the mode in several steps.
const settle = 30 * time.Millisecond

// Watch calls onChange after any of the paths, files or directories, was written, replaced,
// created or removed, until ctx ends. A path need not exist. Several changes at once are
// reported once. onChange is called in Watch's goroutine, so never twice at a time.
func Watch(ctx context.Context, paths []string, onChange func()) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch the configuration: %w", err)
	}
	defer watcher.Close()
	set := watchSet{watcher: watcher, paths: paths}
	if err := set.add(); err != nil {
		return err
	}
	quiet := time.NewTimer(settle)
	quiet.Stop()
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-watcher.Events:
			if set.concerns(e.Name) {
				quiet.Reset(settle)
			}
		case <-watcher.Errors:
			quiet.Reset(settle) // events were lost: look
		case <-quiet.C:
			// A directory may have appeared, or a link may point elsewhere, since.
			if err := set.add(); err != nil {
				return err
			}
			onChange()
		}
	}
}

// watchSet watches directories, never files: an editor replaces the file, and a watch on the
// file would stay with the old one.
type watchSet struct {
	watcher *fsnotify.Watcher
	paths   []string
	targets []string // where symbolic links lead
}

func (s *watchSet) add() error {
	s.targets = nil
	for _, path := range s.paths {
		if err := s.watchFor(path); err != nil {
			return err
		}
		if target, err := filepath.EvalSymlinks(path); err == nil && target != filepath.Clean(path) {
			s.targets = append(s.targets, target)
			if err := s.watchFor(target); err != nil {
				return err
			}
		}
	}
	return nil
}

// watchFor watches the directory of path, or the nearest one above that exists, and path
// itself if it is a directory.
func (s *watchSet) watchFor(path string) error {
	dir := filepath.Dir(path)
	for {
		if _, err := os.Stat(dir); err == nil || filepath.Dir(dir) == dir {
			break
		}
		dir = filepath.Dir(dir)
	}
	dirs := []string{dir}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		dirs = append(dirs, path)
	}
	for _, dir := range dirs {
		if err := s.watcher.Add(dir); err != nil {
			return fmt.Errorf("watch %s: %w", dir, err)
		}
	}
	return nil
}

// concerns reports whether an event is about one of the paths, about a file in one of them, or
// about a directory above them that was missing.
func (s *watchSet) concerns(name string) bool {
	name = filepath.Clean(name)
	return slices.ContainsFunc(slices.Concat(s.paths, s.targets), func(path string) bool {
		path = filepath.Clean(path)
		rel, err := filepath.Rel(name, path)
		above := err == nil && filepath.IsLocal(rel)
		return above || filepath.Dir(name) == path
	})
}
