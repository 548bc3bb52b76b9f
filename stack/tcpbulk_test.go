package stack

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
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

// TestTake fills the way to a program that does not read, waits for room, and loses nothing.
func TestTake(t *testing.T) {
	prog, ours, _ := connected(t, families[0])
	sent := make([]byte, 24<<20)
	rand.Read(sent)
	from, waits := bytes.NewReader(sent), 0
	done := make(chan error, 1)
	go func() {
		for from.Len() > 0 {
			before := from.Len()
			n, err := ours.Take(from, before)
			if err == nil && (n > takeMost || before-from.Len() != n) {
				err = errors.New("Take does not say what it took")
			}
			if err == nil && n == 0 {
				waits++
				err = ours.WaitWritable()
			}
			if err != nil {
				done <- err
				return
			}
		}
		done <- ours.CloseWrite()
	}()
	time.Sleep(50 * time.Millisecond) // let it fill the buffers; nothing depends on it but waits
	got, err := io.ReadAll(prog)
	if err := errors.Join(err, <-done); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, sent) {
		t.Fatalf("got %d bytes of %d, or others", len(got), len(sent))
	}
	if waits == 0 {
		t.Error("it never waited for room")
	}
}

// TestTakeFromLiar: a source that does not give what it promised is an error, not a hole.
func TestTakeFromLiar(t *testing.T) {
	_, ours, _ := connected(t, families[0])
	if n, err := ours.Take(io.MultiReader(bytes.NewReader(make([]byte, 10)), failing{}), 1000); n != 0 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%d, %v; want an unexpected EOF", n, err)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, os.ErrInvalid }

func TestBulkEnds(t *testing.T) {
	prog, ours, _ := connected(t, families[0])
	waiting := make(chan error)
	for {
		n, err := ours.Take(bytes.NewReader(make([]byte, takeMost)), takeMost)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
	}
	ours.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
	for { // an event of before may be left
		if err := ours.WaitWritable(); err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("after the deadline: %v", err)
			}
			break
		}
	}
	ours.SetWriteDeadline(time.Time{})
	go func() { waiting <- ours.WaitWritable() }()
	prog.Close() // with unread bytes: a reset
	if err := <-waiting; err != nil {
		t.Errorf("WaitWritable after a reset: %v; Take is to say it", err)
	}
	if _, err := ours.Take(bytes.NewReader([]byte("x")), 1); err == nil {
		t.Error("Take after a reset: no error")
	}
	if _, err := ours.Drain(io.Discard); err == nil {
		t.Error("Drain after a reset: no error")
	}
	ours.Close()
	if _, err := ours.Drain(io.Discard); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Drain after Close: %v", err)
	}
	if _, err := ours.Take(bytes.NewReader([]byte("x")), 1); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Take after Close: %v", err)
	}
	if err := ours.WaitWritable(); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Errorf("WaitWritable after Close: %v", err)
	}
}
