package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"gatun/attribution"
	"gatun/network/packet"
)

// Limits of one TCP connection (RFC 7766).
const (
	streamIdle     = 10 * time.Second
	streamWrite    = 10 * time.Second
	streamPipeline = 64    // queries of one connection answered at a time; then we stop reading
	maxQuery       = 16384 // bytes of one query; an honest one has a few hundred
	maxSections    = 16    // records a plausible query announces per section
)

// ErrNotDNS means that a stream to port 53 carried something else.
var ErrNotDNS = errors.New("the stream to port 53 is not DNS")

var errIdle = errors.New("idle")

// stream is one TCP connection with a program.
type stream struct {
	server *Server
	flow   packet.Flow
	owner  attribution.Owner
	conn   net.Conn

	work  sync.WaitGroup // queries being answered
	slots chan struct{}  // one per query, and one of the reader
	out   chan []byte    // framed replies; as large as slots, so that nobody blocks on it
}

// ServeConn answers the queries of one TCP connection, each as soon as it can be, until the
// program closes its side, nothing was asked for 10 s, or ctx ends. It closes the connection.
// A stream that is not DNS ends with ErrNotDNS, and nothing of it is answered.
func (s *Server) ServeConn(ctx context.Context, flow packet.Flow, owner attribution.Owner, conn net.Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	st := &stream{server: s, flow: flow, owner: owner, conn: conn, slots: make(chan struct{}, streamPipeline), out: make(chan []byte, streamPipeline)}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	var writer sync.WaitGroup
	writer.Go(st.write)
	err := st.read(ctx)
	if errors.Is(err, ErrNotDNS) {
		cancel()
	}
	st.work.Wait() // what was asked before the program closed its side is still answered
	close(st.out)
	writer.Wait()
	stop()
	cancel()
	conn.Close()
	return err
}

func (st *stream) read(ctx context.Context) error {
	for {
		select {
		case st.slots <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		msg, err := st.next()
		if err != nil {
			<-st.slots
			return st.end(ctx, err)
		}
		st.work.Go(func() {
			if reply := st.server.serve(ctx, st.flow, st.owner, msg); reply != nil {
				st.out <- append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(reply)), uint16(len(reply))), reply...)
				return // the writer gives the slot back
			}
			<-st.slots
		})
	}
}

// end says why reading ended. That the program has nothing more to ask is no error.
func (st *stream) end(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, io.EOF), errors.Is(err, errIdle):
		return nil
	}
	return err
}

// next reads one message. The header is looked at before the body is waited for, so that a
// stream of another protocol ends at once and not when its "length" is there.
func (st *stream) next() ([]byte, error) {
	for {
		if err := st.conn.SetReadDeadline(time.Now().Add(st.server.idle)); err != nil {
			return nil, err
		}
		var head [2 + headerLen]byte
		n, err := io.ReadFull(st.conn, head[:])
		switch {
		case err == nil:
		case n == 0 && isTimeout(err) && len(st.slots) > 1:
			continue // not idle: it waits for our answers; one slot is the reader's own
		case n == 0 && isTimeout(err):
			return nil, errIdle
		case n > 0:
			return nil, errors.Join(ErrNotDNS, err)
		default:
			return nil, err
		}
		size := int(binary.BigEndian.Uint16(head[:]))
		if size > maxQuery || !plausible(head[2:], size) {
			return nil, ErrNotDNS
		}
		msg := make([]byte, size)
		copy(msg, head[2:])
		if _, err := io.ReadFull(st.conn, msg[headerLen:]); err != nil {
			return nil, errors.Join(ErrNotDNS, err)
		}
		return msg, nil
	}
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

// plausible reports whether a header could be that of a query.
func plausible(h []byte, size int) bool {
	if size < headerLen || h[2]&0x80 != 0 {
		return false
	}
	for i := 4; i < headerLen; i += 2 {
		if binary.BigEndian.Uint16(h[i:]) > maxSections {
			return false
		}
	}
	return true
}

// write sends the replies in the order in which they were ready. A program that does not take
// them loses its connection, which ends the reader too.
func (st *stream) write() {
	alive := true
	for reply := range st.out {
		if alive {
			err := st.conn.SetWriteDeadline(time.Now().Add(streamWrite))
			if err == nil {
				_, err = st.conn.Write(reply)
			}
			if err != nil {
				alive = false
				st.conn.Close()
			}
		}
		<-st.slots
	}
}
