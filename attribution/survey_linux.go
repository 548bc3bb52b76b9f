package attribution

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// surveyor looks through all processes for sockets that more than one of them holds. It finds
// what a look-up cannot afford to search: a socket that was passed to a process that is no
// kin of its owner. Processes that share any socket are partners from then on, and a look-up
// for one of them also tries the other.
type surveyor struct {
	cache *cache
	tree  *tree

	mu     sync.Mutex
	shared map[uint64][]place
	mates  map[int][]int
}

const (
	surveyInterval = time.Second
	surveyShare    = 50 // a survey may take one part in this many of one processor's time
	maxPartners    = 4
)

// Run keeps the knowledge of shared sockets up to date until ctx ends. Find works without it,
// but then knows only of sockets that were shared by fork or within a family of processes.
func (f *Finder) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var served uint64
	first := true
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		wait := surveyInterval
		if now := f.lookups.Load(); now != served || first {
			served, first = now, false
			start := time.Now()
			f.os.surveyor.survey(ctx)
			wait = max(wait, surveyShare*time.Since(start))
		}
		timer.Reset(wait)
	}
}

// survey reads the descriptors of all processes.
func (s *surveyor) survey(ctx context.Context) {
	s.tree.update()
	pids := s.tree.all()
	seen := make(map[uint64]place)
	shared := make(map[uint64][]place)
	for _, pid := range pids {
		if ctx.Err() != nil {
			return
		}
		if pid == s.tree.init || pid == s.tree.self {
			continue // see kin
		}
		s.look(pid, seen, shared)
	}
	mates := make(map[int][]int)
	for _, places := range shared {
		for _, a := range places {
			for _, b := range places {
				if a.pid != b.pid && len(mates[a.pid]) < maxPartners && !slices.Contains(mates[a.pid], b.pid) {
					mates[a.pid] = append(mates[a.pid], b.pid)
				}
			}
		}
	}
	s.mu.Lock()
	s.shared, s.mates = shared, mates
	s.mu.Unlock()
}

// look enters the sockets of one process.
func (s *surveyor) look(pid int, seen map[uint64]place, shared map[uint64][]place) {
	p, err := openProgram(s.cache.root, pid)
	if err != nil {
		return
	}
	defer p.release()
	sockets := false
	err = eachFD(p.dir, func(fds, fd int) bool {
		inode, isSocket := socketAt(fds, strconv.Itoa(fd))
		if !isSocket {
			return true
		}
		sockets = true
		at := place{pid, fd}
		first, again := seen[inode]
		switch {
		case !again:
			seen[inode] = at
		case first.pid != pid && len(shared[inode]) == 0:
			shared[inode] = []place{first, at}
		case first.pid != pid && len(shared[inode]) < maxKin:
			shared[inode] = append(shared[inode], at)
		}
		return true
	})
	if forbidden(err) {
		s.tree.hide(pid)
	}
	s.tree.surveyed(pid, sockets)
}

// holders returns the places where the last survey saw the socket, if there was more than one.
func (s *surveyor) holders(inode uint64) []place {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shared[inode]
}

// partners returns the processes that share a socket with pid. The result may be appended to.
func (s *surveyor) partners(pid int) []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.mates[pid])
}

// holdsAt reports whether descriptor fd of the process is the socket. Who the process is does
// not matter: it holds the socket.
func holdsAt(root string, pid, fd int, inode uint64) bool {
	at, isSocket := socketAt(unix.AT_FDCWD, root+"/"+strconv.Itoa(pid)+"/fd/"+strconv.Itoa(fd))
	return isSocket && at == inode
}
