package interception

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"gatun/attribution"
)

// reservedFiles stay free for DNS, the API and files: a program that opens connections without
// end must not take the names and the control from all others.
const reservedFiles = 256

// ErrFileBudget says that a flow was refused to keep files free for others.
var ErrFileBudget = errors.New("too many open connections: raise the limit of open files (LimitNOFILE), or end some")

// OwnerKey tells programs apart: a process ID alone is used again. The zero key stands for all
// flows whose program is not known, together.
type OwnerKey struct {
	PID     int
	Started int64 // nanoseconds since 1970
}

// KeyOf returns the key of an owner.
func KeyOf(o attribution.Owner) OwnerKey {
	if o.Process == nil || o.Process.PID == 0 {
		return OwnerKey{}
	}
	return OwnerKey{PID: o.Process.PID, Started: startedNanos(o.Process.Started)}
}

func startedNanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// FileBudget shares the files that upstream sockets may take. Above 90 % of the limit the
// program that holds the most gets no more; the last 256 nobody gets.
type FileBudget struct {
	soft, hard int

	mu      sync.Mutex
	used    int
	spare   int // beside those
	byOwner map[OwnerKey]int
}

// NewFileBudget returns a budget for a process that may open limit files.
func NewFileBudget(limit int) *FileBudget {
	hard := max(limit-reservedFiles, 1)
	return &FileBudget{hard: hard, soft: max(min(limit*9/10, hard*95/100), 1), byOwner: map[OwnerKey]int{}}
}

// Acquire takes one file for the owner, who gives it back with Release. The error says who
// holds how many; nothing was taken then.
func (b *FileBudget) Acquire(o OwnerKey) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	own := b.byOwner[o]
	switch {
	case b.used+b.spare >= b.hard:
		return fmt.Errorf("%w (%d of %d in use)", ErrFileBudget, b.used, b.hard)
	case b.used >= b.soft && own >= b.largest():
		return fmt.Errorf("%w (this program holds %d, the most of all; %d of %d in use)", ErrFileBudget, own, b.used, b.hard)
	}
	b.used++
	b.byOwner[o] = own + 1
	return nil
}

// AcquireSpare takes one file more for a flow that does better with two, and reports whether there is one;
// ReleaseSpare gives it back. Half of what lies between the two limits may be spent so: no flow is refused
// for it that would not have been refused without.
func (b *FileBudget) AcquireSpare() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.spare >= (b.hard-b.soft)/2 || b.used+b.spare >= b.hard {
		return false
	}
	b.spare++
	return true
}

// ReleaseSpare gives back a file of AcquireSpare.
func (b *FileBudget) ReleaseSpare() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.spare--
}

// Retake takes a file for an owner who has just given one back to make room. Only the hard
// limit counts: the owner holds no more than before.
func (b *FileBudget) Retake(o OwnerKey) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used+b.spare >= b.hard {
		return fmt.Errorf("%w (%d of %d in use)", ErrFileBudget, b.used, b.hard)
	}
	b.used++
	b.byOwner[o]++
	return nil
}

// largest is asked only above the soft limit.
func (b *FileBudget) largest() int {
	most := 0
	for _, n := range b.byOwner {
		most = max(most, n)
	}
	return most
}

// Release gives back one file of the owner.
func (b *FileBudget) Release(o OwnerKey) {
	b.mu.Lock()
	defer b.mu.Unlock()
	own := b.byOwner[o]
	if own == 0 {
		return // a release too many must not make room that is not there
	}
	b.used--
	if own > 1 {
		b.byOwner[o] = own - 1
		return
	}
	delete(b.byOwner, o)
	if len(b.byOwner) == 0 {
		b.byOwner = map[OwnerKey]int{} // a Go map never shrinks
	}
}

// Used returns how many files are taken, and how many of them by the owner.
func (b *FileBudget) Used(o OwnerKey) (all, own int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used, b.byOwner[o]
}
