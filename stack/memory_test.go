package stack

import (
	"errors"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gatun/network/packet"
)

// nullDevice is a device that takes everything and gives nothing.
type nullDevice struct{ closed chan struct{} }

func newNullDevice() *nullDevice { return &nullDevice{closed: make(chan struct{})} }

func (d *nullDevice) Read([][]byte, []int) (int, error) { <-d.closed; return 0, os.ErrClosed }
func (d *nullDevice) Write(bufs [][]byte) (int, error)  { return len(bufs), nil }
func (d *nullDevice) MTU() int                          { return 1500 }
func (d *nullDevice) MaxPacket() int                    { return 1500 }
func (d *nullDevice) Unsummed(int) bool                 { return false }
func (d *nullDevice) WriteLarge([][]byte, int, int, int) (bool, error) {
	return false, errors.ErrUnsupported
}
func (d *nullDevice) BatchSize() int { return 64 }
func (d *nullDevice) Close() error   { close(d.closed); return nil }

type countingSink struct{ n atomic.Int64 }

func (s *countingSink) Datagrams(f *UDPFlow, t Train) {
	for _, b := range t.Payloads {
		s.n.Add(1)
		f.Reply(b, t.TOS)
	}
}

// pathLab is a Stack whose reader is driven by the test, in its own goroutine.
func pathLab(t testing.TB, h *handler) (*Stack, *reader) {
	h.t = t
	dev := newNullDevice()
	s, err := New(Options{Device: dev, Handler: h, Local: func(a netip.Addr) bool { return a == families[0].prog || a == families[1].prog }})
	if err != nil {
		t.Fatal(err)
	}
	s.ctx = t.Context()
	if err := s.renew(); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { s.write() })
	t.Cleanup(func() { s.out.close(); wg.Wait(); s.nets.destroy() })
	return s, s.newReader()
}

// TestPacketPathDoesNotAllocate covers the steady UDP path both ways, drops, and answers to
// rejected datagrams: reader, table, sink, builder, queue and writer.
func TestPacketPathDoesNotAllocate(t *testing.T) {
	if underRace {
		t.Skip("the race detector makes sync.Pool forget at random")
	}
	sink := &countingSink{}
	s, r := pathLab(t, &handler{udp: func(u *UDPFlow) {
		if u.Flow().Remote.Port() == 53 {
			u.Accept(sink)
			return
		}
		u.Reject(packet.PortUnreachable(netip.Addr{}))
	}})
	for _, f := range families {
		accepted := udpPacket(at(f.prog, 5000), at(f.peer, 53), make([]byte, 1200))
		for name, p := range map[string][]byte{
			"accepted": accepted,
			"rejected": udpPacket(at(f.prog, 5000), at(f.peer, 54), make([]byte, 100)),
			"spoofed":  udpPacket(at(f.secret, 5000), at(f.peer, 53), make([]byte, 1200)),
			"corrupt":  corrupt(accepted),
		} {
			r.load(p, p, p, p)
			r.batch(4)
			eventually(t, "the verdict is there", func() bool {
				return name == "spoofed" || name == "corrupt" || s.counts.packetsOut.Load() > 0 && s.held.Load() == 0
			})
			steady := func() { // the writer keeps up: packets in the queue are not in the pool
				r.batch(4)
				for s.out.waiting() > 0 {
					runtime.Gosched()
				}
			}
			steady()
			if n := testing.AllocsPerRun(500, steady); n > 0 {
				t.Errorf("%s %s: %v allocations for 4 packets", f.name, name, n)
			}
		}
	}
	if sink.n.Load() < 1000 {
		t.Errorf("only %d datagrams reached the sink", sink.n.Load())
	}
}

func BenchmarkUDPPath(b *testing.B) {
	for _, f := range families {
		b.Run(f.name, func(b *testing.B) {
			sink := &countingSink{}
			s, r := pathLab(b, &handler{udp: func(u *UDPFlow) { u.Accept(sink) }})
			p := udpPacket(at(f.prog, 5000), at(f.peer, 53), make([]byte, 1200))
			r.load(slices.Repeat([][]byte{p}, 64)...)
			r.batch(64)
			eventually(b, "accepted", func() bool { return s.counts.packetsOut.Load() >= 64 })
			b.ReportAllocs()
			b.SetBytes(2 * 1200)
			for i := 0; i < b.N; i += 64 {
				r.batch(64)
			}
		})
	}
}

