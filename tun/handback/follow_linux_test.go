package handback

import (
	"testing"
	"time"

	"gatun/network/packet"
)

// A datagram that comes after its element has expired, and before anybody noticed, does not go round between
// device and raw socket: Follow says that the flow is over.
func TestLiveFollowExpired(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.serve()
		l.up(func(o *Options) { o.UDPTimeout, o.Sweep = time.Second, time.Hour })
		for _, far := range fars {
			c, f := l.dial("udp", at(far))
			if err := echoes(c, 10); err != nil {
				t.Fatal(err)
			}
			l.mu.Lock()
			l.decide = func(f packet.Flow, held []byte) error { _ = l.table.Follow(f, held); return nil }
			l.mu.Unlock()
			l.eventually("the element expires", func() bool { return !l.inSet(f) })
			before := l.packets(f)
			if _, err := c.Write([]byte("late")); err != nil {
				t.Fatal(err)
			}
			l.eventually("it comes to the device", func() bool { return l.packets(f) > before })
			time.Sleep(200 * time.Millisecond)
			if n := l.packets(f) - before; n != 1 {
				t.Errorf("%s: one datagram came %d times", f, n)
			}
			l.deny(false)
		}
	})
}
