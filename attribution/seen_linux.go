package attribution

import (
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"gatun/network/packet"
	"gatun/network/state"
)

// witness turns what the kernel saw into owners. It keeps the images that it has named: what
// the kernel says of a flow is then enough, and nothing of /proc is read.
type witness struct {
	senders Senders

	mu    sync.Mutex
	young map[sighting]*image
	old   map[sighting]*image
}

// sighting is one program image under one user.
type sighting struct {
	id  state.ImageID
	uid uint32
}

// maxSightings bounds the images that are kept to twice as many. A command line makes most of
// an image's size, seldom more than 1 KiB.
const maxSightings = 1024

// nanosecondsPerTick turns a time into the clock ticks of /proc.
const nanosecondsPerTick = uint64(time.Second) / clockTicks

// get returns the image if it was named before.
func (w *witness) get(s sighting) *image {
	w.mu.Lock()
	defer w.mu.Unlock()
	img := w.young[s]
	if img == nil {
		if img = w.old[s]; img != nil {
			w.put(s, img)
		}
	}
	return img
}

// put keeps an image; the caller holds mu.
func (w *witness) put(s sighting, img *image) {
	if len(w.young) >= maxSightings {
		w.young, w.old = nil, w.young
	}
	if w.young == nil {
		w.young = map[sighting]*image{}
	}
	w.young[s] = img
}

// forget drops all images.
func (w *witness) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.young, w.old = nil, nil
}

// seen returns the owner of a flow whose packets the kernel saw being sent.
func (f *Finder) seen(s state.Sender) (Owner, bool) {
	w := f.os.witness
	key := sighting{s.ImageID, s.UID}
	img := w.get(key)
	if img == nil {
		if img = f.witnessed(s); img == nil {
			return Owner{}, false
		}
		w.mu.Lock()
		w.put(key, img)
		w.mu.Unlock()
	}
	o := single(img, f.self)
	if o.Cause == CauseOne {
		o.Cause = CauseSeen
	}
	return o, true
}

// Seen returns the owner of a flow at once, if the kernel saw it and its program is known: it
// searches nothing and asks only the kernel. What it finds, Find finds.
func (f *Finder) Seen(flow packet.Flow) (o Owner, found bool) {
	s, found := f.sender(flow)
	if !found || !s.Certain || f.os.witness.get(sighting{s.ImageID, s.UID}) == nil {
		return o, false
	}
	return f.seen(s)
}

// Sent returns the owner of what the kernel says that a sender has sent. found is false if nobody knows any
// more which program that was.
func (f *Finder) Sent(s state.Sender) (o Owner, found bool) {
	if f.os.witness.senders == nil || !s.Certain {
		return o, false
	}
	return f.seen(s)
}

// sender asks who was seen.
func (f *Finder) sender(flow packet.Flow) (state.Sender, bool) {
	if f.os.witness.senders == nil {
		return state.Sender{}, false
	}
	return f.os.witness.senders.Sender(flow)
}

// weigh compares who holds the socket with who was seen to send, but could not be named by that
// alone. A holder must not stand in for a sender that is gone.
func (f *Finder) weigh(o Owner, s state.Sender) Owner {
	if o.Confidence < Inherited {
		return o
	}
	stat, running := f.os.facts.stat(int(s.PID))
	running = running && !stat.ended && stat.start == s.Start/nanosecondsPerTick
	if o.Process.PID == int(s.PID) && running {
		if _, noted := f.os.witness.senders.Image(s.ImageID); noted && s.Certain {
			return Unidentified(CauseExec) // what runs now is not what sent
		}
		return o
	}
	switch {
	case s.Certain, !running:
		return Unidentified(CauseEnded)
	case stat.parent == o.Process.PID:
		return ambiguous(CauseShared) // inherited, used and closed
	default:
		return o // a stranger who queues packets sends them on for everybody
	}
}

