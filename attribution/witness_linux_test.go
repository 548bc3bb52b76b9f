package attribution

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"gatun/network/packet"
	"gatun/network/state"
)

// fakeSenders are what the kernel would say.
type fakeSenders struct {
	sender *state.Sender
	images map[state.ImageID]*state.Image
	asked  int
}

func (s *fakeSenders) Sender(packet.Flow) (state.Sender, bool) {
	if s.sender == nil {
		return state.Sender{}, false
	}
	return *s.sender, true
}

func (s *fakeSenders) Image(id state.ImageID) (*state.Image, bool) {
	s.asked++
	i := s.images[id]
	return i, i != nil
}

// sees makes the Finder believe in a sender that started at those clock ticks.
func sees(f *Finder, pid, start int, image *state.Image) *fakeSenders {
	id := state.ImageID{Start: uint64(start)*nanosecondsPerTick + 5, PID: uint32(pid), Exec: 1}
	s := &fakeSenders{sender: &state.Sender{ImageID: id, Certain: true}, images: map[state.ImageID]*state.Image{id: image}}
	f.os.witness.senders = s
	return s
}

// TestDeparted: a process that is gone is named only if everything is known by which it could be
// told from another program.
func TestDeparted(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "python3.11")
	script := filepath.Join(dir, "script.py")
	for _, name := range []string{file, script} {
		if err := os.WriteFile(name, nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		t.Fatal(err)
	}
	id := strings.Repeat("0123456789abcdef", 4)
	for name, c := range map[string]struct {
		change func(*state.Image)
		want   string // path; "": not named
		script string
	}{
		"all is known":          {func(*state.Image) {}, file, ""},
		"no path":               {func(i *state.Image) { i.Path = "" }, "", ""},
		"arguments too long":    {func(i *state.Image) { i.Args = nil }, "", ""},
		"control group gone":    {func(i *state.Image) { i.CGroup = "" }, "", ""},
		"script":                {func(i *state.Image) { i.Args = []byte("python3\x00" + script + "\x00") }, file, script},
		"script of a directory": {func(i *state.Image) { i.Args = []byte("python3\x00script.py\x00") }, "", ""},
		"script that is gone":   {func(i *state.Image) { i.Args = []byte("python3\x00" + script + "x\x00") }, "", ""},
		"script by a detour": {func(i *state.Image) {
			i.Args = []byte("python3\x00" + dir + "/../" + filepath.Base(dir) + "/script.py\x00")
		}, "", ""},
		"perhaps a Flatpak":         {func(i *state.Image) { i.Jailed, i.Elsewhere, i.Inode = true, true, 1 }, "", ""},
		"container":                 {func(i *state.Image) { i.Jailed, i.Elsewhere, i.Inode, i.CGroup = true, true, 1, "/docker/"+id }, file + suffixForeign, ""},
		"same file elsewhere":       {func(i *state.Image) { i.Elsewhere, i.Inode, i.Device = true, st.Ino, st.Dev }, file, ""},
		"perhaps another elsewhere": {func(i *state.Image) { i.Elsewhere, i.Inode, i.Device = true, st.Ino, st.Dev+1 }, "", ""},
		"AppImage":                  {func(i *state.Image) { i.Path = "/tmp/.mount_x/bin/a" }, "", ""},
	} {
		image := &state.Image{Path: file, Args: []byte("python3\x00-c\x00pass\x00"), Parent: 7, CGroup: "/system.slice/a.service", Comm: "python3"}
		c.change(image)
		_, _, f := fake(t)
		sees(f, 4242, 100, image)
		o := f.Find(t.Context(), fromPort(1))
		switch p := o.Process; {
		case c.want == "" && p.Kind != KindUnidentified:
			t.Errorf("%s: named %+v", name, p)
		case c.want != "" && (p.Path != c.want || p.PID != 4242 || p.Parent != 7 || p.Script != c.script || o.Cause != CauseSeen || o.Confidence != Exact):
			t.Errorf("%s: %+v, %q", name, p, o.Cause)
		case c.want == file && p.Unit != "a.service":
			t.Errorf("%s: unit %q", name, p.Unit)
		}
	}
}

// TestHolderIsNotTheSender: whoever holds the socket now is not named for who is gone, and a
// stranger that sends on what others sent is not named at all.
func TestHolderIsNotTheSender(t *testing.T) {
	for name, c := range map[string]struct {
		certain bool
		parent  int // of the sender; 0: it is gone
		want    string
	}{
		"certain, gone":             {true, 0, CauseEnded},
		"uncertain, gone":           {false, 0, CauseEnded},
		"uncertain, a child":        {false, 100, CauseShared},
		"uncertain, a stranger":     {false, 1, CauseOne},
		"certain, another holds it": {true, 1, CauseEnded},
	} {
		proc, _, f := fake(t, 9)
		proc.born(100, 1, "holder", 50, 9)
		if c.parent != 0 {
			proc.born(200, c.parent, "sender", 60)
		}
		proc.lastPID(200)
		s := sees(f, 200, 60, nil)
		s.sender.Certain = c.certain
		o := f.Find(t.Context(), fromPort(9))
		if o.Cause != c.want || (o.Confidence >= Inherited) != (c.want == CauseOne) {
			t.Errorf("%s: %+v, %s, %q", name, o.Process, o.Confidence, o.Cause)
		}
	}
}

// TestSightings: an image is read once, and not more of them are kept than is allowed.
func TestSightings(t *testing.T) {
	_, _, f := fake(t)
	image := &state.Image{Path: "/bin/true", Args: []byte("true\x00"), CGroup: "/"}
	s := sees(f, 1, 1, image)
	first := f.Find(t.Context(), fromPort(1))
	asked := s.asked
	if again := f.Find(t.Context(), fromPort(2)); again.Process != first.Process || s.asked != asked {
		t.Errorf("read again: %+v", again.Process)
	}
	for pid := range uint32(3 * maxSightings) {
		id := state.ImageID{PID: pid + 2, Exec: 1}
		s.sender.ImageID, s.images = id, map[state.ImageID]*state.Image{id: image}
		if o := f.Find(t.Context(), fromPort(1)); o.Process.PID != int(id.PID) {
			t.Fatalf("%d: %+v", id.PID, o.Process)
		}
	}
	if n := len(f.os.witness.young) + len(f.os.witness.old); n > 2*maxSightings {
		t.Errorf("%d images are kept", n)
	}
	f.Compact()
	if n := len(f.os.witness.young) + len(f.os.witness.old); n != 0 {
		t.Errorf("%d images are kept after Compact", n)
	}
}
