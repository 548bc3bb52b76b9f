package handback

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// batchLimit bounds a transaction, and so how long the first of a burst waits for the last.
const batchLimit = 128

// change is one change of the sets: first what goes, then what comes.
type change struct {
	k        key
	family   nftables.TableFamily
	del, add string // names of sets without suffix, "" for none
	suffix   string // "4" or "6"
	timeout  time.Duration
	replace  bool // nothing comes where nothing goes
	forget   bool // connection tracking is to see the flow anew
	tracked  key  // which has this name there,
	unnamed  bool // or another one
	err      error
	// exclusive makes it EEXIST if what comes is there.
	exclusive bool

	first, last uint32 // sequence numbers in the transaction
}

// request is what one caller waits for.
type request struct {
	changes []*change
	wake    chan bool // true: lead; false: it is done
}

// writer sends changes to the kernel. Whoever comes while nobody is writing leads: it sends what
// has gathered, its own first, and hands over to the next. So changes that come at once share a
// transaction, one that comes alone waits for nobody, and there is no goroutine.
type writer struct {
	table   string
	nft, ct *wire      // used by the leader only
	batch   []*request // the leader's

	requests sync.Pool

	mu      sync.Mutex
	waiting []*request
	led     bool
	closed  bool
}

func openWriter(table string) (*writer, error) {
	nft, err := openPrompt()
	if err != nil {
		return nil, err
	}
	ct, err := openPrompt()
	if err != nil {
		nft.close()
		return nil, err
	}
	return &writer{table: table, nft: nft, ct: ct}, nil
}

// do applies changes, at most batchLimit, and returns when all are done. Each carries its error; do
// returns them joined.
func (w *writer) do(changes ...*change) error {
	if err := w.apply(changes); err != nil {
		return err
	}
	var errs []error
	for _, c := range changes {
		if c.err != nil {
			errs = append(errs, c.err)
		}
	}
	return errors.Join(errs...)
}

// apply is do for who looks at each change.
func (w *writer) apply(changes []*change) error {
	r, _ := w.requests.Get().(*request)
	if r == nil {
		r = &request{wake: make(chan bool, 1)}
	}
	r.changes = changes
	defer func() { // whoever was to wake it has done so
		r.changes = nil
		w.requests.Put(r)
	}()
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return ErrClosed
	}
	w.waiting = append(w.waiting, r)
	lead := !w.led
	w.led = true
	w.mu.Unlock()
	if lead || <-r.wake {
		w.lead(r)
	}
	return nil
}

// lead sends what waits, which begins with own.
func (w *writer) lead(own *request) {
	w.mu.Lock()
	n, size := 0, 0
	for n < len(w.waiting) && (n == 0 || size+len(w.waiting[n].changes) <= batchLimit) {
		size += len(w.waiting[n].changes)
		n++
	}
	w.batch = append(w.batch[:0], w.waiting[:n]...)
	w.mu.Unlock()

	all := own.changes
	if n > 1 {
		all = make([]*change, 0, size)
		for _, r := range w.batch {
			all = append(all, r.changes...)
		}
	}
	w.write(all)

	w.mu.Lock()
	for _, r := range w.batch { // before somebody else leads
		if r != own {
			r.wake <- false
		}
	}
	var next *request
	if w.waiting = slices.Delete(w.waiting, 0, n); len(w.waiting) > 0 {
		next = w.waiting[0]
	} else {
		w.led = false
		w.release()
	}
	w.mu.Unlock()
	if next != nil {
		next.wake <- true
	}
}

// release gives back the sockets when nobody writes any more. w.mu is held.
func (w *writer) release() {
	if w.closed && w.nft != nil {
		w.nft.close()
		w.ct.close()
		w.nft, w.ct = nil, nil
	}
}

func (w *writer) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	if !w.led {
		w.release()
	}
}