// load makes the packets those that were read last.
func (r *reader) load(packets ...[]byte) {
	r.bufs, r.sizes = packets, make([]int, len(packets))
	for i, p := range packets {
		r.sizes[i] = len(p)
	}
}

func (q *outQueue) waiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.items)
}

func liveBytes() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

func TestUDPMemory(t *testing.T) {
	const flows = 20000
	sink := &countingSink{}
	s, r := pathLab(t, &handler{udp: func(u *UDPFlow) { u.Accept(sink) }})
	before := liveBytes()
	for i := range flows {
		p := udpPacket(at(families[0].prog, uint16(1000+i%50000)), at(families[0].peer, uint16(1+i/50000)), make([]byte, 200))
		r.load(p)
		r.batch(1)
	}
	eventually(t, "all accepted", func() bool { return sink.n.Load() == flows && s.held.Load() == 0 })
	each := float64(liveBytes()-before) / flows
	t.Logf("%.0f bytes per idle UDP flow", each)
	if each > 1024 {
		t.Errorf("%.0f bytes per idle UDP flow, want at most 1024", each)
	}
	for i := range s.udp.shards {
		for _, f := range s.udp.shards[i].m {
			f.Forget()
		}
	}
	// The runtime keeps the descriptors of ended goroutines: up to 0.5 KiB for each that ran at
	// the same time, which a busy machine makes many. A flow that is kept costs more than half.
	if after := liveBytes(); after > before+uint64(each*flows/2) {
		t.Errorf("%d bytes before, %d after all flows are forgotten", before, after)
	}
	runtime.KeepAlive(r)
}

// TestTCPMemory measures both netstacks, the handler's goroutine and the test's own share; ours
// alone is less than half.
func TestTCPMemory(t *testing.T) {
	const flows = 1000
	var open sync.WaitGroup
	open.Add(flows)
	l := newLab(t, &handler{tcp: func(fl *TCPFlow) {
		c, err := fl.Accept()
		if err != nil {
			t.Errorf("Accept: %v", err)
			open.Done()
			return
		}
		defer c.Close()
		b := make([]byte, 16)
		c.Read(b)
		c.Write(b)
		open.Done()
		c.WaitReadable(fl.Context())
	}}, Limits{})
	p := newProgram(t, l)
	before := liveBytes()
	for range flows {
		c, err := p.dial(short(t), at(families[0].peer, 80))
		if err != nil {
			t.Fatal(err)
		}
		c.Write(make([]byte, 16))
		c.Read(make([]byte, 16))
	}
	open.Wait()
	time.Sleep(100 * time.Millisecond)
	each := float64(liveBytes()-before) / flows
	t.Logf("%.1f KiB per idle TCP flow, both ends", each/1024)
	if each > 44*1024 {
		t.Errorf("%.1f KiB per idle TCP flow, both ends", each/1024)
	}
}

func BenchmarkTCP(b *testing.B) {
	for _, dir := range []string{"up", "down"} {
		b.Run(dir, func(b *testing.B) {
			n := b.N
			done := make(chan struct{})
			l := newLab(b, &handler{tcp: func(fl *TCPFlow) {
				defer close(done)
				c, err := fl.Accept()
				if err != nil {
					b.Error(err)
					return
				}
				defer c.Close()
				if dir == "up" {
					move(c.Read, n)
				} else {
					move(c.Write, n)
				}
			}}, Limits{})
			c, err := newProgram(b, l).dial(short(b), at(families[0].peer, 80))
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(1 << 16)
			b.ResetTimer()
			if dir == "up" {
				move(c.Write, n)
			} else {
				move(c.Read, n)
			}
			<-done
			c.Close()
		})
	}
}

// move calls f until n times 64 KiB have passed.
func move(f func([]byte) (int, error), n int) {
	buf := make([]byte, 1<<16)
	for left := n << 16; left > 0; {
		k, err := f(buf[:min(left, len(buf))])
		if err != nil {
			return
		}
		left -= k
	}
}
