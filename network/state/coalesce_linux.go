package state

import (
	"slices"
	"sync"

	"gatun/network/packet"
)

// dumper answers "which UDP sockets have this local port?" by dumps with a port filter. A dump
// walks the kernel's whole hash table (some 20 µs) whatever it looks for, so the questions
// that arrive while one runs share the next. They never share the running one: it may already
// have passed the place where their socket was added.
type dumper struct {
	pool *pool

	mu      sync.Mutex
	running bool
	queue   []*dump
}

// dump is one pass over the UDP tables for several ports.
type dump struct {
	ports   []uint16
	v4      bool          // some asker wants the IPv4 table too
	lead    chan struct{} // receives once if a waiting asker must run the pass itself
	done    chan struct{} // closed when sockets and err are set
	sockets []Socket
	err     error
}

// find appends the sockets that may own the UDP flow f to dst.
func (d *dumper) find(dst []Socket, f packet.Flow) ([]Socket, error) {
	pass, leader := d.join(f)
	if !leader {
		select {
		case <-pass.done:
		case <-pass.lead:
			leader = true
		}
	}
	if leader {
		d.run(pass)
	}
	start := len(dst)
	dst = append(dst, pass.sockets...)
	return ownersOfDatagram(dst, start, f), pass.err
}

// join puts f's port on the last pass that has not started. The caller leads if nothing runs.
func (d *dumper) join(f packet.Flow) (pass *dump, leader bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := len(d.queue); n > 0 && len(d.queue[n-1].ports) < maxPorts {
		pass = d.queue[n-1]
	} else {
		pass = &dump{lead: make(chan struct{}, 1), done: make(chan struct{})}
		d.queue = append(d.queue, pass)
	}
	if !slices.Contains(pass.ports, f.Local.Port()) {
		pass.ports = append(pass.ports, f.Local.Port())
	}
	pass.v4 = pass.v4 || !f.Is6()
	leader = !d.running
	d.running = true
	return pass, leader
}

// run takes pass, which is the head of the queue, off it, asks the kernel and hands the lead
// to an asker of the next pass.
func (d *dumper) run(pass *dump) {
	d.mu.Lock()
	d.queue = d.queue[1:]
	d.mu.Unlock()

	r := request{family: familyV6, proto: packet.UDP, dump: true, states: allStates, ports: pass.ports}
	pass.sockets, pass.err = d.pool.query(nil, &r)
	if pass.v4 && pass.err == nil {
		r.family = familyV4
		pass.sockets, pass.err = d.pool.query(pass.sockets, &r)
	}
	close(pass.done)

	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.queue) > 0 {
		d.queue[0].lead <- struct{}{}
	} else {
		d.running = false
	}
}