// write does all of changes. The kernel takes a transaction whole or not at all, and names the
// messages that it refuses: without them the rest is sent again.
func (w *writer) write(changes []*change) {
	for left := changes; len(left) > 0; {
		refused, err := w.transaction(left)
		if err == nil && !refused {
			break
		}
		var again []*change
		for _, c := range left {
			switch {
			case err != nil:
				c.err = err
			case c.err == errGone: // what was to go is not there: that is as good
				c.del, c.err = "", nil
				if c.add != "" && !c.replace {
					again = append(again, c)
				}
			case c.err == nil:
				again = append(again, c)
			}
		}
		left = again
	}
	w.forget(changes)
}

// errGone marks a change whose element to delete is not there.
var errGone = errors.New("no such element")

// transaction sends changes. refused is true if nothing was done because of the changes that have
// an error now.
func (w *writer) transaction(changes []*change) (refused bool, err error) {
	n := w.nft
	n.out = n.out[:0]
	n.end(n.begin(batchBegin, 0, [4]byte{3: unix.NFNL_SUBSYS_NFTABLES}))
	for _, c := range changes {
		c.first = n.seq + 1
		create := uint16(unix.NLM_F_CREATE)
		if c.exclusive {
			create |= unix.NLM_F_EXCL
		}
		if c.del != "" {
			n.element(delElement, 0, c.family, w.table, c.del, c.suffix, &c.k, 0)
		}
		if c.add != "" {
			n.element(newElement, create, c.family, w.table, c.add, c.suffix, &c.k, c.timeout)
		}
		c.last = n.seq
	}
	n.end(n.begin(batchEnd, 0, [4]byte{3: unix.NFNL_SUBSYS_NFTABLES}))
	if err := n.send(); err != nil {
		return false, err
	}
	var bad error
	err = n.answers(func(m message) {
		if m.typ != unix.NLMSG_ERROR || m.errno() == 0 {
			return
		}
		refused = true
		if e := m.errno(); !blame(changes, m.seq, e) {
			bad = fmt.Errorf("nftables transaction: %w", typed(e))
		}
	})
	if err = errors.Join(err, bad); err != nil {
		return false, err
	}
	return refused, nil
}

// blame gives the change of message seq its error.
func blame(changes []*change, seq uint32, e unix.Errno) bool {
	for _, c := range changes {
		if seq < c.first || seq > c.last {
			continue
		}
		switch {
		case e == unix.ENOENT && c.del != "" && seq == c.first:
			c.err = errGone
		case e == unix.ENFILE || e == unix.ENOMEM || e == unix.ENOSPC:
			c.err = fmt.Errorf("%w: %w", ErrFull, e)
		default:
			c.err = typed(e)
		}
		return true
	}
	return false
}

// errTranslated marks a change whose flow connection tracking does not have under the five values of
// its packet. Somebody translates what the program sends (a port that containers publish, a service
// address of a cluster): sent again, the packet would make an entry that leads no answer back to the
// program's socket. Or nobody tracks it.
var errTranslated = errors.New("connection tracking has it under other addresses, or not at all")

// forget takes the entries that the held packets have left in connection tracking: they went
// towards the TUN device, and whatever translation was chosen for that way, even none, would stay.
// The kernel answers only where there is nothing to take.
func (w *writer) forget(changes []*change) {
	w.ct.out = w.ct.out[:0]
	for _, c := range changes {
		if c.forget && c.err == nil {
			w.ct.forget(&c.tracked)
			c.last = w.ct.seq // of the answer, if there is one
		}
	}
	if len(w.ct.out) == 0 || w.ct.send() != nil {
		return
	}
	_ = w.ct.answers(func(m message) { // the verdict holds where they cannot be read
		if m.typ != unix.NLMSG_ERROR || m.errno() != unix.ENOENT {
			return
		}
		for _, c := range changes {
			if c.forget && !c.unnamed && c.err == nil && c.last == m.seq {
				c.err = errTranslated
			}
		}
	})
}
