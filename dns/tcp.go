package dns

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	mdns "github.com/miekg/dns"
)

const (
	frameLimit = 5 * time.Second
	maxStrange = 1000 // replies that nobody waits for, before the peer is taken for hostile
)

var (
	errStrange   = errors.New("the resolver sends replies that nobody asked for")
	errLostReply = errors.New("the resolver closed the connection")
)

// pipeline is one TCP or TLS connection with many queries on it, answered in any order (RFC 7766,
// RFC 7858). Writing has a goroutine of its own, so that a peer that does not read cannot hold
// a query beyond its time.
type pipeline struct {
	conn  net.Conn
	limit time.Duration // for the rest of a message once it has begun, and for a write
	out   chan []byte
	gone  chan struct{} // closed when the connection is

	mu      sync.Mutex
	waiting map[uint16]chan []byte
	err     error
}

func newPipeline(c net.Conn, limit time.Duration) *pipeline {
	s := &pipeline{conn: c, limit: limit, out: make(chan []byte), gone: make(chan struct{}), waiting: map[uint16]chan []byte{}}
	go s.read()
	go s.write()
	return s
}

func (s *pipeline) ask(ctx context.Context, q inquiry, form packing) (*mdns.Msg, error) {
	id, reply, err := s.expect()
	if err != nil {
		return nil, err
	}
	defer s.forget(id)
	query, err := q.pack(id, form)
	if err != nil {
		return nil, err
	}
	select {
	case s.out <- framed(query):
	case <-s.gone:
		return nil, s.cause()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	select {
	case b := <-reply:
		return streamReply(b, id, q)
	case <-s.gone:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	select {
	case b := <-reply: // it came before the end
		return streamReply(b, id, q)
	default:
		return nil, s.cause()
	}
}

func framed(msg []byte) []byte {
	return append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(msg)), uint16(len(msg))), msg...)
}

// streamReply reads a reply that came over a connection. Nobody can inject one without having
// broken it, so a reply that is not ours is an error, and so is one that is cut.
func streamReply(b []byte, id uint16, q inquiry) (*mdns.Msg, error) {
	m, err := parseReply(b, id, q)
	if err == nil && m.Truncated {
		return nil, errBogus
	}
	return m, err
}

// expect takes an ID that no query on this connection has.
func (s *pipeline) expect() (uint16, chan []byte, error) {
	reply := make(chan []byte, 1) // the reader never waits
	for {
		id, err := randomID()
		if err != nil {
			return 0, nil, err
		}
		s.mu.Lock()
		_, taken := s.waiting[id]
		if !taken {
			s.waiting[id] = reply
		}
		s.mu.Unlock()
		if !taken {
			return id, reply, nil
		}
	}
}

func (s *pipeline) forget(id uint16) {
	s.mu.Lock()
	delete(s.waiting, id)
	s.mu.Unlock()
}

func (s *pipeline) cause() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &brokenError{s.err}
}

func (s *pipeline) usable() bool {
	select {
	case <-s.gone:
		return false
	default:
		return true
	}
}

func (s *pipeline) close() { s.fail(errClosed) }

func (s *pipeline) fail(err error) {
	s.mu.Lock()
	first := s.err == nil
	if first {
		s.err = err
	}
	s.mu.Unlock()
	if first {
		close(s.gone)
		s.conn.Close()
	}
}

func (s *pipeline) write() {
	for {
		select {
		case b := <-s.out:
			s.conn.SetWriteDeadline(time.Now().Add(s.limit))
			if _, err := s.conn.Write(b); err != nil {
				s.fail(err)
				return
			}
		case <-s.gone:
			return
		}
	}
}

func (s *pipeline) read() {
	r := bufio.NewReaderSize(s.conn, 4096)
	for strange := 0; strange < maxStrange; {
		b, err := s.next(r)
		if err != nil {
			s.fail(err)
			return
		}
		if !s.deliver(b) {
			strange++
		}
	}
	s.fail(errStrange)
}

// next reads one message. It may take any time to begin, but then it has to come.
func (s *pipeline) next(r *bufio.Reader) ([]byte, error) {
	s.conn.SetReadDeadline(time.Time{})
	if _, err := r.Peek(1); err != nil {
		if errors.Is(err, io.EOF) {
			err = errLostReply
		}
		return nil, err
	}
	s.conn.SetReadDeadline(time.Now().Add(s.limit))
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, b)
	return b, err
}

// deliver hands a reply to who waits for it. A second one to the same ID is a stranger.
func (s *pipeline) deliver(b []byte) bool {
	if len(b) < headerLen {
		return false
	}
	id := binary.BigEndian.Uint16(b)
	s.mu.Lock()
	reply := s.waiting[id]
	delete(s.waiting, id)
	s.mu.Unlock()
	if reply == nil {
		return false
	}
	reply <- b
	return true
}
