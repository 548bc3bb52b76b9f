package handback

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gatun/network/packet"
	"gatun/tun/resend"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Table is the flows that the kernel carries. Any goroutine may call its methods.
type Table struct {
	o        Options
	silences bool // there is an egress hook on the device (Linux 5.16)
	w        *writer
	raw      *resend.Sockets
	tcp      *events
	udp      *events
	diags    chan *wire // lent, so that a burst of Revoke takes no more sockets
	lists    chan *wire // one: reads of whole sets come one after the other
	// tracks is one as well: whoever changes the mark of a flow that lasts knows that nobody else does.
	tracks chan *wire

	done chan struct{} // closed by release

	rules    sync.Mutex // held while they are put back, or taken away for good
	restored atomic.Uint64
	mu       sync.Mutex
	flows    map[packet.Flow]entry
	ports    map[port][]packet.Flow    // sockets that are gone have no whole name
	young    []packet.Flow             // accepted since the last look for orphans
	returned map[packet.Flow]time.Time // flows of other protocols whose packets came back, and when
	lasting  map[packet.Flow]lasting   // of flows; those that are not looked up
	watches  watches
	closed   bool

	opening     *opening // nil: nothing begins ahead; closedAhead says why
	closedAhead error
	fresh       fresh
	cookies     map[uint64]packet.Flow       // of sockets whose connections began ahead and are not in the set
	ahead       map[netip.AddrPort]time.Time // destinations, and when they were admitted last
}

// port is a program's side of flows.
type port struct {
	proto  packet.Proto
	number uint16
}

func portOf(f packet.Flow) port { return port{f.Proto, f.Local.Port()} }

// entry is what is known of an accepted flow.
type entry struct {
	since time.Time // when it entered the set, or again
	base  Counter   // sent before the entry was renewed
	sent  Counter   // when last read, base included
	first int       // bytes of the packet that began it; 0: not known

	carried        // by a TCP socket that is gone; of UDP what was received
	reply   uint64 // of what UDP has received, what connection tracking had counted when last read
	syn     uint32 // the sequence number of the SYN

	told   bool   // what is carried was said by the socket
	ahead  bool   // it is not in the set: it began ahead, and has not lasted yet
	closed bool   // the kernel has told that its socket is gone
	cookie uint64 // of the socket of what began ahead; 0: not known
	lasted bool   // it is taken out while it is not looked up, and its base holds what passed so
	strays uint16 // packets that came here all the same, of protocols but TCP and UDP
}

const diagWires = 2

// Open puts the rules in and adopts the flows that an earlier process has left. The error wraps
// ErrUnsupported where the kernel or our rights do not allow it. Nothing is read until Run.
func Open(o Options) (*Table, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	t := &Table{o: o, flows: map[packet.Flow]entry{}, ports: map[port][]packet.Flow{}, returned: map[packet.Flow]time.Time{},
		diags: make(chan *wire, diagWires), lists: make(chan *wire, 1), tracks: make(chan *wire, 1), lasting: map[packet.Flow]lasting{}, done: make(chan struct{}), watches: watches{wake: make(chan struct{}, 1)},
		fresh: fresh{wake: make(chan struct{}, 1)}, cookies: map[uint64]packet.Flow{}, ahead: map[netip.AddrPort]time.Time{}}
	if err := t.openSockets(); err != nil {
		t.release()
		return nil, err
	}
	left, err := tableExists(o.Table, nftables.TableFamilyINet)
	if err == nil {
		t.silences, err = install(o)
	}
	if err != nil {
		t.release()
		return nil, err
	}
	err = errors.Join(t.adopt(), t.forgetLasting())
	if left && err == nil {
		err = t.adoptBegun()
	}
	if err != nil {
		t.release()
		return nil, errors.Join(err, Recover(o))
	}
	if o.Begin != nil {
		t.opening, t.closedAhead = openOpening(o)
	}
	return t, nil
}

