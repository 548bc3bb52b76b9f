package tun

import (
	"os"
	"sync"
	"sync/atomic"
)

// pipeDepth is how many packets one direction of a Pipe holds before it drops, like the
// transmit queue of a real device.
const pipeDepth = 4096

// pipeBatch is the batch size that a PipeEnd asks for.
const pipeBatch = 64

// PipeEnd is one end of a Pipe. It implements Device.
type PipeEnd struct {
	noOffload
	mtu      int
	in, out  *pipeQueue
	closeOne *sync.Once
	closed   atomic.Bool // this end
}

// pipeQueue is one direction: a bounded queue that drops when it is full.
type pipeQueue struct {
	packets chan []byte
	done    chan struct{} // closed by either end
	free    sync.Pool
}

func newPipeQueue(done chan struct{}) *pipeQueue {
	return &pipeQueue{packets: make(chan []byte, pipeDepth), done: done}
}

// Pipe returns two devices in memory that are wired to each other: what one end writes the
// other reads. A full direction drops packets. Closing either end closes both.
func Pipe(mtu int) (*PipeEnd, *PipeEnd) {
	done := make(chan struct{})
	ab, ba := newPipeQueue(done), newPipeQueue(done)
	once := new(sync.Once)
	return &PipeEnd{mtu: mtu, in: ba, out: ab, closeOne: once}, &PipeEnd{mtu: mtu, in: ab, out: ba, closeOne: once}
}

// Read implements Device. A packet that is longer than its buffer is dropped. What the other
// end wrote before it closed is still read, as a kernel has it already.
func (p *PipeEnd) Read(bufs [][]byte, sizes []int) (int, error) {
	if p.closed.Load() {
		return 0, os.ErrClosed
	}
	n := 0
	select {
	case b := <-p.in.packets:
		n += p.in.take(b, bufs[n], &sizes[n])
	case <-p.in.done:
		if len(p.in.packets) == 0 || p.closed.Load() {
			return 0, os.ErrClosed
		}
	}
	for n < len(bufs) {
		select {
		case b := <-p.in.packets:
			n += p.in.take(b, bufs[n], &sizes[n])
		default:
			return n, nil
		}
	}
	return n, nil
}

func (q *pipeQueue) take(b, dst []byte, size *int) int {
	defer q.free.Put(&b)
	if len(b) > len(dst) {
		return 0
	}
	*size = copy(dst, b)
	return 1
}

// Write implements Device. Packets above the MTU are dropped.
func (p *PipeEnd) Write(bufs [][]byte) (int, error) {
	n := 0
	for _, b := range bufs {
		select {
		case <-p.out.done:
			return n, os.ErrClosed
		default:
		}
		if len(b) > p.mtu {
			continue
		}
		c := p.out.copyOf(b)
		select {
		case p.out.packets <- c:
			n++
		default:
			p.out.free.Put(&c)
		}
	}
	return n, nil
}

func (q *pipeQueue) copyOf(b []byte) []byte {
	if c, ok := q.free.Get().(*[]byte); ok && cap(*c) >= len(b) {
		return append((*c)[:0], b...)
	}
	return append(make([]byte, 0, max(len(b), 2048)), b...)
}

// MaxPacket implements Device.
func (p *PipeEnd) MaxPacket() int { return p.mtu }

// MTU implements Device.
func (p *PipeEnd) MTU() int { return p.mtu }

// Name implements Device; a pipe has no interface.
func (p *PipeEnd) Name() string { return "" }

// BatchSize implements Device.
func (p *PipeEnd) BatchSize() int { return pipeBatch }

// Close implements Device. It closes both ends.
func (p *PipeEnd) Close() error {
	p.closed.Store(true)
	p.closeOne.Do(func() { close(p.in.done) })
	return nil
}
