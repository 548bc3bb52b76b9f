package attribution

import (
	"cmp"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// tree knows which processes there are and who forked whom. It is brought up to date at each
// look-up for the price of one read as long as no process was born: the kernel hands out PIDs
// in ascending order and tells the last one in /proc/loadavg, so the new ones are those after
// the last one known.
type tree struct {
	root    string
	self    int           // this program: see kin
	loadavg *os.File      // nil: no such file, the directory is listed instead
	init    int           // the init process if it is systemd, else 0: see kin
	turns   chan struct{} // of whom brings it up to date: an older look must not undo a newer one

	mu       sync.Mutex
	last     int // the newest PID that was looked at
	listed   time.Time
	version  uint64 // changes with every birth
	nodes    map[int]*node
	children map[int][]int
	sessions map[int][]int
	newborn  []int // processes that no search has looked at yet, oldest first
	unborn   []unborn
}

// unborn is a number that was given away and that no process had when it was looked at: mostly that
// of one that has ended, but the kernel counts a number some time before its process can be seen,
// and on a busy machine that is long.
type unborn struct {
	pid   int
	since time.Time
	next  time.Time // when it is worth another look
}

// node is one process. Its parent is the one it was born from, also after that has ended.
type node struct {
	pid, parent, session int
	start                uint64
	idle                 int       // how many surveys in a row saw no socket in it
	hidden               time.Time // when its descriptors were last found to be unreadable
	ended                bool      // it is known to be gone: its children are somebody's kin still
	table                *table    // nil: not read yet
}

// table is what a process had open when it was last looked at as somebody's kin. It is immutable.
type table struct {
	read    time.Time
	size    int64 // how many descriptors there were, as the kernel counts them
	sockets []held
	free    []int // the numbers that the next descriptors will get
}

const (
	// maxBirths is how many PIDs are looked at one by one before the directory is listed.
	maxBirths = 256
	// maxUnborn and unbornAge bound how many such numbers are looked at again, and for how long.
	maxUnborn = 256
	unbornAge = time.Second
	// listingAge bounds how long processes that have ended stay in the tree, and how long a
	// wrap-around of PIDs could go unnoticed.
	listingAge = 5 * time.Second
	// hiddenAge is how long an unreadable process is passed over.
	hiddenAge = 2 * time.Second
	// idleSurveys is how many surveys without a socket make a process the last to be searched.
	idleSurveys = 30
)

func newTree(root string, self int) *tree {
	t := &tree{root: root, self: self, turns: make(chan struct{}, 1), nodes: map[int]*node{}, children: map[int][]int{}, sessions: map[int][]int{}}
	if file, err := os.Open(root + "/loadavg"); err == nil {
		t.loadavg = file
	}
	if comm, err := os.ReadFile(root + "/1/comm"); err == nil && string(comm) == "systemd\n" {
		t.init = 1
	}
	return t
}

// update brings the tree up to date.
func (t *tree) update() {
	t.turns <- struct{}{}
	defer func() { <-t.turns }()
	newest, known := t.newestPID()
	now := time.Now()
	var late []unborn
	t.mu.Lock()
	last, fresh := t.last, now.Sub(t.listed) < listingAge
	for _, u := range t.unborn {
		if !now.Before(u.next) {
			late = append(late, u)
		}
	}
	t.mu.Unlock()
	switch {
	case known && newest == last && fresh && len(late) == 0:
	case known && fresh && newest >= last && newest-last <= maxBirths:
		for pid := last + 1; pid <= newest; pid++ {
			late = append(late, unborn{pid: pid, since: now})
		}
		t.births(late, newest, now)
	default:
		t.list(newest, last)
	}
}

// relist reads the whole directory now.
func (t *tree) relist() {
	t.turns <- struct{}{}
	defer func() { <-t.turns }()
	newest, _ := t.newestPID()
	t.mu.Lock()
	last := t.last
	t.mu.Unlock()
	t.list(newest, last)
}

// births looks at numbers that were given away, up to newest.
func (t *tree) births(given []unborn, newest int, now time.Time) {
	var born []*node
	done, still := map[int]bool{}, given[:0:0]
	for _, u := range given {
		n, there := t.read(u.pid)
		if n != nil {
			born = append(born, n)
		}
		done[u.pid] = true
		if age := now.Sub(u.since); !there && age < unbornAge {
			u.next = now.Add(max(age, time.Millisecond))
			still = append(still, u)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.add(born)
	t.last = max(t.last, newest)
	t.unborn = append(slices.DeleteFunc(t.unborn, func(u unborn) bool { return done[u.pid] }), still...)
	t.unborn = slices.Delete(t.unborn, 0, max(0, len(t.unborn)-maxUnborn))
}

// hurry makes the next update look at all that may have been born: the process that a search is for
// has sent something, so it can be seen by now.
func (t *tree) hurry() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.unborn {
		t.unborn[i].next = time.Time{}
	}
}

func (t *tree) newestPID() (int, bool) {
	if t.loadavg == nil {
		return 0, false
	}
	var buf [128]byte
	n, _ := t.loadavg.ReadAt(buf[:], 0)
	return parseLastPID(buf[:n])
}

// list reads the whole directory: it forgets what has ended and reads the processes that it
// does not know, or whose number may have been given away since it last looked.
func (t *tree) list(newest, last int) {
	started := time.Now()
	dir, err := os.Open(t.root)
	if err != nil {
		return
	}
	names, _ := dir.Readdirnames(-1)
	dir.Close()

	t.mu.Lock()
	old := t.nodes
	wrapped := newest < last || newest == last && started.Sub(t.listed) >= listingAge
	t.mu.Unlock()
	var keep, born []*node // in the order of their PIDs, mostly that of their birth
	listed := make(map[int]bool, len(names))
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		listed[pid] = true
		t.mu.Lock()
		n := old[pid]
		t.mu.Unlock()
		reused := pid > last || (wrapped && pid <= newest)
		if n != nil && !reused {
			keep = append(keep, n)
		} else if n, _ = t.read(pid); n != nil {
			born = append(born, n)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unborn = nil
	for pid := max(1, newest-maxUnborn+1); pid <= newest; pid++ {
		if !listed[pid] { // the numbers of threads are among them
			t.unborn = append(t.unborn, unborn{pid: pid, since: started})
		}
	}
	t.nodes, t.children, t.sessions = map[int]*node{}, map[int][]int{}, map[int][]int{}
	t.add(keep)
	t.newborn = nil
	t.add(born)
	t.last, t.listed = newest, started
}

// add enters nodes. The caller holds mu.
func (t *tree) add(nodes []*node) {
	for _, n := range nodes {
		if old := t.nodes[n.pid]; old != nil && old.start == n.start {
			old.ended = false
			continue
		}
		t.nodes[n.pid] = n
		t.children[n.parent] = append(t.children[n.parent], n.pid)
		t.sessions[n.session] = append(t.sessions[n.session], n.pid)
		t.newborn = append(t.newborn, n.pid)
		t.version++
	}
	t.newborn = slices.Delete(t.newborn, 0, max(0, len(t.newborn)-maxNewborn))
}

// read reads one process. There is none where n is nil, unless there says so: then the number is that
// of a thread.
func (t *tree) read(pid int) (n *node, there bool) {
	dir, err := unix.Open(t.root+"/"+strconv.Itoa(pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, false
	}
	defer unix.Close(dir)
	text, err := readAt(dir, "stat", 8<<10)
	if err != nil {
		return nil, false
	}
	s, err := parseStat(text)
	if err != nil || s.thread {
		return nil, err == nil
	}
	return &node{pid: pid, parent: s.parent, session: s.session, start: s.start}, true
}

// maxNewborn bounds tree.newborn.
const maxNewborn = 32

// takeNewborn returns the processes that no search has looked at yet, newest first.
func (t *tree) takeNewborn() []int {
	t.mu.Lock()
	defer t.mu.Unlock()
	pids := t.newborn
	t.newborn = nil
	slices.Reverse(pids)
	return pids
}

// order returns all processes in the order in which a search pays off: the descendants of
// first, then the others, then those that have been without sockets for long, each newest
// first. Unreadable ones are left out and counted.
func (t *tree) order(first int) (pids []int, hidden int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	inside := map[int]bool{}
	t.descend(first, inside)
	nodes := make([]*node, 0, len(t.nodes))
	for _, n := range t.nodes {
		if time.Since(n.hidden) < hiddenAge {
			hidden++
		} else {
			nodes = append(nodes, n)
		}
	}
	rank := func(n *node) int {
		switch {
		case inside[n.pid]:
			return 0
		case n.idle < idleSurveys:
			return 1
		default:
			return 2
		}
	}
	slices.SortFunc(nodes, func(a, b *node) int {
		return cmp.Or(rank(a)-rank(b), cmp.Compare(b.start, a.start), b.pid-a.pid)
	})
	for _, n := range nodes {
		pids = append(pids, n.pid)
	}
	return pids, hidden
}

// all returns all processes that can be read.
func (t *tree) all() []int {
	t.mu.Lock()
	defer t.mu.Unlock()
	pids := make([]int, 0, len(t.nodes))
	for _, n := range t.nodes {
		if time.Since(n.hidden) >= hiddenAge {
			pids = append(pids, n.pid)
		}
	}
	return pids
}

// descend adds the descendants of pid, and pid, to set. The caller holds mu.
func (t *tree) descend(pid int, set map[int]bool) {
	if pid <= 0 || set[pid] {
		return
	}
	set[pid] = true
	for _, child := range t.children[pid] {
		t.descend(child, set)
	}
}

// hide notes that the descriptors of pid cannot be read.
func (t *tree) hide(pid int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.nodes[pid]; n != nil {
		n.hidden = time.Now()
	}
}

// surveyed notes whether pid has sockets.
func (t *tree) surveyed(pid int, sockets bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.nodes[pid]
	switch {
	case n == nil:
	case sockets:
		n.idle = 0
	default:
		n.idle++
	}
}

// kin are the processes that may share a socket with a program because of how they were born:
// its descendants, its parent, its siblings and the rest of its session, the young first.
// systemd as init is never among them: it hands sockets to services and never sends on them. Nor is this
// program, which takes no descriptors from others, except for a child of its own, which may not have
// executed yet.
type kin struct {
	version uint64
	members []int
	turn    int // where the next look-up goes on among those that it cannot all try
}

// maxKin bounds kin; nearer and younger ones stay.
const maxKin = 64

// current returns the version of the tree.
func (t *tree) current() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.version
}

// tablesOf appends what was last seen of the processes' descriptors to dst.
func (t *tree) tablesOf(dst []*table, pids []int) []*table {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, pid := range pids {
		var seen *table
		if n := t.nodes[pid]; n != nil {
			seen = n.table
		}
		dst = append(dst, seen)
	}
	return dst
}

// setTable notes what was seen of a process's descriptors.
func (t *tree) setTable(pid int, seen *table) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.nodes[pid]; n != nil {
		n.table = seen
	}
}

// end notes that a process is gone: nobody's look-up asks for it any more.
func (t *tree) end(pid int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.nodes[pid]; n != nil && !n.ended {
		n.ended = true
		t.version++
	}
}

// kinOf returns the kin of pid that have not ended and the version they are of.
func (t *tree) kinOf(pid int) ([]int, uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.nodes[pid]
	k := kinSearch{t: t, seen: map[int]bool{pid: true, 0: true, t.init: true}}
	if n == nil || n.parent != t.self {
		k.seen[t.self] = true
	}
	k.add(t.children[pid])
	for i := 0; i < len(k.reached) && len(k.pids) < maxKin; i++ {
		k.add(t.children[k.reached[i]])
	}
	if n != nil && n.parent > 0 && n.parent != t.init {
		k.add([]int{n.parent})
		k.add(t.children[n.parent])
	}
	if n != nil && n.session > 1 {
		k.add(t.sessions[n.session])
	}
	return k.pids, t.version
}

// kinSearch is kinOf at work. What has ended leads on to its children, and is nobody's kin itself.
type kinSearch struct {
	t       *tree
	seen    map[int]bool
	reached []int
	pids    []int
}

func (k *kinSearch) add(more []int) {
	for _, p := range slices.Backward(more) {
		n := k.t.nodes[p]
		if k.seen[p] || n == nil || len(k.pids) >= maxKin {
			continue
		}
		k.seen[p] = true
		k.reached = append(k.reached, p)
		if !n.ended {
			k.pids = append(k.pids, p)
		}
	}
}