func (t *Table) openSockets() (err error) {
	if t.w, err = openWriter(t.o.Table); err != nil {
		return err
	}
	if t.raw, err = resend.Open(t.o.Mark); err != nil {
		return err
	}
	if t.tcp, err = openEvents(packet.TCP); err != nil {
		return err
	}
	if t.udp, err = openEvents(packet.UDP); err != nil {
		return err
	}
	for range diagWires {
		d, err := openWire(unix.NETLINK_SOCK_DIAG)
		if err != nil {
			return err
		}
		t.diags <- d
	}
	l, err := openWire(unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	t.lists <- l
	l, err = openPrompt()
	if err == nil {
		t.tracks <- l
	}
	return err
}

// release closes the sockets and leaves the kernel as it is, as a crash would.
func (t *Table) release() {
	t.mu.Lock()
	was := t.closed
	t.closed = true
	t.mu.Unlock()
	if was {
		return
	}
	close(t.done)
	if t.w != nil {
		t.w.close()
	}
	if t.raw != nil {
		t.raw.Close()
	}
	if t.opening != nil {
		t.opening.close()
	}
	for _, e := range []*events{t.tcp, t.udp} {
		if e != nil {
			e.close()
		}
	}
	for _, pool := range []chan *wire{t.diags, t.lists, t.tracks} {
		t.drain(pool)
	}
}

// drain closes the idle sockets of a pool; lent ones are closed by who gives them back.
func (t *Table) drain(pool chan *wire) {
	for {
		select {
		case w := <-pool:
			w.close()
		default:
			return
		}
	}
}

// lent runs use with a socket of the pool.
func (t *Table) lent(pool chan *wire, use func(*wire) error) error {
	var w *wire
	select {
	case w = <-pool:
	case <-t.done:
		return ErrClosed
	}
	defer func() {
		pool <- w // never blocks: there is room for every one
		select {
		case <-t.done:
			t.drain(pool)
		default:
		}
	}()
	return use(w)
}

// Close takes everything away: rules, sets, and with them every handed-back flow's way past the
// TUN device. So the routes into the device go first. It may be called again.
func (t *Table) Close() error {
	t.release()
	t.rules.Lock()
	defer t.rules.Unlock()
	return Recover(t.o)
}

// Len is how many flows are accepted.
func (t *Table) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.flows)
}

func suffix(f packet.Flow) string {
	if f.Is6() {
		return "6"
	}
	return "4"
}

// changeOf moves f from the set del to the set add; "" is none.
func changeOf(f packet.Flow, del, add string, timeout time.Duration) *change {
	c := &change{k: keyOf(f), family: nftables.TableFamilyINet, del: setOf(del, f), add: setOf(add, f), suffix: suffix(f), timeout: timeout}
	if name := del + add; name == setDrop || name == setBlock {
		c.family = nftables.TableFamilyNetdev
	}
	return c
}

// Follow sends a packet of an accepted flow that came to userspace all the same, as a retransmission
// that was on its way. It fails with ErrOver where the flow is not accepted any more; nothing was
// sent then.
func (t *Table) Follow(f packet.Flow, held []byte) error {
	b, err := resend.Whole(f, held)
	if err != nil {
		return err
	}
	if isOther(f.Proto) {
		if err := t.astray(f); err != nil {
			return err
		}
		return t.raw.Send(f, b)
	}
	t.mu.Lock()
	e, ok := t.flows[f]
	t.mu.Unlock()
	if !ok || isSYN(f, b) && sequence(f, b) != e.syn { // the tuple has another socket now
		return fmt.Errorf("%s: %w", f, ErrOver)
	}
	if f.Proto == packet.UDP {
		held := false // expired, it would come here again, and again
		if err := t.get(setAccept, []packet.Flow{f}, func(int, found) { held = true }); err != nil || !held {
			return errors.Join(fmt.Errorf("%s: %w", f, ErrOver), err)
		}
	}
	return t.raw.Send(f, b)
}

// Send sends a packet that was held behind the first of its flow. The socket may be closed by now,
// and the flow over.
func (t *Table) Send(f packet.Flow, held []byte) error {
	b, err := resend.Whole(f, held)
	if err != nil {
		return err
	}
	return t.raw.Send(f, b)
}

// Forget takes back Accept and leaves the socket alone: it is gone, or another one has its tuple. It
// is no error if the flow is not there.
func (t *Table) Forget(f packet.Flow) error { return t.over([]packet.Flow{f}, Closed) }

// Relayed says that userspace carries f: what still lingers of another flow with its five values lets
// nothing of it pass from now on. It changes nothing else.
func (t *Table) Relayed(f packet.Flow) error {
	lingers := false
	err := t.get(setLinger, []packet.Flow{f}, func(int, found) { lingers = true })
	if err != nil || !lingers { // to delete what is not there would cost a grace period
		return err
	}
	return t.w.do(changeOf(f, setLinger, "", 0))
}

// Compact gives back what a flood has left: a Go map never shrinks. It takes milliseconds where there are very
// many flows, in which none is accepted.
func (t *Table) Compact() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.flows, t.ports, t.lasting, t.cookies = fitted(t.flows), fitted(t.ports), fitted(t.lasting), fitted(t.cookies)
	t.young = slices.Clone(t.young)
}

// fitted is a copy of m that is as large as its content.
func fitted[K comparable, V any](m map[K]V) map[K]V {
	n := make(map[K]V, len(m))
	for k, v := range m {
		n[k] = v
	}
	return n
}

func (t *Table) accepted(f packet.Flow) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.flows[f]
	return ok
}

func (t *Table) unreserve(f packet.Flow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.take(f)
}

