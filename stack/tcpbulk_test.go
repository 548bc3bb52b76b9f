package stack

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// thrifty takes at most so many bytes at a time.
type thrifty struct {
	bytes.Buffer
	at int
}

var errThrifty = errors.New("enough")

func (w *thrifty) Write(b []byte) (int, error) {
	n, _ := w.Buffer.Write(b[:min(len(b), w.at)])
	if n < len(b) {
		return n, errThrifty
	}
	return n, nil
}

// TestDrain takes a stream in unequal parts: what a writer leaves stays.
func TestDrain(t *testing.T) {
	prog, ours, _ := connected(t, families[0])
	sent := make([]byte, 300_000)
	rand.Read(sent)
	go func() {
		prog.Write(sent)
		prog.(interface{ CloseWrite() error }).CloseWrite()
	}()
	w := &thrifty{}
	for i := 0; ; i++ {
		w.at = []int{0, 1, 1000, 1 << 20}[i%4]
		before := w.Len()
		n, err := ours.Drain(w)
		if n != w.Len()-before {
			t.Fatalf("Drain says %d, the writer got %d", n, w.Len()-before)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := ours.WaitReadable(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(w.Bytes(), sent) {
		t.Fatalf("got %d bytes of %d, or others", w.Len(), len(sent))
	}
}

func TestDrainEnds(t *testing.T) {
	prog, ours, _ := connected(t, families[0])
	if n, err := ours.Drain(io.Discard); n != 0 || err != nil {
		t.Errorf("nothing has come: %d, %v", n, err)
	}
	_, _ = ours.Write([]byte("unread")) // unread bytes make its Close a reset
	for limit := time.Now().Add(20 * time.Second); time.Now().Before(limit) && !ours.Broken(); {
		prog.Close()
		time.Sleep(time.Millisecond)
	}
	if _, err := ours.Drain(io.Discard); err == nil {
		t.Error("Drain after a reset: no error")
	}
	ours.Close()
	if _, err := ours.Drain(io.Discard); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Drain after Close: %v", err)
	}
}
