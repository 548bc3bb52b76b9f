package interception

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	mathrand "math/rand/v2"
	"strings"
	"testing"
	"time"
)

// narrow is a server's end with little room.
type narrow struct {
	got    bytes.Buffer
	pieces int
	room   int // -1: no end
	err    error
}

func (n *narrow) Offer(b []byte) (int, error) {
	n.pieces++
	take := len(b)
	if n.room >= 0 {
		take = min(take, n.room)
		n.room -= take
	}
	n.got.Write(b[:take])
	return take, n.err
}

func (n *narrow) WaitWritable() error { return nil }

func TestGather(t *testing.T) {
	large, small := strings.Repeat("L", 60_000), strings.Repeat("s", 1000)
	broken := errors.New("broken")
	tests := []struct {
		name   string
		room   int
		err    error
		pieces []string
		taken  int // pieces that were taken wholly
		sent   string
		kept   string
		full   bool
		end    error
	}{
		{"large pieces go at once", -1, nil, []string{large, large}, 2, large + large, "", false, nil},
		{"small ones are kept", -1, nil, []string{small, small}, 2, "", small + small, false, nil},
		{"a large one waits for small ones", -1, nil, []string{small, large}, 1, "", small, false, errFull},
		{"small ones follow large ones", -1, nil, []string{large, small}, 2, large, small, false, nil},
		{"no room for all of it", 70_000, nil, []string{large, large}, 1, large + large[:10_000], "", true, errFull},
		{"an error of the server", 0, broken, []string{large}, 0, "", "", true, errFull},
		{"more small ones than a buffer holds", -1, nil, strings.SplitAfter(strings.Repeat(small+"|", 300), "|"), 257, "", strings.Repeat(small+"|", 257), false, errFull},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			up := &narrow{room: tt.room, err: tt.err}
			g := gather{up: up, get: func() []byte { return make([]byte, bigBuffer) }}
			taken := 0
			var end error
			for _, p := range tt.pieces {
				var n int
				if n, end = g.Write([]byte(p)); end != nil {
					break
				}
				if n != len(p) {
					t.Fatalf("%d of %d bytes and no error", n, len(p))
				}
				taken++
			}
			if taken != tt.taken || up.got.String() != tt.sent || string(g.kept) != tt.kept || g.full != tt.full || !errors.Is(end, tt.end) || !errors.Is(g.err, tt.err) {
				t.Errorf("taken %d, sent %d, kept %d, full %v, end %v, error %v", taken, up.got.Len(), len(g.kept), g.full, end, g.err)
			}
		})
	}
}

// TestBulkIntegrity moves streams that change between chatter and bulk, both ways at once, with
// ends that are slow at times.
func TestBulkIntegrity(t *testing.T) {
	l := newLab(t)
	const size = 12 << 20
	for round := range uint64(4) {
		program, server, stop, err := l.pair(t)
		if err != nil {
			t.Fatal(err)
		}
		_ = program.SetDeadline(time.Now().Add(patience))
		_ = server.SetDeadline(time.Now().Add(patience))
		ended := make(chan error)
		for i, way := range [][2]io.ReadWriter{{program, server}, {server, program}} {
			sent := make([]byte, size)
			rand.Read(sent)
			go func() { ended <- unevenly(way[0], sent, mathrand.New(mathrand.NewPCG(round, uint64(i)))) }()
			go func() {
				got := make([]byte, size)
				err := unevenRead(way[1], got, mathrand.New(mathrand.NewPCG(round, uint64(i+2))))
				if err == nil && !bytes.Equal(got, sent) {
					err = errors.New("other bytes came than were sent")
				}
				ended <- err
			}()
		}
		for range 4 {
			if err := <-ended; err != nil {
				t.Errorf("round %d: %v", round, err)
			}
		}
		stop()
	}
}

// some is a number of bytes: a word, a page, or bulk.
func some(r *mathrand.Rand) int { return 1 + r.IntN([]int{50, 5000, 1 << 20}[r.IntN(3)]) }

func unevenly(w io.Writer, b []byte, r *mathrand.Rand) error {
	for len(b) > 0 {
		n, err := w.Write(b[:min(len(b), some(r))])
		if err != nil {
			return err
		}
		if b = b[n:]; r.IntN(20) == 0 {
			time.Sleep(time.Duration(r.IntN(3)) * time.Millisecond)
		}
	}
	return nil
}

func unevenRead(from io.Reader, b []byte, r *mathrand.Rand) error {
	for len(b) > 0 {
		n, err := from.Read(b[:min(len(b), some(r))])
		if err != nil {
			return err
		}
		if b = b[n:]; r.IntN(20) == 0 {
			time.Sleep(time.Duration(r.IntN(3)) * time.Millisecond)
		}
	}
	return nil
}
