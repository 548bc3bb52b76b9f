package handback

import (
	"errors"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gatun/network/packet"
)

// A program may wait for connections at the port from which it makes one, as those that meet behind
// translators do. What is done about the connection when it is over leaves the listener alone.
func TestLiveListenerAtTheSamePort(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		l.serve()
		l.up()
		for _, far := range fars {
			c, f := l.dial("tcp", at(far)) // for its address
			_ = c.Close()
			waiting, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at2(f.Local.Addr().String(), 0)))
			if err != nil {
				t.Fatal(err)
			}
			defer waiting.Close()
			over := packet.Flow{Proto: packet.TCP, Local: waiting.Addr().(*net.TCPAddr).AddrPort(), Remote: f.Remote}
			if err := l.table.Revoke(over); err != nil {
				t.Errorf("%s: %v", over, err)
			}
			_ = waiting.SetDeadline(time.Now().Add(patience))
			go func() {
				if in, err := net.DialTimeout("tcp", over.Local.String(), patience); err == nil {
					_ = in.Close()
				}
			}()
			in, err := waiting.Accept()
			if err != nil {
				t.Fatalf("who waits at %s was ended with the connection: %v", over.Local, err)
			}
			_ = in.Close()
			if _, err := l.find(over); !errors.Is(err, unix.ENOENT) {
				t.Errorf("%s: a listener passes for its socket: %v", over, err)
			}
		}
	})
}

// find looks for the socket of f.
func (l *lab) find(f packet.Flow) (s socket, err error) {
	err = l.table.lent(l.table.diags, func(w *wire) (err error) { s, err = w.find(f); return err })
	return s, err
}
