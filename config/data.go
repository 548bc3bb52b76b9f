package config

import (
	"path/filepath"
	"sync"
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
	memory map[string][]byte // by path, where dir is ""
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
