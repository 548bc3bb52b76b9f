package intel

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"time"
)

// cached is what is kept beside the copy of a list. The copy counts only for the URL that gave
// it; where its checksum is another, one of the two files is older.
type cached struct {
	URL      string    `json:"url"`
	Sum      string    `json:"sha256"`
	ETag     string    `json:"etag,omitempty"`
	Modified string    `json:"lastModified,omitempty"`
	Updated  time.Time `json:"updated"`
	Checked  time.Time `json:"checked"`
	Next     time.Time `json:"next"`
}

func (s *Store) cachePath(id, ext string) string { return filepath.Join(s.o.CacheDir, id+ext) }

// readCache returns the list with the copy of an earlier run, or as it is. A copy that cannot be
// used is as good as none: the list is fetched.
func (s *Store) readCache(l *list) *list {
	if s.o.CacheDir == "" {
		return l
	}
	raw, err := readFile(s.cachePath(l.spec.ID, ".json"), 1<<16)
	if err != nil {
		return l
	}
	var c cached
	if json.Unmarshal(raw, &c) != nil || c.URL != l.spec.URL {
		return l
	}
	data, err := readFile(s.cachePath(l.spec.ID, ".list"), s.o.MaxBytes)
	if err != nil {
		return l
	}
	if sum := sha256.Sum256(data); c.Sum != hex.EncodeToString(sum[:]) {
		return l
	}
	next, err := l.take(data, s.o.MaxEntries, false)
	if err != nil {
		return l
	}
	return next.with(func(n *list) {
		n.etag, n.modified, n.updated, n.checked = c.ETag, c.Modified, c.Updated, c.Checked
		if soonest := s.o.Clock().Add(every(l.spec) + every(l.spec)/5); c.Next.Before(soonest) { // else the clock was wrong
			n.next = c.Next
		}
	})
}

// writeCache keeps a list for the next run; data is nil where the copy is there already.
func (s *Store) writeCache(l *list, data []byte) error {
	if s.o.CacheDir == "" {
		return nil
	}
	if err := os.MkdirAll(s.o.CacheDir, 0o700); err != nil {
		return err
	}
	if data != nil {
		if err := writeFile(s.cachePath(l.spec.ID, ".list"), data); err != nil {
			return err
		}
	}
	raw, err := json.Marshal(cached{
		URL: l.spec.URL, Sum: hex.EncodeToString(l.sum[:]), ETag: l.etag, Modified: l.modified,
		Updated: l.updated, Checked: l.checked, Next: l.next,
	})
	if err != nil {
		return err
	}
	return writeFile(s.cachePath(l.spec.ID, ".json"), raw)
}

// writeFile replaces a file as a whole, readable by its owner only.
func writeFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}
