package attribution

import (
	"errors"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// program is a process that was found to own a socket, kept because it will open more.
//
// dir is a handle on its /proc directory. It stands for this one process for ever: once it
// has ended, every access through dir fails, whoever has its PID now. So nothing that is read
// through dir needs a check for PID reuse.
type program struct {
	pid int
	dir int
	fds atomic.Int32 // a handle on the directory of its descriptors; 0 until it owned a socket

	refs atomic.Int64 // the cache's and one per user; the last one closes

	mu     sync.Mutex
	now    *running
	likely likely
	known  bitset // fd numbers that a sweep has seen
	kin    kin
	next   *round    // look-ups that begin now wait for it; see kin_linux.go
	asked  time.Time // when somebody wanted one last
	turns  chan struct{}
}

// running is one image of a program with what shows that it is still the one that runs.
type running struct {
	image   *image
	exe     string   // the link as the kernel shows it
	uid     uint32   // of the /proc directory
	environ *os.File // bound to the memory of this image: reads nothing after exec; may be nil
	cmdline []byte   // compared instead where environ cannot tell
}

func openProgram(root string, pid int) (*program, error) {
	dir, err := unix.Open(root+"/"+strconv.Itoa(pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	p := &program{pid: pid, dir: dir, turns: make(chan struct{}, 1)}
	p.refs.Store(1)
	return p, nil
}

// release ends one use of p.
func (p *program) release() {
	if p.refs.Add(-1) != 0 {
		return
	}
	unix.Close(p.dir)
	if fds := p.fds.Load(); fds != 0 {
		unix.Close(int(fds))
	}
	p.mu.Lock()
	now := p.now
	p.now = nil
	p.mu.Unlock()
	now.close()
}

func (r *running) close() {
	if r != nil && r.environ != nil {
		r.environ.Close()
	}
}

// ended reports whether the process is gone.
func (p *program) ended() bool {
	var st unix.Stat_t
	return unix.Fstatat(p.dir, "stat", &st, 0) != nil
}

// holds reports whether p's descriptor fd is the socket.
func (p *program) holds(fd int, inode uint64) bool {
	at, isSocket := p.socketAt(fd)
	return isSocket && at == inode
}

// socketAt returns the inode of p's descriptor fd, if it is a socket.
func (p *program) socketAt(fd int) (uint64, bool) {
	if fd < 0 {
		return 0, false
	}
	if fds := p.fds.Load(); fds != 0 {
		return socketAt(int(fds), strconv.Itoa(fd))
	}
	return socketAt(p.dir, "fd/"+strconv.Itoa(fd))
}

// found notes that the socket was at fd.
func (p *program) found(fd int, inode uint64) {
	p.saw(fd, inode)
	p.mu.Lock()
	p.known.add(fd)
	opened := p.fds.Load() != 0
	p.mu.Unlock()
	if opened {
		return
	}
	// A name less to resolve for each descriptor that is looked at from now on.
	fds, err := unix.Openat(p.dir, "fd", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil && !p.fds.CompareAndSwap(0, int32(fds)) {
		unix.Close(fds)
	}
}

// runs returns the image that p was last seen to run, where it is certain to be told from a later one; nil
// otherwise.
func (p *program) runs() *image {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.now == nil || p.now.environ == nil {
		return nil
	}
	return p.now.image
}

// image returns what p runs now. It fails with errChanging in the middle of exec, and when p
// has ended or may not be read.
func (p *program) image(facts *factReader) (*image, error) {
	p.mu.Lock()
	now := p.now
	p.mu.Unlock()
	if now != nil && now.stillRuns(p.dir) {
		return now.image, nil
	}
	fresh, err := facts.read(p.dir, p.pid)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	old := p.now
	p.now = fresh
	p.mu.Unlock()
	old.close()
	return fresh.image, nil
}

// stillRuns reports whether the process of dir has neither executed another program nor
// changed its user since r was read.
func (r *running) stillRuns(dir int) bool {
	var st unix.Stat_t
	if unix.Fstat(dir, &st) != nil || st.Uid != r.uid {
		return false
	}
	if !linkIs(dir, "exe", r.exe) {
		return false
	}
	if r.environ != nil {
		var one [1]byte
		n, err := r.environ.ReadAt(one[:], 0)
		return n == 1 && err == nil
	}
	text, err := readAt(dir, "cmdline", maxArgs)
	return err == nil && string(text) == string(r.cmdline)
}

// linkIs reports whether a link below dir names target.
func linkIs(dir int, name, target string) bool {
	var short [256]byte // a large one would make the stack of every new goroutine grow
	buf := short[:]
	if len(target) >= len(short) {
		buf = make([]byte, len(target)+1)
	}
	n, err := unix.Readlinkat(dir, name, buf)
	return err == nil && string(buf[:n]) == target
}

// bitset is a set of small numbers.
type bitset []uint64

func (b *bitset) add(n int) {
	for n>>6 >= len(*b) {
		*b = append(*b, 0)
	}
	(*b)[n>>6] |= 1 << (n & 63)
}

func (b bitset) has(n int) bool { return n>>6 < len(b) && b[n>>6]&(1<<(n&63)) != 0 }

// free returns the lowest count numbers that are not in b: the next descriptors to be given.
func (b bitset) free(count int) []int {
	numbers := make([]int, 0, count)
	for n := 0; len(numbers) < count; n++ {
		if !b.has(n) {
			numbers = append(numbers, n)
		}
	}
	return numbers
}

// readAt reads a file of proc below dir, at most limit bytes of it.
func readAt(dir int, name string, limit int) ([]byte, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	buf := make([]byte, 0, 1024)
	for len(buf) < limit {
		buf = slices.Grow(buf, 1024)
		n, err := unix.Read(fd, buf[len(buf):min(cap(buf), limit)])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return nil, err
		case n == 0:
			return buf, nil
		default:
			buf = buf[:len(buf)+n]
		}
	}
	return buf, nil
}

// eachFD calls visit with every descriptor number of the process directory dir, until it
// returns false. visit may use fds, a handle on the directory of the descriptors.
func eachFD(dir int, visit func(fds, fd int) bool) error {
	fds, err := unix.Openat(dir, "fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fds)
	buf := make([]byte, 8<<10)
	var names []string
	for {
		n, err := unix.Getdents(fds, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return err
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names[:0])
		for _, name := range names {
			fd, err := strconv.Atoi(name)
			if err == nil && !visit(fds, fd) {
				return nil
			}
		}
	}
}

// socketAt returns the inode of the descriptor name below the directory handle dir, if it is a
// socket.
func socketAt(dir int, name string) (uint64, bool) {
	var buf [32]byte
	n, err := unix.Readlinkat(dir, name, buf[:])
	if err != nil {
		return 0, false
	}
	return parseSocketLink(buf[:n])
}

// forbidden reports whether err says that this user may not look at a process.
func forbidden(err error) bool {
	return errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM)
}
