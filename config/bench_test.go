package config

import (
	"fmt"
	"os"
	"testing"
)

// manyProfiles makes a data directory with n profiles as gatun makes them.
func manyProfiles(b *testing.B, n int) *Data {
	d := OpenData(b.TempDir() + "/state")
	e := d.Edit()
	for i := range n {
		path := fmt.Sprintf("/usr/bin/p%d", i)
		e.PutProfile(NewProfile(fmt.Sprintf("p%d", i), []Fingerprint{{Type: "path", Op: "equals", Value: path}}, Automatic, map[string]string{"path": path, "args": path + " --serve"}))
	}
	if _, err := Load(Source{Edit: e}); err != nil {
		b.Fatal(err)
	}
	for i := range e.plan.writes { // without fsync: the disk is not what is measured
		w := &e.plan.writes[i]
		if err := os.MkdirAll(d.path(profilesDir), 0o700); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(w.path, w.after, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	return d
}

// BenchmarkLoadProfiles is a reload with profiles of the data directory.
func BenchmarkLoadProfiles(b *testing.B) {
	for _, n := range []int{0, 100, 5000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			d := manyProfiles(b, n)
			for b.Loop() {
				cfg, err := Load(Source{Data: d})
				if err != nil || len(cfg.Profiles()) != n {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkPutProfile is one automatic profile more.
func BenchmarkPutProfile(b *testing.B) {
	d := manyProfiles(b, 5000)
	for b.Loop() {
		e := d.Edit()
		e.PutProfile(NewProfile("new", []Fingerprint{{Type: "path", Op: "equals", Value: "/new"}}, Automatic, nil))
		if _, err := Load(Source{Edit: e}); err != nil {
			b.Fatal(err)
		}
	}
}