// take removes f. t.mu is held.
func (t *Table) take(f packet.Flow) (e entry, ok bool) {
	if e, ok = t.flows[f]; !ok {
		return e, false
	}
	delete(t.flows, f)
	if l, ok := t.lasting[f]; ok {
		e.lasted, e.base = true, sum(e.base, l.sent)
		delete(t.lasting, f)
	}
	if e.cookie != 0 && t.cookies[e.cookie] == f {
		delete(t.cookies, e.cookie)
	}
	if isOther(f.Proto) {
		return e, true
	}
	at := portOf(f)
	list := t.ports[at]
	for i, g := range list {
		if g == f {
			list[i] = list[len(list)-1]
			list = list[:len(list)-1]
			break
		}
	}
	if t.ports[at] = list; len(list) == 0 {
		delete(t.ports, at)
	}
	return e, true
}

// Silence lets the kernel swallow the packets of denied flows of UDP at the device, for so long: of
// those of dropped all, of those of blocked all but a few a second of all flows together, which are
// left to be answered. A program's sends succeed; with IP_RECVERR set they fail with ENOBUFS.
func (t *Table) Silence(blocked, dropped []packet.Flow, d time.Duration) error {
	if !t.silences {
		return fmt.Errorf("%w: no egress hook on the device", ErrUnsupported)
	}
	changes := make([]*change, 0, len(blocked)+len(dropped))
	for _, f := range blocked {
		changes = append(changes, changeOf(f, "", setBlock, d))
	}
	for _, f := range dropped {
		changes = append(changes, changeOf(f, "", setDrop, d))
	}
	var err error
	for batch := range slices.Chunk(changes, batchLimit) {
		err = errors.Join(err, t.w.do(batch...))
	}
	return err
}

// Hear takes back Silence: the next packet of the flow comes to userspace. It is no error if the flow
// is not there.
func (t *Table) Hear(f packet.Flow) error {
	if !t.silences {
		return nil
	}
	return t.w.do(changeOf(f, setBlock, "", 0), changeOf(f, setDrop, "", 0))
}

// Revoke takes back Accept. The socket is destroyed first, while its last packet can still leave:
// the program sees ECONNABORTED (TCP) or EDESTADDRREQ (UDP) at once, its peer a reset. Then the entry
// goes: whatever still comes of the flow is undecided. A UDP socket that is not connected belongs to
// other flows too and is not destroyed, nor is one of another protocol. It is no error if the flow is not there.
func (t *Table) Revoke(f packet.Flow) error {
	if err := checkAny(f); err != nil {
		return err
	}
	if isOther(f.Proto) {
		return t.over([]packet.Flow{f}, Revoked)
	}
	var last socket
	err := t.lent(t.diags, func(w *wire) (err error) { last, err = w.destroy(f); return err })
	if last.known {
		t.mu.Lock()
		if e, ok := t.flows[f]; ok {
			e.carried, e.told = last.carried, true
			t.flows[f] = e
		}
		t.mu.Unlock()
	}
	return errors.Join(err, t.over([]packet.Flow{f}, Revoked))
}

// over ends those of flows that are accepted.
func (t *Table) over(flows []packet.Flow, cause Cause) error {
	var errs []error
	for len(flows) > 0 {
		n := min(len(flows), batchLimit)
		errs = append(errs, t.overBatch(flows[:n], cause))
		flows = flows[n:]
	}
	return errors.Join(errs...)
}

func (t *Table) overBatch(flows []packet.Flow, cause Cause) error {
	errs := []error{t.count(flows)}
	var ended []ending
	t.mu.Lock()
	for _, f := range flows {
		if e, ok := t.take(f); ok {
			ended = append(ended, ending{End: End{Flow: f, Sent: e.sent, Cause: cause, Traffic: e.carried.Traffic, SYN: e.syn}, entry: e})
		}
	}
	t.mu.Unlock()
	if len(ended) == 0 {
		return nil
	}
	errs = append(errs, t.lastCounters(ended), t.leave(ended, cause), t.outlast(ended))
	for _, e := range ended {
		e.Attempts = e.attempts()
		if !e.told && e.Attempts == 0 {
			e.End.Traffic.Sent = e.Sent.payload(e.Flow)
		}
		t.o.Ended(e.End)
	}
	return errors.Join(errs...)
}

// leave takes what has ended out of the set, if it was there.
func (t *Table) leave(ended []ending, cause Cause) error {
	changes := make([]*change, 0, len(ended))
	for i := range ended {
		if e := &ended[i]; e.ahead {
			continue
		} else if e.Flow.Proto == packet.TCP && cause == Closed {
			changes = append(changes, changeOf(e.Flow, setAccept, setLinger, t.o.Linger))
		} else {
			changes = append(changes, changeOf(e.Flow, setAccept, "", 0))
		}
	}
	if len(changes) == 0 {
		return nil
	}
	err := t.w.do(changes...)
	for _, c := range changes {
		if errors.Is(c.err, ErrFull) { // no room to linger: the accepted entry must go all the same
			err = t.w.do(&change{k: c.k, family: c.family, del: setAccept, suffix: c.suffix})
		}
	}
	return err
}
