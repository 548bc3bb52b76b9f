package attribution

import (
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// sizes asks for the size of tables that are asked about in every round, through handles: the name is
// most of the way to a table. A handle stands for one process for ever; where it fails the number may be
// somebody else's.
type sizes struct {
	mu      sync.Mutex
	handles map[int]*tableHandle
}

// tableHandle is a handle on the directory of a process's descriptors. sizes.mu guards refs: the
// map's and one per user; the last one closes.
type tableHandle struct {
	fd, refs int
}

// maxHandles is enough for the kin that rounds of several busy programs look at.
const maxHandles = 64

// The sizes of tables that cannot be asked for.
const (
	sizeUnknown  = -1
	sizeOfNobody = -2 // there is no such process
)

// of is tableSize, or sizeOfNobody.
func (s *sizes) of(root string, pid int) int64 {
	var st unix.Stat_t
	if h := s.take(pid); h != nil {
		err := unix.Fstat(h.fd, &st)
		s.put(pid, h, err != nil)
		if err == nil {
			return st.Size
		}
	}
	fd, err := unix.Open(root+"/"+strconv.Itoa(pid)+"/fd", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.Fstat(fd, &st)
		s.keep(pid, fd)
	}
	switch {
	case err == nil:
		return st.Size
	case err == unix.ENOENT, err == unix.ESRCH:
		return sizeOfNobody
	default:
		return sizeUnknown
	}
}

// take returns the handle of a process, nil if there is none. It is to be put back.
func (s *sizes) take(pid int) *tableHandle {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.handles[pid]
	if h != nil {
		h.refs++
	}
	return h
}

// put ends one use of a handle, which is over and done with where it failed.
func (s *sizes) put(pid int, h *tableHandle, failed bool) {
	s.mu.Lock()
	if failed && s.handles[pid] == h {
		delete(s.handles, pid)
		h.refs--
	}
	h.refs--
	over := h.refs == 0
	s.mu.Unlock()
	if over {
		unix.Close(h.fd)
	}
}

// keep remembers a new handle, in the place of another one if there are many.
func (s *sizes) keep(pid, fd int) {
	s.mu.Lock()
	if s.handles == nil {
		s.handles = map[int]*tableHandle{}
	}
	var gone []*tableHandle
	for other, h := range s.handles {
		if other == pid || len(s.handles) >= maxHandles && len(gone) == 0 {
			delete(s.handles, other)
			gone = append(gone, h)
		}
	}
	s.handles[pid] = &tableHandle{fd: fd, refs: 1}
	s.mu.Unlock()
	s.drop(gone)
}

// drop takes handles that are in the map no more.
func (s *sizes) drop(gone []*tableHandle) {
	for _, h := range gone {
		s.put(-1, h, false)
	}
}

// close gives back the handles.
func (s *sizes) close() {
	s.mu.Lock()
	var gone []*tableHandle
	for _, h := range s.handles {
		gone = append(gone, h)
	}
	s.handles = nil
	s.mu.Unlock()
	s.drop(gone)
}
