package tun

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"time"
)

func TestPipe(t *testing.T) {
	a, b := Pipe(1500)
	if a.MTU() != 1500 || b.BatchSize() < 1 || a.Name() != "" {
		t.Errorf("MTU %d, batch %d, name %q", a.MTU(), b.BatchSize(), a.Name())
	}
	p := []byte("first")
	if n, err := a.Write([][]byte{p, make([]byte, 1501), []byte("second")}); n != 2 || err != nil {
		t.Fatalf("wrote %d, %v: a packet above the MTU is dropped", n, err)
	}
	p[0] = 'x' // the pipe keeps a copy
	bufs, sizes := [][]byte{make([]byte, 1500), make([]byte, 1500), make([]byte, 1500)}, make([]int, 3)
	n, err := b.Read(bufs, sizes)
	if n != 2 || err != nil || string(bufs[0][:sizes[0]]) != "first" || string(bufs[1][:sizes[1]]) != "second" {
		t.Fatalf("read %d, %v: %q", n, err, bufs[0][:sizes[0]])
	}
}

func TestPipeDropsWhenFull(t *testing.T) {
	a, _ := Pipe(1500)
	n, err := a.Write(make([][]byte, pipeDepth+10))
	if n != pipeDepth || err != nil {
		t.Errorf("took %d, %v", n, err)
	}
}

func TestPipeClose(t *testing.T) {
	a, b := Pipe(1500)
	ended := make(chan error, 1)
	bufs, sizes := [][]byte{make([]byte, 1500)}, make([]int, 1)
	go func() { _, err := a.Read([][]byte{make([]byte, 1500)}, make([]int, 1)); ended <- err }()
	time.Sleep(10 * time.Millisecond)
	a.Write([][]byte{[]byte("last words")})
	a.Close()
	a.Close()
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("blocked Read: %v", err)
	}
	if n, err := b.Read(bufs, sizes); n != 1 || err != nil || !bytes.Equal(bufs[0][:sizes[0]], []byte("last words")) {
		t.Errorf("what was written before the close is lost: %d, %v", n, err)
	}
	if _, err := b.Read(bufs, sizes); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read after Close: %v", err)
	}
	if _, err := b.Write(bufs); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Write after Close: %v", err)
	}
}
