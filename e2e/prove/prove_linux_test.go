package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatun/e2e/lab"
)

// TestSmall runs each proof in its small size. readme is left to .ci/run, which builds from a
// clean clone once.
func TestSmall(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped: -short")
	}
	var names []string
	for _, p := range proofs() {
		if p.name != "readme" {
			names = append(names, p.name)
		}
	}
	var out strings.Builder
	err := run(&out, true, names)
	t.Log("\n" + out.String())
	if errors.Is(err, lab.ErrNotRoot) {
		t.Skip("skipped: " + err.Error())
	}
	if err != nil {
		t.Error(err)
	}
}

func TestReadmeCommands(t *testing.T) {
	file := filepath.Join(t.TempDir(), "README.md")
	text := "# x\n```\nfirst --flag     # why\n\n# only talk\nsecond ./...\n```\nmore\n```\nthird\n```\n"
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := readmeCommands(file)
	if err != nil || strings.Join(got, "|") != "first --flag|second ./..." {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestJudge: an owner that is wrong must not pass as right, and a port used twice counts twice.
func TestJudge(t *testing.T) {
	now := time.Now()
	program := func(pid int) lab.Result { return lab.Result{PID: pid, Path: "/a", Start: now} }
	flow := func(id string, pid float64, path, confidence string) lab.Flow {
		return lab.Flow{"id": id, "owner_confidence": confidence, "process": map[string]any{
			"pid": pid, "path": path, "start": now.Format(time.RFC3339Nano),
		}}
	}
	truth := map[string][]lab.Result{"x:1": {program(1)}, "x:2": {program(2)}, "x:3": {program(3), program(4)}, "x:4": {program(5)}, "x:5": {program(6)}}
	flows := map[string][]lab.Flow{
		"x:1": {flow("1", 1, "/a", "exact"), flow("1", 1, "/a", "exact")}, // two events of one flow
		"x:2": {flow("2", 9, "/a", "exact")},                              // another pid
		"x:3": {flow("3", 3, "/a", "exact"), flow("4", 9, "/a", "exact")}, // the second is wrong
		"x:4": {flow("5", 0, "", "none")},
		"x:5": {flow("6", 6, "/b", "inherited")}, // another binary
	}
	s := judge(truth, flows)
	if s.all != 6 || s.right != 2 || s.wrong != 3 || s.unknown != 1 {
		t.Errorf("%+v", s)
	}
}

func TestMissed(t *testing.T) {
	b := &bench{out: &strings.Builder{}}
	b.atMost("a", 2, 1, "x")
	b.atLeast("b", 1, 2, "x")
	b.atMost("c", 1, 1, "x")
	b.atLeast("d", 1, 1, "x")
	if len(b.missed) != 2 {
		t.Errorf("missed %q", b.missed)
	}
}
