package state

import (
	"bytes"
	"io"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"gatun/network/packet"
)

// dumper answers "which UDP sockets have this local port?" by dumps with a port filter. A dump
// walks the kernel's whole hash table (some 20 µs) whatever it looks for, so the questions
// that arrive while one runs share the next. They never share the running one: it may already
// have passed the place where their socket was added.
type dumper struct {
	pool *pool
	six  *os.File // the namespace's sockstat6; nil: always ask for IPv6 sockets too

	mu      sync.Mutex
	running bool
	queue   []*dump
	asked   time.Time // when somebody asked last
}

// dump is one pass over the UDP tables for several ports.
type dump struct {
	ports   []uint16
	few     [4]uint16     // mostly enough for ports
	v4, v6  bool          // some asker has a flow of that family
	turn    chan struct{} // receives once if a waiting asker must run the pass itself; closed when sockets and err are set
	sockets []Socket
	err     error
}

// find appends the sockets that may own the UDP flow f to dst.
func (d *dumper) find(dst []Socket, f packet.Flow) ([]Socket, error) {
	pass, leader, crowded := d.join(f)
	switch {
	case leader && crowded:
		runtime.Gosched() // whoever is ready to ask joins
	case !leader:
		_, leader = <-pass.turn
	}
	if leader {
		d.run(pass)
	}
	start := len(dst)
	for _, s := range pass.sockets { // which have the ports of others as well
		if s.Local.Port() == f.Local.Port() {
			dst = append(dst, s)
		}
	}
	return ownersOfDatagram(dst, start, f), pass.err
}

// crowdedWithin is how soon after one question the next means that many are asked at a time. Giving way
// to nobody would wake a processor for nothing.
const crowdedWithin = time.Millisecond

// join puts f's port on the last pass that has not started. The caller leads if nothing runs.
func (d *dumper) join(f packet.Flow) (pass *dump, leader, crowded bool) {
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	crowded = now.Sub(d.asked) < crowdedWithin
	d.asked = now
	if n := len(d.queue); n > 0 && len(d.queue[n-1].ports) < maxPorts {
		pass = d.queue[n-1]
	} else {
		pass = &dump{turn: make(chan struct{}, 1)}
		pass.ports = pass.few[:0]
		d.queue = append(d.queue, pass)
	}
	if !slices.Contains(pass.ports, f.Local.Port()) {
		pass.ports = append(pass.ports, f.Local.Port())
	}
	pass.v4, pass.v6 = pass.v4 || !f.Is6(), pass.v6 || f.Is6()
	leader = !d.running
	d.running = true
	return pass, leader, crowded
}

// run takes pass, which is the head of the queue, off it, asks the kernel and hands the lead
// to an asker of the next pass.
func (d *dumper) run(pass *dump) {
	d.mu.Lock()
	d.queue = slices.Delete(d.queue, 0, 1)
	d.mu.Unlock()

	r := request{family: familyV6, proto: packet.UDP, dump: true, states: allStates, ports: pass.ports}
	if pass.v6 || d.mayHaveV6() { // such a socket may speak IPv4
		pass.sockets, pass.err = d.pool.query(nil, &r)
	}
	if pass.v4 && pass.err == nil {
		r.family = familyV4
		pass.sockets, pass.err = d.pool.query(pass.sockets, &r)
	}
	close(pass.turn)

	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.queue) > 0 {
		d.queue[0].turn <- struct{}{}
	} else {
		d.running = false
	}
}

// mayHaveV6 reports whether there may be IPv6 UDP sockets that have a port. Mostly a sandbox has none,
// and the kernel knows their number: that takes a tenth of a walk. One that has sent the datagram in
// question was counted before that.
func (d *dumper) mayHaveV6() bool {
	if d.six == nil {
		return true
	}
	var text [512]byte
	n, err := d.six.ReadAt(text[:], 0)
	return err != nil && err != io.EOF || !noUDP6(text[:n])
}

// noUDP6 reports whether the text of sockstat6 says that no UDP socket is in use.
func noUDP6(text []byte) bool {
	return bytes.Contains(text, []byte("\nUDP6: inuse 0\n"))
}