// witnessed takes the facts of the image that sent: from /proc as long as it runs, else from
// what the kernel noted. nil: neither is enough to be sure.
func (f *Finder) witnessed(s state.Sender) *image {
	noted, found := f.os.witness.senders.Image(s.ImageID)
	if !found {
		return nil
	}
	if img := f.running(s, noted); img != nil {
		return img
	}
	return f.os.facts.departed(s, noted)
}

// running reads the facts of the image from /proc, nil if it does not run any more.
func (f *Finder) running(s state.Sender, noted *state.Image) *image {
	p := f.os.cache.cached(int(s.PID))
	if p == nil || p.ended() {
		if p != nil {
			p.release()
		}
		var err error
		if p, err = openProgram(f.os.cache.root, int(s.PID)); err != nil {
			return nil
		}
	}
	defer p.release()
	img, err := p.image(f.os.facts)
	if err != nil || img.start != s.Start/nanosecondsPerTick || img.layout != noted.Layout {
		return nil // it has ended, or executed another program
	}
	if img.process.UID == s.UID {
		return img
	}
	then := *img.process // it was another user while it sent
	then.UID, then.User = s.UID, f.os.facts.user(s.UID)
	return &image{process: &then, start: img.start, layout: img.layout}
}

// stat reads the state of a process.
func (r *factReader) stat(pid int) (stat, bool) {
	text, err := os.ReadFile(r.proc + "/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return stat{}, false
	}
	s, err := parseStat(text)
	return s, err == nil
}

// departed puts the facts of an image together that does not run any more. nil: something is
// missing by which it could be told from other programs, so that it stays unidentified.
func (r *factReader) departed(s state.Sender, noted *state.Image) *image {
	file, ok := pathOf(noted)
	if !ok || noted.Args == nil || inAppImage(file) {
		return nil
	}
	p := &Process{
		PID: int(s.PID), Path: file, Name: nameOf(file, noted.Comm), Args: parseArgs(noted.Args), UID: s.UID, User: r.user(s.UID),
		Parent: noted.Parent, CGroup: noted.CGroup, Kind: KindProgram,
	}
	start := s.Start / nanosecondsPerTick
	p.Started = r.started(stat{start: start})
	if noted.CGroup == "" {
		return nil // its control group went with it
	}
	p.Unit, p.Container = parseCgroup([]byte("0::" + noted.CGroup))
	if p.CGroup == "/" {
		p.CGroup = ""
	}
	if noted.Jailed && p.Container == "" {
		return nil // perhaps a Flatpak: its root directory told, and is gone
	}
	if !strings.HasSuffix(file, suffixForeign) {
		if script := scriptOf(p.Name, p.Args); script != "" {
			if p.Script = departedScript(file, script); p.Script == "" {
				return nil
			}
		}
	}
	p.Snap = snapName(p.CGroup, strings.TrimSuffix(file, suffixForeign))
	return &image{process: p, start: start, layout: noted.Layout}
}

// pathOf marks the path of an image as Process.Path does. ok is false if it cannot be told
// whether the file there is the one that ran.
func pathOf(noted *state.Image) (file string, ok bool) {
	if noted.Path == "" {
		return "", false
	}
	if !noted.Elsewhere {
		return noted.Path, true // the kernel went through the same directories as we would
	}
	var st unix.Stat_t
	if unix.Stat(noted.Path, &st) != nil || st.Ino != noted.Inode {
		return noted.Path + suffixForeign, true
	}
	return noted.Path, st.Dev == noted.Device // some file systems have more than one number
}

// departedScript is scriptPath for a process that has ended: only a path that says by itself
// where the script is will do.
func departedScript(binary, script string) string {
	var b, s unix.Stat_t
	if !path.IsAbs(script) || unix.Stat(script, &s) != nil || s.Mode&unix.S_IFMT != unix.S_IFREG {
		return ""
	}
	if unix.Stat(binary, &b) != nil || b.Uid != 0 && b.Uid != s.Uid {
		return ""
	}
	if clean := filepath.Clean(script); clean == script {
		return clean
	}
	return ""
}
