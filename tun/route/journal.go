package route

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// journalFile is the journal's name in the state directory.
const journalFile = "route.journal"

// journal is the record of what Up is about to do. It is written and synced as a whole before
// the first operation, so any prefix of the set-up is covered by it. Most objects carry our
// names and are found without it; what only the journal knows are names that the settings
// overrode and the values that sysctls had before.
type journal struct {
	Names   Names
	Sysctls []sysctlRecord
	Ops     []string // for people
}

// sysctlRecord is a kernel setting before and after.
type sysctlRecord struct {
	Key string `json:"key"`
	Old string `json:"old"`
	New string `json:"new"`
}

// record is one line of the file. Exactly one field is set.
type record struct {
	Names  *Names        `json:"names,omitempty"`
	Sysctl *sysctlRecord `json:"sysctl,omitempty"`
	Op     string        `json:"op,omitempty"`
}

// encode gives the names first: even a file cut after its first line is of use.
func (j journal) encode() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	records := []record{{Names: &j.Names}}
	for i := range j.Sysctls {
		records = append(records, record{Sysctl: &j.Sysctls[i]})
	}
	for _, op := range j.Ops {
		records = append(records, record{Op: op})
	}
	for _, r := range records {
		if err := enc.Encode(r); err != nil {
			return nil, fmt.Errorf("encode journal: %w", err)
		}
	}
	return b.Bytes(), nil
}

// decodeJournal reads as much as is whole. Whatever the bytes are, it returns what it could
// read: recovery must not depend on an undamaged file.
func decodeJournal(b []byte) journal {
	var j journal
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		var r record
		if json.Unmarshal(lines.Bytes(), &r) != nil {
			continue
		}
		switch {
		case r.Names != nil && r.Names.Validate() == nil:
			j.Names = *r.Names
		case r.Sysctl != nil && sysctlKnown(r.Sysctl.Key):
			j.Sysctls = append(j.Sysctls, *r.Sysctl)
		case r.Op != "":
			j.Ops = append(j.Ops, r.Op)
		}
	}
	return j
}

// sysctlKnown limits what a damaged or forged journal can write to.
func sysctlKnown(key string) bool { return key == strictKey || key == countKey }

// readJournal returns the journal of dir. There is none if ok is false.
func readJournal(dir string) (j journal, ok bool, err error) {
	b, err := os.ReadFile(filepath.Join(dir, journalFile))
	if errors.Is(err, fs.ErrNotExist) {
		return journal{}, false, nil
	}
	if err != nil {
		return journal{}, false, fmt.Errorf("read journal: %w", err)
	}
	return decodeJournal(b), true, nil
}

// writeJournal replaces the journal: a new file is synced, then renamed, then the directory
// is synced, so there is always a whole one.
func writeJournal(dir string, j journal) error {
	b, err := j.encode()
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, journalFile+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, journalFile))
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("write journal: %w", err)
	}
	return syncDir(dir)
}

// removeJournal deletes the journal, if there is one, and what a crash left of writing it.
func removeJournal(dir string) error {
	left, _ := filepath.Glob(filepath.Join(dir, journalFile+".*"))
	for _, name := range append(left, filepath.Join(dir, journalFile)) {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove journal: %w", err)
		}
	}
	return syncDir(dir)
}
